//! Command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Makes a retried HTTP request take effect once.
#[derive(Debug, Parser)]
#[command(name = "onceward", version, arg_required_else_help = true, subcommand_required = true)]
#[command(after_help = "\
`onceward serve --upstream http://127.0.0.1:3000` puts the gateway before a service. Clients send POST and PATCH to the
gateway with an Idempotency-Key, the same one on each retry; the service sees the request once, and each retry gets the
first answer.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Serve(Serve),
    #[cfg(feature = "demo")]
    Demo(crate::demo::Demo),
    Config(Settings),
    #[cfg(feature = "postgres")]
    Migrate(Migrate),
    /// Run the orders service of the demo
    #[cfg(feature = "demo")]
    #[command(hide = true)]
    DemoOrders(crate::demo::OrdersArgs),
    /// Run the gateway of the demo: `serve` that ends with the demo
    #[cfg(feature = "demo")]
    #[command(hide = true)]
    DemoGateway(Serve),
}

/// Runs the gateway in front of a service.
#[derive(Debug, Args)]
#[command(after_help = "\
A setting is taken from the flag, else from the environment (ONCEWARD_LISTEN, ONCEWARD_POLICY_LEASE), else from the file,
else it has its default; `onceward config --print` shows them all. ONCEWARD_LOG=debug logs more, ONCEWARD_LOG_FORMAT=json
or =text logs otherwise than the terminal suggests. SIGTERM finishes what runs and stops; a second one stops at once.")]
pub(crate) struct Serve {
    /// URL of the protected service, such as http://127.0.0.1:3000
    #[arg(long, value_name = "URL")]
    pub(crate) upstream: Option<String>,
    /// Address of the public listener [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<String>,
    /// Store of the keys: embedded:FOLDER, postgres://…, redis://HOST:PORT or memory: [default:
    /// embedded:onceward-data]
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// Address of /healthz, /readyz, /status and /metrics [default: 127.0.0.1:8081]
    #[arg(long, value_name = "ADDR")]
    pub(crate) admin: Option<String>,
    /// Part of a request that identifies the caller: authorization, header:NAME, cookie:NAME or
    /// jwt:CLAIM; may be repeated; empty says that all callers are one
    #[arg(long, value_name = "PART")]
    pub(crate) principal: Vec<String>,
    /// Configuration file [default: ./onceward.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// Creates the tables of a store in PostgreSQL, or updates them
#[cfg(feature = "postgres")]
#[derive(Debug, Args)]
#[command(after_help = "\
`serve` does the same at its start if its role may make tables. A role that only serves needs no such right: run this once
with one that may.")]
pub(crate) struct Migrate {
    /// Store: postgres://USER:PASSWORD@HOST/DATABASE [default: ONCEWARD_STORE]
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// Print the SQL and do nothing
    #[arg(long)]
    pub(crate) print: bool,
}

/// Shows the settings.
#[derive(Debug, Args)]
pub(crate) struct Settings {
    /// Print every setting, its default and its meaning, as TOML
    #[arg(long, required = true)]
    pub(crate) print: bool,
}

impl Serve {
    /// Returns the flags that were given, as settings.
    pub(crate) fn flags(&self) -> Vec<(&'static str, &'static str, Vec<String>)> {
        let one = |path, flag, value: &Option<String>| value.clone().map(|value| (path, flag, vec![value]));
        let mut flags: Vec<_> = [
            one("upstream", "--upstream", &self.upstream),
            one("listen", "--listen", &self.listen),
            one("store", "--store", &self.store),
            one("admin.listen", "--admin", &self.admin),
        ]
        .into_iter()
        .flatten()
        .collect();
        if !self.principal.is_empty() {
            flags.push(("policy.principal", "--principal", self.principal.clone()));
        }
        flags
    }
}

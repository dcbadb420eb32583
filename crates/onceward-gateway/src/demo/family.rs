//! Child processes that the demo starts from its own program, and that end with it.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fs, io, thread};

use clap::Args;
use orders::{Config, Orders};
use tokio::net::TcpListener;

pub(super) const ORDERS_DB: &str = "orders.db";
// Not `onceward.toml`: the data directory may be one in which a user has their own.
const SETTINGS: &str = "demo.toml";
const KEYS: &str = "keys";

/// Arguments of the demo's orders service.
#[derive(Debug, Args)]
pub(crate) struct OrdersArgs {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    db: PathBuf,
    #[arg(long)]
    relay: String,
    /// Origin that the page is loaded from, so that its network can inject faults.
    #[arg(long)]
    network: Option<String>,
}

/// Ends this process when its parent is gone, however that ended: then the parent's end of the pipe
/// closes.
pub(crate) fn end_with_parent() {
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0);
    });
}

/// Runs the orders service.
pub(crate) fn orders(args: &OrdersArgs) -> ExitCode {
    end_with_parent();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let served = runtime.map_err(|error| error.to_string()).and_then(|runtime| runtime.block_on(serve_orders(args)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("orders: {what}");
            ExitCode::FAILURE
        }
    }
}

async fn serve_orders(args: &OrdersArgs) -> Result<(), String> {
    let listen = args.listen;
    let listener = TcpListener::bind(listen).await.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    let orders = Orders::open(&args.db).map_err(|error| crate::chain(&error))?;
    let router = orders::router(orders, Config { relay: Some(args.relay.clone()), network: args.network.clone() });
    // In the gateway's format, so that the demo waits for one kind of line only.
    eprintln!("{}", serde_json::json!({ "level": "INFO", "message": format!("listening on {listen}") }));
    orders::serve(listener, router, std::future::pending()).await.map_err(|error| error.to_string())
}

pub(super) fn orders_args(folder: &Path, listen: SocketAddr, relay: SocketAddr, network: SocketAddr) -> Vec<OsString> {
    let (listen, relay, network) = (listen.to_string(), format!("http://{relay}"), format!("http://{network}"));
    let args = ["demo-orders", "--listen", &listen, "--relay", &relay, "--network", &network, "--db"];
    args.map(OsString::from).into_iter().chain([folder.join(ORDERS_DB).into()]).collect()
}

/// Returns the gateway's arguments, and writes the configuration file that they name, as a person
/// would.
pub(super) fn gateway_args(
    folder: &Path,
    listen: SocketAddr,
    admin: SocketAddr,
    upstream: SocketAddr,
) -> Result<Vec<OsString>, String> {
    let store = folder.join(KEYS);
    let store = store.to_str().ok_or_else(|| format!("{} is not Unicode: choose another folder", store.display()))?;
    let settings = format!(
        "\
# What `onceward serve` runs by in this demo.
upstream = \"http://{upstream}\"
listen   = \"{listen}\"
store    = {}

[admin]
listen = \"{admin}\"

[policy]
principal = [] # all callers are one: cookies of localhost cross ports, and say nothing here

[[route]]
path    = \"/orders\"
missing = \"pass\" # a request without a key is not protected; \"reject\" would refuse it
",
        toml::Value::from(format!("embedded:{store}"))
    );
    let file = folder.join(SETTINGS);
    fs::write(&file, settings).map_err(|error| format!("{} cannot be written: {error}", file.display()))?;
    Ok(["demo-gateway".into(), "--config".into(), file.into()].into())
}

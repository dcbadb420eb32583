//! Gateway: Onceward's layer as a reverse proxy in front of a service in any language.

pub mod config;

mod admin;
mod app;
mod authorize;
mod callers;
mod cli;
mod client_socket;
mod cors;
#[cfg(feature = "demo")]
mod demo;
mod descriptors;
mod forwarded;
mod jwt;
mod logging;
mod loops;
mod metrics;
#[cfg(feature = "postgres")]
mod migrate;
mod serve;
mod server;
mod signals;
mod target;
mod upstream;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command, Serve};
use config::{Config, Given};

/// Runs the program. Returns 0, 1 after a failure, or 2 after a usage error.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(serve) => run(&serve),
        Command::Config(_) => {
            print!("{}", config::defaults());
            ExitCode::SUCCESS
        }
        #[cfg(feature = "postgres")]
        Command::Migrate(migrate) => migrate::run(&migrate),
        #[cfg(feature = "demo")]
        Command::Demo(demo) => demo::run(&demo),
        #[cfg(feature = "demo")]
        Command::DemoOrders(args) => demo::orders(&args),
        #[cfg(feature = "demo")]
        Command::DemoGateway(serve) => {
            demo::end_with_parent();
            run(&serve)
        }
    }
}

fn run(serve: &Serve) -> ExitCode {
    let failed = |what: String, code| {
        // One line, whatever the underlying error contains.
        eprintln!("onceward: {}", what.replace(['\n', '\r'], " "));
        ExitCode::from(code)
    };
    let config = match logging::start().and_then(|()| read(serve)) {
        Ok(config) => config,
        Err(what) => return failed(what, 2),
    };
    let result = serve::run(config);
    logging::end();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => failed(what, 1),
    }
}

/// Reads the settings from flags, environment and file.
fn read(serve: &Serve) -> Result<Config, String> {
    let (path, is_named) = match &serve.config {
        Some(path) => (path.as_path(), true),
        None => (Path::new("onceward.toml"), false),
    };
    let file = match std::fs::read_to_string(path) {
        Ok(text) => Some((path.display().to_string(), text)),
        Err(error) if !is_named && error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(format!("{} cannot be read: {error}", path.display())),
    };
    // A variable that is not Unicode cannot be a valid setting.
    let environment =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let given = Given { flags: serve.flags(), environment: environment.collect(), file };
    Config::read(&given).map_err(|invalid| invalid.to_string())
}

/// Formats an error and its sources in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}

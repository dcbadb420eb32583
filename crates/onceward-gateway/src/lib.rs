//! The gateway: Onceward's layer before a service in any language.

pub mod config;

mod cli;
mod logging;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command, Serve};
use config::{Config, Given};

/// Runs the program: 0, or 1 where it failed, or 2 where it was called wrongly.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(serve) => run(&serve),
        Command::Config(_) => {
            print!("{}", config::defaults());
            ExitCode::SUCCESS
        }
    }
}

fn run(serve: &Serve) -> ExitCode {
    let config = match read(serve) {
        Ok(config) => config,
        Err(what) => {
            eprintln!("onceward: {what}");
            return ExitCode::from(2);
        }
    };
    _ = config;
    ExitCode::SUCCESS
}

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
    // What is not Unicode cannot be a value of ours.
    let environment =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let given = Given { flags: serve.flags(), environment: environment.collect(), file };
    Config::read(&given).map_err(|invalid| invalid.to_string())
}

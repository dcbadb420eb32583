//! Program behind `cargo xtask bench`: the load, the services under load, and the gateway, all of
//! one build.
//!
//! Runs as a gateway with `serve` as its first argument, as a service with `service`. Both are
//! measured as separate processes, so that no other work is attributed to them.

mod cli;
mod gateway;
mod load;
mod postgres;
mod processes;
mod redis;
mod scale;
mod servers;
mod service;
mod table;

fn main() -> std::process::ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("serve") => onceward_gateway::main(),
        Some("service") => service::main(std::env::args().skip(2)),
        _ => cli::main(),
    }
}

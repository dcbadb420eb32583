//! The program behind `cargo xtask bench`: the load, the services that it is put on, and the gateway, all of one build.
//!
//! With `serve` as its first word it is a gateway, with `service` a service; both are measured as processes of their own, so
//! that nobody else's work is counted as theirs.

mod cli;
mod gateway;
mod load;
mod postgres;
mod processes;
mod redis;
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

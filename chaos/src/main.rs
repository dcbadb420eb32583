//! Program behind `cargo xtask chaos`. Runs as a gateway with `serve` as its first argument, so
//! that the fault injector and the gateways are always of one build.

fn main() -> std::process::ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("serve") => onceward_gateway::main(),
        _ => chaos::main(),
    }
}

//! The program behind `cargo xtask chaos`. With `serve` as its first word it is a gateway, so that those who hurt and those
//! who are hurt are always of one build.

fn main() -> std::process::ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("serve") => onceward_gateway::main(),
        _ => chaos::main(),
    }
}

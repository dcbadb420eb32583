//! Program `onceward`.

fn main() -> std::process::ExitCode {
    onceward_gateway::main()
}

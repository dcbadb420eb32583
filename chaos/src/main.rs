//! The program behind `cargo xtask chaos`.
fn main() {}

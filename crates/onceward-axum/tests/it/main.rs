//! The layer in real axum programs: over TCP, with the crates that people put beside it.

mod support;

mod body;
mod cors;
mod dialect;
mod errors;
mod handler;
mod nested;
mod order;
mod shutdown;
mod spans;
mod types;

//! The gateway, from outside.

mod client;
mod config;
mod cors;
#[cfg(target_os = "linux")]
mod cost;
#[cfg(feature = "demo")]
mod demo;
mod drain;
mod faults;
mod forward;
mod keys;
mod kills;
#[cfg(feature = "demo")]
mod page;
#[cfg(feature = "postgres")]
mod pair;
#[cfg(feature = "postgres")]
#[path = "../../../onceward/tests/it/support/postgres.rs"]
mod postgres;
mod rows;
mod serve;
mod stores;
mod support;
mod upstream;

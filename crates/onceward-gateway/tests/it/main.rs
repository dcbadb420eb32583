//! The gateway, from outside.

mod client;
mod config;
#[cfg(target_os = "linux")]
mod cost;
#[cfg(feature = "demo")]
mod demo;
mod drain;
mod faults;
mod forward;
mod kills;
#[cfg(target_os = "linux")]
mod many;
#[cfg(feature = "demo")]
mod page;
#[cfg(target_os = "linux")]
#[path = "../../../onceward/tests/it/support/redis.rs"]
mod redis_server;
mod rows;
mod serve;
mod support;
mod upstream;

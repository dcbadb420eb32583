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
#[cfg(target_os = "linux")]
mod many;
#[cfg(feature = "demo")]
mod page;
#[cfg(feature = "postgres")]
mod pair;
#[cfg(feature = "postgres")]
#[path = "../../../onceward/tests/it/support/postgres.rs"]
mod postgres;
#[cfg(target_os = "linux")]
#[path = "../../../onceward/tests/it/support/redis.rs"]
mod redis_server;
mod rows;
mod serve;
mod stores;
mod support;
mod upstream;
#[path = "../../../onceward/tests/it/support/waiting.rs"]
mod waiting;

//! The gateway, from outside.

mod bounds;
mod callers;
mod client;
mod config;
mod cors;
#[cfg(target_os = "linux")]
mod cost;
#[cfg(feature = "demo")]
mod demo;
mod drain;
#[cfg(all(target_os = "linux", feature = "postgres", feature = "redis"))]
#[path = "../../../onceward/tests/it/support/fault_proxy.rs"]
mod fault_proxy;
mod faults;
mod fingerprints;
mod forward;
mod front;
mod keys;
mod kills;
#[cfg(all(target_os = "linux", feature = "postgres", feature = "redis"))]
#[path = "../../../onceward/tests/it/support/machine.rs"]
mod machine;
#[cfg(all(target_os = "linux", feature = "postgres", feature = "redis"))]
mod many;
mod meanings;
#[cfg(feature = "demo")]
mod page;
#[cfg(all(target_os = "linux", feature = "postgres", feature = "redis"))]
#[path = "../../../onceward/tests/it/support/postgres.rs"]
mod postgres;
mod redirects;
#[cfg(all(target_os = "linux", feature = "postgres", feature = "redis"))]
#[path = "../../../onceward/tests/it/support/redis.rs"]
mod redis;
mod responses;
mod rows;
mod serve;
mod stores;
mod support;
mod upstream;
#[path = "../../../onceward/tests/it/support/waiting.rs"]
mod waiting;

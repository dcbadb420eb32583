//! Servers of the tests: real ones, on free ports, ended with this process.

#[path = "../../crates/onceward/tests/it/support/postgres.rs"]
pub(crate) mod postgres;
#[path = "../../crates/onceward/tests/it/support/redis.rs"]
pub(crate) mod redis;
#[path = "../../crates/onceward/tests/it/support/waiting.rs"]
pub(crate) mod waiting;

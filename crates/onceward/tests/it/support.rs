//! Real servers, and what breaks the way to them.

#[allow(dead_code, reason = "shared by tests that need different parts of it")]
pub(crate) mod fault_proxy;
pub(crate) mod redis;

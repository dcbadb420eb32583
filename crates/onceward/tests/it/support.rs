//! Real servers, and what breaks the way to them.

pub(crate) mod fault_proxy;
pub(crate) mod redis;

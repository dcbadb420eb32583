//! Real servers, and a proxy that injects network faults.

#[cfg(any(feature = "postgres", feature = "redis"))]
pub(crate) mod certificates;
pub(crate) mod fault_proxy;
#[cfg(target_os = "linux")]
pub(crate) mod machine;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "redis")]
pub(crate) mod redis;
pub(crate) mod waiting;

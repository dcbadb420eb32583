//! The tests of the library that need more than one of its modules.

#[cfg(feature = "engine")]
mod codec;
#[cfg(feature = "conformance")]
mod conformance;
#[cfg(feature = "engine")]
mod decide;
#[cfg(all(feature = "embedded", feature = "conformance"))]
mod embedded;
#[cfg(feature = "engine")]
mod fingerprint;
#[cfg(feature = "engine")]
mod golden;
#[cfg(feature = "engine")]
mod hex;
#[cfg(all(feature = "layer", feature = "memory"))]
mod layer;
#[cfg(all(feature = "postgres", feature = "conformance"))]
mod postgres;
#[cfg(feature = "engine")]
mod principal;
mod problem;
#[cfg(all(feature = "redis", feature = "conformance"))]
mod redis;
#[cfg(all(feature = "layer", feature = "memory"))]
mod shop;
#[cfg(all(feature = "memory", feature = "conformance"))]
mod simulated;
#[cfg(feature = "engine")]
mod statuses;
#[cfg(all(any(feature = "postgres", feature = "redis"), feature = "conformance"))]
mod support;
#[cfg(feature = "engine")]
mod vectors;
#[cfg(all(feature = "layer", feature = "memory"))]
mod waiting;
#[cfg(feature = "engine")]
mod wire;

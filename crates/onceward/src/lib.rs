//! A retried HTTP request takes effect **once**.

#[cfg(feature = "axum-08")]
mod extract;
pub mod key;
pub mod problem;
pub mod wire;

#[cfg(feature = "engine")]
pub mod claim;
#[cfg(feature = "engine")]
pub mod clock;
#[cfg(feature = "engine")]
pub mod codec;
#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(feature = "engine")]
pub mod decide;
#[cfg(feature = "layer")]
pub mod endpoints;
#[cfg(feature = "engine")]
pub mod engine;
#[cfg(feature = "engine")]
pub mod fingerprint;
#[cfg(feature = "layer")]
pub mod layer;
#[cfg(feature = "engine")]
pub mod limits;
#[cfg(feature = "engine")]
pub mod observe;
#[cfg(feature = "engine")]
pub mod policy;
#[cfg(feature = "engine")]
pub mod principal;
#[cfg(feature = "engine")]
pub mod record;
#[cfg(feature = "engine")]
pub mod reply;
#[cfg(feature = "engine")]
pub mod secret;
#[cfg(feature = "engine")]
pub mod store;
#[cfg(feature = "engine")]
mod waiters;

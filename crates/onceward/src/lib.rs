//! A retried HTTP request takes effect **once**: a `tower` layer for `Idempotency-Key`.
//!
//! A client sends a unique key with a POST, and the same key with each retry. [`layer`] claims the
//! key in a [`store`], executes the request once, stores the response and replays it. [`decide`] is
//! the single pure rule for what may be done with a key; [`problem`] is the single table of what
//! each refusal means.
//!
//! # Example
//!
//! ```
//! # #[cfg(all(feature = "layer", feature = "memory"))] {
//! use onceward::layer::IdempotencyLayer;
//! use onceward::principal::PrincipalPart;
//! use onceward::store::MemoryStore;
//! use tower_layer::Layer;
//!
//! # #[derive(Clone)] struct App;
//! // `App` is any cloneable `tower` service over HTTP. For axum there is `onceward-axum`.
//! let once = IdempotencyLayer::builder(MemoryStore::default()).principal(PrincipalPart::Authorization).build();
//! let service = once.require_key_for("/orders").layer(App);
//! # let _ = service;
//! # }
//! ```
//!
//! # Features
//!
//! `layer` and `memory` are on by default. `embedded` adds the store in a local directory,
//! `postgres` the one in PostgreSQL, `redis` the one in Redis or Valkey. `conformance` adds the
//! test suite for store authors. `engine` is the engine without the HTTP layer. With no feature,
//! [`key`], [`wire`] and [`problem`] remain, without tokio: for clients.

// A store on its own needs the engine's records, but none of the items that the engine has for the
// layer.
#![cfg_attr(not(feature = "layer"), allow(dead_code))]

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
#[cfg(feature = "engine")]
pub mod issued;
#[cfg(feature = "layer")]
pub mod layer;
#[cfg(feature = "engine")]
pub mod limits;
#[cfg(feature = "engine")]
pub mod observe;
#[cfg(feature = "layer")]
pub mod paths;
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

#[doc(hidden)]
pub mod fault;

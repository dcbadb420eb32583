//! Onceward for axum: a retried POST takes effect **once**.
//!
//! Put the layer *around the application*, so that everything that commits, saves or scopes is
//! inside of it. When a client disconnects, the request runs on with its sessions and transactions,
//! and its final response is stored for the retry.
//!
//! # Example
//!
//! ```no_run
//! use axum::{Json, Router, routing::post};
//! use onceward::{policy::Policy, principal::PrincipalPart, store::MemoryStore};
//! use onceward_axum::{Claim, IdempotencyLayer};
//!
//! async fn place_order(claim: Option<Claim>, Json(order): Json<serde_json::Value>) -> String {
//!     format!("placed {order}, attempt {:?}", claim.map(|claim| claim.attempt()))
//! }
//!
//! # #[tokio::main] async fn main() -> std::io::Result<()> {
//! let once = IdempotencyLayer::builder(MemoryStore::default()) // or EmbeddedStore::open("onceward-data")?
//!     .principal(PrincipalPart::Authorization) // which part of a request names the caller
//!     .build()
//!     .policy_for("/orders", Policy::default().require_key());
//!
//! let app = Router::new()
//!     .route("/orders", post(place_order))
//!     // … sessions, transactions: `.layer(…)` here, inside …
//!     .nest_service("/.idempotency", once.endpoints());
//! let app = once.around(app);
//! // … request ids, traces, CORS, authentication: `.layer(…)` here, outside …
//!
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//! onceward_axum::serve(listener, app, &once).with_graceful_shutdown(onceward_axum::shutdown_signal()).await
//! # }
//! ```
//!
//! # Order of layers
//!
//! The rules are in [`onceward::layer`]. A layer per route, `.route_layer(once)`, protects as well,
//! but each layer that is added to the router later is outside. A session or a transaction there is
//! dropped with the connection, and the retry replays a success although nothing was saved. The
//! layer logs this once.
//!
//! # CORS
//!
//! The CORS layer belongs outside, since a browser hides a replay or a refusal without its headers.
//! It must let pages send the key and read the outcome:
//!
//! ```
//! # use tower_http::cors::CorsLayer;
//! use axum::http::{Method, header::CONTENT_TYPE};
//!
//! let cors = CorsLayer::new()
//!     .allow_origin(["https://shop.example".parse().unwrap()])
//!     .allow_methods([Method::GET, Method::POST])
//!     .allow_headers(onceward_axum::cors::request_headers().chain([CONTENT_TYPE]).collect::<Vec<_>>())
//!     .expose_headers(onceward_axum::cors::exposed_headers().collect::<Vec<_>>());
//! # let _ = cors;
//! ```

mod claim;
pub mod cors;
mod layer;
mod serve;
mod service;

pub use claim::{Claim, NoClaimError};
pub use layer::{Builder, IdempotencyLayer};
pub use serve::{Serve, WithGracefulShutdown, serve, shutdown_signal};
pub use service::{Idempotency, ResponseFuture};

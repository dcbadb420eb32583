//! Idempotency keys for HTTP clients, one key per intent: a
//! [`reqwest-middleware`](reqwest_middleware) that adds a key to every POST and PATCH, reuses it in
//! retries, and never sends a duplicate to a server that does not support keys.
//!
//! # Example
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//!
//! use onceward_client::Idempotent;
//!
//! let connections = reqwest::Client::builder().connect_timeout(Duration::from_secs(5));
//! let client = Idempotent::default().deadline(Duration::from_secs(30)).build(connections)?;
//! let response = client.post("http://127.0.0.1:8080/orders").body("{\"item\":\"tea\"}").send().await?;
//! println!("{}", response.status());
//! # Ok(())
//! # }
//! ```
//!
//! # Example: a program that must survive a crash
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use onceward_client::{Idempotent, Intent, Journal};
//!
//! let journal = Journal::open("outbox")?;
//! let client = Idempotent::default().journal(&journal).build(reqwest::Client::builder())?;
//! // Requests of an earlier run whose outcome it did not learn.
//! for pending in journal.pending() {
//!     println!("{}: {}", pending.url(), pending.resume(&client).await?.status());
//! }
//! // Key and request are on the disk before the first byte is sent. A named intent is one action and one key.
//! client.post("http://127.0.0.1:8080/orders").with_extension(Intent::new("order 7")).body("tea").send().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Other middlewares
//!
//! Put [`Idempotent`] inside (after) a middleware that retries: each of its sends has the same key.
//! A retrying middleware *inside* of [`Idempotent`] repeats requests that this crate cannot see. If
//! the server does not support keys, a request whose response is lost is then executed as often as
//! that middleware retries. [`Idempotent`] retries by itself, so no other retry is needed.
//!
//! # Redirects
//!
//! `reqwest` follows redirects below this middleware. [`Idempotent::build`] records them. For a
//! client that was built otherwise and is not declared by [`Idempotent::records_redirects`], a
//! connect error is an unknown outcome: it may be of the page that an executed POST was redirected
//! to.
//!
//! # Streamed bodies
//!
//! A streamed or multipart body can be sent only once. If its response is lost, the outcome is
//! looked up at the server. Two streams are never equal. The boundary of a multipart form differs
//! each time that the form is built: a server compares such forms by their fields with `fingerprint
//! = "auto"` or `"form"`.

pub mod decide;
mod error;
mod heard;
mod intent;
mod intents;
mod journal;
mod middleware;
mod redirects;

pub use error::Error;
pub use heard::{ANSWER_BYTES_MAX, retry_after};
pub use intent::Intent;
pub use journal::{Journal, JournalError, Pending};
pub use middleware::Idempotent;
pub use redirects::recording;

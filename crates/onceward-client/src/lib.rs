//! One key per intent: a [`reqwest-middleware`](reqwest_middleware) that keys every POST and PATCH, keeps the key over its
//! retries, and never sends a duplicate to where keys are not honoured.
//!
//! # Example
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use onceward_client::Idempotent;
//! use reqwest_middleware::ClientBuilder;
//!
//! let client = ClientBuilder::new(reqwest::Client::new()).with(Idempotent::default()).build();
//! let answer = client.post("http://127.0.0.1:8080/orders").body("{\"item\":\"tea\"}").send().await?;
//! println!("{}", answer.status());
//! # Ok(())
//! # }
//! ```
//!
//! # Example: a program that must survive a crash
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use onceward_client::{Idempotent, Intent, Journal};
//! use reqwest_middleware::ClientBuilder;
//!
//! let journal = Journal::open("outbox")?;
//! let client = ClientBuilder::new(reqwest::Client::new()).with(Idempotent::default().journal(&journal)).build();
//! // What an earlier run began, and did not hear the end of.
//! for pending in journal.pending() {
//!     println!("{}: {}", pending.url(), pending.resume(&client).await?.status());
//! }
//! // Key and request are on the disk before the first byte is sent. An intent that is open keeps its key.
//! client.post("http://127.0.0.1:8080/orders").with_extension(Intent::new("order 7")).body("tea").send().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Put it outside (before) other retry middlewares or inside (after) them: one request has one key either way.

pub mod decide;
mod error;
mod heard;
mod intent;
mod journal;
mod middleware;

pub use error::Error;
pub use heard::{ANSWER_BYTES_MAX, retry_after};
pub use intent::Intent;
pub use journal::{Journal, JournalError, Pending};
pub use middleware::Idempotent;

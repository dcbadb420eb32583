//! Orders service, the example of this project: it accepts orders, and is deliberately naive.
//!
//! Each `POST /orders` that reaches it inserts a row. A client that loses the response and retries
//! creates a second order, and so does an impatient second click. Onceward fixes that, as a layer
//! inside this service or as a gateway before it, without a change to this service.
//!
//! | request | response |
//! |---|---|
//! | `POST /orders {"item": "tea", "qty": 2}` | 201, `Location: /orders/1`, the [`Order`] |
//! | `GET /orders` (`?limit=1..=10000`, unset: 1000) | the orders, newest first; `Orders-Total` counts them all |
//! | `GET /orders/1` | the order, or 404 |
//! | `GET /` | the page on which a person tries all this |
//!
//! Rejections are `application/problem+json`: `detail` states the fix in one line, and `field`
//! names the invalid field, if there is one.
//!
//! # Example: the whole service on a free port
//!
//! ```
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! let orders = orders::Orders::open(folder.path().join("orders.db"))?;
//! let router = orders::router(orders.clone(), orders::Config::default());
//!
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let address = listener.local_addr()?;
//! let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
//! let service = tokio::spawn(orders::serve(listener, router, async { drop(stopped.await) }));
//! // … requests to `http://{address}/orders` …
//! # let _ = address;
//!
//! drop(stop);
//! service.await??;
//! assert_eq!(orders.list(10).await?, []);
//! # Ok(()) }
//! ```
//!
//! # Example: a page that can have the network drop an answer
//!
//! To have its response dropped, the page sends a request to a *relay*: another origin that
//! forwards the request, reads the whole response, and then closes the connection.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let orders = orders::Orders::open(folder.path().join("orders.db"))?;
//! let config = orders::Config { relay: Some("http://127.0.0.1:8082".into()), ..Default::default() };
//! let router = orders::router(orders, config);
//! # drop(router); Ok(()) }
//! ```

mod intake;
mod page;
mod refusal;
mod rows;
mod service;

pub use intake::NewOrder;
pub use refusal::Refusal;
pub use rows::{Error, Order, Orders};
pub use service::{Config, router, serve};

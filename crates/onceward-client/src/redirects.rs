//! Records the redirects that the HTTP client follows by itself.
//!
//! `reqwest` follows redirects below this middleware. An error of a later hop looks like an error of the request itself: a
//! POST that executed and was answered with 303 to a page that is down ends in a connect error. Unless the hops are recorded,
//! a connect error therefore proves nothing.

use std::sync::Arc;

use http::StatusCode;
use parking_lot::Mutex;
use reqwest::redirect::Policy;

tokio::task_local! {
    /// The redirects that were followed for the request which this task sends.
    static HOPS: Hops;
}

/// Statuses of the redirects that were followed, in their order. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hops(Arc<Mutex<Vec<StatusCode>>>);

impl Hops {
    /// Runs `send`, and records the redirects that it follows.
    pub(crate) async fn record<F: Future>(&self, send: F) -> F::Output {
        HOPS.scope(self.clone(), send).await
    }

    /// Returns true if a redirect answered the request itself, so that it may have executed. A 307 or 308 asks for the same
    /// request at another place and answers nothing.
    pub(crate) fn answered(&self) -> bool {
        let repeats = [StatusCode::TEMPORARY_REDIRECT, StatusCode::PERMANENT_REDIRECT];
        self.0.lock().iter().any(|status| !repeats.contains(status))
    }
}

/// Wraps a redirect policy so that each redirect that it sees is recorded for the request which it belongs to.
///
/// A client that is built with it, and has no retrying middleware inside, may be declared by
/// [`Idempotent::records_redirects`](crate::Idempotent::records_redirects): a connect error of such a client proves that
/// nothing was sent. [`Idempotent::build`](crate::Idempotent::build) does both.
///
/// # Example
///
/// ```
/// use onceward_client::{Idempotent, recording};
/// use reqwest::redirect::Policy;
/// use reqwest_middleware::ClientBuilder;
///
/// let client = reqwest::Client::builder().redirect(recording(Policy::limited(3))).build()?;
/// let client = ClientBuilder::new(client).with(Idempotent::default().records_redirects()).build();
/// # Ok::<(), reqwest::Error>(())
/// ```
pub fn recording(policy: Policy) -> Policy {
    Policy::custom(move |attempt| {
        // Requests that were not sent by this crate have no record.
        let _ = HOPS.try_with(|Hops(hops)| hops.lock().push(attempt.status()));
        policy.redirect(attempt)
    })
}

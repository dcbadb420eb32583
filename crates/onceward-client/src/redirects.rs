//! Records the redirects that the HTTP client follows by itself.
//!
//! `reqwest` follows redirects below this middleware. An error of a later hop looks like an error
//! of the request itself. For example, a POST that executed and got a 303 to an unreachable page
//! ends in a connect error. Therefore a connect error proves nothing unless the hops are recorded.

use std::sync::Arc;

use http::StatusCode;
use parking_lot::Mutex;
use reqwest::redirect::Policy;

tokio::task_local! {
    /// Redirects that were followed for the request that this task sends.
    static HOPS: Hops;
}

/// Statuses of the followed redirects, in order. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hops(Arc<Mutex<Vec<StatusCode>>>);

impl Hops {
    /// Runs `send`, and records the redirects that it follows.
    pub(crate) async fn record<F: Future>(&self, send: F) -> F::Output {
        HOPS.scope(self.clone(), send).await
    }

    /// Returns `true` if a redirect was a response to the request itself, which may then have
    /// executed. A 307 or 308 asks for the same request at another URL, and is no such response.
    pub(crate) fn answered(&self) -> bool {
        let repeats = [StatusCode::TEMPORARY_REDIRECT, StatusCode::PERMANENT_REDIRECT];
        self.0.lock().iter().any(|status| !repeats.contains(status))
    }
}

/// Wraps a redirect policy so that each redirect is recorded for its request.
///
/// A client that is built with it, and has no retrying middleware inside, may be declared by
/// [`Idempotent::records_redirects`](crate::Idempotent::records_redirects). A connect error of such
/// a client proves that nothing was sent. [`Idempotent::build`](crate::Idempotent::build) does
/// both.
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

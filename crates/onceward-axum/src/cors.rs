//! Headers of the contract that a CORS layer names.

use http::header::{HeaderName, LINK, LOCATION, RETRY_AFTER};
use onceward::wire;

/// Returns the request headers that a cross-origin page must be allowed to send, besides its own
/// such as `Content-Type`.
pub fn request_headers() -> impl Iterator<Item = HeaderName> {
    [wire::IDEMPOTENCY_KEY, wire::PREFER].into_iter()
}

/// Returns the response headers that a cross-origin page must be able to read, besides the
/// application's own.
pub fn exposed_headers() -> impl Iterator<Item = HeaderName> {
    let own = [wire::IDEMPOTENCY_KEY, wire::IDEMPOTENCY_OUTCOME, wire::IDEMPOTENCY_REPLAYED, wire::PREFERENCE_APPLIED];
    own.into_iter().chain([RETRY_AFTER, LOCATION, LINK])
}

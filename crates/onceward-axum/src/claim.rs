use std::convert::Infallible;
use std::fmt;
use std::ops::Deref;

use axum::body::Body;
use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use onceward::problem::{Code, Problem};

/// Extracts the claim of the attempt that a handler runs under. A route that also accepts requests
/// without a key extracts `Option<Claim>`.
#[derive(Clone, Debug)]
pub struct Claim(pub onceward::claim::Claim);

impl Deref for Claim {
    type Target = onceward::claim::Claim;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Claim {
    type Rejection = NoClaimError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, NoClaimError> {
        parts.extensions.get::<onceward::claim::Claim>().cloned().map(Self).ok_or(NoClaimError)
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for Claim {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(parts.extensions.get::<onceward::claim::Claim>().cloned().map(Self))
    }
}

/// Error of a handler that runs under no claim: the request has no key, or the layer is not around
/// the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoClaimError;

impl fmt::Display for NoClaimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the request has no claim: it has no Idempotency-Key, or no layer is around the application")
    }
}

impl std::error::Error for NoClaimError {}

impl IntoResponse for NoClaimError {
    fn into_response(self) -> Response {
        Problem::new(Code::KeyMissing, "urn:onceward:none").into_response().map(Body::from)
    }
}

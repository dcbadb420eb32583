//! For axum 0.8: the extractor [`Claim`], and the URI of a request as it was received.

use axum::extract::{FromRequestParts, OptionalFromRequestParts, OriginalUri};
use axum::response::{IntoResponse, Response};
use http::Uri;
use http::request::Parts;

use crate::claim::Claim;
use crate::problem::{Code, Problem};

/// The handler runs under no claim: the route has no layer, or the request no key.
#[derive(Clone, Copy, Debug)]
pub struct NoClaim;

impl IntoResponse for NoClaim {
    fn into_response(self) -> Response {
        Problem::new(Code::KeyMissing, "urn:onceward:none").into_response().map(axum::body::Body::from)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Claim {
    type Rejection = NoClaim;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, NoClaim> {
        parts.extensions.get::<Self>().cloned().ok_or(NoClaim)
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for Claim {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Self::Rejection> {
        Ok(parts.extensions.get::<Self>().cloned())
    }
}

/// The URI before a router that this one is nested in took its part of the path away: else two resources would be one.
pub(crate) fn uri_as_received(head: &Parts) -> &Uri {
    head.extensions.get::<OriginalUri>().map_or(&head.uri, |original| &original.0)
}

//! Future of the layer's response.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Response;
use pin_project_lite::pin_project;

use super::body::Body;

pub(super) type Keyed<R, E> = Pin<Box<dyn Future<Output = Result<Response<Body<R>>, E>> + Send>>;

pin_project! {
    /// Future of [`Idempotency`](super::Idempotency): the inner service's own future, unboxed, for
    /// a request without a key.
    pub struct ResponseFuture<F, R: http_body::Body, E> {
        #[pin]
        kind: Kind<F, R, E>,
    }
}

pin_project! {
    #[project = KindProjection]
    enum Kind<F, R: http_body::Body, E> {
        Passed { #[pin] inner: F },
        Keyed { inner: Keyed<R, E> },
    }
}

impl<F, R: http_body::Body, E> ResponseFuture<F, R, E> {
    pub(super) fn passed(inner: F) -> Self {
        Self { kind: Kind::Passed { inner } }
    }

    pub(super) fn keyed(inner: Keyed<R, E>) -> Self {
        Self { kind: Kind::Keyed { inner } }
    }
}

impl<F, R, E> Future for ResponseFuture<F, R, E>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: http_body::Body,
{
    type Output = Result<Response<Body<R>>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().kind.project() {
            KindProjection::Passed { inner } => {
                let response = ready!(inner.poll(context));
                Poll::Ready(response.map(|response| response.map(Body::passed)))
            }
            KindProjection::Keyed { inner } => inner.as_mut().poll(context),
        }
    }
}

impl<F, R: http_body::Body, E> std::fmt::Debug for ResponseFuture<F, R, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ResponseFuture")
    }
}

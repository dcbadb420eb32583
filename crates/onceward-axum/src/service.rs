use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll, ready as ready_or_return};

use axum::body::Body;
use axum::serve::{IncomingStream, Listener};
use bytes::Bytes;
use http::{Request, Response};
use onceward::layer;
use pin_project_lite::pin_project;
use tower_service::Service;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Executes each request that has a key once. Created by
/// [`IdempotencyLayer`](crate::IdempotencyLayer). Like a `Router` it can be passed to
/// [`serve`](crate::serve) as it is.
#[derive(Clone, Debug)]
pub struct Idempotency<S>(layer::Idempotency<Adapter<S>>);

impl<S> Idempotency<S> {
    pub(crate) fn new(inner: layer::Idempotency<Adapter<S>>) -> Self {
        Self(inner)
    }
}

impl<S, B, R> Service<Request<B>> for Idempotency<S>
where
    S: Service<Request<Body>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = ResponseFuture<layer::ResponseFuture<S::Future, R, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Service::<Request<Body>>::poll_ready(&mut self.0, context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // Axum's own body is not boxed again.
        ResponseFuture { inner: self.0.call(request.map(Body::new)) }
    }
}

/// Serves each connection with a clone.
impl<S, L> Service<IncomingStream<'_, L>> for Idempotency<S>
where
    S: Clone,
    L: Listener,
{
    type Response = Self;
    type Error = Infallible;
    type Future = Ready<Result<Self, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: IncomingStream<'_, L>) -> Self::Future {
        ready(Ok(self.clone()))
    }
}

/// Calls a service that takes axum's body.
#[derive(Clone, Debug)]
pub(crate) struct Adapter<S>(S);

impl<S> Adapter<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self(inner)
    }
}

impl<S> Service<Request<layer::Body<Body>>> for Adapter<S>
where
    S: Service<Request<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<layer::Body<Body>>) -> S::Future {
        self.0.call(request.map(into_axum))
    }
}

/// Converts a body. A body that was passed on is the service's own, and is not boxed again.
fn into_axum<B>(body: layer::Body<B>) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    match body.try_into_inner() {
        Ok(body) => Body::new(body),
        Err(read) => Body::new(read),
    }
}

pin_project! {
    /// Future of [`Idempotency`].
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
    }
}

impl<F, R, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<layer::Body<R>>, E>>,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let response = ready_or_return!(self.project().inner.poll(context));
        Poll::Ready(response.map(|response| response.map(into_axum)))
    }
}

//! Server with a graceful shutdown that drains the engine.

use std::convert::Infallible;
use std::fmt;
use std::future::{Future, IntoFuture};
use std::io;
use std::pin::Pin;
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use axum::serve::{IncomingStream, Listener};
use onceward::engine::Engine;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tower_service::Service;

use crate::IdempotencyLayer;

/// Default time for running requests to end after a shutdown began. See [`Serve::drain_timeout`].
const DRAIN: Duration = Duration::from_secs(30);
/// Time for the store to accept the last writes after that.
const FINAL_FLUSH: Duration = Duration::from_secs(5);

/// Serves `app` as [`axum::serve()`] does, with the layer `once` around it or within it.
///
/// The policies are checked and the store is opened before the first connection is accepted. After
/// the signal of [`with_graceful_shutdown`](Serve::with_graceful_shutdown) no new key is claimed.
/// The future ends once each running request has ended and its response is stored, including those
/// of clients that disconnected.
///
/// ```no_run
/// # async fn run(listener: tokio::net::TcpListener, app: axum::Router, once: onceward_axum::IdempotencyLayer) -> std::io::Result<()> {
/// onceward_axum::serve(listener, app, &once).with_graceful_shutdown(onceward_axum::shutdown_signal()).await
/// # }
/// ```
pub fn serve<L, M, S>(listener: L, app: M, once: &IdempotencyLayer) -> Serve<L, M, S>
where
    L: Listener,
    L::Addr: fmt::Debug,
    M: for<'a> Service<IncomingStream<'a, L>, Error = Infallible, Response = S> + Send + 'static,
    for<'a> <M as Service<IncomingStream<'a, L>>>::Future: Send,
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    Serve { listener, app, once: once.clone(), drain: DRAIN, service: std::marker::PhantomData }
}

/// Server that runs for ever. Created by [`serve`].
#[must_use = "a server does nothing unless it is awaited"]
pub struct Serve<L, M, S> {
    listener: L,
    app: M,
    once: IdempotencyLayer,
    drain: Duration,
    service: std::marker::PhantomData<fn() -> S>,
}

impl<L, M, S> Serve<L, M, S> {
    /// Sets the time for running requests to end after the signal (default: 30 s). Those that still
    /// run then have an unknown outcome.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain = timeout;
        self
    }

    /// Shuts down gracefully once `signal` ends.
    pub fn with_graceful_shutdown<F>(self, signal: F) -> WithGracefulShutdown<L, M, S, F>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        WithGracefulShutdown { serve: self, signal }
    }
}

impl<L, M, S> fmt::Debug for Serve<L, M, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve").field("once", &self.once).field("drain", &self.drain).finish_non_exhaustive()
    }
}

/// Server that shuts down gracefully. Created by [`Serve::with_graceful_shutdown`].
#[must_use = "a server does nothing unless it is awaited"]
pub struct WithGracefulShutdown<L, M, S, F> {
    serve: Serve<L, M, S>,
    signal: F,
}

impl<L, M, S, F> fmt::Debug for WithGracefulShutdown<L, M, S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WithGracefulShutdown").field("serve", &self.serve).finish_non_exhaustive()
    }
}

impl<L, M, S, F> WithGracefulShutdown<L, M, S, F> {
    /// Sets the time for running requests to end after the signal (default: 30 s). Those that still
    /// run then have an unknown outcome.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.serve.drain = timeout;
        self
    }
}

type Served = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

impl<L, M, S> IntoFuture for Serve<L, M, S>
where
    L: Listener,
    L::Addr: fmt::Debug,
    M: for<'a> Service<IncomingStream<'a, L>, Error = Infallible, Response = S> + Send + 'static,
    for<'a> <M as Service<IncomingStream<'a, L>>>::Future: Send,
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Output = io::Result<()>;
    type IntoFuture = Served;

    fn into_future(self) -> Served {
        self.with_graceful_shutdown(std::future::pending()).into_future()
    }
}

impl<L, M, S, F> IntoFuture for WithGracefulShutdown<L, M, S, F>
where
    L: Listener,
    L::Addr: fmt::Debug,
    M: for<'a> Service<IncomingStream<'a, L>, Error = Infallible, Response = S> + Send + 'static,
    for<'a> <M as Service<IncomingStream<'a, L>>>::Future: Send,
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    F: Future<Output = ()> + Send + 'static,
{
    type Output = io::Result<()>;
    type IntoFuture = Served;

    fn into_future(self) -> Served {
        let Self { serve: Serve { listener, app, once, drain, .. }, signal } = self;
        Box::pin(async move {
            once.start().await.map_err(io::Error::other)?;
            let engine = once.engine().clone();
            let (begin, begun) = oneshot::channel();
            let draining = engine.clone();
            let server = axum::serve(listener, app).with_graceful_shutdown(async move {
                signal.await;
                draining.drain();
                // An error only means that the server has failed.
                let _ = begin.send(after(drain));
            });
            let mut server = std::pin::pin!(server.into_future());
            let deadline = tokio::select! {
                biased;
                served = &mut server => return finish(served, &engine, after(drain)).await,
                Ok(deadline) = begun => deadline,
            };
            // A connection that stays open must not keep the process alive.
            let served = timeout_at(deadline, &mut server).await.unwrap_or(Ok(()));
            finish(served, &engine, deadline).await
        })
    }
}

/// Waits for requests that run without a connection, and writes those that do not end in time as
/// unknown.
async fn finish(served: io::Result<()>, engine: &Engine, deadline: Instant) -> io::Result<()> {
    engine.drain();
    tokio::select! {
        biased;
        () = engine.drained() => return served,
        () = sleep_until(deadline) => {}
    }
    tracing::warn!(
        in_flight = engine.in_flight(),
        "requests still run at the end of the shutdown; their keys are unknown"
    );
    engine.abort();
    // A store that does not respond must not keep the process alive: its claims are found lost at
    // the next start.
    drop(timeout(FINAL_FLUSH, engine.drained()).await);
    served
}

fn after(timeout: Duration) -> Instant {
    // A timeout beyond the range of the clock is endless.
    Instant::now().checked_add(timeout).unwrap_or_else(|| Instant::now() + Duration::from_secs(30 * 365 * 24 * 3600))
}

/// Resolves when the process is asked to stop: by SIGTERM or SIGINT (Ctrl-C).
pub async fn shutdown_signal() {
    let interrupt = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut terminate) => drop(terminate.recv().await),
            Err(_) => std::future::pending::<()>().await,
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = interrupt => {}
        () = terminate => {}
    }
}

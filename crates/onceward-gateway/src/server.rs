//! Listeners and their connections: accepted, served, and closed when the process ends.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

/// For a request's head, and for the pause before the next one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long to wait where the machine has no more sockets: an accept that fails at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Upper bounds on the head of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadLimits {
    pub(crate) lines: usize,
    pub(crate) bytes: usize,
}

/// Accepts connections until `stop` says so, and serves each in a task of its own, which holds a clone of `stop` for as
/// long as it lives.
pub(crate) async fn accept<S, F, R>(
    listener: TcpListener,
    connections_max: usize,
    head: HeadLimits,
    mut stop: watch::Receiver<bool>,
    serve: S,
) where
    S: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<R>, Infallible>> + Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let places = Arc::new(Semaphore::new(connections_max));
    loop {
        let accepted = async {
            // Taken before the connection is, so that whoever finds no place waits in the kernel's queue.
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = stopped(&mut stop) => return,
        };
        match accepted {
            Ok((socket, peer)) => {
                let (serve, stop) = (serve.clone(), stop.clone());
                tokio::spawn(async move {
                    connection(socket, peer, head, stop, serve).await;
                    drop(place);
                });
            }
            // The client was gone before it was accepted.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection<S, F, R>(
    socket: TcpStream,
    peer: SocketAddr,
    head: HeadLimits,
    mut stop: watch::Receiver<bool>,
    serve: S,
) where
    S: Fn(Request<Incoming>, SocketAddr) -> F + Send,
    F: Future<Output = Result<Response<R>, Infallible>> + Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    // Without it small answers wait for the client's acknowledgements; where it fails, they do.
    let _ = socket.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(head.lines)
        .max_header_size(head.bytes)
        // A client may close its half after its request, and gets its response.
        .half_close(true)
        .serve_connection(TokioIo::new(socket), service_fn(move |request| serve(request, peer)))
        .with_upgrades();
    let mut connection = pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(error = crate::chain(&error), "a connection broke");
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // Whoever could say it is gone: that is the end too.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// How many connections are taken at once: each may need one to the upstream, and the store's files need their share.
pub(crate) fn connections_max() -> usize {
    const MOST: usize = 8192;
    const KEPT: usize = 200;
    let open_files = std::fs::read_to_string("/proc/self/limits").ok().and_then(|limits| {
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
        line.split_whitespace().next()?.parse::<usize>().ok()
    });
    (open_files.unwrap_or(1024).saturating_sub(KEPT) / 2).clamp(64, MOST)
}

/// Operators are few; a flood there shall not take what clients need.
pub(crate) const ADMIN_CONNECTIONS_MAX: usize = 64;

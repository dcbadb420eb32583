//! Listeners and their connections: accept, serve, and graceful shutdown.

use std::collections::HashMap;
use std::convert::Infallible;
use std::error::Error as StdError;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout};

use crate::client_socket::{ClientSocket, ClientStream, Protocol};
use crate::target::HadFragment;

/// Timeout for a request head, and for the idle time before the next one.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Timeout for a request head on the admin listener, whose requests are small.
pub(crate) const ADMIN_HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed accept when the machine is out of sockets: accept would fail at once and
/// spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Timeout for an evicted connection to flush what it has for its client.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Timeout for the first request of a new connection once the listener closes: the request may be
/// in transit.
const FIRST_REQUEST_AT_STOP: Duration = Duration::from_millis(200);

/// Limits of a listener: the number of connections, and the timeout of a head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) connections_max: usize,
    pub(crate) head_timeout: Duration,
    pub(crate) head: HeadLimits,
}

/// Upper bounds on the head of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadLimits {
    pub(crate) lines: usize,
    pub(crate) bytes: usize,
}

/// Accepts connections until `stop` is set. Serves each in its own task, which holds a clone of
/// `stop` until it ends.
pub(crate) async fn accept<S, F, R>(listener: TcpListener, bounds: Bounds, mut stop: watch::Receiver<bool>, serve: S)
where
    S: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<R>, Infallible>> + Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let places = Places::new(bounds.connections_max);
    let spawn = |socket: TcpStream, peer, place: Place, stop: watch::Receiver<bool>| {
        let serve = serve.clone();
        tokio::spawn(async move { connection(socket, peer, bounds, place, stop, serve).await });
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stop) => break,
        };
        match accepted {
            Ok((socket, peer)) => {
                // Further connections wait in the kernel's queue, behind this one.
                let place = tokio::select! {
                    place = places.take() => place,
                    () = stopped(&mut stop) => break,
                };
                spawn(socket, peer, place, stop.clone());
            }
            // The client disconnected before it was accepted.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Closing the listener would reset the connections that the kernel has accepted for it.
    while let Ok(Ok((socket, peer))) = timeout(Duration::ZERO, listener.accept()).await {
        match places.try_take() {
            Some(place) => spawn(socket, peer, place, stop.clone()),
            None => break,
        }
    }
}

/// Connections of a listener, up to its limit.
struct Places {
    free: Arc<Semaphore>,
    taken: Mutex<HashMap<usize, Arc<Seat>>>,
    next: AtomicUsize,
}

/// State of one connection.
#[derive(Debug)]
struct Seat {
    /// No request was received yet.
    is_new: AtomicBool,
    /// Requests whose response was not handed over completely.
    running: AtomicUsize,
    idle_since: Mutex<Instant>,
    is_leaving: AtomicBool,
    leave: Notify,
}

/// Permit of a connection, released when dropped.
struct Place {
    places: Arc<Places>,
    number: usize,
    seat: Arc<Seat>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken.lock().remove(&self.number);
    }
}

impl Places {
    fn new(connections_max: usize) -> Arc<Self> {
        Arc::new(Self {
            free: Arc::new(Semaphore::new(connections_max)),
            taken: Mutex::default(),
            next: AtomicUsize::new(0),
        })
    }

    fn try_take(self: &Arc<Self>) -> Option<Place> {
        let permit = Arc::clone(&self.free).try_acquire_owned().ok()?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let seat = Arc::new(Seat {
            is_new: AtomicBool::new(true),
            running: AtomicUsize::new(0),
            idle_since: Mutex::new(Instant::now()),
            is_leaving: AtomicBool::new(false),
            leave: Notify::new(),
        });
        self.taken.lock().insert(number, Arc::clone(&seat));
        Some(Place { places: Arc::clone(self), number, seat, _permit: permit })
    }

    /// Acquires a permit. If none is free, evicts the connection that has been idle for longest.
    async fn take(self: &Arc<Self>) -> Place {
        loop {
            if let Some(place) = self.try_take() {
                return place;
            }
            self.evict_idle();
            // A connection that is busy now may be idle later.
            let freed = timeout(ACCEPT_PAUSE, Arc::clone(&self.free).acquire_owned()).await;
            drop(freed);
        }
    }

    fn evict_idle(&self) {
        let taken = self.taken.lock();
        let idle = taken
            .values()
            .filter(|seat| seat.running.load(Ordering::Acquire) == 0 && !seat.is_leaving.load(Ordering::Acquire));
        if let Some(seat) = idle.min_by_key(|seat| *seat.idle_since.lock()) {
            seat.is_leaving.store(true, Ordering::Release);
            seat.leave.notify_one();
        }
    }
}

/// Counts a request as running until dropped.
struct Running(Arc<Seat>);

impl Running {
    fn begin(seat: &Arc<Seat>) -> Self {
        seat.is_new.store(false, Ordering::Release);
        seat.running.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(seat))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.idle_since.lock() = Instant::now();
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}

pin_project! {
    /// Response body whose request counts as running until it is dropped.
    struct Guarded<R> {
        #[pin]
        body: R,
        _running: Running,
    }
}

impl<R: Body> Body for Guarded<R> {
    type Data = R::Data;
    type Error = R::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

async fn connection<S, F, R>(
    tcp: TcpStream,
    peer: SocketAddr,
    bounds: Bounds,
    place: Place,
    mut stop: watch::Receiver<bool>,
    serve: S,
) where
    S: Fn(Request<Incoming>, SocketAddr) -> F + Send,
    F: Future<Output = Result<Response<R>, Infallible>> + Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    // Without it, small responses wait for the client's acknowledgements. A failure only costs that
    // delay.
    let _ = tcp.set_nodelay(true);
    let socket = ClientSocket::new(tcp);
    let seat = &place.seat;
    let result = {
        let (socket_of_requests, seat_of_requests) = (Arc::clone(&socket), Arc::clone(seat));
        let service = service_fn(move |mut request| {
            if socket_of_requests.had_fragment(&request) {
                request.extensions_mut().insert(HadFragment);
            }
            let running = Running::begin(&seat_of_requests);
            let response = serve(request, peer);
            async move { response.await.map(|response| response.map(|body| Guarded { body, _running: running })) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(bounds.head_timeout)
            // Twice the limit, so that a request slightly over it gets a problem instead of hyper's
            // empty 431.
            .max_headers(bounds.head.lines * 2)
            .max_header_size(bounds.head.bytes * 2)
            // A client may close its sending side after its request, and still gets its response.
            .half_close(true)
            .serve_connection(TokioIo::new(ClientStream::new(&socket)), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        tokio::select! {
            result = connection.as_mut() => result,
            () = stopped(&mut stop) => {
                // Requests sent before the client could know of the shutdown are served. A
                // connection that has sent nothing is closed after a short wait.
                let first = match socket.is_untouched() {
                    true => timeout(FIRST_REQUEST_AT_STOP, connection.as_mut()).await.ok(),
                    false => None,
                };
                match first {
                    Some(result) => result,
                    None => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                }
            }
            () = seat.leave.notified() => {
                connection.as_mut().graceful_shutdown();
                // A partial head is not waited for. A response in transit to the client is, for a
                // while.
                let patience = if seat.is_new.load(Ordering::Acquire) { Duration::ZERO } else { LEAVE_TIMEOUT };
                match timeout(patience, connection.as_mut()).await {
                    Ok(result) => result,
                    Err(_) if seat.running.load(Ordering::Acquire) > 0 => connection.await,
                    Err(_) => Ok(()),
                }
            }
        }
    };
    let protocol = match &result {
        Err(error) if error.is_parse_version_h2() => Some(Protocol::Http2),
        _ => socket.protocol(),
    };
    if let Some(protocol) = protocol {
        tracing::warn!(%peer, "{}", protocol.sentence());
        socket.say(protocol.refusal());
    } else if let Err(error) = result {
        tracing::debug!(error = crate::chain(&error), "a connection broke");
    }
    if !seat.is_leaving.load(Ordering::Acquire) {
        tokio::select! {
            () = socket.linger(&mut stop) => {}
            () = seat.leave.notified() => {}
        }
    }
}

/// Returns when the process is to shut down.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // A dropped sender also means shutdown.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Upper bound on admin connections. Operators are few, and a flood there must not take descriptors
/// that clients need.
pub(crate) const ADMIN_CONNECTIONS_MAX: usize = 64;

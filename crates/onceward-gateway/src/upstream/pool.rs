//! Connection pool: a bounded number of connections, each idle for a short time.

use std::collections::VecDeque;
use std::fmt;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body::Body;
use hyper::client::conn::http1::SendRequest;
use onceward::wire;
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::BoxError;
use super::body::{Back, Sent};
use super::exchange::Exchange;

/// Connection to the upstream that is idle or carries one request.
pub(crate) struct Connection<B> {
    pub(crate) sender: SendRequest<Sent<B>>,
    pub(crate) exchange: Arc<Exchange>,
    pub(crate) socket: Arc<TcpStream>,
    /// Time at which the connection was opened.
    pub(crate) opened: Instant,
    /// Idle timeout that the upstream announced, halved.
    pub(crate) announced: Option<Duration>,
}

impl<B> Connection<B> {
    /// Applies `Keep-Alive: timeout=`. Uses half of it, because the upstream measures from when its
    /// response was sent, and a request takes time to arrive.
    pub(crate) fn heed(&mut self, headers: &HeaderMap) {
        const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
        let seconds = wire::names_in(headers, &KEEP_ALIVE)
            .filter_map(|parameter| parameter.split_once('='))
            .filter(|(name, _)| name.trim().eq_ignore_ascii_case("timeout"))
            .filter_map(|(_, seconds)| seconds.trim().trim_matches('"').parse::<u32>().ok())
            .min();
        if let Some(seconds) = seconds {
            self.announced = Some(Duration::from_secs(seconds.into()) / 2);
        }
    }

    /// Returns `true` if the upstream has neither closed the connection nor sent unsolicited bytes.
    /// Asks the kernel, because the task that reads may not have seen the event yet.
    pub(crate) fn is_quiet(&self) -> bool {
        let peeked = SockRef::from(&*self.socket).peek(&mut [MaybeUninit::uninit()]);
        !self.sender.is_closed() && peeked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }
}

/// Pool of idle connections.
pub(crate) struct Pool<B> {
    idle: Mutex<VecDeque<(Instant, Connection<B>)>>,
    idle_max: Duration,
    age_max: Duration,
    /// Upper bound on idle connections; further ones are closed.
    count_max: usize,
}

impl<B> fmt::Debug for Pool<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("idle", &self.idle.lock().len()).finish_non_exhaustive()
    }
}

impl<B> Pool<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    /// Creates a pool of up to `count_max` idle connections. They idle for at most `idle_max`, and
    /// are reused until they are `age_max` old.
    pub(crate) fn new(idle_max: Duration, age_max: Duration, count_max: usize) -> Arc<Self> {
        Arc::new(Self { idle: Mutex::default(), idle_max, age_max, count_max })
    }

    /// Takes the connection with the shortest idle time, if it has not timed out and is reusable.
    pub(crate) fn take(&self) -> Option<Connection<B>> {
        loop {
            let (since, connection) = self.idle.lock().pop_back()?;
            if since.elapsed() >= self.idle_max {
                // All other connections have been idle longer.
                self.idle.lock().clear();
                return None;
            }
            let is_young = connection.opened.elapsed() < self.age_max
                && connection.announced.is_none_or(|announced| since.elapsed() < announced);
            if is_young && connection.sender.is_ready() && connection.is_quiet() {
                return Some(connection);
            }
        }
    }

    /// Returns a callback, to be called at the end of a response, that returns the connection to
    /// the pool.
    pub(crate) fn back(self: Arc<Self>, mut connection: Connection<B>) -> Back {
        Box::new(move || {
            let is_old = connection.opened.elapsed() >= self.age_max;
            if self.idle_max.is_zero() || self.count_max == 0 || is_old || !connection.exchange.rest() {
                return;
            }
            if connection.sender.is_ready() {
                return self.put(connection);
            }
            tokio::spawn(async move {
                if connection.sender.ready().await.is_ok() {
                    self.put(connection);
                }
            });
        })
    }

    fn put(self: Arc<Self>, connection: Connection<B>) {
        let now = Instant::now();
        let mut idle = self.idle.lock();
        while idle.front().is_some_and(|(since, _)| now - *since >= self.idle_max) || idle.len() >= self.count_max {
            idle.pop_front();
        }
        // One sweep task runs while there are idle connections.
        let is_first = idle.is_empty();
        idle.push_back((now, connection));
        drop(idle);
        if is_first {
            tokio::spawn(self.sweep());
        }
    }

    /// Closes connections past their idle timeout, until the pool is empty.
    async fn sweep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.idle_max).await;
            let mut idle = self.idle.lock();
            while idle.front().is_some_and(|(since, _)| since.elapsed() >= self.idle_max) {
                idle.pop_front();
            }
            if idle.is_empty() {
                return;
            }
        }
    }
}

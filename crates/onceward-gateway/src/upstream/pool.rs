//! A few connections that idle for a short time.

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

/// A connection to the upstream that carries no request, or one.
pub(crate) struct Connection<B> {
    pub(crate) sender: SendRequest<Sent<B>>,
    pub(crate) exchange: Arc<Exchange>,
    pub(crate) socket: Arc<TcpStream>,
    /// When it was made.
    pub(crate) opened: Instant,
    /// How long it may idle by what the upstream announced.
    pub(crate) announced: Option<Duration>,
}

impl<B> Connection<B> {
    /// Heeds `Keep-Alive: timeout=`. Half of it, for the upstream counts from when its response left, and a request takes a
    /// while to arrive.
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

    /// Whether the upstream neither closed it nor said something: asked of the kernel, for the news may not yet have
    /// reached the task that reads.
    pub(crate) fn is_quiet(&self) -> bool {
        let peeked = SockRef::from(&*self.socket).peek(&mut [MaybeUninit::uninit()]);
        !self.sender.is_closed() && peeked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }
}

/// Connections that idle.
pub(crate) struct Pool<B> {
    idle: Mutex<VecDeque<(Instant, Connection<B>)>>,
    idle_max: Duration,
    age_max: Duration,
    /// More idle connections than this are closed instead of kept.
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
    /// A pool of up to `count_max` idle connections. They idle at most for `idle_max`, and are used until they are `age_max` old.
    pub(crate) fn new(idle_max: Duration, age_max: Duration, count_max: usize) -> Arc<Self> {
        Arc::new(Self { idle: Mutex::default(), idle_max, age_max, count_max })
    }

    /// The connection that idled least, if it idled short enough and is quiet.
    pub(crate) fn take(&self) -> Option<Connection<B>> {
        loop {
            let (since, connection) = self.idle.lock().pop_back()?;
            if since.elapsed() >= self.idle_max {
                // All others idled longer.
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

    /// What an answer calls at its end.
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
        // One sweep waits for as long as there is something to sweep.
        let is_first = idle.is_empty();
        idle.push_back((now, connection));
        drop(idle);
        if is_first {
            tokio::spawn(self.sweep());
        }
    }

    /// Closes what idled too long, until nothing idles.
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

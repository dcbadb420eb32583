//! Opens new connections: name lookup, TCP and TLS, under one timeout.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::BoxError;
use super::exchange::{Exchange, Watched};
use super::pool::Connection;
use crate::config::Upstream;

/// Timeout of name lookup, TCP and TLS together. A service that takes longer counts as unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Delay before the next address is tried concurrently (RFC 8305, 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Duration for which an address that failed or was slow is tried after all others.
const FAILED_FOR: Duration = Duration::from_secs(60);

/// Upper bound on the bytes of a response head, unless the bound for requests is larger.
const HEAD_BYTES_MAX: usize = 256 << 10;
/// Upper bound on the header lines of a response, unless a setting overrides it.
const HEADER_LINES_MAX: usize = 1000;

/// Connects to the upstream.
pub(crate) struct Connector {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    header_lines: usize,
    head_bytes: usize,
    failed: FailedAddresses,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

impl Connector {
    pub(crate) fn new(upstream: &Upstream) -> Result<Self, String> {
        let tls = match upstream.tls {
            true => Some((tls()?, server_name(&upstream.host)?)),
            false => None,
        };
        let (header_lines, head_bytes) = (HEADER_LINES_MAX, HEAD_BYTES_MAX);
        let failed = FailedAddresses::default();
        Ok(Self { host: upstream.host.clone(), port: upstream.port, tls, header_lines, head_bytes, failed })
    }

    /// Accepts responses with up to `lines` header lines, and heads of up to `bytes` if that
    /// exceeds the default.
    pub(crate) fn with_head_limits(self, lines: usize, bytes: usize) -> Self {
        Self { header_lines: lines, head_bytes: bytes.max(HEAD_BYTES_MAX), ..self }
    }

    pub(crate) async fn connect<B>(&self) -> io::Result<Connection<B>>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (stream, socket) = timeout(CONNECT_TIMEOUT, self.stream())
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no connection in time"))??;
        let exchange = Arc::<Exchange>::default();
        let watched = TokioIo::new(Watched::new(stream, Arc::clone(&exchange)));
        let (sender, connection) = http1::Builder::new()
            .max_headers(self.header_lines)
            .max_header_size(self.head_bytes)
            // Other proxies do the same: invalid header lines are dropped, and the rest of the
            // response is valid.
            .ignore_invalid_headers_in_responses(true)
            .allow_spaces_after_header_name_in_responses(true)
            .allow_obsolete_multiline_headers_in_responses(true)
            .handshake(watched)
            .await
            .map_err(io::Error::other)?;
        // Its errors are also returned to the sender of the request.
        tokio::spawn(connection.with_upgrades());
        Ok(Connection { sender, exchange, socket, opened: Instant::now(), announced: None })
    }

    async fn stream(&self) -> io::Result<(Stream, Arc<TcpStream>)> {
        let socket = Arc::new(self.tcp().await?);
        socket.set_nodelay(true)?;
        let tcp = Tcp(Arc::clone(&socket));
        let stream = match &self.tls {
            Some((tls, name)) => Stream::Tls { tls: Box::new(tls.connect(name.clone(), tcp).await?) },
            None => Stream::Plain { tcp },
        };
        Ok((stream, socket))
    }

    /// Connects to the first address that accepts a connection. The name is resolved each time,
    /// because its addresses may have changed.
    async fn tcp(&self) -> io::Result<TcpStream> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await?;
        let addresses = self.failed.last(interleaved(found.collect()));
        let mut rest = addresses.into_iter();
        let mut attempts = JoinSet::new();
        let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        loop {
            let newest = rest.next();
            if let Some(address) = newest {
                attempts.spawn(async move { (address, TcpStream::connect(address).await) });
            }
            let ended = match (rest.len(), newest) {
                // The next attempt starts as soon as one ends.
                (1.., Some(newest)) => match timeout(ATTEMPT_DELAY, attempts.join_next()).await {
                    Ok(ended) => ended,
                    Err(_) => {
                        self.failed.note(newest);
                        continue;
                    }
                },
                _ => attempts.join_next().await,
            };
            match ended {
                Some(Ok((address, Ok(tcp)))) => {
                    self.failed.forget(address);
                    return Ok(tcp);
                }
                Some(Ok((address, Err(error)))) => {
                    self.failed.note(address);
                    failed = error;
                }
                Some(Err(error)) => failed = io::Error::other(error),
                None => return Err(failed),
            }
        }
    }
}

/// Orders addresses so that the two families alternate, beginning with the family of the first one
/// (RFC 8305, 4).
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let is_first_family =
        |address: &SocketAddr| addresses.first().is_some_and(|first| first.is_ipv6() == address.is_ipv6());
    let (first, second): (Vec<SocketAddr>, Vec<SocketAddr>) =
        addresses.iter().partition(|address| is_first_family(address));
    let mut second = second.into_iter();
    let mut ordered = Vec::with_capacity(addresses.len());
    for address in first {
        ordered.push(address);
        ordered.extend(second.next());
    }
    ordered.extend(second);
    ordered
}

/// Addresses that recently failed to connect.
#[derive(Debug, Default)]
struct FailedAddresses(Mutex<HashMap<SocketAddr, Instant>>);

impl FailedAddresses {
    fn note(&self, address: SocketAddr) {
        let mut failed = self.0.lock();
        // Expired entries are removed, so that a name whose addresses change often does not leak
        // memory.
        failed.retain(|_, since| since.elapsed() < FAILED_FOR);
        failed.insert(address, Instant::now());
    }

    fn forget(&self, address: SocketAddr) {
        self.0.lock().remove(&address);
    }

    /// Moves failed addresses behind all others. They are not removed: they may be the only ones.
    fn last(&self, mut addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
        let failed = self.0.lock();
        if !failed.is_empty() {
            addresses.sort_by_key(|address| failed.get(address).is_some_and(|since| since.elapsed() < FAILED_FOR));
        }
        addresses
    }
}

fn server_name(host: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(host.to_owned())
        .map_err(|_| format!("upstream: {host:?} is no name that a certificate could have"))
}

/// Builds a TLS connector that trusts the roots of the machine; `SSL_CERT_FILE` names other roots.
fn tls() -> Result<TlsConnector, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = rustls::RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(format!(
            "upstream: no certificate authorities were found to trust{why}; install ca-certificates, or name a file in SSL_CERT_FILE"
        ));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("upstream: TLS cannot be set up: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Byte stream to and from the upstream.
#[derive(Debug)]
pub(crate) enum Stream {
    Plain { tcp: Tcp },
    Tls { tls: Box<TlsStream<Tcp>> },
}

impl Stream {
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls { .. })
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain { tcp } => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls { tls } => Pin::new(tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain { tcp } => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls { tls } => Pin::new(tls).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain { tcp } => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Tls { tls } => Pin::new(tls).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain { tcp } => tcp.is_write_vectored(),
            Self::Tls { tls } => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain { tcp } => Pin::new(tcp).poll_flush(cx),
            Self::Tls { tls } => Pin::new(tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain { tcp } => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls { tls } => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

/// Socket that is shared with the pool, which polls the kernel for its state.
#[derive(Debug)]
pub(crate) struct Tcp(Arc<TcpStream>);

impl AsyncRead for Tcp {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read_buf(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result.map(drop)),
            }
        }
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.when_writable(cx, |socket| socket.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.when_writable(cx, |socket| socket.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.0).shutdown(Shutdown::Write))
    }
}

impl Tcp {
    pub(crate) fn new(socket: Arc<TcpStream>) -> Self {
        Self(socket)
    }

    fn when_writable(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match write(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::{FailedAddresses, interleaved};

    fn addresses(all: &[&str]) -> Vec<SocketAddr> {
        all.iter().map(|address| format!("{address}:80").parse().unwrap()).collect()
    }

    #[test]
    fn address_families_take_turns() {
        for (found, ordered) in [
            (&["[::1]", "[::2]", "[::3]", "1.1.1.1"][..], &["[::1]", "1.1.1.1", "[::2]", "[::3]"][..]),
            (&["1.1.1.1", "2.2.2.2", "[::1]"], &["1.1.1.1", "[::1]", "2.2.2.2"]),
            (&["1.1.1.1", "2.2.2.2"], &["1.1.1.1", "2.2.2.2"]),
            (&[], &[]),
        ] {
            assert_eq!(interleaved(addresses(found)), addresses(ordered));
        }
    }

    #[test]
    fn failed_addresses_come_last_until_they_take_a_connection() {
        let failed = FailedAddresses::default();
        let found = addresses(&["[::1]", "1.1.1.1", "[::2]"]);
        failed.note(found[0]);
        assert_eq!(failed.last(found.clone()), addresses(&["1.1.1.1", "[::2]", "[::1]"]));
        failed.forget(found[0]);
        assert_eq!(failed.last(found.clone()), found);
    }
}

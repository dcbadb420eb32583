//! Byte stream of a client connection. Detects input that HTTP/1.1 cannot express, and closes the
//! connection without a reset.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Uri};
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::server::stopped;
use crate::upstream::Tcp;

/// Upper bound on the bytes read after the last response, so that a client that is still sending
/// can read it. Closing a socket with unread bytes resets the connection, and the client loses the
/// response.
const LINGER_BYTES_MAX: usize = 256 << 20;
/// Upper bound on the total time of that read.
const LINGER_MAX: Duration = Duration::from_secs(30);
/// Idle timeout of the client during that read.
const LINGER_IDLE: Duration = Duration::from_secs(5);
/// Upper bound on the total time when the process shuts down.
const LINGER_AT_STOP: Duration = Duration::from_millis(500);
const LINGER_IDLE_AT_STOP: Duration = Duration::from_millis(100);

/// Upper bound on the bytes inspected of a request line. Larger than the limit of a head.
const LINE_BYTES_MAX: usize = 64 << 10;
/// Upper bound on targets with a fragment whose requests are not parsed yet.
const FRAGMENTS_MAX: usize = 16;

/// Protocol that this listener does not support.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tls,
    /// HTTP/2 with prior knowledge, as gRPC clients begin.
    Http2,
    /// HAProxy's PROXY protocol, before the first request.
    Proxy,
}

impl Protocol {
    /// Detects a protocol by its first bytes.
    fn of(first: &[u8]) -> Option<Self> {
        match first {
            [0x16, 0x03, ..] => Some(Self::Tls),
            _ if first.starts_with(b"PRI * HTTP/2.0") => Some(Self::Http2),
            _ if first.starts_with(b"PROXY ") || first.starts_with(b"\r\n\r\n\0\r\nQUIT\n") => Some(Self::Proxy),
            _ => None,
        }
    }

    /// Returns the log message, with the fix.
    pub(crate) const fn sentence(self) -> &'static str {
        match self {
            Self::Tls => {
                "a client speaks TLS to the plain listener: terminate TLS in a proxy in front, or use http:// in the client"
            }
            Self::Http2 => {
                "a client speaks HTTP/2 (h2c by prior knowledge, as gRPC does) to the listener, which serves HTTP/1.1: set the client or the proxy to HTTP/1.1, or lead gRPC past the gateway"
            }
            Self::Proxy => {
                "a proxy speaks the PROXY protocol to the listener, which does not read it: take send-proxy or proxy_protocol off, and use X-Forwarded-For with trusted_proxies"
            }
        }
    }

    /// Returns the rejection in the client's own protocol.
    pub(crate) const fn refusal(self) -> &'static [u8] {
        match self {
            // A fatal alert, handshake_failure.
            Self::Tls => &[0x15, 0x03, 0x01, 0x00, 0x02, 0x02, 0x28],
            // SETTINGS, then GOAWAY with HTTP_1_1_REQUIRED and debug data for the client's log.
            Self::Http2 => {
                b"\0\0\0\x04\0\0\0\0\0\0\0\x1f\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0donly HTTP/1.1 is served"
            }
            Self::Proxy => {
                b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 40\r\nConnection: close\r\n\r\nthe PROXY protocol is not spoken here.\r\n"
            }
        }
    }
}

/// Client socket, shared by the stream that hyper owns and the code that closes it.
#[derive(Debug)]
pub(crate) struct ClientSocket {
    tcp: Arc<TcpStream>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    protocol: Option<Protocol>,
    /// At least one byte was received.
    has_begun: bool,
    /// The client has closed its sending side.
    has_ended: bool,
    /// The stream was dropped, and is not used by a tunnel.
    is_free: bool,
    /// Method and target without its fragment, of requests whose target had one.
    fragments: Vec<(String, String)>,
}

impl ClientSocket {
    pub(crate) fn new(tcp: TcpStream) -> Arc<Self> {
        Arc::new(Self { tcp: Arc::new(tcp), state: Mutex::default() })
    }

    pub(crate) fn protocol(&self) -> Option<Protocol> {
        self.state.lock().protocol
    }

    /// Returns `true` if the client has sent nothing yet.
    pub(crate) fn is_untouched(&self) -> bool {
        !self.state.lock().has_begun
    }

    /// Returns `true` if the target of a request had a fragment, which the parser drops.
    pub(crate) fn had_fragment<B>(&self, request: &Request<B>) -> bool {
        let mut state = self.state.lock();
        if state.fragments.is_empty() {
            return false;
        }
        let is_it = |(method, target): &(String, String)| {
            method == request.method().as_str() && target.parse::<Uri>().is_ok_and(|target| target == *request.uri())
        };
        let before = state.fragments.len();
        state.fragments.retain(|fragment| !is_it(fragment));
        state.fragments.len() < before
    }

    /// Writes final bytes. If they do not fit into the socket's buffer, they are dropped.
    pub(crate) fn say(&self, bytes: &[u8]) {
        let _ = self.tcp.try_write(bytes);
    }

    /// Closes the sending side, and reads for a while what the client still sends.
    pub(crate) async fn linger(&self, stop: &mut watch::Receiver<bool>) {
        {
            let state = self.state.lock();
            if !state.is_free {
                return;
            }
            let _ = SockRef::from(&*self.tcp).shutdown(Shutdown::Write);
            if state.has_ended {
                return;
            }
        }
        let mut is_stopping = *stop.borrow();
        let mut until = Instant::now() + if is_stopping { LINGER_AT_STOP } else { LINGER_MAX };
        let mut left = LINGER_BYTES_MAX;
        let mut buffer = vec![0; 16 << 10];
        while left > 0 && Instant::now() < until {
            let idle = if is_stopping { LINGER_IDLE_AT_STOP } else { LINGER_IDLE };
            tokio::select! {
                ready = timeout(idle, self.tcp.readable()) => match ready {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) | Err(_) => return,
                },
                () = stopped(stop), if !is_stopping => {
                    is_stopping = true;
                    until = until.min(Instant::now() + LINGER_AT_STOP);
                    continue;
                }
            }
            match self.tcp.try_read(&mut buffer) {
                Ok(0) => return,
                Ok(bytes) => left = left.saturating_sub(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }
}

/// Stream that hyper reads and writes.
#[derive(Debug)]
pub(crate) struct ClientStream {
    tcp: Tcp,
    socket: Arc<ClientSocket>,
    /// Received part of a request line, if one is expected.
    line: Option<Vec<u8>>,
}

impl ClientStream {
    pub(crate) fn new(socket: &Arc<ClientSocket>) -> Self {
        Self { tcp: Tcp::new(Arc::clone(&socket.tcp)), socket: Arc::clone(socket), line: Some(Vec::new()) }
    }

    /// Inspects bytes at a position where a request line may begin: at the start, and after each
    /// response. Pipelined request lines are inspected together.
    fn look(&mut self, bytes: &[u8]) {
        let Some(mut line) = self.line.take() else { return };
        let mut rest = bytes;
        let mut is_first = true;
        loop {
            let Some(at) = rest.iter().position(|byte| *byte == b'\n') else {
                if is_first && line.len() + rest.len() <= LINE_BYTES_MAX {
                    line.extend_from_slice(rest);
                    self.line = Some(line);
                }
                return;
            };
            let end = &rest[..at];
            let whole = if line.is_empty() { end } else { &[&line, end].concat() };
            is_first &= whole.trim_ascii().is_empty();
            if whole.contains(&b'#')
                && let Some(fragment) = fragment(whole)
            {
                let mut state = self.socket.state.lock();
                if state.fragments.len() < FRAGMENTS_MAX {
                    state.fragments.push(fragment);
                }
            }
            line.clear();
            rest = &rest[at + 1..];
            // Fast path: most input has no further request line with a fragment.
            if !is_first && !rest.contains(&b'#') {
                return;
            }
        }
    }
}

/// Returns the method and the target without its fragment, if the line is a request line with a
/// fragment.
fn fragment(line: &[u8]) -> Option<(String, String)> {
    let line = std::str::from_utf8(line).ok()?.trim_end();
    let mut words = line.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let (target, _) = target.split_once('#')?;
    let is_request = words.next().is_none() && version.starts_with("HTTP/1.");
    is_request.then(|| (method.to_owned(), target.to_owned()))
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        self.socket.state.lock().is_free = true;
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.tcp).poll_read(cx, buf))?;
        let came = &buf.filled()[before..];
        {
            let mut state = this.socket.state.lock();
            if came.is_empty() {
                state.has_ended = true;
            } else if !state.has_begun {
                state.has_begun = true;
                state.protocol = Protocol::of(came);
            }
            if state.protocol.is_some() {
                // hyper sees no input from the client.
                drop(state);
                buf.set_filled(before);
                return Poll::Ready(Ok(()));
            }
        }
        this.look(came);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.line.get_or_insert_default();
        Pin::new(&mut this.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.line.get_or_insert_default();
        Pin::new(&mut this.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // A rejection is still to be written.
        if this.socket.protocol().is_some() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::{Protocol, fragment};

    #[test]
    fn protocols_are_recognised_by_their_first_bytes() {
        for (first, protocol) in [
            (&b"\x16\x03\x01\x02\0\x01"[..], Some(Protocol::Tls)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Protocol::Http2)),
            (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nGET / HTTP/1.1\r\n", Some(Protocol::Proxy)),
            (b"\r\n\r\n\0\r\nQUIT\n\x21", Some(Protocol::Proxy)),
            (b"GET / HTTP/1.1\r\n", None),
            (b"\r\n\r\nGET / HTTP/1.1\r\n", None),
            (b"PROPFIND / HTTP/1.1\r\n", None),
            (b"P", None),
        ] {
            assert_eq!(Protocol::of(first), protocol, "{first:?}");
        }
    }

    #[test]
    fn refusals_say_their_own_length() {
        let goaway = &Protocol::Http2.refusal()[9..];
        assert_eq!(usize::from(goaway[2]), goaway.len() - 9);
        let response = std::str::from_utf8(Protocol::Proxy.refusal()).unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
    }

    #[test]
    fn fragment_of_a_request_line_is_found() {
        let found = |line: &str| fragment(line.as_bytes());
        assert_eq!(found("POST /p?q#x HTTP/1.1\r"), Some(("POST".into(), "/p?q".into())));
        for line in ["POST /p HTTP/1.1", "{\"a\": \"# b\"}", "X: a#b", "GET /a b#c HTTP/1.1"] {
            assert_eq!(found(line), None, "{line}");
        }
    }
}

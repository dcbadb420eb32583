//! Tracks one request and its response on one connection: what was written, what was read, and in
//! which order.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::connect::Stream;

/// Progress of a connection with its current request. Shared by the wrapper around the byte stream
/// and the sender of the request.
#[derive(Debug, Default)]
pub(crate) struct Exchange(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    stage: Stage,
    /// The whole request was handed over.
    is_given: bool,
    /// Every byte of it was written to the connection.
    is_sent: bool,
    /// The response began before that. The rest of the request may still be unread there, and would
    /// be parsed as the next request.
    is_early: bool,
    /// More bytes than the response may follow on the connection, or the request body may be unread
    /// there.
    is_spoilt: bool,
    last_write: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// No request. A byte that is received now is unsolicited.
    #[default]
    Idle,
    /// A request was handed over, and no byte of it was written.
    Armed,
    /// At least one byte was written.
    Sending,
    /// At least one byte of the response was received.
    Answering,
    /// The request was declared unsent, so no byte may be written any more.
    Sealed,
}

impl Exchange {
    /// Begins to track a request that is about to be handed over.
    pub(crate) fn arm(&self) {
        let mut state = self.0.lock();
        let is_given = state.is_given;
        *state = State { stage: Stage::Armed, is_given, ..State::default() };
    }

    /// Records whether all of the request was handed over.
    pub(crate) fn set_given(&self, is_given: bool) {
        self.0.lock().is_given = is_given;
    }

    /// Forbids the first byte. Returns `false` if it was already written.
    pub(crate) fn seal(&self) -> bool {
        let mut state = self.0.lock();
        match state.stage {
            Stage::Sending | Stage::Answering => false,
            Stage::Idle | Stage::Armed | Stage::Sealed => {
                state.stage = Stage::Sealed;
                true
            }
        }
    }

    /// Marks the connection as not reusable for another request.
    pub(crate) fn spoil(&self) {
        self.0.lock().is_spoilt = true;
    }

    /// Ends the exchange after the response was read to its end. Returns `true` if the connection
    /// may carry another request.
    pub(crate) fn rest(&self) -> bool {
        let mut state = self.0.lock();
        let may = state.stage == Stage::Answering && state.is_sent && !state.is_early && !state.is_spoilt;
        state.stage = if may { Stage::Idle } else { Stage::Sealed };
        may
    }

    /// Returns the time of the last successful write.
    pub(crate) fn last_write(&self) -> Option<Instant> {
        self.0.lock().last_write
    }
}

/// Byte stream of a connection that records its writes and reads in the [`Exchange`].
#[derive(Debug)]
pub(crate) struct Watched {
    stream: Stream,
    exchange: Arc<Exchange>,
}

impl Watched {
    pub(crate) fn new(stream: Stream, exchange: Arc<Exchange>) -> Self {
        Self { stream, exchange }
    }

    /// Writes under the lock, so that a request is either sent or unsent, never both.
    fn write(&mut self, write: impl FnOnce(Pin<&mut Stream>) -> Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let mut state = self.exchange.0.lock();
        if matches!(state.stage, Stage::Idle | Stage::Sealed) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "nothing may be sent here any more")));
        }
        let result = write(Pin::new(&mut self.stream));
        let was_written = match &result {
            Poll::Ready(Ok(bytes)) => *bytes > 0,
            // TLS may have sent a part before it failed.
            Poll::Ready(Err(_)) => self.stream.is_tls(),
            Poll::Pending => false,
        };
        if was_written {
            state.last_write = Some(Instant::now());
            if state.stage == Stage::Armed {
                state.stage = Stage::Sending;
            }
        }
        result
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            let mut state = this.exchange.0.lock();
            match state.stage {
                Stage::Sending => {
                    state.stage = Stage::Answering;
                    state.is_early = !state.is_sent;
                }
                Stage::Answering => {}
                // An unsolicited response, such as a 408 before the upstream closes, must not be
                // taken for the response to the next request.
                Stage::Idle | Stage::Armed | Stage::Sealed => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "it spoke without being asked",
                    )));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().write(|stream| stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().write(|stream| stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.stream).poll_flush(cx))?;
        // hyper flushes once its own buffer is empty, so all that was handed over by now was
        // written.
        let mut state = this.exchange.0.lock();
        if state.is_given && matches!(state.stage, Stage::Sending | Stage::Answering) {
            state.is_sent = true;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

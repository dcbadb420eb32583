//! Body that the layer passes on: untouched, buffered, or streaming.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::ops::DerefMut;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::sync::mpsc;

use crate::clock::Clock;

pin_project! {
    /// Body of a request to the inner service, or of a response to the client.
    pub struct Body<B: http_body::Body> {
        #[pin]
        kind: Inner<B>,
    }
}

pin_project! {
    #[project = InnerProjection]
    enum Inner<B: http_body::Body> {
        /// Passed on as it arrives.
        Passed { #[pin] body: B },
        /// Boxed, so that a body that is passed on is not enlarged by the fields for keyed
        /// requests.
        Taken { taken: Box<BodySource> },
    }
}

/// Error of a body, of any type.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Error of a response whose rest is not read any longer, because the process is about to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbandonedError;

impl fmt::Display for AbandonedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the rest of the response was abandoned: the process is about to stop")
    }
}

impl Error for AbandonedError {}

/// Source of a body that the layer has read from.
enum BodySource {
    /// The whole body.
    Buffered { data: Option<Bytes>, trailers: Option<Box<HeaderMap>> },
    /// Too large or endless: the bytes that were read, then the chunks that a task still reads,
    /// independent of a client disconnect.
    Streaming { prefix: Option<Bytes>, rest: mpsc::Receiver<Chunk> },
}

/// Chunk of a response that is streamed.
pub(crate) enum Chunk {
    Frame(Frame<Bytes>),
    Cut(BoxError),
    End,
    /// A panic of the original body, to be resumed in the task that polls this one.
    Panicked(Box<dyn Any + Send>),
}

impl<B: http_body::Body> Body<B> {
    pub(crate) fn passed(body: B) -> Self {
        Self { kind: Inner::Passed { body } }
    }

    pub(crate) fn buffered(data: Bytes, trailers: Option<Box<HeaderMap>>) -> Self {
        Self::taken(BodySource::Buffered { data: Some(data).filter(|data| !data.is_empty()), trailers })
    }

    /// Returns the original body if it was passed on untouched.
    ///
    /// # Errors
    ///
    /// The same body again, if the layer has read it.
    pub fn try_into_inner(self) -> Result<B, Self> {
        match self.kind {
            Inner::Passed { body } => Ok(body),
            kind @ Inner::Taken { .. } => Err(Self { kind }),
        }
    }

    pub(crate) fn spilled(prefix: Bytes, rest: mpsc::Receiver<Chunk>) -> Self {
        Self::taken(BodySource::Streaming { prefix: Some(prefix).filter(|prefix| !prefix.is_empty()), rest })
    }

    fn taken(taken: BodySource) -> Self {
        Self { kind: Inner::Taken { taken: Box::new(taken) } }
    }
}

impl<B> http_body::Body for Body<B>
where
    B: http_body::Body,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().kind.project() {
            InnerProjection::Passed { body } => {
                let frame = ready!(body.poll_frame(context));
                Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(into_bytes)).map_err(Into::into)))
            }
            InnerProjection::Taken { taken } => taken.poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Inner::Passed { body } => body.is_end_stream(),
            Inner::Taken { taken } => matches!(**taken, BodySource::Buffered { data: None, trailers: None }),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Inner::Passed { body } => body.size_hint(),
            Inner::Taken { taken } => match &**taken {
                BodySource::Buffered { data, .. } => {
                    SizeHint::with_exact(data.as_ref().map_or(0, |data| data.len() as u64))
                }
                BodySource::Streaming { .. } => SizeHint::default(),
            },
        }
    }
}

impl BodySource {
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self {
            Self::Buffered { data, trailers } => Poll::Ready(
                data.take()
                    .map(Frame::data)
                    .or_else(|| trailers.take().map(|trailers| Frame::trailers(*trailers)))
                    .map(Ok),
            ),
            Self::Streaming { prefix, rest } => match prefix.take() {
                Some(prefix) => Poll::Ready(Some(Ok(Frame::data(prefix)))),
                None => match ready!(rest.poll_recv(context)) {
                    Some(Chunk::Frame(frame)) => Poll::Ready(Some(Ok(frame))),
                    Some(Chunk::Cut(error)) => Poll::Ready(Some(Err(error))),
                    Some(Chunk::End) => Poll::Ready(None),
                    Some(Chunk::Panicked(panic)) => resume_unwind(panic),
                    // The reading task ended before the body did. A clean end would make a partial
                    // body look complete; with an error the server closes the connection, so that
                    // no graceful shutdown waits for it.
                    None => Poll::Ready(Some(Err(AbandonedError.into()))),
                },
            },
        }
    }
}

impl<B: http_body::Body> fmt::Debug for Body<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.kind {
            Inner::Passed { .. } => "Body::Passed",
            Inner::Taken { taken } => match **taken {
                BodySource::Buffered { .. } => "Body::Buffered",
                BodySource::Streaming { .. } => "Body::Spilled",
            },
        })
    }
}

/// Converts a buffer. For `Bytes` this copies nothing.
pub(crate) fn into_bytes(mut data: impl Buf) -> Bytes {
    data.copy_to_bytes(data.remaining())
}

/// Result of reading a body.
pub(crate) enum ReadBody<P> {
    /// The whole body.
    Complete(Bytes, Option<Box<HeaderMap>>),
    /// More than the limit: the bytes that were read, and the rest.
    TooLarge(Bytes, Pin<P>),
    /// The body was truncated, or a layer refused the rest of it.
    Failed(BoxError),
    /// No data arrived for too long.
    Stalled,
}

/// Timeouts of a body.
#[derive(Clone, Copy)]
pub(crate) struct Patience<'a> {
    pub(crate) clock: &'a dyn Clock,
    /// Timeout for the next chunk.
    pub(crate) idle: Duration,
    /// Timeout for the whole body.
    pub(crate) whole: Duration,
}

/// Reads a body, up to `limit` bytes. A body of one chunk is not copied.
pub(crate) async fn read<P>(mut body: Pin<P>, limit: usize, patience: Option<Patience<'_>>) -> ReadBody<P>
where
    P: DerefMut,
    P::Target: http_body::Body + Sized,
    <P::Target as http_body::Body>::Error: Into<BoxError>,
{
    let mut first = Bytes::new();
    let mut more: Vec<u8> = Vec::new();
    let mut trailers = None;
    let mut deadline = None;
    loop {
        if http_body::Body::is_end_stream(&*body) {
            break;
        }
        let mut stalled = None;
        let come = poll_fn(|context| {
            if let Poll::Ready(come) = http_body::Body::poll_frame(body.as_mut(), context) {
                return Poll::Ready(Some(come));
            }
            let Some(Patience { clock, idle, whole }) = patience else { return Poll::Pending };
            let stalled = stalled.get_or_insert_with(|| {
                let now = clock.now();
                let deadline = *deadline.get_or_insert(now.saturating_add(whole));
                clock.sleep_until(now.saturating_add(idle).min(deadline))
            });
            stalled.as_mut().poll(context).map(|()| None)
        });
        let Some(come) = come.await else { return ReadBody::Stalled };
        match come {
            None => break,
            Some(Err(error)) => return ReadBody::Failed(error.into()),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    let data = into_bytes(data);
                    if first.is_empty() && more.is_empty() {
                        first = data;
                    } else {
                        if more.is_empty() {
                            more = Vec::with_capacity((first.len() + data.len()).next_power_of_two());
                            more.extend_from_slice(&first);
                            first = Bytes::new();
                        }
                        more.extend_from_slice(&data);
                    }
                    if first.len() + more.len() > limit {
                        return ReadBody::TooLarge(if more.is_empty() { first } else { more.into() }, body);
                    }
                }
                Err(frame) => trailers = frame.into_trailers().ok().map(Box::new),
            },
        }
    }
    ReadBody::Complete(if more.is_empty() { first } else { more.into() }, trailers)
}

/// Returns the next frame of a body.
pub(crate) async fn next<B: http_body::Body>(mut body: Pin<&mut B>) -> Option<Result<Frame<B::Data>, B::Error>> {
    poll_fn(|context| body.as_mut().poll_frame(context)).await
}

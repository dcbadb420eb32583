//! Bodies in transit. The request body reports when all of it was handed over. The response body
//! returns its connection to the pool at its end.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use onceward::engine::ExecutionPermit;
use pin_project_lite::pin_project;

use super::BoxError;
use super::exchange::Exchange;
use super::headers;

pin_project! {
    /// Request body on its way to the upstream.
    pub(crate) struct Sent<B> {
        #[pin]
        body: B,
        exchange: Arc<Exchange>,
        left: Option<u64>,
        with_trailers: bool,
    }
}

impl<B: Body<Data = Bytes>> Sent<B> {
    pub(crate) fn new(body: B, with_trailers: bool) -> Self {
        let left = body.size_hint().exact();
        Self { body, exchange: Arc::default(), left, with_trailers }
    }

    /// Reports progress to this connection from now on.
    pub(crate) fn follow(&mut self, exchange: &Arc<Exchange>) {
        self.exchange = Arc::clone(exchange);
        self.exchange.set_given(self.body.is_end_stream());
    }
}

impl<B> Body for Sent<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        loop {
            let frame = match ready!(this.body.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => {
                    this.exchange.set_given(true);
                    return Poll::Ready(None);
                }
            };
            let frame = match frame.into_data() {
                Ok(data) => {
                    if let Some(left) = this.left {
                        *left = left.saturating_sub(data.len() as u64);
                    }
                    Frame::data(data)
                }
                Err(frame) => match frame.into_trailers() {
                    Ok(trailers) if *this.with_trailers => Frame::trailers(headers::trailers_to_upstream(&trailers)),
                    _ => continue,
                },
            };
            // With a Content-Length, the upstream may respond as soon as it has that many bytes.
            if frame.is_trailers() || *this.left == Some(0) || this.body.is_end_stream() {
                this.exchange.set_given(true);
            }
            return Poll::Ready(Some(Ok(frame)));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Callback that returns a connection to the pool.
pub(crate) type Back = Box<dyn FnOnce() + Send>;

/// Body of the upstream's response. Dropping it before its end closes the connection.
pub(crate) struct Received {
    body: Incoming,
    back: Option<Back>,
    /// Execution permit of a request without a key.
    permit: Option<ExecutionPermit>,
}

impl Received {
    pub(crate) fn new(body: Incoming, back: Back, permit: Option<ExecutionPermit>) -> Self {
        let mut received = Self { body, back: Some(back), permit };
        received.give_back_at_end();
        received
    }

    fn give_back_at_end(&mut self) {
        if self.body.is_end_stream()
            && let Some(back) = self.back.take()
        {
            back();
            self.permit = None;
        }
    }
}

/// Response body: the upstream's, or one that the gateway generated.
#[allow(missing_debug_implementations, reason = "a body is not shown")]
pub(crate) enum Answer {
    /// Body of the upstream's response.
    Upstream {
        /// Body, streamed as it is received.
        received: Received,
    },
    /// Problem that the gateway generated.
    Own {
        /// Complete body.
        body: Full<Bytes>,
    },
}

impl Answer {
    pub(crate) fn own(body: Bytes) -> Self {
        Self::Own { body: Full::new(body) }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Upstream { received } => {
                let frame = ready!(Pin::new(&mut received.body).poll_frame(cx));
                match &frame {
                    Some(Ok(_)) => received.give_back_at_end(),
                    Some(Err(_)) => received.back = None,
                    None => {
                        if let Some(back) = received.back.take() {
                            back();
                        }
                        received.permit = None;
                    }
                }
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Self::Own { body } => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Upstream { received } => received.body.is_end_stream(),
            Self::Own { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Upstream { received } => received.body.size_hint(),
            Self::Own { body } => body.size_hint(),
        }
    }
}

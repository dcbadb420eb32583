//! What goes on, whoever goes away.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tracing::{Instrument, Span};

use super::acquire::Ended;
use super::{Boxed, Operation};

/// A life that its caller polls as long as it is there. If the caller goes away, it goes on in a task of its own: no client's
/// hang-up ends what was begun, and as long as nobody hangs up, nothing costs a task.
pub(super) struct DetachOnDrop<O: Operation> {
    life: Option<Boxed<'static, Ended<O>>>,
    runtime: Handle,
    /// The span of the request, in which a task goes on logging.
    span: Span,
}

impl<O: Operation> DetachOnDrop<O> {
    /// To be called within the runtime that the life goes on in.
    pub(super) fn new(life: Boxed<'static, Ended<O>>) -> Self {
        Self { life: Some(life), runtime: Handle::current(), span: Span::current() }
    }
}

impl<O: Operation> Future for DetachOnDrop<O> {
    type Output = Ended<O>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Ended<O>> {
        let Some(life) = &mut self.life else { return Poll::Pending };
        let ended = life.as_mut().poll(context);
        if ended.is_ready() {
            self.life = None;
        }
        ended
    }
}

impl<O: Operation> Drop for DetachOnDrop<O> {
    fn drop(&mut self) {
        let Some(life) = self.life.take() else { return };
        let rest = async move {
            if let Some(rest) = life.await.rest {
                rest.await;
            }
        };
        self.runtime.spawn(rest.instrument(std::mem::replace(&mut self.span, Span::none())));
    }
}

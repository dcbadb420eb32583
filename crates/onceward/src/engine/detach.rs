//! Keeps a request running after its caller is dropped.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tracing::{Instrument, Span};

use super::acquire::Ended;
use super::{Boxed, Operation};

/// Request that its caller polls until the caller is dropped. If the caller is dropped, the request
/// continues in a task of its own: a client disconnect does not cancel it, and without a disconnect
/// no task is needed.
pub(super) struct DetachOnDrop<O: Operation> {
    life: Option<Boxed<'static, Ended<O>>>,
    runtime: Handle,
    /// The span of the request, in which the task continues to log.
    span: Span,
}

impl<O: Operation> DetachOnDrop<O> {
    /// Wraps a request. Must be called within the runtime on which it is to continue.
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

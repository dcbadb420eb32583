//! Where questions about keys are asked: what waits at the same time goes to the server together.
//!
//! Nothing waits for more to come. A connection that is free takes what waits, so alone a question costs no more than its own
//! statement, and under load the next ones gather while the last ones are written.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::ask::{Ask, Question, Told};
use super::failure::Next;
use super::lanes::Lanes;
use super::queue::Queue;
use super::worker::Worker;
use crate::secret::RecordId;
use crate::store::Error;

/// The connections that carry keys, and what waits for them.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) lanes: Lanes,
    queue: Mutex<Queue>,
}

impl Desk {
    pub(super) fn new(lanes: Lanes) -> Arc<Self> {
        let queue = Mutex::new(Queue::new(lanes.count()));
        Arc::new(Self { lanes, queue })
    }

    /// Asks once. Whoever stops waiting before it was sent has not asked.
    pub(super) async fn ask(self: &Arc<Self>, id: &RecordId, question: Question, is_alone: bool) -> Told {
        let (ask, told) = Ask::new(*id, question, is_alone);
        self.queue().put(ask);
        self.hire();
        told.await
            .unwrap_or_else(|_| Err((Next::Reconnect, Error::unavailable("who asked PostgreSQL for it was ended"))))
    }

    /// Lets one more connection work, if that is of use.
    pub(super) fn hire(self: &Arc<Self>) {
        let place = self.queue().hire();
        if let Some(place) = place {
            tokio::spawn(Worker::new(Arc::clone(self), place).work());
        }
    }

    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }
}

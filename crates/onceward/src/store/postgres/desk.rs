//! Where questions about keys are asked: what waits at the same time goes to the server together.
//!
//! Nothing waits for more to come. A connection that is free takes what waits, so alone a question costs no more than its own
//! statement, and under load the next ones gather while the last ones are written.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

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
    /// How long a question may wait before it is sent.
    pub(super) patience: Duration,
    queue: Mutex<Queue>,
}

impl Desk {
    pub(super) fn new(lanes: Lanes, patience: Duration) -> Arc<Self> {
        let queue = Mutex::new(Queue::new(lanes.count()));
        Arc::new(Self { lanes, patience, queue })
    }

    /// Asks once, by `until` or not at all. Whoever stops waiting before it was sent has not asked.
    pub(super) async fn ask(
        self: &Arc<Self>,
        id: &RecordId,
        question: Question,
        is_alone: bool,
        until: Instant,
    ) -> Told {
        let (ask, told) = Ask::new(*id, question, is_alone, until);
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

    /// Whoever works and has to wait looks, so that no question needs a timer of its own: where nobody has to wait, none is late.
    pub(super) fn refuse_what_is_late(&self) {
        let late = self.queue().take_late(Instant::now());
        for ask in late {
            // Nothing was sent: whoever claims need not take back what cannot be there.
            let error = Error::refused("no connection to PostgreSQL was free in time, so it was not asked");
            ask.answer(Err((Next::GiveUp, error)));
        }
    }

    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }
}

//! Batches concurrent operations on keys into one statement (group commit).
//!
//! Nothing waits for more operations to arrive: an idle connection takes what is queued.
//! A single operation costs no more than its own statement.
//! Under load the next operations gather while the last ones are written.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::failure::Reaction;
use super::job::{Job, JobResult, Operation};
use super::pool::Pool;
use super::queue::Queue;
use super::worker::Worker;
use crate::secret::RecordId;
use crate::store::Error;

/// Queue of operations, and the pool of connections that carry them.
#[derive(Debug)]
pub(super) struct Batcher {
    pub(super) pool: Pool,
    /// Upper bound on the time that an operation waits before it is sent.
    pub(super) timeout: Duration,
    queue: Mutex<Queue>,
}

impl Batcher {
    pub(super) fn new(pool: Pool, timeout: Duration) -> Arc<Self> {
        let queue = Mutex::new(Queue::new(pool.count()));
        Arc::new(Self { pool, timeout, queue })
    }

    /// Runs one operation, sent by `until` or not at all. A caller that is dropped before it is
    /// sent cancels it.
    pub(super) async fn run(
        self: &Arc<Self>,
        id: &RecordId,
        operation: Operation,
        unbatched: bool,
        until: Instant,
    ) -> JobResult {
        let (job, rx) = Job::new(*id, operation, unbatched, until);
        self.queue().put(job);
        self.spawn_worker();
        rx.await.unwrap_or_else(|_| {
            Err((Reaction::Reconnect, Error::unavailable("the task that queries PostgreSQL was cancelled")))
        })
    }

    /// Spawns one more worker if that helps.
    pub(super) fn spawn_worker(self: &Arc<Self>) {
        let slot = self.queue().next_slot();
        if let Some(slot) = slot {
            tokio::spawn(Worker::new(Arc::clone(self), slot).work());
        }
    }

    /// Rejects operations whose deadline has passed.
    ///
    /// The workers call this while they wait, so operations need no timer each.
    /// If no worker is waiting, no operation can be overdue.
    pub(super) fn reject_overdue(&self) {
        let overdue = self.queue().take_overdue(Instant::now());
        for job in overdue {
            // Nothing was sent, so a claim need not be taken back.
            let error = Error::refused("no connection to PostgreSQL became free before the timeout; nothing was sent");
            job.respond(Err((Reaction::Fail, error)));
        }
    }

    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }
}

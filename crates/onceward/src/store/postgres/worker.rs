//! Worker that sends queued jobs over one connection until the queue is empty.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use super::batch::Batcher;
use super::batch_sql;
use super::failure::Reaction;
use super::in_flight::InFlightBatch;
use super::pool::{HUNG_AFTER, PooledConnection};
use crate::store::Error;

/// Time after which a statement is slow and another connection takes the queued jobs.
const SLOW: Duration = Duration::from_millis(20);

/// Upper bound on the interval of checks for cancelled and overdue jobs.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Minimum number of checks within a job's timeout, so that a caller waits little longer than that.
const CHECKS_PER_TIMEOUT: u32 = 20;

pub(super) struct Worker {
    batcher: Arc<Batcher>,
    /// Slot of the connection in the pool.
    slot: usize,
    /// True if the worker has given up its slot: the connection appears to hang.
    ///
    /// It stays alive only to deliver responses to operations that were already sent.
    released: bool,
    slow: bool,
    connected: bool,
}

impl Worker {
    pub(super) fn new(batcher: Arc<Batcher>, slot: usize) -> Self {
        Self { batcher, slot, released: false, slow: false, connected: false }
    }

    pub(super) async fn work(mut self) {
        let batcher = Arc::clone(&self.batcher);
        while self.should_continue() {
            match self.connection().await {
                Ok(connection) => {
                    let jobs = batcher.queue().take();
                    self.send(&connection, InFlightBatch::new(&batcher, jobs)).await;
                }
                Err(error) => self.handle_connect_error(&error),
            }
        }
    }

    /// Returns the connection. It is opened before jobs are taken, which other workers may do
    /// sooner.
    async fn connection(&mut self) -> Result<Arc<PooledConnection>, Error> {
        let batcher = Arc::clone(&self.batcher);
        let mut connection = pin!(batcher.pool.get(self.slot));
        let mut pause = SLOW;
        let connection = loop {
            if let Ok(connection) = timeout(pause, &mut connection).await {
                break connection;
            }
            self.set_state(true, self.connected);
            batcher.reject_overdue();
            pause = self.check_interval();
        };
        self.set_state(false, connection.is_ok());
        connection
    }

    async fn send(&mut self, connection: &PooledConnection, mut batch: InFlightBatch<'_>) {
        if !batch.is_one_statement() {
            let each = join_all(batch.jobs().iter().map(async |job| {
                let ran = batch_sql::send_one(&connection.statements, &connection.client, job).await;
                batch.respond(job, connection.classified(ran));
            }));
            self.wait_for(connection, &batch, each).await;
            return;
        }
        batch.sort();
        let sent = batch_sql::send_many(&connection.statements, &connection.client, batch.jobs());
        match self.wait_for(connection, &batch, sent).await {
            // Every caller was dropped.
            None => {}
            Some(Ok(rows)) => batch.dispatch_results(rows),
            Some(Err(error)) => batch.failed(connection.next(&error), error),
        }
    }

    /// Waits for a statement, and lets other workers take over while it is slow.
    ///
    /// A connection that appears to hang is replaced; responses on it are still delivered.
    /// Returns `None` once every caller was dropped.
    async fn wait_for<T>(
        &mut self,
        connection: &PooledConnection,
        batch: &InFlightBatch<'_>,
        sent: impl Future<Output = T>,
    ) -> Option<T> {
        let mut sent = pin!(sent);
        if let Ok(done) = timeout(SLOW, &mut sent).await {
            return Some(done);
        }
        self.set_state(true, true);
        let since = Instant::now();
        loop {
            if let Ok(done) = timeout(self.check_interval(), &mut sent).await {
                self.set_state(false, true);
                return Some(done);
            }
            self.batcher.reject_overdue();
            if since.elapsed() > HUNG_AFTER && batch.any_cancelled() {
                connection.abandon();
                batch.unblock_keys();
                self.release(true);
            }
            if self.released && batch.all_cancelled() {
                return None;
            }
        }
    }

    fn check_interval(&self) -> Duration {
        CHECK_INTERVAL.min(self.batcher.timeout / CHECKS_PER_TIMEOUT)
    }

    fn should_continue(&mut self) -> bool {
        let mut queue = self.batcher.queue();
        if !self.released && !queue.has_waiting() {
            queue.release(self.slot, self.connected);
            self.released = true;
        }
        !self.released
    }

    fn set_state(&mut self, slow: bool, connected: bool) {
        if self.released || (slow, connected) == (self.slow, self.connected) {
            return;
        }
        (self.slow, self.connected) = (slow, connected);
        self.batcher.queue().set_state(self.slot, slow, connected);
        if slow {
            self.batcher.spawn_worker();
        }
    }

    /// Handles a failed connection: connected workers take the queued jobs; without any, all jobs
    /// fail.
    fn handle_connect_error(&mut self, error: &Error) {
        self.release(false);
        let failed = {
            let mut queue = self.batcher.queue();
            if queue.has_connected_worker() { Vec::new() } else { queue.take_all() }
        };
        let why = crate::store::chain(error);
        for job in failed {
            // Nothing was sent this time, so a claim need not be taken back.
            let error = Error::refused("no connection to PostgreSQL could be opened").with_source(why.clone());
            job.respond(Err((Reaction::Reconnect, error)));
        }
    }

    fn release(&mut self, connected: bool) {
        if !std::mem::replace(&mut self.released, true) {
            self.batcher.queue().release(self.slot, connected);
            if connected {
                self.batcher.spawn_worker();
            }
        }
    }
}

/// Releases the slot also if the task is cancelled.
impl Drop for Worker {
    fn drop(&mut self) {
        if !self.released {
            self.batcher.queue().release(self.slot, self.connected);
        }
    }
}

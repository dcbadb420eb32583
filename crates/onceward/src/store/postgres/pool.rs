//! Pool of a few connections, each opened on demand and replaced once it is unusable.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_postgres::Client;

use super::connect::Connect;
use super::failure::{self, Reaction};
use super::statements::Statements;
use crate::store::Error;

/// Time after which a caller that is dropped marks its connection as hung.
pub(super) const HUNG_AFTER: Duration = Duration::from_secs(1);

/// Time after a failed attempt to connect during which callers get its error instead of trying
/// again.
const CONNECT_BACKOFF: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Pool {
    connect: Arc<Connect>,
    slots: Box<[PoolSlot]>,
    /// True if they carry keys; decides which statements are prepared.
    carry_keys: bool,
}

/// Slot for one connection, opened on demand.
#[derive(Debug, Default)]
struct PoolSlot {
    connection: parking_lot::Mutex<Option<Arc<PooledConnection>>>,
    /// Held while connecting (single-flight); holds when and why the last attempt failed.
    connecting: Mutex<Option<(Instant, String)>>,
}

/// Open connection.
pub(super) struct PooledConnection {
    pub(super) client: Client,
    pub(super) statements: Statements,
    timeline: u64,
    abandoned: AtomicBool,
    connect: Arc<Connect>,
}

impl std::fmt::Debug for PooledConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PooledConnection").field("timeline", &self.timeline).finish_non_exhaustive()
    }
}

impl Pool {
    pub(super) fn new(connect: Arc<Connect>, count: usize) -> Self {
        Self { connect, slots: (0..count).map(|_| PoolSlot::default()).collect(), carry_keys: true }
    }

    /// Creates a pool of one, for slow statements. It prepares nothing, since that would wait for a
    /// locked table.
    pub(super) fn slow(connect: Arc<Connect>) -> Self {
        Self { carry_keys: false, ..Self::new(connect, 1) }
    }

    pub(super) fn count(&self) -> usize {
        self.slots.len()
    }

    /// Returns the connection in this slot, and opens it if there is none.
    pub(super) async fn get(&self, index: usize) -> Result<Arc<PooledConnection>, Error> {
        let slot = &self.slots[index];
        if let Some(connection) = self.get_healthy(slot) {
            return Ok(connection);
        }
        let mut connecting = slot.connecting.lock().await;
        match self.get_healthy(slot) {
            Some(connection) => Ok(connection),
            None => self.open(slot, &mut connecting).await,
        }
    }

    fn get_healthy(&self, slot: &PoolSlot) -> Option<Arc<PooledConnection>> {
        let mut connection = slot.connection.lock();
        let is_healthy = |connection: &Arc<PooledConnection>| {
            !connection.client.is_closed()
                && !connection.abandoned.load(Ordering::Relaxed)
                && !self.connect.is_stale_timeline(connection.timeline)
        };
        if connection.as_ref().is_some_and(|connection| !is_healthy(connection)) {
            *connection = None;
        }
        connection.clone()
    }

    async fn open(
        &self,
        slot: &PoolSlot,
        failed: &mut MutexGuard<'_, Option<(Instant, String)>>,
    ) -> Result<Arc<PooledConnection>, Error> {
        if let Some((at, why)) = failed.as_ref().filter(|(at, _)| at.elapsed() < CONNECT_BACKOFF) {
            let _ = at;
            return Err(Error::unavailable(why.clone()));
        }
        let opened = async {
            let connected = self.connect.connect().await?;
            let statements = self.connect.prepare(&connected, self.carry_keys).await?;
            let (client, timeline) = (connected.client, connected.timeline);
            let connect = Arc::clone(&self.connect);
            Ok(Arc::new(PooledConnection { client, statements, timeline, abandoned: AtomicBool::new(false), connect }))
        };
        let opened = opened.await;
        match &opened {
            Ok(connection) => {
                **failed = None;
                *slot.connection.lock() = Some(Arc::clone(connection));
            }
            Err(error) => **failed = Some((Instant::now(), crate::store::chain(error))),
        }
        // Nothing was sent, but the next attempt may reach another host: the error stays ambiguous.
        opened
    }
}

impl PooledConnection {
    /// Marks the connection as unusable; no more statements are sent over it.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    /// Maps the error of a statement to the reaction to it.
    pub(super) fn classified<T>(&self, ran: Result<T, tokio_postgres::Error>) -> Result<T, (Reaction, Error)> {
        ran.map_err(|error| (self.next(&error), failure::error("PostgreSQL failed", error)))
    }

    /// Classifies the error of a statement, and abandons the connection if it is unusable.
    pub(super) fn next(&self, error: &tokio_postgres::Error) -> Reaction {
        let next = self.connect.next(error);
        if next == Reaction::Reconnect {
            self.abandon();
        }
        next
    }

    /// Starts measuring how long a caller waits.
    pub(super) fn hang_guard(&self) -> HangGuard<'_> {
        HangGuard { connection: self, since: Instant::now(), responded: false }
    }
}

/// Drop guard: if dropped after a while without a response, the connection is considered hung and
/// is replaced.
pub(super) struct HangGuard<'c> {
    connection: &'c PooledConnection,
    since: Instant,
    responded: bool,
}

impl HangGuard<'_> {
    pub(super) fn responded(mut self) {
        self.responded = true;
    }
}

impl Drop for HangGuard<'_> {
    fn drop(&mut self) {
        if !self.responded && self.since.elapsed() > HUNG_AFTER {
            self.connection.abandon();
        }
    }
}

//! Store in PostgreSQL 15 or newer, for many gateways.
//!
//! Records are in a table of their own, in a schema of their own.
//! An operation is one row of a statement, which is one round trip and one transaction.
//! Concurrent operations are batched into one statement.
//! Only the server's clock measures ages.
//!
//! # Example
//!
//! ```no_run
//! # async fn example() -> Result<(), onceward::store::Error> {
//! use onceward::store::PostgresStore;
//!
//! let store = PostgresStore::open("postgres://onceward:secret@db-1,db-2/onceward?sslrootcert=/etc/db-ca.pem").await?;
//! # let _ = store;
//! # Ok(())
//! # }
//! ```
//!
//! # URL parameters
//!
//! - `sslmode`: `disable` or `verify-full`. Connections to other machines are encrypted and
//!   verified by default.
//! - `sslrootcert`, `sslcert`, `sslkey`: paths of PEM files.
//! - `connections`: upper bound on connections that carry keys, 12 by default.
//! - `prepare`: `always`, `never`, or `auto` (not through a pooler).
//! - `accept`: `fsync-off`, `full-page-writes-off`: accepts that a power loss may lose keys.
//!
//! libpq's parameters for hosts, users and timeouts apply as well.

mod batch;
mod batch_sql;
mod connect;
mod failure;
mod in_flight;
mod job;
mod pool;
mod queue;
mod schema;
mod server;
mod settings;
mod statements;
mod stats;
mod tls;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::{Cas, Error, Store, StoreFuture, StoreInfo, StoreStats};
use crate::clock::{Clock, SystemClock};
use crate::codec;
use crate::record::{Phase, PhaseKind, Record, StoredRecord, Version};
use crate::secret::RecordId;
use batch::Batcher;
use connect::Connect;
use failure::Reaction;
use job::{Operation, Write};
use pool::Pool;
pub use settings::Settings;
use statements::{DUE, META, Param, REFRESH_DUE};
use stats::StatsCounter;

/// Upper bound on attempts of a statement that was not applied, or whose connection broke.
const TRIES: usize = 4;

/// Delays before a locked row is retried, in ms.
const LOCKED_MS: [u64; 9] = [2, 4, 8, 16, 32, 64, 128, 256, 512];

/// Upper bound on batches of a thousand rows whose `look_at` is corrected before due records are
/// read.
const DUE_REFRESH_BATCHES: usize = 20;

/// Interval and timeout of the server's health check.
const HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(1);
const HEALTH_CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Stores records in PostgreSQL.
#[derive(Debug)]
pub struct PostgresStore {
    connect: Arc<Connect>,
    /// Batcher of operations on keys.
    batcher: Arc<Batcher>,
    /// Connection for slow statements; no key waits behind it.
    slow: Arc<Pool>,
    stats: Arc<StatsCounter>,
    watching: AbortHandle,
}

impl PostgresStore {
    /// Connects, and migrates the schema if the role is allowed to.
    ///
    /// # Errors
    ///
    /// Returns one line with the fix for an invalid URL, a server that does not respond, a standby,
    /// or a newer schema.
    /// The same applies to a setting that breaks a guarantee, and to a role that may not create the
    /// schema.
    pub async fn open(url: &str) -> Result<Self, Error> {
        let settings: Settings = url.parse().map_err(Error::refused)?;
        Self::with(settings).await
    }

    /// Connects like [`PostgresStore::open`], with parsed settings.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`PostgresStore::open`].
    pub async fn with(settings: Settings) -> Result<Self, Error> {
        Self::with_clock(settings, Arc::new(SystemClock)).await
    }

    /// Connects like [`PostgresStore::with`], with `clock` as the clock that measures how long a
    /// server has been observed.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`PostgresStore::open`].
    pub async fn with_clock(settings: Settings, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        let (connections, timeout) = (settings.connections, settings.timeout);
        let connect = Arc::new(Connect::new(settings, clock));
        let connected = connect.begin().await?;
        schema::migrate(&connected.client).await?;
        let slow = Arc::new(Pool::slow(Arc::clone(&connect)));
        let watching = tokio::spawn(watch(Arc::clone(&connect), Arc::clone(&slow))).abort_handle();
        Ok(Self {
            batcher: Batcher::new(Pool::new(Arc::clone(&connect), connections), timeout),
            slow,
            stats: StatsCounter::new(Pool::slow(Arc::clone(&connect))),
            connect,
            watching,
        })
    }

    /// Rejects claims while the server breaks a guarantee. Attempts in flight still complete.
    fn check_writable(&self, record: &Record) -> Result<(), Error> {
        match self.connect.safety_violation() {
            Some(why) if record.phase.stage() == PhaseKind::InFlight => Err(Error::refused(why)),
            _ => Ok(()),
        }
    }

    async fn run(&self, id: &RecordId, operation: &Operation, maybe_applied: &mut bool) -> Result<Option<Row>, Error> {
        let mut retries = Retries::default();
        let mut unbatched = false;
        let until = Instant::now() + self.batcher.timeout;
        loop {
            let (next, error) = match self.batcher.run(id, operation.clone(), unbatched, until).await {
                Ok(row) => return Ok(row),
                Err(failed) => failed,
            };
            // Whatever made it fail must not delay others again.
            unbatched = next == Reaction::Retry || retries.0 > 0;
            retries.back_off(next, error, maybe_applied).await?;
        }
    }

    /// Runs a statement that may take long.
    async fn run_slow(&self, text: &str, params: &[Param<'_>]) -> Result<Vec<Row>, Error> {
        run_over(&self.slow, text, params).await
    }

    async fn insert_now(&self, id: &RecordId, record: &Record) -> Result<Option<StoredRecord>, Error> {
        if let Err(refused) = self.check_writable(record) {
            // A known record is still returned.
            return self.get_now(id).await?.map_or(Err(refused), |found| Ok(Some(found)));
        }
        let operation = Operation::Insert(Write::new(id, record));
        let mut maybe_applied = false;
        for _ in 0..TRIES {
            if let Some(row) = self.run(id, &operation, &mut maybe_applied).await? {
                let found = self.found(id, &row)?;
                // It was inserted by a statement whose response was lost.
                let is_own = maybe_applied && found.as_ref().is_some_and(|found| *found.record == *record);
                return Ok(found.filter(|_| !is_own));
            }
            // Another record was inserted after the statement's snapshot; the next read finds it,
            // or it is gone again.
        }
        Err(Error::unavailable("the record was inserted and removed too often by others"))
    }

    async fn replace_now(&self, id: &RecordId, over: Version, record: &Record) -> Result<Cas, Error> {
        // A new attempt id makes it a claim; the same one a renewal or a completion.
        if over.attempt != record.attempt {
            self.check_writable(record)?;
        }
        let operation = Operation::replace(over, id, record);
        let mut maybe_applied = false;
        for pause in LOCKED_MS {
            let there = match self.run(id, &operation, &mut maybe_applied).await? {
                None => None,
                Some(row) => match self.found(id, &row)? {
                    None => return Ok(Cas::Swapped),
                    there => there,
                },
            };
            match there {
                // It was replaced by a statement whose response was lost.
                Some(there) if maybe_applied && *there.record == *record && there.record.version() != over => {
                    return Ok(Cas::Swapped);
                }
                // Locked, or replaced after the statement's snapshot: the next read decides.
                Some(there) if there.record.version() == over => {}
                there => return Ok(Cas::Conflict(there)),
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        Err(Error::unavailable("the PostgreSQL row is locked by another transaction"))
    }

    async fn get_now(&self, id: &RecordId) -> Result<Option<StoredRecord>, Error> {
        let row = self.run(id, &Operation::Get, &mut false).await?;
        row.map_or(Ok(None), |row| self.found(id, &row))
    }

    async fn remove_now(&self, id: &RecordId, over: Version) -> Result<bool, Error> {
        let operation = Operation::Remove(over.into());
        let mut maybe_applied = false;
        for pause in LOCKED_MS {
            match self.run(id, &operation, &mut maybe_applied).await? {
                Some(row) if row.get(0) => return Ok(true),
                // It is gone after a response was lost: we removed it, or somebody else did.
                None => return Ok(maybe_applied && self.get_now(id).await?.is_none()),
                // Locked, or written after the statement's snapshot: the next read decides.
                Some(_) => tokio::time::sleep(Duration::from_millis(pause)).await,
            }
        }
        Err(Error::unavailable("the PostgreSQL row is locked by another transaction"))
    }

    async fn due_now(&self, limit: usize) -> Result<Vec<(RecordId, StoredRecord)>, Error> {
        for _ in 0..DUE_REFRESH_BATCHES {
            let listed = self.run_slow(REFRESH_DUE, &[]).await?;
            if listed.first().is_none_or(|row| row.get::<_, i64>(0) < 1000) {
                break;
            }
        }
        let mut due = Vec::new();
        let mut skipped = 0_i64;
        while due.len() < limit {
            let want = i64::try_from(limit - due.len()).unwrap_or(i64::MAX);
            let rows = self.run_slow(DUE, &[(&want, Type::INT8), (&(skipped + due.len() as i64), Type::INT8)]).await?;
            for row in &rows {
                let Ok(id) = row.get::<_, &[u8]>(3).try_into().map(RecordId) else {
                    skipped += 1;
                    continue;
                };
                match self.found(&id, row) {
                    Ok(Some(found)) => due.push((id, found)),
                    // An unreadable record must not hide the others.
                    _ => skipped += 1,
                }
            }
            if i64::try_from(rows.len()).unwrap_or(i64::MAX) < want {
                break;
            }
        }
        Ok(due)
    }

    async fn meta_now(&self, name: &str, value: &[u8]) -> Result<Bytes, Error> {
        for _ in 0..TRIES {
            let rows = self.run_slow(META, &[(&name, Type::TEXT), (&value, Type::BYTEA)]).await?;
            if let Some(row) = rows.first() {
                return Ok(Bytes::copy_from_slice(row.get(0)));
            }
        }
        Err(Error::unavailable("the named value was inserted and removed too often by others"))
    }

    /// Decodes a row; `None` if its record is NULL.
    fn found(&self, id: &RecordId, row: &Row) -> Result<Option<StoredRecord>, Error> {
        let unreadable = |error| Error::unreadable("a PostgreSQL row could not be decoded").with_source(error);
        let Some(bytes) = row.try_get::<_, Option<&[u8]>>(0).map_err(unreadable)? else { return Ok(None) };
        let (micros, started): (i64, i64) = (row.try_get(1).map_err(unreadable)?, row.try_get(2).map_err(unreadable)?);
        let record = codec::decode(id, &Bytes::copy_from_slice(bytes))?;
        // The server's clock may have gone back; treat the age as zero then.
        let mut age = Duration::from_micros(u64::try_from(micros).unwrap_or(0));
        if matches!(record.phase, Phase::InFlight { .. }) {
            age = age.min(self.connect.observed_for(started));
        }
        Ok(Some(StoredRecord { record: Box::new(record), age, owner_lost: false }))
    }
}

/// Runs a statement over the pool's first connection.
async fn run_over(pool: &Pool, text: &str, params: &[Param<'_>]) -> Result<Vec<Row>, Error> {
    let mut retries = Retries::default();
    loop {
        let (next, error) = match pool.get(0).await {
            Ok(connection) => {
                let guard = connection.hang_guard();
                let ran = connection.client.query_typed(text, params).await;
                guard.responded();
                match connection.classified(ran) {
                    Ok(rows) => return Ok(rows),
                    Err(failed) => failed,
                }
            }
            Err(error) => (Reaction::Retry, error),
        };
        retries.back_off(next, error, &mut false).await?;
    }
}

/// Checks the server's health once a second: its settings may change, or a pooler may switch to
/// another server.
async fn watch(connect: Arc<Connect>, slow: Arc<Pool>) {
    let mut violation = None;
    loop {
        tokio::time::sleep(HEALTH_CHECK_INTERVAL).await;
        let check = async {
            let connection = slow.get(0).await?;
            let guard = connection.hang_guard();
            let server = server::Server::query(&connection.client).await.inspect_err(|_| connection.abandon())?;
            guard.responded();
            // A new connection may reach the primary.
            connect.update_server(server).inspect_err(|_| connection.abandon())
        };
        match timeout(HEALTH_CHECK_TIMEOUT, check).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = %super::chain(&error), "PostgreSQL health check failed"),
            Err(_) => tracing::debug!("PostgreSQL health check timed out"),
        }
        let before = std::mem::replace(&mut violation, connect.safety_violation());
        match &violation {
            Some(why) if before != violation => tracing::error!(why, "PostgreSQL is unsafe; claims are rejected"),
            None if before.is_some() => tracing::warn!("PostgreSQL is safe again; claims are accepted"),
            _ => {}
        }
    }
}

/// Creates or migrates the schema, and returns the version found.
///
/// # Errors
///
/// Returns the errors of [`PostgresStore::open`].
pub async fn migrate(url: &str) -> Result<i32, Error> {
    let settings: Settings = url.parse().map_err(Error::refused)?;
    let connected = Connect::new(settings, Arc::new(SystemClock)).begin().await?;
    schema::migrate(&connected.client).await
}

/// Returns the schema as SQL, for migration tools.
pub fn schema_script() -> String {
    schema::script()
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl Store for PostgresStore {
    fn insert<'a>(&'a self, id: &'a RecordId, record: &'a Record) -> StoreFuture<'a, Option<StoredRecord>> {
        StoreFuture::new(self.insert_now(id, record))
    }

    fn compare_and_swap<'a>(&'a self, id: &'a RecordId, over: Version, record: &'a Record) -> StoreFuture<'a, Cas> {
        StoreFuture::new(self.replace_now(id, over, record))
    }

    fn get<'a>(&'a self, id: &'a RecordId) -> StoreFuture<'a, Option<StoredRecord>> {
        StoreFuture::new(self.get_now(id))
    }

    fn remove<'a>(&'a self, id: &'a RecordId, over: Version) -> StoreFuture<'a, bool> {
        StoreFuture::new(self.remove_now(id, over))
    }

    fn due(&self, limit: usize) -> StoreFuture<'_, Vec<(RecordId, StoredRecord)>> {
        StoreFuture::new(self.due_now(limit))
    }

    fn get_or_insert_meta<'a>(&'a self, name: &'a str, value: &'a [u8]) -> StoreFuture<'a, Bytes> {
        StoreFuture::new(self.meta_now(name, value))
    }

    fn stats(&self) -> StoreFuture<'_, StoreStats> {
        StoreFuture::new(self.stats.stats(self.batcher.timeout))
    }

    fn info(&self) -> StoreInfo {
        self.connect.server().info()
    }
}

/// Count of failed attempts of a statement.
#[derive(Default)]
struct Retries(u32);

impl Retries {
    /// Backs off before the next attempt, or fails after the last one. Sets `maybe_applied` if the
    /// attempt may have been.
    async fn back_off(&mut self, next: Reaction, error: Error, maybe_applied: &mut bool) -> Result<(), Error> {
        *maybe_applied |= next == Reaction::Reconnect && error.applied() != super::Applied::No;
        self.0 += 1;
        if next == Reaction::Fail || self.0 as usize == TRIES {
            return Err(match *maybe_applied {
                false => error,
                true => {
                    Error::unavailable("the connection to PostgreSQL was lost before it responded").with_source(error)
                }
            });
        }
        tokio::time::sleep(Duration::from_millis(10) * 4_u32.pow(self.0 - 1)).await;
        Ok(())
    }
}

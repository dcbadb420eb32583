//! Store in Redis or Valkey, for many gateways and low latency.
//!
//! A claim is one native command, `SET … NX GET PX`: it inserts the record, or returns the existing
//! one.
//! Every update is a Lua script that compares the attempt and the phase first (compare-and-swap).
//! A small response is stored inline, in the record's value.
//! A large response is external: it has a key of its own, which the server expires when retention
//! ends.
//! The record's key expires with its tombstone.
//! Claims and `unknown` records have a TTL of a hundred years, which never ends either.
//! It only lets the server report their age, so that no two clocks have to agree.
//!
//! ```text
//! onceward:{HASH}         attempt · phase · record, inline response   PX: see `value.rs`
//! onceward:{HASH}:answer  external response                           PX: retention
//! onceward:began          sorted set: claims acquired together        score: next check; a hint
//! onceward:claims         sorted set: claims that outlived a lease    score: the same
//! onceward:ends           sorted set: records with inline responses   score: the same
//! onceward:unknown        set of ids                                  for the gauge; a hint
//! onceward:meta:NAME      named value
//! ```
//!
//! # Example
//!
//! ```no_run
//! use onceward::store::redis::{Options, RedisStore};
//!
//! # async fn connect() -> Result<(), Box<dyn std::error::Error>> {
//! let options = Options::parse("redis-sentinel://10.0.0.1,10.0.0.2,10.0.0.3/orders")?;
//! let store = RedisStore::connect(options).await?;
//! # Ok(())
//! # }
//! ```

mod batch;
mod connection;
mod error_class;
mod nodes;
mod scripts;
mod server;
mod sweep_index;
mod url;
mod value;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::Value;
use tokio::task::AbortHandle;

use super::{Applied, Cas, Error, Store, StoreFuture, StoreInfo, StoreStats};
use crate::clock::{Clock, SystemClock};
use crate::record::{Phase, PhaseKind, Record, StoredRecord, Version};
use crate::secret::RecordId;
use batch::Batcher;
use connection::{ConnectionManager, RedisReply};
use scripts::Scripts;
use sweep_index::SweepIndex;
use url::Kind;
pub use url::Options;
use value::{DecodedRecord, EncodedRecord, FOREVER, RecordHeader, record_key, response_key};

/// Key of the set of ids of `unknown` records.
const UNKNOWN: &str = "onceward:unknown";

/// Retention left below which a cached clock is not trusted: the record is read from the server
/// first.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

/// Interval between health checks of the servers.
const HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Upper bound on keys a server counts one by one; above it, the counts are estimates.
const COUNTED_KEYS_MAX: u64 = 2000;

/// Number of records that a sweep reads concurrently.
const READ_CONCURRENTLY: usize = 64;

/// Stores records in Redis or Valkey.
pub struct RedisStore {
    connections: Arc<ConnectionManager>,
    scripts: Arc<Scripts>,
    writes: Arc<Batcher>,
    sweep_index: Arc<SweepIndex>,
    tasks: [AbortHandle; 2],
}

impl RedisStore {
    /// Connects, and checks that the servers keep what they store.
    ///
    /// # Errors
    ///
    /// Returns an error if a server cannot be reached, or breaks a guarantee that `accept=` does
    /// not waive.
    pub async fn connect(options: Options) -> Result<Self, Error> {
        Self::connect_with(options, Arc::new(SystemClock)).await
    }

    /// Connects like [`RedisStore::connect`], with `clock` as the clock that measures how long a
    /// server has been observed.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`RedisStore::connect`].
    pub async fn connect_with(options: Options, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        let connections = Arc::new(ConnectionManager::new(options, clock));
        connections.watch().await?;
        if let Some(violation) = connections.safety_violation() {
            return Err(Error::refused(violation));
        }
        let sweep_index = Arc::<SweepIndex>::default();
        let listing = {
            let (sweep_index, connections) = (Arc::clone(&sweep_index), Arc::clone(&connections));
            async move { sweep_index.flush_continuously(&connections).await }
        };
        let watching = watch(Arc::clone(&connections));
        let tasks = [tokio::spawn(listing).abort_handle(), tokio::spawn(watching).abort_handle()];
        let scripts = Arc::<Scripts>::default();
        let writes = Batcher::new(Arc::clone(&connections), Arc::clone(&scripts));
        Ok(Self { connections, scripts, writes, sweep_index, tasks })
    }

    async fn insert_now(&self, id: &RecordId, record: &Record) -> Result<Option<StoredRecord>, Error> {
        let sent = self.sent(id, record);
        if record.phase.stage() == PhaseKind::Completed {
            if let Some(violation) = self.connections.safety_violation() {
                return Err(Error::refused(violation));
            }
            return Ok(match self.put(id, None, sent).await? {
                Put::Done => None,
                Put::Found(found) => found,
            });
        }
        let key = record_key(id);
        let mut claim = redis::Cmd::with_capacity(7, key.len() + sent.record.len() + 32);
        claim.arg("SET").arg(key.as_slice()).arg(&sent.record).arg("NX").arg("GET").arg("PX").arg(sent.record_ms);
        let claimed = match self.connections.claim(&claim).await {
            // Without memory or replicas the server rejects even `SET … NX GET`; a read is still
            // allowed.
            Ok(RedisReply::ReadOnly { maybe_applied }) => match self.read(id).await? {
                Some(found) => return Ok(Some(found)),
                None => self.connections.retry_claim(&claim, maybe_applied).await,
            },
            Ok(RedisReply::Value(claimed)) => Ok(claimed),
            Err(error) => Err(error),
        };
        let found = match claimed {
            Ok(Value::Nil) => {
                self.track(id, record);
                return Ok(None);
            }
            Ok(found) => bytes(found)?,
            Err(error) => {
                // The claim may have been applied.
                if error.applied() == Applied::Unknown {
                    self.track(id, record);
                }
                return Err(error);
            }
        };
        if found == sent.record {
            // Our own claim: it was sent twice, or its response was lost.
            self.track(id, record);
            return Ok(Some(StoredRecord { record: Box::new(record.clone()), age: Duration::ZERO, owner_lost: false }));
        }
        if let Some(found) = self.completed(id, &found).await? {
            return Ok(Some(found));
        }
        // The age matters here, or the record changed in between: read record, age and response in
        // one step.
        match self.read(id).await? {
            Some(found) => Ok(Some(found)),
            None => Box::pin(self.insert_now(id, record)).await,
        }
    }

    /// Returns the record that a claim found if it is completed and its response has certainly not
    /// expired.
    async fn completed(&self, id: &RecordId, found: &Bytes) -> Result<Option<StoredRecord>, Error> {
        match RecordHeader::of(found) {
            RecordHeader::Inline(ends) => {
                let left = self.connections.now_ms().map(|now| Duration::from_millis(ends.saturating_sub(now)));
                let Some(left) = left.filter(|left| *left > CLOCK_TOLERANCE) else { return Ok(None) };
                let age = |record: &Record| match record.phase {
                    Phase::Completed { retention, .. } => retention.saturating_sub(left),
                    _ => Duration::ZERO,
                };
                DecodedRecord::read(id, found)?.completed(id, None, age).map(Some)
            }
            RecordHeader::External => {
                let Value::BulkString(response) =
                    self.connections.execute_plain(redis::cmd("GET").arg(response_key(id).as_slice())).await?
                else {
                    return Ok(None);
                };
                // The key exists, so retention has not ended. Nobody needs the exact age, and zero
                // errs on the young side.
                // A response that belongs to another attempt was written after the record was read.
                Ok(DecodedRecord::read(id, found)?.completed(id, Some(&response.into()), |_| Duration::ZERO).ok())
            }
            RecordHeader::InFlight | RecordHeader::Other => Ok(None),
        }
    }

    fn sent(&self, id: &RecordId, record: &Record) -> EncodedRecord {
        EncodedRecord::new(id, record, self.connections.options.inline_max, || self.connections.now_ms())
    }

    async fn replace_now(&self, id: &RecordId, over: Version, record: &Record) -> Result<Cas, Error> {
        Ok(match self.put(id, Some(over), self.sent(id, record)).await? {
            Put::Done => {
                match (over.stage, record.phase.stage()) {
                    (before, now) if before == now => {}
                    (PhaseKind::InFlight, PhaseKind::Completed) => {}
                    (before, now) => {
                        self.unmark(id, before).await;
                        self.track(id, record);
                        if now == PhaseKind::Unknown {
                            self.mark("SADD", id).await;
                        }
                    }
                }
                Cas::Swapped
            }
            Put::Found(found) => Cas::Conflict(found),
        })
    }

    async fn remove_now(&self, id: &RecordId, over: Version) -> Result<bool, Error> {
        let nothing = EncodedRecord { record: Vec::new(), record_ms: 0, response: Vec::new(), response_ms: 0 };
        match self.put(id, Some(over), nothing).await? {
            Put::Done => {
                self.unmark(id, over.stage).await;
                Ok(true)
            }
            Put::Found(_) => Ok(false),
        }
    }

    async fn put(&self, id: &RecordId, over: Option<Version>, sent: EncodedRecord) -> Result<Put, Error> {
        match self.writes.put(batch::Put::new(id, over, sent)).await? {
            Value::Int(1) => Ok(Put::Done),
            Value::Int(2) => Err(Error::unreadable("the key holds no record")),
            other => self.resolve(id, other).await.map(Put::Found),
        }
    }

    async fn read(&self, id: &RecordId) -> Result<Option<StoredRecord>, Error> {
        let reply = self.connections.run(&self.scripts.read, &[&record_key(id)], &[]).await?;
        self.resolve(id, reply).await
    }

    /// Decodes a script result.
    ///
    /// In a cluster, a missing external response may be mid-migration (its slot is moving).
    /// The read is then repeated with both keys named, which only a node that owns both will
    /// execute.
    async fn resolve(&self, id: &RecordId, reply: Value) -> Result<Option<StoredRecord>, Error> {
        if self.connections.options.kind == Kind::Cluster && misses_response(&reply) {
            let (record, response) = (record_key(id), response_key(id));
            let reply = Box::pin(self.connections.run(&self.scripts.read, &[&record, &response], &[])).await?;
            return self.decode(id, reply);
        }
        self.decode(id, reply)
    }

    /// Decodes a script result: record, remaining TTL in ms, whether the response is available,
    /// external response.
    fn decode(&self, id: &RecordId, value: Value) -> Result<Option<StoredRecord>, Error> {
        let other_form = || Error::unreadable("the Redis server returned a reply of an unexpected type");
        let (record, left, is_kept, external) = match value {
            Value::Int(0) => return Ok(None),
            Value::Array(parts) => match <[Value; 4]>::try_from(parts) {
                Ok([record, Value::Int(left), Value::Int(is_kept), external]) => {
                    (bytes(record)?, left, is_kept == 1, external)
                }
                _ => return Err(other_form()),
            },
            _ => return Err(other_form()),
        };
        let external = match external {
            Value::BulkString(external) => Some(external.into()),
            _ => None,
        };
        // A key without a TTL was not written by this store; treat its age as zero.
        let left = u64::try_from(left).map_or(FOREVER, Duration::from_millis);
        let mut found = DecodedRecord::read(id, &record)?.found(id, left, is_kept, external.as_ref())?;
        if matches!(found.record.phase, Phase::InFlight { .. }) {
            found.age = found.age.min(self.connections.observed_for());
        }
        Ok(Some(found))
    }

    async fn due_now(&self, limit: usize) -> Result<Vec<(RecordId, StoredRecord)>, Error> {
        self.sweep_index.run_once(&self.connections, &self.scripts).await?;
        let mut due = Vec::new();
        // Untracked and rescheduled entries make room for others. The bound is for a set that is
        // full of such entries.
        for _ in 0..16 {
            let ids = sweep_index::due(&self.connections, &self.scripts, due.len(), limit - due.len()).await?;
            let is_last = due.len() + ids.len() < limit || ids.is_empty();
            let (mut again, mut ended, mut ending) = (Vec::new(), Vec::new(), Vec::new());
            for group in ids.chunks(READ_CONCURRENTLY) {
                let reads = group.iter().map(|id| self.read(id));
                for (id, found) in group.iter().zip(futures_util::future::join_all(reads).await) {
                    match found {
                        Ok(Some(found)) => match &found.record.phase {
                            Phase::InFlight { lease, .. } if found.age >= *lease => due.push((*id, found)),
                            Phase::InFlight { lease, .. } => again.push((*id, *lease - found.age)),
                            Phase::Completed { retention, .. } => {
                                ending.push((*id, retention.saturating_sub(found.age)));
                                ended.push(*id);
                            }
                            _ => ended.push(*id),
                        },
                        Ok(None) => ended.push(*id),
                        // An unreadable record must not hide the others; it is checked again later.
                        Err(error) if error.is_unreadable() => again.push((*id, Duration::from_secs(60))),
                        Err(error) => return Err(error),
                    }
                }
            }
            sweep_index::reschedule(&self.connections, &again).await?;
            sweep_index::schedule_expiry(&self.connections, ending).await?;
            sweep_index::untrack(&self.connections, &ended).await?;
            if is_last || again.is_empty() && ended.is_empty() || due.len() >= limit {
                break;
            }
        }
        Ok(due)
    }

    async fn meta_now(&self, name: &str, value: &[u8]) -> Result<Bytes, Error> {
        let mut set = redis::cmd("SET");
        set.arg(format!("onceward:meta:{name}")).arg(value).arg("NX").arg("GET");
        match self.connections.execute_plain(&set).await? {
            Value::Nil => Ok(Bytes::copy_from_slice(value)),
            kept => bytes(kept),
        }
    }

    async fn count_records(&self) -> Result<StoreStats, Error> {
        let mut count = redis::cmd("EVAL");
        count.arg(self.scripts.count.text).arg(0).arg(COUNTED_KEYS_MAX);
        let mut census = StoreStats::default();
        let mut uncounted = 0;
        for counts in self.connections.execute_on_all(&count).await? {
            let counts: Vec<u64> = redis::from_redis_value(counts)
                .map_err(|error| Error::unavailable("the Redis server returned no counts").with_source(error))?;
            match counts.as_slice() {
                [in_flight, completed, released, unknown, tombstones, bytes] => {
                    census.in_flight += in_flight;
                    census.completed += completed;
                    census.released += released;
                    census.unknown += unknown;
                    census.tombstones += tombstones;
                    census.bytes += bytes;
                }
                [keys, ..] => uncounted += keys,
                [] => {}
            }
        }
        if uncounted > 0 {
            self.sweep_index.flush(&self.connections).await?;
            census.in_flight = sweep_index::in_flight(&self.connections, &self.scripts).await?;
            let unknown = self.connections.execute_plain(redis::cmd("SCARD").arg(UNKNOWN)).await?;
            census.unknown = redis::from_redis_value(unknown)
                .map_err(|error| Error::unavailable("the Redis server returned no counts").with_source(error))?;
            // An estimate, as the docs say: most other records are completed or tombstones.
            census.completed += uncounted.saturating_sub(census.in_flight + census.unknown);
            census.bytes = self.connections.servers(|servers| servers.0.iter().map(|server| server.memory_bytes).sum());
        }
        Ok(census)
    }

    /// Schedules a sweep check: for a claim after its lease, for a late completion at once, since
    /// it is not tracked yet.
    fn track(&self, id: &RecordId, record: &Record) {
        match &record.phase {
            Phase::InFlight { lease, .. } => self.sweep_index.track(*id, *lease),
            Phase::Completed { .. } => self.sweep_index.track(*id, Duration::ZERO),
            _ => {}
        }
    }

    async fn unmark(&self, id: &RecordId, stage: PhaseKind) {
        if stage == PhaseKind::Unknown {
            self.mark("SREM", id).await;
        }
    }

    /// Updates the set behind the gauge of unknown records. A failure is ignored, since the set is
    /// a hint.
    async fn mark(&self, name: &str, id: &RecordId) {
        if let Err(error) = self.connections.execute_plain(redis::cmd(name).arg(UNKNOWN).arg(id.0.as_slice())).await {
            tracing::debug!(%error, "Redis set of unknown records not updated; the gauge is out of date");
        }
    }
}

/// Checks the servers' health once a second until the store is dropped.
async fn watch(connections: Arc<ConnectionManager>) {
    loop {
        tokio::time::sleep(HEALTH_CHECK_INTERVAL).await;
        if let Err(error) = connections.watch().await {
            tracing::warn!(%error, store = %connections.options, "Redis health check failed");
        }
    }
}

/// Result of a compare-and-swap.
enum Put {
    Done,
    Found(Option<StoredRecord>),
}

/// Returns true if a script found a record whose external response is missing.
fn misses_response(reply: &Value) -> bool {
    match reply {
        Value::Array(parts) => match parts.as_slice() {
            [Value::BulkString(record), _, Value::Int(0), _] => RecordHeader::of(record) == RecordHeader::External,
            _ => false,
        },
        _ => false,
    }
}

fn bytes(value: Value) -> Result<Bytes, Error> {
    match value {
        Value::BulkString(bytes) => Ok(bytes.into()),
        Value::SimpleString(text) => Ok(text.into()),
        // The client library parses the bytes `OK` as a status.
        Value::Okay => Ok(Bytes::from_static(b"OK")),
        _ => Err(Error::unreadable("the Redis server returned a reply of an unexpected type")),
    }
}

impl Store for RedisStore {
    fn insert<'a>(&'a self, id: &'a RecordId, record: &'a Record) -> StoreFuture<'a, Option<StoredRecord>> {
        StoreFuture::new(self.insert_now(id, record))
    }

    fn compare_and_swap<'a>(&'a self, id: &'a RecordId, over: Version, record: &'a Record) -> StoreFuture<'a, Cas> {
        StoreFuture::new(self.replace_now(id, over, record))
    }

    fn get<'a>(&'a self, id: &'a RecordId) -> StoreFuture<'a, Option<StoredRecord>> {
        StoreFuture::new(self.read(id))
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
        StoreFuture::new(self.count_records())
    }

    fn info(&self) -> StoreInfo {
        let options = &self.connections.options;
        self.connections.servers(|servers| {
            // The gateway being killed is meant: the server is another process.
            StoreInfo::new(
                options.name(),
                true,
                servers.survives_power_loss(),
                servers.durability_summary(&options.kind),
            )
        })
    }
}

impl Drop for RedisStore {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("options", &self.connections.options).finish_non_exhaustive()
    }
}

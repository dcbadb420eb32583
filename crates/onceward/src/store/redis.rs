//! The store in a Redis or Valkey: many gateways, speed.
//!
//! A claim is one native command, `SET … NX GET PX`: it is taken, or what is there comes back. Everything that replaces is a
//! script of its own that compares the attempt and the stage. A small answer stands within its record; a large one beside it,
//! which ends with retention by the server. The record ends with its tombstone. A claim and an `unknown` have a time too, of a
//! hundred years: it ends neither, and lets the server tell how old they are, so that no two clocks need agree.
//!
//! ```text
//! onceward:{HASH}          attempt · stage · record, a small answer   PX: 100 years, or retention + tombstone, or as kept
//! onceward:{HASH}:answer   a large answer                             PX: retention
//! onceward:began           sorted set: claims won together            when the sweep looks at them: a hint
//! onceward:claims          sorted set: claims that outlived a lease   the same
//! onceward:ends            sorted set: records with an answer within  the same
//! onceward:unknown         set of ids                                 what the gauge counts: a hint
//! onceward:meta:NAME       a named value
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

mod fault;
mod link;
mod lists;
mod nodes;
mod scripts;
mod server;
mod together;
mod url;
mod value;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::Value;
use tokio::task::AbortHandle;

use super::{Applied, Census, Error, Facts, Pending, Replaced, Store};
use crate::clock::{Clock, SystemClock};
use crate::record::{Found, Phase, Record, Stage, Version};
use crate::secret::RecordId;
use link::{Link, Told};
use lists::Lists;
use scripts::Scripts;
use together::Together;
use url::Kind;
pub use url::Options;
use value::{FOREVER, Head, Sent, There, answer_key, record_key};

/// Where the ids of unknowns stand.
const UNKNOWN: &str = "onceward:unknown";

/// An answer whose time ends within this is looked at before it is told: what this process knows of the server's clock may be as
/// wrong as that.
const NEAR_THE_END: Duration = Duration::from_secs(60);

/// How often the servers are asked how they are.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// A census counts keys one by one up to so many a server, and estimates beyond.
const COUNTED_KEYS_MAX: u64 = 2000;

/// How many records a sweep reads together.
const READ_TOGETHER: usize = 64;

/// Keeps records in a Redis or Valkey.
pub struct RedisStore {
    link: Arc<Link>,
    scripts: Arc<Scripts>,
    writes: Arc<Together>,
    lists: Arc<Lists>,
    tasks: [AbortHandle; 2],
}

impl RedisStore {
    /// Connects, and looks whether the servers keep what they are given.
    ///
    /// # Errors
    ///
    /// They cannot be reached, or would void a promise that was not given up by `accept=`.
    pub async fn connect(options: Options) -> Result<Self, Error> {
        Self::connect_with(options, Arc::new(SystemClock)).await
    }

    /// The same, with the time since another server was met told by `clock`.
    ///
    /// # Errors
    ///
    /// As [`RedisStore::connect`].
    pub async fn connect_with(options: Options, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        let link = Arc::new(Link::new(options, clock));
        link.watch().await?;
        if let Some(refusal) = link.refusal() {
            return Err(Error::refused(refusal));
        }
        let lists = Arc::<Lists>::default();
        let listing = {
            let (lists, link) = (Arc::clone(&lists), Arc::clone(&link));
            async move { lists.write_as_they_come(&link).await }
        };
        let watching = watch(Arc::clone(&link));
        let tasks = [tokio::spawn(listing).abort_handle(), tokio::spawn(watching).abort_handle()];
        let scripts = Arc::<Scripts>::default();
        let writes = Together::new(Arc::clone(&link), Arc::clone(&scripts));
        Ok(Self { link, scripts, writes, lists, tasks })
    }

    async fn insert_now(&self, id: &RecordId, record: &Record) -> Result<Option<Found>, Error> {
        let sent = self.sent(id, record);
        if record.phase.stage() == Stage::Completed {
            if let Some(refusal) = self.link.refusal() {
                return Err(Error::refused(refusal));
            }
            return Ok(match self.put(id, None, sent).await? {
                Put::Done => None,
                Put::Found(found) => found,
            });
        }
        let key = record_key(id);
        let mut claim = redis::Cmd::with_capacity(7, key.len() + sent.record.len() + 32);
        claim.arg("SET").arg(key.as_slice()).arg(&sent.record).arg("NX").arg("GET").arg("PX").arg(sent.record_ms);
        let claimed = match self.link.claim(&claim).await {
            // It does not even tell by a claim what it knows; a look it allows.
            Ok(Told::TakesNoWrites { open }) => match self.look(id).await? {
                Some(found) => return Ok(Some(found)),
                None => self.link.claim_again(&claim, open).await,
            },
            Ok(Told::Value(claimed)) => Ok(claimed),
            Err(error) => Err(error),
        };
        let found = match claimed {
            Ok(Value::Nil) => {
                self.note(id, record);
                return Ok(None);
            }
            Ok(found) => bytes(found)?,
            Err(error) => {
                // It may have been taken.
                if error.applied() == Applied::Unknown {
                    self.note(id, record);
                }
                return Err(error);
            }
        };
        if found == sent.record {
            // Sent twice, or its answer was lost: the attempt is recognised as its own.
            self.note(id, record);
            return Ok(Some(Found { record: Box::new(record.clone()), age: Duration::ZERO, holder_gone: false }));
        }
        if let Some(found) = self.completed(id, &found).await? {
            return Ok(Some(found));
        }
        // How old it is counts, or it changed in between: record, age and answer of one moment.
        match self.look(id).await? {
            Some(found) => Ok(Some(found)),
            None => Box::pin(self.insert_now(id, record)).await,
        }
    }

    /// What a claim found, if that is completed and its answer surely still to be had.
    async fn completed(&self, id: &RecordId, found: &Bytes) -> Result<Option<Found>, Error> {
        match Head::of(found) {
            Head::Within(ends) => {
                let left = self.link.now_ms().map(|now| Duration::from_millis(ends.saturating_sub(now)));
                let Some(left) = left.filter(|left| *left > NEAR_THE_END) else { return Ok(None) };
                let age = |record: &Record| match record.phase {
                    Phase::Completed { retention, .. } => retention.saturating_sub(left),
                    _ => Duration::ZERO,
                };
                There::read(id, found)?.completed(id, None, age).map(Some)
            }
            Head::Beside => {
                let Value::BulkString(answer) =
                    self.link.ask_plain(redis::cmd("GET").arg(answer_key(id).as_slice())).await?
                else {
                    return Ok(None);
                };
                // That it is there says that retention is not over; how far it is gone nobody asks, and the age says less,
                // not more. One that is another's came after the record that was found.
                Ok(There::read(id, found)?.completed(id, Some(&answer.into()), |_| Duration::ZERO).ok())
            }
            Head::InFlight | Head::Other => Ok(None),
        }
    }

    fn sent(&self, id: &RecordId, record: &Record) -> Sent {
        Sent::new(id, record, self.link.options.within_max, || self.link.now_ms())
    }

    async fn replace_now(&self, id: &RecordId, over: Version, record: &Record) -> Result<Replaced, Error> {
        Ok(match self.put(id, Some(over), self.sent(id, record)).await? {
            Put::Done => {
                match (over.stage, record.phase.stage()) {
                    (before, now) if before == now => {}
                    (Stage::InFlight, Stage::Completed) => {}
                    (before, now) => {
                        self.no_longer(id, before).await;
                        self.note(id, record);
                        if now == Stage::Unknown {
                            self.mark("SADD", id).await;
                        }
                    }
                }
                Replaced::Yes
            }
            Put::Found(found) => Replaced::No(found),
        })
    }

    async fn remove_now(&self, id: &RecordId, over: Version) -> Result<bool, Error> {
        let nothing = Sent { record: Vec::new(), record_ms: 0, answer: Vec::new(), answer_ms: 0 };
        match self.put(id, Some(over), nothing).await? {
            Put::Done => {
                self.no_longer(id, over.stage).await;
                Ok(true)
            }
            Put::Found(_) => Ok(false),
        }
    }

    async fn put(&self, id: &RecordId, over: Option<Version>, sent: Sent) -> Result<Put, Error> {
        match self.writes.put(together::Put::new(id, over, sent)).await? {
            Value::Int(1) => Ok(Put::Done),
            Value::Int(2) => Err(Error::unreadable("the key holds no record")),
            other => self.believe(id, other).await.map(Put::Found),
        }
    }

    async fn look(&self, id: &RecordId) -> Result<Option<Found>, Error> {
        let looked = self.link.run(&self.scripts.look, &[&record_key(id)], &[]).await?;
        self.believe(id, looked).await
    }

    /// What a script found, but for one thing: in a cluster an answer that is not where its record is may be on its way between two
    /// nodes, and then it is for a node that has both to say, or for the time after that.
    async fn believe(&self, id: &RecordId, told: Value) -> Result<Option<Found>, Error> {
        if self.link.options.kind == Kind::Cluster && misses_answer(&told) {
            let (record, answer) = (record_key(id), answer_key(id));
            let looked = Box::pin(self.link.run(&self.scripts.look, &[&record, &answer], &[])).await?;
            return self.read(id, looked);
        }
        self.read(id, told)
    }

    /// What a script found: record, ms that are left, whether its answer is to be had, the answer beside it.
    fn read(&self, id: &RecordId, value: Value) -> Result<Option<Found>, Error> {
        let other_form = || Error::unreadable("the server answered in another form");
        let (record, left, is_kept, beside) = match value {
            Value::Int(0) => return Ok(None),
            Value::Array(parts) => match <[Value; 4]>::try_from(parts) {
                Ok([record, Value::Int(left), Value::Int(is_kept), beside]) => {
                    (bytes(record)?, left, is_kept == 1, beside)
                }
                _ => return Err(other_form()),
            },
            _ => return Err(other_form()),
        };
        let beside = match beside {
            Value::BulkString(beside) => Some(beside.into()),
            _ => None,
        };
        // One without a time was not written by this store; as long as it stays, it is as young as can be.
        let left = u64::try_from(left).map_or(FOREVER, Duration::from_millis);
        let mut found = There::read(id, &record)?.found(id, left, is_kept, beside.as_ref())?;
        if matches!(found.record.phase, Phase::InFlight { .. }) {
            found.age = found.age.min(self.link.known_for());
        }
        Ok(Some(found))
    }

    async fn due_now(&self, limit: usize) -> Result<Vec<(RecordId, Found)>, Error> {
        self.lists.turn(&self.link, &self.scripts).await?;
        let mut due = Vec::new();
        // What is struck out or listed anew makes room for others; a bound, should the list be full of such.
        for _ in 0..16 {
            let ids = lists::due(&self.link, &self.scripts, due.len(), limit - due.len()).await?;
            let is_last = due.len() + ids.len() < limit || ids.is_empty();
            let (mut again, mut ended, mut ending) = (Vec::new(), Vec::new(), Vec::new());
            for together in ids.chunks(READ_TOGETHER) {
                let looks = together.iter().map(|id| self.look(id));
                for (id, found) in together.iter().zip(futures_util::future::join_all(looks).await) {
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
                        // It hides no other, and is looked at again.
                        Err(error) if error.is_unreadable() => again.push((*id, Duration::from_secs(60))),
                        Err(error) => return Err(error),
                    }
                }
            }
            lists::look_again(&self.link, &again).await?;
            lists::end_later(&self.link, ending).await?;
            lists::strike_out(&self.link, &ended).await?;
            if is_last || again.is_empty() && ended.is_empty() || due.len() >= limit {
                break;
            }
        }
        Ok(due)
    }

    async fn meta_now(&self, name: &str, value: &[u8]) -> Result<Bytes, Error> {
        let mut set = redis::cmd("SET");
        set.arg(format!("onceward:meta:{name}")).arg(value).arg("NX").arg("GET");
        match self.link.ask_plain(&set).await? {
            Value::Nil => Ok(Bytes::copy_from_slice(value)),
            kept => bytes(kept),
        }
    }

    async fn census_now(&self) -> Result<Census, Error> {
        let mut count = redis::cmd("EVAL");
        count.arg(self.scripts.count.text).arg(0).arg(COUNTED_KEYS_MAX);
        let mut census = Census::default();
        let mut uncounted = 0;
        for counts in self.link.ask_all(&count).await? {
            let counts: Vec<u64> =
                redis::from_redis_value(counts).map_err(|error| Error::unavailable("no count came").because(error))?;
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
            self.lists.flush(&self.link).await?;
            census.in_flight = lists::in_flight(&self.link, &self.scripts).await?;
            let unknown = self.link.ask_plain(redis::cmd("SCARD").arg(UNKNOWN)).await?;
            census.unknown =
                redis::from_redis_value(unknown).map_err(|error| Error::unavailable("no count came").because(error))?;
            // Most have an answer, or had one. An estimate, and the docs say so.
            census.completed += uncounted.saturating_sub(census.in_flight + census.unknown);
            census.bytes = self.link.servers(|servers| servers.0.iter().map(|server| server.memory_bytes).sum());
        }
        Ok(census)
    }

    /// Lists what the sweep is to look at: a claim after its lease, and a late answer at once, for nobody listed it.
    fn note(&self, id: &RecordId, record: &Record) {
        match &record.phase {
            Phase::InFlight { lease, .. } => self.lists.began(*id, *lease),
            Phase::Completed { .. } => self.lists.began(*id, Duration::ZERO),
            _ => {}
        }
    }

    async fn no_longer(&self, id: &RecordId, stage: Stage) {
        if stage == Stage::Unknown {
            self.mark("SREM", id).await;
        }
    }

    /// A hint for the gauge: nothing fails if it fails.
    async fn mark(&self, name: &str, id: &RecordId) {
        if let Err(error) = self.link.ask_plain(redis::cmd(name).arg(UNKNOWN).arg(id.0.as_slice())).await {
            tracing::debug!(%error, "the gauge of unknowns is behind");
        }
    }
}

/// Looks at the servers for as long as somebody uses them.
async fn watch(link: Arc<Link>) {
    loop {
        tokio::time::sleep(WATCH_EVERY).await;
        if let Err(error) = link.watch().await {
            tracing::warn!(%error, store = %link.options, "the store does not say how it is");
        }
    }
}

/// What became of a write that compares.
enum Put {
    Done,
    Found(Option<Found>),
}

/// Whether a script found a record without the answer that should be, or was, beside it.
fn misses_answer(told: &Value) -> bool {
    match told {
        Value::Array(parts) => match parts.as_slice() {
            [Value::BulkString(record), _, Value::Int(0), _] => Head::of(record) == Head::Beside,
            _ => false,
        },
        _ => false,
    }
}

fn bytes(value: Value) -> Result<Bytes, Error> {
    match value {
        Value::BulkString(bytes) => Ok(bytes.into()),
        Value::SimpleString(text) => Ok(text.into()),
        // A value that reads so is told apart from the rest by nobody else.
        Value::Okay => Ok(Bytes::from_static(b"OK")),
        _ => Err(Error::unreadable("the server answered in another form")),
    }
}

impl Store for RedisStore {
    fn insert<'a>(&'a self, id: &'a RecordId, record: &'a Record) -> Pending<'a, Option<Found>> {
        Pending::new(self.insert_now(id, record))
    }

    fn replace<'a>(&'a self, id: &'a RecordId, over: Version, record: &'a Record) -> Pending<'a, Replaced> {
        Pending::new(self.replace_now(id, over, record))
    }

    fn get<'a>(&'a self, id: &'a RecordId) -> Pending<'a, Option<Found>> {
        Pending::new(self.look(id))
    }

    fn remove<'a>(&'a self, id: &'a RecordId, over: Version) -> Pending<'a, bool> {
        Pending::new(self.remove_now(id, over))
    }

    fn due(&self, limit: usize) -> Pending<'_, Vec<(RecordId, Found)>> {
        Pending::new(self.due_now(limit))
    }

    fn meta<'a>(&'a self, name: &'a str, value: &'a [u8]) -> Pending<'a, Bytes> {
        Pending::new(self.meta_now(name, value))
    }

    fn census(&self) -> Pending<'_, Census> {
        Pending::new(self.census_now())
    }

    fn facts(&self) -> Facts {
        let options = &self.link.options;
        self.link.servers(|servers| {
            // A kill of the gateway is meant: the server is another process.
            Facts::new(options.name(), true, servers.survives_power_loss(), servers.promise(&options.kind))
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
        f.debug_struct("RedisStore").field("options", &self.link.options).finish_non_exhaustive()
    }
}

//! The store in a Redis or Valkey: many gateways, speed.
//!
//! A claim is one native command, `SET … NX GET PX`: it is taken, or what is there comes back. Everything that replaces is a
//! script of its own that compares the attempt and the stage. An answer stands beside its record and ends with retention, by
//! the server; the record ends with its tombstone. A claim and an `unknown` have a time too, of a hundred years: it ends
//! neither, and lets the server tell how old they are, so that no two clocks need agree.
//!
//! ```text
//! onceward:{HASH}          attempt · stage · record      PX: 100 years, or retention + tombstone, or as long as it is kept
//! onceward:{HASH}:answer   the record with its answer    PX: retention
//! onceward:claims          sorted set of ids             when the sweep looks at a claim: a hint
//! onceward:unknown         set of ids                    what the gauge counts: a hint
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

mod claims;
mod fault;
mod link;
mod scripts;
mod server;
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
use claims::Claims;
use link::Link;
use scripts::Scripts;
pub use url::Options;
use value::{FOREVER, Sent, answer_key, record_key};

/// Where the ids of unknowns stand.
const UNKNOWN: &str = "onceward:unknown";

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
    claims: Arc<Claims>,
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
        let (scripts, claims) = (Arc::<Scripts>::default(), Arc::<Claims>::default());
        let lists = claims::write_as_they_come(Arc::clone(&claims), Arc::clone(&link), Arc::clone(&scripts));
        let watches = watch(Arc::clone(&link));
        let tasks = [tokio::spawn(lists).abort_handle(), tokio::spawn(watches).abort_handle()];
        Ok(Self { link, scripts, claims, tasks })
    }

    /// A server that would void a promise takes no claims; what was begun is finished all the same.
    fn admit(&self) -> Result<(), Error> {
        self.link.refusal().map_or(Ok(()), |refusal| Err(Error::refused(refusal)))
    }

    async fn insert_now(&self, id: &RecordId, record: &Record) -> Result<Option<Found>, Error> {
        self.admit()?;
        let sent = Sent::new(id, record);
        if !sent.answer.is_empty() {
            return Ok(match self.put(id, b"", &sent).await? {
                Put::Done => None,
                Put::Found(found) => found,
            });
        }
        let key = record_key(id);
        let mut claim = redis::Cmd::with_capacity(7, key.len() + sent.record.len() + 32);
        claim.arg("SET").arg(&key).arg(sent.record.as_ref()).arg("NX").arg("GET").arg("PX").arg(sent.record_ms);
        let claimed = match self.link.ask_if_room(&claim, || claim.clone()).await {
            // A server that is full does not even tell by a claim what it knows; a look it allows.
            Err(error) if error.is_full() => match self.look(id).await? {
                Some(found) => return Ok(Some(found)),
                None => self.link.ask(&claim, || claim.clone()).await,
            },
            claimed => claimed,
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
        if value::is_completed(&found) {
            let mut get = redis::cmd("GET");
            get.arg(answer_key(id));
            if let Value::BulkString(answer) = self.link.ask(&get, || get.clone()).await? {
                let left = value::read(id, &found)?;
                if let Ok(found) = value::completed(id, &left, &answer.into()) {
                    return Ok(Some(found));
                }
            }
        }
        // How old it is counts, or it changed in between: record, age and answer of one moment.
        match self.look(id).await? {
            Some(found) => Ok(Some(found)),
            None => Box::pin(self.insert_now(id, record)).await,
        }
    }

    async fn replace_now(&self, id: &RecordId, over: Version, record: &Record) -> Result<Replaced, Error> {
        Ok(match self.put(id, &value::version(over), &Sent::new(id, record)).await? {
            Put::Done => {
                if over.stage != record.phase.stage() {
                    self.gone(id, over.stage).await;
                    self.note(id, record);
                    self.note_unknown(id, record.phase.stage()).await;
                }
                Replaced::Yes
            }
            Put::Found(found) => Replaced::No(found),
        })
    }

    async fn remove_now(&self, id: &RecordId, over: Version) -> Result<bool, Error> {
        let nothing = Sent { record: Bytes::new(), record_ms: 0, answer: Bytes::new(), answer_ms: 0 };
        match self.put(id, &value::version(over), &nothing).await? {
            Put::Done => {
                self.gone(id, over.stage).await;
                Ok(true)
            }
            Put::Found(_) => Ok(false),
        }
    }

    async fn put(&self, id: &RecordId, over: &[u8], sent: &Sent) -> Result<Put, Error> {
        let (record_ms, answer_ms) = (sent.record_ms.to_string(), sent.answer_ms.to_string());
        let keys = [record_key(id), answer_key(id)];
        let arguments = [over, &sent.record, record_ms.as_bytes(), &sent.answer, answer_ms.as_bytes()];
        match self.link.run(&self.scripts.put, &[&keys[0], &keys[1]], &arguments).await? {
            Value::Int(1) => Ok(Put::Done),
            other => self.read(id, other).map(Put::Found),
        }
    }

    async fn look(&self, id: &RecordId) -> Result<Option<Found>, Error> {
        let keys = [record_key(id), answer_key(id)];
        let looked = self.link.run(&self.scripts.look, &[&keys[0], &keys[1]], &[]).await?;
        self.read(id, looked)
    }

    /// What a script found: record, ms that are left, answer.
    fn read(&self, id: &RecordId, value: Value) -> Result<Option<Found>, Error> {
        let (record, left, answer) = match value {
            Value::Int(0) => return Ok(None),
            Value::Array(parts) => match <[Value; 3]>::try_from(parts) {
                Ok([record, Value::Int(left), answer]) => (bytes(record)?, left, answer),
                _ => return Err(Error::unreadable("the server answered in another form")),
            },
            _ => return Err(Error::unreadable("the server answered in another form")),
        };
        let answer = match answer {
            Value::BulkString(answer) => Some(answer.into()),
            _ => None,
        };
        // One without a time was not written by this store; as long as it stays, it is as young as can be.
        let left = u64::try_from(left).map_or(FOREVER, Duration::from_millis);
        let mut found = value::found(id, &record, left, answer)?;
        if matches!(found.record.phase, Phase::InFlight { .. }) {
            found.age = found.age.min(self.link.known_for());
        }
        Ok(Some(found))
    }

    async fn due_now(&self, limit: usize) -> Result<Vec<(RecordId, Found)>, Error> {
        self.claims.flush(&self.link, &self.scripts).await?;
        let mut due = Vec::new();
        // What is struck out or listed anew makes room for others; a bound, should the list be full of such.
        for _ in 0..16 {
            let (skip, want) = (due.len().to_string(), (limit - due.len()).to_string());
            let ids = self.link.run(&self.scripts.due, &[claims::KEY], &[skip.as_bytes(), want.as_bytes()]).await?;
            let ids: Vec<Vec<u8>> =
                redis::from_redis_value(ids).map_err(|error| Error::unavailable("no list came").because(error))?;
            let is_last = due.len() + ids.len() < limit || ids.is_empty();
            let ids: Vec<RecordId> = ids.into_iter().filter_map(|id| Some(RecordId(id.try_into().ok()?))).collect();
            let (mut listed, mut ended) = (Vec::new(), Vec::new());
            for together in ids.chunks(READ_TOGETHER) {
                let looks = together.iter().map(|id| self.look(id));
                for (id, found) in together.iter().zip(futures_util::future::join_all(looks).await) {
                    match found {
                        Ok(Some(found)) => match &found.record.phase {
                            Phase::InFlight { lease, .. } if found.age >= *lease => due.push((*id, found)),
                            Phase::InFlight { lease, .. } => listed.push((*id, *lease - found.age)),
                            _ => ended.push(*id),
                        },
                        Ok(None) => ended.push(*id),
                        // It hides no other, and is looked at again.
                        Err(error) if error.is_unreadable() => listed.push((*id, Duration::from_secs(60))),
                        Err(error) => return Err(error),
                    }
                }
            }
            let changed = !listed.is_empty() || !ended.is_empty();
            if changed {
                claims::write(&self.link, &self.scripts, &listed, &ended).await?;
            }
            if is_last || !changed || due.len() >= limit {
                break;
            }
        }
        Ok(due)
    }

    async fn meta_now(&self, name: &str, value: &[u8]) -> Result<Bytes, Error> {
        let mut set = redis::cmd("SET");
        set.arg(format!("onceward:meta:{name}")).arg(value).arg("NX").arg("GET");
        match self.link.ask(&set, || set.clone()).await? {
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
            self.claims.flush(&self.link, &self.scripts).await?;
            let ask = async |name: &str, key: &str| {
                let mut count = redis::cmd(name);
                count.arg(key);
                let counted = self.link.ask(&count, || count.clone()).await?;
                redis::from_redis_value::<u64>(counted)
                    .map_err(|error| Error::unavailable("no count came").because(error))
            };
            census.in_flight = ask("ZCARD", claims::KEY).await?;
            census.unknown = ask("SCARD", UNKNOWN).await?;
            // Most have an answer beside them. An estimate, and the docs say so.
            census.completed += uncounted.saturating_sub(census.in_flight + census.unknown) / 2;
            census.bytes = self.link.servers(|servers| servers.0.iter().map(|server| server.memory_bytes).sum());
        }
        Ok(census)
    }

    fn note(&self, id: &RecordId, record: &Record) {
        if let Phase::InFlight { lease, .. } = &record.phase {
            self.claims.list(*id, *lease);
        }
    }

    async fn gone(&self, id: &RecordId, stage: Stage) {
        match stage {
            Stage::InFlight => self.claims.ended(*id),
            Stage::Unknown => self.mark("SREM", id).await,
            Stage::Completed | Stage::Released | Stage::Tombstone => {}
        }
    }

    async fn note_unknown(&self, id: &RecordId, stage: Stage) {
        if stage == Stage::Unknown {
            self.mark("SADD", id).await;
        }
    }

    /// A hint for the gauge: nothing fails if it fails.
    async fn mark(&self, name: &str, id: &RecordId) {
        let mut mark = redis::cmd(name);
        mark.arg(UNKNOWN).arg(id.0.as_slice());
        if let Err(error) = self.link.ask(&mark, || mark.clone()).await {
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

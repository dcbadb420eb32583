//! The store in PostgreSQL 15 or newer: many gateways, one truth.
//!
//! A table of its own in a schema of its own. An operation is a row of a statement, which is one round trip and one transaction;
//! what waits at the same time is one statement. Ages are told by the server's clock alone.
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
//! # What the URL says besides
//!
//! `sslmode` (`disable` or `verify-full`; what leaves the machine is encrypted and verified unless it says otherwise),
//! `sslrootcert`, `sslcert`, `sslkey`, `connections` (how many carry keys at most, 12), `prepare` (`always`, `never` or `auto`: not
//! through a pooler), `accept` (`fsync-off`, `full-page-writes-off`: knowing that a loss of power may forget keys), and what
//! libpq knows of hosts, users and time-outs.

mod ask;
mod connect;
mod counting;
mod desk;
mod failure;
mod lanes;
mod many;
mod queue;
mod running;
mod schema;
mod server;
mod settings;
mod statements;
mod tls;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::{Census, Error, Facts, Pending, Replaced, Store};
use crate::clock::{Clock, SystemClock};
use crate::codec;
use crate::record::{Found, Phase, Record, Stage, Version};
use crate::secret::RecordId;
use ask::{Question, Write};
use connect::Connect;
use counting::Counting;
use desk::Desk;
use failure::Next;
use lanes::Lanes;
pub use settings::Settings;
use statements::{DUE, LIST_ANEW, META, Param};

/// How often a statement is sent again where the server says that it was not applied, or a connection broke.
const TRIES: usize = 4;

/// How long a row that is locked is left alone, time after time.
const LOCKED_MS: [u64; 9] = [2, 4, 8, 16, 32, 64, 128, 256, 512];

/// How many thousands of rows are listed anew at most before what is due is looked at.
const LISTED_ANEW: usize = 20;

/// How often the server is asked what it is, and how long it may take to say so.
const WATCH_EVERY: Duration = Duration::from_secs(1);
const WATCH_MAX: Duration = Duration::from_secs(2);

/// Keeps records in PostgreSQL.
#[derive(Debug)]
pub struct PostgresStore {
    connect: Arc<Connect>,
    /// For keys.
    desk: Arc<Desk>,
    /// For what takes its time: nothing waits behind it.
    slow: Arc<Lanes>,
    counting: Arc<Counting>,
    watching: AbortHandle,
}

impl PostgresStore {
    /// Connects, and brings the schema up to date if the role may.
    ///
    /// # Errors
    ///
    /// One line with the mend: a URL that cannot be read, a server that does not answer, a standby, a setting that voids a
    /// promise, a newer schema, or a role that may not make the schema.
    pub async fn open(url: &str) -> Result<Self, Error> {
        let settings: Settings = url.parse().map_err(Error::refused)?;
        Self::with(settings).await
    }

    /// The same, by settings that were read before.
    ///
    /// # Errors
    ///
    /// Those of [`PostgresStore::open`].
    pub async fn with(settings: Settings) -> Result<Self, Error> {
        Self::with_clock(settings, Arc::new(SystemClock)).await
    }

    /// The same, with the time since another server was met told by `clock`.
    ///
    /// # Errors
    ///
    /// Those of [`PostgresStore::open`].
    pub async fn with_clock(settings: Settings, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        let (connections, patience) = (settings.connections, settings.timeout);
        let connect = Arc::new(Connect::new(settings, clock));
        let connected = connect.begin().await?;
        schema::bring_up(&connected.client).await?;
        let slow = Arc::new(Lanes::slow(Arc::clone(&connect)));
        let watching = tokio::spawn(watch(Arc::clone(&connect), Arc::clone(&slow))).abort_handle();
        Ok(Self {
            desk: Desk::new(Lanes::new(Arc::clone(&connect), connections), patience),
            slow,
            counting: Counting::new(Lanes::slow(Arc::clone(&connect))),
            connect,
            watching,
        })
    }

    /// A server that would void a promise takes no claims. What was begun is finished all the same.
    fn admit(&self, record: &Record) -> Result<(), Error> {
        match self.connect.refusal() {
            Some(why) if record.phase.stage() == Stage::InFlight => Err(Error::refused(why)),
            _ => Ok(()),
        }
    }

    async fn run(&self, id: &RecordId, question: &Question, settled: &mut bool) -> Result<Option<Row>, Error> {
        let mut retries = Retries::default();
        let mut is_alone = false;
        let until = Instant::now() + self.desk.patience;
        loop {
            let (next, error) = match self.desk.ask(id, question.clone(), is_alone, until).await {
                Ok(row) => return Ok(row),
                Err(failed) => failed,
            };
            // Whatever is the matter with it is not to hold up others again.
            is_alone = next == Next::Again || retries.0 > 0;
            retries.go_on(next, error, settled).await?;
        }
    }

    /// A statement that may take a while.
    async fn run_slow(&self, text: &str, params: &[Param<'_>]) -> Result<Vec<Row>, Error> {
        run_over(&self.slow, text, params).await
    }

    async fn insert_now(&self, id: &RecordId, record: &Record) -> Result<Option<Found>, Error> {
        if let Err(refused) = self.admit(record) {
            // What is known is told.
            return self.get_now(id).await?.map_or(Err(refused), |found| Ok(Some(found)));
        }
        let question = Question::Insert(Write::new(id, record));
        let mut settled = true;
        for _ in 0..TRIES {
            if let Some(told) = self.run(id, &question, &mut settled).await? {
                let found = self.found(id, &told)?;
                // It was inserted by a statement whose answer was lost.
                let is_ours = !settled && found.as_ref().is_some_and(|found| *found.record == *record);
                return Ok(found.filter(|_| !is_ours));
            }
            // Another was inserted since the statement looked; it is there for the next look, or gone again.
        }
        Err(Error::unavailable("the key came and went too often"))
    }

    async fn replace_now(&self, id: &RecordId, over: Version, record: &Record) -> Result<Replaced, Error> {
        // By another attempt it is a claim; by the same one a sign of life.
        if over.attempt != record.attempt {
            self.admit(record)?;
        }
        let question = Question::replace(over, id, record);
        let mut settled = true;
        for pause in LOCKED_MS {
            let there = match self.run(id, &question, &mut settled).await? {
                None => None,
                Some(told) => match self.found(id, &told)? {
                    None => return Ok(Replaced::Yes),
                    there => there,
                },
            };
            match there {
                // It was replaced by a statement whose answer was lost.
                Some(there) if !settled && *there.record == *record && there.record.version() != over => {
                    return Ok(Replaced::Yes);
                }
                // Locked, or replaced since the statement looked: the next look tells.
                Some(there) if there.record.version() == over => {}
                there => return Ok(Replaced::No(there)),
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        Err(Error::unavailable("the record is locked by another transaction"))
    }

    async fn get_now(&self, id: &RecordId) -> Result<Option<Found>, Error> {
        let row = self.run(id, &Question::Get, &mut true).await?;
        row.map_or(Ok(None), |row| self.found(id, &row))
    }

    async fn remove_now(&self, id: &RecordId, over: Version) -> Result<bool, Error> {
        let question = Question::Remove(over.into());
        let mut settled = true;
        for pause in LOCKED_MS {
            match self.run(id, &question, &mut settled).await? {
                Some(row) if row.get(0) => return Ok(true),
                // Gone after an answer that was lost: it was us, or it was removed all the same.
                None => return Ok(!settled && self.get_now(id).await?.is_none()),
                // Locked, or written since the statement looked: the next look tells.
                Some(_) => tokio::time::sleep(Duration::from_millis(pause)).await,
            }
        }
        Err(Error::unavailable("the record is locked by another transaction"))
    }

    async fn due_now(&self, limit: usize) -> Result<Vec<(RecordId, Found)>, Error> {
        for _ in 0..LISTED_ANEW {
            let listed = self.run_slow(LIST_ANEW, &[]).await?;
            if listed.first().is_none_or(|row| row.get::<_, i64>(0) < 1000) {
                break;
            }
        }
        let mut due = Vec::new();
        let mut passed_over = 0_i64;
        while due.len() < limit {
            let want = i64::try_from(limit - due.len()).unwrap_or(i64::MAX);
            let rows =
                self.run_slow(DUE, &[(&want, Type::INT8), (&(passed_over + due.len() as i64), Type::INT8)]).await?;
            for row in &rows {
                let Ok(id) = row.get::<_, &[u8]>(3).try_into().map(RecordId) else {
                    passed_over += 1;
                    continue;
                };
                match self.found(&id, row) {
                    Ok(Some(found)) => due.push((id, found)),
                    // It cannot be read, and does not hide the others.
                    _ => passed_over += 1,
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
        Err(Error::unavailable("the named value came and went too often"))
    }

    /// What a row says: nothing where its record is none.
    fn found(&self, id: &RecordId, row: &Row) -> Result<Option<Found>, Error> {
        let unreadable = |error| Error::unreadable("a row of the store cannot be read").because(error);
        let Some(bytes) = row.try_get::<_, Option<&[u8]>>(0).map_err(unreadable)? else { return Ok(None) };
        let (micros, started): (i64, i64) = (row.try_get(1).map_err(unreadable)?, row.try_get(2).map_err(unreadable)?);
        let record = codec::decode(id, &Bytes::copy_from_slice(bytes))?;
        // The server's clock may have gone back: then nothing has passed.
        let mut age = Duration::from_micros(u64::try_from(micros).unwrap_or(0));
        if matches!(record.phase, Phase::InFlight { .. }) {
            age = age.min(self.connect.known_for(started));
        }
        Ok(Some(Found { record: Box::new(record), age, holder_gone: false }))
    }
}

/// A statement over the first of these connections.
async fn run_over(lanes: &Lanes, text: &str, params: &[Param<'_>]) -> Result<Vec<Row>, Error> {
    let mut retries = Retries::default();
    loop {
        let (next, error) = match lanes.line(0).await {
            Ok(line) => {
                let watch = line.watch();
                let ran = line.client.query_typed(text, params).await;
                watch.answered();
                match line.judged(ran) {
                    Ok(rows) => return Ok(rows),
                    Err(failed) => failed,
                }
            }
            Err(error) => (Next::Again, error),
        };
        retries.go_on(next, error, &mut true).await?;
    }
}

/// Asks the server what it is, for as long as somebody uses it: it may be configured anew, or a pooler may lead to another one.
async fn watch(connect: Arc<Connect>, slow: Arc<Lanes>) {
    let mut refused = None;
    loop {
        tokio::time::sleep(WATCH_EVERY).await;
        let asked = async {
            let line = slow.line(0).await?;
            let watch = line.watch();
            let server = server::Server::ask(&line.client).await.inspect_err(|_| line.give_up())?;
            watch.answered();
            // Another connection may lead to the one that counts.
            connect.learn(server).inspect_err(|_| line.give_up())
        };
        match timeout(WATCH_MAX, asked).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = %super::chain(&error), "the server is not as it should be"),
            Err(_) => tracing::debug!("the server does not say what it is"),
        }
        let before = std::mem::replace(&mut refused, connect.refusal());
        match &refused {
            Some(why) if before != refused => tracing::error!(why, "no claims are taken any more"),
            None if before.is_some() => tracing::warn!("claims are taken again"),
            _ => {}
        }
    }
}

/// Makes the schema, or brings it up to date, and returns the version that was there.
///
/// # Errors
///
/// Those of [`PostgresStore::open`].
pub async fn migrate(url: &str) -> Result<i32, Error> {
    let settings: Settings = url.parse().map_err(Error::refused)?;
    let connected = Connect::new(settings, Arc::new(SystemClock)).begin().await?;
    schema::bring_up(&connected.client).await
}

/// The schema as SQL, for people's own tools.
pub fn schema_script() -> String {
    schema::script()
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl Store for PostgresStore {
    fn insert<'a>(&'a self, id: &'a RecordId, record: &'a Record) -> Pending<'a, Option<Found>> {
        Pending::new(self.insert_now(id, record))
    }

    fn replace<'a>(&'a self, id: &'a RecordId, over: Version, record: &'a Record) -> Pending<'a, Replaced> {
        Pending::new(self.replace_now(id, over, record))
    }

    fn get<'a>(&'a self, id: &'a RecordId) -> Pending<'a, Option<Found>> {
        Pending::new(self.get_now(id))
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
        Pending::new(self.counting.census(self.desk.patience))
    }

    fn facts(&self) -> Facts {
        self.connect.server().facts()
    }
}

/// How often a statement failed.
#[derive(Default)]
struct Retries(u32);

impl Retries {
    /// Waits a while, unless it is enough. `settled` becomes false where what failed may have been applied.
    async fn go_on(&mut self, next: Next, error: Error, settled: &mut bool) -> Result<(), Error> {
        *settled &= next != Next::Reconnect || error.applied() == super::Applied::No;
        self.0 += 1;
        if next == Next::GiveUp || self.0 as usize == TRIES {
            return Err(match *settled {
                true => error,
                false => Error::unavailable("PostgreSQL's answer was lost").because(error),
            });
        }
        tokio::time::sleep(Duration::from_millis(10) * 4_u32.pow(self.0 - 1)).await;
        Ok(())
    }
}

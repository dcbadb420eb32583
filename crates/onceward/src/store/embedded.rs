//! The store in a folder: every claim and answer synced to disk before anybody is told of it.
//!
//! One writer thread takes all writes that wait into one batch and one sync, so that many callers share what the disk
//! charges for each; reads go beside it. The engine is `fjall`. What it does not look at itself is looked at here:
//!
//! - every value is under a checksum of ours, with the record's id in it; one that fails is an error of its key;
//! - journals, lists of tables and their contents are checked before `fjall` opens them, for it takes a flipped bit for the journal's end;
//! - the number of the last batch that callers were told of stands in a file beside, and a folder that does not reach it is
//!   not opened;
//! - after a failed write or sync, nothing is written until the folder is opened again;
//! - so a disk that fills up is noticed before that: claims are refused first, and room is kept for answers.
//!
//! Ages are told by the monotonic clock while the folder is open, and by the wall clock over a restart; where that went
//! back, ages say less, not more. Claims of an earlier boot are found with their holder gone: one process at a time has the
//! folder open.
//!
//! ```
//! # tokio_test(async {
//! use onceward::store::{EmbeddedStore, Store};
//!
//! let folder = tempfile::tempdir()?;
//! let store = EmbeddedStore::open(folder.path().join("keys"))?;
//! assert_eq!(store.census().await?.in_flight, 0);
//! assert!(store.facts().survives_power_loss);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! # fn tokio_test<T>(test: impl Future<Output = T>) -> T {
//! #     tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(test)
//! # }
//! ```

mod due;
mod engine;
mod folder;
mod journal;
mod room;
mod row;
mod shared;
mod tables;
#[cfg(test)]
mod tests;
mod tidy;
mod time;
mod writer;

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::{self, Thread};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Semaphore, mpsc as tokio_mpsc, oneshot};

use self::engine::{Engine, unread};
use self::folder::Folder;
use self::journal::Refusal;
use self::room::Disk;
use self::row::{Draft, State, read_claim_key};
use self::shared::{Claims, Shared};
use self::time::Time;
use self::writer::{What, Write, Writer};
use super::{Census, Error, Facts, Pending, Replaced, Store};
use crate::clock::{Clock, SystemClock};
use crate::record::{Found, Record, Version};
use crate::secret::RecordId;

/// What may wait for the writer, in units of [`ROOM_UNIT`]; more callers wait for room before it.
const ROOM: usize = 64 << 10;
const ROOM_UNIT: usize = 1 << 10;

/// How long closing waits for the writer and for the tidying, each. Nothing acknowledged is lost by not waiting.
const CLOSING_MAX: Duration = Duration::from_secs(10);

/// Keeps records in a folder. See the [module](self) for what it promises.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    engine: Option<Engine>,
    writes: Option<UnboundedSender<Write>>,
    room: Arc<Semaphore>,
    tidy: Thread,
    /// Ends as each thread does.
    threads: Mutex<[mpsc::Receiver<()>; 2]>,
}

impl EmbeddedStore {
    /// Opens the store in a folder, which is created if it does not exist.
    ///
    /// # Errors
    ///
    /// One line that names the folder: it is in use by another process, cannot be written, holds something else, was
    /// written by a newer version, or is damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_with(path, Arc::new(SystemClock))
    }

    /// The same, with ages told by `clock`.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn open_with(path: impl AsRef<Path>, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        let (store, start) = Self::prepare(path.as_ref(), clock)?;
        start()?;
        Ok(store)
    }

    /// A store whose writer is yet to be started.
    fn prepare(path: &Path, clock: Arc<dyn Clock>) -> Result<(Self, impl FnOnce() -> Result<(), Error>), Error> {
        let folder = Folder::open(path, |data| Engine::open(data, None).map(drop))?;
        let disk = Disk::open(path);
        let (engine, before) = open_engine(&folder)?;
        let shared = Arc::new(Shared {
            path: folder.path.clone(),
            time: Time::new(clock, before.now),
            boot: before.boot + 1,
            poison: OnceLock::new(),
            claims: Mutex::new(orphans(&engine)?),
            census: Mutex::new(before.census),
            due_from: AtomicU64::new(0),
            garbage: AtomicU64::new(0),
            engine: RwLock::new(Some(engine.clone())),
            closing: AtomicBool::new(false),
        });
        let (tidy_ends, tidy_end) = mpsc::channel();
        let tidy = spawn("onceward-tidy", &shared, tidy_ends, {
            let (engine, shared) = (engine.clone(), shared.clone());
            move || tidy::run(&engine, &shared)
        })?;
        let mut writer =
            Writer { engine: engine.clone(), shared: shared.clone(), folder, disk, state: before, tidy: tidy.clone() };
        let (writes, taken) = tokio_mpsc::unbounded_channel();
        let (writer_ends, writer_end) = mpsc::channel();
        let start = {
            let shared = shared.clone();
            move || {
                // This boot's number is durable before anything is written under it.
                writer.begin()?;
                spawn("onceward-writer", &shared, writer_ends, move || writer.run(taken)).map(drop)
            }
        };
        let room = Arc::new(Semaphore::new(ROOM));
        let threads = Mutex::new([writer_end, tidy_end]);
        Ok((Self { shared, engine: Some(engine), writes: Some(writes), room, tidy, threads }, start))
    }

    fn engine(&self) -> Result<&Engine, Error> {
        self.engine.as_ref().ok_or_else(|| Error::refused("the store is closed"))
    }

    fn find(&self, id: &RecordId) -> Result<Option<Found>, Error> {
        let row = self.engine()?.row(id)?;
        Ok(row.map(|row| row.found(self.shared.time.now(), self.shared.boot)))
    }

    async fn write<T>(&self, what: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> What) -> Result<T, Error> {
        self.shared.check_poison()?;
        let closed = || Error::refused("the store is closed");
        let (answer, answered) = oneshot::channel();
        let what = what(answer);
        // One that is larger than all of it goes alone: an answer must be kept whatever its size.
        let units = what.len().div_ceil(ROOM_UNIT).clamp(1, ROOM);
        let room = self.room.clone().acquire_many_owned(units as u32).await.map_err(|_| closed())?;
        let writes = self.writes.as_ref().ok_or_else(closed)?;
        writes.send(Write { what, _room: room }).map_err(|_| closed())?;
        answered.await.map_err(|_| Error::unavailable("the store's writer ended"))?
    }
}

fn open_engine(folder: &Folder) -> Result<(Engine, State), Error> {
    let acknowledged = folder.acknowledged;
    let refused = |refusal| match refusal {
        Refusal::Damaged(what) => folder.damaged(&what),
        Refusal::Io(error) => {
            Error::refused(format!("the store's folder {} cannot be read", folder.path.display())).because(error)
        }
    };
    tables::check(&folder.data()).map_err(refused)?;
    let journaled = journal::check(&folder.data(), acknowledged).map_err(refused)?;
    let engine = Engine::open(&folder.data(), Some(folder.lock.clone()))?;
    let state = engine.state()?.unwrap_or_default();
    let reached = acknowledged.max(journaled.unwrap_or(0));
    if state.batch < reached {
        return Err(folder.damaged(&format!("it reaches to batch {}, and {reached} was acknowledged", state.batch)));
    }
    Ok((engine, state))
}

/// The claims that an earlier boot left.
fn orphans(engine: &Engine) -> Result<Claims, Error> {
    let mut claims = Claims::default();
    for entry in engine.index.prefix(b"c") {
        let key = entry.key().map_err(unread)?;
        let id = read_claim_key(&key).ok_or_else(|| Error::unreadable("the store's index cannot be read"))?;
        // One that cannot be read is told of to whoever asks for it.
        if let Ok(Some(bytes)) = engine.records.get(id.0)
            && let Ok(due) = row::due(&id, &bytes.into())
        {
            claims.adopt(due, id);
        }
    }
    Ok(claims)
}

/// `ends` is dropped when the thread is done.
fn spawn(
    name: &str,
    shared: &Shared,
    ends: mpsc::Sender<()>,
    run: impl FnOnce() + Send + 'static,
) -> Result<Thread, Error> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
        run();
        drop(ends);
    });
    thread.map(|handle| handle.thread().clone()).map_err(|error| {
        Error::refused(format!("the store in {} could not start a thread", shared.path.display())).because(error)
    })
}

impl Store for EmbeddedStore {
    fn insert<'a>(&'a self, id: &'a RecordId, record: &'a Record) -> Pending<'a, Option<Found>> {
        Pending::new(async move {
            // What is there is durable: a replay need not wait for anybody's sync.
            if let Some(found) = self.find(id)? {
                return Ok(Some(found));
            }
            let draft = Draft::new(id, record);
            self.write(|answer| What::Insert { id: *id, draft, answer }).await
        })
    }

    fn replace<'a>(&'a self, id: &'a RecordId, over: Version, record: &'a Record) -> Pending<'a, Replaced> {
        Pending::new(async move {
            let draft = Draft::new(id, record);
            self.write(|answer| What::Replace { id: *id, over, draft, answer }).await
        })
    }

    fn get<'a>(&'a self, id: &'a RecordId) -> Pending<'a, Option<Found>> {
        Pending::new(async move { self.find(id) })
    }

    fn remove<'a>(&'a self, id: &'a RecordId, over: Version) -> Pending<'a, bool> {
        Pending::new(async move { self.write(|answer| What::Remove { id: *id, over, answer }).await })
    }

    fn due<'a>(&'a self, limit: usize) -> Pending<'a, Vec<(RecordId, Found)>> {
        let shared = self.shared.clone();
        let scan = move || match &*shared.engine.read() {
            Some(engine) => due::due(engine, &shared, limit),
            None => Err(Error::refused("the store is closed")),
        };
        Pending::new(async move {
            // It may read many records from a cold disk.
            match tokio::runtime::Handle::try_current() {
                Ok(runtime) => match runtime.spawn_blocking(scan).await {
                    Ok(result) => result,
                    Err(error) => Err(Error::refused("the store could not look at what is due").because(error)),
                },
                Err(_) => scan(),
            }
        })
    }

    fn meta<'a>(&'a self, name: &'a str, value: &'a [u8]) -> Pending<'a, Bytes> {
        Pending::new(async move {
            if let Some(value) = self.engine()?.named(name)? {
                return Ok(value);
            }
            let (name, value) = (name.to_owned(), Bytes::copy_from_slice(value));
            self.write(|answer| What::Meta { name, value, answer }).await
        })
    }

    fn census(&self) -> Pending<'_, Census> {
        let census = *self.shared.census.lock();
        Pending::ready(Ok(census))
    }

    fn facts(&self) -> Facts {
        Facts::new(
            "embedded",
            true,
            true,
            "every claim and answer is synced to this machine's disk before anybody is told of it; \
             one process at a time; the disk itself is not doubled",
        )
        .broken(self.shared.poison.get().cloned())
    }
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl Drop for EmbeddedStore {
    /// Writes what is queued, then closes, so that the folder can be opened again at once.
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        self.writes = None;
        self.tidy.unpark();
        for end in self.threads.get_mut() {
            if end.recv_timeout(CLOSING_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
                tracing::warn!(folder = %self.shared.path.display(), "the store is still at work while it is closed");
            }
        }
        // Waits for readers on other threads; those that come later find nothing.
        *self.shared.engine.write() = None;
        self.engine = None;
    }
}

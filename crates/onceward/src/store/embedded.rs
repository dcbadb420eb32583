//! Store in a local directory: every claim and response is synced to disk before its write returns.
//!
//! One writer thread batches all waiting writes into one sync (group commit), so that many callers
//! share its cost. Reads run concurrently with it.
//! The engine is `fjall`. This module checks what the engine does not check itself:
//!
//! - Every value has a checksum of ours, which covers the record's id. A wrong checksum is an error
//!   of that key.
//! - Journals, table lists and table contents are checked before `fjall` opens them, since it takes
//!   a flipped bit for the journal's end.
//! - A file holds the number of the last acknowledged batch. A directory whose data do not reach it
//!   is not opened.
//! - After a failed write or sync, nothing is written until the directory is opened again.
//! - A disk that fills up is detected before that: claims are rejected first, and space is reserved
//!   for responses.
//!
//! Ages use the monotonic clock while the directory is open, and the wall clock across a restart.
//! If the wall clock went back, ages err on the young side.
//! Claims of an earlier boot are returned with their owner lost, since one process at a time has
//! the directory open.
//!
//! ```
//! # tokio_test(async {
//! use onceward::store::{EmbeddedStore, Store};
//!
//! let dir = tempfile::tempdir()?;
//! let store = EmbeddedStore::open(dir.path().join("keys"))?;
//! assert_eq!(store.stats().await?.in_flight, 0);
//! assert!(store.info().survives_power_loss);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! # fn tokio_test<T>(test: impl Future<Output = T>) -> T {
//! #     tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(test)
//! # }
//! ```

mod compactor;
mod data_dir;
mod disk_space;
mod due;
mod engine;
mod journal;
mod row;
mod shared;
mod tables;
#[cfg(test)]
mod tests;
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

use self::data_dir::DataDir;
use self::disk_space::DiskMonitor;
use self::engine::{Engine, read_error};
use self::journal::CheckError;
use self::row::{EncodedRow, State, read_claim_key};
use self::shared::{Claims, Shared};
use self::time::Time;
use self::writer::{Write, WriteOp, Writer};
use super::{Cas, Error, Store, StoreFuture, StoreInfo, StoreStats};
use crate::clock::{Clock, SystemClock};
use crate::record::{Record, StoredRecord, Version};
use crate::secret::RecordId;

/// Upper bound on queued writes, in units of [`CAPACITY_UNIT`]; further callers wait for capacity.
const CAPACITY: usize = 64 << 10;
const CAPACITY_UNIT: usize = 1 << 10;

/// Timeout of closing, for each of the two threads. Nothing acknowledged is lost if it passes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Stores records in a directory. See the [module](self) for its guarantees.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    engine: Option<Engine>,
    writes: Option<UnboundedSender<Write>>,
    capacity: Arc<Semaphore>,
    compactor: Thread,
    /// Disconnected when each thread ends.
    threads: Mutex<[mpsc::Receiver<()>; 2]>,
}

impl EmbeddedStore {
    /// Opens the store in a directory, which is created if it does not exist.
    ///
    /// # Errors
    ///
    /// Returns one line that names the directory: it is in use by another process, cannot be
    /// written, or holds something else. It may also be damaged, or written by a newer version.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_with(path, Arc::new(SystemClock))
    }

    /// Opens the store with `clock` as the clock that measures ages.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`open`](Self::open).
    pub fn open_with(path: impl AsRef<Path>, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        let (store, start) = Self::prepare(path.as_ref(), clock)?;
        start()?;
        Ok(store)
    }

    /// Opens a store whose writer is not yet started.
    fn prepare(path: &Path, clock: Arc<dyn Clock>) -> Result<(Self, impl FnOnce() -> Result<(), Error>), Error> {
        let data_dir = DataDir::open(path, |data| Engine::open(data, None).map(drop))?;
        let disk = DiskMonitor::open(path);
        let (engine, before) = open_engine(&data_dir)?;
        let shared = Arc::new(Shared {
            path: data_dir.path.clone(),
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
        let (compactor_ends, compactor_end) = mpsc::channel();
        let compactor = spawn("onceward-tidy", &shared, compactor_ends, {
            let (engine, shared) = (engine.clone(), shared.clone());
            move || compactor::run(&engine, &shared)
        })?;
        let mut writer = Writer {
            engine: engine.clone(),
            shared: shared.clone(),
            data_dir,
            disk,
            state: before,
            compactor: compactor.clone(),
        };
        let (writes, taken) = tokio_mpsc::unbounded_channel();
        let (writer_ends, writer_end) = mpsc::channel();
        let start = {
            let shared = shared.clone();
            move || {
                // The boot number is durable before anything is written under it.
                writer.begin()?;
                spawn("onceward-writer", &shared, writer_ends, move || writer.run(taken)).map(drop)
            }
        };
        let capacity = Arc::new(Semaphore::new(CAPACITY));
        let threads = Mutex::new([writer_end, compactor_end]);
        Ok((Self { shared, engine: Some(engine), writes: Some(writes), capacity, compactor, threads }, start))
    }

    fn engine(&self) -> Result<&Engine, Error> {
        self.engine.as_ref().ok_or_else(|| Error::refused("the store is closed"))
    }

    fn find(&self, id: &RecordId) -> Result<Option<StoredRecord>, Error> {
        let row = self.engine()?.row(id)?;
        Ok(row.map(|row| row.found(self.shared.time.now(), self.shared.boot)))
    }

    async fn write<T>(&self, op: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> WriteOp) -> Result<T, Error> {
        self.shared.check_poison()?;
        let closed = || Error::refused("the store is closed");
        let (tx, rx) = oneshot::channel();
        let op = op(tx);
        // A write larger than the whole capacity goes alone: a response must be stored whatever its
        // size.
        let units = op.len().div_ceil(CAPACITY_UNIT).clamp(1, CAPACITY);
        let permit = self.capacity.clone().acquire_many_owned(units as u32).await.map_err(|_| closed())?;
        let writes = self.writes.as_ref().ok_or_else(closed)?;
        writes.send(Write { op, _permit: permit }).map_err(|_| closed())?;
        rx.await.map_err(|_| Error::unavailable("the writer thread of the embedded store ended"))?
    }
}

fn open_engine(data_dir: &DataDir) -> Result<(Engine, State), Error> {
    let acknowledged = data_dir.acknowledged;
    let map_error = |error| match error {
        CheckError::Damaged(what) => data_dir.damaged(&what),
        CheckError::Io(error) => {
            Error::refused(format!("the data directory {} cannot be read", data_dir.path.display())).with_source(error)
        }
    };
    tables::check(&data_dir.data()).map_err(map_error)?;
    let journaled = journal::check(&data_dir.data(), acknowledged).map_err(map_error)?;
    let engine = Engine::open(&data_dir.data(), Some(data_dir.lock.clone()))?;
    let state = engine.state()?.unwrap_or_default();
    let reached = acknowledged.max(journaled.unwrap_or(0));
    if state.batch < reached {
        return Err(
            data_dir.damaged(&format!("its data end at batch {}, and batch {reached} was acknowledged", state.batch))
        );
    }
    Ok((engine, state))
}

/// Returns the claims left by earlier boots.
fn orphans(engine: &Engine) -> Result<Claims, Error> {
    let mut claims = Claims::default();
    for entry in engine.index.prefix(b"c") {
        let key = entry.key().map_err(read_error)?;
        let id =
            read_claim_key(&key).ok_or_else(|| Error::unreadable("the index of the embedded store cannot be read"))?;
        // An unreadable record is reported when its key is used.
        if let Ok(Some(bytes)) = engine.records.get(id.0)
            && let Ok(due) = row::due(&id, &bytes.into())
        {
            claims.adopt(due, id);
        }
    }
    Ok(claims)
}

/// Spawns a thread. `ends` is dropped when it ends.
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
        Error::refused(format!("the store in {} could not start a thread", shared.path.display())).with_source(error)
    })
}

impl Store for EmbeddedStore {
    fn insert<'a>(&'a self, id: &'a RecordId, record: &'a Record) -> StoreFuture<'a, Option<StoredRecord>> {
        StoreFuture::new(async move {
            // Stored records are durable: a replay need not wait for a sync.
            if let Some(found) = self.find(id)? {
                return Ok(Some(found));
            }
            let row = EncodedRow::new(id, record);
            self.write(|tx| WriteOp::Insert { id: *id, row, tx }).await
        })
    }

    fn compare_and_swap<'a>(&'a self, id: &'a RecordId, over: Version, record: &'a Record) -> StoreFuture<'a, Cas> {
        StoreFuture::new(async move {
            let row = EncodedRow::new(id, record);
            self.write(|tx| WriteOp::Replace { id: *id, over, row, tx }).await
        })
    }

    fn get<'a>(&'a self, id: &'a RecordId) -> StoreFuture<'a, Option<StoredRecord>> {
        StoreFuture::new(async move { self.find(id) })
    }

    fn remove<'a>(&'a self, id: &'a RecordId, over: Version) -> StoreFuture<'a, bool> {
        StoreFuture::new(async move { self.write(|tx| WriteOp::Remove { id: *id, over, tx }).await })
    }

    fn due<'a>(&'a self, limit: usize) -> StoreFuture<'a, Vec<(RecordId, StoredRecord)>> {
        let shared = self.shared.clone();
        let scan = move || match &*shared.engine.read() {
            Some(engine) => due::due(engine, &shared, limit),
            None => Err(Error::refused("the store is closed")),
        };
        StoreFuture::new(async move {
            // The scan may read many records from a cold disk.
            match tokio::runtime::Handle::try_current() {
                Ok(runtime) => match runtime.spawn_blocking(scan).await {
                    Ok(result) => result,
                    Err(error) => Err(Error::refused("the scan for due records failed").with_source(error)),
                },
                Err(_) => scan(),
            }
        })
    }

    fn get_or_insert_meta<'a>(&'a self, name: &'a str, value: &'a [u8]) -> StoreFuture<'a, Bytes> {
        StoreFuture::new(async move {
            if let Some(value) = self.engine()?.named(name)? {
                return Ok(value);
            }
            let (name, value) = (name.to_owned(), Bytes::copy_from_slice(value));
            self.write(|tx| WriteOp::Meta { name, value, tx }).await
        })
    }

    fn stats(&self) -> StoreFuture<'_, StoreStats> {
        let census = *self.shared.census.lock();
        StoreFuture::ready(Ok(census))
    }

    fn info(&self) -> StoreInfo {
        StoreInfo::new(
            "embedded",
            true,
            true,
            "every claim and response is synced to this machine's disk before its write returns; \
            one process at a time; the disk itself is not replicated",
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
    /// Writes what is queued, then closes, so that the directory can be opened again at once.
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        self.writes = None;
        self.compactor.unpark();
        for end in self.threads.get_mut() {
            if end.recv_timeout(CLOSE_TIMEOUT) == Err(mpsc::RecvTimeoutError::Timeout) {
                tracing::warn!(directory = %self.shared.path.display(), "embedded store still busy after the close timeout");
            }
        }
        // Waits for readers on other threads; later ones find the store closed.
        *self.shared.engine.write() = None;
        self.engine = None;
    }
}

//! Writer: one thread that batches all waiting writes into one sync (group commit), then sends all
//! results.
//!
//! `fjall` makes a batch visible to readers only after its sync has succeeded, as its durability
//! requests.
//! So whatever concurrent readers find is durable.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::Thread;

use bytes::Bytes;
use fjall::PersistMode;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

use super::compactor;
use super::data_dir::DataDir;
use super::disk_space::{DiskMonitor, Headroom};
use super::engine::Engine;
use super::row::{EncodedRow, IndexEntry, Row, STATE_KEY, State, index_key, name_key, write_named};
use super::shared::Shared;
use crate::fault;
use crate::record::{PhaseKind, StoredRecord, Version};
use crate::secret::RecordId;
use crate::store::{Cas, Error, StoreStats};

/// Upper bound on the size of a batch, so that nobody waits for the bodies of all others.
pub(super) const BATCH_BYTES_MAX: usize = 8 << 20;

/// Overhead of a record besides its envelope: its id and its index entry.
const RECORD_OVERHEAD: u64 = 32 + 41;

/// Polling interval for the engine's memtables, which have no notification.
const POLL_INTERVAL: std::time::Duration = std::time::Duration::from_millis(2);

/// Number of sealed memtables to wait at. `fjall` waits at four, forever if its flush thread has
/// stopped, which is detected here.
const SEALED_MEMTABLES_MAX: usize = 3;

/// Queued write.
pub(super) struct Write {
    pub(super) op: WriteOp,
    /// Capacity in the queue, held until the result is sent.
    pub(super) _permit: OwnedSemaphorePermit,
}

pub(super) enum WriteOp {
    Insert { id: RecordId, row: EncodedRow, tx: ResultSender<Option<StoredRecord>> },
    Replace { id: RecordId, over: Version, row: EncodedRow, tx: ResultSender<Cas> },
    Remove { id: RecordId, over: Version, tx: ResultSender<bool> },
    Meta { name: String, value: Bytes, tx: ResultSender<Bytes> },
}

type ResultSender<T> = oneshot::Sender<Result<T, Error>>;

impl WriteOp {
    /// Returns true if it starts something new, which a renewal does not.
    fn is_claim(&self) -> bool {
        match self {
            Self::Insert { row, .. } => row.stage == PhaseKind::InFlight,
            Self::Replace { over, row, .. } => row.stage == PhaseKind::InFlight && over.attempt != row.attempt,
            Self::Remove { .. } => false,
            Self::Meta { .. } => true,
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Insert { row, .. } | Self::Replace { row, .. } => row.len(),
            Self::Remove { .. } => 0,
            Self::Meta { value, .. } => value.len(),
        }
    }
}

pub(super) struct Writer {
    pub(super) engine: Engine,
    pub(super) shared: Arc<Shared>,
    pub(super) data_dir: DataDir,
    pub(super) disk: DiskMonitor,
    pub(super) state: State,
    pub(super) compactor: Thread,
}

impl Writer {
    /// Makes the boot number durable.
    pub(super) fn begin(&mut self) -> Result<(), Error> {
        self.write_state().map_err(|failure| failure.error())
    }

    /// Runs until all senders are dropped and all results are sent.
    pub(super) fn run(mut self, mut writes: UnboundedReceiver<Write>) {
        while let Some(first) = writes.blocking_recv() {
            let mut bytes = first.op.len();
            let mut taken = vec![first];
            while bytes < BATCH_BYTES_MAX
                && let Ok(next) = writes.try_recv()
            {
                bytes += next.op.len();
                taken.push(next);
            }
            self.write(taken);
            if compactor::is_due(&self.shared) {
                self.compactor.unpark();
            }
        }
        // Records the time that passed since the last write, in case the wall clock is behind it at
        // the next start.
        if self.shared.check_poison().is_ok() {
            // A failure here affects nobody.
            let _ = self.write_state();
        }
    }

    fn write_state(&mut self) -> Result<(), Failure> {
        let engine = self.engine.clone();
        self.commit(&Batch::new(&engine, self.shared.time.now(), self.shared.boot))
    }

    fn write(&mut self, taken: Vec<Write>) {
        let mut responders = Vec::with_capacity(taken.len());
        let mut permits = Vec::with_capacity(taken.len());
        let engine = self.engine.clone();
        let mut batch = Batch::new(&engine, self.shared.time.begin_batch(), self.shared.boot);
        let bytes = taken.iter().map(|write| write.op.len() as u64 + RECORD_OVERHEAD).sum();
        let headroom = self.disk.headroom_for(bytes);
        for Write { op, _permit } in taken {
            permits.push(_permit);
            responders.push(match self.shared.check_poison().and_then(|()| self.check_headroom(headroom, &op)) {
                Ok(()) => batch.take(op),
                Err(error) => reject(op, error),
            });
        }
        // Nothing to write, nothing to sync.
        let failure = if batch.is_empty() { None } else { self.commit(&batch).err() };
        self.shared.time.end_batch();
        for respond in responders {
            respond(failure.as_ref());
        }
    }

    fn check_headroom(&self, headroom: Headroom, op: &WriteOp) -> Result<(), Error> {
        if headroom == Headroom::All || headroom == Headroom::CompletionsOnly && !op.is_claim() {
            return Ok(());
        }
        let data_dir = self.shared.path.display();
        Err(Error::full(match headroom {
            Headroom::None => {
                format!("the disk of {data_dir} is full: neither claims nor responses are stored; free some space")
            }
            _ => format!("the disk of {data_dir} is nearly full: the rest is reserved for responses; free some space"),
        }))
    }

    /// Makes a batch durable, then visible.
    fn commit(&mut self, batch: &Batch<'_>) -> Result<(), Failure> {
        while self.engine.records.sealed_memtable_count() > SEALED_MEMTABLES_MAX
            || self.engine.index.sealed_memtable_count() > SEALED_MEMTABLES_MAX
            || self.engine.meta.sealed_memtable_count() > SEALED_MEMTABLES_MAX
        {
            self.engine.check().map_err(|error| self.failed(&error, false))?;
            std::thread::park_timeout(POLL_INTERVAL);
        }
        let mut census = self.state.census;
        for slot in batch.slots.values() {
            count(&mut census, slot.before, u64::wrapping_sub);
            count(&mut census, slot.after.as_ref().map(|(_, entry)| *entry), u64::wrapping_add);
        }
        let state = State { batch: self.state.batch + 1, boot: self.shared.boot, now: batch.now, census };
        let mut writes = self.engine.database.batch().durability(Some(PersistMode::SyncData));
        // First, so that the number of a torn batch precedes everything else.
        writes.insert(&self.engine.meta, STATE_KEY, state.write().as_slice());
        for (id, slot) in &batch.slots {
            match &slot.after {
                Some((bytes, _)) => writes.insert(&self.engine.records, id.0, bytes.clone()),
                None if slot.before.is_some() => writes.remove(&self.engine.records, id.0),
                None => {}
            }
            let before = slot.before.and_then(|entry| index_key(&entry, id));
            let after = slot.after.as_ref().and_then(|(_, entry)| index_key(entry, id));
            if before != after {
                if let Some(key) = before {
                    writes.remove(&self.engine.index, key);
                }
                if let Some(key) = after {
                    writes.insert(&self.engine.index, key, Bytes::new());
                }
            }
        }
        for (name, value) in &batch.named {
            writes.insert(&self.engine.meta, name_key(name), write_named(name, value));
        }
        fault::reach("commit-before");
        writes.commit().map_err(|error| {
            // The engine checks whether it has stopped before it writes the first byte.
            let may_be_applied = !matches!(error, fjall::Error::Poisoned);
            self.failed(&error, may_be_applied)
        })?;
        fault::reach("commit-after");
        self.state = state;
        self.publish(batch);
        if let Err(error) = self.data_dir.acknowledge(state.batch) {
            // This batch is durable and acknowledged; the next would not be guarded.
            self.failed(&error, false);
        }
        Ok(())
    }

    /// Updates the state in memory to what is durable now.
    fn publish(&self, batch: &Batch<'_>) {
        *self.shared.census.lock() = self.state.census;
        let mut garbage = 0;
        let mut claims = self.shared.claims.lock();
        for (id, slot) in &batch.slots {
            if let Some(before) = slot.before {
                garbage += before.bytes;
                if before.stage == PhaseKind::InFlight {
                    claims.remove(before.due, *id);
                }
            }
            if let Some((_, after)) = slot.after
                && after.stage == PhaseKind::InFlight
            {
                claims.insert(after.due, *id);
            }
        }
        drop(claims);
        self.shared.garbage.fetch_add(garbage, Ordering::Relaxed);
    }

    fn failed(&self, error: &dyn std::error::Error, may_be_applied: bool) -> Failure {
        self.shared.poison(error);
        Failure { may_be_applied, why: error.to_string() }
    }
}

/// Reason why a batch is not known to be durable.
struct Failure {
    may_be_applied: bool,
    why: String,
}

impl Failure {
    fn error(&self) -> Error {
        if self.may_be_applied {
            Error::unavailable(format!("the embedded store could not make the write durable: {}", self.why))
        } else {
            Error::refused(format!("the embedded store takes no writes until it is opened again: {}", self.why))
        }
    }
}

/// Sends a result to a caller once it is known whether the batch failed, which may not affect it.
type Respond = Box<dyn FnOnce(Option<&Failure>)>;

/// Builds the sender of a result. `depends_on_batch` is set if the result is about a write of the
/// batch.
fn respond<T: 'static>(tx: ResultSender<T>, depends_on_batch: bool, result: Result<T, Error>) -> Respond {
    Box::new(move |failure| {
        // The caller may have been dropped.
        let _ = tx.send(match failure {
            Some(failure) if depends_on_batch && result.is_ok() => Err(failure.error()),
            _ => result,
        });
    })
}

fn reject(op: WriteOp, error: Error) -> Respond {
    match op {
        WriteOp::Insert { tx, .. } => respond(tx, false, Err(error)),
        WriteOp::Replace { tx, .. } => respond(tx, false, Err(error)),
        WriteOp::Remove { tx, .. } => respond(tx, false, Err(error)),
        WriteOp::Meta { tx, .. } => respond(tx, false, Err(error)),
    }
}

/// Batch to be written: the last write of each id and each name.
struct Batch<'a> {
    engine: &'a Engine,
    now: u64,
    boot: u64,
    slots: HashMap<RecordId, Slot>,
    named: HashMap<String, Bytes>,
}

struct Slot {
    before: Option<IndexEntry>,
    after: Option<(Bytes, IndexEntry)>,
}

impl<'a> Batch<'a> {
    fn new(engine: &'a Engine, now: u64, boot: u64) -> Self {
        Self { engine, now, boot, slots: HashMap::new(), named: HashMap::new() }
    }

    fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.named.is_empty()
    }

    /// Applies a write to the batch, on top of those before it.
    fn take(&mut self, op: WriteOp) -> Respond {
        match op {
            WriteOp::Insert { id, row, tx } => {
                let is_written = self.slots.contains_key(&id);
                let result = self.insert(id, row);
                let depends_on_batch = is_written || matches!(result, Ok(None));
                respond(tx, depends_on_batch, result)
            }
            WriteOp::Replace { id, over, row, tx } => {
                let is_written = self.slots.contains_key(&id);
                let result = self.compare_and_swap(id, over, row);
                let depends_on_batch = is_written || matches!(result, Ok(Cas::Swapped));
                respond(tx, depends_on_batch, result)
            }
            WriteOp::Remove { id, over, tx } => {
                let is_written = self.slots.contains_key(&id);
                let result = self.remove(id, over);
                let depends_on_batch = is_written || matches!(result, Ok(true));
                respond(tx, depends_on_batch, result)
            }
            WriteOp::Meta { name, value, tx } => {
                let result = self.name(&name, value);
                let depends_on_batch = self.named.contains_key(&name);
                respond(tx, depends_on_batch, result)
            }
        }
    }

    fn insert(&mut self, id: RecordId, row: EncodedRow) -> Result<Option<StoredRecord>, Error> {
        match self.read(&id)? {
            Some(row) => Ok(Some(row.found(self.now, self.boot))),
            None => {
                self.put(id, None, Some(row));
                Ok(None)
            }
        }
    }

    fn compare_and_swap(&mut self, id: RecordId, over: Version, row: EncodedRow) -> Result<Cas, Error> {
        match self.read(&id)? {
            Some(found) if found.record.version() == over => {
                self.put(id, Some(found.entry), Some(row));
                Ok(Cas::Swapped)
            }
            other => Ok(Cas::Conflict(other.map(|row| row.found(self.now, self.boot)))),
        }
    }

    fn remove(&mut self, id: RecordId, over: Version) -> Result<bool, Error> {
        match self.read(&id)? {
            Some(row) if row.record.version() == over => {
                self.put(id, Some(row.entry), None);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn name(&mut self, name: &str, value: Bytes) -> Result<Bytes, Error> {
        if let Some(value) = self.named.get(name) {
            return Ok(value.clone());
        }
        match self.engine.named(name)? {
            Some(value) => Ok(value),
            None => {
                self.named.insert(name.to_owned(), value.clone());
                Ok(value)
            }
        }
    }

    fn read(&self, id: &RecordId) -> Result<Option<Row>, Error> {
        match self.slots.get(id) {
            None => self.engine.row(id),
            Some(slot) => slot.after.as_ref().map(|(bytes, _)| Row::read(id, bytes)).transpose(),
        }
    }

    /// Sets the new content of an id; `was` is its current entry, in the batch or before it.
    fn put(&mut self, id: RecordId, was: Option<IndexEntry>, row: Option<EncodedRow>) {
        let after = row.map(|row| row.finish(&id, self.boot, self.now));
        match self.slots.entry(id) {
            Entry::Occupied(slot) => slot.into_mut().after = after,
            Entry::Vacant(slot) => {
                slot.insert(Slot { before: was, after });
            }
        }
    }
}

fn count(census: &mut StoreStats, entry: Option<IndexEntry>, by: fn(u64, u64) -> u64) {
    let Some(entry) = entry else { return };
    let number = match entry.stage {
        PhaseKind::InFlight => &mut census.in_flight,
        PhaseKind::Completed => &mut census.completed,
        PhaseKind::Released => &mut census.released,
        PhaseKind::Unknown => &mut census.unknown,
        PhaseKind::Tombstone => &mut census.tombstones,
    };
    *number = by(*number, 1);
    census.bytes = by(census.bytes, entry.bytes + RECORD_OVERHEAD);
}

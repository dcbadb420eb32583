//! The writer: one thread that takes all waiting writes into one batch and one sync, then answers all of them.
//!
//! `fjall` applies a batch to what readers see only after its sync has succeeded (the batch asks for the sync itself, by its
//! durability), so what is found beside the writer is durable without anything being kept back.

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

use super::engine::Engine;
use super::folder::Folder;
use super::room::{Disk, Room};
use super::row::{Draft, Place, Row, STATE_KEY, State, index_key, name_key, write_named};
use super::shared::Shared;
use super::tidy;
use crate::fault;
use crate::record::{Found, Stage, Version};
use crate::secret::RecordId;
use crate::store::{Census, Error, Replaced};

/// A batch is synced at the latest when it has grown to this, so that nobody waits for the bodies of all others.
pub(super) const BATCH_BYTES_MAX: usize = 8 << 20;

/// What a record takes besides its envelope: its id, and its place in the index.
const RECORD_OVERHEAD: u64 = 32 + 41;

/// How often it is looked whether the engine has made room, which tells nobody.
const LOOK: std::time::Duration = std::time::Duration::from_millis(2);

/// `fjall` waits at four, for ever if whoever writes them is gone; so the waiting is done here, where that is noticed.
const SEALED_MEMTABLES_MAX: usize = 3;

/// A write, on its way to the writer.
pub(super) struct Write {
    pub(super) what: What,
    /// Room in the queue, until it is answered.
    pub(super) _room: OwnedSemaphorePermit,
}

pub(super) enum What {
    Insert { id: RecordId, draft: Draft, answer: Answer<Option<Found>> },
    Replace { id: RecordId, over: Version, draft: Draft, answer: Answer<Replaced> },
    Remove { id: RecordId, over: Version, answer: Answer<bool> },
    Meta { name: String, value: Bytes, answer: Answer<Bytes> },
}

type Answer<T> = oneshot::Sender<Result<T, Error>>;

impl What {
    /// Whether something new begins with it, as does not with a renewal.
    fn claims(&self) -> bool {
        match self {
            Self::Insert { draft, .. } => draft.stage == Stage::InFlight,
            Self::Replace { over, draft, .. } => draft.stage == Stage::InFlight && over.attempt != draft.attempt,
            Self::Remove { .. } => false,
            Self::Meta { .. } => true,
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Insert { draft, .. } | Self::Replace { draft, .. } => draft.len(),
            Self::Remove { .. } => 0,
            Self::Meta { value, .. } => value.len(),
        }
    }
}

pub(super) struct Writer {
    pub(super) engine: Engine,
    pub(super) shared: Arc<Shared>,
    pub(super) folder: Folder,
    pub(super) disk: Disk,
    pub(super) state: State,
    pub(super) tidy: Thread,
}

impl Writer {
    /// Makes the number of this boot durable.
    pub(super) fn begin(&mut self) -> Result<(), Error> {
        self.write_state().map_err(|failure| failure.error())
    }

    /// Runs until nobody can send any more, and all that was sent is answered.
    pub(super) fn run(mut self, mut writes: UnboundedReceiver<Write>) {
        while let Some(first) = writes.blocking_recv() {
            let mut bytes = first.what.len();
            let mut taken = vec![first];
            while bytes < BATCH_BYTES_MAX
                && let Ok(next) = writes.try_recv()
            {
                bytes += next.what.len();
                taken.push(next);
            }
            self.write(taken);
            if tidy::is_due(&self.shared) {
                self.tidy.unpark();
            }
        }
        // For the time that has passed since the last write, lest the wall clock stand behind it at the next start.
        if self.shared.check_poison().is_ok() {
            // Whatever fails, nobody waits for it.
            let _ = self.write_state();
        }
    }

    fn write_state(&mut self) -> Result<(), Failure> {
        let engine = self.engine.clone();
        self.commit(&Batch::new(&engine, self.shared.time.now(), self.shared.boot))
    }

    fn write(&mut self, taken: Vec<Write>) {
        let mut answers = Vec::with_capacity(taken.len());
        let mut rooms = Vec::with_capacity(taken.len());
        let engine = self.engine.clone();
        let mut batch = Batch::new(&engine, self.shared.time.begin_batch(), self.shared.boot);
        let bytes = taken.iter().map(|write| write.what.len() as u64 + RECORD_OVERHEAD).sum();
        let room = self.disk.room_for(bytes);
        for Write { what, _room } in taken {
            rooms.push(_room);
            answers.push(match self.shared.check_poison().and_then(|()| self.check_room(room, &what)) {
                Ok(()) => batch.take(what),
                Err(error) => refuse(what, error),
            });
        }
        // Nothing to write, nothing to sync.
        let failure = if batch.is_empty() { None } else { self.commit(&batch).err() };
        self.shared.time.end_batch();
        for answer in answers {
            answer(failure.as_ref());
        }
    }

    fn check_room(&self, room: Room, what: &What) -> Result<(), Error> {
        if room == Room::Claims || room == Room::Ends && !what.claims() {
            return Ok(());
        }
        let folder = self.shared.path.display();
        Err(Error::full(match room {
            Room::Nothing => {
                format!("the disk of {folder} is full: neither claims nor answers are kept; free some of it")
            }
            _ => format!("the disk of {folder} is nearly full: what is left is kept for answers; free some of it"),
        }))
    }

    /// Makes a batch durable, then visible.
    fn commit(&mut self, batch: &Batch<'_>) -> Result<(), Failure> {
        while self.engine.records.sealed_memtable_count() > SEALED_MEMTABLES_MAX
            || self.engine.index.sealed_memtable_count() > SEALED_MEMTABLES_MAX
            || self.engine.meta.sealed_memtable_count() > SEALED_MEMTABLES_MAX
        {
            self.engine.check().map_err(|error| self.failed(&error, false))?;
            std::thread::park_timeout(LOOK);
        }
        let mut census = self.state.census;
        for slot in batch.slots.values() {
            count(&mut census, slot.before, u64::wrapping_sub);
            count(&mut census, slot.after.as_ref().map(|(_, place)| *place), u64::wrapping_add);
        }
        let state = State { batch: self.state.batch + 1, boot: self.shared.boot, now: batch.now, census };
        let mut writes = self.engine.database.batch().durability(Some(PersistMode::SyncData));
        // First, so that of a torn batch its number is there before anything else.
        writes.insert(&self.engine.meta, STATE_KEY, state.write().as_slice());
        for (id, slot) in &batch.slots {
            match &slot.after {
                Some((bytes, _)) => writes.insert(&self.engine.records, id.0, bytes.clone()),
                None if slot.before.is_some() => writes.remove(&self.engine.records, id.0),
                None => {}
            }
            let before = slot.before.and_then(|place| index_key(&place, id));
            let after = slot.after.as_ref().and_then(|(_, place)| index_key(place, id));
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
            // It looks whether it has given up before it writes the first byte.
            let may_be_applied = !matches!(error, fjall::Error::Poisoned);
            self.failed(&error, may_be_applied)
        })?;
        fault::reach("commit-after");
        self.state = state;
        self.publish(batch);
        if let Err(error) = self.folder.acknowledge(state.batch) {
            // This batch is durable, so its callers are told so; the next would not be guarded.
            self.failed(&error, false);
        }
        Ok(())
    }

    /// Brings what is kept in memory up to what is durable now.
    fn publish(&self, batch: &Batch<'_>) {
        *self.shared.census.lock() = self.state.census;
        let mut garbage = 0;
        let mut claims = self.shared.claims.lock();
        for (id, slot) in &batch.slots {
            if let Some(before) = slot.before {
                garbage += before.bytes;
                if before.stage == Stage::InFlight {
                    claims.remove(before.due, *id);
                }
            }
            if let Some((_, after)) = slot.after
                && after.stage == Stage::InFlight
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

/// Why a batch is not known to be durable.
struct Failure {
    may_be_applied: bool,
    why: String,
}

impl Failure {
    fn error(&self) -> Error {
        if self.may_be_applied {
            Error::unavailable(format!("the store could not make it durable: {}", self.why))
        } else {
            Error::refused(format!("the store takes no writes until it is opened again: {}", self.why))
        }
    }
}

/// Tells a caller, once it is known whether the batch failed. Those whom the batch does not concern are told the same.
type Tell = Box<dyn FnOnce(Option<&Failure>)>;

/// `concerned`: the result hangs on the batch, since it is of what the batch writes.
fn tell<T: 'static>(answer: Answer<T>, concerned: bool, result: Result<T, Error>) -> Tell {
    Box::new(move |failure| {
        // Who does not wait any more has dropped the other end.
        let _ = answer.send(match failure {
            Some(failure) if concerned && result.is_ok() => Err(failure.error()),
            _ => result,
        });
    })
}

fn refuse(what: What, error: Error) -> Tell {
    match what {
        What::Insert { answer, .. } => tell(answer, false, Err(error)),
        What::Replace { answer, .. } => tell(answer, false, Err(error)),
        What::Remove { answer, .. } => tell(answer, false, Err(error)),
        What::Meta { answer, .. } => tell(answer, false, Err(error)),
    }
}

/// What is to be written: of each id and each name the last that was written to it.
struct Batch<'a> {
    engine: &'a Engine,
    now: u64,
    boot: u64,
    slots: HashMap<RecordId, Slot>,
    named: HashMap<String, Bytes>,
}

struct Slot {
    before: Option<Place>,
    after: Option<(Bytes, Place)>,
}

impl<'a> Batch<'a> {
    fn new(engine: &'a Engine, now: u64, boot: u64) -> Self {
        Self { engine, now, boot, slots: HashMap::new(), named: HashMap::new() }
    }

    fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.named.is_empty()
    }

    /// Takes a write. Those before it in the batch count as done.
    fn take(&mut self, what: What) -> Tell {
        match what {
            What::Insert { id, draft, answer } => {
                let is_written = self.slots.contains_key(&id);
                let result = self.insert(id, draft);
                let concerned = is_written || matches!(result, Ok(None));
                tell(answer, concerned, result)
            }
            What::Replace { id, over, draft, answer } => {
                let is_written = self.slots.contains_key(&id);
                let result = self.replace(id, over, draft);
                let concerned = is_written || matches!(result, Ok(Replaced::Yes));
                tell(answer, concerned, result)
            }
            What::Remove { id, over, answer } => {
                let is_written = self.slots.contains_key(&id);
                let result = self.remove(id, over);
                let concerned = is_written || matches!(result, Ok(true));
                tell(answer, concerned, result)
            }
            What::Meta { name, value, answer } => {
                let result = self.name(&name, value);
                let concerned = self.named.contains_key(&name);
                tell(answer, concerned, result)
            }
        }
    }

    fn insert(&mut self, id: RecordId, draft: Draft) -> Result<Option<Found>, Error> {
        match self.read(&id)? {
            Some(row) => Ok(Some(row.found(self.now, self.boot))),
            None => {
                self.put(id, None, Some(draft));
                Ok(None)
            }
        }
    }

    fn replace(&mut self, id: RecordId, over: Version, draft: Draft) -> Result<Replaced, Error> {
        match self.read(&id)? {
            Some(row) if row.record.version() == over => {
                self.put(id, Some(row.place), Some(draft));
                Ok(Replaced::Yes)
            }
            other => Ok(Replaced::No(other.map(|row| row.found(self.now, self.boot)))),
        }
    }

    fn remove(&mut self, id: RecordId, over: Version) -> Result<bool, Error> {
        match self.read(&id)? {
            Some(row) if row.record.version() == over => {
                self.put(id, Some(row.place), None);
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

    /// `was` is what is there, in the batch or before it.
    fn put(&mut self, id: RecordId, was: Option<Place>, draft: Option<Draft>) {
        let after = draft.map(|draft| draft.seal(&id, self.boot, self.now));
        match self.slots.entry(id) {
            Entry::Occupied(slot) => slot.into_mut().after = after,
            Entry::Vacant(slot) => {
                slot.insert(Slot { before: was, after });
            }
        }
    }
}

fn count(census: &mut Census, place: Option<Place>, by: fn(u64, u64) -> u64) {
    let Some(place) = place else { return };
    let number = match place.stage {
        Stage::InFlight => &mut census.in_flight,
        Stage::Completed => &mut census.completed,
        Stage::Released => &mut census.released,
        Stage::Unknown => &mut census.unknown,
        Stage::Tombstone => &mut census.tombstones,
    };
    *number = by(*number, 1);
    census.bytes = by(census.bytes, place.bytes + RECORD_OVERHEAD);
}

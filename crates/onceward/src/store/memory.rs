//! Store in the process's memory: bounded, sharded, lost on restart.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Cas, Error, Store, StoreFuture, StoreInfo, StoreStats};
use crate::clock::{Clock, SystemClock};
use crate::record::{PhaseKind, Record, StoredRecord, Version};
use crate::secret::RecordId;

const SHARDS: usize = 64;

/// Overhead of an entry besides its record: its slots in the map and in the due index.
const ENTRY_OVERHEAD: usize = 128;

/// Stores records in memory, up to a number of bytes.
///
/// A full store evicts the oldest tombstones, then rejects new keys.
/// It never evicts in-flight, unknown or completed records.
/// A completion is always accepted, so responses of requests in flight may exceed the bound.
///
/// ```
/// use onceward::store::{MemoryStore, Store};
///
/// let store = MemoryStore::new(64 << 20);
/// assert!(!store.info().survives_kill);
/// ```
pub struct MemoryStore {
    shards: Box<[Mutex<Shard>]>,
    meta: Mutex<BTreeMap<String, Bytes>>,
    bytes: AtomicUsize,
    bytes_max: usize,
    clock: Arc<dyn Clock>,
}

impl MemoryStore {
    /// Creates a store of about `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self::with_clock(bytes_max, Arc::new(SystemClock))
    }

    /// Creates a store with `clock` as the clock that measures ages.
    pub fn with_clock(bytes_max: usize, clock: Arc<dyn Clock>) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, meta: Mutex::default(), bytes: AtomicUsize::new(0), bytes_max, clock }
    }

    fn shard(&self, id: &RecordId) -> &Mutex<Shard> {
        &self.shards[usize::from(id.0[0]) % SHARDS]
    }

    fn insert_now(&self, id: &RecordId, record: &Record) -> Result<Option<StoredRecord>, Error> {
        let now = self.clock.now();
        let size = record.size() + ENTRY_OVERHEAD;
        let mut shard = self.shard(id).lock();
        if let Some(entry) = shard.entries.get(id) {
            return Ok(Some(entry.found(now)));
        }
        if self.bytes.load(Ordering::Relaxed) + size > self.bytes_max {
            // Tombstones of other shards are evicted with no lock held, so that two full shards
            // cannot deadlock.
            drop(shard);
            if !self.make_room(id, size) {
                return Err(Error::full("the memory store is full of keys that must not be evicted; raise its max"));
            }
            shard = self.shard(id).lock();
            if let Some(entry) = shard.entries.get(id) {
                return Ok(Some(entry.found(now)));
            }
        }
        self.bytes.fetch_add(size, Ordering::Relaxed);
        shard.insert(id, record.clone(), now);
        Ok(None)
    }

    fn replace_now(&self, id: &RecordId, over: Version, record: &Record) -> Cas {
        let now = self.clock.now();
        let mut shard = self.shard(id).lock();
        let Shard { entries, due, tombstones, counts } = &mut *shard;
        match entries.get_mut(id) {
            Some(entry) if entry.record.version() == over => {
                self.bytes.fetch_add(record.size(), Ordering::Relaxed);
                self.bytes.fetch_sub(entry.record.size(), Ordering::Relaxed);
                counts[over.stage as usize] -= 1;
                entry.record = record.clone();
                entry.written = now;
                entry.list(id, due, tombstones, counts);
                Cas::Swapped
            }
            other => Cas::Conflict(other.map(|entry| entry.found(now))),
        }
    }

    fn remove_now(&self, id: &RecordId, over: Version) -> bool {
        let mut shard = self.shard(id).lock();
        match shard.entries.get(id) {
            Some(entry) if entry.record.version() == over => {
                self.bytes.fetch_sub(shard.take(id), Ordering::Relaxed);
                true
            }
            _ => false,
        }
    }

    fn due_now(&self, limit: usize) -> Vec<(RecordId, StoredRecord)> {
        let now = self.clock.now();
        let mut due: Vec<(Duration, RecordId, StoredRecord)> = Vec::new();
        for shard in &self.shards {
            shard.lock().collect_due(now, limit, &mut due);
        }
        due.sort_by_key(|(since, id, _)| (*since, *id));
        due.truncate(limit);
        due.into_iter().map(|(_, id, found)| (id, found)).collect()
    }

    /// Evicts tombstones, oldest first within a shard, until `size` more bytes fit. Returns true if
    /// they do.
    fn make_room(&self, id: &RecordId, size: usize) -> bool {
        let first = usize::from(id.0[0]) % SHARDS;
        for at in (0..SHARDS).map(|step| (first + step) % SHARDS) {
            let mut shard = self.shards[at].lock();
            while self.bytes.load(Ordering::Relaxed) + size > self.bytes_max {
                let Some(id) = shard.tombstones.pop_front() else { break };
                if shard.entries.get(&id).is_some_and(|entry| entry.record.phase.stage() == PhaseKind::Tombstone) {
                    self.bytes.fetch_sub(shard.take(&id), Ordering::Relaxed);
                }
            }
            if self.bytes.load(Ordering::Relaxed) + size <= self.bytes_max {
                return true;
            }
        }
        false
    }
}

impl Default for MemoryStore {
    /// Creates a store of 256 MiB.
    fn default() -> Self {
        Self::new(256 << 20)
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("bytes", &self.bytes)
            .field("bytes_max", &self.bytes_max)
            .finish_non_exhaustive()
    }
}

impl Store for MemoryStore {
    fn insert<'a>(&'a self, id: &'a RecordId, record: &'a Record) -> StoreFuture<'a, Option<StoredRecord>> {
        StoreFuture::ready(self.insert_now(id, record))
    }

    fn compare_and_swap<'a>(&'a self, id: &'a RecordId, over: Version, record: &'a Record) -> StoreFuture<'a, Cas> {
        StoreFuture::ready(Ok(self.replace_now(id, over, record)))
    }

    fn get<'a>(&'a self, id: &'a RecordId) -> StoreFuture<'a, Option<StoredRecord>> {
        let now = self.clock.now();
        StoreFuture::ready(Ok(self.shard(id).lock().entries.get(id).map(|entry| entry.found(now))))
    }

    fn remove<'a>(&'a self, id: &'a RecordId, over: Version) -> StoreFuture<'a, bool> {
        StoreFuture::ready(Ok(self.remove_now(id, over)))
    }

    fn due(&self, limit: usize) -> StoreFuture<'_, Vec<(RecordId, StoredRecord)>> {
        StoreFuture::ready(Ok(self.due_now(limit)))
    }

    fn get_or_insert_meta<'a>(&'a self, name: &'a str, value: &'a [u8]) -> StoreFuture<'a, Bytes> {
        let mut meta = self.meta.lock();
        let kept = meta.entry(name.to_owned()).or_insert_with(|| Bytes::copy_from_slice(value));
        StoreFuture::ready(Ok(kept.clone()))
    }

    fn stats(&self) -> StoreFuture<'_, StoreStats> {
        let mut census = StoreStats { bytes: self.bytes.load(Ordering::Relaxed) as u64, ..StoreStats::default() };
        for shard in &self.shards {
            let counts = shard.lock().counts;
            census.in_flight += counts[PhaseKind::InFlight as usize];
            census.completed += counts[PhaseKind::Completed as usize];
            census.released += counts[PhaseKind::Released as usize];
            census.unknown += counts[PhaseKind::Unknown as usize];
            census.tombstones += counts[PhaseKind::Tombstone as usize];
        }
        StoreFuture::ready(Ok(census))
    }

    fn info(&self) -> StoreInfo {
        StoreInfo::new(
            "memory",
            false,
            false,
            "kept in this process only: a restart forgets every key, and a request that is retried after it executes again",
        )
        .in_process()
    }
}

type Due = BTreeMap<u64, Vec<RecordId>>;

#[derive(Default)]
struct Shard {
    /// Boxed, so that growing the table moves pointers, not records.
    entries: HashMap<RecordId, Box<Entry>, BuildHasherDefault<IdHasher>>,
    /// Ids by the second of their next check, which is at or before the second in which they are
    /// due.
    due: Due,
    /// Ids in the order in which they became tombstones. A hint, too.
    tombstones: VecDeque<RecordId>,
    /// Record counts, indexed by [`PhaseKind`].
    counts: [u64; 5],
}

struct Entry {
    record: Record,
    written: Duration,
    /// Second of the next check; [`NEVER`] if there is none.
    listed: u64,
}

const NEVER: u64 = u64::MAX;

/// Initial capacity of a shard, and of a second's list.
const FIRST_ENTRIES: usize = 28;
const FIRST_DUE: usize = 16;

impl Entry {
    fn found(&self, now: Duration) -> StoredRecord {
        // The clock may have been read before another thread's write.
        StoredRecord { record: Box::new(self.record.clone()), age: now.saturating_sub(self.written), owner_lost: false }
    }

    fn due(&self) -> Option<Duration> {
        self.record.due().map(|after| self.written.saturating_add(after))
    }

    /// Adds the entry to the index after a write.
    ///
    /// An entry that is checked before it is due is rescheduled then, not at each write: most
    /// claims complete long before their lease expires.
    fn list(&mut self, id: &RecordId, due: &mut Due, tombstones: &mut VecDeque<RecordId>, counts: &mut [u64; 5]) {
        let stage = self.record.phase.stage();
        counts[stage as usize] += 1;
        if stage == PhaseKind::Tombstone {
            tombstones.push_back(*id);
        }
        if let Some(at) = self.due().map(|at| at.as_secs()).filter(|at| *at < self.listed) {
            self.listed = at;
            due.entry(at).or_insert_with(|| Vec::with_capacity(FIRST_DUE)).push(*id);
        }
    }
}

impl Shard {
    fn insert(&mut self, id: &RecordId, record: Record, now: Duration) {
        if self.entries.is_empty() {
            self.entries.reserve(FIRST_ENTRIES);
        }
        let mut entry = Box::new(Entry { record, written: now, listed: NEVER });
        entry.list(id, &mut self.due, &mut self.tombstones, &mut self.counts);
        self.entries.insert(*id, entry);
    }

    /// Removes an entry, and returns its size in bytes.
    fn take(&mut self, id: &RecordId) -> usize {
        match self.entries.remove(id) {
            Some(entry) => {
                self.counts[entry.record.phase.stage() as usize] -= 1;
                // Tombstones expire roughly in order, so stale hints are dropped from the front.
                while self.tombstones.front().is_some_and(|front| !self.entries.contains_key(front)) {
                    self.tombstones.pop_front();
                }
                entry.record.size() + ENTRY_OVERHEAD
            }
            None => 0,
        }
    }

    /// Collects due records, oldest first, and reschedules those that are due later than indexed.
    fn collect_due(&mut self, now: Duration, limit: usize, due: &mut Vec<(Duration, RecordId, StoredRecord)>) {
        let Self { entries, due: lists, .. } = self;
        let (mut left, mut next) = (limit, 0);
        while left > 0
            && next <= now.as_secs()
            && let Some(second) = lists.range(next..=now.as_secs()).next().map(|(second, _)| *second)
        {
            let mut ids = lists.remove(&second).unwrap_or_default();
            ids.retain(|id| {
                let Some(entry) = entries.get_mut(id).filter(|entry| entry.listed == second) else { return false };
                let Some(at) = entry.due() else {
                    entry.listed = NEVER;
                    return false;
                };
                if at.as_secs() > second {
                    entry.listed = at.as_secs();
                    lists.entry(entry.listed).or_default().push(*id);
                    return false;
                }
                if at <= now && left > 0 {
                    left -= 1;
                    due.push((at, *id, entry.found(now)));
                }
                true
            });
            if !ids.is_empty() {
                lists.insert(second, ids);
            }
            next = second + 1;
        }
    }
}

/// Hasher for ids. They are keyed hashes, so eight of their bytes are a good hash that nobody can
/// choose.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(Ok(eight)) = bytes.get(8..16).map(<[u8; 8]>::try_from) {
            self.0 = u64::from_le_bytes(eight);
        }
    }

    fn write_usize(&mut self, _length: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

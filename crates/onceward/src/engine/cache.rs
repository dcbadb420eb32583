//! Cache of records that this process completed or read recently, which it replays without the
//! store.
//!
//! A completed record does not change until its retention ends, so a copy of it is as good as the
//! store's own: the same rule decides by its age. A copy is still used for at most [`MAX_AGE`]: a
//! store may lose data, and an operator may delete a key.

use std::sync::Arc;
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::Cache as Table;

use crate::record::{Phase, Record, Retained, StoredRecord};
use crate::secret::RecordId;

/// Longest time for which a copy is used without reading the store.
const MAX_AGE: Duration = Duration::from_secs(10);

/// Size of a copy besides its record, in bytes: its entries in the table, and its age.
const ENTRY_OVERHEAD: usize = 160;

/// Typical size of a copy, in bytes, for the initial capacity of the table.
const ENTRY_TYPICAL: usize = 2048;

/// Copies of completed records whose whole response is stored. The least used ones are evicted when
/// the cache is full.
pub(super) struct Cache {
    copies: Table<RecordId, Arc<Copy>, BySize>,
}

struct Copy {
    record: Record,
    /// Time of the read, by the process's clock, and the record's age then.
    read: Duration,
    age: Duration,
}

#[derive(Clone)]
struct BySize;

impl Weighter<RecordId, Arc<Copy>> for BySize {
    fn weight(&self, _: &RecordId, copy: &Arc<Copy>) -> u64 {
        (copy.record.size() + ENTRY_OVERHEAD) as u64
    }
}

impl Cache {
    /// Creates a cache of at most about `bytes_max` bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { copies: Table::with_weighter(bytes_max / ENTRY_TYPICAL, bytes_max as u64, BySize) }
    }

    /// Returns a completed record, as the store would return it at `now`.
    pub(super) fn get(&self, id: &RecordId, now: Duration) -> Option<StoredRecord> {
        let copy = self.copies.get(id)?;
        let since = now.saturating_sub(copy.read);
        if since >= MAX_AGE {
            self.forget(id);
            return None;
        }
        Some(StoredRecord { record: Box::new(copy.record.clone()), age: copy.age + since, owner_lost: false })
    }

    /// Records the state of the store. A record without a whole stored response is removed from the
    /// cache.
    pub(super) fn note(&self, id: &RecordId, record: &Record, age: Duration, now: impl FnOnce() -> Duration) {
        match &record.phase {
            Phase::Completed { kept: Retained::Response(_), .. } => {
                self.copies.insert(*id, Arc::new(Copy { record: record.clone(), read: now(), age }));
            }
            _ => self.forget(id),
        }
    }

    /// Removes the copy of a record that was deleted from the store.
    pub(super) fn forget(&self, id: &RecordId) {
        self.copies.remove(id);
    }
}

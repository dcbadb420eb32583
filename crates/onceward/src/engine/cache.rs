//! What this process completed or read a moment ago, told again without the store.
//!
//! A completed record does not change until its retention ends, so that a copy of it is as good as the store's own: the
//! same rule judges it, by its age. It is believed for [`BELIEVED`] all the same, and no longer: a store may lose its memory,
//! and an operator may forget a key.

use std::sync::Arc;
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::Cache as Table;

use crate::record::{Phase, Record, Retained, StoredRecord};
use crate::secret::RecordId;

/// How long a copy is believed without asking the store.
const MAX_AGE: Duration = Duration::from_secs(10);

/// What a copy takes besides its record, in bytes: its places in the table, and what is said of its age.
const ENTRY_OVERHEAD: usize = 160;

/// What a copy takes on average, in bytes, for the table's first size.
const ENTRY_TYPICAL: usize = 2048;

/// Copies of completed records, whose answers are kept whole. What is used least goes where there is no room.
pub(super) struct Cache {
    copies: Table<RecordId, Arc<Copy>, BySize>,
}

struct Copy {
    record: Record,
    /// When it was read, by the process's clock, and how old it was then.
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
    /// A cache of at most about `bytes_max` bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { copies: Table::with_weighter(bytes_max / ENTRY_TYPICAL, bytes_max as u64, BySize) }
    }

    /// What is completed, as the store would tell it at `now`.
    pub(super) fn get(&self, id: &RecordId, now: Duration) -> Option<StoredRecord> {
        let copy = self.copies.get(id)?;
        let since = now.saturating_sub(copy.read);
        if since >= MAX_AGE {
            self.forget(id);
            return None;
        }
        Some(StoredRecord { record: Box::new(copy.record.clone()), age: copy.age + since, owner_lost: false })
    }

    /// Takes note of what is in the store; what is not an answer that is kept whole is no longer told.
    pub(super) fn note(&self, id: &RecordId, record: &Record, age: Duration, now: impl FnOnce() -> Duration) {
        match &record.phase {
            Phase::Completed { kept: Retained::Response(_), .. } => {
                self.copies.insert(*id, Arc::new(Copy { record: record.clone(), read: now(), age }));
            }
            _ => self.forget(id),
        }
    }

    /// It is gone from the store.
    pub(super) fn forget(&self, id: &RecordId) {
        self.copies.remove(id);
    }
}

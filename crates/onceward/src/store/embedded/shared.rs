//! State shared by callers, the writer and the compactor.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::{Mutex, RwLock};

use super::engine::Engine;
use super::time::Time;
use crate::secret::RecordId;
use crate::store::{Error, StoreStats};

pub(super) struct Shared {
    pub(super) path: PathBuf,
    pub(super) time: Time,
    /// Number of this opening of the directory.
    pub(super) boot: u64,
    /// Reason why writes are rejected, if they are.
    pub(super) poison: OnceLock<String>,
    pub(super) claims: Mutex<Claims>,
    pub(super) census: Mutex<StoreStats>,
    /// Lower bound on due times in the index.
    pub(super) due_from: AtomicU64,
    /// Bytes in the engine that are no longer reachable.
    pub(super) garbage: AtomicU64,
    /// Engine for readers on other threads; `None` once the store is closed.
    pub(super) engine: RwLock<Option<Engine>>,
    pub(super) closing: AtomicBool,
}

impl Shared {
    /// Rejects all writes from now on. After a failed sync the pages count as clean, so a retry
    /// would prove nothing.
    pub(super) fn poison(&self, why: &dyn std::fmt::Display) {
        let why = why.to_string();
        tracing::error!(directory = %self.path.display(), why, "embedded store rejects writes until it is opened again");
        // The first reason is the root cause.
        let _ = self.poison.set(why);
    }

    pub(super) fn check_poison(&self) -> Result<(), Error> {
        match self.poison.get() {
            None => Ok(()),
            Some(why) => Err(Error::refused(format!(
                "the store in {} takes no writes until it is opened again, because a write failed: {why}",
                self.path.display()
            ))),
        }
    }
}

/// Claims by due time. They are few: one per request in flight.
#[derive(Default)]
pub(super) struct Claims {
    live: BTreeSet<(u64, RecordId)>,
    /// Claims of earlier boots, whose owners are lost.
    orphans: BTreeSet<(u64, RecordId)>,
}

impl Claims {
    pub(super) fn adopt(&mut self, due: u64, id: RecordId) {
        self.orphans.insert((due, id));
    }

    pub(super) fn insert(&mut self, due: u64, id: RecordId) {
        self.live.insert((due, id));
    }

    pub(super) fn remove(&mut self, due: u64, id: RecordId) {
        if !self.live.remove(&(due, id)) {
            self.orphans.remove(&(due, id));
        }
    }

    /// Returns the claims that are due at `now` or orphaned, oldest first.
    pub(super) fn due(&self, now: u64) -> Vec<(u64, RecordId)> {
        let overdue = self.live.range(..=(now, RecordId([0xff; 32])));
        let mut due: Vec<_> = overdue.chain(&self.orphans).copied().collect();
        due.sort_unstable();
        due
    }
}

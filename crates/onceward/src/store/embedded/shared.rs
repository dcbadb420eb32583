//! What the callers, the writer and the tidying share.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64};

use parking_lot::{Mutex, RwLock};

use super::engine::Engine;
use super::time::Time;
use crate::secret::RecordId;
use crate::store::{Census, Error};

pub(super) struct Shared {
    pub(super) path: PathBuf,
    pub(super) time: Time,
    /// Which opening of the folder this is.
    pub(super) boot: u64,
    /// Why no writes are taken any more.
    pub(super) poison: OnceLock<String>,
    pub(super) claims: Mutex<Claims>,
    pub(super) census: Mutex<Census>,
    /// Nothing in the index is due before this.
    pub(super) due_from: AtomicU64,
    /// Bytes in the engine that nobody can find any more.
    pub(super) garbage: AtomicU64,
    /// The engine for readers on other threads; empty once the store is closed.
    pub(super) engine: RwLock<Option<Engine>>,
    pub(super) closing: AtomicBool,
}

impl Shared {
    /// No writes from now on. After a failed sync the pages count as clean, so that to try again would prove nothing.
    pub(super) fn poison(&self, why: &dyn std::fmt::Display) {
        let why = why.to_string();
        tracing::error!(folder = %self.path.display(), why, "the store takes no writes until it is opened again");
        // The first reason is the one that tells.
        let _ = self.poison.set(why);
    }

    pub(super) fn check_poison(&self) -> Result<(), Error> {
        match self.poison.get() {
            None => Ok(()),
            Some(why) => Err(Error::refused(format!(
                "the store in {} takes no writes until it is opened again, since one failed: {why}",
                self.path.display()
            ))),
        }
    }
}

/// All claims, by when they are due. They are few: as many as requests are being executed.
#[derive(Default)]
pub(super) struct Claims {
    live: BTreeSet<(u64, RecordId)>,
    /// Those of earlier boots, whose holders are gone.
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

    /// Those about which something is to be done by `now`, the oldest first.
    pub(super) fn due(&self, now: u64) -> Vec<(u64, RecordId)> {
        let overdue = self.live.range(..=(now, RecordId([0xff; 32])));
        let mut due: Vec<_> = overdue.chain(&self.orphans).copied().collect();
        due.sort_unstable();
        due
    }
}

//! The store's time: it never goes back, neither while the folder is open nor over a restart.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::row::nanos;
use crate::clock::Clock;

/// Nanoseconds since 1970, as the wall clock told when the folder was opened, and by the monotonic clock from there. Where
/// the wall clock stood behind what the store had told before, it goes on from that: ages say less then, not more.
#[derive(Debug)]
pub(super) struct Time {
    clock: Arc<dyn Clock>,
    opened: Duration,
    base: u64,
    /// When the batch that is being written took its time.
    writing: Mutex<Option<u64>>,
}

impl Time {
    pub(super) fn new(clock: Arc<dyn Clock>, told_before: u64) -> Self {
        let base = nanos(clock.wall()).max(told_before);
        Self { opened: clock.now(), base, clock, writing: Mutex::new(None) }
    }

    pub(super) fn now(&self) -> u64 {
        self.base.saturating_add(nanos(self.clock.now().saturating_sub(self.opened)))
    }

    /// The time of a batch that begins.
    pub(super) fn begin_batch(&self) -> u64 {
        let mut writing = self.writing.lock();
        let now = self.now();
        *writing = Some(now);
        now
    }

    pub(super) fn end_batch(&self) {
        *self.writing.lock() = None;
    }

    /// Now, and the earliest time that what is not to be seen yet may have been written at.
    pub(super) fn glance(&self) -> (u64, u64) {
        let writing = self.writing.lock();
        let now = self.now();
        (now, writing.unwrap_or(now))
    }
}

//! Clock of the store: it never goes back, neither while the directory is open nor across a
//! restart.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::row::nanos;
use crate::clock::Clock;

/// Clock in nanoseconds since 1970: the wall clock at opening, then the monotonic clock.
///
/// If the wall clock is behind the last time used, it continues from that, so ages err on the young
/// side.
#[derive(Debug)]
pub(super) struct Time {
    clock: Arc<dyn Clock>,
    opened: Duration,
    base: u64,
    /// Time of the batch that is being written.
    writing: Mutex<Option<u64>>,
}

impl Time {
    pub(super) fn new(clock: Arc<dyn Clock>, last_used: u64) -> Self {
        let base = nanos(clock.wall()).max(last_used);
        Self { opened: clock.now(), base, clock, writing: Mutex::new(None) }
    }

    pub(super) fn now(&self) -> u64 {
        self.base.saturating_add(nanos(self.clock.now().saturating_sub(self.opened)))
    }

    /// Returns the time of a batch that begins.
    pub(super) fn begin_batch(&self) -> u64 {
        let mut writing = self.writing.lock();
        let now = self.now();
        *writing = Some(now);
        now
    }

    pub(super) fn end_batch(&self) {
        *self.writing.lock() = None;
    }

    /// Returns the current time, and the earliest time at which invisible writes may have been
    /// made.
    pub(super) fn now_and_watermark(&self) -> (u64, u64) {
        let writing = self.writing.lock();
        let now = self.now();
        (now, writing.unwrap_or(now))
    }
}

//! Record counts for metrics.
//!
//! Counting a large table takes long, so it runs in a task and over a connection of its own.
//! Callers meanwhile get the last counts.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::pool::Pool;
use super::statements::COUNT;
use crate::store::{Error, StoreStats};

/// Inverse of the share of time spent on counting: one second in twenty.
const PERIOD_FACTOR: u32 = 20;

/// Number of records up to which every call counts: it takes a few milliseconds even on a busy
/// machine.
const ALWAYS_COUNTED_MAX: u64 = 10_000;

/// Upper bound on the time that a caller waits for a running count.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Minimum age up to which the last counts are returned, however long a count takes.
const STALE: Duration = Duration::from_secs(60);

/// Caches the counts, and runs one count at a time.
#[derive(Debug)]
pub(super) struct StatsCounter {
    pool: Pool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Counted>,
    /// Error of the last count, if it failed.
    failed: Option<Error>,
    running: Option<Running>,
}

#[derive(Clone, Debug)]
struct Running {
    began: Instant,
    /// Closed when the task ends, however that happens.
    end: watch::Receiver<()>,
}

#[derive(Clone, Copy, Debug)]
struct Counted {
    census: StoreStats,
    at: Instant,
    took: Duration,
}

impl StatsCounter {
    pub(super) fn new(pool: Pool) -> Arc<Self> {
        Arc::new(Self { pool, state: Mutex::default() })
    }

    /// Returns the current counts, or recent ones.
    pub(super) async fn stats(self: &Arc<Self>, timeout: Duration) -> Result<StoreStats, Error> {
        let called = Instant::now();
        loop {
            let mut running = {
                let mut state = self.state.lock();
                if let Some(counted) = state.last.filter(Counted::is_recent) {
                    return Ok(counted.census);
                }
                match state.running.clone().filter(Running::is_running) {
                    Some(running) => running,
                    None => self.begin(&mut state),
                }
            };
            // Dropping the caller does not cancel the count.
            // A count that was already running when we were called may miss recent writes, so small
            // tables are counted again.
            let waited = timeout_at(called + WAIT_MAX.min(timeout / 2), running.end.changed()).await;
            if waited.is_err() || running.began >= called {
                return self.state.lock().result();
            }
        }
    }

    fn begin(self: &Arc<Self>, state: &mut State) -> Running {
        let (end, ends) = watch::channel(());
        let running = Running { began: Instant::now(), end: ends };
        state.running = Some(running.clone());
        state.failed = None;
        let stats = Arc::clone(self);
        tokio::spawn(async move {
            let _end = end;
            let counted = stats.count().await;
            let mut state = stats.state.lock();
            match counted {
                Ok(counted) => state.last = Some(counted),
                Err(error) => state.failed = Some(error),
            }
        });
        running
    }

    async fn count(&self) -> Result<Counted, Error> {
        let began = Instant::now();
        let mut census = StoreStats::default();
        for row in super::run_over(&self.pool, COUNT, &[]).await? {
            let (stage, count, bytes): (i16, i64, i64) = (row.get(0), row.get(1), row.get(2));
            let count = u64::try_from(count).unwrap_or(0);
            match stage {
                1 => census.in_flight = count,
                2 => census.completed = count,
                3 => census.released = count,
                4 => census.unknown = count,
                _ => census.tombstones = count,
            }
            // Approximate size of a row's header and its other columns.
            census.bytes += u64::try_from(bytes).unwrap_or(0) + count * 128;
        }
        Ok(Counted { census, at: Instant::now(), took: began.elapsed() })
    }
}

impl Running {
    fn is_running(&self) -> bool {
        self.end.has_changed().is_ok()
    }
}

impl State {
    fn result(&self) -> Result<StoreStats, Error> {
        match (&self.failed, &self.last) {
            (Some(error), _) => Err(error.clone()),
            (None, Some(last)) if last.is_fresh() => Ok(last.census),
            (None, Some(last)) => Err(Error::unavailable(format!(
                "counting the records takes long; the last counts are {} s old",
                last.at.elapsed().as_secs()
            ))),
            (None, None) => {
                Err(Error::unavailable("the records are being counted for the first time, which takes long"))
            }
        }
    }
}

impl Counted {
    /// Returns true if it is too early to count again.
    fn is_recent(&self) -> bool {
        let StoreStats { in_flight, completed, released, unknown, tombstones, .. } = self.census;
        let records = in_flight + completed + released + unknown + tombstones;
        records > ALWAYS_COUNTED_MAX && self.at.elapsed() < self.took * PERIOD_FACTOR
    }

    /// Returns true if the counts are not too old for a gauge.
    fn is_fresh(&self) -> bool {
        self.at.elapsed() < STALE.max(self.took * PERIOD_FACTOR * 2)
    }
}

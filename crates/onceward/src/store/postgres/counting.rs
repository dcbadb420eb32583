//! Counting what is there, which takes long on a large table: in a task and over a connection of its own, so that nothing waits
//! behind it. Whoever asks meanwhile hears what was counted last.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::lanes::Lanes;
use super::statements::COUNT;
use crate::store::{Census, Error};

/// Counting takes at most this part of the time: one second in twenty.
const COUNTING: u32 = 20;

/// So many records are counted whenever somebody asks: that takes a few milliseconds, however busy the machine is.
const FEW: u64 = 10_000;

/// How long whoever asks waits for what is being counted, where the store has so much time or more.
const WAIT: Duration = Duration::from_secs(1);

/// As long as it is no older, what was counted last is told, however long another count takes.
const STALE: Duration = Duration::from_secs(60);

/// What was counted, and whoever counts.
#[derive(Debug)]
pub(super) struct Counting {
    lanes: Lanes,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Counted>,
    /// Why the last count failed, if it did.
    failed: Option<Error>,
    running: Option<Running>,
}

#[derive(Clone, Debug)]
struct Running {
    began: Instant,
    /// Closed by the task that counts, however that ends.
    end: watch::Receiver<()>,
}

#[derive(Clone, Copy, Debug)]
struct Counted {
    census: Census,
    at: Instant,
    took: Duration,
}

impl Counting {
    pub(super) fn new(lanes: Lanes) -> Arc<Self> {
        Arc::new(Self { lanes, state: Mutex::default() })
    }

    /// How many there are: as counted just now, or some time ago.
    pub(super) async fn census(self: &Arc<Self>, patience: Duration) -> Result<Census, Error> {
        let asked = Instant::now();
        loop {
            let mut running = {
                let mut state = self.state.lock();
                if let Some(counted) = state.last.filter(Counted::is_recent) {
                    return Ok(counted.census);
                }
                match state.running.clone().filter(Running::goes_on) {
                    Some(running) => running,
                    None => self.begin(&mut state),
                }
            };
            // Whoever does not wait for the end ends no count. One that began earlier may not know what was written since: where
            // there are few, another one does.
            let waited = timeout_at(asked + WAIT.min(patience / 2), running.end.changed()).await;
            if waited.is_err() || running.began >= asked {
                return self.state.lock().told();
            }
        }
    }

    fn begin(self: &Arc<Self>, state: &mut State) -> Running {
        let (end, ends) = watch::channel(());
        let running = Running { began: Instant::now(), end: ends };
        state.running = Some(running.clone());
        state.failed = None;
        let counting = Arc::clone(self);
        tokio::spawn(async move {
            let _end = end;
            let counted = counting.count().await;
            let mut state = counting.state.lock();
            match counted {
                Ok(counted) => state.last = Some(counted),
                Err(error) => state.failed = Some(error),
            }
        });
        running
    }

    async fn count(&self) -> Result<Counted, Error> {
        let began = Instant::now();
        let mut census = Census::default();
        for row in super::run_over(&self.lanes, COUNT, &[]).await? {
            let (stage, count, bytes): (i16, i64, i64) = (row.get(0), row.get(1), row.get(2));
            let count = u64::try_from(count).unwrap_or(0);
            match stage {
                1 => census.in_flight = count,
                2 => census.completed = count,
                3 => census.released = count,
                4 => census.unknown = count,
                _ => census.tombstones = count,
            }
            // A row's head and its other columns.
            census.bytes += u64::try_from(bytes).unwrap_or(0) + count * 128;
        }
        Ok(Counted { census, at: Instant::now(), took: began.elapsed() })
    }
}

impl Running {
    fn goes_on(&self) -> bool {
        self.end.has_changed().is_ok()
    }
}

impl State {
    fn told(&self) -> Result<Census, Error> {
        match (&self.failed, &self.last) {
            (Some(error), _) => Err(error.clone()),
            (None, Some(last)) if last.is_told() => Ok(last.census),
            (None, Some(last)) => Err(Error::unavailable(format!(
                "counting takes long; what was counted last is {} s old",
                last.at.elapsed().as_secs()
            ))),
            (None, None) => Err(Error::unavailable("it is being counted for the first time, and that takes long")),
        }
    }
}

impl Counted {
    /// Whether it is too early to count again.
    fn is_recent(&self) -> bool {
        let Census { in_flight, completed, released, unknown, tombstones, .. } = self.census;
        let records = in_flight + completed + released + unknown + tombstones;
        records > FEW && self.at.elapsed() < self.took * COUNTING
    }

    /// Whether it is still of use: a gauge that stands still for ever would be a lie.
    fn is_told(&self) -> bool {
        self.at.elapsed() < STALE.max(self.took * COUNTING * 2)
    }
}

//! Clock abstraction, so that tests can control the time.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// Source of time.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Returns the time since some fixed moment. Never goes back while the process lives.
    fn now(&self) -> Duration;

    /// Returns the time since 1970 by the wall clock, which may be wrong and may jump. For hints,
    /// and for ages across a restart.
    fn wall(&self) -> Duration;

    /// Resolves once `now` has reached `until`.
    fn sleep_until(&self, until: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// System time. Under tokio's paused time (`#[tokio::test(start_paused = true)]`) this clock stops
/// and advances with tokio's, so that a test of a service needs no clock of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

/// Returns the moment that [`SystemClock::now`] counts from.
fn origin() -> Instant {
    static ORIGIN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *ORIGIN.get_or_init(Instant::now)
}

/// Longest timeout of a timer: a sleep until [`Duration::MAX`] never ends.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        // Tokio's clock, since the timers are tokio's: with two clocks, one of them stopped, each
        // loop over a timer would spin.
        tokio::time::Instant::now().into_std().saturating_duration_since(origin())
    }

    #[allow(clippy::disallowed_methods, reason = "this is the clock that all others ask")]
    fn wall(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    fn sleep_until(&self, until: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(tokio::time::sleep_until((origin() + until.min(FAR)).into()))
    }
}

/// Clock that stops until it is advanced, for tests.
///
/// ```
/// use std::time::Duration;
/// use onceward::clock::{Clock, ManualClock};
///
/// let clock = ManualClock::default();
/// let before = clock.now();
/// clock.advance(Duration::from_secs(15));
/// assert_eq!(clock.now() - before, Duration::from_secs(15));
/// ```
#[derive(Clone, Debug, Default)]
pub struct ManualClock(Arc<Mutex<Manual>>);

#[derive(Debug, Default)]
struct Manual {
    now: Duration,
    wall_ahead: i64,
    sleepers: Vec<(Duration, Waker)>,
}

impl ManualClock {
    /// Advances the clock, and wakes the sleepers that are due.
    pub fn advance(&self, by: Duration) {
        let mut manual = self.0.lock();
        manual.now += by;
        let now = manual.now;
        let (due, rest): (Vec<_>, Vec<_>) = manual.sleepers.drain(..).partition(|(until, _)| *until <= now);
        manual.sleepers = rest;
        drop(manual);
        due.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Sets the wall clock forward or back, in milliseconds, as an administrator might.
    pub fn shift_wall(&self, by_ms: i64) {
        self.0.lock().wall_ahead += by_ms;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        self.0.lock().now
    }

    fn wall(&self) -> Duration {
        let manual = self.0.lock();
        // An arbitrary date, far enough from zero for shifts into the past.
        let ms = 1_000_000_000_000_i64 + manual.now.as_millis() as i64 + manual.wall_ahead;
        Duration::from_millis(ms.max(0) as u64)
    }

    fn sleep_until(&self, until: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(ManualSleep { clock: self.clone(), until })
    }
}

struct ManualSleep {
    clock: ManualClock,
    until: Duration,
}

impl Future for ManualSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut manual = self.clock.0.lock();
        if manual.now >= self.until {
            return Poll::Ready(());
        }
        manual.sleepers.push((self.until, context.waker().clone()));
        Poll::Pending
    }
}

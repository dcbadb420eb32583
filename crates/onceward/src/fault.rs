//! Failpoints at which a test aborts or stops this process, and planted bugs by which a test
//! validates its checker.
//!
//! Both need a feature: without it [`reach`] is empty, and [`planted`] is `false` for the compiler.
//! With `failpoints`, `ONCEWARD_FAILPOINT` names the point: `claim-after@3` aborts when that point
//! is reached for the third time, `claim-after@3+20` 20 ms later, and `claim-after@3 stop` stops
//! the process there instead, until it is continued. With `planted`, `ONCEWARD_PLANTED` names the
//! bug.

/// Environment variable that names the failpoint.
pub const FAILPOINT: &str = "ONCEWARD_FAILPOINT";

/// Environment variable that names the planted bug.
pub const PLANTED: &str = "ONCEWARD_PLANTED";

/// All failpoints, in the order in which a request reaches them; then the store's.
pub const POINTS: [&str; 10] = [
    "claim-before",
    "claim-after",
    "send-before",
    "executed",
    "keep-before",
    "keep-after",
    "commit-before",
    "commit-after",
    "sweep",
    "compaction",
];

/// Marks a failpoint. Empty without the feature.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn reach(_point: &'static str) {}

/// Marks a failpoint: aborts or stops the process if it is armed.
#[cfg(feature = "failpoints")]
pub fn reach(point: &'static str) {
    armed::reach(point);
}

/// Returns true if this failpoint is armed, so that the caller makes sure to reach it.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub const fn is_armed(_point: &'static str) -> bool {
    false
}

/// Returns true if this failpoint is armed, so that the caller makes sure to reach it.
#[cfg(feature = "failpoints")]
pub fn is_armed(point: &'static str) -> bool {
    armed::order().is_some_and(|order| order.point == point)
}

/// Returns true if this bug is planted.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn planted(_bug: &'static str) -> bool {
    false
}

/// Returns true if this bug is planted.
#[cfg(feature = "planted")]
pub fn planted(bug: &'static str) -> bool {
    static NAMED: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    NAMED.get_or_init(|| std::env::var(PLANTED).ok()).as_deref() == Some(bug)
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::process::{Command, Stdio, abort, id};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    pub(super) struct Order {
        pub(super) point: String,
        turns: AtomicU32,
        later: Option<Duration>,
        stop: bool,
    }

    pub(super) fn order() -> Option<&'static Order> {
        static ORDER: OnceLock<Option<Order>> = OnceLock::new();
        ORDER.get_or_init(|| read(&std::env::var(super::FAILPOINT).ok()?)).as_ref()
    }

    fn read(text: &str) -> Option<Order> {
        let (place, stop) = text.strip_suffix(" stop").map_or((text, false), |place| (place, true));
        let (point, turn) = place.split_once('@')?;
        let (turn, later) = turn.split_once('+').map_or((turn, None), |(turn, later)| (turn, Some(later)));
        Some(Order {
            point: point.to_owned(),
            turns: AtomicU32::new(turn.parse().ok()?),
            later: later.and_then(|ms| ms.parse().ok()).map(Duration::from_millis),
            stop,
        })
    }

    pub(super) fn reach(point: &str) {
        let Some(order) = order().filter(|order| order.point == point) else { return };
        if order.turns.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |turns| turns.checked_sub(1)) != Ok(1) {
            return;
        }
        match order.later {
            // Nothing is unwound and nothing is flushed: like `kill -9`, but exactly here.
            None if !order.stop => abort(),
            None => {
                // Returns once the process has been continued.
                let _ = Command::new("kill").args(["-s", "STOP", &id().to_string()]).stdin(Stdio::null()).status();
            }
            Some(later) => drop(std::thread::spawn(move || {
                std::thread::sleep(later);
                abort()
            })),
        }
    }
}

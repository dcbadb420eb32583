//! Waiting for servers.

use std::time::{Duration, Instant};

/// Timeout of every condition.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Polls until there is a value.
pub(crate) fn poll<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(Instant::now() < until, "waited in vain for {what}");
        // waits: between two reads of the condition, so that the server gets the processor
        std::thread::sleep(Duration::from_millis(5));
    }
}

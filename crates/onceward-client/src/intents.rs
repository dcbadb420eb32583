//! Named intents that this process knows: those with an open outcome, and those that ended within a
//! day.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::intent::Keyed;

/// Time for which the name of an ended intent keeps its key.
pub(crate) const REMEMBERED: Duration = Duration::from_secs(24 * 60 * 60);

/// Upper bound on ended names in memory. The oldest one is evicted first. Open names are never
/// evicted.
const ENDED_MAX: usize = 10_000;

/// Keys by the names of their intents. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Intents(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    named: HashMap<String, Named>,
    /// Names in the order of their ends.
    ended: VecDeque<(Instant, String)>,
}

#[derive(Debug)]
struct Named {
    keyed: Keyed,
    /// Time of the end; `None` while the outcome is open.
    ended: Option<Instant>,
}

impl Intents {
    /// Returns the key of a known name, which an earlier call may have sent, or that of `new` from
    /// now on.
    pub(crate) fn begin(&self, name: &str, new: impl FnOnce() -> Keyed) -> Keyed {
        let mut table = self.0.lock();
        table.forget_old();
        if let Some(named) = table.named.get(name) {
            return Keyed { maybe_executed: true, ..named.keyed.clone() };
        }
        let keyed = new();
        table.named.insert(name.to_owned(), Named { keyed: keyed.clone(), ended: None });
        keyed
    }

    /// Adds a name that an earlier run left open, or ended `ago`.
    pub(crate) fn restore(&self, name: &str, keyed: Keyed, ended: Option<Duration>) {
        let mut table = self.0.lock();
        let ended = ended.map(|ago| Instant::now().checked_sub(ago).unwrap_or_else(Instant::now));
        table.named.insert(name.to_owned(), Named { keyed, ended });
        if let Some(at) = ended {
            table.ended.push_back((at, name.to_owned()));
        }
    }

    /// Marks a name as ended: its key stays for a day.
    pub(crate) fn end(&self, name: &str, key: &str) {
        let mut table = self.0.lock();
        let now = Instant::now();
        if let Some(named) = table.named.get_mut(name).filter(|named| named.keyed.key == key) {
            // A replay does not extend it.
            if named.ended.is_none() {
                named.ended = Some(now);
                table.ended.push_back((now, name.to_owned()));
            }
            table.forget_old();
        }
    }

    /// Releases a name, because its action was not executed, because its end was delivered and it
    /// may be used again, or because a person settled it.
    pub(crate) fn release(&self, name: &str, key: &str) {
        let mut table = self.0.lock();
        if table.named.get(name).is_some_and(|named| named.keyed.key == key) {
            table.named.remove(name);
        }
    }
}

impl Table {
    fn forget_old(&mut self) {
        while let Some((at, name)) = self.ended.front() {
            if self.ended.len() <= ENDED_MAX && at.elapsed() < REMEMBERED {
                return;
            }
            // A name that was released and used again has another end, or none.
            if self.named.get(name).is_some_and(|named| named.ended == Some(*at)) {
                self.named.remove(name);
            }
            self.ended.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intent::Digest;

    fn keyed(key: &str) -> Keyed {
        let digest = Digest::unequal();
        Keyed { key: key.into(), first_sent: String::new(), maybe_executed: false, digest }
    }

    #[tokio::test(start_paused = true)]
    async fn name_keeps_its_key_for_a_day_after_its_end() {
        let intents = Intents::default();
        assert_eq!(intents.begin("order 7", || keyed("a")).key, "a");
        let again = intents.begin("order 7", || keyed("b"));
        assert!(again.key == "a" && again.maybe_executed);
        intents.end("order 7", "a");
        tokio::time::advance(REMEMBERED - Duration::from_secs(1)).await;
        assert_eq!(intents.begin("order 7", || keyed("b")).key, "a");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(intents.begin("order 7", || keyed("b")).key, "b");
    }

    #[tokio::test]
    async fn ended_names_are_bounded_and_open_names_stay() {
        let intents = Intents::default();
        intents.begin("open", || keyed("open"));
        for number in 0..=ENDED_MAX {
            let name = number.to_string();
            intents.begin(&name, || keyed(&name));
            intents.end(&name, &name);
        }
        assert_eq!(intents.begin("open", || keyed("new")).key, "open");
        assert_eq!(intents.begin("0", || keyed("new")).key, "new", "the oldest end is forgotten");
        assert_eq!(intents.begin("1", || keyed("new")).key, "1");
    }

    #[test]
    fn released_name_gets_a_new_key() {
        let intents = Intents::default();
        intents.begin("order 7", || keyed("a"));
        intents.release("order 7", "another key");
        assert_eq!(intents.begin("order 7", || keyed("b")).key, "a");
        intents.release("order 7", "a");
        assert_eq!(intents.begin("order 7", || keyed("b")).key, "b");
    }
}

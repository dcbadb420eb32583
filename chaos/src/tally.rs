//! Counters of what was done.

use std::collections::BTreeMap;
use std::sync::Mutex;

/// Counters by name.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<BTreeMap<String, u64>>);

impl Tally {
    pub(crate) fn add(&self, name: &str) {
        let mut counts = self.0.lock().expect("nobody panics while it is held");
        match counts.get_mut(name) {
            Some(count) => *count += 1,
            None => drop(counts.insert(name.to_owned(), 1)),
        }
    }

    pub(crate) fn count(&self, name: &str) -> u64 {
        self.0.lock().expect("nobody panics while it is held").get(name).copied().unwrap_or(0)
    }

    /// Returns all counters whose names begin with `group`, without that prefix.
    pub(crate) fn group(&self, group: &str) -> Vec<(String, u64)> {
        let counts = self.0.lock().expect("nobody panics while it is held");
        counts.iter().filter_map(|(name, count)| Some((name.strip_prefix(group)?.to_owned(), *count))).collect()
    }
}

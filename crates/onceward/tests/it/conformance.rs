//! Conformance suite, run against the stores without a server.

#![cfg(any(feature = "memory", feature = "embedded"))]

use std::sync::Arc;

use onceward::clock::ManualClock;
use onceward::conformance::Subject;

#[cfg(feature = "memory")]
onceward::store_conformance!(memory, || async {
    let clock = ManualClock::default();
    let store = onceward::store::MemoryStore::with_clock(256 << 20, Arc::new(clock.clone()));
    Subject::new(Arc::new(store), clock)
});

#[cfg(feature = "embedded")]
onceward::store_conformance!(embedded, || async {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let clock = ManualClock::default();
    let store = onceward::store::EmbeddedStore::open_with(folder.path(), Arc::new(clock.clone()));
    Subject::new(Arc::new(store.expect("an empty folder")), clock).keeping(folder)
});

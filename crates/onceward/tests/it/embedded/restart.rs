//! Records and their ages after a restart.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use onceward::clock::ManualClock;
use onceward::record::{Phase, Record};
use onceward::store::{EmbeddedStore, Store};

use super::{DAY, LEASE, claim, completed, id, print, record, released};

const MINUTE: Duration = Duration::from_secs(60);

fn open(folder: &Path, clock: &ManualClock) -> EmbeddedStore {
    EmbeddedStore::open_with(folder, Arc::new(clock.clone())).unwrap()
}

async fn due(store: &EmbeddedStore) -> Vec<Record> {
    store.due(100).await.unwrap().into_iter().map(|(_, found)| *found.record).collect()
}

async fn age(store: &EmbeddedStore, n: u64) -> Duration {
    store.get(&id(n)).await.unwrap().unwrap().age
}

#[tokio::test]
async fn all_records_survive_restart() {
    let folder = tempfile::tempdir().unwrap();
    let records = [
        claim(1),
        completed(2, 0),
        completed(3, 300),
        completed(4, 4 << 20),
        released(5),
        record(6, Phase::Unknown { print: print() }),
    ];
    let store = EmbeddedStore::open(folder.path()).unwrap();
    for (n, record) in records.iter().enumerate() {
        store.insert(&id(n as u64), record).await.unwrap();
    }
    store.insert(&id(100), &claim(100)).await.unwrap();
    assert!(store.remove(&id(100), claim(100).version()).await.unwrap());
    store.get_or_insert_meta("secret", &[0x80; 32]).await.unwrap();
    let census = store.stats().await.unwrap();
    drop(store);
    for _ in 0..3 {
        let store = EmbeddedStore::open(folder.path()).unwrap();
        for (n, record) in records.iter().enumerate() {
            assert!(*store.get(&id(n as u64)).await.unwrap().unwrap().record == *record, "{n}");
        }
        assert_eq!(store.get(&id(100)).await.unwrap(), None);
        assert_eq!(store.get_or_insert_meta("secret", b"another").await.unwrap(), [0x80; 32][..]);
        assert_eq!(store.stats().await.unwrap(), census);
    }
    assert_eq!((census.in_flight, census.completed, census.released, census.unknown), (1, 3, 1, 1));
}

/// No lease has to expire: the owner is certainly lost.
#[tokio::test]
async fn claims_of_earlier_boot_are_lost_immediately() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let store = open(folder.path(), &clock);
    for n in [3, 1, 2] {
        store.insert(&id(n), &claim(n)).await.unwrap();
        clock.advance(Duration::from_millis(10));
    }
    store.insert(&id(4), &released(4)).await.unwrap();
    store.insert(&id(5), &claim(5)).await.unwrap();
    store.compare_and_swap(&id(5), claim(5).version(), &completed(5, 10)).await.unwrap();
    assert!(!store.get(&id(1)).await.unwrap().unwrap().owner_lost, "its holder is this process");
    assert_eq!(due(&store).await, []);
    drop(store);

    let store = open(folder.path(), &clock);
    store.insert(&id(6), &claim(6)).await.unwrap();
    let found = store.due(100).await.unwrap();
    assert!(found.iter().all(|(_, found)| found.owner_lost));
    assert_eq!(due(&store).await, [claim(3), claim(1), claim(2)], "all that were left, the oldest first");
    for n in 1..=3 {
        assert!(store.get(&id(n)).await.unwrap().unwrap().owner_lost);
        assert!(store.insert(&id(n), &claim(9)).await.unwrap().unwrap().owner_lost);
    }
    for n in 4..=6 {
        assert!(!store.get(&id(n)).await.unwrap().unwrap().owner_lost, "{n}");
    }
    clock.advance(Duration::from_millis(10));
    // Taken over, settled or removed, it is not due any more.
    store.compare_and_swap(&id(1), claim(1).version(), &claim(7)).await.unwrap();
    store.compare_and_swap(&id(2), claim(2).version(), &record(2, Phase::Unknown { print: print() })).await.unwrap();
    assert!(store.remove(&id(3), claim(3).version()).await.unwrap());
    assert_eq!(due(&store).await, []);
    assert!(!store.get(&id(1)).await.unwrap().unwrap().owner_lost);
    drop(store);
    let store = open(folder.path(), &clock);
    assert_eq!(due(&store).await, [claim(6), claim(7)]);
}

#[tokio::test]
async fn due_times_are_exact_across_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    // Due an hour apart, written in another order; one is removed, one is postponed.
    for hours in [5, 2, 4, 1, 3, 6] {
        let store = open(folder.path(), &clock);
        let released = record(hours, Phase::Released { keep: MINUTE * 60 * hours as u32 });
        store.insert(&id(hours), &released).await.unwrap();
    }
    let release = |hours: u64, keep: u64| record(hours, Phase::Released { keep: MINUTE * 60 * keep as u32 });
    let store = open(folder.path(), &clock);
    assert!(store.remove(&id(3), release(3, 3).version()).await.unwrap());
    store.compare_and_swap(&id(2), release(2, 2).version(), &release(2, 9)).await.unwrap();
    drop(store);
    let mut want = Vec::new();
    for hour in 1..=10 {
        let store = open(folder.path(), &clock);
        clock.advance(MINUTE * 60 - Duration::from_nanos(1));
        assert_eq!(due(&store).await, want, "just before hour {hour}");
        clock.advance(Duration::from_nanos(1));
        want.extend([1, 4, 5, 6].into_iter().filter(|n| *n == hour).map(|n| release(n, n)));
        want.extend((hour == 9).then(|| release(2, 9)));
        assert_eq!(due(&store).await, want, "at hour {hour}");
        assert_eq!(store.due(2).await.unwrap().len(), want.len().min(2));
    }
    assert_eq!(want.len(), 5);
}

#[tokio::test]
async fn wall_clock_is_ignored_while_open() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let store = open(folder.path(), &clock);
    store.insert(&id(1), &claim(1)).await.unwrap();
    for shift in [3_600_000, -86_400_000 * 400] {
        clock.shift_wall(shift);
        clock.advance(Duration::from_secs(1));
        assert_eq!(due(&store).await, []);
    }
    assert_eq!(age(&store, 1).await, Duration::from_secs(2));
    clock.advance(LEASE);
    assert_eq!(due(&store).await, [claim(1)]);
}

#[tokio::test]
async fn ages_continue_by_wall_clock_across_restart() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let store = open(folder.path(), &clock);
    store.insert(&id(1), &completed(1, 10)).await.unwrap();
    clock.advance(MINUTE);
    drop(store);
    // Another process after a reboot: its monotonic clock starts again, its wall clock continues.
    let clock = ManualClock::default();
    clock.shift_wall(10 * 60_000);
    let store = open(folder.path(), &clock);
    assert_eq!(age(&store, 1).await, MINUTE * 10);
    clock.advance(DAY);
    assert_eq!(age(&store, 1).await, MINUTE * 10 + DAY);
    assert_eq!(due(&store).await, [completed(1, 10)]);
}

/// Ages err on the young side: a record that seems too young waits, one that seems too old is lost.
#[tokio::test]
async fn wall_clock_set_back_never_increases_ages() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let store = open(folder.path(), &clock);
    store.insert(&id(1), &completed(1, 10)).await.unwrap();
    clock.advance(MINUTE);
    store.insert(&id(2), &completed(2, 10)).await.unwrap();
    clock.advance(MINUTE);
    drop(store);
    // It is set back by a year: the store's clock continues from the last time used before closing.
    clock.shift_wall(-365 * 86_400_000);
    let store = open(folder.path(), &clock);
    assert_eq!((age(&store, 1).await, age(&store, 2).await), (MINUTE * 2, MINUTE));
    store.insert(&id(3), &completed(3, 10)).await.unwrap();
    clock.advance(MINUTE);
    assert_eq!(age(&store, 3).await, MINUTE);
    drop(store);
    // A second restart adds up.
    clock.shift_wall(-365 * 86_400_000);
    let store = open(folder.path(), &clock);
    assert_eq!((age(&store, 1).await, age(&store, 3).await), (MINUTE * 3, MINUTE));
    drop(store);
    // It is correct again: records written under the wrong clock are not older than they are.
    clock.shift_wall(2 * 365 * 86_400_000 + 60_000);
    let store = open(folder.path(), &clock);
    assert_eq!((age(&store, 1).await, age(&store, 3).await), (MINUTE * 4, MINUTE * 2));
}

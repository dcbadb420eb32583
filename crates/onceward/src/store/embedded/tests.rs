//! Tests that need access to private parts: corrupt records, batches held back.

mod corruption;
#[cfg(target_os = "linux")]
mod power;
mod versions;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::EmbeddedStore;
use super::row::{claim_key, name_key};
use crate::clock::ManualClock;
use crate::fingerprint::{FIRST_VERSION, Fingerprint, Kind, Rules};
use crate::record::{AttemptId, FingerprintWithRules, Phase, Record, Version};
use crate::secret::{KeyHash, RecordId};
use crate::store::{Applied, Cas, Store};

const LEASE: Duration = Duration::from_secs(15);

fn id(n: u8) -> RecordId {
    RecordId([n; 32])
}

fn record(n: u8, phase: Phase) -> Record {
    Record { key_hash: KeyHash([n; 32]), attempt: AttemptId([n; 16]), phase }
}

fn print() -> FingerprintWithRules {
    // The construction of the records in `folder-1`.
    let rules = Rules { version: FIRST_VERSION, kind: Kind::Exact, ..Rules::default() };
    FingerprintWithRules::new(Fingerprint([7; 32]), Arc::new(rules))
}

fn claim(n: u8) -> Record {
    record(n, Phase::InFlight { print: print(), lease: LEASE, began: Duration::ZERO })
}

fn released(n: u8) -> Record {
    record(n, Phase::Released { keep: LEASE })
}

fn batches(store: &EmbeddedStore) -> u64 {
    store.engine().unwrap().state().unwrap().unwrap().batch
}

/// Flips a bit of a stored value.
fn damage(store: &EmbeddedStore, id: &RecordId, at: usize) {
    let records = &store.engine().unwrap().records;
    let mut bytes = records.get(id.0).unwrap().unwrap().to_vec();
    bytes[at] ^= 1;
    records.insert(id.0, bytes).unwrap();
}

#[tokio::test]
async fn corrupt_record_is_an_error_of_its_id() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(folder.path()).unwrap();
    store.insert(&id(1), &claim(1)).await.unwrap();
    let bytes = store.engine().unwrap().records.get(id(1).0).unwrap().unwrap();
    // Each byte of the envelope and the record.
    for at in 0..bytes.len() {
        damage(&store, &id(1), at);
        let errors = [
            store.get(&id(1)).await.unwrap_err(),
            store.insert(&id(1), &claim(2)).await.unwrap_err(),
            store.compare_and_swap(&id(1), claim(1).version(), &released(1)).await.unwrap_err(),
            store.remove(&id(1), claim(1).version()).await.unwrap_err(),
        ];
        for error in errors {
            assert!(error.is_unreadable(), "byte {at}: {error}");
            assert_eq!(error.applied(), Applied::No);
        }
        damage(&store, &id(1), at);
        assert_eq!(*store.get(&id(1)).await.unwrap().unwrap().record, claim(1));
    }
    // A record stored under another id is rejected too.
    store.engine().unwrap().records.insert(id(2).0, bytes).unwrap();
    assert!(store.get(&id(2)).await.unwrap_err().is_unreadable());
}

#[tokio::test]
async fn corrupt_named_value_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(folder.path()).unwrap();
    store.get_or_insert_meta("secret", b"value").await.unwrap();
    let meta = &store.engine().unwrap().meta;
    let bytes = meta.get(name_key("secret")).unwrap().unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.to_vec();
        damaged[at] ^= 1;
        meta.insert(name_key("secret"), damaged).unwrap();
        assert!(store.get_or_insert_meta("secret", b"another").await.unwrap_err().is_unreadable());
    }
    meta.insert(name_key("other"), bytes).unwrap();
    assert!(store.get_or_insert_meta("other", b"another").await.unwrap_err().is_unreadable());
}

#[tokio::test]
async fn corrupt_record_does_not_hide_other_due_records() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::default();
    let store = EmbeddedStore::open_with(folder.path(), Arc::new(clock.clone())).unwrap();
    for n in [1, 2] {
        store.insert(&id(n), &claim(n)).await.unwrap();
        store.insert(&id(n + 10), &released(n + 10)).await.unwrap();
        clock.advance(Duration::from_secs(1));
    }
    clock.advance(LEASE);
    damage(&store, &id(1), 60);
    damage(&store, &id(11), 60);
    for limit in [2, 10] {
        let due: Vec<_> = store.due(limit).await.unwrap().into_iter().map(|(id, _)| id).collect();
        assert_eq!(due, [id(2), id(12)]);
    }
    // Nor does it stay hidden once repaired.
    damage(&store, &id(11), 60);
    assert_eq!(store.due(1).await.unwrap()[0].0, id(11));
}

#[tokio::test]
async fn waiting_writes_share_one_batch_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let (store, start) = EmbeddedStore::prepare(folder.path(), Arc::new(ManualClock::default())).unwrap();
    let records = [claim(1), claim(2), released(1), released(2), claim(3)];
    let [one, two, one_released, two_released, three] = &records;
    let [id_1, id_2] = [id(1), id(2)];
    let mut inserts = [
        store.insert(&id_1, one),
        store.insert(&id_1, two),
        // After the swaps below.
        store.insert(&id_2, three),
    ];
    let mut replaces = [
        store.compare_and_swap(&id_1, one.version(), one_released),
        store.compare_and_swap(&id_1, one.version(), two_released),
        store.compare_and_swap(&id_1, one_released.version(), three),
    ];
    let mut remove = store.remove(&id_1, three.version());
    let mut names = [store.get_or_insert_meta("name", b"first"), store.get_or_insert_meta("name", b"second")];
    let others: Vec<_> = (100..200).map(id).collect();
    let mut crowd: Vec<_> = others.iter().map(|id| store.insert(id, one)).collect();

    inserts.iter_mut().for_each(|future| assert!(poll(Pin::new(future)).is_pending()));
    replaces.iter_mut().for_each(|future| assert!(poll(Pin::new(future)).is_pending()));
    assert!(poll(Pin::new(&mut remove)).is_pending());
    names.iter_mut().for_each(|future| assert!(poll(Pin::new(future)).is_pending()));
    crowd.iter_mut().for_each(|future| assert!(poll(Pin::new(future)).is_pending()));
    start().unwrap();

    let [first, second, third] = inserts;
    assert_eq!(first.await.unwrap(), None);
    assert_eq!(*second.await.unwrap().unwrap().record, claim(1));
    assert_eq!(third.await.unwrap(), None);
    let [first, second, third] = replaces;
    assert_eq!(first.await.unwrap(), Cas::Swapped);
    match second.await.unwrap() {
        Cas::Conflict(Some(found)) => assert_eq!(*found.record, released(1)),
        other => panic!("{other:?}"),
    }
    assert_eq!(third.await.unwrap(), Cas::Swapped);
    assert!(remove.await.unwrap());
    for name in names {
        assert_eq!(name.await.unwrap(), "first");
    }
    for future in crowd {
        assert_eq!(future.await.unwrap(), None);
    }
    // One batch for the start, and one for all writes.
    assert_eq!(batches(&store), 2);
    assert_eq!(store.get(&id_1).await.unwrap(), None);
    let census = store.stats().await.unwrap();
    assert_eq!((census.in_flight, census.released), (101, 0));
    // Records inserted and removed within the batch left nothing in the index.
    let index = &store.engine().unwrap().index;
    assert!(!index.contains_key(claim_key(&id_1)).unwrap());
    assert_eq!(index.len().unwrap(), 101);
}

#[tokio::test]
async fn operation_without_write_does_not_sync() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(folder.path()).unwrap();
    store.insert(&id(1), &claim(1)).await.unwrap();
    store.get_or_insert_meta("name", b"value").await.unwrap();
    let before = batches(&store);
    store.insert(&id(1), &claim(2)).await.unwrap();
    store.get_or_insert_meta("name", b"another").await.unwrap();
    store.get(&id(1)).await.unwrap();
    store.due(10).await.unwrap();
    let other = Version { attempt: AttemptId([9; 16]), ..claim(1).version() };
    assert!(matches!(store.compare_and_swap(&id(1), other, &released(1)).await.unwrap(), Cas::Conflict(Some(_))));
    assert_eq!(store.compare_and_swap(&id(2), other, &released(1)).await.unwrap(), Cas::Conflict(None));
    assert!(!store.remove(&id(1), other).await.unwrap());
    assert_eq!(batches(&store), before);
    store.compare_and_swap(&id(1), claim(1).version(), &released(1)).await.unwrap();
    assert_eq!(batches(&store), before + 1);
}

fn poll<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

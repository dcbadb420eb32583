//! Tests of the embedded store across restarts, kills and disk failures.

mod child;
mod disk;
mod full;
mod kill;
mod open;
mod restart;
#[cfg(unix)]
mod space;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use onceward::fingerprint::{Fingerprint, Rules};
use onceward::record::{AttemptId, FingerprintWithRules, Phase, Record, Retained};
use onceward::reply::StoredResponse;
use onceward::secret::{KeyHash, RecordId};
use onceward::store::{Cas, EmbeddedStore, Store};

const LEASE: Duration = Duration::from_secs(15);
const DAY: Duration = Duration::from_secs(86_400);

fn id(n: u64) -> RecordId {
    let mut id = [0x55; 32];
    // Spread like hashes.
    id[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    RecordId(id)
}

fn record(n: u64, phase: Phase) -> Record {
    let mut attempt = [0xa7; 16];
    attempt[..8].copy_from_slice(&n.to_be_bytes());
    Record { key_hash: KeyHash([0x81; 32]), attempt: AttemptId(attempt), phase }
}

fn print() -> FingerprintWithRules {
    FingerprintWithRules::new(Fingerprint([0x9d; 32]), Arc::new(Rules::default()))
}

fn claim(n: u64) -> Record {
    record(n, Phase::InFlight { print: print(), lease: LEASE, began: Duration::from_millis(1_700_000_000_123) })
}

fn released(n: u64) -> Record {
    record(n, Phase::Released { keep: LEASE })
}

/// Returns a completed record with a unique body of `bytes` bytes.
fn completed(n: u64, bytes: usize) -> Record {
    let body: Bytes = (0..bytes).map(|at| (n as usize + at * 7 + at / 251) as u8).collect();
    let headers = vec![("x-order".parse().expect("a name"), n.to_string().parse().expect("a value"))];
    let reply = StoredResponse { status: http::StatusCode::CREATED, headers, body, redirect: None };
    let kept = Retained::Response(Arc::new(reply));
    record(n, Phase::Completed { print: print(), kept, retention: DAY, tombstone: DAY * 30 })
}

/// The response exceeds the total capacity of the write queue.
#[tokio::test]
async fn response_of_any_size_is_stored() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = EmbeddedStore::open(folder.path()).expect("a new store");
    assert!(store.insert(&id(1), &claim(1)).await.expect("a claim").is_none());
    let (large, beside) = (completed(1, (64 << 20) + 1), claim(2));
    let (first, second) = (id(1), id(2));
    let (kept, other) =
        tokio::join!(store.compare_and_swap(&first, claim(1).version(), &large), store.insert(&second, &beside));
    assert_eq!(kept.expect("an answer"), Cas::Swapped);
    assert!(other.expect("a claim beside it").is_none());
    assert!(*store.get(&id(1)).await.expect("a look").expect("a record").record == large);
}

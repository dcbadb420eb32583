//! Records for these tests.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use onceward::fingerprint::Fingerprint;
use onceward::record::{AttemptId, FingerprintWithRules, Phase, Record, Retained};
use onceward::reply::StoredResponse;
use onceward::secret::{KeyHash, RecordId};
use onceward::store::{Error, PostgresStore, Store};
use tokio::time::{Instant, timeout};

pub(super) const LEASE: Duration = Duration::from_secs(900);

/// Time within which the store must recover after a fault.
pub(super) const HEALED: Duration = Duration::from_secs(10);

pub(super) fn id(n: usize) -> RecordId {
    // Spread over all connections.
    let mut id = [0; 32];
    id[..8].copy_from_slice(&(n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    id[8..16].copy_from_slice(&(n as u64).to_le_bytes());
    RecordId(id)
}

pub(super) fn claim(attempt: AttemptId) -> Record {
    let print = FingerprintWithRules::new(Fingerprint([7; 32]), Arc::default());
    let phase = Phase::InFlight { print, lease: LEASE, began: Duration::ZERO };
    Record { key_hash: KeyHash([1; 32]), attempt, phase }
}

pub(super) fn completed(attempt: AttemptId) -> Record {
    let reply = StoredResponse {
        status: http::StatusCode::CREATED,
        headers: Vec::new(),
        body: Bytes::from_static(b"tea"),
        redirect: None,
    };
    let print = FingerprintWithRules::new(Fingerprint([7; 32]), Arc::default());
    let (retention, tombstone) = (Duration::from_secs(86_400), Duration::from_secs(86_400));
    let phase = Phase::Completed { print, kept: Retained::Response(Arc::new(reply)), retention, tombstone };
    Record { key_hash: KeyHash([1; 32]), attempt, phase }
}

pub(super) fn unknown(attempt: AttemptId) -> Record {
    let phase = Phase::Unknown { print: FingerprintWithRules::new(Fingerprint([7; 32]), Arc::default()) };
    Record { key_hash: KeyHash([1; 32]), attempt, phase }
}

/// Claims new keys until it succeeds, each with the engine's timeout.
pub(super) async fn claims_again(store: &PostgresStore, from: usize) {
    let until = Instant::now() + HEALED;
    let mut n = from;
    loop {
        if let Ok(Ok(None)) = timeout(Duration::from_secs(2), store.insert(&id(n), &claim(AttemptId::random()))).await {
            return;
        }
        assert!(Instant::now() < until, "it does not recover");
        n += 1;
    }
}

/// Formats an error and its sources.
pub(super) fn chain(error: &Error) -> String {
    let mut line = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        line = format!("{line}: {error}");
        source = error.source();
    }
    line
}

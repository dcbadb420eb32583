//! Records as the layer writes them, of the sizes that it writes.

use std::sync::Arc;
use std::time::Duration;

use onceward::fingerprint::{Fingerprint, Rules};
use onceward::record::{AttemptId, FingerprintWithRules, Phase, Record, Retained};
use onceward::reply::StoredResponse;
use onceward::secret::KeyHash;

fn print() -> FingerprintWithRules {
    FingerprintWithRules::new(Fingerprint([1; 32]), Arc::new(Rules::default()))
}

/// A claim.
pub(crate) fn claim(attempt: AttemptId) -> Record {
    let phase = Phase::InFlight { print: print(), lease: Duration::from_secs(15), began: Duration::ZERO };
    Record { key_hash: KeyHash([2; 32]), attempt, phase }
}

/// Its answer, with a body of so many bytes.
pub(crate) fn completed(attempt: AttemptId, bytes: usize, retention: Duration, tombstone: Duration) -> Record {
    let reply = StoredResponse {
        status: http::StatusCode::CREATED,
        headers: Vec::new(),
        body: vec![4; bytes].into(),
        redirect: None,
    };
    let phase = Phase::Completed { print: print(), kept: Retained::Response(Arc::new(reply)), retention, tombstone };
    Record { key_hash: KeyHash([2; 32]), attempt, phase }
}

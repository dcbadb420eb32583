//! Records for these tests.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use onceward::fingerprint::Fingerprint;
use onceward::record::{AttemptId, FingerprintWithRules, Phase, Record, Retained};
use onceward::reply::StoredResponse;
use onceward::secret::{KeyHash, RecordId};

pub(super) const LEASE: Duration = Duration::from_secs(60);

pub(super) fn id(n: usize) -> RecordId {
    RecordId(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

pub(super) fn claim(attempt: u8) -> Record {
    let phase = Phase::InFlight { print: print(), lease: LEASE, began: Duration::ZERO };
    Record { key_hash: KeyHash([1; 32]), attempt: AttemptId([attempt; 16]), phase }
}

pub(super) fn completed(attempt: u8) -> Record {
    let reply = StoredResponse {
        status: StatusCode::CREATED,
        headers: Vec::new(),
        body: Bytes::from_static(b"{\"order\":1}"),
        redirect: None,
    };
    let day = Duration::from_secs(86_400);
    let phase = Phase::Completed {
        print: print(),
        kept: Retained::Response(Arc::new(reply)),
        retention: day,
        tombstone: day * 3,
    };
    Record { phase, ..claim(attempt) }
}

/// Returns a completed record with this retention and a body of this size.
pub(super) fn kept_for(attempt: u8, retention: Duration, body: usize) -> Record {
    let reply = StoredResponse {
        status: StatusCode::CREATED,
        headers: Vec::new(),
        body: vec![b'.'; body].into(),
        redirect: None,
    };
    let tombstone = Duration::from_secs(86_400);
    let phase = Phase::Completed { print: print(), kept: Retained::Response(Arc::new(reply)), retention, tombstone };
    Record { phase, ..claim(attempt) }
}

/// Returns the Redis key of a record.
pub(super) fn key(id: &RecordId) -> String {
    let hex: String = id.0.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("onceward:{{{hex}}}")
}

fn print() -> FingerprintWithRules {
    FingerprintWithRules::new(Fingerprint([2; 32]), Arc::default())
}

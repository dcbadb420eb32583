//! Store: one row, and four operations that take effect one after the other.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use onceward::fingerprint::{Fingerprint, Rules};
use onceward::record::{
    AttemptId, Executed, FingerprintWithRules, Phase, PhaseKind, Record, Retained, StoredRecord, Version,
};
use onceward::reply::{Head, StoredResponse};
use onceward::secret::KeyHash;

/// Duration of a lease, a retention, a tombstone and the remains of a release. All are equal, so
/// that their order depends on when the model ages the row, not on numbers.
pub const TICK: Duration = Duration::from_secs(1);

/// Compact, hashable form of a [`Record`]. Converted into a real one for each call of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    /// Request whose attempt wrote the row last.
    pub attempt: u8,
    /// Its fingerprint. A released row has one here too, unlike the real record.
    pub print: u8,
    /// Phase of the attempt.
    pub at: At,
    /// Ticks since it was written.
    pub age: u8,
}

/// [`Phase`], without the parts that are equal in all records of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "Phase documents them")]
pub enum At {
    InFlight,
    /// Response of this request, or only that there was one.
    Completed {
        answer: u8,
        whole: bool,
    },
    Released,
    Unknown,
    /// Tombstone for this number of ticks.
    Tombstone {
        keep: u8,
    },
}

/// Store operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Read the row.
    Get,
    /// Insert this row if there is none.
    Insert(Row),
    /// Replace that version by this row.
    Replace(Version, Row),
    /// Remove the row if it has that version.
    Remove(Version),
}

/// Response of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The operation was applied.
    Done,
    /// The operation was rejected, or was a read; returns the row.
    Found(Option<Row>),
}

/// Comparison of a store before it replaces a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// Compares the attempt and its phase, as the contract says.
    Version,
    /// Compares only the attempt: a broken store.
    Attempt,
    /// Compares the attempt's number, which is always the first one: a broken store.
    Number,
}

impl Op {
    /// Applies the operation.
    pub fn apply(self, row: &mut Option<Row>, compare: Compare) -> Answer {
        let matches = |over: Version| {
            row.is_some_and(|row| match compare {
                Compare::Version => row.version() == over,
                Compare::Attempt => row.version().attempt == over.attempt,
                Compare::Number => row.version().stage == over.stage,
            })
        };
        let after = match self {
            Self::Insert(put) if row.is_none() => Some(put),
            Self::Replace(over, put) if matches(over) => Some(put),
            Self::Remove(over) if matches(over) => None,
            _ => return Answer::Found(*row),
        };
        *row = after;
        Answer::Done
    }
}

impl Row {
    /// Returns a row that was just written.
    pub fn new(attempt: u8, print: u8, at: At) -> Self {
        Self { attempt, print, at, age: 0 }
    }

    /// Returns the row of a record from the rules.
    pub fn of(attempt: u8, print: u8, phase: &Phase) -> Self {
        let at = match phase {
            Phase::InFlight { .. } => At::InFlight,
            Phase::Completed { kept, .. } => {
                At::Completed { answer: answer(kept), whole: matches!(kept, Retained::Response(_)) }
            }
            Phase::Released { .. } => At::Released,
            Phase::Unknown { .. } => At::Unknown,
            Phase::Tombstone { keep, .. } => {
                At::Tombstone { keep: u8::try_from(keep.as_secs()).expect("a tombstone lasts few ticks") }
            }
        };
        Self::new(attempt, print, at)
    }

    /// Returns the record that a store would find. `gone` means that the store knows that the
    /// process that wrote the row has ended.
    pub fn found(&self, gone: bool) -> StoredRecord {
        static RULES: LazyLock<Arc<Rules>> = LazyLock::new(Arc::default);
        let print = FingerprintWithRules::new(fingerprint(self.print), RULES.clone());
        let phase = match self.at {
            At::InFlight => Phase::InFlight { print, lease: TICK, began: Duration::ZERO },
            At::Completed { answer, whole } => {
                Phase::Completed { print, kept: kept(answer, whole), retention: TICK, tombstone: TICK }
            }
            At::Released => Phase::Released { keep: TICK },
            At::Unknown => Phase::Unknown { print },
            At::Tombstone { keep } => Phase::Tombstone { print, executed: Executed::Yes, keep: TICK * u32::from(keep) },
        };
        // A lease ends by its age, or because its holder is known to be gone. The rules must treat
        // both alike.
        let gone = gone && self.at == At::InFlight && self.age > 0;
        let age = if gone { Duration::ZERO } else { TICK * u32::from(self.age) };
        let record = Record { key_hash: KeyHash([0; 32]), attempt: attempt(self.attempt), phase };
        StoredRecord { record: Box::new(record), age, owner_lost: gone }
    }

    /// Returns its version, for the next write.
    pub fn version(&self) -> Version {
        let stage = match self.at {
            At::InFlight => PhaseKind::InFlight,
            At::Completed { .. } => PhaseKind::Completed,
            At::Released => PhaseKind::Released,
            At::Unknown => PhaseKind::Unknown,
            At::Tombstone { .. } => PhaseKind::Tombstone,
        };
        Version { attempt: attempt(self.attempt), stage }
    }
}

/// Returns the attempt of a request: each makes one.
pub fn attempt(request: u8) -> AttemptId {
    AttemptId([request; 16])
}

/// Returns the fingerprint of equal requests.
pub fn fingerprint(print: u8) -> Fingerprint {
    Fingerprint([print; 32])
}

/// Returns the request of a response. Each execution responds with its own status, so that
/// responses cannot be confused.
pub fn answer(kept: &Retained) -> u8 {
    let status = match kept {
        Retained::Response(reply) => reply.status,
        Retained::HeadOnly(head) => head.status,
    };
    u8::try_from(status.as_u16() - 200).expect("an answer's status is 200 and its request")
}

fn kept(answer: u8, whole: bool) -> Retained {
    let status = StatusCode::from_u16(200 + u16::from(answer)).expect("a status below 300");
    match whole {
        true => Retained::Response(Arc::new(StoredResponse {
            status,
            headers: Vec::new(),
            body: Bytes::new(),
            redirect: None,
        })),
        false => Retained::HeadOnly(Head { status, location: None }),
    }
}

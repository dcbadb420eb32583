//! The store: one row, and four operations that take effect one after the other.

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

/// A lease, a retention, a tombstone and what stays of a release all last one tick: which of them ends first is then a
/// matter of when the model ages the row, and not of numbers.
pub const TICK: Duration = Duration::from_secs(1);

/// A [`Record`] as the model keeps it: small and hashable. It becomes a real one for each call of the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    /// The request whose attempt wrote it last.
    pub attempt: u8,
    /// Its fingerprint. What was released has one here too, which the real record forgets.
    pub print: u8,
    /// What became of it.
    pub at: At,
    /// Ticks since it was written.
    pub age: u8,
}

/// [`Phase`], without what is the same in all records of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "Phase documents them")]
pub enum At {
    InFlight,
    /// The answer of this request; or only that there was one.
    Completed {
        answer: u8,
        whole: bool,
    },
    Released,
    Unknown,
    /// For this many ticks.
    Tombstone {
        keep: u8,
    },
}

/// What is asked of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// What is there?
    Get,
    /// Put this where nothing is.
    Insert(Row),
    /// Put this over that version.
    Replace(Version, Row),
    /// Remove what is at that version.
    Remove(Version),
}

/// What the store says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was done.
    Done,
    /// It was not, or was a question; this is there.
    Found(Option<Row>),
}

/// What a store compares before it replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The attempt and where it stands, as the contract says.
    Version,
    /// The attempt alone: a broken one.
    Attempt,
    /// The attempt's number, which is always the first: a broken one.
    Number,
}

impl Op {
    /// Takes effect.
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
    /// A row as it is when it was just written.
    pub fn new(attempt: u8, print: u8, at: At) -> Self {
        Self { attempt, print, at, age: 0 }
    }

    /// The row that a record of the rule's stands for.
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

    /// What a store would find. `gone`: it knows that the process which wrote the row is dead.
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
        // A lease ends by its age or because its holder is known to be gone; the rule must take either for both.
        let gone = gone && self.at == At::InFlight && self.age > 0;
        let age = if gone { Duration::ZERO } else { TICK * u32::from(self.age) };
        let record = Record { key_hash: KeyHash([0; 32]), attempt: attempt(self.attempt), phase };
        StoredRecord { record: Box::new(record), age, owner_lost: gone }
    }

    /// Its version, for the next write.
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

/// The attempt of a request: each makes one.
pub fn attempt(request: u8) -> AttemptId {
    AttemptId([request; 16])
}

/// The fingerprint of requests that are alike.
pub fn fingerprint(print: u8) -> Fingerprint {
    Fingerprint([print; 32])
}

/// Whose answer it is. Each execution answers with a status of its own, so that answers cannot be confused.
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

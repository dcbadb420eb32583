//! Record that a store has for one (namespace, principal, key).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::fingerprint::{Details, Fingerprint, Rules};
pub use crate::problem::Executed;
use crate::reply::{Head, StoredResponse};
use crate::secret::KeyHash;

/// Id of one attempt to execute: 128 random bits, never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttemptId(pub [u8; 16]);

impl AttemptId {
    /// Generates a new id with the process's cryptographic generator.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Debug for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AttemptId({}…)", crate::secret::hex(&self.0[..4]))
    }
}

/// Record of one key in a store.
///
/// No time in it is absolute: a record contains durations, and the store returns its age.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Digest of the key alone, for operators.
    pub key_hash: KeyHash,
    /// Id of the last attempt.
    pub attempt: AttemptId,
    /// Phase of the last attempt.
    pub phase: Phase,
}

/// Phase of a key.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// The attempt is executing. Its claim is valid for `lease` from the record's last write.
    InFlight {
        /// The request.
        print: FingerprintWithRules,
        /// Longest time without a renewal.
        lease: Duration,
        /// Start of the attempt, since 1970 by the claimer's wall clock: a hint for `Retry-After`,
        /// never used for a decision.
        began: Duration,
    },
    /// The request was executed. Never changes until `retention` ends.
    Completed {
        /// The request.
        print: FingerprintWithRules,
        /// Its response, or the fact that there was one.
        kept: Retained,
        /// Retention of the response.
        retention: Duration,
        /// Time for which the key is known after that.
        tombstone: Duration,
    },
    /// The request was not executed: the key is free for any request.
    Released {
        /// Time for which this record stays, so that a late write of the attempt finds it.
        keep: Duration,
    },
    /// The request may or may not have been executed. Stays until it is settled.
    Unknown {
        /// The request.
        print: FingerprintWithRules,
    },
    /// The retention is over.
    Tombstone {
        /// The request.
        print: FingerprintWithRules,
        /// The outcome: executed or not.
        executed: Executed,
        /// Time for which the key is still known.
        keep: Duration,
    },
}

/// Fingerprint, and the rules that it was made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FingerprintWithRules {
    /// The digest.
    pub fingerprint: Fingerprint,
    /// Rules for computing the fingerprint of a retry.
    pub rules: Arc<Rules>,
    /// Details for error messages, which records of earlier versions lack.
    pub details: Option<Arc<Details>>,
}

impl FingerprintWithRules {
    /// Creates a fingerprint without details.
    pub fn new(fingerprint: Fingerprint, rules: Arc<Rules>) -> Self {
        Self { fingerprint, rules, details: None }
    }
}

/// Retained part of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retained {
    /// The whole response.
    Response(Arc<StoredResponse>),
    /// The head only: the fact that there was a response.
    HeadOnly(Head),
}

/// Version of a record, for compare-and-swap: the attempt and its phase. A store compares both, and
/// nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    /// The attempt.
    pub attempt: AttemptId,
    /// The phase.
    pub stage: PhaseKind,
}

/// Discriminant of a [`Phase`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "Phase documents them")]
pub enum PhaseKind {
    InFlight,
    Completed,
    Released,
    Unknown,
    Tombstone,
}

/// Record as a store returns it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRecord {
    /// The record. Boxed, since most writes find none, and their results are moved often.
    pub record: Box<Record>,
    /// Time since its last write, by the store's clock.
    pub age: Duration,
    /// The store knows that the process that wrote it is gone, so its lease need not be waited for.
    pub owner_lost: bool,
}

impl Record {
    /// Returns the version, for the next compare-and-swap.
    pub fn version(&self) -> Version {
        Version { attempt: self.attempt, stage: self.phase.stage() }
    }

    /// Returns the time after this write at which the sweep has to process the record, unless it is
    /// written before. `None`: never.
    pub fn due(&self) -> Option<Duration> {
        match &self.phase {
            Phase::InFlight { lease, .. } => Some(*lease),
            Phase::Completed { retention, .. } => Some(*retention),
            Phase::Released { keep } | Phase::Tombstone { keep, .. } => Some(*keep),
            Phase::Unknown { .. } => None,
        }
    }

    /// Returns the request that it was made for. A released key has none.
    pub fn print(&self) -> Option<&FingerprintWithRules> {
        match &self.phase {
            Phase::InFlight { print, .. }
            | Phase::Completed { print, .. }
            | Phase::Unknown { print }
            | Phase::Tombstone { print, .. } => Some(print),
            Phase::Released { .. } => None,
        }
    }

    /// Returns its approximate memory use, in bytes.
    pub fn size(&self) -> usize {
        let reply = match &self.phase {
            Phase::Completed { kept: Retained::Response(reply), .. } => reply.size(),
            _ => 0,
        };
        let details = self.print().and_then(|print| print.details.as_ref()).map_or(0, |details| details.size());
        size_of::<Self>() + reply + details
    }
}

impl Phase {
    /// Returns the kind of the phase.
    pub fn stage(&self) -> PhaseKind {
        match self {
            Self::InFlight { .. } => PhaseKind::InFlight,
            Self::Completed { .. } => PhaseKind::Completed,
            Self::Released { .. } => PhaseKind::Released,
            Self::Unknown { .. } => PhaseKind::Unknown,
            Self::Tombstone { .. } => PhaseKind::Tombstone,
        }
    }
}

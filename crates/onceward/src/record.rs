//! The record: what a store knows of one (namespace, principal, key).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::fingerprint::{Details, Fingerprint, Rules};
pub use crate::problem::Executed;
use crate::reply::{Head, StoredResponse};
use crate::secret::KeyHash;

/// One attempt to execute: 128 random bits, never used twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AttemptId(pub [u8; 16]);

impl AttemptId {
    /// A new one, from the process's cryptographic generator.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Debug for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AttemptId({}…)", crate::secret::hex(&self.0[..4]))
    }
}

/// What a store knows of one key.
///
/// No time in it is a moment: a record carries durations, and a store tells how old it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The digest of the key alone, for operators.
    pub key_hash: KeyHash,
    /// The last attempt.
    pub attempt: AttemptId,
    /// What became of it.
    pub phase: Phase,
}

/// Where a key stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// The attempt is executing, and is believed to for `lease` from the record's last write.
    InFlight {
        /// The request.
        print: FingerprintWithRules,
        /// How long without a sign of life.
        lease: Duration,
        /// When the attempt began, since 1970 by its claimer's wall clock: a hint for `Retry-After`, never judged.
        began: Duration,
    },
    /// It was executed. Never changes until `retention` ends.
    Completed {
        /// The request.
        print: FingerprintWithRules,
        /// Its answer, or that there was one.
        kept: Retained,
        /// How long the answer is kept.
        retention: Duration,
        /// How long the key is known after that.
        tombstone: Duration,
    },
    /// It was not executed: the key is free for any request.
    Released {
        /// How long this stays, so that a late word finds it.
        keep: Duration,
    },
    /// It may or may not have been executed. Stays until it is settled.
    Unknown {
        /// The request.
        print: FingerprintWithRules,
    },
    /// Retention is over.
    Tombstone {
        /// The request.
        print: FingerprintWithRules,
        /// Whether it was executed.
        executed: Executed,
        /// How long the key is still known.
        keep: Duration,
    },
}

/// A fingerprint and the rules it was made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FingerprintWithRules {
    /// The digest.
    pub fingerprint: Fingerprint,
    /// How a retry's is computed.
    pub rules: Arc<Rules>,
    /// What is kept besides, by records of today.
    pub details: Option<Arc<Details>>,
}

impl FingerprintWithRules {
    /// A digest without details.
    pub fn new(fingerprint: Fingerprint, rules: Arc<Rules>) -> Self {
        Self { fingerprint, rules, details: None }
    }
}

/// What is kept of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retained {
    /// All of it.
    Response(Arc<StoredResponse>),
    /// That there was one.
    HeadOnly(Head),
}

/// Which state of a record a write replaces: the attempt, and where it stood. A store compares both, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    /// The attempt.
    pub attempt: AttemptId,
    /// Where it stood.
    pub stage: PhaseKind,
}

/// [`Phase`] without what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "Phase documents them")]
pub enum PhaseKind {
    InFlight,
    Completed,
    Released,
    Unknown,
    Tombstone,
}

/// A record as a store found it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRecord {
    /// The record. Boxed, for most writes find none, and what they return is moved often.
    pub record: Box<Record>,
    /// How long ago it was last written, by the store's clock.
    pub age: Duration,
    /// The store knows that the process which wrote it is gone, so that no lease need be waited for.
    pub owner_lost: bool,
}

impl Record {
    /// The version, for the next write.
    pub fn version(&self) -> Version {
        Version { attempt: self.attempt, stage: self.phase.stage() }
    }

    /// How long after this write something is to be done about the record if nobody writes it before. `None`: never.
    pub fn due(&self) -> Option<Duration> {
        match &self.phase {
            Phase::InFlight { lease, .. } => Some(*lease),
            Phase::Completed { retention, .. } => Some(*retention),
            Phase::Released { keep } | Phase::Tombstone { keep, .. } => Some(*keep),
            Phase::Unknown { .. } => None,
        }
    }

    /// The request it was made for; a released key has none.
    pub fn print(&self) -> Option<&FingerprintWithRules> {
        match &self.phase {
            Phase::InFlight { print, .. }
            | Phase::Completed { print, .. }
            | Phase::Unknown { print }
            | Phase::Tombstone { print, .. } => Some(print),
            Phase::Released { .. } => None,
        }
    }

    /// About how much memory it takes, in bytes.
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
    /// Which phase it is.
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

//! The rule: what may be done with a key, given what a store found.
//!
//! Pure functions of what was found, what is asked and the policy. Every question that the engine, the sweep or an operator
//! has about a record is answered here, and nowhere else; `model/` explores these very functions.
//!
//! ```text
//!                   claim                       complete                         retention
//!  absent ──────────────────▶ in flight ─────────────────────▶ completed ──────────────────▶ tombstone ──▶ absent
//!  or released ◀───────────── (attempt) ◀──┐                        ▲
//!     ▲             release       │        │ takeover: a new        │ late completion by the same attempt,
//!     │                           │        │ attempt, where the     │ or settle: it ran
//!     │      lease lost, or fate  ▼        │ guarantee allows it    │
//!     └────────────────────── unknown ─────┴────────────────────────┘
//!        settle: it did not run
//! ```

use std::time::Duration;

use crate::fingerprint::Fingerprint;
use crate::policy::Guarantee;
use crate::record::{AttemptId, Executed, Phase, PhaseKind, Record, Retained, StoredRecord, Version};

/// What a record means at this moment, whoever asks.
#[derive(Clone, Debug, PartialEq)]
pub enum EffectiveState<'a> {
    /// Nothing is known, or nothing that binds: the key is free.
    Free,
    /// Its holder is believed to be alive.
    InFlight {
        /// How long since its last sign of life.
        age: Duration,
        /// How long it is still believed.
        left: Duration,
    },
    /// Its holder is lost: it may or may not have executed.
    Lost,
    /// Executed; this is kept of the answer.
    Completed(&'a Retained),
    /// Known, but no longer its answer.
    Expired(Executed),
}

/// Reads a record. Retention is looked at before all else, so that an answer is never shown longer than was promised.
pub fn effective_state(found: &StoredRecord) -> EffectiveState<'_> {
    let StoredRecord { record, age, owner_lost } = found;
    match &record.phase {
        Phase::Released { .. } => EffectiveState::Free,
        Phase::Completed { retention, tombstone, .. } if *age >= retention.saturating_add(*tombstone) => {
            EffectiveState::Free
        }
        Phase::Completed { retention, .. } if age >= retention => EffectiveState::Expired(Executed::Yes),
        Phase::Completed { kept, .. } => EffectiveState::Completed(kept),
        Phase::Tombstone { keep, .. } if age >= keep => EffectiveState::Free,
        Phase::Tombstone { executed, .. } => EffectiveState::Expired(*executed),
        Phase::Unknown { .. } => EffectiveState::Lost,
        Phase::InFlight { lease, .. } if *owner_lost || age >= lease => EffectiveState::Lost,
        Phase::InFlight { lease, .. } => EffectiveState::InFlight { age: *age, left: *lease - *age },
    }
}

/// What becomes of a request that came with a key.
#[derive(Clone, Debug, PartialEq)]
pub enum ClaimDecision<'a> {
    /// It may execute, as a new attempt that replaces what was found.
    Execute,
    /// It gets the first answer, or is told that there was one.
    Replay(&'a Retained),
    /// Another is executing.
    InFlight {
        /// How long since its last sign of life.
        age: Duration,
        /// How long it is still believed.
        left: Duration,
    },
    /// It is another request than the key's first.
    Mismatch,
    /// Nobody can tell whether the first was executed.
    Unknown,
    /// The first was executed longer ago than answers are kept.
    Expired(Executed),
}

/// A request asks to execute. `asked` is its fingerprint, by the rules of the record that was found.
pub fn claim<'a>(found: &'a StoredRecord, asked: &Fingerprint, guarantee: Guarantee) -> ClaimDecision<'a> {
    let standing = effective_state(found);
    let same = found.record.print().is_none_or(|print| print.fingerprint == *asked);
    match (standing, guarantee) {
        (EffectiveState::Free, _) => ClaimDecision::Execute,
        _ if !same => ClaimDecision::Mismatch,
        (EffectiveState::InFlight { age, left }, _) => ClaimDecision::InFlight { age, left },
        (EffectiveState::Lost, Guarantee::AtMostOnce) => ClaimDecision::Unknown,
        (EffectiveState::Lost, Guarantee::AtLeastOnce) => ClaimDecision::Execute,
        (EffectiveState::Completed(kept), _) => ClaimDecision::Replay(kept),
        (EffectiveState::Expired(executed), _) => ClaimDecision::Expired(executed),
    }
}

/// Returns the fingerprint that the request has at the target of a redirect, as long as that redirect is kept. A request with
/// the same key that has it is the redirected one, and has a record of its own.
pub fn redirect(found: &StoredRecord) -> Option<Fingerprint> {
    match effective_state(found) {
        EffectiveState::Completed(Retained::Response(reply)) => reply.redirect,
        _ => None,
    }
}

/// Returns true if an attempt that replaced this version follows one that may have executed. No response releases it: "not
/// executed" says nothing of the earlier attempt, so that the outcome stays unknown.
pub fn follows_unknown(over: Option<Version>) -> bool {
    over.is_some_and(|over| matches!(over.stage, PhaseKind::InFlight | PhaseKind::Unknown))
}

/// What becomes of the word of an attempt that ended: completed, or unknown.
#[derive(Clone, Debug, PartialEq)]
pub enum FinalizeDecision<'a> {
    /// It is written over this version.
    Write {
        /// What it replaces.
        over: Version,
        /// The attempt had been given up as released, and ran all the same: worth an auditor's look.
        audited: bool,
    },
    /// This attempt's end is already kept; the word changes nothing.
    AlreadyRecorded(&'a Record),
    /// Another attempt overtook it.
    Superseded(SupersededBy<'a>),
    /// Nothing is there. As long as no end of this attempt can have been kept and forgotten since, the store lost its memory of
    /// the claim, which nothing else deletes: to be inserted. Else refused.
    Missing,
}

/// What the client of an overtaken attempt gets.
#[derive(Clone, Debug, PartialEq)]
pub enum SupersededBy<'a> {
    /// The winner's answer, or that there was one.
    Response(&'a Retained),
    /// The winner is still executing.
    Running,
    /// The winner has no answer either: the client gets its own, marked `not-stored`.
    None,
}

/// Attempt `attempt`, of a request with fingerprint `asked`, says that it executed, with an answer.
pub fn complete<'a>(found: Option<&'a StoredRecord>, attempt: AttemptId, asked: &Fingerprint) -> FinalizeDecision<'a> {
    let Some(found) = found else { return FinalizeDecision::Missing };
    let over = found.record.version();
    match &found.record.phase {
        _ if found.record.attempt != attempt => overtaken(found, asked),
        Phase::InFlight { .. } | Phase::Unknown { .. } => FinalizeDecision::Write { over, audited: false },
        Phase::Released { .. } => FinalizeDecision::Write { over, audited: true },
        Phase::Completed { .. } | Phase::Tombstone { .. } => FinalizeDecision::AlreadyRecorded(&found.record),
    }
}

/// Attempt `attempt` says that it was interrupted after its first byte was sent.
pub fn unknown<'a>(found: Option<&'a StoredRecord>, attempt: AttemptId, asked: &Fingerprint) -> FinalizeDecision<'a> {
    let Some(found) = found else { return FinalizeDecision::Missing };
    let over = found.record.version();
    match &found.record.phase {
        _ if found.record.attempt != attempt => overtaken(found, asked),
        Phase::InFlight { .. } => FinalizeDecision::Write { over, audited: false },
        // It was declared as not executed, yet its first byte was sent: the honest state is that nobody knows.
        Phase::Released { .. } => FinalizeDecision::Write { over, audited: true },
        Phase::Unknown { .. } | Phase::Completed { .. } | Phase::Tombstone { .. } => {
            FinalizeDecision::AlreadyRecorded(&found.record)
        }
    }
}

/// Attempt `attempt` says that the answer whose head it kept, or is about to keep, was cut on its way.
pub fn truncated(found: Option<&StoredRecord>, attempt: AttemptId) -> Option<Version> {
    let found = found?;
    match &found.record.phase {
        Phase::Completed { kept: Retained::HeadOnly(_), .. } | Phase::InFlight { .. }
            if found.record.attempt == attempt =>
        {
            Some(found.record.version())
        }
        _ => None,
    }
}

/// What becomes of the word that an attempt sent nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// It is written over this version.
    Write(Version),
    /// Nothing is there: it is left as a small record, so that the claim, should it still arrive, finds the key taken.
    Insert,
    /// Nothing to do: it is released already, or the key is another attempt's.
    Done,
}

/// Attempt `attempt` says that it sent nothing, or that its status is declared as released. `over` is what its claim was to
/// replace, if it was more than an insert: a claim whose fate is not known may still arrive there.
pub fn release(found: Option<&StoredRecord>, attempt: AttemptId, over: Option<Version>) -> Release {
    let Some(found) = found else { return Release::Insert };
    let version = found.record.version();
    match &found.record.phase {
        Phase::InFlight { .. } | Phase::Unknown { .. } if version.attempt == attempt => Release::Write(version),
        // What no longer binds makes place for the claim, should it still arrive: over this very version, or by an insert
        // once the sweep has removed it.
        _ if version.attempt != attempt
            && effective_state(found) == EffectiveState::Free
            && (Some(version) == over || sweep(found) == Sweep::Forget) =>
        {
            Release::Write(version)
        }
        _ => Release::Done,
    }
}

/// What becomes of a sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renew {
    /// It is written over this version: nobody overtook the attempt, though it may have been given up.
    Write(Version),
    /// Nothing is there: the store lost its memory of the claim, which is made anew if nobody else was quicker.
    Insert,
    /// Another attempt has the key, or this one's end is kept.
    Lost,
}

/// Attempt `attempt` says that it is alive.
pub fn renew(found: Option<&StoredRecord>, attempt: AttemptId) -> Renew {
    match found {
        None => Renew::Insert,
        Some(found) if found.record.attempt == attempt => match found.record.phase {
            Phase::InFlight { .. } | Phase::Unknown { .. } => Renew::Write(found.record.version()),
            Phase::Released { .. } | Phase::Completed { .. } | Phase::Tombstone { .. } => Renew::Lost,
        },
        Some(_) => Renew::Lost,
    }
}

/// What the sweep does about a record.
#[derive(Clone, Debug, PartialEq)]
pub enum Sweep {
    /// Nothing yet.
    Leave,
    /// Its holder is lost: it is written as unknown, for the gauge and the operators. Every look says so already.
    Write(Phase),
    /// It binds nobody any more.
    Forget,
}

/// The sweep looks at a record. It never deletes a claim or an unknown.
pub fn sweep(found: &StoredRecord) -> Sweep {
    match (effective_state(found), &found.record.phase) {
        (EffectiveState::Lost, Phase::InFlight { print, .. }) => Sweep::Write(Phase::Unknown { print: print.clone() }),
        (EffectiveState::Expired(executed), Phase::Completed { print, retention, tombstone, .. }) => {
            // The tombstone ends when it was promised to, however late the sweep comes.
            let keep = retention.saturating_add(*tombstone).saturating_sub(found.age);
            Sweep::Write(Phase::Tombstone { print: print.clone(), executed, keep })
        }
        (EffectiveState::Free, Phase::Completed { .. } | Phase::Tombstone { .. }) => Sweep::Forget,
        (EffectiveState::Free, Phase::Released { keep }) if found.age >= *keep => Sweep::Forget,
        _ => Sweep::Leave,
    }
}

fn overtaken<'a>(found: &'a StoredRecord, asked: &Fingerprint) -> FinalizeDecision<'a> {
    let same = found.record.print().is_none_or(|print| print.fingerprint == *asked);
    FinalizeDecision::Superseded(match effective_state(found) {
        // Released in between, the key went to another request: its answer is not this client's to see.
        _ if !same => SupersededBy::None,
        EffectiveState::Completed(kept) => SupersededBy::Response(kept),
        EffectiveState::InFlight { .. } => SupersededBy::Running,
        EffectiveState::Free | EffectiveState::Lost | EffectiveState::Expired(_) => SupersededBy::None,
    })
}

//! Decision rules: the permitted operations on a key, given the stored record.
//!
//! Pure functions of the stored record, the request and the policy. Every question that the engine,
//! the sweep or an operator has about a record is decided here, and nowhere else. `model/` explores
//! these same functions.
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

/// State that a record is in at this moment, the same for every caller.
#[derive(Clone, Debug, PartialEq)]
pub enum EffectiveState<'a> {
    /// No record that still applies exists: the key is free.
    Free,
    /// Its holder is presumed to be alive.
    InFlight {
        /// Time since its last renewal.
        age: Duration,
        /// Time until its lease expires.
        left: Duration,
    },
    /// Its holder is lost: the request may or may not have been executed.
    Lost,
    /// Executed; carries the retained response or its head.
    Completed(&'a Retained),
    /// Executed or settled in the past; its response is no longer retained.
    Expired(Executed),
}

/// Derives the effective state of a record. Retention is checked first, so that a response is never
/// returned past its retention.
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

/// Decision for a request that has a key.
#[derive(Clone, Debug, PartialEq)]
pub enum ClaimDecision<'a> {
    /// Execute it, as a new attempt that replaces the stored record.
    Execute,
    /// Return the first response, or report that there was one.
    Replay(&'a Retained),
    /// Another attempt is executing.
    InFlight {
        /// Time since its last renewal.
        age: Duration,
        /// Time until its lease expires.
        left: Duration,
    },
    /// The request differs from the key's first request.
    Mismatch,
    /// The outcome of the first request is unknown.
    Unknown,
    /// The response's retention is over.
    Expired(Executed),
}

/// Decides a request to execute. `asked` is its fingerprint, by the rules of the stored record.
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

/// Returns the fingerprint that the request has at the target of a redirect, while that redirect is
/// stored. A request with the same key and this fingerprint is the redirected one, and has its own
/// record.
pub fn redirect(found: &StoredRecord) -> Option<Fingerprint> {
    match effective_state(found) {
        EffectiveState::Completed(Retained::Response(reply)) => reply.redirect,
        _ => None,
    }
}

/// Returns true if an attempt that replaced this version follows one that may have executed. No
/// response releases such an attempt: "not executed" says nothing about the earlier attempt, so the
/// outcome stays unknown.
pub fn follows_unknown(over: Option<Version>) -> bool {
    over.is_some_and(|over| matches!(over.stage, PhaseKind::InFlight | PhaseKind::Unknown))
}

/// Decision for the completion of an attempt, or for its unknown end.
#[derive(Clone, Debug, PartialEq)]
pub enum FinalizeDecision<'a> {
    /// Write it over this version.
    Write {
        /// The version that it replaces.
        over: Version,
        /// The attempt had been recorded as released, yet it ran: an event for the audit log.
        audited: bool,
    },
    /// The end of this attempt is already stored; nothing changes.
    AlreadyRecorded(&'a Record),
    /// Another attempt superseded it.
    Superseded(SupersededBy<'a>),
    /// No record exists. Claims are never deleted, so the store has lost data. Insert the
    /// completion, unless a completion of this attempt may already have been stored and expired;
    /// then reject it.
    Missing,
}

/// Response for the client of a superseded attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum SupersededBy<'a> {
    /// The winner's response, or the fact that there was one.
    Response(&'a Retained),
    /// The winner is still executing.
    Running,
    /// The winner has no response either: the client gets its own, marked `not-stored`.
    None,
}

/// Decides the completion of `attempt`, whose request has the fingerprint `asked`: it executed, and
/// has a response.
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

/// Decides the end of `attempt` if it was interrupted after its first byte was sent.
pub fn unknown<'a>(found: Option<&'a StoredRecord>, attempt: AttemptId, asked: &Fingerprint) -> FinalizeDecision<'a> {
    let Some(found) = found else { return FinalizeDecision::Missing };
    let over = found.record.version();
    match &found.record.phase {
        _ if found.record.attempt != attempt => overtaken(found, asked),
        Phase::InFlight { .. } => FinalizeDecision::Write { over, audited: false },
        // It was declared as not executed, yet its first byte was sent: the only correct state is
        // unknown.
        Phase::Released { .. } => FinalizeDecision::Write { over, audited: true },
        Phase::Unknown { .. } | Phase::Completed { .. } | Phase::Tombstone { .. } => {
            FinalizeDecision::AlreadyRecorded(&found.record)
        }
    }
}

/// Returns the version to replace with an unknown outcome if `attempt` has recorded, or is about to
/// record, the head of a response that was truncated.
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

/// Decision for an attempt that reports that it sent nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Write it over this version.
    Write(Version),
    /// No record exists: insert a small record, so that the claim, should it still arrive, finds
    /// the key taken.
    Insert,
    /// Nothing to do: it is released already, or the key belongs to another attempt.
    Done,
}

/// Decides the release of `attempt`, which sent nothing or whose status is declared as released.
/// `over` is the version that its claim was to replace, unless the claim was an insert: a claim
/// whose outcome is unknown may still arrive there.
pub fn release(found: Option<&StoredRecord>, attempt: AttemptId, over: Option<Version>) -> Release {
    let Some(found) = found else { return Release::Insert };
    let version = found.record.version();
    match &found.record.phase {
        Phase::InFlight { .. } | Phase::Unknown { .. } if version.attempt == attempt => Release::Write(version),
        // A record that no longer applies is replaced, for the claim may still arrive: over this
        // very version, or by an insert once the sweep has removed the record.
        _ if version.attempt != attempt
            && effective_state(found) == EffectiveState::Free
            && (Some(version) == over || sweep(found) == Sweep::Forget) =>
        {
            Release::Write(version)
        }
        _ => Release::Done,
    }
}

/// Decision for a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renew {
    /// Write it over this version: the attempt was not superseded, though it may have been marked
    /// unknown.
    Write(Version),
    /// No record exists: the store lost the claim. Insert it again, unless a concurrent request
    /// does first.
    Insert,
    /// Another attempt has the key, or the end of this one is stored.
    Lost,
}

/// Decides a renewal by `attempt`.
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

/// Decision of the sweep for a record.
#[derive(Clone, Debug, PartialEq)]
pub enum Sweep {
    /// Nothing is due yet.
    Leave,
    /// Its holder is lost: write it as unknown, for the gauge and the operators. Every read already
    /// treats it so.
    Write(Phase),
    /// The record no longer applies to any request: delete it.
    Forget,
}

/// Decides what the sweep does with a record. A claim or an unknown record is never deleted.
pub fn sweep(found: &StoredRecord) -> Sweep {
    match (effective_state(found), &found.record.phase) {
        (EffectiveState::Lost, Phase::InFlight { print, .. }) => Sweep::Write(Phase::Unknown { print: print.clone() }),
        (EffectiveState::Expired(executed), Phase::Completed { print, retention, tombstone, .. }) => {
            // The tombstone ends at the promised time, even if the sweep runs late.
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
        // The key was released in between, and went to another request: its response must not be
        // shown to this client.
        _ if !same => SupersededBy::None,
        EffectiveState::Completed(kept) => SupersededBy::Response(kept),
        EffectiveState::InFlight { .. } => SupersededBy::Running,
        EffectiveState::Free | EffectiveState::Lost | EffectiveState::Expired(_) => SupersededBy::None,
    })
}

//! The rule as tables: each row has a name, and says what was found, what is asked, and what must come of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use onceward::decide::{self, ClaimDecision, EffectiveState, FinalizeDecision, Release, Renew, SupersededBy, Sweep};
use onceward::fingerprint::Fingerprint;
use onceward::policy::Guarantee::{self, AtLeastOnce, AtMostOnce};
use onceward::record::{
    AttemptId, Executed, FingerprintWithRules, Phase, PhaseKind, Record, Retained, StoredRecord, Version,
};
use onceward::reply::{Head, StoredResponse};
use onceward::secret::KeyHash;

const TEA: Fingerprint = Fingerprint([1; 32]);
const RUM: Fingerprint = Fingerprint([2; 32]);
/// The attempt that the records below are of.
const A: AttemptId = AttemptId([0xaa; 16]);
const B: AttemptId = AttemptId([0xbb; 16]);

const LEASE: Duration = Duration::from_secs(15);
const RETENTION: Duration = Duration::from_secs(100);
const TOMBSTONE: Duration = Duration::from_secs(1000);
const KEEP: Duration = Duration::from_secs(300);

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The last moment before a duration is over.
fn before(duration: Duration) -> Duration {
    duration - Duration::from_nanos(1)
}

fn print() -> FingerprintWithRules {
    FingerprintWithRules::new(TEA, Arc::default())
}

fn whole() -> Retained {
    let reply = StoredResponse {
        status: StatusCode::CREATED,
        headers: Vec::new(),
        body: Bytes::from_static(b"made"),
        redirect: None,
    };
    Retained::Response(Arc::new(reply))
}

fn head() -> Retained {
    Retained::HeadOnly(Head { status: StatusCode::CREATED, location: Some("/orders/7".to_owned()) })
}

fn found(phase: Phase, age: Duration) -> StoredRecord {
    StoredRecord { record: Box::new(Record { key_hash: KeyHash([3; 32]), attempt: A, phase }), age, owner_lost: false }
}

fn claimed(age: Duration) -> StoredRecord {
    found(Phase::InFlight { print: print(), lease: LEASE, began: Duration::ZERO }, age)
}

fn gone(age: Duration) -> StoredRecord {
    StoredRecord { owner_lost: true, ..claimed(age) }
}

fn completed(kept: Retained, age: Duration) -> StoredRecord {
    found(Phase::Completed { print: print(), kept, retention: RETENTION, tombstone: TOMBSTONE }, age)
}

fn released(age: Duration) -> StoredRecord {
    found(Phase::Released { keep: KEEP }, age)
}

fn unknown(age: Duration) -> StoredRecord {
    found(Phase::Unknown { print: print() }, age)
}

fn tombstone(executed: Executed, age: Duration) -> StoredRecord {
    found(Phase::Tombstone { print: print(), executed, keep: TOMBSTONE }, age)
}

fn at(stage: PhaseKind) -> Version {
    Version { attempt: A, stage }
}

/// Each phase at each age that a boundary lies beside.
fn everything() -> Vec<(&'static str, StoredRecord)> {
    let forgotten = RETENTION + TOMBSTONE;
    vec![
        ("a claim, just made", claimed(Duration::ZERO)),
        ("a claim at the end of its lease", claimed(before(LEASE))),
        ("a claim whose lease is over", claimed(LEASE)),
        ("a claim whose lease was over long ago", claimed(s(1 << 40))),
        ("a claim whose holder is gone", gone(Duration::ZERO)),
        ("an answer, just kept", completed(whole(), Duration::ZERO)),
        ("an answer at the end of its retention", completed(whole(), before(RETENTION))),
        ("an answer past its retention", completed(whole(), RETENTION)),
        ("an answer at the end of its tombstone", completed(whole(), before(forgotten))),
        ("an answer past its tombstone", completed(whole(), forgotten)),
        ("a head, just kept", completed(head(), Duration::ZERO)),
        ("a head past its retention", completed(head(), RETENTION)),
        ("released, just now", released(Duration::ZERO)),
        ("released, about to be forgotten", released(before(KEEP))),
        ("released, to be forgotten", released(KEEP)),
        ("unknown, just now", unknown(Duration::ZERO)),
        ("unknown for ages", unknown(s(1 << 40))),
        ("a tombstone", tombstone(Executed::Yes, Duration::ZERO)),
        ("a tombstone about to end", tombstone(Executed::Unknown, before(TOMBSTONE))),
        ("a tombstone that ended", tombstone(Executed::Yes, TOMBSTONE)),
    ]
}

#[test]
fn what_a_record_means() {
    let (whole, head) = (whole(), head());
    for (rule, found, want) in [
        ("a claim is believed", claimed(s(0)), EffectiveState::InFlight { age: s(0), left: LEASE }),
        ("and less and less long", claimed(s(14)), EffectiveState::InFlight { age: s(14), left: s(1) }),
        (
            "until its lease is over",
            claimed(before(LEASE)),
            EffectiveState::InFlight { age: before(LEASE), left: Duration::from_nanos(1) },
        ),
        ("a lease is over when it is", claimed(LEASE), EffectiveState::Lost),
        ("a lost claim stays lost", claimed(s(1 << 40)), EffectiveState::Lost),
        ("no lease is waited for where the holder is gone", gone(s(0)), EffectiveState::Lost),
        ("an answer is shown", completed(whole.clone(), s(0)), EffectiveState::Completed(&whole)),
        ("until retention ends", completed(whole.clone(), before(RETENTION)), EffectiveState::Completed(&whole)),
        ("and not a moment longer", completed(whole.clone(), RETENTION), EffectiveState::Expired(Executed::Yes)),
        ("the key is known after that", completed(whole.clone(), before(RETENTION + TOMBSTONE)), {
            EffectiveState::Expired(Executed::Yes)
        }),
        (
            "until the tombstone ends, swept or not",
            completed(whole.clone(), RETENTION + TOMBSTONE),
            EffectiveState::Free,
        ),
        ("a head is shown alike", completed(head.clone(), before(RETENTION)), EffectiveState::Completed(&head)),
        ("and ends alike", completed(head.clone(), RETENTION), EffectiveState::Expired(Executed::Yes)),
        ("a released key is free", released(s(0)), EffectiveState::Free),
        ("however old", released(KEEP), EffectiveState::Free),
        ("an unknown is lost", unknown(s(0)), EffectiveState::Lost),
        ("for ever", unknown(s(1 << 40)), EffectiveState::Lost),
        ("a tombstone says that it ran", tombstone(Executed::Yes, s(0)), EffectiveState::Expired(Executed::Yes)),
        (
            "or that nobody knows",
            tombstone(Executed::Unknown, before(TOMBSTONE)),
            EffectiveState::Expired(Executed::Unknown),
        ),
        ("or that it did not", tombstone(Executed::No, s(0)), EffectiveState::Expired(Executed::No)),
        ("until it ends", tombstone(Executed::Yes, TOMBSTONE), EffectiveState::Free),
    ] {
        assert_eq!(decide::effective_state(&found), want, "{rule}");
    }
}

#[test]
fn a_holder_that_is_gone_matters_to_claims_alone() {
    for (rule, found) in everything() {
        let gone = StoredRecord { owner_lost: true, ..found.clone() };
        match found.record.phase {
            Phase::InFlight { .. } => assert_eq!(decide::effective_state(&gone), EffectiveState::Lost, "{rule}"),
            _ => assert_eq!(decide::effective_state(&gone), decide::effective_state(&found), "{rule}"),
        }
    }
}

#[test]
fn what_becomes_of_a_request() {
    let (whole, head) = (whole(), head());
    let running = |age: Duration| ClaimDecision::InFlight { age, left: LEASE - age };
    let expired = ClaimDecision::Expired(Executed::Yes);
    let forgotten = RETENTION + TOMBSTONE;
    for (rule, found, asked, guarantee, want) in [
        ("a duplicate of a running request does not execute", claimed(s(3)), TEA, AtMostOnce, running(s(3))),
        ("nor where running twice is harmless", claimed(s(3)), TEA, AtLeastOnce, running(s(3))),
        ("nor at the last moment of the lease", claimed(before(LEASE)), TEA, AtLeastOnce, running(before(LEASE))),
        ("a lost holder leaves an unknown", claimed(LEASE), TEA, AtMostOnce, ClaimDecision::Unknown),
        ("and is taken over where that is harmless", claimed(LEASE), TEA, AtLeastOnce, ClaimDecision::Execute),
        ("a dead process's claim is unknown at once", gone(s(0)), TEA, AtMostOnce, ClaimDecision::Unknown),
        ("and is taken over at once", gone(s(0)), TEA, AtLeastOnce, ClaimDecision::Execute),
        ("an unknown is never executed again", unknown(s(1 << 40)), TEA, AtMostOnce, ClaimDecision::Unknown),
        ("unless that is harmless", unknown(s(0)), TEA, AtLeastOnce, ClaimDecision::Execute),
        ("a retry gets the answer", completed(whole.clone(), s(0)), TEA, AtMostOnce, ClaimDecision::Replay(&whole)),
        ("whatever the guarantee", completed(whole.clone(), s(0)), TEA, AtLeastOnce, ClaimDecision::Replay(&whole)),
        (
            "until retention ends",
            completed(whole.clone(), before(RETENTION)),
            TEA,
            AtMostOnce,
            ClaimDecision::Replay(&whole),
        ),
        ("or that there was one", completed(head.clone(), s(0)), TEA, AtMostOnce, ClaimDecision::Replay(&head)),
        ("after retention it is not executed", completed(whole.clone(), RETENTION), TEA, AtMostOnce, expired.clone()),
        ("not even where that is harmless", completed(whole.clone(), RETENTION), TEA, AtLeastOnce, expired.clone()),
        ("until the tombstone ends", completed(whole.clone(), before(forgotten)), TEA, AtMostOnce, expired.clone()),
        ("then the key is new", completed(whole.clone(), forgotten), TEA, AtMostOnce, ClaimDecision::Execute),
        ("a tombstone refuses", tombstone(Executed::Yes, s(0)), TEA, AtLeastOnce, expired),
        ("and says what it knows", tombstone(Executed::Unknown, s(0)), TEA, AtMostOnce, {
            ClaimDecision::Expired(Executed::Unknown)
        }),
        ("until it ends", tombstone(Executed::Yes, TOMBSTONE), TEA, AtMostOnce, ClaimDecision::Execute),
        ("a released key executes", released(s(0)), TEA, AtMostOnce, ClaimDecision::Execute),
        // Another request.
        ("a reused key is refused while in flight", claimed(s(3)), RUM, AtMostOnce, ClaimDecision::Mismatch),
        ("while lost", claimed(LEASE), RUM, AtMostOnce, ClaimDecision::Mismatch),
        ("and does not take over", claimed(LEASE), RUM, AtLeastOnce, ClaimDecision::Mismatch),
        ("nor from the dead", gone(s(0)), RUM, AtLeastOnce, ClaimDecision::Mismatch),
        ("nor from an unknown", unknown(s(0)), RUM, AtLeastOnce, ClaimDecision::Mismatch),
        ("nor sees an unknown", unknown(s(0)), RUM, AtMostOnce, ClaimDecision::Mismatch),
        ("nor an answer", completed(whole.clone(), s(0)), RUM, AtMostOnce, ClaimDecision::Mismatch),
        ("nor a head", completed(head.clone(), s(0)), RUM, AtLeastOnce, ClaimDecision::Mismatch),
        ("nor that there was one", completed(whole.clone(), RETENTION), RUM, AtMostOnce, ClaimDecision::Mismatch),
        ("nor a tombstone", tombstone(Executed::Yes, s(0)), RUM, AtMostOnce, ClaimDecision::Mismatch),
        // Retention is looked at before the fingerprint, which is looked at before the lease.
        ("a forgotten key is anybody's", completed(whole.clone(), forgotten), RUM, AtMostOnce, ClaimDecision::Execute),
        ("so is an ended tombstone's", tombstone(Executed::Yes, TOMBSTONE), RUM, AtMostOnce, ClaimDecision::Execute),
        ("and a released one", released(s(0)), RUM, AtMostOnce, ClaimDecision::Execute),
    ] {
        assert_eq!(decide::claim(&found, &asked, guarantee), want, "{rule}");
    }
}

/// Over all that can be found: what no row of a table may ever say.
#[test]
fn nothing_else_lets_a_request_execute_or_see_an_answer() {
    let mut executed = 0;
    for (rule, found) in everything() {
        for (asked, guarantee) in [(TEA, AtMostOnce), (RUM, AtMostOnce), (TEA, AtLeastOnce), (RUM, AtLeastOnce)] {
            let standing = decide::effective_state(&found);
            match decide::claim(&found, &asked, guarantee) {
                ClaimDecision::Execute => {
                    executed += 1;
                    let taken_over = standing == EffectiveState::Lost && guarantee == AtLeastOnce && asked == TEA;
                    assert!(standing == EffectiveState::Free || taken_over, "{rule}");
                }
                ClaimDecision::Mismatch => assert!(asked == RUM && standing != EffectiveState::Free, "{rule}"),
                _ => assert_eq!(asked, TEA, "{rule}"),
            }
        }
    }
    assert_eq!(executed, 5 * 4 + 5, "five are free to all, and five lost ones to their own retries where harmless");
}

#[test]
fn a_late_completion_meets() {
    let forgotten = RETENTION + TOMBSTONE;
    let write = |stage, audited| FinalizeDecision::Write { over: at(stage), audited };
    // The same attempt.
    for (rule, found, want) in [
        ("its own claim", claimed(s(3)), write(PhaseKind::InFlight, false)),
        ("its own claim, past its lease", claimed(LEASE), write(PhaseKind::InFlight, false)),
        ("its own claim, of a process before a restart", gone(s(0)), write(PhaseKind::InFlight, false)),
        ("its own unknown", unknown(s(1 << 40)), write(PhaseKind::Unknown, false)),
        ("its own release, which an auditor should see", released(s(0)), write(PhaseKind::Released, true)),
        ("its own release, at its end", released(KEEP), write(PhaseKind::Released, true)),
    ] {
        assert_eq!(decide::complete(Some(&found), A, &TEA), want, "{rule}");
    }
    for (rule, found) in [
        ("its own answer", completed(whole(), s(0))),
        ("its own answer past retention", completed(whole(), RETENTION)),
        ("its own head", completed(head(), s(0))),
        ("its own tombstone", tombstone(Executed::Yes, s(0))),
    ] {
        assert_eq!(decide::complete(Some(&found), A, &TEA), FinalizeDecision::AlreadyRecorded(&found.record), "{rule}");
    }
    assert_eq!(decide::complete(None, A, &TEA), FinalizeDecision::Missing);
    // Another attempt overtook it.
    let (whole, head) = (whole(), head());
    for (rule, found, winner) in [
        ("a winner who runs", claimed(s(3)), SupersededBy::Running),
        ("a winner who was lost", claimed(LEASE), SupersededBy::None),
        ("a winner who is gone", gone(s(0)), SupersededBy::None),
        ("a winner's answer", completed(whole.clone(), s(0)), SupersededBy::Response(&whole)),
        ("a winner's head", completed(head.clone(), s(0)), SupersededBy::Response(&head)),
        ("a winner's answer that is shown no more", completed(whole.clone(), RETENTION), SupersededBy::None),
        ("a winner's answer that is forgotten", completed(whole.clone(), forgotten), SupersededBy::None),
        ("a winner who was released", released(s(0)), SupersededBy::None),
        ("a winner of whom nobody knows", unknown(s(0)), SupersededBy::None),
        ("a winner's tombstone", tombstone(Executed::Yes, s(0)), SupersededBy::None),
    ] {
        assert_eq!(decide::complete(Some(&found), B, &TEA), FinalizeDecision::Superseded(winner.clone()), "{rule}");
        assert_eq!(decide::unknown(Some(&found), B, &TEA), FinalizeDecision::Superseded(winner), "{rule}, interrupted");
        // Released in between, the key went to another request: its answer is nobody else's to see.
        for late in [decide::complete(Some(&found), B, &RUM), decide::unknown(Some(&found), B, &RUM)] {
            assert_eq!(late, FinalizeDecision::Superseded(SupersededBy::None), "{rule}, of another request");
        }
    }
}

#[test]
fn a_late_interruption_meets() {
    let write = |stage, audited| FinalizeDecision::Write { over: at(stage), audited };
    for (rule, found, want) in [
        ("its own claim", claimed(s(3)), write(PhaseKind::InFlight, false)),
        ("its own claim, past its lease", claimed(LEASE), write(PhaseKind::InFlight, false)),
        ("its own release: sent all the same", released(s(0)), write(PhaseKind::Released, true)),
    ] {
        assert_eq!(decide::unknown(Some(&found), A, &TEA), want, "{rule}");
    }
    for (rule, found) in [
        ("its own unknown", unknown(s(0))),
        ("its own answer, which a cut does not undo", completed(whole(), s(0))),
        ("its own head", completed(head(), s(0))),
        ("its own tombstone", tombstone(Executed::Yes, s(0))),
    ] {
        assert_eq!(decide::unknown(Some(&found), A, &TEA), FinalizeDecision::AlreadyRecorded(&found.record), "{rule}");
    }
    assert_eq!(decide::unknown(None, A, &TEA), FinalizeDecision::Missing);
}

#[test]
fn a_cut_undoes_the_head_of_its_own_answer_alone() {
    for (rule, found) in everything() {
        // One in flight is about to keep the head.
        let is_undone =
            matches!(found.record.phase, Phase::Completed { kept: Retained::HeadOnly(_), .. } | Phase::InFlight { .. });
        assert_eq!(decide::truncated(Some(&found), A), is_undone.then_some(found.record.version()), "{rule}");
        assert_eq!(decide::truncated(Some(&found), B), None, "{rule}, of another attempt");
    }
    assert_eq!(decide::truncated(None, A), None);
}

#[test]
fn a_release_meets() {
    let forgotten = RETENTION + TOMBSTONE;
    assert_eq!(decide::release(None, A, None), Release::Insert, "nothing: its claim may still arrive");
    assert_eq!(decide::release(None, A, Some(at(PhaseKind::Unknown))), Release::Insert, "nothing, where something was");
    let other = Version { attempt: B, stage: PhaseKind::Unknown };
    for (rule, found, want) in [
        ("its own claim", claimed(s(3)), Release::Write(at(PhaseKind::InFlight))),
        ("its own claim, past its lease", claimed(LEASE), Release::Write(at(PhaseKind::InFlight))),
        ("its own unknown", unknown(s(0)), Release::Write(at(PhaseKind::Unknown))),
        ("its own release", released(s(0)), Release::Done),
        ("its own release, at its end", released(KEEP), Release::Done),
        ("its own answer", completed(whole(), s(0)), Release::Done),
        ("its own answer, forgotten", completed(whole(), forgotten), Release::Done),
        ("its own tombstone", tombstone(Executed::Yes, s(0)), Release::Done),
    ] {
        for over in [None, Some(other), Some(found.record.version())] {
            assert_eq!(decide::release(Some(&found), A, over), want, "{rule}");
        }
    }
    // Attempt `B` gives up; what is found is `A`'s.
    for (rule, found, over, want) in [
        ("another's claim", claimed(s(3)), None, Release::Done),
        ("another's claim, lost", claimed(LEASE), Some(at(PhaseKind::InFlight)), Release::Done),
        ("another's unknown, that it was to take over", unknown(s(0)), Some(at(PhaseKind::Unknown)), Release::Done),
        ("another's answer", completed(whole(), s(0)), None, Release::Done),
        (
            "another's answer past retention",
            completed(whole(), RETENTION),
            Some(at(PhaseKind::Completed)),
            Release::Done,
        ),
        ("another's tombstone", tombstone(Executed::Yes, s(0)), Some(at(PhaseKind::Tombstone)), Release::Done),
        ("a release that it was to replace", released(s(0)), Some(at(PhaseKind::Released)), {
            Release::Write(at(PhaseKind::Released))
        }),
        ("a release that it was not to replace", released(s(0)), None, Release::Done),
        ("a release, where it was to replace another", released(s(0)), Some(other), Release::Done),
        ("a release that the sweep is about to remove, so that an insert would arrive", released(KEEP), None, {
            Release::Write(at(PhaseKind::Released))
        }),
        ("an answer that the sweep is about to remove", completed(whole(), forgotten), None, {
            Release::Write(at(PhaseKind::Completed))
        }),
        ("a tombstone that the sweep is about to remove", tombstone(Executed::Yes, TOMBSTONE), None, {
            Release::Write(at(PhaseKind::Tombstone))
        }),
        ("a forgotten answer that it was to replace", completed(whole(), forgotten), Some(at(PhaseKind::Completed)), {
            Release::Write(at(PhaseKind::Completed))
        }),
    ] {
        assert_eq!(decide::release(Some(&found), B, over), want, "{rule}");
    }
}

/// A late release must never make room over what binds: that would be a second execution.
#[test]
fn a_release_never_frees_what_binds_somebody_else() {
    for (rule, found) in everything() {
        for over in [None, Some(found.record.version()), Some(Version { attempt: B, stage: PhaseKind::Released })] {
            if let Release::Write(version) = decide::release(Some(&found), B, over) {
                assert_eq!(decide::effective_state(&found), EffectiveState::Free, "{rule}");
                assert_eq!(version, found.record.version(), "{rule}");
            }
        }
    }
}

#[test]
fn a_sign_of_life_meets() {
    for (rule, found) in everything() {
        let want = match found.record.phase {
            Phase::InFlight { .. } => Renew::Write(at(PhaseKind::InFlight)),
            // Nobody overtook it, so it claims back what was given up.
            Phase::Unknown { .. } => Renew::Write(at(PhaseKind::Unknown)),
            Phase::Completed { .. } | Phase::Released { .. } | Phase::Tombstone { .. } => Renew::Lost,
        };
        assert_eq!(decide::renew(Some(&found), A), want, "{rule}");
        assert_eq!(decide::renew(Some(&found), B), Renew::Lost, "{rule}, of another attempt");
    }
    assert_eq!(decide::renew(None, A), Renew::Insert, "nothing is there");
}

#[test]
fn the_sweep() {
    let forgotten = RETENTION + TOMBSTONE;
    let lost = || Sweep::Write(Phase::Unknown { print: print() });
    let buried = |keep| Sweep::Write(Phase::Tombstone { print: print(), executed: Executed::Yes, keep });
    for (rule, found, want) in [
        ("leaves a claim", claimed(before(LEASE)), Sweep::Leave),
        ("writes a lost one as unknown", claimed(LEASE), lost()),
        ("at once where the holder is gone", gone(s(0)), lost()),
        ("never deletes a claim, however old", claimed(Duration::MAX), lost()),
        ("leaves an unknown, however old", unknown(Duration::MAX), Sweep::Leave),
        ("leaves an answer", completed(whole(), before(RETENTION)), Sweep::Leave),
        ("buries it when retention ends", completed(whole(), RETENTION), buried(TOMBSTONE)),
        ("for what is left, if it comes late", completed(whole(), RETENTION + s(10)), buried(TOMBSTONE - s(10))),
        ("down to a moment", completed(whole(), before(forgotten)), buried(Duration::from_nanos(1))),
        ("buries a head alike", completed(head(), RETENTION), buried(TOMBSTONE)),
        ("forgets what it comes too late to bury", completed(whole(), forgotten), Sweep::Forget),
        ("leaves a tombstone", tombstone(Executed::Yes, before(TOMBSTONE)), Sweep::Leave),
        ("forgets it when it ends", tombstone(Executed::Unknown, TOMBSTONE), Sweep::Forget),
        ("leaves a release for a late word", released(before(KEEP)), Sweep::Leave),
        ("forgets it when no word can come", released(KEEP), Sweep::Forget),
    ] {
        assert_eq!(decide::sweep(&found), want, "the sweep {rule}");
    }
}

#[test]
fn the_sweep_never_deletes_a_claim_or_an_unknown_and_changes_no_meaning() {
    for (rule, found) in everything() {
        match decide::sweep(&found) {
            Sweep::Leave => {}
            Sweep::Forget => {
                let stage = found.record.phase.stage();
                assert!(!matches!(stage, PhaseKind::InFlight | PhaseKind::Unknown), "{rule}");
                assert_eq!(decide::effective_state(&found), EffectiveState::Free, "{rule}");
            }
            Sweep::Write(phase) => {
                let swept = StoredRecord {
                    record: Box::new(Record { phase, ..(*found.record).clone() }),
                    age: s(0),
                    owner_lost: false,
                };
                for (asked, guarantee) in [(TEA, AtMostOnce), (RUM, AtMostOnce), (TEA, AtLeastOnce)] {
                    let claim = |found| format!("{:?}", decide::claim(found, &asked, guarantee));
                    assert_eq!(claim(&swept), claim(&found), "{rule}");
                }
            }
        }
    }
}

#[test]
fn durations_that_overflow_are_for_ever() {
    let forever =
        Phase::Completed { print: print(), kept: whole(), retention: Duration::MAX, tombstone: Duration::MAX };
    let found = found(forever, before(Duration::MAX));
    assert_eq!(decide::effective_state(&found), EffectiveState::Completed(&whole()));
    assert_eq!(decide::claim(&found, &RUM, Guarantee::default()), ClaimDecision::Mismatch);
}

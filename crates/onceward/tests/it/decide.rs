//! The rule as tables: each row has a name, and says what was found, what is asked, and what must come of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use onceward::decide::{self, Claim, Late, Release, Renew, Standing, Sweep, Winner};
use onceward::fingerprint::Fingerprint;
use onceward::policy::Guarantee::{self, AtLeastOnce, AtMostOnce};
use onceward::record::{AttemptId, Executed, Found, Kept, Phase, Print, Record, Stage, Version};
use onceward::reply::{Head, Reply};
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

fn print() -> Print {
    Print::new(TEA, Arc::default())
}

fn whole() -> Kept {
    let reply =
        Reply { status: StatusCode::CREATED, headers: Vec::new(), body: Bytes::from_static(b"made"), redirect: None };
    Kept::Whole(Arc::new(reply))
}

fn head() -> Kept {
    Kept::Head(Head { status: StatusCode::CREATED, location: Some("/orders/7".to_owned()) })
}

fn found(phase: Phase, age: Duration) -> Found {
    Found { record: Box::new(Record { key_hash: KeyHash([3; 32]), attempt: A, phase }), age, holder_gone: false }
}

fn claimed(age: Duration) -> Found {
    found(Phase::InFlight { print: print(), lease: LEASE, began: Duration::ZERO }, age)
}

fn gone(age: Duration) -> Found {
    Found { holder_gone: true, ..claimed(age) }
}

fn completed(kept: Kept, age: Duration) -> Found {
    found(Phase::Completed { print: print(), kept, retention: RETENTION, tombstone: TOMBSTONE }, age)
}

fn released(age: Duration) -> Found {
    found(Phase::Released { keep: KEEP }, age)
}

fn unknown(age: Duration) -> Found {
    found(Phase::Unknown { print: print() }, age)
}

fn tombstone(executed: Executed, age: Duration) -> Found {
    found(Phase::Tombstone { print: print(), executed, keep: TOMBSTONE }, age)
}

fn at(stage: Stage) -> Version {
    Version { attempt: A, stage }
}

/// Each phase at each age that a boundary lies beside.
fn everything() -> Vec<(&'static str, Found)> {
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
        ("a claim is believed", claimed(s(0)), Standing::InFlight { age: s(0), left: LEASE }),
        ("and less and less long", claimed(s(14)), Standing::InFlight { age: s(14), left: s(1) }),
        (
            "until its lease is over",
            claimed(before(LEASE)),
            Standing::InFlight { age: before(LEASE), left: Duration::from_nanos(1) },
        ),
        ("a lease is over when it is", claimed(LEASE), Standing::Lost),
        ("a lost claim stays lost", claimed(s(1 << 40)), Standing::Lost),
        ("no lease is waited for where the holder is gone", gone(s(0)), Standing::Lost),
        ("an answer is shown", completed(whole.clone(), s(0)), Standing::Completed(&whole)),
        ("until retention ends", completed(whole.clone(), before(RETENTION)), Standing::Completed(&whole)),
        ("and not a moment longer", completed(whole.clone(), RETENTION), Standing::Expired(Executed::Yes)),
        ("the key is known after that", completed(whole.clone(), before(RETENTION + TOMBSTONE)), {
            Standing::Expired(Executed::Yes)
        }),
        ("until the tombstone ends, swept or not", completed(whole.clone(), RETENTION + TOMBSTONE), Standing::Free),
        ("a head is shown alike", completed(head.clone(), before(RETENTION)), Standing::Completed(&head)),
        ("and ends alike", completed(head.clone(), RETENTION), Standing::Expired(Executed::Yes)),
        ("a released key is free", released(s(0)), Standing::Free),
        ("however old", released(KEEP), Standing::Free),
        ("an unknown is lost", unknown(s(0)), Standing::Lost),
        ("for ever", unknown(s(1 << 40)), Standing::Lost),
        ("a tombstone says that it ran", tombstone(Executed::Yes, s(0)), Standing::Expired(Executed::Yes)),
        ("or that nobody knows", tombstone(Executed::Unknown, before(TOMBSTONE)), Standing::Expired(Executed::Unknown)),
        ("or that it did not", tombstone(Executed::No, s(0)), Standing::Expired(Executed::No)),
        ("until it ends", tombstone(Executed::Yes, TOMBSTONE), Standing::Free),
    ] {
        assert_eq!(decide::standing(&found), want, "{rule}");
    }
}

#[test]
fn a_holder_that_is_gone_matters_to_claims_alone() {
    for (rule, found) in everything() {
        let gone = Found { holder_gone: true, ..found.clone() };
        match found.record.phase {
            Phase::InFlight { .. } => assert_eq!(decide::standing(&gone), Standing::Lost, "{rule}"),
            _ => assert_eq!(decide::standing(&gone), decide::standing(&found), "{rule}"),
        }
    }
}

#[test]
fn what_becomes_of_a_request() {
    let (whole, head) = (whole(), head());
    let running = |age: Duration| Claim::InFlight { age, left: LEASE - age };
    let expired = Claim::Expired(Executed::Yes);
    let forgotten = RETENTION + TOMBSTONE;
    for (rule, found, asked, guarantee, want) in [
        ("a duplicate of a running request does not execute", claimed(s(3)), TEA, AtMostOnce, running(s(3))),
        ("nor where running twice is harmless", claimed(s(3)), TEA, AtLeastOnce, running(s(3))),
        ("nor at the last moment of the lease", claimed(before(LEASE)), TEA, AtLeastOnce, running(before(LEASE))),
        ("a lost holder leaves an unknown", claimed(LEASE), TEA, AtMostOnce, Claim::Unknown),
        ("and is taken over where that is harmless", claimed(LEASE), TEA, AtLeastOnce, Claim::Execute),
        ("a dead process's claim is unknown at once", gone(s(0)), TEA, AtMostOnce, Claim::Unknown),
        ("and is taken over at once", gone(s(0)), TEA, AtLeastOnce, Claim::Execute),
        ("an unknown is never executed again", unknown(s(1 << 40)), TEA, AtMostOnce, Claim::Unknown),
        ("unless that is harmless", unknown(s(0)), TEA, AtLeastOnce, Claim::Execute),
        ("a retry gets the answer", completed(whole.clone(), s(0)), TEA, AtMostOnce, Claim::Replay(&whole)),
        ("whatever the guarantee", completed(whole.clone(), s(0)), TEA, AtLeastOnce, Claim::Replay(&whole)),
        ("until retention ends", completed(whole.clone(), before(RETENTION)), TEA, AtMostOnce, Claim::Replay(&whole)),
        ("or that there was one", completed(head.clone(), s(0)), TEA, AtMostOnce, Claim::Replay(&head)),
        ("after retention it is not executed", completed(whole.clone(), RETENTION), TEA, AtMostOnce, expired.clone()),
        ("not even where that is harmless", completed(whole.clone(), RETENTION), TEA, AtLeastOnce, expired.clone()),
        ("until the tombstone ends", completed(whole.clone(), before(forgotten)), TEA, AtMostOnce, expired.clone()),
        ("then the key is new", completed(whole.clone(), forgotten), TEA, AtMostOnce, Claim::Execute),
        ("a tombstone refuses", tombstone(Executed::Yes, s(0)), TEA, AtLeastOnce, expired),
        ("and says what it knows", tombstone(Executed::Unknown, s(0)), TEA, AtMostOnce, {
            Claim::Expired(Executed::Unknown)
        }),
        ("until it ends", tombstone(Executed::Yes, TOMBSTONE), TEA, AtMostOnce, Claim::Execute),
        ("a released key executes", released(s(0)), TEA, AtMostOnce, Claim::Execute),
        // Another request.
        ("a reused key is refused while in flight", claimed(s(3)), RUM, AtMostOnce, Claim::Mismatch),
        ("while lost", claimed(LEASE), RUM, AtMostOnce, Claim::Mismatch),
        ("and does not take over", claimed(LEASE), RUM, AtLeastOnce, Claim::Mismatch),
        ("nor from the dead", gone(s(0)), RUM, AtLeastOnce, Claim::Mismatch),
        ("nor from an unknown", unknown(s(0)), RUM, AtLeastOnce, Claim::Mismatch),
        ("nor sees an unknown", unknown(s(0)), RUM, AtMostOnce, Claim::Mismatch),
        ("nor an answer", completed(whole.clone(), s(0)), RUM, AtMostOnce, Claim::Mismatch),
        ("nor a head", completed(head.clone(), s(0)), RUM, AtLeastOnce, Claim::Mismatch),
        ("nor that there was one", completed(whole.clone(), RETENTION), RUM, AtMostOnce, Claim::Mismatch),
        ("nor a tombstone", tombstone(Executed::Yes, s(0)), RUM, AtMostOnce, Claim::Mismatch),
        // Retention is looked at before the fingerprint, which is looked at before the lease.
        ("a forgotten key is anybody's", completed(whole.clone(), forgotten), RUM, AtMostOnce, Claim::Execute),
        ("so is an ended tombstone's", tombstone(Executed::Yes, TOMBSTONE), RUM, AtMostOnce, Claim::Execute),
        ("and a released one", released(s(0)), RUM, AtMostOnce, Claim::Execute),
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
            let standing = decide::standing(&found);
            match decide::claim(&found, &asked, guarantee) {
                Claim::Execute => {
                    executed += 1;
                    let taken_over = standing == Standing::Lost && guarantee == AtLeastOnce && asked == TEA;
                    assert!(standing == Standing::Free || taken_over, "{rule}");
                }
                Claim::Mismatch => assert!(asked == RUM && standing != Standing::Free, "{rule}"),
                _ => assert_eq!(asked, TEA, "{rule}"),
            }
        }
    }
    assert_eq!(executed, 5 * 4 + 5, "five are free to all, and five lost ones to their own retries where harmless");
}

#[test]
fn a_late_completion_meets() {
    let forgotten = RETENTION + TOMBSTONE;
    let write = |stage, audited| Late::Write { over: at(stage), audited };
    // The same attempt.
    for (rule, found, want) in [
        ("its own claim", claimed(s(3)), write(Stage::InFlight, false)),
        ("its own claim, past its lease", claimed(LEASE), write(Stage::InFlight, false)),
        ("its own claim, of a process before a restart", gone(s(0)), write(Stage::InFlight, false)),
        ("its own unknown", unknown(s(1 << 40)), write(Stage::Unknown, false)),
        ("its own release, which an auditor should see", released(s(0)), write(Stage::Released, true)),
        ("its own release, at its end", released(KEEP), write(Stage::Released, true)),
    ] {
        assert_eq!(decide::complete(Some(&found), A, &TEA), want, "{rule}");
    }
    for (rule, found) in [
        ("its own answer", completed(whole(), s(0))),
        ("its own answer past retention", completed(whole(), RETENTION)),
        ("its own head", completed(head(), s(0))),
        ("its own tombstone", tombstone(Executed::Yes, s(0))),
    ] {
        assert_eq!(decide::complete(Some(&found), A, &TEA), Late::Kept(&found.record), "{rule}");
    }
    assert_eq!(decide::complete(None, A, &TEA), Late::Gone);
    // Another attempt overtook it.
    let (whole, head) = (whole(), head());
    for (rule, found, winner) in [
        ("a winner who runs", claimed(s(3)), Winner::Running),
        ("a winner who was lost", claimed(LEASE), Winner::None),
        ("a winner who is gone", gone(s(0)), Winner::None),
        ("a winner's answer", completed(whole.clone(), s(0)), Winner::Answer(&whole)),
        ("a winner's head", completed(head.clone(), s(0)), Winner::Answer(&head)),
        ("a winner's answer that is shown no more", completed(whole.clone(), RETENTION), Winner::None),
        ("a winner's answer that is forgotten", completed(whole.clone(), forgotten), Winner::None),
        ("a winner who was released", released(s(0)), Winner::None),
        ("a winner of whom nobody knows", unknown(s(0)), Winner::None),
        ("a winner's tombstone", tombstone(Executed::Yes, s(0)), Winner::None),
    ] {
        assert_eq!(decide::complete(Some(&found), B, &TEA), Late::Overtaken(winner.clone()), "{rule}");
        assert_eq!(decide::interrupt(Some(&found), B, &TEA), Late::Overtaken(winner), "{rule}, interrupted");
        // Released in between, the key went to another request: its answer is nobody else's to see.
        for late in [decide::complete(Some(&found), B, &RUM), decide::interrupt(Some(&found), B, &RUM)] {
            assert_eq!(late, Late::Overtaken(Winner::None), "{rule}, of another request");
        }
    }
}

#[test]
fn a_late_interruption_meets() {
    let write = |stage, audited| Late::Write { over: at(stage), audited };
    for (rule, found, want) in [
        ("its own claim", claimed(s(3)), write(Stage::InFlight, false)),
        ("its own claim, past its lease", claimed(LEASE), write(Stage::InFlight, false)),
        ("its own release: sent all the same", released(s(0)), write(Stage::Released, true)),
    ] {
        assert_eq!(decide::interrupt(Some(&found), A, &TEA), want, "{rule}");
    }
    for (rule, found) in [
        ("its own unknown", unknown(s(0))),
        ("its own answer, which a cut does not undo", completed(whole(), s(0))),
        ("its own head", completed(head(), s(0))),
        ("its own tombstone", tombstone(Executed::Yes, s(0))),
    ] {
        assert_eq!(decide::interrupt(Some(&found), A, &TEA), Late::Kept(&found.record), "{rule}");
    }
    assert_eq!(decide::interrupt(None, A, &TEA), Late::Gone);
}

#[test]
fn a_cut_undoes_the_head_of_its_own_answer_alone() {
    for (rule, found) in everything() {
        // One in flight is about to keep the head.
        let is_undone =
            matches!(found.record.phase, Phase::Completed { kept: Kept::Head(_), .. } | Phase::InFlight { .. });
        assert_eq!(decide::cut(Some(&found), A), is_undone.then_some(found.record.version()), "{rule}");
        assert_eq!(decide::cut(Some(&found), B), None, "{rule}, of another attempt");
    }
    assert_eq!(decide::cut(None, A), None);
}

#[test]
fn a_release_meets() {
    let forgotten = RETENTION + TOMBSTONE;
    assert_eq!(decide::release(None, A, None), Release::Insert, "nothing: its claim may still arrive");
    assert_eq!(decide::release(None, A, Some(at(Stage::Unknown))), Release::Insert, "nothing, where something was");
    let other = Version { attempt: B, stage: Stage::Unknown };
    for (rule, found, want) in [
        ("its own claim", claimed(s(3)), Release::Write(at(Stage::InFlight))),
        ("its own claim, past its lease", claimed(LEASE), Release::Write(at(Stage::InFlight))),
        ("its own unknown", unknown(s(0)), Release::Write(at(Stage::Unknown))),
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
        ("another's claim, lost", claimed(LEASE), Some(at(Stage::InFlight)), Release::Done),
        ("another's unknown, that it was to take over", unknown(s(0)), Some(at(Stage::Unknown)), Release::Done),
        ("another's answer", completed(whole(), s(0)), None, Release::Done),
        ("another's answer past retention", completed(whole(), RETENTION), Some(at(Stage::Completed)), Release::Done),
        ("another's tombstone", tombstone(Executed::Yes, s(0)), Some(at(Stage::Tombstone)), Release::Done),
        ("a release that it was to replace", released(s(0)), Some(at(Stage::Released)), {
            Release::Write(at(Stage::Released))
        }),
        ("a release that it was not to replace", released(s(0)), None, Release::Done),
        ("a release, where it was to replace another", released(s(0)), Some(other), Release::Done),
        ("a release that the sweep is about to remove, so that an insert would arrive", released(KEEP), None, {
            Release::Write(at(Stage::Released))
        }),
        ("an answer that the sweep is about to remove", completed(whole(), forgotten), None, {
            Release::Write(at(Stage::Completed))
        }),
        ("a tombstone that the sweep is about to remove", tombstone(Executed::Yes, TOMBSTONE), None, {
            Release::Write(at(Stage::Tombstone))
        }),
        ("a forgotten answer that it was to replace", completed(whole(), forgotten), Some(at(Stage::Completed)), {
            Release::Write(at(Stage::Completed))
        }),
    ] {
        assert_eq!(decide::release(Some(&found), B, over), want, "{rule}");
    }
}

/// A late release must never make room over what binds: that would be a second execution.
#[test]
fn a_release_never_frees_what_binds_somebody_else() {
    for (rule, found) in everything() {
        for over in [None, Some(found.record.version()), Some(Version { attempt: B, stage: Stage::Released })] {
            if let Release::Write(version) = decide::release(Some(&found), B, over) {
                assert_eq!(decide::standing(&found), Standing::Free, "{rule}");
                assert_eq!(version, found.record.version(), "{rule}");
            }
        }
    }
}

#[test]
fn a_sign_of_life_meets() {
    for (rule, found) in everything() {
        let want = match found.record.phase {
            Phase::InFlight { .. } => Renew::Write(at(Stage::InFlight)),
            // Nobody overtook it, so it claims back what was given up.
            Phase::Unknown { .. } => Renew::Write(at(Stage::Unknown)),
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
                assert!(!matches!(stage, Stage::InFlight | Stage::Unknown), "{rule}");
                assert_eq!(decide::standing(&found), Standing::Free, "{rule}");
            }
            Sweep::Write(phase) => {
                let swept = Found {
                    record: Box::new(Record { phase, ..(*found.record).clone() }),
                    age: s(0),
                    holder_gone: false,
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
    assert_eq!(decide::standing(&found), Standing::Completed(&whole()));
    assert_eq!(decide::claim(&found, &RUM, Guarantee::default()), Claim::Mismatch);
}

//! What is broken in one place is caught, by the law that the place is there for.

use super::*;

macro_rules! caught {
    ($($(#[$doc:meta])* $name:ident: $variant:ident, $prints:expr, $guarantee:ident, $bounds:expr, breaks $law:ident;)*) => {$(
        $(#[$doc])*
        #[test]
        fn $name() {
            let protocol = Protocol::new(&$prints, $guarantee, $bounds);
            let broken = protocol.broken(Variant::$variant);
            let checker = explore(stringify!($name), &broken, HasDiscoveries::AnyOf([$law].into()));
            let path = checker.discovery($law).unwrap_or_else(|| panic!("{:?} is not broken", $law));
            println!("{}: {:?} is broken\n{}", stringify!($name), $law, trace(&path));
        }
    )*};
}

const NOTHING: Bounds = Bounds { faults: 0, deaths: 0, cuts: 0, declines: 0, streams: 0, expiry: false };

caught! {
    a_ttl_on_claims_runs_twice: ForgetsClaims, [0, 0], AtMostOnce, NOTHING, breaks ONE_EFFECT;
    a_ttl_on_claims_deletes_a_claim: ForgetsClaims, [0], AtMostOnce, NOTHING, breaks NEVER_DELETED;
    a_sweep_that_deletes_runs_twice: SweepsClaims, [0, 0], AtMostOnce, NOTHING, breaks ONE_EFFECT;
    running_again_after_the_lease_runs_twice: RunsAgainAfterTheLease, [0, 0], AtMostOnce, NOTHING, breaks ONE_EFFECT;
    running_again_after_the_lease_overtakes: RunsAgainAfterTheLease, [0, 0], AtMostOnce, NOTHING, breaks NO_OVERTAKEN_WRITE;
    sending_without_a_claim_runs_twice: SendsUnclaimed, [0, 0], AtMostOnce, Bounds { faults: 1, ..NOTHING }, breaks ONE_EFFECT;
    a_blind_release_runs_twice: ReleasesBlindly, [0, 0, 0], AtMostOnce, Bounds { faults: 1, ..NOTHING }, breaks ONE_EFFECT;
    a_blind_release_overwrites_an_answer: ReleasesBlindly, [0, 0], AtMostOnce, Bounds { faults: 1, ..NOTHING }, breaks KEPT_FOR_GOOD;
    a_number_that_restarts_runs_twice:
        NumbersAttempts, [0, 0, 0], AtMostOnce, Bounds { faults: 1, cuts: 1, ..NOTHING }, breaks ONE_EFFECT;
    a_release_that_forgets_what_it_replaced_leaves_a_claim:
        ForgetsWhatItReplaced, [0, 0], AtMostOnce, Bounds { faults: 1, cuts: 1, ..NOTHING }, breaks UNSENT_IS_FREE;
    releasing_what_was_sent_runs_twice: ReleasesAfterSending, [0, 0], AtMostOnce, Bounds { cuts: 1, ..NOTHING }, breaks ONE_EFFECT;
    releasing_what_was_sent_lies: ReleasesAfterSending, [0], AtMostOnce, Bounds { cuts: 1, ..NOTHING }, breaks RELEASED_DID_NOT_RUN;
    a_blind_completion_changes_an_answer: CompletesBlindly, [0, 0], AtLeastOnce, NOTHING, breaks KEPT_FOR_GOOD;
    a_blind_completion_contradicts: CompletesBlindly, [0, 0], AtLeastOnce, NOTHING, breaks NEVER_CONTRADICTED;
    telling_before_keeping_contradicts: TellsBeforeKeeping, [0], AtMostOnce, NOTHING, breaks NEVER_CONTRADICTED;
    comparing_the_attempt_only_overwrites_an_answer: ComparesAttemptOnly, [0], AtMostOnce, NOTHING, breaks KEPT_FOR_GOOD;
    releasing_after_an_unknown_lies:
        ReleasesAfterUnknown, [0, 0], AtLeastOnce, Bounds { declines: 1, ..NOTHING }, breaks RELEASED_AFTER_NOTHING;
    ignoring_fingerprints_mixes_up: IgnoresFingerprint, [0, 1], AtMostOnce, NOTHING, breaks NO_MIX_UP;
}

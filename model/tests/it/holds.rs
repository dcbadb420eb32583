//! What is built keeps the laws, and the bounds are wide enough to see something.

use super::*;

#[test]
fn once_with_retries_and_another_fingerprint() {
    let bounds = Bounds { faults: 1, deaths: 1, cuts: 1, declines: 1, ..Bounds::default() };
    let seen = [
        REPLAY,
        UNKNOWN,
        MISMATCH,
        COMPLETED_FROM_UNKNOWN,
        RELEASED_AFTER_LOST_CLAIM,
        LATE_CLAIM_REFUSED,
        KEPT_ALTHOUGH_UNANSWERED,
        RUN_AFTER_RELEASE,
    ];
    holds("once, another fingerprint", Protocol::new(&[0, 0, 1], AtMostOnce, bounds), &seen, &[]);
}

#[test]
fn once_with_a_store_that_fails_often() {
    let bounds = Bounds { faults: 3, deaths: 1, ..Bounds::default() };
    let seen = [REPLAY, UNKNOWN, COMPLETED_FROM_UNKNOWN, RELEASED_AFTER_LOST_CLAIM, LATE_CLAIM_REFUSED];
    holds("once, three faults", Protocol::new(&[0, 0], AtMostOnce, bounds), &seen, &[]);
}

#[test]
fn once_with_two_deaths() {
    let bounds = Bounds { faults: 1, deaths: 2, cuts: 1, declines: 1, ..Bounds::default() };
    let seen = [REPLAY, UNKNOWN, COMPLETED_FROM_UNKNOWN, RUN_AFTER_RELEASE];
    holds("once, two deaths", Protocol::new(&[0, 0, 0], AtMostOnce, bounds), &seen, &[]);
}

#[test]
fn once_with_streams_and_expiry() {
    let bounds = Bounds { faults: 1, deaths: 1, cuts: 1, declines: 1, streams: 1, expiry: true };
    let seen = [REPLAY, UNKNOWN, STREAM_CUT, EXPIRED, USED_ANEW, RELEASED_AFTER_LOST_CLAIM];
    holds("once, streams, expiry", Protocol::new(&[0, 0], AtMostOnce, bounds), &seen, &[]);
}

#[test]
fn once_with_expiry_and_another_fingerprint() {
    let bounds = Bounds { faults: 1, declines: 1, expiry: true, ..Bounds::default() };
    let seen = [REPLAY, MISMATCH, EXPIRED, USED_ANEW, RUN_AFTER_RELEASE];
    holds("once, expiry, another fingerprint", Protocol::new(&[0, 0, 1], AtMostOnce, bounds), &seen, &[]);
}

#[test]
fn takeovers_with_a_store_that_fails() {
    let bounds = Bounds { faults: 1, deaths: 1, cuts: 1, declines: 1, ..Bounds::default() };
    let seen = [REPLAY, COMPLETED_FROM_UNKNOWN, TAKEOVER, WINNERS_ANSWER];
    holds("takeovers, faults", Protocol::new(&[0, 0], AtLeastOnce, bounds), &seen, &[]);
}

#[test]
fn takeovers_with_another_fingerprint() {
    let bounds = Bounds { deaths: 1, declines: 1, ..Bounds::default() };
    let seen = [REPLAY, MISMATCH, TAKEOVER, WINNERS_ANSWER, RUN_AFTER_RELEASE];
    holds("takeovers, another fingerprint", Protocol::new(&[0, 0, 1], AtLeastOnce, bounds), &seen, &[]);
}

/// All laws hold but those of `known`, which are broken; and all of `seen` happens.
fn holds(name: &str, protocol: Protocol, seen: &[&'static str], known: &[&'static str]) {
    let checker = explore(name, &protocol, HasDiscoveries::All);
    for law in protocol.properties() {
        let (law, fails) = (law.name, law.expectation.discovery_is_failure());
        let found = checker.discovery(law).is_some();
        match (fails, found) {
            (true, true) => {
                // The path at hand is one of the longest; a search that stops at the first is one of the shortest.
                let first = explore("… again", &protocol, HasDiscoveries::AnyOf([law].into()));
                let path = first.discovery(law).expect("it was found before");
                println!("{name}: {law:?} is broken\n{}", trace(&path));
                assert!(known.contains(&law), "{name}: {law:?} is broken\n{}", trace(&path));
            }
            (true, false) => assert!(!known.contains(&law), "{name}: {law:?} holds now; strike it from what is known"),
            (false, true) => {}
            (false, false) => assert!(!seen.contains(&law), "{name}: never {law:?}"),
        }
    }
}

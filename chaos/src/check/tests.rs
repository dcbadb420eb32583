//! Tests each rule with a history that satisfies it, and the smallest one that violates it.

use super::*;
use crate::history::Reply;

const SECOND: Micros = 1_000_000;

fn rules() -> Rules {
    Rules { lease: Duration::from_secs(1), grace: Duration::from_secs(1), least: Seen::default() }
}

/// History in which each step comes a millisecond after the previous one.
#[derive(Default)]
struct Story {
    events: Vec<Event>,
    now: Micros,
}

impl Story {
    fn saw(mut self, what: What) -> Self {
        self.now += 1000;
        self.events.push(Event { at: self.now, what });
        self
    }

    fn wait(mut self, micros: Micros) -> Self {
        self.now += micros;
        self
    }

    fn sent(self, call: u64, key: &str) -> Self {
        self.sent_as(call, of(key), "body", None)
    }

    fn sent_as(self, call: u64, of: Of, body: &str, last: Option<Last>) -> Self {
        self.saw(What::Sent { call, of, body: body.into(), gateway: 1, last })
    }

    fn ran(self, key: &str, nonce: &str) -> Self {
        self.ran_to(of(key), "body", nonce, Reply::Whole(format!("digest of {nonce}")))
    }

    fn ran_to(self, of: Of, body: &str, nonce: &str, reply: Reply) -> Self {
        let executes = !matches!(reply, Reply::Released(_));
        let nonce = nonce.to_owned();
        let arrived = self.saw(What::Arrived { nonce: nonce.clone(), of, body: body.into(), claim: String::new() });
        let executed = if executes { arrived.saw(What::Executed { nonce: nonce.clone() }) } else { arrived };
        executed.saw(What::Left { nonce, reply })
    }

    /// Adds a response of the upstream.
    fn got(self, call: u64, outcome: &str, nonce: &str) -> Self {
        self.got_bytes(call, outcome, nonce, &format!("digest of {nonce}"))
    }

    fn got_bytes(self, call: u64, outcome: &str, nonce: &str, digest: &str) -> Self {
        let answer = Answer {
            status: 201,
            outcome: outcome.into(),
            code: String::new(),
            nonce: nonce.into(),
            digest: digest.into(),
        };
        self.saw(What::Answered { call, answer })
    }

    /// Adds a rejection.
    fn refused(self, call: u64, outcome: &str, code: &str) -> Self {
        let answer = Answer { status: 409, outcome: outcome.into(), code: code.into(), ..Answer::default() };
        self.saw(What::Answered { call, answer })
    }

    fn broken(&self) -> Vec<Rule> {
        check(&self.events, &rules()).breaches.iter().map(|breach| breach.rule).collect()
    }
}

fn of(key: &str) -> Of {
    Of { key: key.into(), principal: "alice".into(), again: false }
}

fn again(key: &str) -> Of {
    Of { again: true, ..of(key) }
}

fn bobs(key: &str) -> Of {
    Of { principal: "bob".into(), ..of(key) }
}

fn story() -> Story {
    Story::default()
}

fn kept() -> Story {
    story().sent(1, "k").ran("k", "n1").got(1, "stored", "n1")
}

#[test]
fn what_is_right_breaks_nothing() {
    let cut = || story().sent(1, "k").ran_to(of("k"), "body", "n1", Reply::Cut);
    let released = || story().sent(1, "k").ran_to(of("k"), "body", "n1", Reply::Released("d".into()));
    for (why, story) in [
        ("a replay", kept().sent(2, "k").got(2, "replayed", "n1")),
        ("two keys", kept().sent(2, "l").ran("l", "n2").got(2, "stored", "n2")),
        (
            "two principals",
            kept()
                .sent_as(2, bobs("k"), "body", None)
                .ran_to(bobs("k"), "body", "n2", Reply::Whole("digest of n2".into()))
                .got(2, "stored", "n2"),
        ),
        (
            "a duplicate in flight",
            story()
                .sent(1, "k")
                .sent(2, "k")
                .refused(2, "in-flight", "in_flight")
                .ran("k", "n1")
                .got(1, "stored", "n1"),
        ),
        ("a mismatch that is refused", kept().sent_as(2, of("k"), "other", None).refused(2, "mismatch", "key_reused")),
        ("a store that is away", kept().sent(2, "k").refused(2, "rejected", "store_unavailable")),
        (
            "a cut answer is unknown",
            cut().refused(1, "unknown", "upstream_lost").sent(2, "k").refused(2, "unknown", "outcome_unknown"),
        ),
        (
            "released, then once",
            released().got_bytes(1, "released", "n1", "d").sent(2, "k").ran("k", "n2").got(2, "stored", "n2"),
        ),
        (
            "again after a loss",
            story()
                .sent_as(1, again("k"), "body", None)
                .ran_to(again("k"), "body", "n1", Reply::Cut)
                .sent_as(2, again("k"), "body", None)
                .ran_to(again("k"), "body", "n2", Reply::Whole("digest of n2".into()))
                .got(2, "stored", "n2"),
        ),
        (
            "in flight while it runs long",
            story()
                .sent(1, "k")
                .saw(What::Arrived { nonce: "n1".into(), of: of("k"), body: "body".into(), claim: String::new() })
                .wait(30 * SECOND)
                .sent(2, "k")
                .refused(2, "in-flight", "in_flight"),
        ),
    ] {
        assert_eq!(story.broken(), [], "{why}");
    }
}

#[test]
fn each_rule_is_broken_by_the_smallest_history() {
    let lost = || story().sent(1, "k").saw(What::Died { gateway: 1 });
    for (rule, why, story) in [
        (Rule::Once, "two executions", kept().ran("k", "n2")),
        (
            Rule::Once,
            "a second while the first runs",
            story()
                .sent(1, "k")
                .saw(What::Arrived { nonce: "n1".into(), of: of("k"), body: "body".into(), claim: String::new() })
                .ran("k", "n2"),
        ),
        (
            Rule::Once,
            "again after a cut, at most once",
            story().sent(1, "k").ran_to(of("k"), "body", "n1", Reply::Cut).ran("k", "n2"),
        ),
        (
            Rule::Once,
            "again after a kept answer was seen, at least once",
            story()
                .sent_as(1, again("k"), "body", None)
                .ran_to(again("k"), "body", "n1", Reply::Whole("digest of n1".into()))
                .got(1, "stored", "n1")
                .sent_as(2, again("k"), "body", None)
                .ran_to(again("k"), "body", "n2", Reply::Cut),
        ),
        (Rule::Own, "another key's answer", kept().sent(2, "l").got(2, "replayed", "n1")),
        (Rule::Own, "another principal's answer", kept().sent_as(2, bobs("k"), "body", None).got(2, "replayed", "n1")),
        (Rule::Own, "nobody's answer", kept().sent(2, "k").got(2, "replayed", "n9")),
        (Rule::Same, "another byte", kept().sent(2, "k").got_bytes(2, "replayed", "n1", "another")),
        (Rule::Same, "no execution named", story().sent(1, "k").got(1, "stored", "")),
        (
            Rule::Same,
            "a partial answer",
            story().sent(1, "k").ran_to(of("k"), "body", "n1", Reply::Cut).got(1, "stored", "n1"),
        ),
        (
            Rule::Same,
            "another kept answer",
            story()
                .sent_as(1, again("k"), "body", None)
                .sent_as(2, again("k"), "body", None)
                .ran_to(again("k"), "body", "n1", Reply::Whole("digest of n1".into()))
                .ran_to(again("k"), "body", "n2", Reply::Whole("digest of n2".into()))
                .got(1, "stored", "n1")
                .got(2, "stored", "n2"),
        ),
        (Rule::Mismatch, "another body's answer", kept().sent_as(2, of("k"), "other", None).got(2, "replayed", "n1")),
        (Rule::Kept, "unknown after it was kept", kept().sent(2, "k").refused(2, "unknown", "outcome_unknown")),
        (Rule::Kept, "in flight after it was kept", kept().sent(2, "k").refused(2, "in-flight", "in_flight")),
        (Rule::Stuck, "in flight for ever", lost().wait(7 * SECOND).sent(2, "k").refused(2, "in-flight", "in_flight")),
        (Rule::Honest, "no label", story().sent(1, "k").got(1, "", "")),
        (Rule::Honest, "expired in a minute", kept().sent(2, "k").refused(2, "expired", "key_expired")),
        (
            Rule::Honest,
            "unreadable, and nobody damaged it",
            kept().sent(2, "k").refused(2, "rejected", "record_unreadable"),
        ),
        (Rule::Honest, "a mismatch with itself", kept().sent(2, "k").refused(2, "mismatch", "key_reused")),
        (Rule::Honest, "released, and it executed", story().sent(1, "k").ran("k", "n1").got(1, "released", "n1")),
        (
            Rule::Honest,
            "unsent, and it executed",
            story().sent(1, "k").ran_to(of("k"), "body", "n1", Reply::Cut).refused(
                1,
                "released",
                "upstream_unreachable",
            ),
        ),
        (Rule::Honest, "called stored at a second look", kept().sent(2, "k").got(2, "stored", "n1")),
        (
            Rule::Last,
            "a last call without an end",
            kept().saw(What::Healed).sent_as(2, of("k"), "body", Some(Last::Settled)).saw(What::Broke { call: 2 }),
        ),
        (
            Rule::Last,
            "a new key that fails",
            story().saw(What::Healed).sent_as(2, of("l"), "body", Some(Last::Fresh)).refused(
                2,
                "rejected",
                "store_unavailable",
            ),
        ),
    ] {
        assert!(story.broken().contains(&rule), "{rule:?}, {why}: {:?}", story.broken());
    }
}

#[test]
fn a_key_is_believed_in_flight_up_to_lease_and_five_seconds() {
    let lost = || story().sent(1, "k").saw(What::Died { gateway: 1 });
    let asked_after = |wait| lost().wait(wait).sent(2, "k").refused(2, "in-flight", "in_flight").broken();
    assert_eq!(asked_after(5 * SECOND), []);
    assert_eq!(asked_after(6 * SECOND), [Rule::Stuck]);
}

#[test]
fn a_gateway_serves_again_within_ten_seconds_of_a_heal_of_its_store() {
    let healed = || story().saw(What::StoreHurt).saw(What::StoreHealed);
    let refused = |story: Story| story.sent(9, "k").refused(9, "rejected", "store_unavailable").broken();
    assert_eq!(refused(healed().wait(9 * SECOND)), []);
    assert_eq!(refused(healed().wait(11 * SECOND)), [Rule::Recovers]);
    let served = || healed().sent(1, "l").ran("l", "n1").got(1, "stored", "n1");
    assert_eq!(refused(served().wait(11 * SECOND)), [], "it has served since");
    assert_eq!(refused(healed().saw(What::StoreHurt).wait(11 * SECOND)), [], "it is hurt again");
    assert_eq!(
        refused(healed().wait(10 * SECOND).saw(What::Continued { gateway: 1 }).wait(SECOND)),
        [],
        "it was stopped"
    );
}

#[test]
fn leases_begin_anew_with_a_server_that_is_started_again() {
    let lost = || story().sent(1, "k").saw(What::Died { gateway: 1 }).wait(5 * SECOND);
    let asked_after = |wait| {
        let back = lost().saw(What::StoreHurt).saw(What::StoreHealed);
        back.wait(wait).sent(2, "k").refused(2, "in-flight", "in_flight").broken()
    };
    assert_eq!(asked_after(5 * SECOND), []);
    assert_eq!(asked_after(7 * SECOND), [Rule::Stuck]);
}

#[test]
fn a_run_that_saw_too_little_is_a_breach() {
    let least = Seen { replayed: 1, ..Seen::default() };
    let rules = Rules { least, ..rules() };
    assert!(check(&kept().events, &rules).breaks(Rule::Vacuous));
    assert!(check(&[], &rules).breaks(Rule::Vacuous));
    let replayed = kept().sent(2, "k").got(2, "replayed", "n1");
    assert!(!check(&replayed.events, &rules).breaks(Rule::Vacuous));
}

#[test]
fn it_counts_what_it_saw() {
    let story = kept().sent(2, "k").got(2, "replayed", "n1").sent(3, "l").saw(What::Broke { call: 3 });
    let seen = check(&story.events, &rules()).seen;
    let want = Seen { calls: 3, open: 1, arrived: 1, executed: 1, replayed: 1, keys: 2, ..Seen::default() };
    assert_eq!(seen, want);
}

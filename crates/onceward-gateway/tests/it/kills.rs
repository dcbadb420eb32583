//! The gateway is killed, or stopped for longer than its leases: afterwards a retry gets the answer or an honest
//! `outcome_unknown`, and the upstream has seen one execution.

use std::time::{Duration, Instant};

use crate::client::{assert_answer, assert_problem, assert_replay, order, outcome, poll};
use crate::support::Gateway;
use crate::upstream::Upstream;

const KEY: &str = "kill-key-0123456789";
const LEASE: Duration = Duration::from_secs(1);
const LEASE_SETTING: &str = "[policy]\nlease = \"1s\"";

/// Random moments, the same ones each time: splitmix64.
struct Moments(u64);

impl Moments {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn up_to(&mut self, most: Duration) -> Duration {
        Duration::from_micros(self.next() % u64::try_from(most.as_micros()).unwrap().max(1))
    }
}

#[test]
fn killed_at_random_moments_it_executes_nothing_twice() {
    let rounds = if std::env::var_os("ONCEWARD_LONG").is_some() { 100 } else { 10 };
    let upstream = Upstream::start();
    let mut gateway = upstream.gateway(LEASE_SETTING);
    // How long a request takes here and now, so that the moments fall into it.
    let started = Instant::now();
    for at in 0..5 {
        assert_answer(&order(&format!("measured-{at}")).send(&gateway), 201, "stored");
    }
    let takes = started.elapsed() / 5;
    let mut moments = Moments(2_026_001);
    let (mut executed, mut replayed, mut unknown, mut free) = (5, 0, 0, 0);
    for round in 0..rounds {
        // Several at once, at different places of their way; one of them twice.
        let keys: Vec<String> = (0..4).map(|n| format!("killed-{round}-{n}")).collect();
        let asks: Vec<_> = keys.iter().map(|key| order(key)).collect();
        let mut sent = vec![(0, asks[0].spawn(&gateway))];
        for (at, ask) in asks.iter().enumerate() {
            sent.push((at, ask.spawn(&gateway)));
            // waits: a random moment of the request's way is what the test is about
            std::thread::sleep(moments.up_to(takes / 2));
        }
        // waits: a random moment of the request's way is what the test is about
        std::thread::sleep(moments.up_to(takes));
        gateway.signal("KILL");
        let answers: Vec<_> = sent.into_iter().map(|(at, sent)| (at, sent.try_answer())).collect();
        gateway = gateway.killed_and_restarted();
        for (at, (key, ask)) in keys.iter().zip(&asks).enumerate() {
            let before = upstream.count(key);
            // Nobody holds it any more: at the first look it is judged.
            let retry = ask.send_after_kill(&gateway);
            match outcome(&retry) {
                "replayed" => replayed += 1,
                "unknown" => {
                    assert_problem(&retry, "outcome_unknown", key);
                    unknown += 1;
                }
                _ => {
                    assert_answer(&retry, 201, "stored");
                    assert_eq!(before, 0, "{key} was executed before, and again");
                    free += 1;
                }
            }
            // Whoever had a first answer, whole or begun, had it only after it was kept.
            for (_, first) in answers.iter().filter(|(of, _)| *of == at) {
                let Some(first) = first else { continue };
                match outcome(first) {
                    "stored" | "replayed" if first.is_whole => assert_replay(&retry, first),
                    "stored" | "replayed" => assert_eq!(outcome(&retry), "replayed", "{key}"),
                    "in-flight" => {}
                    other => panic!("{key}: {other}: {first:?}"),
                }
            }
            // Whatever was said stays said.
            let again = ask.send(&gateway);
            match outcome(&retry) {
                "unknown" => assert_problem(&again, "outcome_unknown", key),
                _ => assert_eq!((outcome(&again), &again.body), ("replayed", &retry.body), "{key}"),
            }
            let count = upstream.count(key);
            assert!(count <= 1, "{key} was executed {count} times");
            assert!(count == 1 || outcome(&retry) == "unknown", "{key}: an answer without an execution");
            executed += count;
        }
    }
    println!("{rounds} kills: {replayed} kept before, {unknown} unknown, {free} free");
    assert_eq!(upstream.executions().len(), executed);
    assert_eq!(replayed + unknown + free, rounds * 4);
    assert!(executed > 5, "nothing was ever executed");
}

#[test]
fn killed_while_the_upstream_holds_the_request_it_leaves_it_unknown() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway(LEASE_SETTING);
    let ask = order(KEY).step("hold killed");
    let first = ask.spawn(&gateway);
    upstream.held("killed");
    gateway.signal("KILL");
    let started = Instant::now();
    assert_eq!(first.try_answer(), None);
    let gateway = gateway.killed_and_restarted();
    // At the start every claim found is lost at once: no lease is waited for.
    assert_problem(&ask.send_after_kill(&gateway), "outcome_unknown", KEY);
    assert!(started.elapsed() < LEASE + Duration::from_secs(5), "it left in flight late");
    upstream.release("killed");
    for _ in 0..2 {
        assert_problem(&order(KEY).send(&gateway), "outcome_unknown", KEY);
    }
    assert_problem(&order(KEY).body("other").send(&gateway), "key_reused", KEY);
    let gateway = gateway.killed_and_restarted();
    assert_problem(&order(KEY).send(&gateway), "outcome_unknown", KEY);
    assert_eq!(upstream.count(KEY), 1);
    poll("the gauge", || gateway.page("/metrics", "").1.contains("onceward_keys_unknown 1\n").then_some(()));
}

#[test]
fn killed_while_the_upstream_holds_the_request_it_may_execute_again_where_a_route_says_so() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[policy]\nlease = \"1s\"\nguarantee = \"at-least-once\"");
    let ask = order(KEY).step("hold killed");
    let first = ask.spawn(&gateway);
    upstream.held("killed");
    gateway.signal("KILL");
    assert_eq!(first.try_answer(), None);
    let gateway = gateway.killed_and_restarted();
    let second = order(KEY).send_after_kill(&gateway);
    assert_answer(&second, 201, "stored");
    assert_replay(&order(KEY).send(&gateway), &second);
    assert_eq!(upstream.count(KEY), 2);
}

#[test]
fn killed_after_the_answer_was_kept_it_has_it() {
    let upstream = Upstream::start();
    let mut gateway = upstream.gateway("[limits]\nresponse_body = \"1KiB\"");
    let first = order(KEY).send(&gateway);
    assert_answer(&first, 201, "stored");
    assert_answer(&order("freed-before").step("status 429").send(&gateway), 429, "released");
    assert_problem(&order("lost-before").step("reset").send(&gateway), "upstream_lost", "lost-before");
    assert_answer(&order("large-before").step("body 2000").send(&gateway), 201, "not-stored");
    for _ in 0..3 {
        // At once: no moment is left in which it could be written late.
        gateway.signal("KILL");
        gateway = gateway.killed_and_restarted();
        assert_replay(&order(KEY).send(&gateway), &first);
        assert_problem(&order(KEY).body("other").send(&gateway), "key_reused", KEY);
        assert_problem(&order("lost-before").send(&gateway), "outcome_unknown", "lost-before");
        assert_problem(&order("large-before").send(&gateway), "answer_not_kept", "large-before");
    }
    assert_answer(&order("freed-before").send(&gateway), 201, "stored");
    for (key, count) in [(KEY, 1), ("freed-before", 2), ("lost-before", 1), ("large-before", 1)] {
        assert_eq!(upstream.count(key), count, "{key}");
    }
}

#[test]
fn killed_within_a_streamed_answer_it_knows_that_it_was_executed() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway(LEASE_SETTING);
    let ask = order(KEY).step("header Content-Type: text/event-stream").step("chunked").step("hold-midway stream");
    let mut client = ask.begin(&gateway);
    let head = client.head();
    assert_eq!((head.status, outcome(&head)), (201, "not-stored"));
    gateway.signal("KILL");
    let gateway = gateway.killed_and_restarted();
    assert_problem(&ask.send(&gateway), "answer_not_kept", KEY);
    assert_eq!(upstream.count(KEY), 1);
}

#[test]
fn killed_while_it_drains_it_is_as_honest() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway(LEASE_SETTING);
    let ask = order(KEY).step("hold killed");
    let first = ask.spawn(&gateway);
    upstream.held("killed");
    gateway.signal("TERM");
    gateway.logged("draining");
    gateway.signal("KILL");
    assert_eq!(first.try_answer(), None);
    let gateway = gateway.killed_and_restarted();
    assert_problem(&ask.send_after_kill(&gateway), "outcome_unknown", KEY);
    assert_eq!(upstream.count(KEY), 1);
}

#[test]
fn stopped_for_three_leases_it_goes_on_and_completes() {
    let upstream = Upstream::start();
    for (name, when) in [("stopped-answered", "before"), ("stopped-waiting", "after")] {
        let gateway = upstream.gateway(LEASE_SETTING);
        let ask = order(name).step(format!("hold {name}"));
        let first = ask.spawn(&gateway);
        upstream.held(name);
        gateway.signal("STOP");
        if when == "before" {
            upstream.release(name);
        }
        // waits: three leases have to pass, and nothing happens in them
        std::thread::sleep(LEASE * 3);
        assert!(!first.is_answered());
        gateway.signal("CONT");
        if when == "after" {
            // Whatever it is told now, it is not that it may execute.
            let retry = ask.send(&gateway);
            assert!(["in-flight", "unknown"].contains(&outcome(&retry)), "{retry:?}");
            upstream.release(name);
        }
        let first = first.answer();
        assert_answer(&first, 201, "stored");
        assert_replay(&ask.send(&gateway), &first);
        assert_replay(&ask.send(&gateway.killed_and_restarted()), &first);
        assert_eq!(upstream.count(name), 1);
    }
}

#[test]
fn a_key_leaves_in_flight_whoever_dies() {
    // The upstream dies, and the gateway hears of it.
    let upstream = Upstream::start();
    let gateway = upstream.gateway(LEASE_SETTING);
    let ask = order(KEY).step("hold for-ever");
    let first = ask.spawn(&gateway);
    upstream.held("for-ever");
    assert_eq!(upstream.count(KEY), 1);
    let address = upstream.address;
    drop(upstream);
    assert_problem(&first.answer(), "upstream_lost", KEY);
    assert_problem(&ask.send(&gateway), "outcome_unknown", KEY);
    // Another one in its place is not asked.
    let upstream = Upstream::at(address);
    assert_problem(&order(KEY).send(&gateway), "outcome_unknown", KEY);
    assert_eq!(upstream.executions().len(), 0);
    assert_answer(&order("alive-again").send(&gateway), 201, "stored");
    assert_eq!(upstream.executions().len(), 1);
    is_ready(&gateway);
}

fn is_ready(gateway: &Gateway) {
    assert_eq!(gateway.page("/readyz", "").0, 200);
}

//! Two gateways on one PostgreSQL: whatever one promised, the other keeps.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::client::{assert_answer, assert_problem, assert_replay, order, outcome, poll};
use crate::postgres::Postgres;
use crate::support::Gateway;
use crate::upstream::Upstream;

pub(crate) static POSTGRES: LazyLock<Postgres> = LazyLock::new(|| Postgres::start(15, ""));

const KEY: &str = "pair-key-0123456789";

fn pair(upstream: &Upstream, settings: &str) -> [Gateway; 2] {
    let settings = upstream.settings(&POSTGRES.database(), settings);
    [(); 2].map(|()| Gateway::with(&settings, &[]))
}

#[test]
fn what_one_kept_the_other_replays_and_refuses() {
    let upstream = Upstream::start();
    let [one, other] = pair(&upstream, "[limits]\nresponse_body = \"1KiB\"");
    let first = order(KEY).send(&one);
    assert_answer(&first, 201, "stored");
    assert_replay(&order(KEY).send(&other), &first);
    assert_problem(&order(KEY).body("other").send(&other), "key_reused", KEY);
    assert_problem(&order("lost-by-one").step("reset").send(&one), "upstream_lost", "lost-by-one");
    assert_problem(&order("lost-by-one").send(&other), "outcome_unknown", "lost-by-one");
    assert_answer(&order("large-by-one").step("body 2000").send(&one), 201, "not-stored");
    assert_problem(&order("large-by-one").send(&other), "answer_not_kept", "large-by-one");
    assert_answer(&order("freed-by-one").step("status 429").send(&one), 429, "released");
    assert_answer(&order("freed-by-one").body("another").send(&other), 201, "stored");
    for (key, count) in [(KEY, 1), ("lost-by-one", 1), ("large-by-one", 1), ("freed-by-one", 2)] {
        assert_eq!(upstream.count(key), count, "{key}");
    }
}

#[test]
fn a_hundred_equal_requests_over_two_gateways_execute_once() {
    let upstream = Upstream::start();
    let gateways = pair(&upstream, "");
    let ask = order(KEY).step("hold all").line("Prefer: wait=20");
    let sent: Vec<_> = (0..100).map(|n| ask.spawn(&gateways[n % 2])).collect();
    upstream.held("all");
    upstream.release("all");
    let answers: Vec<_> = sent.into_iter().map(crate::client::Sent::answer).collect();
    let first = answers.iter().find(|answer| outcome(answer) == "stored").expect("one executed").clone();
    for answer in &answers {
        match outcome(answer) {
            "stored" => assert_answer(answer, 201, "stored"),
            _ => assert_replay(answer, &first),
        }
    }
    assert_eq!(answers.iter().filter(|answer| outcome(answer) == "stored").count(), 1);
    assert_eq!(upstream.count(KEY), 1);
}

#[test]
fn whoever_waits_at_the_other_gateway_gets_the_answer_soon() {
    let upstream = Upstream::start();
    let [one, other] = pair(&upstream, "");
    let ask = order(KEY).step("hold running");
    let running = ask.spawn(&one);
    upstream.held("running");
    assert_problem(&ask.send(&other), "in_flight", KEY);
    let waiting = order(KEY).line("Prefer: wait=20").spawn(&other);
    assert_problem(&order(KEY).body("other").line("Prefer: wait=20").send(&other), "key_reused", KEY);
    upstream.release("running");
    let first = running.answer();
    let since = Instant::now();
    assert_replay(&waiting.answer(), &first);
    assert!(since.elapsed() < Duration::from_secs(5), "it was told late");
    assert_eq!(upstream.count(KEY), 1);
}

#[test]
fn where_one_gateway_dies_the_other_knows_that_nobody_knows() {
    let upstream = Upstream::start();
    let [one, other] = pair(&upstream, "");
    let ask = order(KEY).step("hold killed");
    let running = ask.spawn(&one);
    upstream.held("killed");
    one.signal("KILL");
    let since = Instant::now();
    assert_eq!(running.try_answer(), None);
    let retry = ask.send_until_settled(&other);
    assert_problem(&retry, "outcome_unknown", KEY);
    // A lease of two seconds, and five.
    assert!(since.elapsed() < Duration::from_secs(7), "it left in flight late");
    upstream.release("killed");
    poll("the gauge", || other.page("/metrics", "").1.contains("onceward_keys_unknown 1\n").then_some(()));
    assert_eq!(upstream.count(KEY), 1);
}

#[test]
fn a_gateway_that_stood_still_for_three_leases_overtakes_nobody() {
    let upstream = Upstream::start();
    for guarantee in ["at-most-once", "at-least-once"] {
        let settings = format!("[policy]\nlease = \"1s\"\nguarantee = \"{guarantee}\"");
        let [one, other] = pair(&upstream, &settings);
        let (key, name) = (format!("stopped-{guarantee}"), format!("hold-{guarantee}"));
        let ask = order(&key).step(format!("hold {name}"));
        let stopped = ask.spawn(&one);
        upstream.held(&name);
        one.signal("STOP");
        upstream.release(&name);
        let retry = order(&key).send_until_settled(&other);
        match guarantee {
            "at-most-once" => assert_problem(&retry, "outcome_unknown", &key),
            _ => assert_answer(&retry, 201, "stored"),
        }
        one.signal("CONT");
        let late = stopped.answer();
        match guarantee {
            // Nobody overtook it: its answer settles the key.
            "at-most-once" => assert_answer(&late, 201, "stored"),
            _ => assert_replay(&late, &retry),
        }
        let kept = if guarantee == "at-most-once" { late } else { retry };
        for gateway in [&one, &other] {
            assert_replay(&order(&key).send(gateway), &kept);
        }
        assert_eq!(upstream.count(&key), if guarantee == "at-most-once" { 1 } else { 2 });
    }
}

#[test]
fn the_status_says_what_a_failover_may_forget_and_no_password() {
    let upstream = Upstream::start();
    let url = POSTGRES.database().replace("postgres@", "postgres:hidden-word@");
    let gateway = Gateway::with(&upstream.settings(&url, ""), &[]);
    let status = gateway.page("/status", "").1;
    for said in
        ["\"kind\": \"postgres\"", "fsync is off", "no standby is synchronous", "\"survives_power_loss\": false"]
    {
        assert!(status.contains(said), "{said} is not in {status}");
    }
    assert!(!status.contains("hidden-word") && !gateway.log().contains("hidden-word"));
    assert!(gateway.log().contains("postgres:…@127.0.0.1"), "{}", gateway.log());
}

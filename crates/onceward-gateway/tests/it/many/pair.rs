//! Two gateways: whatever one promised, the other keeps.

use std::time::{Duration, Instant};

use super::{Pair, Server};
use crate::client::{Sent, assert_answer, assert_problem, assert_replay, order, outcome, poll};

over_each_server!(
    a_hundred_equal_requests_over_two_gateways_execute_once,
    what_one_kept_the_other_replays_and_refuses,
    whoever_waits_at_the_other_gateway_gets_the_answer_soon,
    where_one_gateway_dies_the_other_knows_that_nobody_knows,
    where_one_gateway_dies_the_other_executes_again_if_the_route_says_so,
    a_gateway_that_stood_still_for_three_leases_overtakes_nobody,
);

const KEY: &str = "pair-key-0123456789";
const LEASE: Duration = Duration::from_secs(1);

fn a_hundred_equal_requests_over_two_gateways_execute_once<S: Server>() {
    let pair = Pair::over::<S>("");
    let ask = order(KEY).step("hold all").line("Prefer: wait=20");
    let sent: Vec<_> = (0..100).map(|n| ask.spawn(pair.each()[n % 2])).collect();
    pair.upstream.held("all");
    pair.upstream.release("all");
    let answers: Vec<_> = sent.into_iter().map(Sent::answer).collect();
    let first = answers.iter().find(|answer| outcome(answer) == "stored").expect("one executed").clone();
    for answer in &answers {
        match outcome(answer) {
            "stored" => assert_answer(answer, 201, "stored"),
            _ => assert_replay(answer, &first),
        }
    }
    assert_eq!(answers.iter().filter(|answer| outcome(answer) == "stored").count(), 1);
    assert_eq!(pair.upstream.count(KEY), 1);
}

fn what_one_kept_the_other_replays_and_refuses<S: Server>() {
    let pair = Pair::over::<S>("[limits]\nresponse_body = \"1KiB\"");
    let [one, other] = pair.each();
    let first = order(KEY).step("header Set-Cookie: a=b").step("header X-Twice: 1").send(one);
    assert_answer(&first, 201, "stored");
    assert_replay(&order(KEY).send(other), &first);
    assert_problem(&order(KEY).body("other").send(other), "key_reused", KEY);
    assert_answer(&order("freed-by-one").step("status 429").send(one), 429, "released");
    assert_answer(&order("freed-by-one").body("another").send(other), 201, "stored");
    assert_problem(&order("lost-by-one").step("reset").send(one), "upstream_lost", "lost-by-one");
    assert_problem(&order("lost-by-one").send(other), "outcome_unknown", "lost-by-one");
    assert_answer(&order("large-by-one").step("body 2000").send(one), 201, "not-stored");
    assert_problem(&order("large-by-one").send(other), "answer_not_kept", "large-by-one");
    for (key, count) in [(KEY, 1), ("freed-by-one", 2), ("lost-by-one", 1), ("large-by-one", 1)] {
        assert_eq!(pair.upstream.count(key), count, "{key}");
    }
    poll("both gauges", || pair.each().into_iter().all(knows_of_one_unknown).then_some(()));
}

fn whoever_waits_at_the_other_gateway_gets_the_answer_soon<S: Server>() {
    let pair = Pair::over::<S>("");
    let ask = order(KEY).step("hold running");
    let running = ask.spawn(&pair.one);
    pair.upstream.held("running");
    assert_problem(&ask.send(&pair.other), "in_flight", KEY);
    let waiting = order(KEY).line("Prefer: wait=20").spawn(&pair.other);
    assert_problem(&order(KEY).body("other").line("Prefer: wait=20").send(&pair.other), "key_reused", KEY);
    pair.upstream.release("running");
    let first = running.answer();
    let since = Instant::now();
    assert_replay(&waiting.answer(), &first);
    assert!(since.elapsed() < Duration::from_secs(5), "it was told late");
    assert_eq!(pair.upstream.count(KEY), 1);
}

fn where_one_gateway_dies_the_other_knows_that_nobody_knows<S: Server>() {
    let pair = Pair::over::<S>(&policy("at-most-once"));
    let running = order(KEY).step("hold killed").spawn(&pair.one);
    pair.upstream.held("killed");
    let since = Instant::now();
    pair.one.signal("KILL");
    assert_eq!(running.try_answer(), None);
    // Nobody asks for it: the sweep of the other one finds it.
    poll("the gauge", || knows_of_one_unknown(&pair.other).then_some(()));
    assert!(since.elapsed() < LEASE + Duration::from_secs(5), "it left in flight late: {:?}", since.elapsed());
    assert_problem(&order(KEY).send(&pair.other), "outcome_unknown", KEY);
    pair.upstream.release("killed");
    assert_problem(&order(KEY).send(&pair.other), "outcome_unknown", KEY);
    assert_eq!(pair.upstream.count(KEY), 1);
}

fn where_one_gateway_dies_the_other_executes_again_if_the_route_says_so<S: Server>() {
    let pair = Pair::over::<S>(&policy("at-least-once"));
    let running = order(KEY).step("hold killed").spawn(&pair.one);
    pair.upstream.held("killed");
    pair.one.signal("KILL");
    assert_eq!(running.try_answer(), None);
    let second = order(KEY).send_until_settled(&pair.other);
    assert_answer(&second, 201, "stored");
    assert_replay(&order(KEY).send(&pair.other), &second);
    assert_eq!(pair.upstream.count(KEY), 2);
}

fn a_gateway_that_stood_still_for_three_leases_overtakes_nobody<S: Server>() {
    for guarantee in ["at-most-once", "at-least-once"] {
        let pair = Pair::over::<S>(&policy(guarantee));
        let stopped = order(KEY).step("hold stopped").spawn(&pair.one);
        pair.upstream.held("stopped");
        pair.one.signal("STOP");
        pair.upstream.release("stopped");
        // waits: three leases have to pass, and nothing happens in them
        std::thread::sleep(LEASE * 3);
        let retry = order(KEY).send_until_settled(&pair.other);
        match guarantee {
            "at-most-once" => assert_problem(&retry, "outcome_unknown", KEY),
            _ => assert_answer(&retry, 201, "stored"),
        }
        assert!(!stopped.is_answered());
        pair.one.signal("CONT");
        let late = stopped.answer();
        let kept = match guarantee {
            // Nobody overtook it: its late word settles the key, and all get its answer.
            "at-most-once" => {
                assert_answer(&late, 201, "stored");
                late
            }
            // It was overtaken: its client gets the winner's answer, and so does everybody.
            _ => {
                assert_replay(&late, &retry);
                poll("the audit", || audited(&pair.one).then_some(()));
                retry
            }
        };
        pair.each().into_iter().for_each(|gateway| assert_replay(&order(KEY).send(gateway), &kept));
        assert_eq!(pair.upstream.count(KEY), if guarantee == "at-most-once" { 1 } else { 2 });
    }
}

fn policy(guarantee: &str) -> String {
    format!("[policy]\nlease = \"1s\"\nguarantee = \"{guarantee}\"")
}

fn knows_of_one_unknown(gateway: &crate::support::Gateway) -> bool {
    gateway.page("/metrics", "").1.contains("onceward_keys_unknown 1\n")
}

/// Whether it says that it saw a second execution.
pub(super) fn audited(gateway: &crate::support::Gateway) -> bool {
    let metrics = gateway.page("/metrics", "").1;
    metrics.lines().any(|line| line.starts_with("onceward_second_executions_total") && line.ends_with(" 1"))
}

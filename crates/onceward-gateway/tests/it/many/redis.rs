//! What is Redis's alone.

mod failover;

use super::{Pair, Server};
use crate::client::{assert_problem, assert_replay, order, outcome, poll};
use crate::redis::Redis;
use crate::support::Gateway;
use crate::upstream::Upstream;

const KEY: &str = "redis-key-0123456789";

#[test]
fn a_store_that_was_restarted_empty_takes_the_answers_of_what_was_running() {
    let mut server = Redis::own();
    let url = server.empty();
    let pair = Pair::by([&url, &url], "[policy]\nlease = \"1s\"");
    let first = order(KEY).step("hold long").spawn(&pair.one);
    pair.upstream.held("long");
    server.crash();
    server.start_again(false);
    pair.upstream.release("long");
    let first = first.answer();
    assert_eq!(first.status, 201, "{first:?}");
    poll("the late answer", || {
        let answer = order(KEY).send(&pair.other);
        (outcome(&answer) == "replayed").then(|| assert_replay(&answer, &first))
    });
    assert_eq!(pair.upstream.count(KEY), 1);
}

#[test]
fn a_gateway_that_is_killed_takes_nothing_along_whatever_the_server_keeps() {
    for settings in ["--appendonly no --save '3600 1'", "--appendonly no"] {
        let server = Redis::start(settings);
        let url = format!("{}?accept=no-persistence", server.empty());
        let pair = Pair::by([&url, &url], "[policy]\nlease = \"1s\"");
        let first = order(KEY).send(&pair.one);
        let running = order("running").step("hold killed").spawn(&pair.one);
        pair.upstream.held("killed");
        pair.one.signal("KILL");
        assert_eq!(running.try_answer(), None);
        assert_replay(&order(KEY).send(&pair.other), &first);
        assert_problem(&order("running").send_until_settled(&pair.other), "outcome_unknown", "running");
        assert_eq!(["running", KEY].map(|key| pair.upstream.count(key)), [1, 1], "{settings}");
    }
}

#[test]
fn the_status_says_what_this_redis_may_forget_and_no_password() {
    let (upstream, redis) = (Upstream::start(), Redis::own());
    redis.cli(0, &["CONFIG", "SET", "requirepass", "geheim-0815"]);
    let url = format!("redis://:geheim-0815@{}/?accept=no-persistence", redis.address);
    let gateway = Gateway::with(&upstream.settings(&url, ""), &[]);
    let status = gateway.page("/status", "").1;
    assert!(status.contains("appendfsync everysec") && status.contains("no replica"), "{status}");
    assert!(!status.contains("geheim") && !gateway.log().contains("geheim"), "the password is told");
    assert!(status.contains("accept=no-persistence"), "{status}");
    let policy = gateway.send("GET /.idempotency/policy HTTP/1.1\r\nHost: a\r\n\r\n");
    let policy = String::from_utf8(policy.body).unwrap();
    assert!(policy.contains("259200") || policy.contains("72h"), "tombstones are kept for 72 h: {policy}");
}

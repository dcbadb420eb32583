//! SIGTERM and SIGINT: no new claims, replays and refusals go on, what runs is finished and kept.

use std::time::{Duration, Instant};

use crate::client::{assert_answer, assert_problem, assert_replay, order, outcome, plain_order, poll};
use crate::support::Gateway;
use crate::upstream::Upstream;

const KEY: &str = "drain-key-0123456789";

#[test]
fn a_drain_finishes_and_keeps_what_runs_and_takes_nothing_new() {
    for signal in ["TERM", "INT"] {
        let upstream = Upstream::start();
        // Of two, the one for which nothing runs would be gone before it is asked.
        let mut gateway = upstream.one_gateway("[limits]\nresponse_body = \"1KiB\"");
        let kept = order("kept-before").send(&gateway);
        assert_answer(&kept, 201, "stored");
        assert_problem(&order("lost-before").step("reset").send(&gateway), "upstream_lost", "lost-before");
        assert_answer(&order("freed-before").step("status 429").send(&gateway), 429, "released");
        let ask = order(KEY).step("hold running");
        let running = ask.spawn(&gateway);
        upstream.held("running");
        let waiting = order(KEY).line("Prefer: wait=20").spawn(&gateway);
        assert_eq!(gateway.page("/readyz", "").0, 200);

        gateway.signal(signal);
        poll("a red /readyz", || (gateway.page("/readyz", "").0 == 503).then_some(()));
        assert_eq!(gateway.page("/healthz", "").0, 200);
        for key in ["new-while-draining", "freed-before"] {
            assert_problem(&order(key).send(&gateway), "draining", key);
        }
        assert_replay(&order("kept-before").send(&gateway), &kept);
        assert_problem(&order("kept-before").body("other").send(&gateway), "key_reused", "kept-before");
        assert_problem(&order("lost-before").send(&gateway), "outcome_unknown", "lost-before");
        assert_problem(&ask.send(&gateway), "in_flight", KEY);
        let plain = plain_order().send(&gateway);
        assert_eq!((plain.status, outcome(&plain)), (201, ""), "a request without a key needs no claim");
        assert!(!running.is_answered());

        upstream.release("running");
        let first = running.answer();
        assert_answer(&first, 201, "stored");
        let waited = waiting.answer();
        // It waited before the drain, or came to wait within it: it gets the answer.
        assert_replay(&waited, &first);
        assert_eq!(gateway.ended().code(), Some(0));
        let gateway = gateway.killed_and_restarted();
        assert_replay(&ask.send(&gateway), &first);
        assert_answer(&order("new-while-draining").send(&gateway), 201, "stored");
        for (key, count) in
            [(KEY, 1), ("kept-before", 1), ("lost-before", 1), ("freed-before", 1), ("new-while-draining", 1)]
        {
            assert_eq!(upstream.count(key), count, "{key}");
        }
    }
}

#[test]
fn a_drain_finishes_what_nobody_waits_for_any_more() {
    let upstream = Upstream::start();
    let mut gateway = upstream.gateway("[limits]\nupstream_timeout = \"200ms\"");
    // One client hung up, one was sent away by its time-out.
    let client = order("hung-up-client").step("hold detached").begin(&gateway);
    upstream.held("detached");
    drop(client);
    let late = order(KEY).step("hold late");
    assert_problem(&late.send(&gateway), "upstream_timeout", KEY);
    gateway.signal("TERM");
    poll("a red /readyz", || (gateway.page("/readyz", "").0 == 503).then_some(()));
    assert_problem(&late.send(&gateway), "in_flight", KEY);
    upstream.release("detached");
    upstream.release("late");
    assert_eq!(gateway.ended().code(), Some(0));
    let gateway = gateway.killed_and_restarted();
    for key in [KEY, "hung-up-client"] {
        let retry = order(key).send(&gateway);
        assert_answer(&retry, 201, "replayed");
        assert!(retry.body.starts_with(b"{\"order\":"));
        assert_eq!(upstream.count(key), 1, "{key}");
    }
}

#[test]
fn what_still_runs_at_the_drain_limit_is_unknown() {
    let upstream = Upstream::start();
    let mut gateway = upstream.gateway("drain = \"500ms\"");
    let ask = order(KEY).step("hold for-ever");
    let running = ask.spawn(&gateway);
    upstream.held("for-ever");
    let client = order("hung-up-client").step("hold for-ever-too").begin(&gateway);
    upstream.held("for-ever-too");
    drop(client);
    let started = Instant::now();
    gateway.signal("TERM");
    // It is written before it is said.
    assert_problem(&running.answer(), "upstream_lost", KEY);
    assert_eq!(gateway.ended().code(), Some(0));
    assert!(started.elapsed() >= Duration::from_millis(500), "it did not wait for what ran");
    gateway.logged("the drain limit is over");
    assert!(!gateway.log().contains("the store does not take it"), "{}", gateway.log());
    let gateway = gateway.killed_and_restarted();
    upstream.release("for-ever");
    for key in [KEY, "hung-up-client"] {
        assert_problem(&order(key).send(&gateway), "outcome_unknown", key);
        assert_eq!(upstream.count(key), 1, "{key}");
    }
}

#[test]
fn a_request_that_was_not_sent_is_free_after_the_drain_limit() {
    // Nobody takes the connection: it stands in the queue of a listener that is full.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = Upstream::start();
    let folder = tempfile::tempdir().unwrap();
    let store = format!("embedded:{}", folder.path().display());
    let settings = upstream.settings(&store, "drain = \"300ms\"");
    let unreachable = settings.replace(&upstream.url(), &format!("http://{}", listener.local_addr().unwrap()));
    let filled = fill(&listener);
    let mut gateway = Gateway::with(&unreachable, &[]);
    let running = order(KEY).spawn(&gateway);
    poll("the claim", || gateway.page("/status", "").1.contains("\"in_flight\": 1").then_some(()));
    gateway.signal("TERM");
    assert_problem(&running.answer(), "upstream_unreachable", KEY);
    assert_eq!(gateway.ended().code(), Some(0));
    drop(filled);
    let gateway = Gateway::with(&settings, &[]);
    assert_answer(&order(KEY).body("another").send(&gateway), 201, "stored");
    assert_eq!(upstream.count(KEY), 1);
}

#[test]
fn a_request_that_becomes_whole_while_it_drains_is_refused() {
    let upstream = Upstream::start();
    let mut gateway = upstream.gateway("");
    let ask = order(KEY);
    let mut client = gateway.client();
    client.say(ask.head());
    client.say(&ask.tail()[..5]);
    // Served, so that the signal does not overtake the head.
    assert_answer(&order("before-drain").send(&gateway), 201, "stored");
    gateway.signal("TERM");
    poll("a red /readyz", || (gateway.page("/readyz", "").0 == 503).then_some(()));
    client.say(&ask.tail()[5..]);
    assert_problem(&client.answer(false), "draining", KEY);
    assert_eq!(gateway.ended().code(), Some(0));
    let gateway = gateway.killed_and_restarted();
    assert_answer(&ask.send(&gateway), 201, "stored");
    assert_eq!(upstream.count(KEY), 1);
}

#[test]
fn an_idle_gateway_stops_at_once() {
    let upstream = Upstream::start();
    let mut gateway = upstream.gateway("");
    // A connection that says nothing keeps nobody.
    let _silent = gateway.client();
    assert_answer(&order(KEY).send(&gateway), 201, "stored");
    let started = Instant::now();
    gateway.signal("TERM");
    assert_eq!(gateway.ended().code(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(10), "it waited for {:?}, and for nothing", started.elapsed());
    let gateway = gateway.killed_and_restarted();
    assert_answer(&order(KEY).send(&gateway), 201, "replayed");
    assert_eq!(upstream.count(KEY), 1);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let upstream = Upstream::start();
    // Of two, the one for which nothing runs would be gone before the second signal.
    let mut gateway = upstream.one_gateway("drain = \"1h\"");
    let ask = order(KEY).step("hold for-ever");
    let running = ask.spawn(&gateway);
    upstream.held("for-ever");
    gateway.signal("TERM");
    gateway.logged("draining");
    gateway.signal("INT");
    assert_eq!(gateway.ended().code(), Some(1));
    assert_eq!(running.try_answer(), None);
    let gateway = gateway.killed_and_restarted();
    assert_problem(&ask.send_after_kill(&gateway), "outcome_unknown", KEY);
    assert_eq!(upstream.count(KEY), 1);
}

/// Connects until the listener's queue takes no more.
fn fill(listener: &std::net::TcpListener) -> Vec<std::net::TcpStream> {
    let address = listener.local_addr().unwrap();
    socket2::SockRef::from(listener).listen(1).unwrap();
    let mut filled = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        filled.push(stream);
        assert!(filled.len() < 10_000, "the queue has no end");
    }
    filled
}

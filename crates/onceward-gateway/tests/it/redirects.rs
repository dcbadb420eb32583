//! Redirects that keep the method: a client follows them with the same key, and each step executes once.

use crate::client::{Ask, assert_answer, assert_problem, assert_replay, order};
use crate::upstream::Upstream;

const KEY: &str = "redirect-key-0123";

/// A step of a chain: where it is sent to, and where it leads.
fn step(target: &str, status: u16, location: &str) -> Ask {
    order(KEY)
        .to(&format!("POST {target}"))
        .step(format!("status {status}"))
        .step(format!("header Location: {location}"))
}

fn at(target: &str) -> Ask {
    order(KEY).to(&format!("POST {target}"))
}

#[test]
fn redirect_chain_executes_once_and_can_be_retried_as_a_whole() {
    for (status, location) in [
        (307, "/v2/orders"),
        (308, "/v2/orders"),
        (308, "http://shop.example/v2/orders"),
        (307, "https://shop.example/v2/orders#top"),
        (308, "v2/./orders"),
        (307, "//shop.example/v1/../v2/orders"),
    ] {
        let upstream = Upstream::start();
        let gateway = upstream.gateway("");
        let redirected = step("/orders", status, location);
        let first = redirected.send(&gateway);
        assert_answer(&first, status, "stored");
        let second = at("/v2/orders").send(&gateway);
        assert_answer(&second, 201, "stored");
        for _ in 0..2 {
            assert_replay(&redirected.send(&gateway), &first);
            assert_replay(&at("/v2/orders").send(&gateway), &second);
        }
        assert_replay(&at("/v2/orders").send(&gateway), &second);
        assert_eq!(upstream.count(KEY), 2, "{status} {location}");
        // Neither another target nor another body is the redirected request.
        assert_problem(&at("/v3/orders").send(&gateway), "key_reused", KEY);
        assert_problem(&at("/v2/orders?a=1").send(&gateway), "key_reused", KEY);
        assert_problem(&at("/v2/orders").body("{\"item\":\"rum\"}").send(&gateway), "key_reused", KEY);
        assert_problem(&order(KEY).to("PATCH /v2/orders").send(&gateway), "key_reused", KEY);
        assert_eq!(upstream.count(KEY), 2, "{status} {location}");
    }
}

#[test]
fn redirect_to_another_authority_is_followed_there() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    assert_answer(&step("/orders", 308, "http://eu.shop.example:8080/orders").send(&gateway), 308, "stored");
    let there = |host: &str| {
        let ask = Ask::bare("POST /orders").line(format!("Host: {host}")).line("Content-Type: application/json");
        ask.line(format!("Idempotency-Key: {KEY}")).body("{\"item\":\"tea\",\"qty\":1}")
    };
    let second = there("eu.shop.example:8080").send(&gateway);
    assert_answer(&second, 201, "stored");
    assert_replay(&there("eu.shop.example:8080").send(&gateway), &second);
    assert_problem(&there("us.shop.example").send(&gateway), "key_reused", KEY);
    assert_eq!(upstream.count(KEY), 2);
}

#[test]
fn five_redirects_are_followed_and_a_sixth_is_refused() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    let chain: Vec<Ask> = (0..6).map(|n| step(&format!("/{n}"), 307, &format!("/{}", n + 1))).collect();
    let firsts: Vec<_> = chain.iter().map(|step| step.send(&gateway)).collect();
    for first in &firsts {
        assert_answer(first, 307, "stored");
    }
    assert_problem(&at("/6").send(&gateway), "key_reused", KEY);
    // At any moment, and from any of its steps.
    for (step, first) in chain.iter().zip(&firsts).rev() {
        assert_replay(&step.send(&gateway), first);
    }
    assert_eq!(upstream.count(KEY), 6);
    // What nobody was led to is another request.
    assert_answer(
        &order("another-key-01").to("POST /0").step("status 307").step("header Location: /1").send(&gateway),
        307,
        "stored",
    );
    assert_problem(&order("another-key-01").to("POST /2").send(&gateway), "key_reused", "another-key-01");
    assert_eq!(upstream.count("another-key-01"), 1);
}

#[test]
fn redirect_to_the_same_request_frees_the_key() {
    for location in ["/orders", "http://shop.example/orders", "https://shop.example/orders#again", "", "./orders"] {
        let upstream = Upstream::start();
        let gateway = upstream.gateway("");
        assert_answer(&step("/orders", 307, location).send(&gateway), 307, "released");
        assert_answer(&order(KEY).send(&gateway), 201, "stored");
        assert_answer(&order(KEY).send(&gateway), 201, "replayed");
        assert_eq!(upstream.count(KEY), 2, "{location}");
    }
}

#[test]
fn redirected_request_has_states_of_its_own() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    let redirected = step("/orders", 308, "/v2/orders");
    let first = redirected.send(&gateway);
    assert_answer(&first, 308, "stored");
    // Declined: free again, for this request alone.
    assert_answer(&at("/v2/orders").step("status 429").send(&gateway), 429, "released");
    let sent = at("/v2/orders").step("hold it").spawn(&gateway);
    upstream.held("it");
    assert_problem(&at("/v2/orders").send(&gateway), "in_flight", KEY);
    assert_replay(&redirected.send(&gateway), &first);
    upstream.release("it");
    let second = sent.answer();
    assert_answer(&second, 201, "stored");
    assert_replay(&at("/v2/orders").send(&gateway), &second);
    assert_eq!(upstream.count(KEY), 3);

    // Lost: unknown, and not executed again.
    let lost = order("lost-key-0123").step("status 307").step("header Location: /v2/orders");
    assert_answer(&lost.send(&gateway), 307, "stored");
    let followed = order("lost-key-0123").to("POST /v2/orders");
    assert_problem(&followed.clone().step("reset").send(&gateway), "upstream_lost", "lost-key-0123");
    assert_problem(&followed.send(&gateway), "outcome_unknown", "lost-key-0123");
    assert_eq!(upstream.count("lost-key-0123"), 2);
}

#[test]
fn redirect_survives_a_killed_gateway() {
    let upstream = Upstream::start();
    let gateway = upstream.one_gateway("");
    let redirected = step("/orders", 307, "/v2/orders");
    let first = redirected.send(&gateway);
    assert_answer(&first, 307, "stored");
    let gateway = gateway.killed_and_restarted();
    let second = at("/v2/orders").send(&gateway);
    assert_answer(&second, 201, "stored");
    let gateway = gateway.killed_and_restarted();
    assert_replay(&redirected.send(&gateway), &first);
    assert_replay(&at("/v2/orders").send(&gateway), &second);
    assert_eq!(upstream.count(KEY), 2);
}

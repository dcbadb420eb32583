//! What a request and a response say besides their status: preferences, methods, keys that stay here, JSON bodies.

use crate::client::{assert_answer, assert_problem, assert_replay, order, plain_order};
use crate::upstream::Upstream;

const KEY: &str = "meaning-key-01234";

#[test]
fn attempt_after_a_lost_one_is_never_released_by_a_status() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[policy]\nguarantee = \"at-least-once\"");
    assert_problem(&order(KEY).step("reset").send(&gateway), "upstream_lost", KEY);
    for step in ["status 412", "status 429", "header Idempotency-Outcome: released", "status 503", "status 403"] {
        let answer = order(KEY).step(step).send(&gateway);
        assert_eq!(crate::client::outcome(&answer), "unknown", "{step}");
    }
    // The key is still this request's alone.
    assert_problem(&order(KEY).body("{\"item\":\"rum\"}").send(&gateway), "key_reused", KEY);
    let last = order(KEY).send(&gateway);
    assert_answer(&last, 201, "stored");
    assert_replay(&order(KEY).send(&gateway), &last);
    assert_eq!(upstream.count(KEY), 7);

    // A first attempt is released as ever, and so is one after a released one.
    for _ in 0..2 {
        assert_answer(&order("first-key-0123").step("status 412").send(&gateway), 412, "released");
    }
}

#[test]
fn replay_keeps_the_services_own_preference_applied() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    let ask = order(KEY).line("Prefer: return=minimal").step("header Preference-Applied: return=minimal");
    let first = ask.send(&gateway);
    assert_answer(&first, 201, "stored");
    assert_eq!(first.one("preference-applied"), "return=minimal");
    assert_replay(&ask.send(&gateway), &first);
    assert_eq!(ask.send(&gateway).one("preference-applied"), "return=minimal");
    // Beside what the gateway itself applied.
    let waited = ask.clone().line("Prefer: wait=3").send(&gateway);
    let applied: Vec<_> = waited.headers.iter().filter(|(name, _)| name == "preference-applied").collect();
    let applied: Vec<_> = applied.iter().map(|(_, value)| String::from_utf8_lossy(value)).collect();
    assert_eq!(applied, ["return=minimal", "wait=3"]);
}

#[test]
fn prefer_is_passed_on_without_wait_and_its_quoted_commas_are_kept() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    let ask =
        order(KEY).line("Prefer: note=\"a, wait=9; b\", wait=2, respond-async").line("Prefer: x; y=\"\\\",\", wait=7");
    let first = ask.send(&gateway);
    assert_answer(&first, 201, "stored");
    let seen = &upstream.executed(KEY)[0];
    assert_eq!(seen.header("prefer"), ["note=\"a, wait=9; b\", respond-async, x; y=\"\\\",\""]);
    assert_eq!(ask.send(&gateway).one("preference-applied"), "wait=2");
}

#[test]
fn method_in_another_case_is_refused() {
    let upstream = Upstream::start();
    let settings = "[[route]]\npath = \"/strict\"\nmissing = \"reject\"\n[[route]]\npath = \"/made\"\nmissing = \"generate\"\n\
                    [[route]]\npath = \"/puts\"\nmethods = [\"PUT\"]";
    let gateway = upstream.gateway(settings);
    for method in ["patch", "Patch", "post", "pOST"] {
        assert_problem(&order(KEY).to(&format!("{method} /orders")).send(&gateway), "method_case", KEY);
        for path in ["/strict", "/made"] {
            assert_problem(&plain_order().to(&format!("{method} {path}")).send(&gateway), "method_case", KEY);
        }
    }
    assert_problem(&order(KEY).to("put /puts").send(&gateway), "method_case", KEY);
    assert_eq!(upstream.executions().len(), 0);
    // The key is as free as before.
    assert_answer(&order(KEY).to("PATCH /orders").send(&gateway), 201, "stored");
    // Without a key, where none is needed, and for methods that are not protected, nothing is said.
    assert_eq!(plain_order().to("patch /orders").send(&gateway).status, 201);
    assert_eq!(order(KEY).to("put /orders").send(&gateway).status, 201);
}

#[test]
fn key_stays_here_where_it_is_not_to_be_forwarded() {
    let upstream = Upstream::start();
    let gateway =
        upstream.gateway("[[route]]\npath = \"/made\"\nmissing = \"generate\"\n[policy]\nforward_key = false");
    let ask = order(KEY).line("X-Idempotency-Key: the-same").line("X-Other: 1");
    let first = ask.send(&gateway);
    assert_answer(&first, 201, "stored");
    assert_replay(&ask.send(&gateway), &first);
    let made = plain_order().to("POST /made").send(&gateway);
    assert_answer(&made, 201, "stored");
    assert!(!made.one("idempotency-key").is_empty(), "the client is told the key all the same");
    let seen = upstream.executions();
    assert_eq!(seen.len(), 2);
    for execution in seen {
        assert!(execution.header("idempotency-key").is_empty(), "{execution:?}");
        assert!(execution.header("x-idempotency-key").is_empty(), "{execution:?}");
        assert_eq!(execution.header("onceward-claim").len(), 1, "{execution:?}");
    }
    assert_eq!(upstream.executions()[0].header("x-other"), ["1"]);

    let aliased = upstream.gateway("[policy]\nforward_key = false\nkey_headers = [\"PayPal-Request-Id\"]");
    let ask = plain_order().line("PayPal-Request-Id: aliased-key-01");
    let first = ask.send(&aliased);
    assert_answer(&first, 201, "stored");
    assert_replay(&ask.send(&aliased), &first);
    let seen = upstream.executions();
    assert_eq!(seen.len(), 3);
    assert!(seen[2].header("paypal-request-id").is_empty(), "{:?}", seen[2]);

    let forwarding = upstream.gateway("");
    assert_answer(&order("forwarded-key-1").send(&forwarding), 201, "stored");
    assert_eq!(upstream.count("forwarded-key-1"), 1);
}

#[test]
fn released_when_reads_the_body() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[policy]\nreleased_when = \"/order\"");
    for _ in 0..2 {
        assert_answer(&order(KEY).send(&gateway), 201, "released");
    }
    assert_answer(&order("failed-key-01").step("status 500").send(&gateway), 500, "stored");
    assert_answer(&order("no-json-key-1").step("body 7").send(&gateway), 201, "stored");
    assert_eq!(upstream.executions().len(), 4);
}

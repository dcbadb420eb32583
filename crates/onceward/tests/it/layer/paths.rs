//! The public paths: what refusals link to, and what became of a key.

use std::time::Duration;

use axum::http::StatusCode;
use axum::response::IntoResponse;
use onceward::policy::Disposition;
use onceward::principal::{PrincipalPart, PrincipalRule};
use onceward::problem::Code;

use crate::shop::{Run, Setup, Shop, made, order, request, until};

#[tokio::test]
async fn the_policy_says_what_is_protected_and_for_how_long() {
    let shop = Setup::default().open(made).await;
    let got = shop.send(&request("GET", "/.idempotency/policy", &[], "")).await;
    assert_eq!((got.status, got.header("content-type")), (200, Some("application/json")));
    let json = got.json();
    assert_eq!(json["header"], "Idempotency-Key");
    assert_eq!(json["key"]["bytes_max"], 255);
    assert_eq!(json["methods"], serde_json::json!(["POST", "PATCH"]));
    assert_eq!(json["retention_seconds"], 86_400.0);
    assert_eq!((json["missing"].as_str(), json["guarantee"].as_str()), (Some("pass"), Some("at-most-once")));
    assert_eq!(json["operation"], "/.idempotency/operation");
    assert!(json["routes"].is_array());
    let any = shop.send(&request("GET", "/.idempotency/policy", &[("accept", "*/*")], "")).await;
    assert_eq!(any.header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn each_code_has_its_anchor() {
    let shop = Setup::default().open(made).await;
    let browser = [("accept", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8")];
    let got = shop.send(&request("GET", "/.idempotency/policy", &browser, "")).await;
    assert_eq!((got.status, got.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let page = String::from_utf8(got.body).expect("text");
    for code in Code::ALL {
        assert_eq!(page.matches(&format!("id=\"{}\"", code.row().code)).count(), 1, "{code:?}");
    }
}

#[tokio::test]
async fn a_refusal_links_to_its_anchor_where_the_paths_are_mounted() {
    for mounted in [true, false] {
        let shop = Setup { mounted, ..Setup::default() }.open(made).await;
        shop.order("order-7", "tea").await.stored(201, "made 1");
        for (sent, code) in [(order("order-7", "rum", &[]), "key_reused"), (order("a b", "rum", &[]), "key_invalid")] {
            let got = shop.send(&sent).await;
            let json = got.json();
            match mounted {
                true => {
                    let kind = format!("/.idempotency/policy#{code}");
                    assert_eq!(json["type"], kind.as_str());
                    assert_eq!(got.header("link"), Some(format!("<{kind}>; rel=\"describedby\"").as_str()));
                }
                false => assert_eq!((json["type"].as_str(), got.header("link")), (Some("about:blank"), None)),
            }
            assert!(
                json["instance"].as_str().is_some_and(|id| id.starts_with("urn:onceward:") && id.len() > 30),
                "{json}"
            );
        }
        let said = String::from_utf8(shop.order("order-7", "rum").await.body).expect("text");
        assert!(!said.contains("order-7"), "never the key: {said}");
    }
}

#[tokio::test]
async fn a_refusal_names_the_same_operation_each_time_and_no_other() {
    let shop = Setup::default().open(made).await;
    let instance = async |key: &str| {
        shop.order(key, "tea").await;
        shop.order(key, "rum").await.json()["instance"].as_str().expect("text").to_owned()
    };
    let (one, again, other) = (instance("order-7").await, instance("\"order-7\"").await, instance("order-8").await);
    assert_eq!(one, again);
    assert_ne!(one, other);
}

#[tokio::test]
async fn other_methods_and_paths() {
    let shop = Setup::default().open(made).await;
    for path in ["policy", "operation"] {
        let got = shop.send(&request("DELETE", &format!("/.idempotency/{path}"), &[], "")).await;
        assert_eq!((got.status, got.header("allow")), (405, Some("GET, HEAD")));
    }
    let got = shop.send(&request("GET", "/.idempotency/keys", &[], "")).await;
    assert_eq!((got.status, got.header("allow")), (405, Some("POST")));
    assert_eq!(shop.send(&request("GET", "/.idempotency/else", &[], "")).await.status, 404);
}

async fn ask(shop: &Shop, key: &str) -> crate::shop::Got {
    shop.operation(key, &[]).await
}

#[tokio::test]
async fn what_became_of_a_key() {
    let setup = Setup::manual().policy(|policy| policy.retention = Duration::from_secs(100));
    let shop = setup
        .open(|run: Run| match &run.body[..] {
            b"busy" => StatusCode::TOO_MANY_REQUESTS.into_response(),
            b"lost" => StatusCode::BAD_GATEWAY.into_response(),
            b"secret" => {
                run.claim.as_ref().expect("a claim").declare(Disposition::NotKept);
                made(run)
            }
            _ => made(run),
        })
        .await;
    let never = ask(&shop, "order-7").await;
    never.refused(404, "operation_unknown", "released");
    assert_eq!(never.json()["executed"], "unknown");

    shop.kitchen.shut();
    let first = shop.sending(order("order-7", "tea", &[]));
    shop.kitchen.began(1).await;
    let running = ask(&shop, "order-7").await;
    assert_eq!((running.status, running.outcome(), running.header("retry-after")), (202, Some("in-flight"), Some("1")));
    assert_eq!(running.json()["state"], "in-flight");
    shop.kitchen.open();
    first.await.expect("an answer").stored(201, "made 1");
    let answer = ask(&shop, "order-7").await;
    answer.replayed(201, "made 1");
    assert_eq!(answer.header("location"), Some("/orders/1"));
    ask(&shop, "\"order-7\"").await.replayed(201, "made 1");

    for (key, body) in [("busy", "busy"), ("lost", "lost"), ("secret", "secret")] {
        shop.order(key, body).await;
    }
    ask(&shop, "busy").await.refused(404, "operation_unknown", "released");
    ask(&shop, "lost").await.refused(409, "outcome_unknown", "unknown");
    let secret = ask(&shop, "secret").await;
    secret.refused(409, "answer_not_kept", "not-stored");
    assert_eq!(secret.json()["first_status"], 201);
    shop.clock.advance(Duration::from_secs(100));
    let expired = ask(&shop, "order-7").await;
    expired.refused(409, "key_expired", "expired");
    assert_eq!(expired.json()["executed"], "yes");
    assert_eq!(shop.kitchen.runs(), 4, "asking executes nothing");

    shop.send(&request("GET", "/.idempotency/operation", &[], "")).await.refused(400, "key_missing", "rejected");
    ask(&shop, "a b").await.refused(400, "key_invalid", "rejected");
}

#[tokio::test]
async fn whoever_waits_for_an_operation_gets_its_answer() {
    let shop = Setup::default().open(made).await;
    shop.kitchen.shut();
    let first = shop.sending(order("order-7", "tea", &[]));
    shop.kitchen.began(1).await;
    let wait = request("GET", "/.idempotency/operation", &[("idempotency-key", "order-7"), ("prefer", "wait=15")], "");
    let waiting = shop.sending(wait);
    until("the look", || shop.store.calls("get") >= 1).await;
    shop.kitchen.open();
    let got = waiting.await.expect("an answer");
    got.replayed(201, "made 1");
    assert_eq!(got.header("preference-applied"), Some("wait=15"));
    first.await.expect("an answer").stored(201, "made 1");
}

#[tokio::test]
async fn an_anonymous_caller_is_told_the_state_and_never_the_answer() {
    let setup =
        Setup::default().policy(|policy| policy.principal = PrincipalRule::Parts(vec![PrincipalPart::Authorization]));
    let shop = setup
        .open(|run: Run| match &run.body[..] {
            b"lost" => StatusCode::BAD_GATEWAY.into_response(),
            _ => made(run),
        })
        .await;
    shop.kitchen.shut();
    let first = shop.sending(order("order-7", "tea", &[]));
    shop.kitchen.began(1).await;
    let got = ask(&shop, "order-7").await;
    assert_eq!((got.status, got.json()["state"].as_str()), (200, Some("in-flight")));
    shop.kitchen.open();
    first.await.expect("an answer").stored(201, "made 1");
    let got = ask(&shop, "order-7").await;
    let json = got.json();
    assert_eq!((got.status, json["state"].as_str(), json["executed"].as_str()), (200, Some("stored"), Some("yes")));
    let all = format!("{got:?}{}", String::from_utf8_lossy(&got.body));
    assert!(!all.contains("made") && got.header("location").is_none(), "{all}");
    shop.order("lost", "lost").await;
    let got = ask(&shop, "lost").await;
    let json = got.json();
    assert_eq!(
        (got.status, json["state"].as_str(), json["executed"].as_str()),
        (200, Some("unknown"), Some("unknown"))
    );

    // Somebody else's answer is not even there.
    let ann = [("authorization", "Bearer ann")];
    shop.send(&order("anns", "tea", &ann)).await.stored(201, "made 3");
    assert_eq!(ask(&shop, "anns").await.status, 404);
    assert_eq!(shop.operation("anns", &[("authorization", "Bearer bob")]).await.status, 404);
    shop.operation("anns", &ann).await.replayed(201, "made 3");
    shop.operation("anns", &[("cookie", "a=1")]).await.refused(403, "principal_unknown", "rejected");
}

/// Within a nested router a handler sees the rest of the path alone.
#[tokio::test]
async fn two_resources_of_a_nested_router_are_not_one() {
    let shop = Setup::default().open(made).await;
    let order = |path: &str| request("POST", path, &[("idempotency-key", "order-7")], "tea");
    shop.send(&order("/shops/1/orders")).await.stored(201, "made 1");
    shop.send(&order("/shops/1/orders")).await.replayed(201, "made 1");
    for other in ["/shops/2/orders", "/orders", "/shops/1/teas"] {
        shop.send(&order(other)).await.refused(422, "key_reused", "mismatch");
    }
    assert_eq!(shop.kitchen.runs(), 1);
}

//! The layer over real sockets: what a client sees, and how often the service ran.

mod cache;
mod codings;
mod elsewhere;
mod ends;
mod faults;
mod golden;
mod keys;
mod late;
mod losses;
mod overtime;
mod paths;
mod sizes;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Router, http};
use onceward::claim::Claim;
use onceward::fingerprint::Rules;
use onceward::layer::IdempotencyLayer;
use onceward::policy::{Guarantee, MissingKey};
use onceward::principal::{PrincipalPart, PrincipalRule};
use onceward::secret::Secret;
use onceward::store::{MemoryStore, Store};
use onceward::wire::Outcome;

use crate::shop::{Got, Run, Setup, made, order, request, serve, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_equal_requests_at_once_execute_once() {
    let shop = Setup::default().open(made).await;
    shop.kitchen.shut();
    let sent: Vec<_> = (0..100).map(|_| shop.sending(order("order-7", "tea", &[]))).collect();
    until("the other 99 answers", || sent.iter().filter(|sent| sent.is_finished()).count() == 99).await;
    shop.kitchen.open();
    let mut stored = 0;
    for sent in sent {
        let got = sent.await.expect("an answer");
        match got.status {
            201 => {
                got.stored(201, "made 1");
                stored += 1;
            }
            _ => got.refused(409, "in_flight", "in-flight"),
        }
    }
    assert_eq!((stored, shop.kitchen.runs()), (1, 1));
    shop.order("order-7", "tea").await.replayed(201, "made 1");
    assert_eq!((shop.kitchen.runs(), shop.counts.prevented.load(Ordering::SeqCst)), (1, 100));
}

#[tokio::test]
async fn a_replay_is_the_first_answer_byte_for_byte() {
    let lines: [(&str, &[u8]); 14] = [
        ("x-dup", b"1"),
        ("location", b"/orders/7"),
        ("x-dup", b"2"),
        ("x-dup", b"2"),
        ("x-latin", b"caf\xe9 \x80\xff"),
        ("etag", b"\"7\""),
        ("vary", b"accept"),
        ("content-language", b"de"),
        ("x-empty", b""),
        ("set-cookie", b"session=1"),
        ("www-authenticate", b"Basic"),
        ("access-control-allow-origin", b"*"),
        ("cache-control", b"max-age=60"),
        ("date", b"Thu, 01 Jan 1970 00:00:00 GMT"),
    ];
    let body: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    let answer = body.clone();
    let shop = Setup::default()
        .open(move |_| {
            let mut response = Response::new(Body::from(answer.clone()));
            *response.status_mut() = StatusCode::CREATED;
            for (name, value) in lines {
                let value = http::HeaderValue::from_bytes(value).expect("a value");
                response.headers_mut().append(http::HeaderName::from_static(name), value);
            }
            response
        })
        .await;
    let first = shop.order("order-7", "tea").await;
    assert_eq!((first.status, first.outcome(), &first.body), (201, Some("stored"), &body));
    let kept = |got: &Got, but: &[&str]| -> Vec<(String, Vec<u8>)> {
        got.headers.iter().filter(|(name, _)| !but.contains(&name.as_str())).cloned().collect()
    };
    for name in ["set-cookie", "www-authenticate", "access-control-allow-origin"] {
        assert!(first.header(name).is_some(), "{name} is the first client's");
    }
    let gone = [
        "set-cookie",
        "www-authenticate",
        "access-control-allow-origin",
        "cache-control",
        "date",
        "idempotency-outcome",
    ];
    let want = kept(&first, &gone);
    assert!(want.len() >= 9, "{want:?}");
    for _ in 0..2 {
        let replay = shop.order("order-7", "tea").await;
        assert_eq!((replay.status, replay.outcome(), &replay.body), (201, Some("replayed"), &body));
        assert_eq!(kept(&replay, &["cache-control", "date", "idempotency-outcome", "idempotency-replayed"]), want);
        assert_eq!(replay.header("idempotency-replayed"), Some("true"));
        assert_eq!(replay.header("cache-control"), Some("no-store"));
        assert!(replay.header("date").is_some_and(|date| !date.contains("1970")), "a date of its own");
    }
    assert_eq!(shop.kitchen.runs(), 1);
}

#[tokio::test]
async fn another_request_with_the_key_is_refused_in_each_state() {
    let setup = Setup::manual().policy(|policy| {
        policy.lease = Duration::from_secs(15);
        policy.retention = Duration::from_secs(100);
        policy.tombstone = Duration::from_secs(1000);
    });
    let shop = setup.open(made).await;
    let others = || {
        [
            order("order-7", "rum", &[]),
            order("order-7", "tea", &[("content-type", "text/plain")]),
            order("order-7", "tea", &[("content-encoding", "identity")]),
            request("POST", "/teas", &[("idempotency-key", "order-7")], "tea"),
            request("POST", "/orders?x", &[("idempotency-key", "order-7")], "tea"),
            request("PATCH", "/orders", &[("idempotency-key", "\"order-7\"")], "tea"),
        ]
    };
    let refuse_all = async |state: &str| {
        for other in others() {
            let got = shop.send(&other).await;
            got.refused(422, "key_reused", "mismatch");
            let said = String::from_utf8_lossy(&got.body).into_owned();
            assert!(!said.contains("made") && !said.contains("order-7"), "{state}: {said}");
            assert!(got.header("location").is_none() && got.header("retry-after").is_none(), "{state}");
        }
    };
    shop.kitchen.shut();
    let first = shop.sending(order("order-7", "tea", &[]));
    shop.kitchen.began(1).await;
    refuse_all("in flight").await;
    shop.kitchen.open();
    first.await.expect("an answer").stored(201, "made 1");
    refuse_all("completed").await;
    shop.clock.advance(Duration::from_secs(100));
    refuse_all("past retention").await;
    shop.layer.engine().sweep().await.expect("the store answers");
    assert_eq!(shop.stats().await.tombstones, 1);
    refuse_all("a tombstone").await;
    shop.order("order-7", "tea").await.refused(409, "key_expired", "expired");
    assert_eq!(shop.kitchen.runs(), 1);
    shop.clock.advance(Duration::from_secs(1000));
    shop.order("order-7", "rum").await.stored(201, "made 2");
}

#[tokio::test]
async fn an_answer_is_shown_until_retention_ends_and_the_key_known_until_the_tombstone_does() {
    for swept in [true, false] {
        let setup = Setup::manual().policy(|policy| {
            policy.retention = Duration::from_secs(100);
            policy.tombstone = Duration::from_secs(1000);
        });
        let shop = setup.open(made).await;
        let sweep = async || {
            if swept {
                shop.layer.engine().sweep().await.expect("the store answers");
            }
        };
        shop.order("order-7", "tea").await.stored(201, "made 1");
        shop.clock.advance(Duration::from_millis(99_999));
        sweep().await;
        shop.order("order-7", "tea").await.replayed(201, "made 1");
        shop.clock.advance(Duration::from_millis(1));
        sweep().await;
        let got = shop.order("order-7", "tea").await;
        got.refused(409, "key_expired", "expired");
        assert_eq!((got.json()["executed"].as_str(), got.json()["retry"].as_str()), (Some("yes"), Some("stop")));
        shop.clock.advance(Duration::from_millis(999_999));
        sweep().await;
        shop.order("order-7", "tea").await.refused(409, "key_expired", "expired");
        assert_eq!(shop.kitchen.runs(), 1);
        shop.clock.advance(Duration::from_millis(1));
        sweep().await;
        shop.order("order-7", "tea").await.stored(201, "made 2");
    }
}

#[tokio::test]
async fn a_malformed_key_is_refused_before_the_store_is_touched() {
    let shop = Setup::default().open(made).await;
    let long = "k".repeat(256);
    for headers in [
        vec![("idempotency-key", "")],
        vec![("idempotency-key", "a b")],
        vec![("idempotency-key", "\"a")],
        vec![("idempotency-key", "\"a\";p=1")],
        vec![("idempotency-key", long.as_str())],
        vec![("idempotency-key", "a"), ("idempotency-key", "a")],
        vec![("idempotency-key", "a"), ("connection", "idempotency-key")],
    ] {
        let got = shop.send(&request("POST", "/orders", &headers, "tea")).await;
        got.refused(400, "key_invalid", "rejected");
        let json = got.json();
        assert_eq!((json["executed"].as_str(), json["retry"].as_str()), (Some("no"), Some("new-key")));
        let detail = json["detail"].as_str().expect("text");
        assert!(detail.ends_with('.') && detail.starts_with(char::is_uppercase), "{detail}");
    }
    assert_eq!((shop.kitchen.runs(), shop.store.all_calls()), (0, 0));
    let longest = "k".repeat(255);
    shop.order(&longest, "tea").await.stored(201, "made 1");
    shop.order(&format!("\"{longest}\""), "tea").await.replayed(201, "made 1");
}

#[tokio::test]
async fn where_a_key_is_required_its_absence_is_refused() {
    let shop = Setup::default().policy(|policy| policy.missing = MissingKey::Reject).open(made).await;
    let got = shop.send(&request("POST", "/orders", &[], "tea")).await;
    got.refused(400, "key_missing", "rejected");
    assert_eq!(got.json()["retry"], "new-key");
    assert_eq!((shop.kitchen.runs(), shop.store.all_calls()), (0, 0));
    // A method that is idempotent by itself needs none, and its key is ignored.
    let put = shop.send(&request("PUT", "/orders", &[], "tea")).await;
    assert_eq!((put.status, put.outcome()), (201, None));
    shop.order("order-7", "tea").await.stored(201, "made 2");
}

#[test]
fn a_body_that_is_passed_on_grows_by_nothing() {
    assert_eq!(size_of::<onceward::layer::Body<Body>>(), size_of::<Body>());
}

#[tokio::test]
async fn without_a_key_or_by_an_idempotent_method_nothing_is_protected_and_nothing_is_said() {
    let shop = Setup::default().open(made).await;
    let key = [("idempotency-key", "order-7")];
    for (n, sent) in [
        request("POST", "/orders", &[], "tea"),
        request("POST", "/orders", &[], "tea"),
        request("PUT", "/orders", &key, "tea"),
        request("PUT", "/orders", &key, "rum"),
    ]
    .iter()
    .enumerate()
    {
        let got = shop.send(sent).await;
        assert_eq!(got.told(), (201, "-", format!("made {}", n + 1).as_str()));
        assert!(got.headers.iter().all(|(name, _)| !name.starts_with("idempotency") && name != "preference-applied"));
    }
    assert_eq!(shop.store.all_calls(), 0);
    shop.order("order-7", "tea").await.stored(201, "made 5");
    // The key of a PUT is no key: it meets nothing.
    assert_eq!(shop.send(&request("PUT", "/orders", &key, "rum")).await.told(), (201, "-", "made 6"));
    let patched = request("PATCH", "/orders", &[("idempotency-key", "order-8")], "tea");
    shop.send(&patched).await.stored(201, "made 7");
    shop.send(&patched).await.replayed(201, "made 7");
}

#[tokio::test]
async fn nobody_is_taken_for_somebody_else() {
    let shop = Setup::default().policy(|policy| policy.principal = PrincipalRule::Unset).open(made).await;
    for (headers, line) in [
        ([("authorization", "Bearer 1")], "[\"authorization\"]"),
        ([("cookie", "session=1")], "[\"cookie:session\"]"),
        ([("x-api-key", "1")], "[\"header:x-api-key\"]"),
    ] {
        let got = shop.send(&order("order-7", "tea", &headers)).await;
        got.refused(403, "principal_unknown", "rejected");
        assert!(got.json()["detail"].as_str().is_some_and(|mend| mend.contains(line)));
    }
    assert_eq!((shop.kitchen.runs(), shop.store.all_calls()), (0, 0));
    shop.order("order-7", "tea").await.stored(201, "made 1");
    shop.order("order-7", "tea").await.replayed(201, "made 1");

    let by_token = |policy: &mut onceward::policy::Policy| {
        policy.principal = PrincipalRule::Parts(vec![PrincipalPart::Authorization])
    };
    let shop = Setup::default().policy(by_token).open(made).await;
    let (ann, bob) = ([("authorization", "Bearer ann")], [("authorization", "Bearer bob")]);
    shop.kitchen.shut();
    let anns = shop.sending(order("order-7", "tea", &ann));
    shop.kitchen.began(1).await;
    // Bob neither waits for Ann, nor sees her answer, nor is told that his request is another one.
    shop.kitchen.let_out(2..3);
    shop.send(&order("order-7", "rum", &bob)).await.stored(201, "made 2");
    shop.kitchen.open();
    anns.await.expect("an answer").stored(201, "made 1");
    shop.send(&order("order-7", "tea", &ann)).await.replayed(201, "made 1");
    shop.send(&order("order-7", "rum", &bob)).await.replayed(201, "made 2");
    shop.order("order-7", "cocoa").await.stored(201, "made 3");
    shop.send(&order("order-7", "tea", &[("cookie", "session=1")])).await.refused(403, "principal_unknown", "rejected");
    assert_eq!(shop.kitchen.runs(), 3);
}

#[tokio::test]
async fn where_all_callers_are_one_they_share_their_keys() {
    let shop = Setup::default().open(made).await;
    shop.send(&order("order-7", "tea", &[("authorization", "Bearer ann")])).await.stored(201, "made 1");
    shop.send(&order("order-7", "tea", &[("cookie", "session=1")])).await.replayed(201, "made 1");
    shop.order("order-7", "tea").await.replayed(201, "made 1");
}

#[tokio::test]
async fn a_lost_holder_is_unknown_or_taken_over_as_the_guarantee_says() {
    for guarantee in [Guarantee::AtMostOnce, Guarantee::AtLeastOnce] {
        let shop = Setup::manual()
            .policy(|policy| policy.guarantee = guarantee)
            .open(|run: Run| match run.n {
                1 => panic!("the first run dies"),
                _ => {
                    let earlier = run.claim.as_ref().is_some_and(Claim::earlier_attempt);
                    format!("run {}, earlier attempt: {earlier}", run.n).into_response()
                }
            })
            .await;
        shop.order("order-7", "tea").await.refused(500, "handler_panicked", "unknown");
        shop.order("order-7", "rum").await.refused(422, "key_reused", "mismatch");
        match guarantee {
            Guarantee::AtLeastOnce => {
                shop.order("order-7", "tea").await.stored(200, "run 2, earlier attempt: true");
                shop.order("order-7", "tea").await.replayed(200, "run 2, earlier attempt: true");
            }
            _ => {
                for _ in 0..3 {
                    let got = shop.order("order-7", "tea").await;
                    got.refused(409, "outcome_unknown", "unknown");
                    assert_eq!(got.json()["retry"], "stop");
                }
                // No lease, no retention and no sweep ever frees it.
                shop.clock.advance(Duration::from_secs(400 * 86_400));
                shop.layer.engine().sweep().await.expect("the store answers");
                shop.order("order-7", "tea").await.refused(409, "outcome_unknown", "unknown");
                assert_eq!((shop.kitchen.runs(), shop.stats().await.unknown), (1, 1));
            }
        }
    }
}

#[tokio::test]
async fn a_handler_may_ask_for_its_claim() {
    async fn required(Extension(claim): Extension<Claim>) -> String {
        format!("{} {}", claim.earlier_attempt(), claim.header_value().len())
    }
    async fn optional(claim: Option<Extension<Claim>>) -> String {
        format!("{}", claim.is_some())
    }
    let layer = IdempotencyLayer::new(MemoryStore::default());
    let routes = Router::new().route("/required", post(required)).route("/optional", post(optional));
    let address = serve(routes.clone().route_layer(layer).merge(Router::new().nest("/bare", routes))).await;
    let send = async |target: &str, key: &[(&str, &str)]| {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
        tokio::io::AsyncWriteExt::write_all(&mut stream, &request("POST", target, key, "")).await.expect("open");
        crate::shop::Sent { stream }.answer().await
    };
    let key = [("idempotency-key", "a")];
    assert_eq!(send("/required", &key).await.told(), (200, "stored", "false 97"));
    assert_eq!(send("/optional", &[]).await.told(), (200, "-", "false"));
    assert_eq!(send("/optional", &[("idempotency-key", "b")]).await.told(), (200, "stored", "true"));
    assert_eq!(send("/required", &[]).await.status, 500, "there is no such extension");
    // A route without the layer gives no claims, key or not.
    assert_eq!(send("/bare/optional", &key).await.told(), (200, "-", "false"));
    assert_eq!(send("/bare/required", &key).await.status, 500);
}

#[tokio::test]
async fn each_outcome_is_counted_as_it_was_said() {
    let shop = Setup::default().open(made).await;
    let _ = shop.order("a b", "tea").await;
    let _ = shop.order("order-7", "tea").await;
    let _ = shop.order("order-7", "tea").await;
    let _ = shop.order("order-7", "rum").await;
    let _ = shop.send(&request("POST", "/orders", &[], "tea")).await;
    let told = shop.counts.answered.lock().expect("no panic").clone();
    assert_eq!(told, [Outcome::Rejected, Outcome::Stored, Outcome::Replayed, Outcome::Mismatch]);
}

#[tokio::test]
async fn services_that_share_a_store_share_no_key() {
    let shop = Setup::default().open(made).await;
    let other = Setup { namespace: "other", store: Some(Arc::clone(&shop.store)), ..Setup::default() };
    let other = other.open(|_| "another service's".into_response()).await;
    shop.order("order-7", "tea").await.stored(201, "made 1");
    other.order("order-7", "rum").await.stored(200, "another service's");
    shop.order("order-7", "tea").await.replayed(201, "made 1");
}

#[tokio::test]
async fn processes_of_one_service_share_their_keys_and_the_secret() {
    let shop = Setup::default().open(made).await;
    let second = Setup { store: Some(Arc::clone(&shop.store)), ..Setup::default() };
    let second = second.open(|_| "it ran again".into_response()).await;
    shop.order("order-7", "tea").await.stored(201, "made 1");
    second.order("order-7", "tea").await.replayed(201, "made 1");
    second.order("order-7", "rum").await.refused(422, "key_reused", "mismatch");

    let store = Arc::clone(&shop.store) as Arc<dyn Store>;
    let stranger = IdempotencyLayer::builder(store).secret(Secret::new([7; 32])).build();
    let error = stranger.engine().start().await.expect_err("another secret would miss every key");
    assert!(error.to_string().contains("secret_file"), "{error}");
}

#[tokio::test]
async fn a_change_of_the_rules_turns_no_honest_retry_into_a_mismatch() {
    let by_tenant = |policy: &mut onceward::policy::Policy| {
        let headers = vec![http::HeaderName::from_static("x-tenant")];
        policy.fingerprint = Arc::new(Rules { headers, ..Rules::default() });
    };
    for (name, before, after) in [("a header more", false, true), ("a header less", true, false)] {
        let setup = |strict: bool| if strict { Setup::default().policy(by_tenant) } else { Setup::default() };
        let shop = setup(before).open(made).await;
        let restarted = Setup { store: Some(Arc::clone(&shop.store)), ..setup(after) };
        let restarted = restarted.open(|_| "it ran again".into_response()).await;
        let sent = |tenant: &str| order("order-7", "tea", &[("x-tenant", tenant)]);
        shop.send(&sent("1")).await.stored(201, "made 1");
        restarted.send(&sent("1")).await.replayed(201, "made 1");
        // It is compared as the first one was.
        let other = restarted.send(&sent("2")).await;
        match before {
            true => other.refused(422, "key_reused", "mismatch"),
            false => other.replayed(201, "made 1"),
        }
        assert_eq!(restarted.kitchen.runs(), 0, "{name}");
    }
}

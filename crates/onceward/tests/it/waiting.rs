//! Duplicates that wait: for how long, how many, and what they get.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::post;
use onceward::layer::IdempotencyLayer;
use onceward::policy::{Disposition, Policy};
use onceward::principal::PrincipalRule;
use onceward::store::Store;
use tokio::task::JoinHandle;

use crate::shop::{Got, Run, Sent, Setup, Shop, made, order, serve, until};

const WAIT: [(&str, &str); 1] = [("prefer", "wait=10")];

/// Sends an order that stays in the kitchen, and `waiters` duplicates that wait for it.
async fn with_waiters(shop: &Shop, waiters: usize) -> (JoinHandle<Got>, Vec<JoinHandle<Got>>) {
    shop.kitchen.shut();
    let first = shop.sending(order("order-7", "tea", &[]));
    shop.kitchen.began(1).await;
    let mut waiting = Vec::new();
    for n in 1..=waiters {
        waiting.push(shop.sending(order("order-7", "tea", &WAIT)));
        // Whoever met the first joins those who wait within the same poll; one of them looks for all.
        until("a waiter", || shop.store.calls("insert") > n && shop.store.calls("get") >= 1).await;
    }
    (first, waiting)
}

#[tokio::test]
async fn whoever_waits_gets_the_answer() {
    let shop = Setup::manual().open(made).await;
    let (first, waiting) = with_waiters(&shop, 3).await;
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    shop.kitchen.open();
    first.await.expect("an answer").stored(201, "made 1");
    for waiting in waiting {
        let got = waiting.await.expect("an answer");
        got.replayed(201, "made 1");
        assert_eq!(got.header("preference-applied"), Some("wait=10"));
    }
    assert_eq!(shop.kitchen.runs(), 1);
}

#[tokio::test]
async fn whoever_does_not_wait_is_told_at_once() {
    let shop = Setup::manual().open(made).await;
    let (first, _) = with_waiters(&shop, 0).await;
    for prefers in [vec![], vec![("prefer", "respond-async")], vec![("prefer", "wait")]] {
        let got = shop.send(&order("order-7", "tea", &prefers)).await;
        got.refused(409, "in_flight", "in-flight");
        assert!(got.header("preference-applied").is_none(), "{prefers:?}");
    }
    shop.kitchen.open();
    let first = first.await.expect("an answer");
    first.stored(201, "made 1");
    assert!(first.header("preference-applied").is_none());
    // Nobody waited for an own execution.
    assert!(shop.send(&order("order-8", "tea", &WAIT)).await.header("preference-applied").is_none());
}

#[tokio::test]
async fn waiting_ends_when_the_client_said_and_not_later_than_the_limit() {
    for (name, prefer, route, seconds, applied) in [
        ("as the client says", Some("wait=10"), 0, 10, Some("wait=10")),
        ("capped", Some("wait=100"), 0, 30, Some("wait=30")),
        ("as the route says", None, 7, 7, None),
        ("the route is capped, too", None, 100, 30, None),
        ("the client is asked before the route", Some("wait=3"), 20, 3, Some("wait=3")),
    ] {
        let setup = Setup::manual()
            .policy(|policy| {
                policy.wait = Duration::from_secs(route);
                // Long enough that nothing else happens meanwhile.
                policy.lease = Duration::from_secs(3600);
            })
            .limits(|limits| limits.wait_max = Duration::from_secs(30));
        let shop = setup.open(made).await;
        shop.kitchen.shut();
        let _first = shop.sending(order("order-7", "tea", &[]));
        shop.kitchen.began(1).await;
        let prefers: Vec<_> = prefer.map(|prefer| ("prefer", prefer)).into_iter().collect();
        let waiting = shop.sending(order("order-7", "tea", &prefers));
        until("the waiter", || shop.store.calls("get") >= 1).await;
        shop.clock.advance(Duration::from_millis(seconds * 1000 - 1));
        until("another look", || shop.store.calls("get") >= 2).await;
        assert!(!waiting.is_finished(), "{name}");
        shop.clock.advance(Duration::from_millis(1));
        let got = waiting.await.expect("an answer");
        got.refused(409, "in_flight", "in-flight");
        assert_eq!(got.header("preference-applied"), applied, "{name}");
        assert_eq!(got.header("retry-after"), Some(seconds.to_string().as_str()), "{name}");
    }
}

#[tokio::test]
async fn a_client_that_will_not_wait_does_not_whatever_the_route_says() {
    let shop = Setup::manual().policy(|policy| policy.wait = Duration::from_secs(20)).open(made).await;
    let (_first, _) = with_waiters(&shop, 0).await;
    shop.send(&order("order-7", "tea", &[("prefer", "wait=0")])).await.refused(409, "in_flight", "in-flight");
}

#[tokio::test]
async fn one_waiter_too_many_is_told_at_once() {
    let shop = Setup::manual().limits(|limits| limits.waiters_per_key = 2).open(made).await;
    let (first, waiting) = with_waiters(&shop, 2).await;
    for _ in 0..2 {
        shop.send(&order("order-7", "tea", &WAIT)).await.refused(409, "in_flight", "in-flight");
    }
    // The bound is a key's own.
    shop.kitchen.let_out(2..3);
    shop.send(&order("order-8", "tea", &WAIT)).await.stored(201, "made 2");
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    shop.kitchen.open();
    first.await.expect("an answer").stored(201, "made 1");
    for waiting in waiting {
        waiting.await.expect("an answer").replayed(201, "made 1");
    }
}

#[tokio::test]
async fn a_place_is_given_up_by_whoever_leaves() {
    let shop = Setup::manual().limits(|limits| limits.waiters_per_key = 1).open(made).await;
    let (first, _) = with_waiters(&shop, 0).await;
    let leaves = shop.begin(&order("order-7", "tea", &WAIT)).await;
    until("the waiter", || shop.store.calls("get") >= 1).await;
    shop.send(&order("order-7", "tea", &WAIT)).await.refused(409, "in_flight", "in-flight");
    drop(leaves);
    // The server notices a client's end by and by; until then the place is taken.
    let mut looks = shop.store.calls("get");
    let waiting = loop {
        let waiting = shop.sending(order("order-7", "tea", &WAIT));
        until("an answer or a look", || waiting.is_finished() || shop.store.calls("get") > looks).await;
        if !waiting.is_finished() {
            break waiting;
        }
        waiting.await.expect("an answer").refused(409, "in_flight", "in-flight");
        looks = shop.store.calls("get");
    };
    shop.kitchen.open();
    first.await.expect("an answer").stored(201, "made 1");
    waiting.await.expect("an answer").replayed(201, "made 1");
}

#[tokio::test]
async fn whoever_waited_for_a_released_attempt_gets_its_answer_and_does_not_execute() {
    let busy = |_: Run| (StatusCode::TOO_MANY_REQUESTS, [("x-why", "busy")], "come back").into_response();
    let shop = Setup::manual().open(busy).await;
    let (first, waiting) = with_waiters(&shop, 3).await;
    shop.kitchen.open();
    assert_eq!(first.await.expect("an answer").told(), (429, "released", "come back"));
    for waiting in waiting {
        let got = waiting.await.expect("an answer");
        assert_eq!((got.told(), got.header("x-why")), ((429, "released", "come back"), Some("busy")));
        assert!(got.header("idempotency-replayed").is_none(), "nothing was kept that could be replayed");
    }
    assert_eq!(shop.kitchen.runs(), 1);
}

#[tokio::test]
async fn whoever_waited_for_an_attempt_without_an_answer_is_told_so() {
    for (name, fate, code, outcome) in [
        ("unknown", Disposition::Unknown, "outcome_unknown", "unknown"),
        ("not kept", Disposition::NotKept, "answer_not_kept", "not-stored"),
    ] {
        let shop = Setup::manual()
            .open(move |run: Run| {
                run.claim.as_ref().expect("a claim").declare(fate);
                made(run)
            })
            .await;
        let (first, waiting) = with_waiters(&shop, 2).await;
        shop.kitchen.open();
        assert_eq!(first.await.expect("an answer").status, 201, "{name}");
        for waiting in waiting {
            waiting.await.expect("an answer").refused(409, code, outcome);
        }
        assert_eq!(shop.kitchen.runs(), 1, "{name}");
    }
}

#[tokio::test]
async fn another_request_does_not_wait() {
    let shop = Setup::manual().open(made).await;
    let (_first, _) = with_waiters(&shop, 0).await;
    shop.send(&order("order-7", "rum", &WAIT)).await.refused(422, "key_reused", "mismatch");
}

/// Two processes, as far as they know: two engines over one store.
async fn two_shops(answer: StatusCode) -> (Shop, std::net::SocketAddr) {
    let shop = Setup::default().open(move |run| (answer, made(run)).into_response()).await;
    let mut policy = Policy::default();
    policy.principal = PrincipalRule::Parts(Vec::new());
    let layer = IdempotencyLayer::builder(Arc::clone(&shop.store) as Arc<dyn Store>).build().with_policy(policy);
    async fn never() -> &'static str {
        "it ran here"
    }
    let address = serve(Router::new().route("/orders", post(never)).route_layer(layer)).await;
    (shop, address)
}

async fn wait_there(address: std::net::SocketAddr) -> Sent {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
    tokio::io::AsyncWriteExt::write_all(&mut stream, &order("order-7", "tea", &WAIT)).await.expect("open");
    Sent { stream }
}

#[tokio::test]
async fn whoever_waits_in_another_process_gets_the_answer_too() {
    let (shop, there) = two_shops(StatusCode::CREATED).await;
    let (first, _) = with_waiters(&shop, 0).await;
    let waiting = wait_there(there).await;
    until("the waiter's look", || shop.store.calls("get") >= 1).await;
    shop.kitchen.open();
    first.await.expect("an answer").stored(201, "made 1");
    waiting.answer().await.replayed(201, "made 1");
}

#[tokio::test]
async fn whoever_waits_in_another_process_for_a_released_attempt_is_told_to_ask_again() {
    let (shop, there) = two_shops(StatusCode::TOO_MANY_REQUESTS).await;
    let (first, _) = with_waiters(&shop, 0).await;
    let waiting = wait_there(there).await;
    until("the waiter's look", || shop.store.calls("get") >= 1).await;
    shop.kitchen.open();
    assert_eq!(first.await.expect("an answer").status, 429);
    let got = waiting.answer().await;
    got.refused(409, "in_flight", "in-flight");
    assert_eq!(got.header("retry-after"), Some("1"));
    assert_eq!(shop.kitchen.runs(), 1);
}

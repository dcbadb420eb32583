//! Handlers that run for too long, times without end, and tasks that outlive what started them.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::StreamBody;
use onceward::layer::{IdempotencyLayer, LayerError};
use onceward::limits::Limits;
use onceward::policy::Policy;
use onceward::principal::PrincipalRule;
use onceward::store::MemoryStore;

use crate::shop::{Setup, made, order, soon, until};

#[tokio::test]
async fn handler_past_capture_timeout_runs_on_and_its_response_is_stored() {
    let setup = Setup::manual().limits(|limits| {
        (limits.upstream_timeout, limits.capture_timeout) = (Duration::from_secs(60), Duration::from_secs(60));
    });
    let shop = setup.open(made).await;
    shop.kitchen.shut();
    let first = shop.sending(order("order-7", "tea", &[]));
    shop.kitchen.began(1).await;
    for renewals in 1..=12 {
        shop.clock.advance(Duration::from_secs(5));
        let replaced = || shop.store.calls("replace") >= renewals || shop.store.calls("replace") > 11;
        until("a renewal", replaced).await;
    }
    assert!(first.await.expect("a response").status >= 500);
    soon("the unknown record", async {
        while shop.stats().await.unknown == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    shop.order("order-7", "tea").await.refused(409, "outcome_unknown", "unknown");
    assert_eq!(shop.layer.engine().in_flight(), 1, "a graceful shutdown waits for it");
    shop.kitchen.open();
    shop.settled().await;
    assert_eq!((shop.kitchen.runs(), shop.kitchen.done()), (1, 1), "it was not dropped half way");
    shop.order("order-7", "tea").await.replayed(201, "made 1");
}

#[tokio::test]
async fn handler_that_runs_at_give_up_is_not_waited_for_and_not_dropped() {
    let shop = Setup::default().open(made).await;
    shop.kitchen.shut();
    let first = shop.sending(order("order-7", "tea", &[]));
    shop.kitchen.began(1).await;
    shop.layer.engine().drain();
    shop.layer.engine().abort();
    shop.settled().await;
    first.await.expect("a response").refused(502, "upstream_lost", "unknown");
    assert_eq!(shop.stats().await.unknown, 1);
    shop.kitchen.open();
    until("the end of the handler", || shop.kitchen.done() == 1).await;
    soon("its late completion", async {
        while shop.stats().await.completed == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    shop.order("order-7", "tea").await.replayed(201, "made 1");
}

#[tokio::test]
async fn times_without_end_are_taken() {
    let forever = Duration::MAX;
    let setup = Setup::default()
        .policy(|policy| {
            (policy.retention, policy.tombstone, policy.lease, policy.wait) = (forever, forever, forever, forever);
        })
        .limits(|limits| {
            (limits.wait_max, limits.store_timeout) = (forever, forever);
            (limits.upstream_timeout, limits.capture_timeout) = (forever, forever);
        });
    let shop = setup.open(made).await;
    shop.kitchen.shut();
    let first = shop.sending(order("order-7", "tea", &[]));
    shop.kitchen.began(1).await;
    let waiting = shop.sending(order("order-7", "tea", &[]));
    until("the duplicate", || shop.store.calls("get") >= 1).await;
    shop.kitchen.open();
    first.await.expect("a response").stored(201, "made 1");
    waiting.await.expect("a response").replayed(201, "made 1");
    let busy = Setup::default().limits(|limits| limits.capture_timeout = forever);
    let busy = busy.open(|_| axum::http::StatusCode::TOO_MANY_REQUESTS.into_response()).await;
    assert_eq!(busy.order("order-7", "tea").await.outcome(), Some("released"));
}

#[tokio::test]
async fn policy_that_keeps_nothing_is_refused() {
    let nothing = Policy::default().retention(Duration::ZERO).tombstone(Duration::ZERO);
    for once in [
        IdempotencyLayer::builder(MemoryStore::default()).policy(nothing.clone()).build(),
        IdempotencyLayer::new(MemoryStore::default()).policy_for("/orders", nothing.clone()),
    ] {
        let error = once.start().await.expect_err("a retry would execute again");
        assert!(matches!(error, LayerError::Policy { .. }) && error.to_string().contains("retention"), "{error}");
    }
    let setup = Setup::default().policy(|policy| {
        (policy.retention, policy.tombstone) = (Duration::ZERO, Duration::ZERO);
    });
    let shop = setup.open(made).await;
    let got = shop.order("order-7", "tea").await;
    got.refused(503, "store_unavailable", "rejected");
    assert!(got.json()["detail"].as_str().is_some_and(|detail| detail.contains("tombstone")), "{got:?}");
    assert_eq!(shop.kitchen.runs(), 0);
    let route = IdempotencyLayer::new(MemoryStore::default()).require_key_for("/orders/{id");
    let error = route.start().await.expect_err("the path cannot be matched");
    assert!(matches!(error, LayerError::Route(_)), "{error}");
}

#[tokio::test]
async fn stream_ends_at_give_up_with_an_error() {
    let shop = Setup::default()
        .open(|_| {
            let first =
                futures_util::stream::iter([Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from_static(b"a")))]);
            let endless = futures_util::StreamExt::chain(first, futures_util::stream::pending());
            let mut response = Response::new(axum::body::Body::new(StreamBody::new(endless)));
            let kind = axum::http::HeaderValue::from_static("text/event-stream");
            response.headers_mut().insert("content-type", kind);
            response
        })
        .await;
    let stream = shop.sending(order("order-7", "tea", &[]));
    until("the stream", || shop.kitchen.done() == 1).await;
    shop.layer.engine().drain();
    shop.layer.engine().abort();
    let got = stream.await.expect("the connection ends");
    assert!(!got.whole, "{got:?}");
    shop.settled().await;
}

#[test]
fn sweeper_outlives_the_runtime_of_the_first_request() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let once = IdempotencyLayer::builder(MemoryStore::default())
        .principal(PrincipalRule::Parts(Vec::new()))
        .limits(Limits::default())
        .policy(Policy::default().retention(Duration::from_millis(1)).tombstone(Duration::from_millis(1)))
        .build();
    let first = runtime();
    first.block_on(once.engine().start()).expect("the store opens");
    drop(first);
    let second = runtime();
    second.block_on(async {
        use tower::{Layer, ServiceExt, service_fn};
        type Full = http_body_util::Full<Bytes>;
        let service = once.layer(service_fn(|_: http::Request<onceward::layer::Body<Full>>| async {
            Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::from_static(b"made"))))
        }));
        let request = http::Request::post("http://shop.example/orders").header("idempotency-key", "order-7");
        service.oneshot(request.body(Full::default()).expect("a request")).await.expect("a response");
        soon("the sweep", async {
            while once.engine().stats().await.expect("the store answers").completed > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    });
}

#[tokio::test(start_paused = true)]
async fn paused_time_moves_renewals_and_sweeps_with_it() {
    use tower::{Layer, ServiceExt, service_fn};
    type Full = http_body_util::Full<Bytes>;
    let once = IdempotencyLayer::builder(MemoryStore::default())
        .principal(PrincipalRule::Parts(Vec::new()))
        .policy(Policy::default().retention(Duration::from_secs(60)).tombstone(Duration::ZERO))
        .build();
    let service = once.layer(service_fn(|_: http::Request<onceward::layer::Body<Full>>| async {
        // waits: longer than a lease, in paused time
        tokio::time::sleep(Duration::from_secs(40)).await;
        Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::from_static(b"made"))))
    }));
    let request = || {
        let request = http::Request::post("http://shop.example/orders").header("idempotency-key", "order-7");
        request.body(Full::default()).expect("a request")
    };
    let outcome = async || {
        let response = service.clone().oneshot(request()).await.expect("a response");
        response.headers()["idempotency-outcome"].to_str().expect("text").to_owned()
    };
    assert_eq!(outcome().await, "stored");
    assert_eq!(outcome().await, "replayed");
    // waits: past the retention, in paused time
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(outcome().await, "stored", "it was forgotten by the same clock");
}

//! Errors of services below the layer, in axum.

use axum::Router;
use axum::error_handling::HandleErrorLayer;
use axum::http::StatusCode;
use axum::routing::post;
use onceward::policy::Disposition;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::{BoxError, ServiceBuilder};

use crate::support::{builder, post as order, send, serve, until};

#[tokio::test]
async fn load_shed_below_the_layer_leaves_the_key_free() {
    let go_on = std::sync::Arc::new(tokio::sync::Notify::new());
    let begun = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (held, counted) = (std::sync::Arc::clone(&go_on), std::sync::Arc::clone(&begun));
    let slow = post(async move || {
        if counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0 {
            held.notified().await;
        }
        "placed"
    });
    let once = builder().build();
    let stack = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(async |error: BoxError| (StatusCode::SERVICE_UNAVAILABLE, error.to_string())))
        .layer(once.clone())
        .load_shed()
        .layer(GlobalConcurrencyLimitLayer::new(1));
    let address = serve(Router::new().route("/orders", slow).layer(stack)).await;
    let first = crate::support::begin(address, &order("/orders", "first", &[], "tea")).await;
    until("the handler", || begun.load(std::sync::atomic::Ordering::SeqCst) == 1).await;
    let shed = send(address, &order("/orders", "second", &[], "tea")).await;
    assert_eq!(shed.status(), 503);
    go_on.notify_one();
    assert_eq!(crate::support::read(first).await.told(), (200, "stored", "placed"));
    let again = send(address, &order("/orders", "second", &[], "tea")).await;
    assert_eq!(again.told(), (200, "stored", "placed"), "nothing had run");
}

#[derive(Debug)]
struct CircuitOpen;

impl std::fmt::Display for CircuitOpen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the circuit is open")
    }
}

impl std::error::Error for CircuitOpen {}

#[tokio::test]
async fn circuit_breaker_is_classified() {
    let once =
        builder().classify_error(|error: &BoxError| error.is::<CircuitOpen>().then_some(Disposition::NotSent)).build();
    let stack = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(async |_: BoxError| StatusCode::SERVICE_UNAVAILABLE))
        .layer(once.clone())
        .map_result(|_: Result<axum::response::Response, std::convert::Infallible>| {
            Err::<axum::response::Response, BoxError>(CircuitOpen.into())
        });
    let address = serve(Router::new().route("/orders", post(async || "placed")).layer(stack)).await;
    assert_eq!(send(address, &order("/orders", "order-7", &[], "tea")).await.status(), 503);
    assert_eq!(once.engine().stats().await.expect("the store answers").unknown, 0);
}

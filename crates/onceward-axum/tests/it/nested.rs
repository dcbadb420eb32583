//! Routers that shorten the path.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::Path;
use axum::routing::post;

use crate::support::{builder, post as order, send, serve};

#[tokio::test]
async fn layer_inside_a_nested_router_tells_two_resources_apart() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let place = post(async move |Path(shop): Path<u32>| {
        counted.fetch_add(1, Ordering::SeqCst);
        format!("ordered at shop {shop}")
    });
    let once = builder().build();
    let orders = Router::new().route("/orders", place).layer(once.require_key_for("/shops/{shop}/orders"));
    let address = serve(Router::new().nest("/shops/{shop}", orders)).await;
    let first = send(address, &order("/shops/1/orders", "order-7", &[], "tea")).await;
    assert_eq!(first.told(), (200, "stored", "ordered at shop 1"));
    let other = send(address, &order("/shops/2/orders", "order-7", &[], "tea")).await;
    assert_eq!((other.status(), other.code().as_str()), (422, "key_reused"));
    let missing = send(address, &crate::support::request("POST", "/shops/2/orders", &[], "tea")).await;
    assert_eq!(
        (missing.status(), missing.code().as_str()),
        (400, "key_missing"),
        "the path of the policy is the whole one"
    );
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

//! What a handler learns of its attempt.

use axum::Router;
use axum::routing::post;
use onceward::policy::Disposition;
use onceward_axum::Claim;

use crate::support::{builder, post as order, request, send, serve};

#[tokio::test]
async fn handler_extracts_its_claim() {
    let required = post(async |claim: Claim| format!("{} {}", claim.earlier_attempt(), claim.header_value().len()));
    let optional = post(async |claim: Option<Claim>| format!("{}", claim.is_some()));
    let app = Router::new().route("/required", required).route("/optional", optional);
    let address = serve(builder().build().around(app)).await;
    assert_eq!(send(address, &order("/required", "a", &[], "")).await.told(), (200, "stored", "false 97"));
    assert_eq!(send(address, &order("/optional", "b", &[], "")).await.told(), (200, "stored", "true"));
    assert_eq!(send(address, &request("POST", "/optional", &[], "")).await.told(), (200, "-", "false"));
    let missing = send(address, &request("POST", "/required", &[], "")).await;
    assert_eq!((missing.status(), missing.code().as_str()), (400, "key_missing"));
}

#[tokio::test]
async fn handler_declares_that_it_did_nothing() {
    let place = post(async |claim: Claim| {
        claim.declare(Disposition::Released);
        "sold out"
    });
    let address = serve(builder().build().around(Router::new().route("/orders", place))).await;
    for _ in 0..2 {
        assert_eq!(send(address, &order("/orders", "order-7", &[], "tea")).await.told(), (200, "released", "sold out"));
    }
}

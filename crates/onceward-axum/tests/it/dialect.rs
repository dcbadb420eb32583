//! Refusals for clients that read no `application/problem+json`.

use axum::Router;
use axum::routing::post;

use crate::support::{Got, builder, post as order, send, serve};

async fn refused(kind: &str, headers: &[(&str, &str)]) -> Got {
    let app = Router::new().route("/shop.Orders/Place", post(async || "placed"));
    let address = serve(builder().build().around(app)).await;
    let headers = [&[("content-type", kind)], headers].concat();
    send(address, &order("/shop.Orders/Place", "order-7", &headers, "tea")).await;
    send(address, &order("/shop.Orders/Place", "order-7", &headers, "rum")).await
}

#[tokio::test]
async fn grpc_refusal_is_a_trailers_only_status() {
    for (kind, said) in [
        ("application/grpc", "application/grpc"),
        ("application/grpc+proto", "application/grpc"),
        ("application/grpc-web+proto", "application/grpc-web+proto"),
        ("application/grpc-web-text", "application/grpc-web-text+proto"),
    ] {
        let got = refused(kind, &[]).await;
        assert_eq!((got.status(), got.header("content-type"), got.body()), (200, Some(said), ""), "{got:?}");
        assert_eq!(got.header("grpc-status"), Some("9"));
        assert!(got.header("grpc-message").is_some_and(|message| message.starts_with("key_reused: ")), "{got:?}");
        assert_eq!(got.header("idempotency-outcome"), Some("mismatch"));
    }
}

#[tokio::test]
async fn grpc_stream_is_executed_once_and_its_retry_is_told_so() {
    let grpc = [("content-type", "application/grpc")];
    let place = post(async move || {
        let message = futures_util::stream::iter([Ok::<_, std::convert::Infallible>("\0\0\0\0\0")]);
        (grpc, axum::body::Body::from_stream(message))
    });
    let app = Router::new().route("/shop.Orders/Place", place);
    let address = serve(builder().build().around(app)).await;
    let first = send(address, &order("/shop.Orders/Place", "order-7", &grpc, "tea")).await;
    assert_eq!(first.header("idempotency-outcome"), Some("not-stored"));
    let retry = send(address, &order("/shop.Orders/Place", "order-7", &grpc, "tea")).await;
    assert_eq!((retry.status(), retry.header("grpc-status")), (200, Some("9")), "{retry:?}");
    assert!(retry.header("grpc-message").is_some_and(|message| message.starts_with("answer_not_kept: ")), "{retry:?}");
}

#[tokio::test]
async fn grpc_client_that_may_send_again_gets_unavailable() {
    let once = builder().build();
    once.engine().drain();
    let address = serve(once.around(Router::new().route("/shop.Orders/Place", post(async || "placed")))).await;
    let got = send(address, &order("/shop.Orders/Place", "order-7", &[("content-type", "application/grpc")], "")).await;
    assert_eq!(
        (got.header("grpc-status"), got.header("grpc-retry-pushback-ms")),
        (Some("14"), Some("1000")),
        "{got:?}"
    );
}

#[tokio::test]
async fn connect_refusal_is_an_error_of_connect() {
    let unary = refused("application/json", &[("connect-protocol-version", "1")]).await;
    assert_eq!((unary.status(), unary.header("content-type")), (400, Some("application/json")));
    let json: serde_json::Value = serde_json::from_str(unary.body()).expect("JSON");
    assert_eq!(json["code"], "failed_precondition");
    assert!(json["message"].as_str().is_some_and(|message| message.starts_with("key_reused: ")), "{json}");

    let stream = refused("application/connect+json", &[]).await;
    assert_eq!((stream.status(), stream.header("content-type")), (200, Some("application/connect+json")));
    let body = stream.body();
    assert!(body.starts_with("\u{2}\0\0\0"), "one envelope that ends the stream: {body:?}");
    let json = body.find('{').map(|at| &body[at..]).expect("an object");
    let json: serde_json::Value = serde_json::from_str(json).expect("JSON");
    assert_eq!(json["error"]["code"], "failed_precondition");
}

#[tokio::test]
async fn json_without_the_header_of_connect_is_a_problem() {
    let got = refused("application/json", &[]).await;
    assert_eq!((got.status(), got.header("content-type")), (422, Some("application/problem+json")));
}

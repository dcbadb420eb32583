//! Bodies of requests that cannot be read.

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::routing::post;
use tower_http::limit::RequestBodyLimitLayer;

use crate::support::{begin, builder, read, send, serve, soon};

/// A chunked request: no length says that it is too large.
fn chunked(key: &str, chunks: &[&str], whole: bool) -> Vec<u8> {
    let mut text = format!(
        "POST /orders HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\nidempotency-key: {key}\r\n\
         transfer-encoding: chunked\r\n\r\n"
    );
    for chunk in chunks {
        text.push_str(&format!("{:x}\r\n{chunk}\r\n", chunk.len()));
    }
    if whole {
        text.push_str("0\r\n\r\n");
    }
    text.into_bytes()
}

fn app() -> Router {
    builder().build().around(Router::new().route("/orders", post(async |body: String| body)))
}

#[tokio::test]
async fn limit_in_front_is_413_and_not_to_be_sent_again() {
    let address = serve(app().layer(RequestBodyLimitLayer::new(4))).await;
    let got = send(address, &chunked("order-7", &["tea", "rum"], true)).await;
    assert_eq!((got.status(), got.code().as_str()), (413, "request_too_large"), "{got:?}");
    assert!(got.body().contains("\"retry\":\"stop\""), "{got:?}");
    assert_eq!(send(address, &chunked("order-7", &["tea"], true)).await.told().1, "stored", "nothing was claimed");
}

#[tokio::test]
async fn limit_of_the_layer_names_the_code_to_write() {
    let limits = onceward::limits::Limits::default().request_body(4);
    let once = builder().limits(limits).build();
    let address = serve(once.around(Router::new().route("/orders", post(async || "placed")))).await;
    let got = send(address, &chunked("order-7", &["tea", "rum"], true)).await;
    assert_eq!((got.status(), got.code().as_str()), (413, "request_too_large"));
    assert!(got.body().contains("Limits::default()") && !got.body().contains("[limits]"), "{got:?}");
}

#[tokio::test]
async fn truncated_body_is_request_incomplete() {
    let address = serve(app()).await;
    let mut stream = begin(address, &chunked("order-7", &["tea"], false)).await;
    tokio::io::AsyncWriteExt::shutdown(&mut stream).await.expect("an open connection");
    let got = soon("a response", read(stream)).await;
    assert_eq!((got.status(), got.code().as_str()), (400, "request_incomplete"), "{got:?}");
}

#[tokio::test]
async fn refusal_of_a_body_by_another_layer_is_told() {
    let refuse = middleware::from_fn(|request: Request, next: Next| {
        let failing = futures_util::stream::iter([Err::<bytes::Bytes, _>(axum::BoxError::from("checksum differs"))]);
        next.run(request.map(|_| Body::from_stream(failing)))
    });
    let address = serve(app().layer(refuse)).await;
    let got = send(address, &chunked("order-7", &["tea"], true)).await;
    assert_eq!((got.status(), got.code().as_str()), (400, "request_incomplete"));
    assert!(got.body().contains("checksum differs"), "{got:?}");
}

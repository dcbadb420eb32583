//! A replay to a client that does not accept the coding of the stored response.

use async_compression::tokio::write::{BrotliEncoder, DeflateEncoder, GzipEncoder, ZlibEncoder, ZstdEncoder};
use axum::body::Body;
use axum::http::StatusCode;
use axum::response::Response;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::shop::{Run, Setup, order};

async fn coded(coding: &str, text: &[u8]) -> Vec<u8> {
    async fn through(mut encoder: impl AsyncWrite + Unpin, text: &[u8]) {
        encoder.write_all(text).await.expect("memory takes all");
        encoder.shutdown().await.expect("memory takes all");
    }
    let mut out = Vec::new();
    match coding {
        "gzip" | "x-gzip" => through(GzipEncoder::new(&mut out), text).await,
        "br" => through(BrotliEncoder::new(&mut out), text).await,
        "zstd" => through(ZstdEncoder::new(&mut out), text).await,
        "deflate" => through(ZlibEncoder::new(&mut out), text).await,
        "bare deflate" => through(DeflateEncoder::new(&mut out), text).await,
        _ => out.extend_from_slice(text),
    }
    out
}

/// Answers with this body under this coding.
fn answering(coding: &'static str, body: Vec<u8>) -> impl Fn(Run) -> Response + Clone + Send + Sync + 'static {
    move |_| {
        let response = Response::builder().status(StatusCode::CREATED).header("content-encoding", coding);
        let response = response.header("etag", "\"1\"").header("content-digest", "sha-256=:of the coded bytes:");
        response.header("content-length", body.len()).body(Body::from(body.clone())).expect("a response")
    }
}

#[tokio::test]
async fn replay_is_decoded_for_a_client_that_excludes_its_coding() {
    let text = "an order of tea, ".repeat(2000);
    for (name, coding) in [
        ("gzip", "gzip"),
        ("x-gzip", "X-GZIP"),
        ("br", "br"),
        ("zstd", "zstd"),
        ("deflate", "deflate"),
        ("bare deflate", "deflate"),
    ] {
        let bytes = coded(name, text.as_bytes()).await;
        let shop = Setup::default().open(answering(coding, bytes.clone())).await;
        let first = shop.send(&order("order-7", "tea", &[("accept-encoding", coding)])).await;
        assert_eq!((first.status, first.body.as_slice()), (201, bytes.as_slice()), "{name}");
        for accept in ["identity", "", "compress, gzip;q=0, br;q=0, zstd;q=0, deflate;q=0"] {
            let retry = shop.send(&order("order-7", "tea", &[("accept-encoding", accept)])).await;
            retry.replayed(201, &text);
            assert_eq!(retry.header("content-encoding"), None, "{name}, {accept}");
            assert_eq!(retry.header("content-length"), Some(text.len().to_string().as_str()), "{name}");
            assert_eq!((retry.header("etag"), retry.header("content-digest")), (Some("W/\"1\""), None), "{name}");
            assert_eq!(retry.header("vary"), Some("accept-encoding"), "{name}");
        }
        // Who names the coding, or nothing at all, gets the very bytes.
        for accept in [&[("accept-encoding", coding)][..], &[("accept-encoding", "*")], &[]] {
            let retry = shop.send(&order("order-7", "tea", accept)).await;
            assert_eq!((retry.status, retry.outcome()), (201, Some("replayed")), "{name}");
            assert_eq!(retry.body, bytes, "{name}");
            assert_eq!(retry.header("content-digest"), Some("sha-256=:of the coded bytes:"));
        }
        assert_eq!(shop.kitchen.runs(), 1, "{name}");
    }
}

#[tokio::test]
async fn two_codings_are_undone_in_their_order() {
    let bytes = coded("br", &coded("gzip", b"tea").await).await;
    let shop = Setup::default().open(answering("gzip, br", bytes)).await;
    shop.order("order-7", "tea").await;
    shop.send(&order("order-7", "tea", &[("accept-encoding", "gzip")])).await.replayed(201, "tea");
}

#[tokio::test]
async fn coding_that_cannot_be_undone_is_sent_as_stored() {
    let bomb = coded("gzip", &vec![0; 1 << 20]).await;
    for (name, coding, bytes) in [
        ("too large", "gzip", bomb),
        ("broken", "gzip", b"no gzip at all".to_vec()),
        ("not known", "compress", b"whatever".to_vec()),
    ] {
        let setup = Setup::default().limits(|limits| limits.response_body = 64 << 10);
        let shop = setup.open(answering(coding, bytes.clone())).await;
        shop.order("order-7", "tea").await;
        let retry = shop.send(&order("order-7", "tea", &[("accept-encoding", "identity")])).await;
        assert_eq!(
            (retry.status, retry.outcome(), retry.header("content-encoding")),
            (201, Some("replayed"), Some(coding)),
            "{name}"
        );
        assert_eq!(retry.body, bytes, "{name}");
    }
}

#[tokio::test]
async fn operation_is_decoded_for_a_client_that_excludes_its_coding() {
    let bytes = coded("br", b"tea").await;
    let setup = Setup::default().policy(|policy| {
        policy.principal = onceward::principal::PrincipalRule::Parts(vec!["header:x-caller".parse().expect("a part")]);
    });
    let shop = setup.open(answering("br", bytes)).await;
    let caller = ("x-caller", "ann");
    shop.send(&order("order-7", "tea", &[caller])).await;
    let looked = shop.operation("order-7", &[caller, ("accept-encoding", "gzip")]).await;
    assert_eq!((looked.status, looked.body.as_slice()), (201, b"tea".as_slice()));
}

//! How an attempt ends, by what the layer saw of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Request, Response as Answer, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use onceward::layer::IdempotencyLayer;
use onceward::policy::{Disposition, Policy};
use onceward::store::MemoryStore;
use tower::{Layer, ServiceExt, service_fn};

use crate::shop::{Run, Setup, Shop, made, order};

/// What a retry finds after the first answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum After {
    /// The answer again.
    Replayed,
    /// A second run, for the first did nothing.
    RunsAgain,
    /// Nobody knows.
    Unknown,
    /// That there was an answer.
    NotKept,
}

/// Sends an order and its retry.
#[track_caller]
fn check(shop: &Shop, name: &str, status: u16, after: After) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let key = name.replace([' ', ','], "-");
        let before = shop.kitchen.runs();
        let first = shop.order(&key, "tea").await;
        let outcome = match after {
            After::Replayed => "stored",
            After::RunsAgain => "released",
            After::Unknown => "unknown",
            After::NotKept => "not-stored",
        };
        assert_eq!((first.status, first.outcome()), (status, Some(outcome)), "{name}, {caller}");
        let retry = shop.order(&key, "tea").await;
        let mut runs = 1;
        match after {
            After::Replayed => {
                assert_eq!((retry.status, retry.outcome()), (status, Some("replayed")), "{name}, {caller}");
                assert_eq!(retry.body, first.body, "{name}, {caller}");
            }
            After::RunsAgain => {
                assert_eq!((retry.status, retry.outcome()), (status, Some("released")), "{name}, {caller}");
                runs = 2;
            }
            After::Unknown => retry.refused(409, "outcome_unknown", "unknown"),
            After::NotKept => {
                retry.refused(409, "answer_not_kept", "not-stored");
                assert_eq!(retry.json()["first_status"], status, "{name}, {caller}");
            }
        }
        assert_eq!(shop.kitchen.runs() - before, runs, "{name}, {caller}");
        // An unknown and an answer bind; a released key is anybody's.
        let other = shop.order(&key, "rum").await;
        match after {
            After::RunsAgain => {
                assert_eq!((other.status, other.outcome()), (status, Some("released")), "{name}, {caller}")
            }
            _ => other.refused(422, "key_reused", "mismatch"),
        }
    }
}

#[tokio::test]
async fn each_status_ends_as_the_table_says() {
    let released =
        [401, 403, 407, 411, 412, 417, 419, 421, 423, 425, 426, 428, 429, 431, 440, 449, 498, 509, 511, 529, 561];
    let unknown = [408, 502, 503, 504, 520, 521, 522, 523, 524, 525, 526, 527, 530, 598, 599];
    let completed = [
        200, 201, 202, 204, 206, 301, 303, 304, 307, 308, 400, 402, 404, 405, 406, 409, 410, 413, 415, 422, 424, 451,
        499, 500, 501, 505, 507, 519, 528,
    ];
    for (statuses, after) in
        [(released.as_slice(), After::RunsAgain), (&unknown, After::Unknown), (&completed, After::Replayed)]
    {
        for status in statuses {
            let code = StatusCode::from_u16(*status).expect("a status");
            let shop = Setup::default()
                .open(move |run: Run| match status_has_body(code) {
                    true => (code, format!("answer {}", run.n)).into_response(),
                    false => code.into_response(),
                })
                .await;
            check(&shop, &format!("status {status}"), *status, after).await;
        }
    }
    let all = released.len() + unknown.len() + completed.len();
    assert_eq!(all, 65, "no status is in two lists");
}

fn status_has_body(status: StatusCode) -> bool {
    !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

#[tokio::test]
async fn status_503_with_retry_after_leaves_key_unknown() {
    let busy = |_: Run| (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "7")], "busy").into_response();
    let shop = Setup::default().open(busy).await;
    check(&shop, "busy", 503, After::Unknown).await;
    let got = shop.order("another", "tea").await;
    assert_eq!((got.header("retry-after"), got.told()), (Some("7"), (503, "unknown", "busy")));
    // Unless the route says what it means there.
    for (release_on, with_header, without) in
        [("503", After::RunsAgain, After::RunsAgain), ("503+retry-after", After::RunsAgain, After::Unknown)]
    {
        let policy = |policy: &mut Policy| policy.release_on = release_on.parse().expect("statuses");
        let shop = Setup::default().policy(policy).open(busy).await;
        check(&shop, "busy", 503, with_header).await;
        let shop = Setup::default().policy(policy).open(|_| StatusCode::SERVICE_UNAVAILABLE.into_response()).await;
        check(&shop, "down", 503, without).await;
    }
}

#[tokio::test]
async fn a_header_that_asks_for_a_proof_frees_the_key() {
    for (status, header, after) in [
        (402, "payment-required", After::RunsAgain),
        (402, "www-authenticate", After::RunsAgain),
        (402, "dpop-nonce", After::RunsAgain),
        (400, "dpop-nonce", After::RunsAgain),
        (400, "www-authenticate", After::RunsAgain),
        (415, "accept-encoding", After::RunsAgain),
        (402, "x-other", After::Replayed),
        (400, "x-other", After::Replayed),
        (200, "dpop-nonce", After::Replayed),
        // A 4xx that says when to come back is to be sent again then.
        (404, "retry-after", After::RunsAgain),
        (409, "retry-after", After::RunsAgain),
        (413, "retry-after", After::RunsAgain),
        (408, "retry-after", After::Unknown),
        (500, "retry-after", After::Replayed),
        (201, "retry-after", After::Replayed),
    ] {
        let shop = Setup::default()
            .open(move |run: Run| {
                let status = StatusCode::from_u16(status).expect("a status");
                (status, [(header, "1")], format!("answer {}", run.n)).into_response()
            })
            .await;
        check(&shop, &format!("{status} {header}"), status, after).await;
    }
}

#[tokio::test]
async fn released_when_points_to_a_json_member() {
    let gzip = |text: &str| {
        let mut coded = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1];
        let length = u16::try_from(text.len()).expect("a short text");
        coded.extend_from_slice(&length.to_le_bytes());
        coded.extend_from_slice(&(!length).to_le_bytes());
        coded.extend_from_slice(text.as_bytes());
        let crc = text.bytes().fold(!0_u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
        });
        coded.extend_from_slice(&(!crc).to_le_bytes());
        coded.extend_from_slice(&u32::from(length).to_le_bytes());
        coded
    };
    let denied = "{\"data\":null,\"errors\":[{\"message\":\"denied\"}]}";
    for (name, status, coded, body, after) in [
        ("errors", 200, false, denied, After::RunsAgain),
        ("coded errors", 200, true, denied, After::RunsAgain),
        ("no errors", 200, false, "{\"data\":{\"order\":1},\"errors\":[]}", After::Replayed),
        ("null", 200, false, "{\"errors\":[null]}", After::Replayed),
        ("no JSON", 200, false, "errors", After::Replayed),
        ("a failure of the server", 500, false, denied, After::Replayed),
        ("a proxy's failure", 502, false, denied, After::Unknown),
    ] {
        let body = if coded { gzip(body) } else { body.as_bytes().to_vec() };
        let shop = Setup::default()
            .policy(|policy| policy.released_when = Some("/errors/0".parse().expect("a pointer")))
            .open(move |_| {
                let status = StatusCode::from_u16(status).expect("a status");
                let mut response = (status, body.clone()).into_response();
                if coded {
                    response.headers_mut().insert("content-encoding", HeaderValue::from_static("gzip"));
                }
                response
            })
            .await;
        check(&shop, name, status, after).await;
    }
    // The service's own word counts more.
    let said = Setup::default().policy(|policy| policy.released_when = Some("/errors/0".parse().expect("a pointer")));
    let shop = said.open(move |_| ([("idempotency-outcome", "stored")], denied).into_response()).await;
    check(&shop, "said", 200, After::Replayed).await;
}

#[tokio::test]
async fn a_released_key_goes_to_whoever_comes_next() {
    let shop = Setup::default()
        .open(|run: Run| match run.n {
            1 => StatusCode::TOO_MANY_REQUESTS.into_response(),
            _ => {
                let earlier = run.claim.as_ref().is_some_and(onceward::claim::Claim::earlier_attempt);
                format!("{} {earlier}", String::from_utf8_lossy(&run.body)).into_response()
            }
        })
        .await;
    assert_eq!(shop.order("order-7", "tea").await.told(), (429, "released", ""));
    shop.order("order-7", "rum").await.stored(200, "rum true");
    shop.order("order-7", "tea").await.refused(422, "key_reused", "mismatch");
}

#[tokio::test]
async fn an_upstream_that_speaks_of_its_own_key_is_obeyed() {
    for (said, status, after) in [
        ("released", 200, After::RunsAgain),
        ("mismatch", 422, After::RunsAgain),
        ("rejected", 400, After::RunsAgain),
        ("not-stored", 201, After::NotKept),
        ("unknown", 500, After::Unknown),
        ("in-flight", 409, After::Unknown),
        ("stored", 201, After::Replayed),
        ("replayed", 201, After::Replayed),
        // It knows better than its status.
        ("stored", 502, After::Replayed),
        ("replayed", 429, After::Replayed),
        ("released", 504, After::RunsAgain),
        // What is no word of the contract says nothing; the status does.
        ("something", 201, After::Replayed),
        ("something", 429, After::RunsAgain),
        ("STORED", 502, After::Unknown),
    ] {
        let shop = Setup::default()
            .open(move |run: Run| {
                let status = StatusCode::from_u16(status).expect("a status");
                let headers = [("idempotency-outcome", said), ("idempotency-replayed", "true"), ("x-kept", "yes")];
                (status, headers, format!("answer {}", run.n)).into_response()
            })
            .await;
        let got = shop.order("another", "tea").await;
        let of_outcome: Vec<_> = got.headers.iter().filter(|header| header.0 == "idempotency-outcome").collect();
        assert_eq!(of_outcome.len(), 1, "{said}: one outcome, and it is ours");
        assert!(got.header("idempotency-replayed").is_none(), "{said}: what was replayed to us is no replay of ours");
        assert_eq!(got.header("x-kept"), Some("yes"), "{said}");
        check(&shop, &format!("{said} {status}"), status, after).await;
    }
}

#[tokio::test]
async fn what_a_handler_declares_counts_more_than_its_status() {
    for (name, fate, status, after) in [
        ("released", Disposition::Released, 500, After::RunsAgain),
        ("released with 201", Disposition::Released, 201, After::RunsAgain),
        ("not sent", Disposition::NotSent, 200, After::RunsAgain),
        ("not to be kept", Disposition::NotKept, 201, After::NotKept),
        ("not to be kept, though busy", Disposition::NotKept, 429, After::NotKept),
        ("unknown", Disposition::Unknown, 201, After::Unknown),
    ] {
        let status_code = StatusCode::from_u16(status).expect("a status");
        let by_claim = Setup::default().open(move |run: Run| {
            run.claim.expect("a keyed request has one").declare(fate);
            (status_code, format!("secret {}", run.n)).into_response()
        });
        let shop = by_claim.await;
        check(&shop, &format!("{name} by the claim"), status, after).await;
        let by_extension = Setup::default().open(move |run: Run| {
            let mut response: Response = (status_code, format!("secret {}", run.n)).into_response();
            response.extensions_mut().insert(fate);
            response
        });
        let shop = by_extension.await;
        check(&shop, &format!("{name} by the response"), status, after).await;
    }
}

#[tokio::test]
async fn an_answer_that_must_not_be_stored_is_not() {
    let shop = Setup::default()
        .open(|run: Run| {
            run.claim.as_ref().expect("a claim").declare(Disposition::NotKept);
            (StatusCode::CREATED, [("location", "/tokens/1")], "a secret token").into_response()
        })
        .await;
    let first = shop.order("order-7", "tea").await;
    assert_eq!(first.told(), (201, "not-stored", "a secret token"));
    let retry = shop.order("order-7", "tea").await;
    retry.refused(409, "answer_not_kept", "not-stored");
    let json = retry.json();
    assert_eq!((&json["first_status"], &json["first_location"]), (&201.into(), &"/tokens/1".into()));
    assert_eq!((json["executed"].as_str(), json["retry"].as_str()), (Some("yes"), Some("stop")));
    let bytes = shop.stats().await.bytes;
    assert!(bytes < 1000 && !String::from_utf8_lossy(&retry.body).contains("secret token"), "{bytes}");
}

#[tokio::test]
async fn a_panic_is_an_outcome() {
    let shop = Setup::default().open(|_| panic!("the handler panics")).await;
    let got = shop.order("order-7", "tea").await;
    got.refused(500, "handler_panicked", "unknown");
    let json = got.json();
    assert_eq!((json["executed"].as_str(), json["retry"].as_str()), (Some("unknown"), Some("same-key")));
    shop.order("order-7", "tea").await.refused(409, "outcome_unknown", "unknown");
    assert_eq!((shop.kitchen.runs(), shop.stats().await.unknown), (1, 1));
}

#[tokio::test]
async fn an_inner_error_is_passed_on_and_leaves_an_unknown() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let failing = service_fn(move |_: Request<onceward::layer::Body<Full<Bytes>>>| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Err::<Answer<Full<Bytes>>, String>("the wire broke".to_owned()) }
    });
    let service = IdempotencyLayer::new(MemoryStore::default()).layer(failing);
    let request = || {
        let request = Request::post("http://shop.example/orders").header("idempotency-key", "order-7");
        request.body(Full::new(Bytes::from_static(b"tea"))).expect("a request")
    };
    assert_eq!(service.clone().oneshot(request()).await.expect_err("it failed"), "the wire broke");
    let retry = service.clone().oneshot(request()).await.expect("an answer");
    assert_eq!(
        (retry.status().as_u16(), &retry.headers()["idempotency-outcome"]),
        (409, &HeaderValue::from_static("unknown"))
    );
    let body = retry.into_body().collect().await.expect("a body").to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("outcome_unknown"));
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_request_that_is_cut_is_neither_executed_nor_claimed() {
    let service = IdempotencyLayer::new(MemoryStore::default());
    let engine = service.engine().clone();
    let service = service.layer(service_fn(|request: Request<onceward::layer::Body<Body>>| async move {
        let body = request.into_body().collect().await?.to_bytes();
        Ok::<_, onceward::layer::body::BoxError>(Answer::new(Full::new(body)))
    }));
    let request = |body: Body| {
        Request::post("http://shop.example/orders").header("idempotency-key", "order-7").body(body).expect("a request")
    };
    let cut = Body::new(broken(vec![b"te"]));
    let got = service.clone().oneshot(request(cut)).await.expect("a refusal");
    assert_eq!((got.status().as_u16(), got.headers()["connection"].as_bytes()), (400, b"close".as_slice()));
    let json = got.into_body().collect().await.expect("a body").to_bytes();
    assert!(String::from_utf8_lossy(&json).contains("request_incomplete"));
    assert_eq!(engine.stats().await.expect("the store answers").in_flight, 0);
    // Whole, it is another request than the cut one, and the key is still free for it.
    let got = service.oneshot(request(Body::from("tea"))).await.expect("an answer");
    assert_eq!(got.headers()["idempotency-outcome"], "stored");
}

/// A body that breaks off after these pieces.
fn broken(pieces: Vec<&'static [u8]>) -> impl http_body::Body<Data = Bytes, Error = std::io::Error> + Send {
    let pieces = pieces.into_iter().map(|piece| Ok(http_body::Frame::data(Bytes::from_static(piece))));
    let end = std::iter::once(Err(std::io::Error::other("the upstream was cut")));
    StreamBody::new(futures_util::stream::iter(pieces.chain(end).collect::<Vec<_>>()))
}

#[tokio::test]
async fn an_answer_that_was_cut_is_never_kept_as_whole() {
    for pieces in [vec![], vec![b"par".as_slice()], vec![b"par", b"t"]] {
        let shop = Setup::default().open(move |_| Response::new(Body::new(broken(pieces.clone())))).await;
        let got = shop.order("order-7", "tea").await;
        got.refused(502, "upstream_lost", "unknown");
        assert!(!String::from_utf8_lossy(&got.body).contains("par\""), "nothing of it is shown");
        shop.order("order-7", "tea").await.refused(409, "outcome_unknown", "unknown");
        assert_eq!((shop.kitchen.runs(), shop.stats().await.unknown), (1, 1));
    }
}

#[tokio::test]
async fn an_answer_of_another_length_than_it_says_was_cut() {
    for (length, body) in [("10", "five."), ("1", "five."), ("5", "")] {
        let shop = Setup::default().open(move |_| ([("content-length", length)], body).into_response()).await;
        shop.order("order-7", "tea").await.refused(502, "upstream_lost", "unknown");
        shop.order("order-7", "tea").await.refused(409, "outcome_unknown", "unknown");
        assert_eq!(shop.kitchen.runs(), 1);
    }
    let honest = Setup::default().open(|_| ([("content-length", "5")], "five.").into_response()).await;
    honest.order("order-7", "tea").await.stored(200, "five.");
    honest.order("order-7", "tea").await.replayed(200, "five.");
}

#[tokio::test]
async fn trailers_and_unusual_answers_pass() {
    let shop = Setup::default()
        .open(|_| {
            let mut trailers = axum::http::HeaderMap::new();
            trailers.insert(HeaderName::from_static("x-sum"), HeaderValue::from_static("7"));
            let frames = [
                Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from_static(b"a"))),
                Ok(http_body::Frame::data(Bytes::new())),
                Ok(http_body::Frame::data(Bytes::from_static(b"b"))),
                Ok(http_body::Frame::trailers(trailers)),
            ];
            Response::new(Body::new(StreamBody::new(futures_util::stream::iter(frames))))
        })
        .await;
    shop.order("order-7", "tea").await.stored(200, "ab");
    shop.order("order-7", "tea").await.replayed(200, "ab");
}

#[tokio::test]
async fn the_claim_is_durable_before_the_handler_runs() {
    let shop = Setup::default().open(made).await;
    shop.kitchen.shut();
    let first = shop.sending(order("order-7", "tea", &[]));
    shop.kitchen.began(1).await;
    let census = shop.stats().await;
    assert_eq!((census.in_flight, census.completed), (1, 0));
    shop.kitchen.open();
    first.await.expect("an answer").stored(201, "made 1");
    let census = shop.stats().await;
    assert_eq!((census.in_flight, census.completed), (0, 1));
}

//! Requests and answers at their limits, and answers that have no end to wait for.

use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::Frame;
use http_body_util::StreamBody;
use onceward::limits::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::shop::{Fault, Got, Setup, Shop, find, made, order, soon, until};

const LIMIT: usize = 100;

fn limited(limits: &mut Limits) {
    limits.request_body = LIMIT;
    limits.response_body = LIMIT;
}

/// An order whose body comes in chunks, without a length.
fn chunked(key: &str, chunks: &[&str]) -> Vec<u8> {
    let mut text = format!(
        "POST /orders HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\nidempotency-key: {key}\r\n\
         transfer-encoding: chunked\r\n\r\n"
    );
    for chunk in chunks {
        text.push_str(&format!("{:x}\r\n{chunk}\r\n", chunk.len()));
    }
    text.push_str("0\r\n\r\n");
    text.into_bytes()
}

#[tokio::test]
async fn a_request_of_the_limit_passes_and_one_byte_more_does_not() {
    let shop = Setup::default().limits(limited).open(made).await;
    let (fits, over) = ("x".repeat(LIMIT), "x".repeat(LIMIT + 1));
    shop.order("declared", &fits).await.stored(201, "made 1");
    shop.send(&chunked("chunked", &[&fits])).await.stored(201, "made 2");
    shop.send(&chunked("chunks", &[&fits[..60], &fits[..40]])).await.stored(201, "made 3");
    let calls = shop.store.all_calls();
    for sent in [
        order("declared-over", &over, &[]),
        chunked("chunked-over", &[&over]),
        chunked("chunks-over", &[&fits, "x"]),
        order("far-over", &"x".repeat(LIMIT * 4), &[]),
    ] {
        let got = shop.send(&sent).await;
        got.refused(413, "request_too_large", "rejected");
        assert_eq!((got.json()["executed"].as_str(), got.json()["retry"].as_str()), (Some("unknown"), Some("stop")));
    }
    assert_eq!((shop.kitchen.runs(), shop.store.all_calls()), (3, calls), "neither executed nor looked up");
    // Chunked or not, it is the same request.
    shop.send(&chunked("declared", &[&fits])).await.replayed(201, "made 1");
}

/// Writes bytes that are two requests to whoever loses count, and returns all answers.
async fn answers(shop: &Shop, bytes: &[u8]) -> Vec<Got> {
    let mut sent = shop.begin(bytes).await;
    // Half-closed, so that the shop ends the connection when it has answered all that came.
    let _ = sent.stream.shutdown().await;
    let mut read = Vec::new();
    soon("the end of the connection", async {
        let _ = sent.stream.read_to_end(&mut read).await;
    })
    .await;
    let mut answers = Vec::new();
    let mut rest = read.as_slice();
    while find(rest, b"\r\n\r\n").is_some() {
        let (got, taken) = Got::parse(rest);
        answers.push(got);
        rest = &rest[taken..];
    }
    answers
}

#[tokio::test]
async fn the_body_of_a_refused_request_is_never_taken_for_the_next_one() {
    let shop = Setup::default().limits(limited).open(made).await;
    let inner = "POST /orders HTTP/1.1\r\nhost: shop.example\r\nidempotency-key: smuggled\r\ncontent-length: 0\r\n\r\n";
    let next = "POST /orders HTTP/1.1\r\nhost: shop.example\r\nidempotency-key: next\r\ncontent-length: 3\r\n\r\ntea";
    let head = "POST /orders HTTP/1.1\r\nhost: shop.example\r\n";
    let mut served = 0;
    for (name, key, padding) in [
        ("too large", "idempotency-key: large\r\n", LIMIT),
        ("far too large", "idempotency-key: large\r\n", LIMIT * 40),
        ("a bad key", "idempotency-key: a b\r\n", 0),
        ("a bad key and far too large", "idempotency-key: a b\r\n", LIMIT * 40),
    ] {
        for chunks in [false, true] {
            let body = format!("{}{inner}", "\r\n".repeat(padding / 2));
            let framed = match chunks {
                true => format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len()),
                false => format!("content-length: {}\r\n\r\n{body}", body.len()),
            };
            let before = shop.kitchen.runs();
            let all = answers(&shop, format!("{head}{key}{framed}{next}").as_bytes()).await;
            let statuses: Vec<u16> = all.iter().map(|got| got.status).collect();
            assert!(matches!(statuses[0], 400 | 413), "{name}, chunks {chunks}: {statuses:?}");
            assert!(statuses.len() <= 2, "{name}, chunks {chunks}: {statuses:?}");
            // The connection goes on with the next request, or it ends.
            match all.get(1) {
                Some(second) => {
                    // In chunks, the first piece that is too much may have been all of it.
                    assert!(chunks || padding <= LIMIT, "{name}: nobody reads on without end");
                    served += 1;
                    assert_eq!(second.status, 201, "{name}, chunks {chunks}");
                }
                None => assert_eq!(all[0].header("connection"), Some("close"), "{name}, chunks {chunks}"),
            }
            assert!(shop.kitchen.runs() <= before + 1, "{name}, chunks {chunks}");
        }
    }
    assert!(served >= 4, "where the body was read to its end, the connection is not wasted: {served}");
    assert_eq!(shop.operation("smuggled", &[]).await.status, 404);
    assert_eq!(shop.operation("next", &[]).await.status, 201);
    assert_eq!(shop.kitchen.runs(), 1);
}

#[tokio::test]
async fn a_client_that_awaits_100_continue_is_refused_without_being_asked_for_its_body() {
    let shop = Setup::default().limits(limited).open(made).await;
    let head = "POST /orders HTTP/1.1\r\nhost: shop.example\r\nidempotency-key: a\r\nexpect: 100-continue\r\n\
                content-length: 101\r\n\r\n";
    let got = shop.send(head.as_bytes()).await;
    got.refused(413, "request_too_large", "rejected");
    assert_eq!(got.header("connection"), Some("close"));
}

#[tokio::test]
async fn an_answer_of_the_limit_is_kept_and_one_byte_more_is_not() {
    for (name, length, declared, kept) in [
        ("the limit, declared", LIMIT, true, true),
        ("the limit, as it comes", LIMIT, false, true),
        ("a byte more, declared", LIMIT + 1, true, false),
        ("a byte more, as it comes", LIMIT + 1, false, false),
        ("far more, as it comes", LIMIT * 5000, false, false),
    ] {
        let body: String = (0..length).map(|at| char::from(b'a' + (at % 26) as u8)).collect();
        let answer = body.clone();
        let shop = Setup::default()
            .limits(limited)
            .open(move |_| {
                let pieces: Vec<Result<Frame<Bytes>, std::io::Error>> =
                    answer.as_bytes().chunks(64).map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
                let stream = Body::new(StreamBody::new(futures_util::stream::iter(pieces)));
                let headers = [("location", "/orders/7")];
                let mut response = (StatusCode::CREATED, headers, stream).into_response();
                if declared {
                    response.headers_mut().insert("content-length", answer.len().into());
                }
                response
            })
            .await;
        let first = shop.order("order-7", "tea").await;
        let outcome = if kept { "stored" } else { "not-stored" };
        assert_eq!(first.told(), (201, outcome, body.as_str()), "{name}");
        assert!(first.whole, "{name}: the client gets all of it");
        shop.settled().await;
        let retry = shop.order("order-7", "tea").await;
        if kept {
            retry.replayed(201, &body);
        } else {
            retry.refused(409, "answer_not_kept", "not-stored");
            let json = retry.json();
            assert_eq!((&json["first_status"], &json["first_location"]), (&201.into(), &"/orders/7".into()), "{name}");
            assert_eq!((json["executed"].as_str(), json["retry"].as_str()), (Some("yes"), Some("stop")), "{name}");
        }
        assert_eq!(shop.kitchen.runs(), 1, "{name}");
    }
}

type Frames = mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>;

/// A shop whose answer is whatever the test sends.
async fn live(kind: &'static str, status: StatusCode) -> (Shop, Frames) {
    live_in(Setup::default(), kind, status).await
}

async fn live_in(setup: Setup, kind: &'static str, status: StatusCode) -> (Shop, Frames) {
    let (frames, receiver) = mpsc::channel(1);
    let receiver = std::sync::Mutex::new(Some(receiver));
    let respond = std::sync::Arc::new(move || -> Response {
        let receiver = receiver.lock().expect("no panic").take();
        let Some(receiver) = receiver else { return "a second run".into_response() };
        let stream = futures_util::stream::unfold(receiver, |mut receiver: mpsc::Receiver<_>| async move {
            Some((receiver.recv().await?, receiver))
        });
        (status, [("content-type", kind)], Body::new(StreamBody::new(stream))).into_response()
    });
    let shop = setup.limits(limited).open(move |_| respond()).await;
    (shop, frames)
}

fn piece(text: &str) -> Result<Frame<Bytes>, std::io::Error> {
    Ok(Frame::data(Bytes::copy_from_slice(text.as_bytes())))
}

fn cut() -> Result<Frame<Bytes>, std::io::Error> {
    Err(std::io::Error::other("the upstream was cut"))
}

/// Sends an order, and reads until `text` came.
async fn read_until(shop: &Shop, text: &str) -> crate::shop::Sent {
    let mut sent = shop.begin(&order("order-7", "tea", &[])).await;
    let mut read = Vec::new();
    soon("the first piece", async {
        while find(&read, text.as_bytes()).is_none() {
            assert_ne!(sent.stream.read_buf(&mut read).await.expect("an open connection"), 0);
        }
    })
    .await;
    assert!(find(&read, b"idempotency-outcome: not-stored").is_some(), "{}", String::from_utf8_lossy(&read));
    sent
}

#[tokio::test]
async fn a_declared_stream_passes_as_it_comes_and_is_on_record_before_its_first_byte() {
    for kind in [
        "text/event-stream",
        "Text/Event-Stream; charset=utf-8",
        "application/x-ndjson",
        "application/jsonl",
        "application/grpc",
        "application/grpc+proto",
        "application/grpc-web",
        "application/grpc-web+json",
        "application/grpc-web-text",
        "application/grpc-web-text+proto",
        "application/connect+json",
        "application/connect+proto",
        "application/stream+json",
        "application/vnd.amazon.eventstream",
        "application/geo+json-seq",
        "multipart/mixed; boundary=x",
        "multipart/x-mixed-replace;boundary=x",
    ] {
        let (shop, frames) = live(kind, StatusCode::OK).await;
        frames.send(piece("data: 1\n\n")).await.expect("the shop listens");
        let mut sent = read_until(&shop, "data: 1").await;
        // While it still runs, a retry is told that it executed.
        let retry = shop.order("order-7", "tea").await;
        retry.refused(409, "answer_not_kept", "not-stored");
        assert_eq!(retry.json()["first_status"], 200);
        frames.send(piece("data: 2\n\n")).await.expect("the shop listens");
        drop(frames);
        let mut rest = Vec::new();
        soon("the end", sent.stream.read_to_end(&mut rest)).await.expect("an open connection");
        assert!(
            find(&rest, b"data: 2").is_some() && rest.ends_with(b"0\r\n\r\n"),
            "{}",
            String::from_utf8_lossy(&rest)
        );
        shop.order("order-7", "tea").await.refused(409, "answer_not_kept", "not-stored");
        assert_eq!(shop.kitchen.runs(), 1, "{kind}");
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_later_leaves_an_unknown() {
    for (kind, first) in [("text/event-stream", "data: 1\n\n".to_owned()), ("text/plain", "x".repeat(LIMIT + 1))] {
        let (shop, frames) = live(kind, StatusCode::OK).await;
        frames.send(piece(&first)).await.expect("the shop listens");
        let mut sent = read_until(&shop, &first).await;
        shop.order("order-7", "tea").await.refused(409, "answer_not_kept", "not-stored");
        frames.send(cut()).await.expect("the shop listens");
        let mut rest = Vec::new();
        let _ = soon("the end", sent.stream.read_to_end(&mut rest)).await;
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{kind}: the client sees that it is cut");
        shop.settled().await;
        shop.order("order-7", "tea").await.refused(409, "outcome_unknown", "unknown");
        assert_eq!((shop.kitchen.runs(), shop.stats().await.unknown), (1, 1), "{kind}");
    }
}

#[tokio::test]
async fn a_released_stream_that_is_cut_stays_released() {
    let (shop, frames) = live("text/plain", StatusCode::TOO_MANY_REQUESTS).await;
    let sent = shop.sending(order("order-7", "tea", &[]));
    frames.send(piece(&"x".repeat(LIMIT + 1))).await.expect("the shop listens");
    frames.send(cut()).await.expect("the shop listens");
    let got = sent.await.expect("an answer");
    assert_eq!((got.status, got.outcome(), got.whole), (429, Some("released"), false));
    shop.settled().await;
    shop.order("order-7", "tea").await.stored(200, "a second run");
}

/// Sends more than all buffers on the way hold: it is read although nobody is there.
async fn read_on(frames: &Frames) {
    for _ in 0..200 {
        soon("reading on", frames.send(piece(&"y".repeat(100_000)))).await.expect("the shop listens");
    }
}

async fn leaves_and_does_not_cut(kind: &'static str, first: &str) {
    let (shop, frames) = live(kind, StatusCode::OK).await;
    frames.send(piece(first)).await.expect("the shop listens");
    drop(read_until(&shop, first).await);
    read_on(&frames).await;
    drop(frames);
    shop.settled().await;
    shop.order("order-7", "tea").await.refused(409, "answer_not_kept", "not-stored");
    assert_eq!((shop.kitchen.runs(), shop.stats().await.unknown), (1, 0));
}

#[tokio::test]
async fn a_client_that_leaves_a_large_answer_does_not_cut_it() {
    leaves_and_does_not_cut("text/plain", &"x".repeat(LIMIT + 1)).await;
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_does_not_cut_it() {
    leaves_and_does_not_cut("application/x-ndjson", "{\"done\":1}\n").await;
}

#[tokio::test]
async fn a_stream_without_a_client_and_without_an_end_is_unknown_when_nobody_listens_any_longer() {
    let (shop, frames) = live_in(Setup::manual(), "text/event-stream", StatusCode::OK).await;
    frames.send(piece("data: 1\n\n")).await.expect("the shop listens");
    drop(read_until(&shop, "data: 1").await);
    // What nobody takes any more tells the shop that its client left.
    read_on(&frames).await;
    assert!(!frames.is_closed());
    // It may notice at any moment: the time counts from then on.
    soon("the end of the listening", async {
        while !frames.is_closed() {
            shop.clock.advance(Limits::default().capture_timeout);
            tokio::task::yield_now().await;
        }
    })
    .await;
    shop.settled().await;
    shop.order("order-7", "tea").await.refused(409, "outcome_unknown", "unknown");
}

#[tokio::test]
async fn a_kind_that_streams_is_kept_where_it_says_how_long_it_is() {
    let shop = Setup::default()
        .limits(limited)
        .open(|_| ([("content-type", "application/x-ndjson"), ("x-accel-buffering", "no")], "{}\n{}\n").into_response())
        .await;
    shop.order("order-7", "tea").await.stored(200, "{}\n{}\n");
    shop.order("order-7", "tea").await.replayed(200, "{}\n{}\n");
}

#[tokio::test]
async fn an_answer_that_is_cut_before_it_is_on_record_is_unknown_all_the_same() {
    for (name, fault) in [("the store fails", Fault::Fails), ("its answer is lost", Fault::LosesAnswer)] {
        let (shop, frames) = live("text/plain", StatusCode::OK).await;
        shop.store.fail("replace", fault, 1);
        let sent = shop.sending(order("order-7", "tea", &[]));
        frames.send(piece(&"x".repeat(LIMIT + 1))).await.expect("the shop listens");
        frames.send(cut()).await.expect("the shop listens");
        let got = sent.await.expect("an answer");
        assert_eq!((got.status, got.outcome(), got.whole), (200, Some("not-stored"), false), "{name}");
        shop.settled().await;
        shop.order("order-7", "tea").await.refused(409, "outcome_unknown", "unknown");
        assert_eq!((shop.kitchen.runs(), shop.stats().await.unknown), (1, 1), "{name}");
    }
    // Without a fault too: the cut may come before the record does.
    let (shop, frames) = live("text/plain", StatusCode::OK).await;
    shop.store.fail("replace", Fault::Waits, 1);
    let mut sent = shop.begin(&order("order-7", "tea", &[])).await;
    frames.send(piece(&"x".repeat(LIMIT + 1))).await.expect("the shop listens");
    until("the word that there is an answer", || shop.store.calls("replace") == 1).await;
    frames.send(cut()).await.expect("the shop listens");
    until("the word that it was cut", || shop.store.calls("replace") >= 2).await;
    shop.store.heal();
    let mut read = Vec::new();
    let _ = soon("the end", sent.stream.read_to_end(&mut read)).await;
    assert!(!read.ends_with(b"0\r\n\r\n"), "the client takes a part for the whole");
    shop.settled().await;
    shop.order("order-7", "tea").await.refused(409, "outcome_unknown", "unknown");
}

#[tokio::test]
async fn a_panic_within_an_answer_that_passes_is_a_cut() {
    let shop = Setup::default()
        .limits(limited)
        .open(|_| {
            let stream = futures_util::stream::unfold(0, |n| async move {
                assert!(n < 3, "a bug in the service");
                Some((piece(&"x".repeat(LIMIT)), n + 1))
            });
            Body::new(StreamBody::new(stream)).into_response()
        })
        .await;
    let got = soon("an end", shop.order("order-7", "tea")).await;
    assert_eq!((got.status, got.outcome(), got.whole), (200, Some("not-stored"), false));
    shop.settled().await;
    shop.order("order-7", "tea").await.refused(409, "outcome_unknown", "unknown");
    assert_eq!((shop.kitchen.runs(), shop.stats().await.unknown), (1, 1));
}

#[tokio::test]
async fn a_stream_that_the_drain_cuts_is_seen_to_be_cut_and_is_unknown() {
    let (shop, frames) = live("text/plain", StatusCode::OK).await;
    let first = "x".repeat(LIMIT + 1);
    frames.send(piece(&first)).await.expect("the shop listens");
    let sent = read_until(&shop, &first).await;
    shop.layer.engine().drain();
    shop.layer.engine().abort();
    shop.settled().await;
    assert_eq!(shop.stats().await.unknown, 1);
    shop.order("order-7", "tea").await.refused(409, "outcome_unknown", "unknown");
    let mut rest = vec![0; 1000];
    let read = sent.stream.try_read(&mut rest).unwrap_or_default();
    assert!(!rest[..read].ends_with(b"0\r\n\r\n"), "the client takes a part for the whole");
}

#[tokio::test]
async fn a_body_that_stops_coming_is_not_waited_for_for_ever() {
    let shop = Setup::manual().limits(limited).open(made).await;
    let whole = order("order-7", &"x".repeat(LIMIT), &[]);
    let mut sent = shop.begin(&whole[..whole.len() - 10]).await;
    let mut read = Vec::new();
    soon("a refusal", async {
        // It may not have been begun to be read: the time counts from what came last.
        while tokio::time::timeout(Duration::from_millis(10), sent.stream.read_buf(&mut read)).await.is_err() {
            shop.clock.advance(Duration::from_secs(30));
        }
        sent.stream.read_to_end(&mut read).await
    })
    .await
    .expect("a closed connection");
    let text = String::from_utf8_lossy(&read);
    assert!(text.starts_with("HTTP/1.1 400") && text.contains("request_incomplete"), "{text}");
    assert_eq!((shop.kitchen.runs(), shop.store.calls("insert")), (0, 0));
}

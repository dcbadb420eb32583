//! A store that fails: nothing executes without a claim, and nothing that executed is forgotten.

use std::time::Duration;

use onceward::policy::Guarantee;
use tokio::io::AsyncWriteExt;

use crate::shop::{Fault, Setup, made, order, soon, until};

fn impatient() -> Setup {
    Setup::default().limits(|limits| limits.store_timeout = Duration::from_millis(50))
}

#[tokio::test]
async fn a_claim_that_fails_executes_nothing_and_leaves_the_key_free() {
    for (name, fault, leaves) in [
        ("refused", Fault::Refuses, 0),
        ("failed", Fault::Fails, 1),
        ("taken, and the answer lost", Fault::LosesAnswer, 1),
        ("never answered", Fault::Hangs, 1),
        ("taken, and never answered", Fault::HangsAfter, 1),
    ] {
        let shop = impatient().open(made).await;
        shop.store.fail("insert", fault, 1);
        let got = shop.order("order-7", "tea").await;
        got.refused(503, "store_unavailable", "rejected");
        assert_eq!(got.header("retry-after"), Some("1"), "{name}");
        assert_eq!(
            (got.json()["executed"].as_str(), got.json()["retry"].as_str()),
            (Some("unknown"), Some("same-key"))
        );
        assert_eq!(shop.kitchen.runs(), 0, "{name}");
        shop.settled().await;
        let census = shop.stats().await;
        assert_eq!((census.released, census.in_flight, census.unknown), (leaves, 0, 0), "{name}");
        // Free for any request, as whatever was not executed is.
        shop.order("order-7", "rum").await.stored(201, "made 1");
        shop.order("order-7", "rum").await.replayed(201, "made 1");
        assert_eq!(shop.kitchen.runs(), 1, "{name}");
    }
}

#[tokio::test]
async fn a_claim_that_failed_is_released_until_the_store_takes_it() {
    let shop = impatient().open(made).await;
    shop.store.fail("insert", Fault::LosesAnswer, 1);
    shop.store.fail("replace", Fault::Fails, 3);
    shop.order("order-7", "tea").await.refused(503, "store_unavailable", "rejected");
    shop.settled().await;
    assert_eq!((shop.store.calls("replace"), shop.stats().await.released), (4, 1));
    shop.order("order-7", "tea").await.stored(201, "made 1");
}

#[tokio::test]
async fn a_takeover_that_fails_leaves_what_was_there() {
    for fault in [Fault::Fails, Fault::LosesAnswer, Fault::HangsAfter] {
        let shop = impatient()
            .policy(|policy| policy.guarantee = Guarantee::AtLeastOnce)
            .open(|run| if run.n == 1 { panic!("the first run dies") } else { made(run) })
            .await;
        shop.order("order-7", "tea").await.refused(500, "handler_panicked", "unknown");
        shop.store.fail("replace", fault, 1);
        shop.order("order-7", "tea").await.refused(503, "store_unavailable", "rejected");
        shop.settled().await;
        let census = shop.stats().await;
        assert_eq!((census.in_flight, census.released + census.unknown), (0, 1), "{fault:?}");
        assert_eq!(shop.kitchen.runs(), 1, "{fault:?}: the takeover did not run");
        shop.order("order-7", "tea").await.stored(201, "made 2");
    }
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_never_executed_over() {
    let shop = Setup::default().open(made).await;
    shop.store.fail("insert", Fault::Unreadable, 1);
    let got = shop.order("order-7", "tea").await;
    got.refused(500, "record_unreadable", "rejected");
    assert_eq!((got.json()["executed"].as_str(), got.json()["retry"].as_str()), (Some("unknown"), Some("stop")));
    assert!(got.header("retry-after").is_none());
    shop.settled().await;
    assert_eq!((shop.kitchen.runs(), shop.stats().await.released), (0, 0));
}

#[tokio::test]
async fn a_store_that_does_not_open_executes_nothing() {
    let shop = impatient().open(made).await;
    for fault in [Fault::Fails, Fault::Refuses, Fault::Hangs] {
        shop.store.fail("meta", fault, 1);
        shop.order("order-7", "tea").await.refused(503, "store_unavailable", "rejected");
    }
    assert_eq!(shop.kitchen.runs(), 0);
    shop.order("order-7", "tea").await.stored(201, "made 1");
}

#[tokio::test]
async fn an_answer_that_could_not_be_kept_goes_out_whole_and_is_kept_later() {
    for (name, fault, times) in [
        ("refused", Fault::Refuses, 2),
        ("failed", Fault::Fails, 2),
        ("kept, and the answer lost", Fault::LosesAnswer, 1),
        ("never answered", Fault::Hangs, 1),
        ("kept, and never answered", Fault::HangsAfter, 1),
    ] {
        let shop = impatient().open(made).await;
        shop.store.fail("replace", fault, times);
        let first = shop.order("order-7", "tea").await;
        assert_eq!(first.told(), (201, "not-stored", "made 1"), "{name}");
        assert!(first.whole && first.header("location") == Some("/orders/1"), "{name}");
        shop.settled().await;
        let retry = shop.order("order-7", "tea").await;
        retry.replayed(201, "made 1");
        assert_eq!(retry.header("location"), Some("/orders/1"), "{name}");
        assert_eq!(shop.kitchen.runs(), 1, "{name}");
    }
}

#[tokio::test]
async fn until_the_answer_is_kept_a_retry_is_told_to_wait() {
    let shop = Setup::manual().open(made).await;
    shop.store.fail("replace", Fault::Fails, usize::MAX);
    assert_eq!(shop.order("order-7", "tea").await.told(), (201, "not-stored", "made 1"));
    shop.order("order-7", "tea").await.refused(409, "in_flight", "in-flight");
    shop.store.heal();
    shop.clock.advance(Duration::from_secs(2));
    shop.settled().await;
    shop.order("order-7", "tea").await.replayed(201, "made 1");
    assert_eq!(shop.kitchen.runs(), 1);
}

#[tokio::test]
async fn a_release_and_an_unknown_are_written_later_too() {
    for (name, status, retry) in [("released", 429, 201), ("unknown", 502, 409)] {
        let status = axum::http::StatusCode::from_u16(status).expect("a status");
        let shop = impatient()
            .open(move |run| match run.n {
                1 => axum::response::IntoResponse::into_response(status),
                _ => made(run),
            })
            .await;
        shop.store.fail("replace", Fault::Fails, 2);
        let first = shop.order("order-7", "tea").await;
        assert_eq!((first.status, first.outcome()), (status.as_u16(), Some("not-stored")), "{name}");
        shop.settled().await;
        assert_eq!(shop.order("order-7", "tea").await.status, retry, "{name}");
    }
}

/// How it ended is durable before the first byte of the answer goes out.
#[tokio::test]
async fn no_byte_of_an_answer_goes_out_before_it_is_kept() {
    let shop = Setup::manual().open(made).await;
    shop.store.fail("replace", Fault::Hangs, 1);
    let sent = shop.begin(&order("order-7", "tea", &[])).await;
    until("the word to the store", || shop.store.calls("replace") == 1).await;
    // The shop has done all it could do: whatever it would send by mistake is on its way or here.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
        let read = sent.stream.try_read(&mut [0; 1]);
        assert!(read.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "{read:?}");
    }
    assert_eq!(shop.kitchen.done(), 1);
    shop.clock.advance(Duration::from_secs(2));
    let got = soon("the answer", sent.answer()).await;
    assert_eq!(got.told(), (201, "not-stored", "made 1"));
}

#[tokio::test]
async fn a_client_that_leaves_while_its_claim_is_on_its_way_leaves_no_stuck_key() {
    for fault in [Fault::Hangs, Fault::HangsAfter] {
        let shop = Setup::manual().open(made).await;
        // Opened, so that the claim is the first thing that the request asks of the store.
        shop.layer.engine().start().await.expect("the store answers");
        shop.store.fail("insert", fault, 1);
        let mut sent = shop.begin(&order("order-7", "tea", &[])).await;
        until("the claim", || shop.store.calls("insert") == 1).await;
        sent.stream.shutdown().await.expect("an open connection");
        drop(sent);
        shop.clock.advance(Duration::from_secs(2));
        shop.settled().await;
        let census = shop.stats().await;
        assert_eq!((shop.kitchen.runs(), census.in_flight, census.unknown), (0, 0, 0), "{fault:?}");
        shop.order("order-7", "tea").await.stored(201, "made 1");
    }
}

#[tokio::test]
async fn a_full_store_refuses_new_keys_and_replays_old_ones() {
    let shop = Setup::default().open(made).await;
    shop.order("order-7", "tea").await.stored(201, "made 1");
    shop.store.fail("insert", Fault::Refuses, 1);
    shop.order("order-8", "tea").await.refused(503, "store_unavailable", "rejected");
    shop.order("order-7", "tea").await.replayed(201, "made 1");
}

/// The next line of defence where a replay's only word is the store's.
#[tokio::test]
async fn what_a_store_forgot_is_said_again_by_whoever_still_holds_it() {
    let shop = Setup::default().open(made).await;
    shop.kitchen.shut();
    let first = shop.sending(order("order-7", "tea", &[]));
    shop.kitchen.began(1).await;
    shop.store.forget_everything();
    shop.kitchen.open();
    first.await.expect("an answer").stored(201, "made 1");
    shop.order("order-7", "tea").await.replayed(201, "made 1");
    assert_eq!(shop.kitchen.runs(), 1);
}

#[tokio::test]
async fn the_self_test_notices_a_store_that_does_not_keep() {
    let shop = Setup::default().open(made).await;
    let engine = shop.layer.engine();
    engine.self_test().await.expect("a good store");
    let census = shop.stats().await;
    assert_eq!((census.completed, census.in_flight, census.tombstones), (0, 0, 0), "it leaves nothing");
    for op in ["insert", "replace", "get", "remove"] {
        shop.store.fail(op, Fault::Refuses, 1);
        engine.self_test().await.expect_err(op);
        shop.store.heal();
    }
}

#[tokio::test]
async fn a_self_test_that_is_cut_short_leaves_no_unknown() {
    for (op, fault) in
        [("replace", Fault::Refuses), ("get", Fault::Hangs), ("remove", Fault::Hangs), ("insert", Fault::LosesAnswer)]
    {
        let shop = Setup::manual().remote().open(made).await;
        let engine = shop.layer.engine();
        engine.self_test().await.expect("a good store");
        let asked = shop.store.calls(op);
        shop.store.fail(op, fault, 1);
        {
            let mut test = std::pin::pin!(engine.self_test());
            // Whoever asks hangs up.
            while shop.store.calls(op) == asked && futures_util::future::poll_immediate(test.as_mut()).await.is_none() {
                tokio::task::yield_now().await;
            }
        }
        shop.store.heal();
        assert_ne!(shop.stats().await.bytes, 0, "{op}: it was not cut short");
        shop.clock.advance(Duration::from_secs(61));
        while engine.sweep().await.expect("the store answers") > 0 {}
        let census = shop.stats().await;
        assert_eq!((census.unknown, census.bytes), (0, 0), "{op}: something is left");
    }
}

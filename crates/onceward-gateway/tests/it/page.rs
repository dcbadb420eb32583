//! The plain page, at `/by-hand` of the demo, in a real Chromium. The counter at `/` has its tests in `examples/orders/web`.

#[path = "../../../../examples/orders/tests/it/page.rs"]
pub(crate) mod browser;

use crate::demo::Demo;
use browser::{Page, Screen};

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_a_lost_answer_finds_the_one_order() {
    let demo = Demo::start(&[]);
    let page = Page::open(&(demo.url("gateway") + "/by-hand"), Screen::Desk).await;
    page.press("drop").await;
    page.press("order").await;
    let lost = page.until_sentence("1 request, 1 order").await;
    let [request] = &lost.requests[..] else { panic!("{lost:?}") };
    assert_eq!((&*request.state, &*request.result), ("lost", "connection lost"));

    // The key outlives a refresh.
    page.refresh().await;
    page.press("retry").await;
    let seen = page.until_sentence("2 requests, 1 order").await;
    let [retry, first] = &seen.requests[..] else { panic!("{seen:?}") };
    assert_eq!((&*retry.result, &*retry.outcome), ("201, order 1", "replayed"));
    assert_eq!(retry.heard, "Idempotency-Outcome: replayedIdempotency-Replayed: true");
    assert_eq!(retry.key, first.key);
    assert_eq!((&seen.rows[..], demo.orders()), (&["#1 2 × tea".to_owned()][..], 1));
    page.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_double_click_is_one_order() {
    let demo = Demo::start(&[]);
    let page = Page::open(&(demo.url("gateway") + "/by-hand"), Screen::Desk).await;
    page.press("double").await;
    let seen = page.until_sentence("2 requests, 1 order").await;
    let [second, first] = &seen.requests[..] else { panic!("{seen:?}") };
    assert_eq!((&*first.result, &*second.result), ("201, order 1", "201, order 1"));
    let mut outcomes = [&*first.outcome, &*second.outcome];
    outcomes.sort_unstable();
    assert_eq!(outcomes, ["replayed", "stored"]);
    assert_eq!(seen.explain, "One key, so one order. Each retry got the first answer.");
    assert_eq!((seen.rows.len(), demo.orders()), (1, 1));
    page.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_order_with_the_same_key_is_refused() {
    let demo = Demo::start(&[]);
    let page = Page::open(&(demo.url("gateway") + "/by-hand"), Screen::Desk).await;
    page.press("order").await;
    page.until_sentence("1 request, 1 order").await;
    page.press("mismatch").await;
    let seen = page.until_sentence("2 requests, 1 order").await;
    let refused = &seen.requests[0];
    assert_eq!((&*refused.status, &*refused.outcome), ("422", "mismatch"));
    assert!(refused.detail.contains("make a new key"), "{}", refused.detail);
    page.press("newkey").await;
    let seen = page.until_sentence("3 requests, 2 orders").await;
    assert_eq!((&*seen.requests[0].outcome, demo.orders()), ("stored", 2));
    page.close().await;
}

//! The page at `/` of the gateway, in a real Chromium: what a person sees of the story.

#[path = "../../../../examples/orders/tests/it/page.rs"]
pub(crate) mod browser;

use crate::demo::Demo;
use browser::{Page, Screen};

/// Enough for the page's three columns.
const WIDTH: u32 = 1140;

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_a_lost_answer_finds_the_one_order() {
    let demo = Demo::start(&[]);
    let page = Page::open(&demo.url("gateway"), Screen::Desk).await;
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
    let page = Page::open(&demo.url("gateway"), Screen::Desk).await;
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
    let page = Page::open(&demo.url("gateway"), Screen::Desk).await;
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

/// The README shows this one; `docs/page.png` is a copy of the file that it leaves.
#[tokio::test(flavor = "multi_thread")]
async fn the_whole_story_fits_into_a_picture() {
    let demo = Demo::start(&[]);
    let page = Page::open(&demo.url("gateway"), Screen::Desk).await;
    page.press("drop").await;
    page.press("order").await;
    page.until_sentence("1 request, 1 order").await;
    page.press("drop").await;
    // Whoever is impatient does not wait for one retry to end.
    page.press("double").await;
    let seen = page.until_sentence("3 requests, 1 order").await;
    let outcomes: Vec<_> = seen.requests.iter().map(|request| &*request.outcome).collect();
    assert_eq!(outcomes, ["replayed", "replayed", ""]);

    page.client.set_window_size(WIDTH, 800).await.unwrap();
    // The pointer rests where nothing happens.
    page.press("sentence").await;
    // Neither what fades nor what was touched last is part of the story.
    let script = "document.activeElement.blur(); for (const fading of document.getAnimations()) fading.finish()
                  return document.documentElement.scrollHeight + outerHeight - innerHeight";
    let height = page.run(script).await.as_u64().unwrap();
    page.client.set_window_size(WIDTH, u32::try_from(height).unwrap()).await.unwrap();
    let spare = page.run("const { scrollWidth, scrollHeight } = document.documentElement; return [innerWidth - scrollWidth, innerHeight - scrollHeight]").await;
    assert_eq!(spare, serde_json::json!([0, 0]), "all of it is in the picture");
    let picture = page.client.screenshot().await.unwrap();
    std::fs::write(std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("page.png"), picture).unwrap();
    page.close().await;
}

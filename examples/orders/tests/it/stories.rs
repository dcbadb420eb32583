//! What a person sees on the page: of the service that runs alone, where nothing remembers keys, and
//! of the service with the layer inside.

use std::{net::SocketAddr, path::Path};

use axum::Router;
use onceward::store::EmbeddedStore;
use onceward_axum::IdempotencyLayer;
use orders::{Config, Orders};
use tokio::net::TcpListener;

use crate::{
    page::{Page, Screen},
    support::{Service, ask, relay_to},
};

const ENTER: &str = "\u{e007}";

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_placed_from_the_keyboard() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &[]);
    let page = Page::open(&service.url(), Screen::Desk).await;
    assert_eq!(page.look().await.sentence, "0 requests, 0 orders");
    for needs_one_before in ["retry", "newkey", "mismatch"] {
        assert!(!page.element(needs_one_before).await.is_enabled().await.unwrap(), "{needs_one_before}");
    }

    page.fill("item", "green tea").await;
    page.fill("qty", &format!("3{ENTER}")).await;
    let seen = page.until_sentence("1 request, 1 order").await;
    assert_eq!(seen.rows, ["#1 3 × green tea"]);
    let [request] = &seen.requests[..] else { panic!("{seen:?}") };
    assert_eq!((&*request.action, &*request.result, &*request.outcome), ("Order", "201, order 1", ""));
    assert_eq!(request.heard, "no Idempotency-Outcome");
    assert!(seen.held.starts_with(&format!("Key …{} It is settled", request.key)), "{}", seen.held);
    page.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_double_click_makes_two_orders_where_nothing_remembers_keys() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &[]);
    let page = Page::open(&service.url(), Screen::Desk).await;
    page.press("double").await;
    let seen = page.until_sentence("2 requests, 2 orders").await;
    let [second, first] = &seen.requests[..] else { panic!("{seen:?}") };
    assert_eq!(first.key, second.key, "one intent, one key");
    assert_eq!((&*first.status, &*second.status), ("201", "201"));
    assert_eq!(
        seen.explain,
        "Nothing here remembers keys: each request that arrived made an order, 2 orders for 1 intent."
    );
    assert_eq!(service.total(), 2, "the sentence tells the truth");
    page.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_bears_the_same_key_and_another_intent_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &[]);
    let page = Page::open(&service.url(), Screen::Desk).await;
    page.press("order").await;
    page.until_sentence("1 request, 1 order").await;
    page.press("retry").await;
    page.until_sentence("2 requests, 2 orders").await;
    page.press("mismatch").await;
    page.until_sentence("3 requests, 3 orders").await;
    page.press("newkey").await;
    page.until_sentence("4 requests, 4 orders").await;
    page.press("order").await;
    let seen = page.until_sentence("5 requests, 5 orders").await;
    assert_eq!(seen.rows, ["#5 2 × tea", "#4 2 × tea", "#3 3 × tea", "#2 2 × tea", "#1 2 × tea"]);
    let keys: Vec<_> = seen.requests.iter().rev().map(|request| &*request.key).collect();
    let [order, retry, mismatch, new, next] = keys[..] else { panic!("{keys:?}") };
    assert_eq!((retry, mismatch), (order, order));
    assert!(new != order && next != new && next != order, "{keys:?}");

    page.press("reset").await;
    let seen = page.until_sentence("0 requests, 0 orders").await;
    assert_eq!((seen.requests.len(), seen.rows.len()), (0, 5), "the story begins anew, the orders stay");
    page.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_of_others_are_shown_and_not_counted() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &[]);
    service.post(r#"{"item": "tea", "qty": 2}"#);
    let page = Page::open(&service.url(), Screen::Desk).await;
    page.until("the older order", |seen| seen.rows == ["#1 2 × tea"]).await;
    page.press("order").await;
    page.until_sentence("1 request, 1 order").await;
    service.post(r#"{"item": "rum", "qty": 1}"#);
    let seen = page.until("the other order", |seen| seen.rows.len() == 3).await;
    assert_eq!(seen.sentence, "1 request, 1 order");
    let from = page.run("return Array.from(document.querySelectorAll('.row .from'), (e) => e.textContent)").await;
    assert_eq!(from, serde_json::json!(["not from this page", "", "from before"]));
    page.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_said_at_its_field_and_text_stays_text() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &[]);
    let page = Page::open(&service.url(), Screen::Desk).await;
    page.fill("qty", "2000").await;
    page.press("order").await;
    let seen = page.until_sentence("1 request, 0 orders").await;
    assert_eq!(seen.wrong, "qty is 2000: send a whole number from 1 to 1000, such as 2");
    assert_eq!((&*seen.requests[0].status, &seen.requests[0].detail), ("422", &seen.wrong));
    assert_eq!(page.element("qty").await.attr("aria-invalid").await.unwrap().as_deref(), Some("true"));
    assert_eq!(page.element("item").await.attr("aria-invalid").await.unwrap().as_deref(), Some("false"));

    let hostile = "<img src=x onerror=\"document.body.id='hurt'\">";
    page.fill("item", hostile).await;
    page.fill("qty", "1").await;
    assert_eq!(page.look().await.wrong, "", "what is being mended is no longer blamed");
    page.press("order").await;
    let seen = page.until_sentence("2 requests, 1 order").await;
    assert_eq!(seen.rows, [format!("#1 1 × {hostile}")]);
    let hurt = page.run("return [document.images.length, document.body.id]").await;
    assert_eq!(hurt, serde_json::json!([0, ""]));
    page.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_relay_the_switch_says_why_it_does_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &[]);
    let page = Page::open(&service.url(), Screen::Desk).await;
    assert!(!page.element("drop").await.is_enabled().await.unwrap());
    let hint = page.element("drop-hint").await.text().await.unwrap();
    assert!(hint.contains("the orders service runs alone") && hint.contains("onceward demo"), "{hint}");
    page.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_leaves_the_key_open_and_a_refresh_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let address = serve_with_relay(folder.path(), |router| router).await;
    let page = Page::open(&format!("http://{address}/"), Screen::Desk).await;
    page.press("drop").await;
    page.press("order").await;
    // The answer was lost, and not the order: that is the whole difficulty.
    let lost = page.until_sentence("1 request, 1 order").await;
    let [request] = &lost.requests[..] else { panic!("{lost:?}") };
    assert_eq!((&*request.state, &*request.result), ("lost", "connection lost"));
    assert!(lost.explain.contains("cannot know whether the order was made"), "{}", lost.explain);
    assert!(lost.held.starts_with(&format!("Key …{} Its outcome is open", request.key)), "{}", lost.held);

    page.refresh().await;
    let kept = page.until_sentence("1 request, 1 order").await;
    assert_eq!((&kept.held, &kept.requests[0].key), (&lost.held, &request.key));
    // The network is back, and the person presses Order once more: the same intent, the same key.
    page.press("order").await;
    let again = page.until_sentence("2 requests, 2 orders").await;
    assert_eq!((&again.requests[0].key, &*again.requests[0].status), (&request.key, "201"));
    page.press("order").await;
    let next = page.until_sentence("3 requests, 3 orders").await;
    assert_ne!(next.requests[0].key, request.key, "a settled key is not used for the next intent");
    page.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_a_uuid_over_plain_http_too() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &[]);
    // A browser trusts localhost as it trusts https; this name it does not.
    let page = Page::open(&format!("http://orders.test:{}/", service.address.port()), Screen::Desk).await;
    assert_eq!(
        page.run("return [isSecureContext, typeof crypto.randomUUID]").await,
        serde_json::json!([false, "undefined"])
    );
    page.press("order").await;
    page.until_sentence("1 request, 1 order").await;
    let uuid = "return /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/";
    let is_one = page.run(&format!("{uuid}.test(JSON.parse(sessionStorage.getItem('orders.story')).intent.key)")).await;
    assert_eq!(is_one, true);
    page.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_fits_a_phone() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &[]);
    let page = Page::open(&service.url(), Screen::Phone).await;
    page.fill("item", &"W".repeat(100)).await;
    page.press("double").await;
    page.until_sentence("2 requests, 2 orders").await;
    page.fill("item", &"x".repeat(101)).await;
    page.press("order").await;
    page.until("a refusal", |seen| !seen.wrong.is_empty()).await;
    let wide = page.run("return [innerWidth, document.documentElement.scrollWidth]").await;
    assert_eq!(wide, serde_json::json!([360, 360]), "nothing is wider than the screen");
    page.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_database_is_another_story() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = Service::start(folder.path(), &[]);
    let address = service.address.to_string();
    let page = Page::open(&service.url(), Screen::Desk).await;
    page.press("order").await;
    page.until_sentence("1 request, 1 order").await;
    drop(service);
    page.until("that the service is gone", |seen| seen.trouble.contains("does not answer")).await;

    let service = Service::start_at(&address, other.path(), &[]);
    let seen = page.until_sentence("0 requests, 0 orders").await;
    assert_eq!((&*seen.trouble, seen.rows.len()), ("", 0));
    page.press("order").await;
    page.until_sentence("1 request, 1 order").await;
    assert_eq!(service.total(), 1);
    page.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_is_text_in_the_page() {
    let folder = tempfile::tempdir().unwrap();
    let orders = Orders::open(folder.path().join("orders.db")).unwrap();
    let config = Config { relay: Some(r#"http://x/"><script>'&"#.into()), ..Config::default() };
    let address = serve(orders::router(orders, config), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let page = tokio::task::spawn_blocking(move || ask(address, "GET", "/", "", b"")).await.unwrap();
    let injected = r#"<meta name="relay" content="http://x/&quot;&gt;&lt;script&gt;&#39;&amp;">"#;
    assert!(page.status == 200 && page.body.contains(injected), "{}", page.body);
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_layer_a_double_click_is_one_order() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &["--layer"]);
    let page = Page::open(&service.url(), Screen::Desk).await;
    page.press("double").await;
    let seen = page.until_sentence("2 requests, 1 order").await;
    let [second, first] = &seen.requests[..] else { panic!("{seen:?}") };
    assert_eq!(first.key, second.key);
    assert_eq!((&*first.result, &*second.result), ("201, order 1", "201, order 1"), "one waits for the other");
    let mut outcomes = [&*first.outcome, &*second.outcome];
    outcomes.sort_unstable();
    assert_eq!(outcomes, ["replayed", "stored"]);
    assert_eq!(seen.explain, "One key, so one order. Each retry got the first answer.");
    assert_eq!(service.total(), 1);
    page.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_layer_a_retry_after_a_lost_answer_and_a_refresh_is_the_same_order() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(folder.path().join("keys")).unwrap();
    let once = IdempotencyLayer::new(store).require_key();
    let address = serve_with_relay(folder.path(), |router| once.around(router)).await;
    let page = Page::open(&format!("http://{address}/"), Screen::Desk).await;
    page.press("drop").await;
    page.press("order").await;
    page.until_sentence("1 request, 1 order").await;
    page.press("retry").await;
    let lost = page.until_sentence("2 requests, 1 order").await;
    assert!(lost.requests.iter().all(|request| request.state == "lost"), "{lost:?}");

    page.refresh().await;
    page.press("retry").await;
    let seen = page.until_sentence("3 requests, 1 order").await;
    let retry = &seen.requests[0];
    assert_eq!((&*retry.result, &*retry.outcome), ("201, order 1", "replayed"));
    assert_eq!(retry.heard, "Idempotency-Outcome: replayedIdempotency-Replayed: true");
    assert!(seen.requests.iter().all(|request| request.key == retry.key), "{seen:?}");
    assert!(seen.held.contains("It is settled"), "{}", seen.held);
    page.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_layer_another_body_is_refused_and_a_new_key_is_a_new_order() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &["--layer"]);
    let page = Page::open(&service.url(), Screen::Desk).await;
    page.press("order").await;
    page.until_sentence("1 request, 1 order").await;
    page.press("mismatch").await;
    let seen = page.until_sentence("2 requests, 1 order").await;
    let refused = &seen.requests[0];
    assert_eq!((&*refused.status, &*refused.outcome), ("422", "mismatch"));
    assert!(!refused.detail.is_empty(), "the refusal says what to do");
    assert_eq!(refused.key, seen.requests[1].key);

    page.press("newkey").await;
    let seen = page.until_sentence("3 requests, 2 orders").await;
    assert_eq!((&*seen.requests[0].outcome, seen.rows.len()), ("stored", 2));
    assert_ne!(seen.requests[0].key, seen.requests[1].key);
    page.close().await;
}

/// The service in this process, with a relay before it and a layer on it.
async fn serve_with_relay(folder: &Path, layer: impl FnOnce(Router) -> Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = Config { relay: Some(relay_to(listener.local_addr().unwrap())), ..Config::default() };
    let orders = Orders::open(folder.join("orders.db")).unwrap();
    serve(layer(orders::router(orders, config)), listener)
}

fn serve(router: Router, listener: TcpListener) -> SocketAddr {
    let address = listener.local_addr().unwrap();
    tokio::spawn(orders::serve(listener, router, std::future::pending()));
    address
}

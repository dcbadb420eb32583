//! Named intents: one name is one action and one key.

use std::time::Duration;

use onceward::problem::Executed;
use onceward_client::decide::Kind;
use onceward_client::{Error, Idempotent, Intent, Journal};
use reqwest_middleware::ClientWithMiddleware;

use crate::support::{Gateway, Lost, Road, Service, until};

fn client(settings: Idempotent) -> ClientWithMiddleware {
    settings.build(reqwest::Client::builder()).expect("a client")
}

async fn order(
    client: &ClientWithMiddleware,
    url: String,
    intent: Intent,
    body: &'static str,
) -> reqwest_middleware::Result<(u16, String)> {
    let response = client.post(url).with_extension(intent).body(body).send().await?;
    Ok((response.status().as_u16(), response.text().await?))
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_request_keeps_its_key_without_a_journal() {
    let service = Service::start();
    let gateway = Gateway::before(service.address);
    service.hold();
    let client = client(Idempotent::default());
    let url = gateway.url("/orders");
    let first = tokio::spawn({
        let (client, url) = (client.clone(), url.clone());
        async move { order(&client, url, Intent::new("order 7"), "tea").await }
    });
    let service = tokio::task::spawn_blocking(move || {
        until("the order", || service.orders() == 1);
        service
    })
    .await
    .expect("no panic");
    // As `select!` does.
    first.abort();
    assert!(first.await.expect_err("it was aborted").is_cancelled());
    service.let_go();
    let again = order(&client, url, Intent::new("order 7"), "tea").await.expect("a response");
    assert_eq!((again, service.orders()), ((201, "order 1".into()), 1));
}

#[tokio::test]
async fn retry_around_a_lost_response_is_not_sent_where_keys_are_unsupported() {
    let service = Service::start();
    let road = Road::to(service.address, 1, Lost::Whole);
    let client = client(Idempotent::default());
    for _ in 0..3 {
        let result = order(&client, format!("http://{}/orders", road.address), Intent::new("order 7"), "tea").await;
        let error = result.expect_err("the response was lost");
        assert_eq!(Error::of(&error).expect("an error of ours").executed, Executed::Unknown);
    }
    assert_eq!((service.orders(), road.posts()), (1, 1));
}

#[tokio::test]
async fn name_is_one_key_after_its_end_unless_it_is_repeatable() {
    let service = Service::start();
    let gateway = Gateway::before(service.address);
    let client = client(Idempotent::default());
    let send = |intent, body| order(&client, gateway.url("/orders"), intent, body);
    for _ in 0..2 {
        let response = send(Intent::new("order 7"), "tea").await.expect("a response");
        assert_eq!(response, (201, "order 1".into()));
    }
    let error = send(Intent::new("order 7"), "rum").await.expect_err("other content");
    let error = Error::of(&error).expect("an error of ours");
    assert_eq!(error.kind, Kind::KeyReused);
    assert_eq!(error.first_status.map(|status| status.as_u16()), Some(201));
    assert_eq!(service.orders(), 1);
    for number in ["order 2", "order 3"] {
        let response = send(Intent::new("basket").repeatable(), "tea").await.expect("a response");
        assert_eq!(response.1, number);
    }
}

#[tokio::test]
async fn name_of_an_action_that_did_not_execute_gets_a_new_key() {
    let service = Service::start();
    let gateway = Gateway::before(service.address);
    let client = client(Idempotent::default());
    service.answer(&["401 Unauthorized"]);
    let refused = order(&client, gateway.url("/orders"), Intent::new("order 7"), "tea").await.expect("a response");
    assert_eq!(refused.0, 401);
    let made = order(&client, gateway.url("/orders"), Intent::new("order 7"), "rum").await.expect("a response");
    assert_eq!((made.0, service.orders()), (201, 1));
}

#[tokio::test]
async fn journal_keeps_the_name_of_an_ended_intent_for_the_next_run() {
    let service = Service::start();
    let gateway = Gateway::before(service.address);
    let folder = tempfile::tempdir().expect("a directory");
    for _ in 0..3 {
        let journal = Journal::open(folder.path()).expect("a journal");
        assert!(journal.pending().is_empty());
        let client = client(Idempotent::default().journal(&journal));
        let response = order(&client, gateway.url("/orders"), Intent::new("order 7"), "tea").await;
        assert_eq!(response.expect("a response"), (201, "order 1".into()));
    }
    assert_eq!(service.orders(), 1);
}

#[tokio::test]
async fn deadline_ends_an_attempt_that_hangs() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/orders", listener.local_addr().expect("an address"));
    let client = client(Idempotent::default().deadline(Duration::from_secs(1)));
    let sent = order(&client, url, Intent::new("order 7"), "tea");
    let error = tokio::time::timeout(crate::support::PATIENCE, sent).await.expect("it ends").expect_err("no response");
    let error = Error::of(&error).expect("an error of ours");
    assert_eq!((error.kind, error.executed), (Kind::OutcomeUnknown, Executed::Unknown));
}

/// A body that cannot be cloned.
fn stream(text: &'static str) -> reqwest::Body {
    reqwest::Body::wrap(http_body_util::Full::new(bytes::Bytes::from_static(text.as_bytes())))
}

#[tokio::test]
async fn outcome_of_a_streamed_request_is_looked_up_after_a_lost_response() {
    let service = Service::start();
    let gateway = Gateway::before(service.address);
    let road = Road::to(gateway.address, 1, Lost::Whole);
    let client = client(Idempotent::default().honoured());
    let url = format!("http://{}/orders", road.address);
    let response = client.post(&url).body(stream("tea")).send().await.expect("the stored response");
    assert_eq!((response.status().as_u16(), service.orders(), road.posts()), (201, 1, 1));
    // Equal streams are two actions.
    let second = client.post(&url).body(stream("tea")).send().await.expect("a response");
    assert_eq!(second.text().await.expect("text"), "order 2");
}

#[tokio::test]
async fn refusal_of_a_streamed_request_or_a_fragment_is_the_end_of_the_request_itself() {
    for (body, fragment) in [(Some(stream("tea")), ""), (None, "#top")] {
        let service = Service::start();
        let client = client(Idempotent::default());
        let send = |body: reqwest::Body| {
            let url = format!("http://{}/orders{fragment}", service.address);
            client.post(url).with_extension(Intent::new("order 7")).body(body).send()
        };
        service.answer(&["400 Bad Request"]);
        assert_eq!(send(body.unwrap_or_else(|| "tea".into())).await.expect("a response").status(), 400);
        // It was not executed, so the name is free, also where keys are not supported.
        assert_eq!(send("rum".into()).await.expect("a response").status(), 201);
    }
}

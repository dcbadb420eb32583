//! One request, one order, whatever is lost between them.

use std::time::Duration;

use onceward::problem::Executed;
use onceward_client::decide::{Kind, Reason};
use onceward_client::{Error, Idempotent};
use reqwest_middleware::ClientWithMiddleware;

use crate::support::{Gateway, Lost, Road, Service, until};

fn client(idempotent: Idempotent) -> ClientWithMiddleware {
    idempotent.build(reqwest::Client::builder()).expect("a client")
}

async fn order(client: &ClientWithMiddleware, url: String) -> reqwest_middleware::Result<(u16, String)> {
    let response = client.post(url).body("{\"item\":\"tea\"}").send().await?;
    Ok((response.status().as_u16(), response.text().await?))
}

#[tokio::test]
async fn an_order_whose_answers_are_lost_is_one_order() {
    for lost in [Lost::Whole, Lost::Midway] {
        let service = Service::start();
        let gateway = Gateway::before(service.address);
        let road = Road::to(gateway.address, 3, lost);
        let answer = order(&client(Idempotent::default()), format!("http://{}/orders", road.address)).await;
        assert_eq!(answer.expect("an answer"), (201, "order 1".into()), "{lost:?}");
        assert_eq!((service.orders(), road.posts()), (1, 4), "{lost:?}");
    }
}

#[tokio::test]
async fn without_keys_that_are_honoured_nothing_is_sent_twice() {
    let service = Service::start();
    let road = Road::to(service.address, 1, Lost::Whole);
    let client = client(Idempotent::default());
    let error = order(&client, format!("http://{}/orders", road.address)).await.expect_err("the answer was lost");
    let error = Error::of(&error).expect("an error of ours");
    assert_eq!((error.kind, error.executed), (Kind::OutcomeUnknown, Executed::Unknown));
    assert_eq!(error.because, Reason::NotHonoured);
    assert_eq!((service.orders(), road.posts()), (1, 1));
}

#[tokio::test]
async fn two_orders_are_two_and_a_key_of_ones_own_is_kept() {
    let service = Service::start();
    let gateway = Gateway::before(service.address);
    let client = client(Idempotent::default());
    for number in ["order 1", "order 2"] {
        assert_eq!(order(&client, gateway.url("/orders")).await.expect("an answer").1, number);
    }
    for _ in 0..2 {
        let answer = client.post(gateway.url("/orders")).header("Idempotency-Key", "mine").body("tea").send().await;
        assert_eq!(answer.expect("an answer").text().await.expect("text"), "order 3");
    }
    assert_eq!(service.by_key().len(), 3);
    assert_eq!(service.keys()[2], "mine");
    // What is idempotent already bears no key.
    assert_eq!(client.get(gateway.url("/orders")).send().await.expect("an answer").status(), 404);
}

#[tokio::test]
async fn whoever_is_told_to_come_back_does() {
    let service = Service::start();
    let gateway = Gateway::before(service.address);
    service.answer(&["429 Too Many\r\nRetry-After: 1", "529 Overloaded\r\nRetry-After: 1"]);
    let answer = order(&client(Idempotent::default()), gateway.url("/orders")).await.expect("an answer");
    assert_eq!((answer.0, service.orders()), (201, 1));
    service.answer(&["401 Who"]);
    assert_eq!(order(&client(Idempotent::default()), gateway.url("/orders")).await.expect("an answer").0, 401);
    assert_eq!(service.orders(), 1);
}

#[tokio::test]
async fn an_order_whose_key_was_used_for_another_is_no_order() {
    let service = Service::start();
    let gateway = Gateway::before(service.address);
    let client = client(Idempotent::default());
    let send =
        |body: &'static str| client.post(gateway.url("/orders")).header("Idempotency-Key", "mine").body(body).send();
    assert_eq!(send("tea").await.expect("an answer").status(), 201);
    let error = send("rum").await.expect_err("another request");
    let error = Error::of(&error).expect("an error of ours");
    assert_eq!((error.kind, error.code.as_deref()), (Kind::KeyReused, Some("key_reused")));
    assert_eq!(service.orders(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_killed_and_comes_back_gives_the_answer_of_one_order() {
    let service = Service::start();
    let mut gateway = Gateway::before(service.address);
    let road = Road::to(gateway.address, 1, Lost::Whole);
    let client = client(Idempotent::default());
    let url = format!("http://{}/orders", road.address);
    let sending = tokio::spawn(async move { order(&client, url).await });
    tokio::task::spawn_blocking(move || {
        // Executed, kept, and its answer lost; then nobody is there.
        until("the loss of the answer", || road.lost() == 1);
        gateway.kill();
        gateway.start_again();
        (service, gateway)
    })
    .await
    .map(|(service, gateway)| async move {
        let answer = sending.await.expect("no panic").expect("an answer");
        assert_eq!((answer, service.orders()), ((201, "order 1".into()), 1));
        drop(gateway);
    })
    .expect("no panic")
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_killed_while_it_waits_leaves_an_unknown_and_no_second_order() {
    let service = Service::start();
    service.hold();
    let mut gateway = Gateway::before(service.address);
    let url = gateway.url("/orders");
    let sending = tokio::spawn(async move { order(&client(Idempotent::default()), url).await });
    let (service, gateway) = tokio::task::spawn_blocking(move || {
        until("the order", || service.orders() == 1);
        gateway.kill();
        gateway.start_again();
        (service, gateway)
    })
    .await
    .expect("no panic");
    let error = sending.await.expect("no panic").expect_err("nobody knows");
    // The connection broke before the gateway was seen to honour keys; by then it was back, and was asked.
    let error = Error::of(&error).expect("an error of ours");
    assert_eq!((error.kind, error.executed), (Kind::OutcomeUnknown, Executed::Unknown));
    assert_eq!(service.orders(), 1);
    service.let_go();
    drop(gateway);
}

#[tokio::test]
async fn what_was_never_sent_says_so_at_its_deadline() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let client = client(Idempotent::default().deadline(Duration::from_millis(600)));
    let error = order(&client, format!("http://{gone}/orders")).await.expect_err("nobody is there");
    let error = Error::of(&error).expect("an error of ours");
    assert_eq!((error.kind, error.executed), (Kind::NotSent, Executed::No));
}

//! Redirects that the HTTP client follows by itself, below the middleware.

use std::time::Duration;

use onceward::problem::Executed;
use onceward_client::decide::Kind;
use onceward_client::{Error, Idempotent, Journal};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};

use crate::support::Service;

/// An address that refuses connections.
fn closed() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address")
}

/// Clients whose redirects are unknown, and known.
fn clients(settings: &Idempotent) -> [(&'static str, ClientWithMiddleware); 2] {
    let plain = ClientBuilder::new(reqwest::Client::new()).with(settings.clone()).build();
    [("plain", plain), ("built", settings.clone().build(reqwest::Client::builder()).expect("a client"))]
}

fn posts(service: &Service) -> usize {
    service.requests().iter().filter(|line| line.starts_with("POST")).count()
}

fn url(service: &Service) -> String {
    format!("http://{}/orders", service.address)
}

#[tokio::test]
async fn redirect_to_a_closed_port_is_not_sent_again_and_stays_unknown() {
    for status in ["301 Moved", "302 Found", "303 See Other"] {
        for target in [format!("http://{}/page", closed()), format!("https://{}/page", closed()), "ftp://x/y".into()] {
            let folder = tempfile::tempdir().expect("a directory");
            let journal = Journal::open(folder.path()).expect("a journal");
            let settings = Idempotent::default().deadline(Duration::from_secs(2)).journal(&journal);
            for (client, sender) in clients(&settings) {
                let service = Service::start();
                let answer: &'static str = format!("{status}\r\nLocation: {target}").leak();
                service.answer(&[answer]);
                let case = format!("{client}, {answer:?}");
                let result = sender.post(url(&service)).body("tea").send().await;
                let error = result.expect_err("the page is down");
                assert_eq!(posts(&service), 1, "{case}");
                if let Some(error) = Error::of(&error) {
                    assert_eq!((error.kind, error.executed), (Kind::OutcomeUnknown, Executed::Unknown), "{case}");
                }
                let pending = journal.pending();
                assert_eq!(pending.len(), 1, "{case}");
                journal.settle(&pending[0]).await.expect("it is removed");
            }
        }
    }
}

#[tokio::test]
async fn error_of_a_redirect_target_does_not_end_the_request() {
    let folder = tempfile::tempdir().expect("a directory");
    let journal = Journal::open(folder.path()).expect("a journal");
    let settings = Idempotent::default().journal(&journal);
    for (client, sender) in clients(&settings) {
        let service = Service::start();
        service.answer(&["303 See Other\r\nLocation: /gone"]);
        let response = sender.post(url(&service)).body("tea").send().await.expect("the page's 404");
        assert_eq!((response.status().as_u16(), posts(&service)), (404, 1), "{client}");
        // A recorded 303 is the response to the request; an unrecorded one might have been a 307.
        let open = journal.pending();
        assert_eq!(open.len(), usize::from(client == "plain"));
        for pending in open {
            journal.settle(&pending).await.expect("it is removed");
        }
    }
}

#[tokio::test]
async fn refused_connection_proves_nothing_unless_redirects_are_recorded() {
    for (client, sender) in clients(&Idempotent::default().deadline(Duration::from_millis(600))) {
        let error = sender.post(format!("http://{}/orders", closed())).body("tea").send().await.expect_err("closed");
        let error = Error::of(&error).expect("an error of ours");
        let expected = match client {
            "built" => (Kind::NotSent, Executed::No),
            _ => (Kind::OutcomeUnknown, Executed::Unknown),
        };
        assert_eq!((error.kind, error.executed), expected, "{client}");
    }
}

#[tokio::test]
async fn temporary_redirect_is_followed_with_key_and_body() {
    for (client, sender) in clients(&Idempotent::default()) {
        for status in ["307 Temporary Redirect", "308 Permanent Redirect"] {
            let (front, service) = (Service::start(), Service::start());
            let answer: &'static str = format!("{status}\r\nLocation: {}", url(&service)).leak();
            front.answer(&[answer]);
            let response = sender.post(url(&front)).header("Idempotency-Key", "mine").body("tea").send().await;
            assert_eq!(response.expect("a response").status(), 201, "{client}");
            assert_eq!((service.keys(), front.orders()), (vec!["mine".to_owned()], 0), "{client}");
        }
    }
}

//! The service with the layer inside: `--layer`.

use std::{collections::HashSet, io::Write, net::TcpStream, thread};

use crate::support::{Answer, Service, ask, await_that, connect, read_answer, refused_start};

const TEA: &[u8] = br#"{"item": "tea", "qty": 2}"#;

fn post(service: &Service, key: &str, body: &[u8]) -> Answer {
    let headers = format!("Content-Type: application/json\r\nIdempotency-Key: {key}\r\n");
    ask(service.address, "POST", "/orders", &headers, body)
}

#[test]
fn each_retry_gets_the_first_answer() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &["--layer"]);
    let first = post(&service, "\"one\"", TEA);
    assert_eq!((first.status, first.header("idempotency-outcome")), (201, Some("stored")), "{}", first.body);
    assert_eq!(first.header("idempotency-replayed"), None);
    for retry in ["\"one\"", "one"] {
        let again = post(&service, retry, TEA);
        assert_eq!((again.status, again.header("idempotency-outcome")), (201, Some("replayed")));
        assert_eq!(again.header("idempotency-replayed"), Some("true"));
        assert_eq!((&again.body, again.header("location")), (&first.body, Some("/orders/1")));
    }
    assert_eq!(service.total(), 1);
    assert_eq!(post(&service, "two", TEA).header("location"), Some("/orders/2"), "a new key is a new order");
}

#[test]
fn a_retry_after_a_kill_gets_the_first_answer() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &["--layer"]);
    let address = service.address.to_string();
    let first = post(&service, "one", TEA);
    drop(service); // SIGKILL

    // On the same address: a request to another host is another request.
    let service = Service::start_at(&address, folder.path(), &["--layer"]);
    let again = post(&service, "one", TEA);
    assert_eq!((again.header("idempotency-outcome"), &again.body), (Some("replayed"), &first.body));
    assert_eq!(service.total(), 1);
}

#[test]
fn equal_requests_at_once_make_one_order() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &["--layer"]);
    let answers: Vec<_> = thread::scope(|scope| {
        let asked: Vec<_> = (0..40).map(|_| scope.spawn(|| post(&service, "one", TEA))).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    assert_eq!(service.total(), 1);
    let stored = answers.iter().filter(|answer| answer.header("idempotency-outcome") == Some("stored"));
    assert_eq!(stored.count(), 1);
    for answer in &answers {
        let outcome = answer.header("idempotency-outcome");
        let fits = matches!((answer.status, outcome), (201, Some("stored" | "replayed")) | (409, Some("in-flight")));
        assert!(fits, "{} {outcome:?}", answer.status);
    }
    let made: HashSet<_> = answers.iter().filter(|answer| answer.status == 201).map(|answer| &answer.body).collect();
    assert_eq!(made.len(), 1, "one order, one answer");
}

#[test]
fn mistakes_with_keys_are_refused_and_make_no_order() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &["--layer"]);
    assert_eq!(post(&service, "one", TEA).status, 201);
    let json = "Content-Type: application/json\r\n";
    for (rule, answer, status, code) in [
        ("another body", post(&service, "one", br#"{"item": "tea", "qty": 3}"#), 422, "key_reused"),
        ("no key", ask(service.address, "POST", "/orders", json, TEA), 400, "key_missing"),
        ("a broken key", post(&service, "o,ne", TEA), 400, "key_invalid"),
    ] {
        assert_eq!((answer.status, answer.json()["code"].as_str()), (status, Some(code)), "{rule}");
        let (page, anchor) = answer.json()["type"]
            .as_str()
            .and_then(|uri| uri.split_once('#'))
            .map(|(page, anchor)| (page.to_owned(), anchor.to_owned()))
            .expect(rule);
        assert_eq!(anchor, code, "{rule}");
        let explained = ask(service.address, "GET", &page, "Accept: text/html\r\n", b"");
        assert!(
            explained.status == 200 && explained.body.contains(&format!("id=\"{code}\"")),
            "{rule}: {}",
            explained.body
        );
    }
    assert_eq!(service.total(), 1);
}

#[test]
fn what_the_service_refuses_is_an_answer_and_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &["--layer"]);
    let first = post(&service, "one", br#"{"item": "tea"}"#);
    assert_eq!((first.status, first.header("idempotency-outcome")), (422, Some("stored")));
    let again = post(&service, "one", br#"{"item": "tea"}"#);
    assert_eq!((again.status, again.header("idempotency-outcome")), (422, Some("replayed")));
    assert_eq!(again.body, first.body);
}

#[test]
fn callers_with_cookies_and_without_are_one() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &["--layer"]);
    let with = "Content-Type: application/json\r\nIdempotency-Key: one\r\nCookie: other=service\r\n";
    assert_eq!(ask(service.address, "POST", "/orders", with, TEA).status, 201);
    assert_eq!(post(&service, "one", TEA).header("idempotency-outcome"), Some("replayed"));
}

#[test]
fn a_drain_takes_no_new_claims_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut service = Service::start(folder.path(), &["--layer"]);
    assert_eq!(post(&service, "one", TEA).status, 201);
    // Two requests whose heads arrived before the signal and whose bodies come after it.
    let (mut replayed, mut refused) = (begin(&service, "one"), begin(&service, "two"));
    service.signal("TERM");
    await_that("no new connection is taken", || TcpStream::connect(service.address).is_err());
    for connection in [&mut replayed, &mut refused] {
        connection.write_all(&TEA[1..]).unwrap();
    }
    assert_eq!(read_answer(replayed).header("idempotency-outcome"), Some("replayed"));
    let refused = read_answer(refused);
    assert_eq!((refused.status, refused.json()["code"].as_str()), (503, Some("draining")));
    assert_eq!(service.exit_code(), Some(0));
    assert_eq!(Service::start(folder.path(), &["--layer"]).total(), 1);
}

#[test]
fn a_second_process_on_the_same_keys_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let _service = Service::start(folder.path(), &["--layer"]);
    let (code, line) = refused_start(folder.path(), &["--listen", "127.0.0.1:0", "--layer"]);
    assert_eq!(code, Some(1), "{line}");
    assert!(line.starts_with("orders: ") && line.contains("orders.db-keys"), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
}

/// A request whose head and first byte were sent, and the service waits for the rest.
fn begin(service: &Service, key: &str) -> TcpStream {
    let mut connection = connect(service.address);
    let head = format!(
        "POST /orders HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nIdempotency-Key: {key}\r\n\
         Content-Length: {}\r\nExpect: 100-continue\r\n\r\n",
        service.address,
        TEA.len()
    );
    connection.write_all(head.as_bytes()).unwrap();
    crate::support::read_continue(&connection);
    connection.write_all(&TEA[..1]).unwrap();
    connection
}

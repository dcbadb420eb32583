//! Which headers travel how far, what a replay shows, and how long a client says it waits.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use onceward::reply::StoredResponse;
use onceward::wire::{self, Outcome, PREFER};

fn headers(lines: &[(&str, &[u8])]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(name.parse::<HeaderName>().expect("a name"), HeaderValue::from_bytes(value).expect("a value"));
    }
    headers
}

fn lines(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    headers.iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect()
}

fn owned(lines: &[(&str, &[u8])]) -> Vec<(String, Vec<u8>)> {
    lines.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect()
}

#[test]
fn how_long_a_client_waits() {
    for (rule, prefers, wait, goes_on) in [
        ("nothing is said", vec![], None, None),
        ("a number of seconds", vec!["wait=10"], Some(10), None),
        ("zero is a word, too", vec!["wait=0"], Some(0), None),
        ("in quotes", vec!["wait=\"10\""], Some(10), None),
        ("in other letters, with spaces", vec!["  Wait = 10 "], Some(10), None),
        ("among others", vec!["respond-async, wait=10, handling=lenient"], Some(10), {
            Some("respond-async, handling=lenient")
        }),
        ("with parameters", vec!["wait=10; x=y"], Some(10), None),
        ("in a second line", vec!["respond-async", "wait=10"], Some(10), Some("respond-async")),
        ("the first one counts", vec!["wait=10, wait=20"], Some(10), None),
        ("also over lines", vec!["wait=10", "wait=20"], Some(10), None),
        ("without a number it is no wait", vec!["wait"], None, Some("wait")),
        ("nor with letters", vec!["wait=soon"], None, Some("wait=soon")),
        ("nor below zero", vec!["wait=-1"], None, Some("wait=-1")),
        ("nor with a fraction", vec!["wait=1.5"], None, Some("wait=1.5")),
        ("nor beyond what a number holds", vec!["wait=99999999999999999999"], None, Some("wait=99999999999999999999")),
        ("a longer name is another preference", vec!["wait-more=10"], None, Some("wait-more=10")),
        ("a bad one hides no good one", vec!["wait=soon, wait=10"], Some(10), Some("wait=soon")),
        ("an empty line says nothing", vec![""], None, None),
    ] {
        let mut headers = HeaderMap::new();
        for line in prefers {
            headers.append(PREFER, line.parse().expect("a value"));
        }
        assert_eq!(wire::prefer_wait(&headers), wait.map(Duration::from_secs), "{rule}");
        let rest = wire::prefer_without_wait(&headers);
        assert_eq!(rest.as_ref().map(|rest| rest.to_str().expect("text")), goes_on, "{rule}: what goes upstream");
    }
}

#[test]
fn what_an_answer_says_of_its_own_key() {
    for outcome in Outcome::ALL {
        let said = headers(&[("idempotency-outcome", outcome.as_str().as_bytes())]);
        assert_eq!(Outcome::of(&said), Some(outcome));
    }
    for other in [b"".as_slice(), b"STORED", b"stored ", b"reconciled", b"\xff"] {
        assert_eq!(Outcome::of(&headers(&[("idempotency-outcome", other)])), None, "{other:?}");
    }
    assert_eq!(Outcome::of(&HeaderMap::new()), None);
}

#[test]
fn what_ends_at_the_next_hop() {
    for name in [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ] {
        assert!(wire::is_hop_by_hop(&name.parse().expect("a name")), "{name}");
        assert_eq!(wire::end_to_end(&headers(&[(name, b"x"), ("x-a", b"1")])).count(), 1, "{name}");
    }
    for name in ["content-type", "content-length", "via", "date", "authorization", "idempotency-key", "x-te"] {
        assert!(!wire::is_hop_by_hop(&name.parse().expect("a name")), "{name}");
    }
    let message = headers(&[
        ("x-a", b"1"),
        ("connection", b"close, X-Hop"),
        ("x-hop", b"2"),
        ("connection", b"x-other"),
        ("x-other", b"3"),
        ("x-hop-not", b"4"),
        ("x-a", b"5"),
    ]);
    let left: Vec<_> = wire::end_to_end(&message).map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    assert_eq!(left, [("x-a", b"1".as_slice()), ("x-a", b"5"), ("x-hop-not", b"4")]);
}

const FIRST: [(&str, &[u8]); 23] = [
    ("date", b"Thu, 01 Jan 1970 00:00:00 GMT"),
    ("x-b", b"first"),
    ("location", b"/orders/7"),
    ("set-cookie", b"session=1"),
    ("set-cookie", b"session=2"),
    ("www-authenticate", b"Basic"),
    ("access-control-allow-origin", b"https://shop.example"),
    ("access-control-expose-headers", b"x-b"),
    ("access-control-anything-new", b"1"),
    ("connection", b"close, x-hop"),
    ("x-hop", b"1"),
    ("keep-alive", b"timeout=5"),
    ("transfer-encoding", b"chunked"),
    ("trailer", b"x-t"),
    ("cache-control", b"max-age=60"),
    ("idempotency-outcome", b"stored"),
    ("idempotency-replayed", b"true"),
    ("preference-applied", b"wait=1"),
    ("etag", b"\"1\""),
    ("x-a", b"\xe9\xff\x80"),
    ("x-b", b"second"),
    ("x-b", b"second"),
    ("content-type", b"text/plain; charset=latin1"),
];

#[test]
fn a_replay_leaves_out_what_belonged_to_the_moment_and_keeps_all_else_in_order() {
    let body = Bytes::from_static(b"\x00\xff");
    let kept = StoredResponse::keep(StatusCode::CREATED, &headers(&FIRST), body.clone());
    let replay = kept.replay();
    assert_eq!(replay.status(), StatusCode::CREATED);
    assert_eq!(*replay.body(), body);
    // `http` keeps the lines of one name together; among themselves they stay in order.
    let want = owned(&[
        ("x-b", b"first"),
        ("x-b", b"second"),
        ("x-b", b"second"),
        ("location", b"/orders/7"),
        ("preference-applied", b"wait=1"),
        ("etag", b"\"1\""),
        ("x-a", b"\xe9\xff\x80"),
        ("content-type", b"text/plain; charset=latin1"),
        ("cache-control", b"no-store"),
    ]);
    assert_eq!(lines(replay.headers()), want);
}

#[test]
fn what_a_replay_leaves_out_is_not_stored_at_all() {
    let kept = StoredResponse::keep(StatusCode::OK, &headers(&FIRST), Bytes::new());
    let stored: Vec<&str> = kept.headers.iter().map(|(name, _)| name.as_str()).collect();
    for secret in ["set-cookie", "www-authenticate", "connection", "x-hop", "access-control-allow-origin", "date"] {
        assert!(!stored.contains(&secret), "{secret}");
    }
    assert!(stored.contains(&"location"));
}

#[test]
fn a_head_keeps_the_status_and_where_it_is() {
    let head = StoredResponse::head(StatusCode::CREATED, &headers(&FIRST));
    assert_eq!((head.status, head.location.as_deref()), (StatusCode::CREATED, Some("/orders/7")));
    assert_eq!(StoredResponse::head(StatusCode::OK, &headers(&[("location", b"\xff")])).location, None);
    assert_eq!(StoredResponse::head(StatusCode::OK, &HeaderMap::new()).location, None);
}

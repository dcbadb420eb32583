//! Responses of the upstream: their lengths and codings, their header lines, their streams and their ends.

use std::net::Shutdown;

use crate::client::{assert_answer, assert_problem, assert_replay, order, outcome, poll};
use crate::forward::{OK, Scripted};
use crate::support::{Answer, Gateway};
use crate::upstream::Upstream;

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const REUSE: &str = "[limits]\nupstream_idle = \"30s\"\n";

/// A key that no other test has, so that none of them can be told.
const KEY: &str = "response-key-0123";

#[test]
fn response_with_length_and_chunks_ends_where_its_chunks_end() {
    let both = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: 1\r\nTransfer-Encoding: chunked\r\nX-B: 2\r\n\r\n\
        5\r\nhello\r\n0\r\n\r\n";
    let upstream = Scripted::answering(both);
    let gateway = Gateway::start(&upstream.url(), REUSE);
    let plain = gateway.send(GET);
    assert_eq!((plain.status, &*plain.body, plain.is_whole), (200, &b"hello"[..], true), "{plain:?}");
    assert_eq!(plain.one("content-length"), "");
    let first = order(KEY).send(&gateway);
    assert_answer(&first, 200, "stored");
    assert_eq!(first.body, b"hello");
    assert_replay(&order(KEY).send(&gateway), &first);
    // RFC 9112, 6.3: such a connection is closed.
    assert_eq!((upstream.seen().len(), upstream.connections()), (2, 2));
}

#[test]
fn repeated_equal_lengths_are_one_length() {
    for lines in ["Content-Length: 5, 5\r\n", "Content-Length: 5\r\nX-A: 1\r\nContent-Length: 5\r\n"] {
        let upstream = Scripted::answering(format!("HTTP/1.1 200 OK\r\n{lines}\r\nhello"));
        let gateway = Gateway::start(&upstream.url(), REUSE);
        let plain = gateway.send(GET);
        assert_eq!((&*plain.body, plain.one("content-length")), (&b"hello"[..], "5"), "{lines}");
        let first = order(KEY).send(&gateway);
        assert_answer(&first, 200, "stored");
        assert_eq!(first.one("content-length"), "5");
        assert_replay(&order(KEY).send(&gateway), &first);
    }
    for lines in ["Content-Length: 5, 6\r\n", "Content-Length: 5\r\nContent-Length: 6\r\n", "Content-Length: +5\r\n"] {
        let upstream = Scripted::answering(format!("HTTP/1.1 200 OK\r\n{lines}\r\nhello"));
        let gateway = Gateway::start(&upstream.url(), "");
        assert_eq!(gateway.send(GET).status, 502, "{lines}");
        assert_problem(&order(KEY).send(&gateway), "upstream_lost", KEY);
        assert_problem(&order(KEY).send(&gateway), "outcome_unknown", KEY);
    }
}

#[test]
fn transfer_coding_other_than_chunked_is_refused() {
    for coding in ["gzip, chunked", "gzip", "identity", "chunked, chunked", "x\r\nTransfer-Encoding: chunked"] {
        let upstream = Scripted::start(move |conversation| {
            conversation.request();
            conversation.say(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: {coding}\r\n\r\n5\r\nhello\r\n0\r\n\r\n"));
        });
        let gateway = Gateway::start(&upstream.url(), "");
        assert_eq!(gateway.send(GET).json()["code"], "upstream_lost", "{coding}");
        assert_problem(&order(KEY).send(&gateway), "upstream_lost", KEY);
        assert_problem(&order(KEY).send(&gateway), "outcome_unknown", KEY);
        assert_eq!(upstream.seen().len(), 2);
    }
    let upstream = Scripted::answering(OK);
    let gateway = Gateway::start(&upstream.url(), "");
    for (key, label) in [("", ""), ("Idempotency-Key: k\r\n", "rejected")] {
        let refused = gateway.send(format!(
            "POST / HTTP/1.1\r\nHost: a\r\n{key}Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
        ));
        assert_eq!((refused.status, outcome(&refused)), (501, label));
    }
    assert!(upstream.seen().is_empty());
}

/// The body comes late, when the next request may be on the connection already.
#[test]
fn connection_of_a_bodiless_response_that_claims_a_body_is_not_reused() {
    for head in [
        "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 102 Processing\r\nTransfer-Encoding: chunked\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ] {
        let upstream = Scripted::start(move |conversation| {
            let mut owed = "";
            while let Some(seen) = conversation.request() {
                conversation.say(owed);
                owed = if seen.line.contains("bare") { "hello" } else { "" };
                conversation.say(if owed.is_empty() { OK } else { head });
            }
        });
        let gateway = Gateway::start(&upstream.url(), REUSE);
        for _ in 0..4 {
            let bare = gateway.send("GET /bare HTTP/1.1\r\nHost: a\r\n\r\n");
            assert!(matches!(bare.status, 200 | 204 | 304), "{head:?}: {bare:?}");
            let innocent = gateway.send(GET);
            assert_eq!((innocent.status, &*innocent.body), (200, &b"ok"[..]), "{head:?}: {innocent:?}");
        }
    }
}

#[test]
fn connection_of_an_early_refusal_is_not_reused() {
    for status in ["400 Bad Request", "401 Unauthorized", "413 Content Too Large", "500 Oops", "307 Elsewhere"] {
        // Answers heads, reads no body, and takes what follows for the next request.
        let upstream = Scripted::start(move |conversation| {
            while let Some(seen) = conversation.head() {
                match seen.line.starts_with("POST /early") {
                    true => conversation.say(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno")),
                    false => conversation.say(OK),
                }
            }
        });
        let gateway = Gateway::start(&upstream.url(), REUSE);
        for turn in 0..4 {
            let key = if turn % 2 == 0 { "" } else { &format!("Idempotency-Key: early-{turn}\r\n") };
            let early = format!("POST /early HTTP/1.1\r\nHost: a\r\n{key}Content-Length: 4\r\n\r\nbody");
            assert_eq!(gateway.send(early).status.to_string(), status[..3]);
            assert_eq!(gateway.send(GET).status, 200, "{status}");
        }
        // What was left unread ends with its connection.
        let lines: Vec<String> = upstream.seen().into_iter().map(|seen| seen.line).collect();
        assert!(lines.iter().all(|line| line == "body" || !line.starts_with("body")), "{lines:?}");
        assert_eq!(lines.iter().filter(|line| *line == "GET / HTTP/1.1").count(), 4, "{lines:?}");
    }
}

#[test]
fn odd_header_line_of_a_response_is_dropped_and_the_rest_counts() {
    for odd in [
        "no colon at all\r\n",
        "X Odd: 1\r\n",
        "X-Odd\x01: 1\r\n",
        ": 1\r\n",
        "X-Value: a\x01b\r\n",
        "X-Spaced : 1\r\n",
        "X-Folded: 1\r\n 2\r\n",
        "X-(odd): 1\r\n",
    ] {
        let upstream = Scripted::answering(format!(
            "HTTP/1.1 201 Created\r\nX-First: 1\r\n{odd}X-Last: 2\r\nContent-Length: 2\r\n\r\nok"
        ));
        let gateway = Gateway::start(&upstream.url(), "");
        let first = order(KEY).send(&gateway);
        assert_answer(&first, 201, "stored");
        assert_eq!((first.one("x-first"), first.one("x-last"), &*first.body), ("1", "2", &b"ok"[..]), "{odd:?}");
        assert_replay(&order(KEY).send(&gateway), &first);
        assert_eq!(gateway.send(GET).status, 201, "{odd:?}");
    }
}

#[test]
fn a_thousand_header_lines_pass_both_ways() {
    // With what each side adds: `Host`, `Content-Length` and the like.
    let lines: String = (0..990).map(|at| format!("X-Line-{at}: {at}\r\n")).collect();
    let upstream = Scripted::answering(format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 2\r\n\r\nok"));
    let gateway = Gateway::start(&upstream.url(), "");
    let keyed = format!("POST / HTTP/1.1\r\nHost: a\r\nIdempotency-Key: {KEY}\r\n{lines}Content-Length: 2\r\n\r\nhi");
    let first = gateway.send(&keyed);
    assert_answer(&first, 200, "stored");
    assert_eq!((first.one("x-line-0"), first.one("x-line-989")), ("0", "989"));
    assert_eq!(upstream.seen()[0].all("x-line-989"), [b"989"]);
    assert_replay(&gateway.send(&keyed), &first);
}

#[test]
fn head_over_a_limit_is_a_problem_with_an_outcome() {
    let upstream = Scripted::answering(OK);
    let gateway = Gateway::start(&upstream.url(), "[limits]\nheader_lines = 50\nheader_size = \"8KiB\"");
    let many: String = (0..60).map(|at| format!("X-Line-{at}: {at}\r\n")).collect();
    let large = format!("Cookie: {}\r\n", "c".repeat(9000));
    for more in [many, large] {
        let sent =
            |key: &str| gateway.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{key}{more}Content-Length: 2\r\n\r\nhi"));
        assert_problem(&sent(&format!("Idempotency-Key: {KEY}\r\n")), "headers_too_large", KEY);
        let plain = sent("");
        assert_eq!((plain.status, &plain.json()["code"], outcome(&plain)), (431, &"headers_too_large".into(), ""));
        assert!(plain.json().get("executed").is_none());
    }
    assert!(upstream.seen().is_empty());
    assert_eq!(gateway.send(GET).status, 200);
}

#[test]
fn client_that_half_closes_after_its_request_gets_its_response() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    let plain = || crate::client::plain_order().step("hold half");
    for (at, ask) in [order(KEY).step("hold half"), plain()].iter().enumerate() {
        let mut client = ask.begin(&gateway);
        client.writer().shutdown(Shutdown::Write).unwrap();
        upstream.held("half");
        // Whatever the gateway does on an end of the request, it has done by the time it has served another client.
        assert_eq!(gateway.page("/healthz", "").0, 200);
        if at == 0 {
            upstream.release("half");
        }
        let response = client.answer(false);
        assert_eq!((response.status, response.is_whole), (201, true));
    }
}

/// Reads a chunk of a response.
fn chunk(client: &mut crate::support::Client) -> Vec<u8> {
    let size = usize::from_str_radix(&client.line(), 16).unwrap();
    let mut chunk = client.exactly(size + 2);
    chunk.truncate(size);
    chunk
}

/// The body of the upstream's first order.
fn body_of(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.body).into_owned()
}

const EVENTS: &str = "header Content-Type: text/event-stream";
const KEEP: &str = "[[route]]\npath = \"/orders\"\nstream = \"keep\"\n";

#[test]
fn kept_stream_passes_as_it_comes_and_is_replayed_once_its_end_was_seen() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway(KEEP);
    for (at, kind) in [EVENTS, "header Content-Type: text/plain"].iter().enumerate() {
        let (key, hold) = (format!("kept-stream-{at}"), format!("kept-{at}"));
        let ask = order(&key).step("chunked").step(kind).step(format!("hold-midway {hold}"));
        let mut client = ask.begin(&gateway);
        let head = client.head();
        assert_eq!((head.status, outcome(&head)), (201, "not-stored"));
        upstream.held(&hold);
        let mut body = chunk(&mut client);
        assert!(!body.is_empty());
        assert_problem(&ask.send(&gateway), "in_flight", &key);
        upstream.release(&hold);
        body.extend(chunk(&mut client));
        assert_eq!(client.line(), "0");
        // At once, for the end was stored before the client saw it.
        let replay = ask.send(&gateway);
        assert_answer(&replay, 201, "replayed");
        assert_eq!(replay.body, body);
        assert_eq!(upstream.count(&key), 1);
    }
}

#[test]
fn kept_stream_is_stored_when_its_client_disconnects() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway(KEEP);
    let ask = order(KEY).step("chunked").step(EVENTS).step("hold-midway left");
    let mut client = ask.begin(&gateway);
    assert_eq!(client.head().status, 201);
    upstream.held("left");
    drop(client);
    // Held for longer than a lease, it is renewed.
    let waiter = order(KEY).line("Prefer: wait=20").spawn(&gateway);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(3);
    while std::time::Instant::now() < until {
        assert_problem(&ask.send(&gateway), "in_flight", KEY);
        // waits: between two looks, while more than a lease passes
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    upstream.release("left");
    let replay = waiter.answer();
    assert_answer(&replay, 201, "replayed");
    assert_eq!(body_of(&replay), "{\"order\":1}\n");
    assert_eq!(upstream.count(KEY), 1);
}

#[test]
fn kept_stream_that_is_truncated_is_unknown() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway(KEEP);
    for (at, end) in ["cut", "reset-midway"].iter().enumerate() {
        let key = format!("kept-truncated-{at}");
        let ask = order(&key).step("chunked").step(EVENTS).step(end).step(format!("hold-midway {key}"));
        let first = ask.spawn(&gateway);
        upstream.held(&key);
        assert_problem(&ask.send(&gateway), "in_flight", &key);
        upstream.release(&key);
        let first = first.answer();
        assert_eq!((first.status, outcome(&first), first.is_whole), (201, "not-stored", false));
        assert_problem(&ask.send_until_settled(&gateway), "outcome_unknown", &key);
        assert_eq!(upstream.count(&key), 1);
    }
}

#[test]
fn kept_stream_over_the_limit_is_recorded_without_its_body() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway(&format!("[limits]\nresponse_body = \"1KiB\"\n{KEEP}"));
    let ask = order(KEY).step("body 100000").step("chunked").step(EVENTS);
    let first = ask.send(&gateway);
    assert_answer(&first, 201, "not-stored");
    assert_eq!(first.body.len(), 100_000);
    assert_problem(&ask.send_until_settled(&gateway), "answer_not_kept", KEY);
    assert_eq!(upstream.count(KEY), 1);
}

#[test]
fn stream_pass_hands_on_every_response_without_a_length_and_auto_holds_plain_ones() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[[route]]\npath = \"/orders\"\nstream = \"pass\"\n");
    let plain = "header Content-Type: text/plain";
    let ask = order(KEY).step("chunked").step(plain).step("hold-midway pieces");
    let mut client = ask.begin(&gateway);
    assert_eq!(outcome(&client.head()), "not-stored");
    upstream.held("pieces");
    assert!(!chunk(&mut client).is_empty());
    // Recorded before its first byte.
    assert_problem(&ask.send(&gateway), "answer_not_kept", KEY);
    upstream.release("pieces");
    // A length is an end to wait for.
    let sized = order("pass-with-a-length").step(plain);
    let first = sized.send(&gateway);
    assert_answer(&first, 201, "stored");
    assert_replay(&sized.send(&gateway), &first);

    let gateway = upstream.gateway("");
    let held = order("auto-holds-plain").step("chunked").step(plain);
    let first = held.send(&gateway);
    assert_answer(&first, 201, "stored");
    assert_replay(&held.send(&gateway), &first);
}

#[test]
fn response_that_began_in_time_is_never_a_timeout() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[limits]\nupstream_timeout = \"300ms\"\nunkeyed_timeout = \"300ms\"");
    let flowing = order(KEY).step("chunked").step("hold-midway flow").spawn(&gateway);
    let plain = crate::client::plain_order().step("chunked").step("hold-midway flow").spawn(&gateway);
    upstream.held("flow");
    poll("both", || (upstream.executions().len() == 2).then_some(()));
    // What began later has its timeout by now.
    for turn in 0..2 {
        let key = format!("silent-{turn}-0123");
        assert_problem(&order(&key).step("hold silent").send(&gateway), "upstream_timeout", &key);
    }
    assert!(!flowing.is_answered() && !plain.is_answered());
    upstream.release("flow");
    assert_answer(&flowing.answer(), 201, "stored");
    let plain = plain.answer();
    assert_eq!((plain.status, plain.is_whole), (201, true));
    assert_problem(&order(KEY).body("other").send(&gateway), "key_reused", KEY);
}

#[test]
fn timeouts_and_sizes_of_a_route_hold_there_alone() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway(
        "[limits]\nrequest_body = \"1KiB\"\n\
         [[route]]\npath = \"/fast\"\nupstream_timeout = \"200ms\"\nrequest_body = \"2KiB\"\n",
    );
    let held = order("route-timeout-1").to("POST /fast").step("hold route");
    assert_problem(&held.send(&gateway), "upstream_timeout", "route-timeout-1");
    let elsewhere = order("route-timeout-2").step("hold route").spawn(&gateway);
    assert_problem(
        &order("route-timeout-3").to("POST /fast").step("hold route").send(&gateway),
        "upstream_timeout",
        KEY,
    );
    assert!(!elsewhere.is_answered());
    upstream.release("route");
    assert_answer(&elsewhere.answer(), 201, "stored");

    let large = |path: &str, bytes: usize| {
        order(&format!("size-{bytes}{path}")).to(&format!("POST {path}")).body(vec![b'x'; bytes])
    };
    assert_answer(&large("/fast", 2048).send(&gateway), 201, "stored");
    for (path, bytes) in [("/fast", 2049), ("/orders", 1025)] {
        for ask in [large(path, bytes), large(path, bytes).chunked(100)] {
            assert_problem(&ask.send(&gateway), "request_too_large", KEY);
        }
    }
}

#[test]
fn response_that_ends_with_its_connection_is_stored_only_where_the_route_says_so() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[[route]]\npath = \"/kept\"\nclose_delimited = \"keep\"\n");
    let passed = order(KEY).step("body 70000").step("unframed").step("header Location: /orders/1");
    let first = passed.send(&gateway);
    assert_answer(&first, 201, "not-stored");
    assert_eq!(first.body.len(), 70_000);
    for _ in 0..2 {
        let refused = passed.send(&gateway);
        assert_problem(&refused, "answer_not_kept", KEY);
        assert_eq!(
            (&refused.json()["first_status"], &refused.json()["first_location"]),
            (&201.into(), &"/orders/1".into())
        );
    }
    let kept = order("kept-unframed-1").to("POST /kept").step("body 70000").step("unframed");
    let first = kept.send(&gateway);
    assert_answer(&first, 201, "stored");
    assert_replay(&kept.send(&gateway), &first);
    assert_eq!((upstream.count(KEY), upstream.count("kept-unframed-1")), (1, 1));
}

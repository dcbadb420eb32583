//! Bad input and faults, over real sockets: each time the upstream has seen one execution, or none.

use std::io::{Read, Seek, Write};
use std::net::Shutdown;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use crate::client::{assert_answer, assert_problem, assert_replay, order, outcome, plain_order, poll, try_send};
use crate::support::{Client, Gateway, command};
use crate::upstream::Upstream;

const KEY: &str = "fault-key-0123456789";
/// What must never be taken for a request of its own.
const SMUGGLED: &str =
    "POST /smuggled HTTP/1.1\r\nHost: a\r\nIdempotency-Key: smuggled-key\r\nContent-Length: 0\r\n\r\n";

#[test]
fn a_hundred_equal_requests_at_once_execute_once() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[limits]\nwaiters_per_key = 100");
    for (key, prefer) in [("hundred-at-once", "wait=0"), ("hundred-waiting", "wait=20")] {
        let barrier = Arc::new(Barrier::new(100));
        let (address, bytes) = (gateway.listen, order(key).line(format!("Prefer: {prefer}")).bytes());
        let sent: Vec<_> = (0..100)
            .map(|_| {
                let (barrier, bytes) = (Arc::clone(&barrier), bytes.clone());
                std::thread::spawn(move || {
                    barrier.wait();
                    try_send(address, &bytes).expect("an answer")
                })
            })
            .collect();
        let answers: Vec<_> = sent.into_iter().map(|sent| sent.join().unwrap()).collect();
        let first = answers.iter().find(|answer| outcome(answer) == "stored").expect("one of them executed");
        assert_eq!(answers.iter().filter(|answer| outcome(answer) == "stored").count(), 1);
        for answer in &answers {
            match outcome(answer) {
                "stored" => {}
                "in-flight" if prefer == "wait=0" => assert_problem(answer, "in_flight", key),
                _ => assert_replay(answer, first),
            }
        }
        assert_replay(&order(key).send(&gateway), first);
        assert_eq!(upstream.count(key), 1);
    }
}

#[test]
fn of_two_requests_with_one_key_at_once_one_executes_and_the_other_is_refused() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    for round in 0..5 {
        let key = format!("two-at-once-{round}");
        let asks = ["tea", "rum"].map(|body| order(&key).body(body));
        let sent: Vec<_> = (0..20).map(|at| (at % 2, asks[at % 2].spawn(&gateway))).collect();
        let answers: Vec<_> = sent.into_iter().map(|(of, sent)| (of, sent.answer())).collect();
        let (winner, first) = answers.iter().find(|(_, answer)| outcome(answer) == "stored").expect("one executed");
        for (of, answer) in &answers {
            match outcome(answer) {
                "mismatch" => assert_ne!(of, winner, "an equal request was refused"),
                "stored" | "in-flight" | "replayed" => assert_eq!(of, winner, "another request was let through"),
                other => panic!("{other}: {answer:?}"),
            }
        }
        assert_replay(&asks[*winner].send(&gateway), first);
        assert_problem(&asks[1 - winner].send(&gateway), "key_reused", &key);
        assert_eq!(upstream.count(&key), 1);
    }
}

#[test]
fn many_keys_at_once_execute_once_each() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    let asks: Vec<_> = (0..100).map(|at| order(&format!("many-keys-{at:03}"))).collect();
    let sent: Vec<_> = asks.iter().map(|ask| ask.spawn(&gateway)).collect();
    let firsts: Vec<_> = sent.into_iter().map(|sent| sent.answer()).collect();
    for (ask, first) in asks.iter().zip(&firsts) {
        assert_answer(first, 201, "stored");
        assert_replay(&ask.send(&gateway), first);
    }
    for at in 0..100 {
        assert_eq!(upstream.count(&format!("many-keys-{at:03}")), 1);
    }
}

#[test]
fn a_connection_that_the_upstream_closed_costs_no_key() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[limits]\nupstream_idle = \"30s\"");
    for at in 0..20 {
        let key = format!("closed-after-{at:02}");
        assert_answer(&order(&key).step("then-close").send(&gateway), 201, "stored");
        assert_eq!(upstream.count(&key), 1);
    }
    for at in 0..20 {
        assert_answer(&order(&format!("left-open-{at:02}")).send(&gateway), 201, "stored");
    }
    // Those that are left open are used again, so that the first part says something.
    assert!(upstream.connections() < 35, "{} connections", upstream.connections());
    assert_eq!(upstream.executions().len(), 40);
}

#[test]
fn what_the_upstream_says_unasked_is_nobodys_answer() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[limits]\nupstream_idle = \"30s\"");
    for at in 0..10 {
        let key = format!("said-unasked-{at}");
        let ask = order(&key).step("then-say");
        let first = ask.send(&gateway);
        assert_answer(&first, 201, "stored");
        assert!(first.body.starts_with(b"{\"order\":"), "another's answer: {first:?}");
        assert_replay(&ask.send(&gateway), &first);
        assert_eq!(upstream.count(&key), 1);
    }
}

#[test]
fn requests_that_come_in_one_piece_are_served_one_by_one() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    let (a, b) = (order("in-a-row-a"), order("in-a-row-b").chunked(4));
    let mut client = gateway.client();
    client.say([a.bytes(), a.bytes(), b.bytes(), order("in-a-row-a").body("other").bytes(), b.bytes()].concat());
    let first = client.answer(false);
    assert_answer(&first, 201, "stored");
    assert_replay(&client.answer(false), &first);
    let second = client.answer(false);
    assert_answer(&second, 201, "stored");
    assert_problem(&client.answer(false), "key_reused", "in-a-row-a");
    assert_replay(&client.answer(false), &second);
    assert_eq!((upstream.count("in-a-row-a"), upstream.count("in-a-row-b")), (1, 1));
}

#[test]
fn a_record_that_is_damaged_is_an_error_of_its_key_and_never_absent() {
    const MARK: &str = "a-mark-that-stands-nowhere-else";
    let upstream = Upstream::start();
    let keys = tempfile::tempdir().unwrap();
    let store = format!("embedded:{}", keys.path().join("keys").display());
    let gateway = Gateway::with(&upstream.settings(&store, ""), &[]);
    let ask = order(KEY).step(format!("header X-Mark: {MARK}"));
    assert_answer(&ask.send(&gateway), 201, "stored");
    let sound = order("sound-012345").send(&gateway);
    // Until the record lies in a table, where nobody has read it yet.
    let mut filled = 0;
    let (table, at) = poll("a table with the record", || {
        let mut found = None;
        for_each_file(keys.path(), &mut |path| {
            if path.extension().is_none_or(|kind| kind != "jnl") {
                let bytes = std::fs::read(path).unwrap_or_default();
                let at = bytes.windows(MARK.len()).position(|window| window == MARK.as_bytes());
                found = found.take().or(at.map(|at| (path.to_owned(), at)));
            }
        });
        if found.is_none() && filled < 12 {
            filled += 1;
            let filling = order(&format!("fills-{filled}")).step("body 4000000").send(&gateway);
            assert_answer(&filling, 201, "stored");
        }
        found
    });
    let mut file = std::fs::OpenOptions::new().write(true).open(table).unwrap();
    file.seek(std::io::SeekFrom::Start(at as u64)).unwrap();
    file.write_all(b"A").unwrap();
    // As long as the table is not in use yet, the record is read from memory.
    poll("the damage", || (outcome(&ask.send(&gateway)) != "replayed").then_some(()));
    for _ in 0..2 {
        assert_problem(&ask.send(&gateway), "record_unreadable", KEY);
    }
    assert_problem(&order(KEY).body("other").send(&gateway), "record_unreadable", KEY);
    assert_eq!(upstream.count(KEY), 1);
    // The others are as they were, unless they lie in the same block.
    let other = order("sound-012345").send(&gateway);
    if outcome(&other) == "rejected" {
        assert_problem(&other, "record_unreadable", "sound-012345");
    } else {
        assert_replay(&other, &sound);
    }
    assert_eq!(upstream.count("sound-012345"), 1);
    assert_answer(&order("new-0123456").send(&gateway), 201, "stored");
}

#[test]
fn whoever_hangs_up_before_the_request_is_whole_executes_nothing() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    let ask = order(KEY);
    let (head, whole) = (ask.head(), ask.bytes());
    let in_chunks = ask.clone().chunked(4).bytes();
    let cuts = [
        &head[..0],
        &head[..20],
        &head[..],
        &whole[..whole.len() - 1],
        &in_chunks[..head.len() + 9],
        &in_chunks[..in_chunks.len() - 1],
    ];
    for cut in cuts {
        for end in [close, reset, half_close] {
            let mut client = gateway.client();
            client.say(cut);
            end(client);
        }
    }
    // Nothing was begun, so the key is free for another request.
    let other = order(KEY).body("another");
    assert_answer(&other.send(&gateway), 201, "stored");
    assert_eq!(upstream.count(KEY), 1);
    assert_eq!(upstream.executions()[0].body, "another");
}

#[test]
fn whoever_hangs_up_cancels_nothing_that_was_begun() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    for (name, end) in [("close", close as fn(Client)), ("reset", reset)] {
        let key = format!("hung-up-{name}");
        let ask = order(&key).step(format!("hold {key}"));
        let client = ask.begin(&gateway);
        upstream.held(&key);
        end(client);
        assert_problem(&ask.send(&gateway), "in_flight", &key);
        upstream.release(&key);
        let retry = ask.send_until_settled(&gateway);
        assert_answer(&retry, 201, "replayed");
        assert_eq!(upstream.count(&key), 1);
    }
}

#[test]
fn whoever_hangs_up_right_after_the_last_byte_has_executed_once_or_not_at_all() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    for at in 0..30 {
        let key = format!("last-byte-{at:02}");
        let ask = order(&key);
        let ask = if at % 3 == 0 { ask.chunked(7) } else { ask };
        let client = ask.begin(&gateway);
        match at % 2 {
            0 => close(client),
            _ => reset(client),
        }
        let retry = ask.send_until_settled(&gateway);
        match outcome(&retry) {
            // The gateway saw the end of the connection before the end of the request.
            "stored" => assert_answer(&retry, 201, "stored"),
            _ => assert_answer(&retry, 201, "replayed"),
        }
        assert_eq!(upstream.count(&key), 1, "{key}");
    }
}

#[test]
fn whoever_hangs_up_within_the_answer_finds_it_whole_later() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[limits]\nresponse_body = \"3MiB\"");
    let ask = order(KEY).step("body 3000000");
    let mut client = ask.begin(&gateway);
    assert_eq!(outcome(&client.head()), "stored");
    client.exactly(10);
    reset(client);
    let retry = ask.send(&gateway);
    assert_answer(&retry, 201, "replayed");
    assert_eq!(retry.body.len(), 3_000_000);
    assert_eq!(upstream.count(KEY), 1);

    // One that is too large to be kept is read to its end all the same: it was executed, and not cut.
    let key = "hung-up-streamed";
    let ask = order(key).step("body 8000000").step("hold-midway streamed");
    let mut client = ask.begin(&gateway);
    assert_eq!(outcome(&client.head()), "not-stored");
    upstream.held("streamed");
    reset(client);
    upstream.release("streamed");
    let next = order("after-streamed").send(&gateway);
    assert_answer(&next, 201, "stored");
    poll("the end of the streamed answer", || {
        assert_problem(&ask.send(&gateway), "answer_not_kept", key);
        gateway.page("/status", "").1.contains("\"in_flight\": 0").then_some(())
    });
    assert_problem(&ask.send(&gateway), "answer_not_kept", key);
    assert_eq!(upstream.count(key), 1);
}

#[test]
fn a_memory_store_that_is_full_takes_no_new_key_and_forgets_none() {
    let upstream = Upstream::start();
    let settings = upstream.settings("memory:?max=64KiB", "");
    let gateway = Gateway::with(&settings, &[]);
    let mut kept = Vec::new();
    let refused = poll("a full store", || {
        let key = format!("fills-memory-{}", kept.len());
        let answer = order(&key).step("body 2000").send(&gateway);
        match outcome(&answer) {
            "stored" => kept.push((key, answer)),
            _ => return Some((key, answer)),
        }
        None
    });
    let (key, answer) = refused;
    // The claim may have fitted where the answer did not; then it was executed, and says what became of it.
    match outcome(&answer) {
        "not-stored" => {
            assert_answer(&answer, 201, "not-stored");
            assert_eq!(upstream.count(&key), 1);
            let lost = order(&key).send_until_settled(&gateway);
            assert_problem(&lost, "outcome_unknown", &key);
            assert_eq!(upstream.count(&key), 1);
        }
        _ => {
            assert_problem(&answer, "store_unavailable", &key);
            assert_eq!(upstream.count(&key), 0);
        }
    }
    let mut at = 0;
    let key = poll("a key that is refused", || {
        at += 1;
        let key = format!("refused-new-{at}");
        let answer = order(&key).step("status 204").send(&gateway);
        (outcome(&answer) == "rejected").then(|| {
            assert_problem(&answer, "store_unavailable", &key);
            key
        })
    });
    assert_eq!(upstream.count(&key), 0);
    assert!(kept.len() > 5);
    for (key, first) in &kept {
        assert_replay(&order(key).send(&gateway), first);
        assert_eq!(upstream.count(key), 1);
    }
    assert_eq!(gateway.page("/readyz", "").0, 503, "new keys are refused, and a load balancer ought to know");
}

#[test]
fn a_body_of_the_limit_is_taken_and_one_byte_more_is_refused() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[limits]\nrequest_body = \"1KiB\"");
    let body = |bytes: usize| SMUGGLED.bytes().cycle().take(bytes).collect::<Vec<u8>>();
    for chunk in [None, Some(1), Some(100), Some(5000)] {
        let ask = |key: &str, bytes| {
            let ask = order(key).body(body(bytes));
            chunk.map_or(ask.clone(), |chunk| ask.chunked(chunk))
        };
        for bytes in [0, 1023, 1024] {
            let key = format!("fits-{chunk:?}-{bytes}");
            let first = ask(&key, bytes).send(&gateway);
            assert_answer(&first, 201, "stored");
            assert_replay(&ask(&key, bytes).send(&gateway), &first);
            assert_eq!(upstream.executed(&key).iter().map(|execution| execution.bytes).collect::<Vec<_>>(), [bytes]);
        }
        for bytes in [1025, 2048, 4096, 5119] {
            let key = format!("larger-{chunk:?}-{bytes}");
            let ask = ask(&key, bytes);
            let mut client = gateway.client();
            assert_problem(&client.ask(ask.bytes()), "request_too_large", &key);
            // Next on the same connection: a request of its own, or nothing. Never a part of the body.
            let next = order(&format!("next-{chunk:?}-{bytes}")).bytes();
            let mut writer = client.writer();
            if writer.write_all(&next).is_ok() {
                let mut rest = Vec::new();
                let _ = writer.shutdown(Shutdown::Write);
                let _ = writer.read_to_end(&mut rest);
                let rest = String::from_utf8_lossy(&rest).into_owned();
                assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 201"), "{rest}");
                assert!(rest.matches("HTTP/1.1").count() <= 1, "{rest}");
            }
            assert_eq!(upstream.count(&key), 0);
            // Never passed unprotected; and free, for it was refused before its key was looked up.
            assert_answer(&order(&key).send(&gateway), 201, "stored");
        }
        // Much more is not read to its end, and the connection is closed.
        let key = format!("huge-{chunk:?}");
        if let Some(answer) = try_send(gateway.listen, &ask(&key, 60_000).bytes()) {
            assert_problem(&answer, "request_too_large", &key);
        }
        assert_eq!(upstream.count(&key), 0);
    }
    assert_only_orders(&upstream);
}

#[test]
fn a_refusal_never_turns_the_rest_of_a_body_into_a_request() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[limits]\nrequest_body = \"1KiB\"");
    for (at, (line, code, bytes)) in [
        ("Idempotency-Key: two words", "key_invalid", 900),
        ("Idempotency-Key: two words", "key_invalid", 9000),
        ("Idempotency-Key: good-key-0", "request_too_large", 9000),
    ]
    .into_iter()
    .enumerate()
    {
        let body: String = SMUGGLED.chars().cycle().take(bytes).collect();
        let ask = plain_order().line(line).body(body);
        let ask = if at == 0 { ask.chunked(33) } else { ask };
        // The head first; the body comes while the refusal is being made, or after it.
        let mut client = gateway.client();
        client.say(ask.head());
        let mut writer = client.writer();
        let tail = ask.tail();
        let writing = std::thread::spawn(move || {
            for part in tail.chunks(100) {
                if writer.write_all(part).is_err() {
                    return;
                }
            }
        });
        let answer = client.answer(false);
        assert_problem(&answer, code, "two words");
        writing.join().unwrap();
        if bytes > 4096 {
            assert!(client.is_closed(), "a connection with an unread body was left open");
        }
    }
    assert_eq!(upstream.executions().len(), 0);
    assert_only_orders(&upstream);
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for_once_it_is_refused() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[limits]\nrequest_body = \"1KiB\"");
    let mut client = gateway.client();
    let ask = order(KEY).body(vec![b'x'; 1025]);
    client.say(ask.head());
    client.say("only this");
    assert_problem(&client.answer(false), "request_too_large", KEY);
    assert!(client.is_closed());
    assert_eq!(upstream.count(KEY), 0);
}

#[test]
fn whoever_expects_to_be_asked_for_the_body_is_asked_or_refused() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[limits]\nrequest_body = \"1KiB\"");
    let ask = order(KEY).line("Expect: 100-continue");
    let mut client = gateway.client();
    client.say(ask.head());
    assert_eq!(client.head().status, 100);
    client.say(ask.tail());
    let first = client.answer(false);
    assert_answer(&first, 201, "stored");
    assert_eq!(upstream.executed(KEY)[0].header("expect"), [""; 0]);
    let mut client = gateway.client();
    client.say(ask.head());
    assert_eq!(client.head().status, 100, "to know whether it is the same request its body is needed");
    client.say(ask.tail());
    assert_replay(&client.answer(false), &first);

    for (ask, code) in
        [(order("too-large-0123").body(vec![b'x'; 1025]), "request_too_large"), (order("two words"), "key_invalid")]
    {
        let mut client = gateway.client();
        client.say(ask.line("Expect: 100-continue").head());
        let answer = client.head();
        assert_ne!(answer.status, 100, "{code}: it asked for a body that it refuses");
        assert_eq!(outcome(&answer), "rejected");
        let length = answer.one("content-length").parse().unwrap();
        assert!(String::from_utf8(client.exactly(length)).unwrap().contains(code));
        assert!(client.is_closed());
    }
    // One that says no length is known to be too large when it was asked to go on: its rest is read, so that it hears why not.
    let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
    let mut client = gateway.client();
    client.say(
        "POST /orders HTTP/1.1\r\nHost: a\r\nIdempotency-Key: chunked-0123\r\nExpect: 100-continue\r\n\
         Transfer-Encoding: chunked\r\n\r\n",
    );
    assert_eq!(client.head().status, 100);
    client.say(chunk.repeat(3));
    client.say("0\r\n\r\n");
    let answer = client.answer(false);
    assert_problem(&answer, "request_too_large", "chunked");
    assert_eq!(
        client.ask("GET /.idempotency/policy HTTP/1.1\r\nHost: a\r\n\r\n").status,
        200,
        "it was read to its end"
    );
    assert_eq!(upstream.executions().len(), 1);
}

#[test]
fn an_early_answer_never_turns_a_body_into_a_request() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[limits]\nrequest_body = \"16MiB\"\nupstream_idle = \"30s\"");
    // More than the sockets between them hold, so that it is answered while most of it is not sent.
    let body: Vec<u8> = SMUGGLED.bytes().cycle().take(12 << 20).collect();
    let ask = order(KEY).body(body).step("early answered");
    let first = try_send(gateway.listen, &ask.bytes()).expect("an answer");
    assert_answer(&first, 201, "stored");
    // The upstream still has the body before it; what comes now must not be put behind half of it.
    for at in 0..3 {
        assert_answer(&order(&format!("after-early-{at}")).send(&gateway), 201, "stored");
    }
    upstream.release("answered");
    for at in 3..6 {
        assert_answer(&order(&format!("after-early-{at}")).send(&gateway), 201, "stored");
    }
    let retry = try_send(gateway.listen, &ask.bytes()).expect("an answer");
    assert_replay(&retry, &first);
    assert_eq!(upstream.executions().len(), 7);
    let early = upstream.executed(KEY)[0].connection;
    assert!(
        upstream.executions()[1..].iter().all(|execution| execution.connection != early),
        "a connection with an unread body was used again"
    );
    assert_only_orders(&upstream);
}

#[test]
fn another_request_with_the_key_is_refused_whatever_differs() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    let ask = order(KEY);
    let first = ask.send(&gateway);
    assert_answer(&first, 201, "stored");
    let other_line = |from: &str, to: &str| {
        let bytes = String::from_utf8(ask.bytes()).unwrap();
        assert!(bytes.contains(from));
        bytes.replace(from, to)
    };
    for (what, request) in [
        ("the method", other_line("POST", "PATCH")),
        ("the path", other_line("/orders", "/orders2")),
        ("an escape in the path", other_line("/orders", "/%6frders")),
        ("the query", other_line("/orders", "/orders?a=1")),
        ("the authority", other_line("shop.example", "other.example")),
        ("the content type", other_line("application/json", "text/plain")),
        ("a content encoding", other_line("Host:", "Content-Encoding: gzip\r\nHost:")),
        ("the body", other_line("\"qty\":1", "\"qty\":2")),
        ("white space in the body", other_line("\"qty\":1", "\"qty\":1 ").replace("Length: 22", "Length: 23")),
    ] {
        let answer = gateway.send(&request);
        assert_problem(&answer, "key_reused", KEY);
        assert!(!String::from_utf8_lossy(&answer.body).contains("order\":"), "{what}: the stored answer is shown");
    }
    // What does not make it another request.
    for same in [
        ask.clone().line("User-Agent: retry/2"),
        ask.clone().line("X-Request-Id: 2"),
        ask.clone().chunked(3),
        ask.clone().line("Accept: text/html"),
    ] {
        assert_replay(&same.send(&gateway), &first);
    }
    assert_eq!(upstream.count(KEY), 1);
}

#[test]
fn a_replay_is_the_first_answer_byte_by_byte() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    for (key, framing) in [("bytes-declared", "header X-Framing: declared"), ("bytes-chunked", "chunked")] {
        let mut ask = order(key).step("body 70000").step(framing);
        for line in [
            b"Zebra: 1".as_slice(),
            b"Apple: 1",
            b"Zebra: 2",
            b"zebra: 1",
            b"Latin: caf\xe9 \xff\x80",
            b"Empty:",
            b"Date: Thu, 01 Jan 1970 00:00:00 GMT",
            b"Set-Cookie: a=1",
            b"Set-Cookie: b=2",
            b"WWW-Authenticate: Basic",
            b"Access-Control-Allow-Origin: *",
            b"Cache-Control: max-age=60",
            b"Vary: Accept",
            b"Vary: Origin",
            b"Connection: X-Hop",
            b"X-Hop: gone",
            b"Keep-Alive: timeout=5",
            b"ETag: \"1\"",
            b"Location: /orders/1",
            b"Link: <a>; rel=next",
            b"Link: <b>; rel=prev",
            b"Content-Type: application/octet-stream",
            b"Via: 1.1 app",
            b"Zebra: 3",
        ] {
            ask = ask.step([b"header ".as_slice(), line].concat());
        }
        let first = ask.send(&gateway);
        assert_answer(&first, 201, "stored");
        assert_eq!(first.all("zebra"), [b"1", b"2", b"1", b"3"]);
        assert_eq!(first.all("latin"), [b"caf\xe9 \xff\x80"]);
        assert_eq!(first.all("empty"), [b""]);
        assert_eq!(first.all("set-cookie"), [b"a=1", b"b=2"]);
        assert_eq!((first.one("cache-control"), first.one("www-authenticate")), ("max-age=60", "Basic"));
        assert_eq!(first.one("date"), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!((first.all("x-hop").len(), first.all("keep-alive").len()), (0, 0));
        assert!((0..70_000_usize).zip(&first.body).all(|(at, byte)| (at % 256).to_le_bytes()[0] == *byte));
        let second = ask.send(&gateway);
        assert_replay(&second, &first);
        assert_ne!(second.one("date"), first.one("date"), "a replay has a date of its own");
        assert_eq!(upstream.count(key), 1);
        // And after a crash.
    }
    let [first, second] = ["bytes-declared", "bytes-chunked"].map(|key| {
        let steps = if key.ends_with("chunked") { "chunked" } else { "header X-Framing: declared" };
        order(key).step("body 70000").step(steps).send(&gateway)
    });
    let gateway = gateway.killed_and_restarted();
    assert_replay(&order("bytes-declared").send(&gateway), &first);
    assert_replay(&order("bytes-chunked").send(&gateway), &second);
    assert_eq!(upstream.executions().len(), 2);
}

#[test]
fn the_upstream_sees_of_a_keyed_request_what_it_may() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    let mut ask = order(KEY).chunked(5);
    for line in [
        "Zebra: 1",
        "Apple: 1",
        "Zebra: 2",
        "Connection: keep-alive, Apple2, Upgrade",
        "Apple2: gone",
        "Keep-Alive: timeout=5",
        "TE: trailers",
        "Upgrade: websocket",
        "Proxy-Authorization: Basic x",
        "Prefer: wait=0, respond-async",
        "X-Forwarded-For: 10.0.0.1",
        "Onceward-Claim: forged",
        "onceward-anything: x",
        "Onceward_Claim: forged",
        "Idempotency_Key: forged-key-0",
        "Custom_Name: stays",
        "Trailer: Onceward-Claim",
    ] {
        ask = ask.line(line);
    }
    let mut bytes = ask.bytes();
    // Trailers, which come after the claim was made.
    bytes.truncate(bytes.len() - 2);
    bytes.extend_from_slice(b"Onceward-Claim: forged\r\nIdempotency-Key: forged-key-1\r\n\r\n");
    let first = gateway.send(bytes);
    assert_answer(&first, 201, "stored");
    // An upgrade on a keyed request is dropped, and the rest is a request like another.
    assert_answer(&order(KEY).line("X: 1").send(&gateway), 201, "replayed");

    let executed = upstream.executed(KEY);
    assert_eq!(executed.len(), 1);
    let seen = &executed[0];
    assert_eq!(seen.line, "POST /orders HTTP/1.1");
    assert_eq!(seen.body, "{\"item\":\"tea\",\"qty\":1}");
    assert_eq!(seen.header("zebra"), ["1", "2"]);
    assert_eq!(seen.header("prefer"), ["respond-async"]);
    assert_eq!(seen.header("custom_name"), ["stays"]);
    assert_eq!(seen.header("x-forwarded-for"), ["127.0.0.1"], "nobody said that the client is to be believed");
    assert_eq!(seen.header("via"), ["1.1 onceward"]);
    assert_eq!(seen.header("idempotency-key"), [KEY]);
    let claim = seen.header("onceward-claim").concat();
    assert!(claim.len() >= 64 && claim != "forged" && !claim.contains(KEY), "{claim}");
    for gone in [
        "connection",
        "apple2",
        "keep-alive",
        "te",
        "upgrade",
        "proxy-authorization",
        "onceward-anything",
        "onceward_claim",
        "idempotency_key",
        "trailer",
    ] {
        assert_eq!(seen.header(gone), [""; 0], "{gone}");
    }
}

#[test]
fn without_a_key_nothing_is_kept_and_nothing_is_buffered() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[limits]\nrequest_body = \"1KiB\"\nresponse_body = \"1KiB\"");
    let ask = plain_order().body(vec![b'x'; 100_000]).step("chunked").step("body 100000").step("hold-midway plain");
    let mut client = ask.begin(&gateway);
    let head = client.head();
    assert_eq!((head.status, outcome(&head)), (201, ""));
    // The first half is here while the upstream holds the second one.
    upstream.held("plain");
    let size = usize::from_str_radix(&client.line(), 16).unwrap();
    assert!(size > 0);
    client.exactly(size + 2);
    upstream.release("plain");
    for _ in 0..2 {
        let answer = plain_order().send(&gateway);
        assert_eq!((answer.status, outcome(&answer), answer.all("idempotency-replayed").len()), (201, "", 0));
    }
    let executions = upstream.executions();
    assert_eq!(executions.len(), 3);
    assert_eq!(executions[0].bytes, 100_000);
    assert!(executions.iter().all(|execution| execution.header("onceward-claim").is_empty()));
}

#[test]
fn keys_are_neither_logged_nor_shown_nor_stored() {
    const SECRET: &str = "SECRET-KEY-7f3a9c51d2";
    let upstream = Upstream::start();
    let folder = tempfile::tempdir().unwrap();
    let store = format!("embedded:{}", folder.path().join("keys").display());
    let settings = upstream.settings(&store, "[limits]\nupstream_timeout = \"1s\"\nrequest_body = \"1KiB\"");
    let mut gateway = Gateway::with(&settings, &[("ONCEWARD_LOG", "trace")]);
    let key = |n: u32| format!("{SECRET}-{n}");
    let mut answers = vec![
        order(&key(0)).send(&gateway),
        order(&key(0)).send(&gateway),
        order(&key(0)).body("other").send(&gateway),
        order(&key(1)).step("status 429").send(&gateway),
        order(&key(2)).step("status 502").send(&gateway),
        order(&key(3)).step("reset").send(&gateway),
        order(&key(3)).send(&gateway),
        order(&key(4)).step("cut").send(&gateway),
        order(&key(5)).step("hold late").send(&gateway),
        order(&key(5)).send(&gateway),
        order(&key(6)).body(vec![b'x'; 2000]).send(&gateway),
        order(&format!("bad {SECRET}")).send(&gateway),
        order(&format!("{SECRET}{}", "x".repeat(256))).send(&gateway),
        order(SECRET).line(format!("Idempotency-Key: {SECRET}")).send(&gateway),
    ];
    upstream.reset_next();
    answers.push(order(&key(7)).send(&gateway));
    upstream.release("late");
    answers.push(order(&key(5)).send_until_settled(&gateway));
    answers.push(
        gateway.send(format!("GET /.idempotency/operation HTTP/1.1\r\nHost: a\r\nIdempotency-Key: {SECRET}-0\r\n\r\n")),
    );
    let labels: Vec<&str> = answers.iter().map(outcome).collect();
    for label in ["stored", "replayed", "released", "unknown", "in-flight", "mismatch", "rejected"] {
        assert!(labels.contains(&label), "{labels:?}");
    }
    for page in ["/status", "/metrics", "/readyz"] {
        assert!(!gateway.page(page, "").1.contains(SECRET), "{page} tells a key");
    }
    gateway.signal("TERM");
    assert!(gateway.ended().success());
    let log = gateway.log();
    assert!(log.contains("keyed request"), "nothing was logged");
    assert!(!log.contains(SECRET), "a key is in the log: {:?}", log.lines().find(|line| line.contains(SECRET)));
    let mut files = 0;
    for_each_file(folder.path(), &mut |path| {
        files += 1;
        let bytes = std::fs::read(path).unwrap();
        assert!(!bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()), "{path:?} holds a key");
    });
    assert!(files > 0);
}

#[test]
fn the_status_says_what_the_store_does_not_promise() {
    let upstream = Upstream::start();
    let memory = Gateway::with(&upstream.settings("memory:", ""), &[]);
    let embedded = Gateway::with(&upstream.settings("embedded:onceward-data", ""), &[]);
    let status =
        |gateway: &Gateway| -> serde_json::Value { serde_json::from_str(&gateway.page("/status", "").1).unwrap() };
    let (memory, embedded) = (status(&memory), status(&embedded));
    assert_eq!(memory["store"]["survives_kill"], false);
    assert!(memory["guarantees"][0]["holds"].as_str().unwrap().contains("a restart forgets all keys"), "{memory}");
    assert!(memory["warnings"].to_string().contains("forgets all keys"), "{memory}");
    assert_eq!(
        (&embedded["store"]["survives_kill"], &embedded["store"]["survives_power_loss"]),
        (&true.into(), &true.into())
    );
    assert_eq!(embedded["guarantees"][0]["guarantee"], "at-most-once");
    assert_eq!(embedded["guarantees"][0]["holds"], "over a kill and a loss of power");
}

#[test]
fn a_memory_store_forgets_at_a_restart_as_it_says() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(&upstream.settings("memory:", ""), &[]);
    assert_answer(&order(KEY).send(&gateway), 201, "stored");
    assert_answer(&order(KEY).send(&gateway), 201, "replayed");
    let gateway = gateway.killed_and_restarted();
    assert_answer(&order(KEY).send(&gateway), 201, "stored");
    assert_eq!(upstream.count(KEY), 2);
}

#[test]
fn settings_that_void_a_promise_stop_the_start() {
    let folder = tempfile::tempdir().unwrap();
    for (settings, said) in [
        ("[policy]\nunknown_on = [429]", "429 is in release_on and in unknown_on"),
        ("[policy]\nlease = \"0s\"", "policy.lease"),
        ("[policy]\nprincipal = [\"jwt:sub\"]", "policy.principal"),
        ("[policy]\nguarantee = \"transactional\"", "policy.guarantee"),
        ("[policy]\nmethods = [\"GET\"]", "GET changes nothing"),
        ("[limits]\ncapture_timeout = \"1s\"", "capture_timeout"),
        ("store = \"redis://127.0.0.1:1\"", "cannot be reached"),
        ("store = \"mysql://127.0.0.1\"", "no store \"mysql\""),
        ("store = \"embedded:\"", "names no folder"),
        ("[admin]\nlisten = \"0.0.0.0:0\"", "admin.token"),
        ("secret_file = \"missing\"", "secret_file: missing cannot be read"),
        ("fsync = \"off\"", "fsync"),
    ] {
        let text = format!("upstream = \"http://127.0.0.1:1\"\n{settings}\n");
        std::fs::write(folder.path().join("onceward.toml"), text).unwrap();
        let mut command = command(&folder);
        command.args(["--listen", "127.0.0.1:0"]);
        if !settings.contains("[admin]") {
            command.args(["--admin", "127.0.0.1:0"]);
        }
        let line = refused_start(command);
        assert!(line.contains(said), "{settings}: {line}");
    }
}

#[test]
fn a_folder_in_use_is_refused_in_one_line() {
    let upstream = Upstream::start();
    let keys = tempfile::tempdir().unwrap();
    let store = format!("embedded:{}", keys.path().display());
    let gateway = Gateway::with(&upstream.settings(&store, ""), &[]);
    let folder = tempfile::tempdir().unwrap();
    let mut second = command(&folder);
    second.args([
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--store",
        &store,
        "--upstream",
        &upstream.url(),
    ]);
    let line = refused_start(second);
    assert!(line.contains(&keys.path().display().to_string()) && line.contains("another process"), "{line}");
    // The first one did not notice.
    assert_answer(&order(KEY).send(&gateway), 201, "stored");
    assert_eq!(upstream.count(KEY), 1);
}

/// The disk fails beneath the store. Linux alone has the means.
#[cfg(target_os = "linux")]
mod disk {
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::LazyLock;
    use std::time::{Duration, Instant};

    use super::{KEY, close};
    use crate::client::{assert_answer, assert_problem, assert_replay, order, outcome, poll};
    use crate::support::Gateway;
    use crate::upstream::Upstream;

    #[test]
    fn whoever_hangs_up_while_the_claim_is_being_written_has_executed_once() {
        let upstream = Upstream::start();
        let disk = Disk::new();
        let gateway = disk.gateway(&upstream, "[limits]\nstore_timeout = \"20s\"");
        disk.fails("hold");
        let client = order(KEY).begin(&gateway);
        // Its claim is in the store's hands, and its sync does not end.
        poll("the claim", || gateway.page("/status", "").1.contains("\"in_flight\": 1").then_some(()));
        close(client);
        assert_eq!(upstream.count(KEY), 0, "it was sent before its claim was durable");
        disk.heals();
        upstream.hear("the execution", |event| event["kind"] == "execution");
        let retry = order(KEY).send_until_settled(&gateway);
        assert_answer(&retry, 201, "replayed");
        assert_eq!(upstream.count(KEY), 1);
    }

    #[test]
    fn a_claim_that_is_not_durable_in_time_is_given_back() {
        let upstream = Upstream::start();
        let disk = Disk::new();
        let gateway = disk.gateway(&upstream, "[limits]\nstore_timeout = \"1s\"");
        disk.fails("hold");
        assert_problem(&order(KEY).send(&gateway), "store_unavailable", KEY);
        assert_eq!(gateway.page("/readyz", "").0, 503);
        disk.heals();
        // It was released in the background, so that the key is free, for another request too.
        let retry = poll("a free key", || {
            let retry = order(KEY).body("another").send(&gateway);
            (outcome(&retry) == "stored").then_some(retry)
        });
        assert_answer(&retry, 201, "stored");
        assert_replay(&order(KEY).body("another").send(&gateway), &retry);
        assert_eq!(upstream.count(KEY), 1);
        poll("a ready gateway", || (gateway.page("/readyz", "").0 == 200).then_some(()));
    }

    #[test]
    fn a_disk_that_fails_a_claim_lets_nothing_through_and_says_so() {
        for fault in ["sync", "write"] {
            let upstream = Upstream::start();
            let disk = Disk::new();
            let gateway = disk.gateway(&upstream, "");
            let kept = order("kept-before-01").send(&gateway);
            assert_answer(&kept, 201, "stored");
            disk.fails(fault);
            assert_problem(&order(KEY).send(&gateway), "store_unavailable", KEY);
            // Healed or not: what a failed sync lost is unknown until the store is opened again.
            disk.heals();
            assert_problem(&order(KEY).send(&gateway), "store_unavailable", KEY);
            let (status, why) = gateway.page("/healthz", "");
            assert_eq!(status, 503, "only a restart helps: {why}");
            let (status, why) = gateway.page("/readyz", "");
            assert_eq!(status, 503, "{why}");
            assert!(why.contains("store"), "{why}");
            // What is known goes on to be told.
            assert_replay(&order("kept-before-01").send(&gateway), &kept);
            assert_problem(&order("kept-before-01").body("other").send(&gateway), "key_reused", "kept-before-01");
            assert_eq!(upstream.count(KEY), 0, "{fault}");

            let gateway = gateway.killed_and_restarted();
            assert_eq!(gateway.page("/readyz", "").0, 200);
            assert_replay(&order("kept-before-01").send(&gateway), &kept);
            let retry = order(KEY).send(&gateway);
            match outcome(&retry) {
                "unknown" => assert_problem(&retry, "outcome_unknown", KEY),
                _ => assert_answer(&retry, 201, "stored"),
            }
            assert_eq!(upstream.count(KEY), usize::from(outcome(&retry) == "stored"), "{fault}");
        }
    }

    #[test]
    fn an_answer_that_cannot_be_kept_is_passed_on_and_says_so() {
        let upstream = Upstream::start();
        let disk = Disk::new();
        let gateway = disk.gateway(&upstream, "");
        let ask = order(KEY).step("hold keeping");
        let first = ask.spawn(&gateway);
        upstream.held("keeping");
        disk.fails("sync");
        upstream.release("keeping");
        let first = first.answer();
        assert_answer(&first, 201, "not-stored");
        assert_eq!(gateway.page("/readyz", "").0, 503);
        // In flight, and lost when its lease ends: never free, and never in flight for ever.
        let started = Instant::now();
        let lost = ask.send_until_settled(&gateway);
        assert_problem(&lost, "outcome_unknown", KEY);
        assert!(started.elapsed() < Duration::from_secs(7), "it left in flight later than its lease and 5 s");
        disk.heals();
        let gateway = gateway.killed_and_restarted();
        let retry = ask.send(&gateway);
        match outcome(&retry) {
            "replayed" => assert_replay(&retry, &first),
            _ => assert_problem(&retry, "outcome_unknown", KEY),
        }
        assert_eq!(upstream.count(KEY), 1);
    }

    #[test]
    fn killed_before_the_claim_was_durable_it_has_sent_nothing() {
        let upstream = Upstream::start();
        let disk = Disk::new();
        let gateway = disk.gateway(&upstream, "[limits]\nstore_timeout = \"20s\"");
        disk.fails("hold");
        let first = order(KEY).spawn(&gateway);
        poll("the claim", || gateway.page("/status", "").1.contains("\"in_flight\": 1").then_some(()));
        gateway.signal("KILL");
        assert_eq!(first.try_answer(), None);
        assert_eq!(upstream.count(KEY), 0, "it was sent before its claim was durable");
        let gateway = gateway.killed_and_restarted();
        // The claim may have been written: then nobody can tell that it was not sent.
        let retry = order(KEY).send(&gateway);
        match outcome(&retry) {
            "unknown" => assert_problem(&retry, "outcome_unknown", KEY),
            _ => assert_answer(&retry, 201, "stored"),
        }
        assert_eq!(upstream.count(KEY), usize::from(outcome(&retry) == "stored"));
    }

    #[test]
    fn nobody_is_told_an_answer_before_it_is_kept() {
        let upstream = Upstream::start();
        let disk = Disk::new();
        let gateway = disk.gateway(&upstream, "[limits]\nstore_timeout = \"20s\"");
        let ask = order(KEY).step("hold keeping");
        let first = ask.spawn(&gateway);
        upstream.held("keeping");
        disk.fails("hold");
        upstream.release("keeping");
        // The execution has ended, and its answer is on its way to the disk.
        let ended = "onceward_upstream_seconds_count{route=\"default\"} 1";
        poll("the end of the execution", || gateway.page("/metrics", "").1.contains(ended).then_some(()));
        assert!(!first.is_answered(), "the client has an answer that a crash would forget");
        gateway.signal("KILL");
        assert_eq!(first.try_answer(), None);
        let gateway = gateway.killed_and_restarted();
        let retry = ask.send(&gateway);
        match outcome(&retry) {
            "unknown" => assert_problem(&retry, "outcome_unknown", KEY),
            _ => assert_answer(&retry, 201, "replayed"),
        }
        assert_eq!(upstream.count(KEY), 1);
    }

    /// The whole gateway over a disk of its own that is really full.
    #[test]
    fn a_full_disk_lets_no_claim_through_and_keeps_the_answers_of_what_runs() {
        let upstream = Upstream::start();
        let gateway = Gateway::on_a_disk_of_its_own(&upstream.settings("embedded:disk/keys", ""), "260m");
        let kept = order("kept-before-01").send(&gateway);
        assert_answer(&kept, 201, "stored");
        let running: Vec<_> = (0..8)
            .map(|n| {
                let key = format!("running-when-full-{n}");
                (order(&key).step("hold keeping").spawn(&gateway), key)
            })
            .collect();
        let late = order("running-when-nothing-is-left").step("hold later");
        let late_first = late.spawn(&gateway);
        upstream.held("later");
        poll("all of them at the upstream", || running.iter().all(|(_, key)| upstream.count(key) == 1).then_some(()));
        gateway.fill_its_disk();
        assert_problem(&order(KEY).send(&gateway), "store_unavailable", KEY);
        assert_eq!(upstream.count(KEY), 0, "it was executed without a claim");
        assert_replay(&order("kept-before-01").send(&gateway), &kept);
        poll("a gateway that is not ready", || (gateway.page("/readyz", "").0 == 503).then_some(()));
        upstream.release("keeping");
        for (first, key) in running {
            let first = first.answer();
            assert_answer(&first, 201, "stored");
            assert_replay(&order(&key).step("hold keeping").send(&gateway), &first);
            assert_eq!(upstream.count(&key), 1);
        }
        // Somebody takes what was kept for answers too.
        gateway.fill_its_disk();
        upstream.release("later");
        let first = late_first.answer();
        assert_answer(&first, 201, "not-stored");
        gateway.empty_its_disk();
        let retry = poll("an answer that is kept after all", || {
            let retry = late.send(&gateway);
            (outcome(&retry) == "replayed").then_some(retry)
        });
        assert_replay(&retry, &first);
        assert_eq!(upstream.count("running-when-nothing-is-left"), 1);
        let retry = poll("a claim that is taken again", || {
            let retry = order(KEY).send(&gateway);
            (retry.status != 503).then_some(retry)
        });
        assert_answer(&retry, 201, "stored");
        assert_eq!(upstream.count(KEY), 1);
        poll("a ready gateway", || (gateway.page("/readyz", "").0 == 200).then_some(()));
    }

    /// A disk whose journals fail on demand, by the library that the store's own tests are made with.
    struct Disk {
        control: tempfile::NamedTempFile,
    }

    impl Disk {
        fn new() -> Self {
            Self { control: tempfile::NamedTempFile::new().unwrap() }
        }

        fn gateway(&self, upstream: &Upstream, settings: &str) -> Gateway {
            static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
                let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../onceward/tests/it/embedded/faults.c");
                let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
                std::fs::create_dir_all(folder).unwrap();
                let built = folder.join(format!("faults-{}.so", std::process::id()));
                let status = Command::new("cc")
                    .args(["-shared", "-fPIC", "-O1", "-o"])
                    .arg(&built)
                    .arg(source)
                    .arg("-ldl")
                    .status();
                assert!(status.expect("a C compiler is there: Rust links by it").success());
                // In one step, for another run may be loading it.
                let library = folder.join("faults.so");
                std::fs::rename(built, &library).unwrap();
                library
            });
            let environment =
                [("LD_PRELOAD", LIBRARY.to_str().unwrap()), ("FAULTS", self.control.path().to_str().unwrap())];
            Gateway::with(&upstream.settings("embedded:onceward-data", settings), &environment)
        }

        /// `sync`, `write` or `hold`.
        fn fails(&self, fault: &str) {
            std::fs::write(self.control.path(), &fault[..1]).unwrap();
        }

        fn heals(&self) {
            std::fs::write(self.control.path(), "").unwrap();
        }
    }
}

/// What a program says that does not start: one line.
fn refused_start(mut command: Command) -> String {
    let mut child = command.spawn().unwrap();
    let status = poll("the end of a program that cannot start", || match child.try_wait().unwrap() {
        None => None,
        status => status,
    });
    assert!(!status.success());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| !line.contains("\"level\":\"INFO\"") && !line.contains("\"level\":\"WARN\""))
        .collect();
    assert_eq!(lines.len(), 1, "{said}");
    lines[0].to_owned()
}

fn for_each_file(folder: &Path, look: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => for_each_file(&path, look),
            false => look(&path),
        }
    }
}

/// Nothing but what the tests sent was taken for a request.
#[track_caller]
fn assert_only_orders(upstream: &Upstream) {
    let lines = upstream.lines();
    assert!(lines.iter().all(|line| line == "POST /orders HTTP/1.1"), "{lines:?}");
}

fn close(client: Client) {
    drop(client);
}

fn reset(client: Client) {
    let _ = socket2::SockRef::from(&client.writer()).set_linger(Some(Duration::ZERO));
    drop(client);
}

/// Says that nothing more comes, and reads what there is to read.
fn half_close(client: Client) {
    let mut stream = client.writer();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    let said = String::from_utf8_lossy(&said);
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 400"), "{said}");
}

//! The tables of the design, row by row, over real sockets: how an attempt ends, what its client gets, what a retry gets, and
//! how often it was executed.

use std::net::TcpListener;

use crate::client::{Ask, assert_answer, assert_problem, assert_replay, order, outcome, plain_order, poll};
use crate::support::{Answer, Gateway};
use crate::upstream::Upstream;

/// The one that is sent first, and again.
const KEY: &str = "row-key-0123456789";

#[test]
fn a_whole_answer_is_stored_and_comes_again() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    for status in [200, 201, 202, 204, 304, 301, 303, 400, 402, 404, 405, 409, 410, 415, 422, 451, 499, 500, 501, 505] {
        let key = format!("whole-answer-{status}");
        let ask = order(&key).step(format!("status {status}")).step("header Location: /orders/1");
        let first = ask.send(&gateway);
        assert_answer(&first, status, "stored");
        for _ in 0..2 {
            assert_replay(&ask.send(&gateway), &first);
        }
        assert_eq!(upstream.count(&key), 1, "{status}");
    }
}

#[test]
fn an_interim_answer_is_no_answer() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    let ask = order(KEY).step("interim").step("status 200");
    let first = ask.send(&gateway);
    assert_answer(&first, 200, "stored");
    assert_eq!(first.one("link"), "");
    assert_replay(&ask.send(&gateway), &first);
    assert_eq!(upstream.count(KEY), 1);
}

#[test]
fn a_status_that_says_not_now_frees_the_key() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    let mut ends: Vec<(u16, &str)> = [401, 403, 407, 412, 419, 421, 423, 425, 426, 428, 429, 431, 440, 449, 511, 529]
        .map(|status| (status, "header X-Why: busy"))
        .to_vec();
    ends.extend([409, 413, 422].map(|status| (status, "header Retry-After: 7")));
    ends.extend([(402, "header PAYMENT-REQUIRED: e30="), (402, "header WWW-Authenticate: Payment id=\"7\"")]);
    ends.push((400, "header DPoP-Nonce: eyJ7S_zG.eyJH0-Z"));
    // An upstream that speaks the same language.
    ends.extend(["released", "mismatch", "rejected"].map(|word| (409, word)));
    ends.extend([(200, "released"), (500, "released"), (504, "released")]);
    for (at, (status, why)) in ends.into_iter().enumerate() {
        let key = format!("freed-by-status-{at}");
        let line =
            if why.starts_with("header") { why.to_owned() } else { format!("header Idempotency-Outcome: {why}") };
        let first = order(&key).step(format!("status {status}")).step(&line).send(&gateway);
        assert_answer(&first, status, "released");
        if why.contains("Retry-After") {
            assert_eq!(first.one("retry-after"), "7");
        }
        // Free for any request, another body included; and a free key is executed, not replayed.
        let second = order(&key).body("{\"item\":\"rum\"}").send(&gateway);
        assert_answer(&second, 201, "stored");
        assert_problem(&order(&key).send(&gateway), "key_reused", &key);
        assert_eq!(upstream.count(&key), 2, "{status} {why}");
    }
}

#[test]
fn a_status_that_a_proxy_may_say_leaves_it_unknown() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    let mut ends: Vec<(u16, String)> =
        [408, 502, 503, 504, 530, 598, 599].into_iter().chain(520..=527).map(|s| (s, "X-Why: proxy".into())).collect();
    // Varnish says so of a connection that was reset after the service executed, and a service of itself that did not.
    ends.extend([408, 503].map(|status| (status, "Retry-After: 5".into())));
    ends.extend(["unknown", "in-flight"].map(|word| (200, format!("Idempotency-Outcome: {word}"))));
    for (at, (status, line)) in ends.into_iter().enumerate() {
        let key = format!("unknown-by-status-{at}");
        let ask = order(&key).step(format!("status {status}")).step(format!("header {line}"));
        assert_answer(&ask.send(&gateway), status, "unknown");
        for _ in 0..2 {
            assert_problem(&ask.send(&gateway), "outcome_unknown", &key);
        }
        assert_problem(&order(&key).body("other").send(&gateway), "key_reused", &key);
        assert_eq!(upstream.count(&key), 1, "{status} {line}");
    }
}

#[test]
fn an_upstream_that_speaks_the_same_language_is_believed() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    // Its own words are not passed off as what happened here.
    for word in ["stored", "replayed"] {
        let key = format!("word-{word}-0123");
        let ask = order(&key)
            .step("status 503")
            .step(format!("header Idempotency-Outcome: {word}"))
            .step("header Idempotency-Replayed: true");
        let first = ask.send(&gateway);
        assert_answer(&first, 503, "stored");
        assert_replay(&ask.send(&gateway), &first);
        assert_eq!(upstream.count(&key), 1);
    }
    let ask = order(KEY).step("header Idempotency-Outcome: not-stored").step("header Location: /orders/9");
    assert_answer(&ask.send(&gateway), 201, "not-stored");
    assert_not_kept(&ask.send(&gateway), 201, Some("/orders/9"));
    assert_eq!(upstream.count(KEY), 1);
}

#[test]
fn the_statuses_of_a_route_can_be_said() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[policy]\nrelease_on = [409]\nunknown_on = [500]");
    assert_answer(&order("said-409-0").step("status 409").send(&gateway), 409, "released");
    assert_answer(&order("said-409-0").send(&gateway), 201, "stored");
    assert_answer(&order("said-500-0").step("status 500").send(&gateway), 500, "unknown");
    assert_problem(&order("said-500-0").send(&gateway), "outcome_unknown", "said-500-0");
    assert_answer(&order("said-429-0").step("status 429").send(&gateway), 429, "stored");
    assert_answer(&order("said-504-0").step("status 504").send(&gateway), 504, "stored");
    assert_eq!(upstream.executions().len(), 5);
}

#[test]
fn a_503_is_released_where_the_route_says_so() {
    let upstream = Upstream::start();
    for (settings, with_header, without) in [
        ("[policy]\nrelease_on = [\"503\"]", "released", "released"),
        ("[policy]\nrelease_on = [\"503+retry-after\"]", "released", "unknown"),
        ("[[route]]\npath = \"/orders\"\nrelease_on = [429, \"503+Retry-After\"]", "released", "unknown"),
    ] {
        let gateway = upstream.gateway(settings);
        let first = order("busy-key").step("status 503").step("header Retry-After: 7").send(&gateway);
        assert_answer(&first, 503, with_header);
        assert_answer(&order("down-key").step("status 503").send(&gateway), 503, without);
    }
}

#[test]
fn a_refused_connection_frees_the_key() {
    // Bound and let go: nobody listens there until the upstream does.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = format!(
        "upstream = \"http://{address}\"\nstore = \"embedded:onceward-data\"\n[policy]\nprincipal = []\nlease = \"1s\"\n"
    );
    let gateway = Gateway::with(&settings, &[]);
    for _ in 0..2 {
        assert_problem(&order(KEY).send(&gateway), "upstream_unreachable", KEY);
    }
    let upstream = Upstream::at(address);
    let ask = order(KEY).body("another, for the key is free");
    let first = ask.send(&gateway);
    assert_answer(&first, 201, "stored");
    assert_replay(&ask.send(&gateway), &first);
    assert_eq!(upstream.count(KEY), 1);
}

#[test]
fn a_name_or_a_handshake_that_fails_frees_the_key() {
    let upstream = Upstream::start();
    for url in ["http://no-such-host.invalid".to_owned(), format!("https://{}", upstream.address)] {
        let settings = format!("upstream = {url:?}\nstore = \"memory:\"\n[policy]\nprincipal = []\n");
        let gateway = Gateway::with(&settings, &[]);
        for body in ["one", "two"] {
            assert_problem(&order(KEY).body(body).send(&gateway), "upstream_unreachable", KEY);
        }
    }
    assert_eq!(upstream.executions().len(), 0);
}

#[test]
fn what_was_sent_and_has_no_whole_answer_is_unknown() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[policy]\nclose_delimited = \"keep\"");
    for (name, steps, executions) in [
        ("reset before it was read", vec!["reset-unread"], 0),
        ("reset after it was read", vec!["reset"], 1),
        ("closed after it was read", vec!["close"], 1),
        ("a head that is cut", vec!["cut-head"], 1),
        ("a body that is cut", vec!["cut"], 1),
        ("a chunked body that is cut", vec!["chunked", "cut"], 1),
        ("a large body that is cut", vec!["body 100000", "cut"], 1),
        ("a body that is reset", vec!["body 100000", "reset-midway"], 1),
        ("a chunked body that is reset", vec!["chunked", "reset-midway"], 1),
        ("a failure that is cut", vec!["status 429", "cut"], 1),
        ("an unframed body that is reset", vec!["body 100000", "unframed", "reset-midway"], 1),
        ("no HTTP", vec!["garbage"], 1),
        ("an interim answer alone", vec!["interim", "garbage"], 1),
        ("another protocol", vec!["status 101"], 1),
    ] {
        let key = format!("lost-{}", name.replace(' ', "-"));
        let ask = steps.iter().fold(order(&key), Ask::step);
        assert_problem(&ask.send(&gateway), "upstream_lost", &key);
        // Not even one that would be answered at once is executed any more.
        for _ in 0..2 {
            assert_problem(&order(&key).send(&gateway), "outcome_unknown", &key);
        }
        assert_problem(&order(&key).body("other").send(&gateway), "key_reused", &key);
        assert_eq!(upstream.count(&key), executions, "{name}");
    }
}

#[test]
fn a_connection_that_is_reset_at_once_is_told_honestly() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    upstream.reset_next();
    let first = order(KEY).send(&gateway);
    // Whether a byte was written before the reset came is the kernel's secret, and the gateway tells what it saw.
    match outcome(&first) {
        "released" => {
            assert_problem(&first, "upstream_unreachable", KEY);
            assert_answer(&order(KEY).send(&gateway), 201, "stored");
            assert_eq!(upstream.count(KEY), 1);
        }
        _ => {
            assert_problem(&first, "upstream_lost", KEY);
            assert_problem(&order(KEY).send(&gateway), "outcome_unknown", KEY);
            assert_eq!(upstream.count(KEY), 0);
        }
    }
}

#[test]
fn an_answer_that_comes_late_is_kept() {
    let upstream = Upstream::start();
    // In memory: on a disk that is busy with other tests a sign of life may take longer than such a lease.
    let settings = "[limits]\nupstream_timeout = \"200ms\"\n[policy]\nlease = \"1s\"";
    let gateway = Gateway::with(&upstream.settings("memory:", settings), &[]);
    let ask = order(KEY).step("hold answer");
    assert_problem(&ask.send(&gateway), "upstream_timeout", KEY);
    assert_problem(&ask.send(&gateway), "in_flight", KEY);
    assert_problem(&order(KEY).body("other").send(&gateway), "key_reused", KEY);
    // Renewed for as long as it is listened for: over more than two leases.
    let until = std::time::Instant::now() + std::time::Duration::from_millis(2500);
    while std::time::Instant::now() < until {
        assert_problem(&ask.send(&gateway), "in_flight", KEY);
        // waits: between two looks, while more than two leases pass
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    upstream.release("answer");
    let late = ask.send_until_settled(&gateway);
    assert_answer(&late, 201, "replayed");
    assert_eq!(late.body, b"{\"order\":1}\n");
    assert_eq!(upstream.count(KEY), 1);
}

#[test]
fn an_answer_that_is_no_longer_listened_for_is_unknown() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[limits]\nupstream_timeout = \"100ms\"\ncapture_timeout = \"600ms\"");
    let ask = order(KEY).step("hold answer");
    assert_problem(&ask.send(&gateway), "upstream_timeout", KEY);
    assert_problem(&ask.send_until_settled(&gateway), "outcome_unknown", KEY);
    upstream.release("answer");
    // A retry that would be answered at once is not executed either.
    assert_problem(&order(KEY).send(&gateway), "outcome_unknown", KEY);
    assert_eq!(upstream.count(KEY), 1);
}

#[test]
fn an_answer_over_the_limit_passes_and_is_not_kept() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[limits]\nresponse_body = \"1KiB\"");
    for (name, steps) in [
        ("declared", vec!["body 1025"]),
        ("chunked", vec!["body 1025", "chunked"]),
        ("large", vec!["body 1000000"]),
        ("large-chunked", vec!["body 1000000", "chunked"]),
    ] {
        let key = format!("too-large-{name}");
        let ask = steps.iter().fold(order(&key), Ask::step).step("header Location: /orders/3");
        let first = ask.send(&gateway);
        assert_answer(&first, 201, "not-stored");
        assert_eq!(first.body.len(), if name.starts_with("large") { 1_000_000 } else { 1025 });
        for _ in 0..2 {
            assert_not_kept(&ask.send(&gateway), 201, Some("/orders/3"));
        }
        assert_problem(&order(&key).body("other").send(&gateway), "key_reused", &key);
        assert_eq!(upstream.count(&key), 1, "{name}");
    }
    for steps in [vec!["body 1024"], vec!["body 1024", "chunked"]] {
        let key = format!("just-fits-{}", steps.len());
        let ask = steps.iter().fold(order(&key), Ask::step);
        let first = ask.send(&gateway);
        assert_answer(&first, 201, "stored");
        assert_replay(&ask.send(&gateway), &first);
        assert_eq!(upstream.count(&key), 1);
    }
}

#[test]
fn a_stream_passes_as_it_comes_and_is_not_kept() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    for (at, header) in
        ["Content-Type: text/event-stream", "Content-Type: Text/Event-Stream; charset=utf-8"].iter().enumerate()
    {
        let (key, hold) = (format!("stream-key-{at}"), format!("stream-{at}"));
        let ask = order(&key).step("chunked").step(format!("header {header}")).step(format!("hold-midway {hold}"));
        let mut client = ask.begin(&gateway);
        let head = client.head();
        assert_eq!((head.status, outcome(&head)), (201, "not-stored"));
        // The first half is here while the upstream still holds the second one.
        upstream.held(&hold);
        let size = usize::from_str_radix(&client.line(), 16).unwrap();
        client.exactly(size + 2);
        // It was recorded before its first byte went out.
        assert_not_kept(&ask.send(&gateway), 201, None);
        upstream.release(&hold);
        let size = usize::from_str_radix(&client.line(), 16).unwrap();
        client.exactly(size + 2);
        assert_eq!(client.line(), "0");
        assert_not_kept(&ask.send(&gateway), 201, None);
        assert_eq!(upstream.count(&key), 1);
    }
}

#[test]
fn a_stream_that_is_cut_later_is_unknown() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[limits]\nresponse_body = \"1KiB\"");
    for (key, steps) in [
        ("cut-stream-0", vec!["chunked", "header Content-Type: text/event-stream"]),
        ("cut-large-00", vec!["body 100000"]),
        ("cut-chunked-0", vec!["body 100000", "chunked"]),
    ] {
        for (at, end) in ["cut", "reset-midway"].iter().enumerate() {
            let key = format!("{key}{at}");
            let ask = steps.iter().fold(order(&key), Ask::step).step(end).step(format!("hold-midway {key}"));
            let first = ask.spawn(&gateway);
            upstream.held(&key);
            // Not cut yet. The head is on its way, and its record before it.
            poll("the record", || (outcome(&ask.send(&gateway)) == "not-stored").then_some(()));
            upstream.release(&key);
            let first = first.answer();
            assert_eq!((first.status, outcome(&first), first.is_whole), (201, "not-stored", false), "{key}");
            let retry = poll("the word that it was cut", || {
                let retry = ask.send(&gateway);
                (outcome(&retry) != "not-stored").then_some(retry)
            });
            assert_problem(&retry, "outcome_unknown", &key);
            assert_eq!(upstream.count(&key), 1, "{key}");
        }
    }
}

#[test]
fn at_least_once_executes_an_unknown_again_and_a_completed_one_never() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[[route]]\npath = \"/again\"\nguarantee = \"at-least-once\"");
    let ask = order(KEY).to("POST /again");
    assert_problem(&ask.clone().step("reset").send(&gateway), "upstream_lost", KEY);
    assert_problem(&ask.clone().body("other").send(&gateway), "key_reused", KEY);
    let first = ask.send(&gateway);
    assert_answer(&first, 201, "stored");
    assert_replay(&ask.send(&gateway), &first);
    let executed = upstream.executed(KEY);
    assert_eq!(executed.len(), 2);
    // Two attempts of one record.
    let claim = |at: usize| executed[at].header("onceward-claim").concat();
    assert_ne!(claim(0), claim(1));
    assert_eq!(claim(0).split_once('.').unwrap().0, claim(1).split_once('.').unwrap().0);
}

#[test]
fn a_key_that_is_malformed_is_refused() {
    let upstream = Upstream::start();
    for missing in ["pass", "reject"] {
        let gateway = upstream.gateway(&format!("[policy]\nmissing = {missing:?}"));
        let long = "x".repeat(256);
        let quoted = format!("\"{}\"", "x".repeat(256));
        for value in [
            "",
            " ",
            "\"\"",
            "a,b-012345",
            "a;b-012345",
            "a\\b-012345",
            "a\"b-012345",
            "a b-012345",
            "\"open-01234",
            "\"k-01234567\";a=1",
            "\"k-01234567\" x",
            "\"a\\x\"",
            "caf\u{e9}-01234",
            "\"two\", \"keys\"",
            &long,
            &quoted,
        ] {
            assert_problem(&order(value).send(&gateway), "key_invalid", value);
        }
        let twice = order("twice-01234567").line("Idempotency-Key: twice-01234567").send(&gateway);
        assert_problem(&twice, "key_invalid", "twice-01234567");
        let named = order("named-01234567").line("Connection: close, idempotency-KEY").send(&gateway);
        assert_problem(&named, "key_invalid", "named-01234567");
    }
    assert_eq!(upstream.executions().len(), 0);
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn a_key_at_its_limit_and_both_its_spellings_are_taken() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    let long = "x".repeat(255);
    let all: String = (0x21..=0x7e_u8).map(char::from).filter(|c| !"\",;\\".contains(*c)).collect();
    for key in [long.as_str(), "k", &all] {
        let first = order(key).send(&gateway);
        assert_answer(&first, 201, "stored");
        assert_replay(&order(&format!("\"{key}\"")).send(&gateway), &first);
        assert_replay(&order(&format!("  {key}  ")).send(&gateway), &first);
        assert_eq!(upstream.count(key), 1, "{key}");
    }
    // What only the quoted form can say, escapes included.
    let odd = r#""a,b;c\"d\\e""#;
    let first = order(odd).send(&gateway);
    assert_answer(&first, 201, "stored");
    assert_replay(&order(odd).send(&gateway), &first);
    // The upstream gets it as the client sent it.
    let executions = upstream.executions();
    assert_eq!(executions.len(), 4);
    assert_eq!(executions[3].header("idempotency-key"), [odd]);
}

#[test]
fn a_key_can_be_required() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[[route]]\npath = \"/orders\"\nmissing = \"reject\"");
    assert_problem(&plain_order().send(&gateway), "key_missing", KEY);
    assert_problem(&plain_order().to("POST /%6frders").send(&gateway), "key_missing", KEY);
    assert_eq!(upstream.executions().len(), 0);
    let other = plain_order().to("POST /other").send(&gateway);
    assert_eq!((other.status, outcome(&other)), (201, ""));
    assert_answer(&order(KEY).send(&gateway), 201, "stored");
    assert_eq!(upstream.executions().len(), 2);
}

#[test]
fn methods_that_need_no_key_ignore_it() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[[route]]\npath = \"/puts\"\nmethods = [\"PUT\"]");
    for method in ["PUT", "DELETE", "GET"] {
        for _ in 0..2 {
            let answer = order(KEY).to(&format!("{method} /orders/1")).send(&gateway);
            assert_eq!((answer.status, outcome(&answer)), (201, ""), "{method}");
        }
    }
    assert_eq!(upstream.count(KEY), 6);
    for method in ["POST /orders", "PATCH /orders", "PUT /puts"] {
        let key = format!("covered-{}", method.replace([' ', '/'], "-"));
        let first = order(&key).to(method).send(&gateway);
        assert_answer(&first, 201, "stored");
        assert_replay(&order(&key).to(method).send(&gateway), &first);
        assert_eq!(upstream.count(&key), 1);
    }
}

#[test]
fn whoever_has_credentials_must_be_told_apart() {
    let upstream = Upstream::start();
    let url = upstream.url();
    let unset = Gateway::with(&format!("upstream = {url:?}\nstore = \"memory:\"\n"), &[]);
    for line in ["Authorization: Bearer a", "Cookie: session=a"] {
        assert_problem(&order(KEY).line(line).send(&unset), "principal_unknown", KEY);
    }
    assert_eq!(upstream.executions().len(), 0);
    let anonymous = order(KEY).send(&unset);
    assert_answer(&anonymous, 201, "stored");
    assert_replay(&order(KEY).send(&unset), &anonymous);

    let told = upstream.gateway("[policy]\nprincipal = [\"authorization\"]");
    assert_problem(&order(KEY).line("Cookie: session=a").send(&told), "principal_unknown", KEY);
    let [ann, bob] = ["Bearer ann", "Bearer bob"].map(|who| order(KEY).line(format!("Authorization: {who}")));
    let first = ann.send(&told);
    assert_answer(&first, 201, "stored");
    // Another principal neither sees nor blocks it, with another request neither.
    let others = bob.clone().body("other").send(&told);
    assert_answer(&others, 201, "stored");
    assert_ne!(others.body, first.body);
    assert_replay(&ann.send(&told), &first);
    assert_replay(&bob.clone().body("other").send(&told), &others);
    assert_eq!(upstream.count(KEY), 3);
}

#[test]
fn a_running_request_is_told_of_or_waited_for() {
    let upstream = Upstream::start();
    // The places are one process's, and so are those who have them.
    let gateway = upstream.one_gateway("[limits]\nwaiters_per_key = 2\n[[route]]\npath = \"/waits\"\nwait = \"20s\"");
    let ask = order(KEY).step("hold running");
    let first = ask.spawn(&gateway);
    upstream.held("running");
    assert_problem(&ask.send(&gateway), "in_flight", KEY);
    assert_problem(&order(KEY).body("other").send(&gateway), "key_reused", KEY);
    // Nobody waits for what is not theirs.
    assert_problem(&order(KEY).body("other").line("Prefer: wait=20").send(&gateway), "key_reused", KEY);
    let bored = ask.clone().line("Prefer: wait=0").send(&gateway);
    assert_problem(&bored, "in_flight", KEY);
    assert_eq!(bored.one("preference-applied"), "wait=0");
    // Three would wait, and there are two places: the third is told at once.
    let patient = ask.clone().line("Prefer: respond-async, wait=20");
    let mut waiting: Vec<_> = (0..3).map(|_| patient.spawn(&gateway)).collect();
    let refused = poll("the one too many", || waiting.iter().position(|sent| sent.is_answered()));
    let refused = waiting.remove(refused).answer();
    assert_problem(&refused, "in_flight", KEY);
    assert!(waiting.iter().all(|sent| !sent.is_answered()), "they were to wait");
    upstream.release("running");
    let first = first.answer();
    assert_answer(&first, 201, "stored");
    for sent in waiting {
        let answer = sent.answer();
        assert_replay(&answer, &first);
        assert_eq!(answer.one("preference-applied"), "wait=20");
    }
    assert_eq!(upstream.count(KEY), 1);
    assert_eq!(upstream.executed(KEY)[0].header("prefer"), [""; 0]);

    // Without a preference the route says how long.
    let ask = order("waits-0123456").to("POST /waits").step("hold waits");
    let first = ask.spawn(&gateway);
    upstream.held("waits");
    let second = ask.spawn(&gateway);
    upstream.release("waits");
    let first = first.answer();
    assert_answer(&first, 201, "stored");
    let second = second.answer();
    assert_replay(&second, &first);
    assert_eq!(second.one("preference-applied"), "");
    assert_eq!(upstream.count("waits-0123456"), 1);
}

#[test]
fn nobody_waits_longer_than_the_limit() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[limits]\nwait_max = \"1s\"");
    let ask = order(KEY).step("hold running");
    let first = ask.spawn(&gateway);
    upstream.held("running");
    let refused = ask.clone().line("Prefer: wait=3600").send(&gateway);
    assert_problem(&refused, "in_flight", KEY);
    assert_eq!(refused.one("preference-applied"), "wait=1");
    upstream.release("running");
    assert_answer(&first.answer(), 201, "stored");
    assert_eq!(upstream.count(KEY), 1);
}

#[test]
fn whoever_waited_for_a_released_request_gets_its_answer_and_does_not_execute() {
    let upstream = Upstream::start();
    // Whoever waits in another process is told that the key is free, and may claim it.
    let gateway = upstream.one_gateway("[limits]\nwaiters_per_key = 1");
    let ask = order(KEY).step("status 429").step("hold running");
    let first = ask.spawn(&gateway);
    upstream.held("running");
    // One of the two has the only place when the other is refused.
    let patient = order(KEY).line("Prefer: wait=20");
    let mut waiting: Vec<_> = (0..2).map(|_| patient.spawn(&gateway)).collect();
    let refused = poll("the one too many", || waiting.iter().position(|sent| sent.is_answered()));
    assert_problem(&waiting.remove(refused).answer(), "in_flight", KEY);
    upstream.release("running");
    let first = first.answer();
    assert_answer(&first, 429, "released");
    let waited = waiting.remove(0).answer();
    assert_answer(&waited, 429, "released");
    assert_eq!(waited.body, first.body);
    assert_eq!(upstream.count(KEY), 1);
    assert_answer(&order(KEY).send(&gateway), 201, "stored");
    assert_eq!(upstream.count(KEY), 2);
}

#[test]
fn what_is_past_retention_is_known_and_not_shown() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[policy]\nretention = \"1s\"\n[[route]]\npath = \"/short\"\ntombstone = \"1s\"");
    // What never expires: a claim, and what nobody knows the fate of.
    let lost = order("lost-012345").to("POST /short");
    assert_problem(&lost.clone().step("reset").send(&gateway), "upstream_lost", "lost-012345");
    let held = order("held-012345").to("POST /short").step("hold expired");
    let running = held.spawn(&gateway);
    upstream.held("expired");
    let ask = order(KEY);
    let first = ask.send(&gateway);
    assert_answer(&first, 201, "stored");
    let expired = poll("the end of retention", || {
        let answer = ask.send(&gateway);
        match outcome(&answer) {
            "replayed" => assert_eq!(answer.body, first.body),
            _ => return Some(answer),
        }
        None
    });
    assert_problem(&expired, "key_expired", KEY);
    assert_problem(&order(KEY).body("other").send(&gateway), "key_reused", KEY);
    assert_eq!(upstream.count(KEY), 1);
    // The tombstone is written by now, or soon: it says the same.
    poll("the tombstone", || gateway.page("/status", "").1.contains("\"tombstones\": 1").then_some(()));
    assert_problem(&ask.send(&gateway), "key_expired", KEY);
    assert_problem(&order(KEY).body("other").send(&gateway), "key_reused", KEY);
    assert_eq!(upstream.count(KEY), 1);

    // Where a tombstone ends, the key is free again: the route asked for that.
    let short = order("short-012345").to("POST /short");
    assert_answer(&short.send(&gateway), 201, "stored");
    let again = poll("the end of the tombstone", || {
        let answer = short.send(&gateway);
        (outcome(&answer) == "stored").then_some(answer)
    });
    assert_answer(&again, 201, "stored");
    assert_eq!(upstream.count("short-012345"), 2);
    // By now both are older than their route keeps an answer and its tombstone.
    assert_problem(&lost.send(&gateway), "outcome_unknown", "lost-012345");
    assert_problem(&held.send(&gateway), "in_flight", "held-012345");
    upstream.release("expired");
    let first = running.answer();
    assert_answer(&first, 201, "stored");
    assert_replay(&held.send(&gateway), &first);
    assert_eq!((upstream.count("lost-012345"), upstream.count("held-012345")), (1, 1));
}

#[test]
fn an_answer_is_looked_up_by_its_key() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[limits]\nresponse_body = \"1KiB\"");
    let look = |key: &str| {
        gateway.send(format!("GET /.idempotency/operation HTTP/1.1\r\nHost: a\r\nIdempotency-Key: {key}\r\n\r\n"))
    };
    assert_problem(&look(KEY), "operation_unknown", KEY);
    let ask = order(KEY).step("hold looked");
    let first = ask.spawn(&gateway);
    upstream.held("looked");
    let running = look(KEY);
    assert_eq!((running.status, outcome(&running), running.one("retry-after")), (202, "in-flight", "1"));
    upstream.release("looked");
    let first = first.answer();
    assert_replay(&look(KEY), &first);
    assert_answer(&order("look-429").step("status 429").send(&gateway), 429, "released");
    assert_problem(&look("look-429"), "operation_unknown", "look-429");
    assert_problem(&order("look-reset").step("reset").send(&gateway), "upstream_lost", "look-reset");
    assert_problem(&look("look-reset"), "outcome_unknown", "look-reset");
    assert_answer(&order("look-large").step("body 2000").send(&gateway), 201, "not-stored");
    assert_not_kept(&look("look-large"), 201, None);
    assert_problem(&look("\"open"), "key_invalid", "\"open");
    assert_eq!(upstream.executions().len(), 4);

    // Anybody could be asking: the state is told, the answer is not.
    let anonymous = Gateway::with(&format!("upstream = {:?}\nstore = \"memory:\"\n", upstream.url()), &[]);
    assert_answer(&order(KEY).send(&anonymous), 201, "stored");
    let told =
        anonymous.send(format!("GET /.idempotency/operation HTTP/1.1\r\nHost: a\r\nIdempotency-Key: {KEY}\r\n\r\n"));
    assert_eq!((told.status, outcome(&told), &told.json()["executed"]), (200, "stored", &"yes".into()));
    assert!(!String::from_utf8_lossy(&told.body).contains("order"), "{told:?}");
}

#[track_caller]
fn assert_not_kept(answer: &Answer, status: u16, location: Option<&str>) {
    assert_problem(answer, "answer_not_kept", KEY);
    let problem = answer.json();
    assert_eq!(problem["first_status"], status, "{problem}");
    assert_eq!(problem["first_location"].as_str(), location, "{problem}");
}

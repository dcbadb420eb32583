//! When two requests are the same, and where the key comes from.

use crate::client::{Ask, assert_answer, assert_problem, assert_replay, order, outcome, plain_order};
use crate::support::{Answer, Gateway};
use crate::upstream::Upstream;

const FORM: &str = "[policy]\nform_field = \"once\"\n";

/// An order with a content type of its own.
fn typed(kind: &str, body: impl Into<Vec<u8>>) -> Ask {
    Ask::bare("POST /orders").line("Host: shop.example").line(format!("Content-Type: {kind}")).body(body)
}

/// An order with a key and JSON.
fn json(key: &str, body: &str) -> Ask {
    typed("application/json", body).line(format!("Idempotency-Key: {key}"))
}

/// A form of parts, each with its header lines.
fn parts(boundary: &str, parts: &[(&str, &str)]) -> String {
    let mut body = String::new();
    for (head, value) in parts {
        body.push_str(&format!("--{boundary}\r\n{head}\r\n\r\n{value}\r\n"));
    }
    format!("{body}--{boundary}--\r\n")
}

fn multipart(boundary: &str, body: impl Into<Vec<u8>>) -> Ask {
    typed(&format!("multipart/form-data; boundary={boundary}"), body)
}

fn unhex(digits: &str) -> Vec<u8> {
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

/// The same form twice, as clients write forms: each executes once.
#[test]
fn form_key_is_found_however_the_form_is_written() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway(&format!("{FORM}fingerprint = \"form\"\n"));
    let once = "Content-Disposition: form-data; name=\"once\"";
    let item = "Content-Disposition: form-data; name=\"item\"";
    let django = |token: &str, boundary: &str| {
        parts(
            boundary,
            &[("Content-Disposition: form-data; name=\"csrfmiddlewaretoken\"", token), (once, "django"), (item, "tea")],
        )
    };
    let plain = "application/x-www-form-urlencoded";
    let gzip = |bytes: &str| typed(plain, unhex(bytes)).line("Content-Encoding: gzip");
    let cases: Vec<(&str, Ask, Ask)> = vec![
        (
            "dotnet",
            multipart(
                "\"3f\"",
                parts(
                    "3f",
                    &[
                        ("Content-Disposition: form-data; name=once", "dotnet"),
                        ("Content-Disposition: form-data; name=item", "tea"),
                    ],
                ),
            ),
            multipart(
                "\"4a\"",
                parts(
                    "4a",
                    &[
                        ("Content-Disposition: form-data; name=once", "dotnet"),
                        ("Content-Disposition: form-data; name=item", "tea"),
                    ],
                ),
            ),
        ),
        (
            "spelling",
            multipart("b", parts("b", &[("content-disposition:Form-Data;NAME=\"once\"", "spelling"), (item, "tea")])),
            multipart(
                "c",
                parts("c", &[("CONTENT-DISPOSITION :  form-data ; name = once", "spelling"), (item, "tea")]),
            ),
        ),
        (
            "preamble",
            multipart("b", format!("This is a form.\r\n{}", parts("b", &[(once, "preamble"), (item, "tea")]))),
            multipart("c", format!("{}bye", parts("c", &[(once, "preamble"), (item, "tea")]))),
        ),
        (
            "padding",
            multipart("b", parts("b", &[(once, "padding"), (item, "tea")]).replace("--b\r\n", "--b \t\r\n")),
            multipart("c", parts("c", &[(once, "padding"), (item, "tea")])),
        ),
        ("django", multipart("b", django("aaaa", "b")), multipart("c", django("bbbb", "c"))),
        (
            "rails",
            typed(plain, "authenticity_token=a%2Bb&once=rails&item=tea"),
            typed(plain, "authenticity_token=c%2Bd&once=rails&item=tea"),
        ),
        (
            "form-gz-1",
            gzip("1f8b08000900000002ffcbcf4b4eb54dcb2fcad54dafd23554cb2c49cdb54dca494cced62e494d040030221acd1d000000"),
            gzip(
                "1f8b08000100000004ffcbcf4b4eb54dcb2fcad54dafd23554cb2c49cdb54dca494cce56353228494d04004c3447621f000000",
            ),
        ),
        (
            "capitals",
            typed("Application/X-WWW-Form-Urlencoded; charset=UTF-8", "once=capitals&item=tea"),
            typed("application/x-www-form-urlencoded;charset=UTF-8", "once=c%61pitals&item=tea"),
        ),
        ("percent", typed(plain, "once=percent&off=100%"), typed(plain, "once=percent&off=100%")),
    ];
    for (key, first, again) in cases {
        let answer = first.send(&gateway);
        assert_answer(&answer, 201, "stored");
        assert_replay(&again.send(&gateway), &answer);
        assert_eq!(upstream.count(key), 1, "{key}");
    }
}

#[test]
fn form_that_cannot_be_read_is_refused_where_a_field_has_the_key() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway(FORM);
    let once = "Content-Disposition: form-data; name=\"once\"";
    let form = parts("b", &[(once, "unreadable-1")]);
    let plain = "application/x-www-form-urlencoded";
    for (what, ask) in [
        ("no boundary", typed("multipart/form-data", form.as_str())),
        ("two boundaries", multipart("b; boundary=c", form.as_str())),
        ("another boundary", multipart("c", form.as_str())),
        ("cut", multipart("b", &form.as_bytes()[..form.len() - 5])),
        (
            "a part without a name",
            multipart("b", parts("b", &[("Content-Disposition: form-data", "x"), (once, "unreadable-1")])),
        ),
        (
            "a key in base64",
            multipart("b", parts("b", &[(&format!("{once}\r\nContent-Transfer-Encoding: base64"), "b3JkZXI=")])),
        ),
        ("two types", typed(plain, "once=unreadable-1").line("Content-Type: text/plain")),
        ("a coding of its own", typed(plain, "once=unreadable-1").line("Content-Encoding: x-own")),
        ("no gzip", typed(plain, "once=unreadable-1").line("Content-Encoding: gzip")),
        ("half a quote", typed("multipart/form-data; boundary=\"b", form.as_str())),
    ] {
        let answer = ask.send(&gateway);
        assert_eq!(answer.status, 400, "{what}: {answer:?}");
        assert_problem(&answer, "form_unreadable", "unreadable-1");
    }
    let two = parts("b", &[(once, "one"), (once, "two")]);
    assert_problem(&multipart("b", two).send(&gateway), "keys_differ", "");
    assert_eq!(upstream.executions().len(), 0);
    // A key in the header is taken whatever the form is.
    let with_header = typed("multipart/form-data", form.as_str()).line("Idempotency-Key: header-1");
    assert_answer(&with_header.send(&gateway), 201, "stored");
}

#[test]
fn retry_of_a_form_with_another_boundary_is_the_same_by_default() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    let item = "Content-Disposition: form-data; name=\"item\"";
    let form = |boundary: &str, value: &str| {
        multipart(boundary, parts(boundary, &[(item, value)])).line("Idempotency-Key: boundary-1")
    };
    let first = form("b", "tea").send(&gateway);
    assert_answer(&first, 201, "stored");
    assert_replay(&form("----WebKitFormBoundaryA", "tea").send(&gateway), &first);
    assert_problem(&form("b", "coffee").send(&gateway), "key_reused", "boundary-1");
    // All else is compared byte by byte.
    assert_answer(&json("json-1", "{\"a\": 1}").send(&gateway), 201, "stored");
    assert_problem(&json("json-1", "{\"a\":1}").send(&gateway), "key_reused", "json-1");
}

#[test]
fn double_click_on_a_form_waits_for_the_first_response() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway(FORM);
    let click = || typed("application/x-www-form-urlencoded", "once=double-1&item=tea").step("hold double");
    let first = click().spawn(&gateway);
    upstream.held("double");
    let second = click().spawn(&gateway);
    // The duplicate came to the gateway, and waits there.
    let other = json("other-1", "{}").send(&gateway);
    assert_answer(&other, 201, "stored");
    assert!(!second.is_answered(), "it waits");
    upstream.release("double");
    let first = first.answer();
    assert_answer(&first, 201, "stored");
    assert_replay(&second.answer(), &first);
    assert_eq!(upstream.count("double-1"), 1);
}

const ACCEPT: &str = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

#[track_caller]
fn assert_page(answer: &Answer, status: u16, label: &str, words: &str) {
    let text = String::from_utf8_lossy(&answer.body);
    assert_eq!((answer.status, outcome(answer)), (status, label), "{text}");
    assert_eq!(answer.one("content-type"), "text/html; charset=utf-8");
    assert_eq!(answer.one("content-security-policy"), "default-src 'none'");
    assert_eq!(answer.one("cache-control"), "no-store");
    assert!(answer.one("vary").contains("Sec-Fetch-Mode") && answer.one("vary").contains("Accept"), "{answer:?}");
    assert!(text.contains("<html lang=\"en\">") && text.contains(words) && text.contains("href=\"/\""), "{text}");
    for secret in ["shop.example", "/orders", "page-1", "<script", "coffee"] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
}

#[test]
fn refusal_of_a_navigation_is_a_page_for_people() {
    let upstream = Upstream::start();
    let gateway =
        upstream.gateway(&format!("{FORM}wait = \"0s\"\n[[route]]\npath = \"/strict\"\nmissing = \"reject\"\n"));
    let form = |body: &str| typed("application/x-www-form-urlencoded", body);
    let click = || form("once=page-1&item=tea").step("hold page");
    let first = click().spawn(&gateway);
    upstream.held("page");
    let navigate = "Sec-Fetch-Mode: navigate";
    let in_flight = click().line(navigate).send(&gateway);
    assert_page(&in_flight, 409, "in-flight", "still being processed");
    assert!(!in_flight.one("retry-after").is_empty());
    assert_page(&click().line(ACCEPT).send(&gateway), 409, "in-flight", "still being processed");
    let changed = form("once=page-1&item=coffee").line(navigate).send(&gateway);
    assert_page(&changed, 422, "mismatch", "already sent with other contents");
    // Where a script asks, it is JSON.
    for lines in [
        &["Sec-Fetch-Mode: cors", ACCEPT][..],
        &[navigate, "X-Requested-With: XMLHttpRequest"],
        &[navigate, "Accept: application/json, text/html, application/xhtml+xml"],
        &["Accept: */*"],
        &[],
    ] {
        let ask = lines.iter().fold(click(), |ask, line| ask.line(line));
        let answer = ask.send(&gateway);
        assert_problem(&answer, "in_flight", "page-1");
        assert!(answer.one("vary").contains("Sec-Fetch-Mode"), "{answer:?}");
    }
    upstream.release("page");
    let first = first.answer();
    assert_answer(&first, 201, "stored");
    // A replay is the first response, and no page of ours.
    assert_replay(&form("once=page-1&item=tea").line(navigate).send(&gateway), &first);
    // Refusals before a record was looked at, too.
    let keyless = form("item=tea").to("POST /strict").line(navigate).send(&gateway);
    assert_page(&keyless, 400, "rejected", "could not be processed");
    assert_page(&form("once=&item=tea").line(navigate).send(&gateway), 400, "rejected", "could not be processed");
    assert_eq!(upstream.count("page-1"), 1);
}

#[test]
fn page_says_that_the_service_is_not_there() {
    let gateway = Gateway::start("http://127.0.0.1:9", FORM);
    let navigate = "Sec-Fetch-Mode: navigate";
    let form = typed("application/x-www-form-urlencoded", "once=gone-1&item=tea").line(navigate);
    assert_page(&form.send(&gateway), 502, "released", "not available");
    // Without a key, too.
    let get = Ask::bare("GET /orders").line("Host: shop.example").line(navigate).send(&gateway);
    assert_page(&get, 502, "", "not available");
}

#[test]
fn json_is_compared_by_its_values() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[policy]\nfingerprint = \"json\"\nfingerprint_ignore = [\"/meta/sent_at\"]\n");
    let first = json("json-1", "{\"item\":\"tea\",\"qty\":1,\"meta\":{\"sent_at\":1,\"by\":\"ann\"}}").send(&gateway);
    assert_answer(&first, 201, "stored");
    let same = r#"{ "meta": {"by":"\u0061nn", "sent_at": 2}, "qty": 1, "item": "t\u0065a" }"#;
    assert_replay(&json("json-1", same).send(&gateway), &first);
    for (other, names) in [
        ("{\"item\":\"tea\",\"qty\":1.0,\"meta\":{\"by\":\"ann\"}}", "body (qty)"),
        ("{\"item\":\"coffee\",\"qty\":2,\"meta\":{\"by\":\"ann\"}}", "body (item, qty)"),
        ("{\"item\":\"tea\",\"qty\":1,\"meta\":{\"by\":\"bob\"}}", "body (meta)"),
        ("{\"item\":\"tea\",\"qty\":1,\"meta\":{\"by\":\"ann\"},\"note\":null}", "body (note)"),
        ("{\"item\":\"tea\",\"meta\":{\"by\":\"ann\"}}", "body (a member that is missing)"),
        ("[1]", "body"),
        ("{\"item\":\"tea\"", "body"),
    ] {
        let answer = json("json-1", other).send(&gateway);
        assert_problem(&answer, "key_reused", "json-1");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(&format!("What differs: {names}.")), "{detail}");
        assert!(!detail.contains("coffee") && !detail.contains("bob"), "{detail}");
    }
    let twice = json("json-2", "{\"item\":\"tea\",\"item\":\"coffee\"}").send(&gateway);
    assert_problem(&twice, "json_unreadable", "json-2");
    assert_eq!(upstream.count("json-2"), 0);
    // What is no JSON is for the service to refuse, and equals itself.
    let first = json("json-3", "{\"item\":").send(&gateway);
    assert_answer(&first, 201, "stored");
    assert_replay(&json("json-3", "{\"item\":").send(&gateway), &first);
    assert_eq!(upstream.count("json-1"), 1);
}

#[test]
fn json_of_chosen_members_is_compared_by_those() {
    let upstream = Upstream::start();
    let gateway =
        upstream.gateway("[policy]\nfingerprint = \"json\"\nfingerprint_only = [\"/order\", \"/customer/id\"]\n");
    let first =
        json("only-1", "{\"order\":{\"qty\":1},\"customer\":{\"id\":7,\"seen\":1},\"trace\":\"a\"}").send(&gateway);
    assert_answer(&first, 201, "stored");
    let same = json("only-1", "{\"trace\":\"b\",\"customer\":{\"seen\":2,\"id\":7},\"order\":{\"qty\":1}}");
    assert_replay(&same.send(&gateway), &first);
    let other = json("only-1", "{\"order\":{\"qty\":1},\"customer\":{\"id\":8}}").send(&gateway);
    assert_problem(&other, "key_reused", "only-1");
    assert!(other.json()["detail"].as_str().unwrap().contains("body (/customer/id)"), "{}", other.json());
}

#[test]
fn key_in_the_header_of_a_provider_executes_once() {
    let upstream = Upstream::start();
    let names =
        ["X-Idempotency-Key", "PayPal-Request-Id", "Repeatability-Request-ID", "Cko-Idempotency-Key", "webhook-id"];
    let gateway = upstream.gateway(&format!("[policy]\nkey_headers = {names:?}\n"));
    for (at, name) in names.iter().enumerate() {
        let ask = plain_order().line(format!("{name}: alias-{at}"));
        let first = ask.send(&gateway);
        assert_answer(&first, 201, "stored");
        assert_replay(&ask.send(&gateway), &first);
        // The service gets it as it was sent.
        let executions = upstream.executions();
        assert_eq!(executions.len(), at + 1, "{name}");
        assert_eq!(executions[at].header(&name.to_lowercase()), [format!("alias-{at}")]);
        // The same key under the standard name is the same key.
        assert_replay(&order(&format!("alias-{at}")).send(&gateway), &first);
        assert_replay(&ask.clone().line(format!("Idempotency-Key: \"alias-{at}\"")).send(&gateway), &first);
        let both = ask.clone().line("Idempotency-Key: another-key").send(&gateway);
        assert_problem(&both, "keys_differ", "another-key");
        let malformed = plain_order().line(format!("{name}: no key")).send(&gateway);
        assert_problem(&malformed, "key_invalid", "");
        assert!(malformed.json()["detail"].as_str().unwrap().contains(&name.to_lowercase()));
    }
    let two = plain_order().line("X-Idempotency-Key: one-1").line("webhook-id: two-2").send(&gateway);
    assert_problem(&two, "keys_differ", "");
    assert_eq!(upstream.executions().len(), names.len());
    // Without the setting they are headers as any other.
    let plain = upstream.gateway("");
    let answer = plain_order().line("X-Idempotency-Key: plain-1").send(&plain);
    assert_eq!((answer.status, outcome(&answer)), (201, ""));
}

#[test]
fn key_in_a_member_of_the_body_executes_once() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[policy]\nkey_headers = [\"X-Request-Id\", \"/id\", \"/event/id\"]\n");
    let body = |body: &str| typed("application/json", body);
    for (key, text) in [
        ("evt_1", "{\"id\":\"evt_1\",\"n\":1}"),
        ("4711", "{\"id\":4711}"),
        ("evt_2", "{\"id\":null,\"event\":{\"id\":\"evt_2\"}}"),
    ] {
        let first = body(text).send(&gateway);
        assert_answer(&first, 201, "stored");
        assert_replay(&body(text).send(&gateway), &first);
        // The service is told the key as if a header had it.
        assert_eq!(upstream.count(key), 1, "{key}");
    }
    assert_problem(&body("{\"id\":\"evt_1\",\"n\":2}").send(&gateway), "key_reused", "");
    // A header has precedence.
    assert_answer(&body("{\"id\":\"evt_1\"}").line("X-Request-Id: head-1").send(&gateway), 201, "stored");
    for (text, code) in [
        ("{\"id\":\"no key\"}", "key_invalid"),
        ("{\"id\":\"\"}", "key_invalid"),
        ("{\"id\":[1]}", "key_invalid"),
        ("{\"id\":\"a\",\"id\":\"b\"}", "json_unreadable"),
        ("{\"id\":\"a\"", "json_unreadable"),
    ] {
        assert_problem(&body(text).send(&gateway), code, "");
    }
    // Where none has it, the request has no key.
    for text in ["{\"n\":1}", "[]", ""] {
        let answer = body(text).send(&gateway);
        assert_eq!((answer.status, outcome(&answer)), (201, ""), "{text}");
    }
}

fn to_host(host: &str, key: &str) -> Ask {
    let ask = Ask::bare("POST /orders").line(format!("Host: {host}")).body("tea");
    ask.line(format!("Idempotency-Key: {key}"))
}

#[test]
fn authority_is_one_in_each_spelling() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("");
    let first = to_host("api.example.com", "host-1").send(&gateway);
    assert_answer(&first, 201, "stored");
    for host in
        ["API.example.com", "api.example.com:80", "api.example.com:443", "api.example.com.", "Api.Example.COM.:80"]
    {
        assert_replay(&to_host(host, "host-1").send(&gateway), &first);
    }
    let absolute = Ask::bare("POST http://API.example.com:80/orders").line("Host: api.example.com").body("tea");
    assert_replay(&absolute.line("Idempotency-Key: host-1").send(&gateway), &first);
    for host in ["api.example.com:8080", "www.example.com"] {
        let answer = to_host(host, "host-1").send(&gateway);
        assert_problem(&answer, "key_reused", "host-1");
        assert!(answer.json()["detail"].as_str().unwrap().contains("What differs: host."), "{}", answer.json());
    }
    assert_eq!(upstream.count("host-1"), 1);
}

#[test]
fn names_of_one_service_are_one_where_the_settings_say_so() {
    let upstream = Upstream::start();
    for settings in ["[policy]\nhosts = \"same\"\n", "host = \"upstream\"\n[policy]\n"] {
        let gateway = upstream.gateway(settings);
        let key = format!("names-{}", settings.len());
        let first = to_host("api.example.com", &key).send(&gateway);
        assert_answer(&first, 201, "stored");
        assert_replay(&to_host("www.example.org:8443", &key).send(&gateway), &first);
        assert_eq!(upstream.count(&key), 1);
    }
}

#[test]
fn derived_key_is_one_whatever_the_spelling_of_the_host() {
    let upstream = Upstream::start();
    let gateway =
        upstream.gateway("[policy]\nprincipal = [\"header:X-User\"]\nmissing = \"derive\"\nderive_window = \"1h\"\n");
    let to = |host: &str| Ask::bare("POST /orders").line(format!("Host: {host}")).line("X-User: ann").body("tea");
    let first = to("api.example.com").send(&gateway);
    assert_answer(&first, 201, "stored");
    for host in ["API.example.com", "api.example.com:80", "api.example.com."] {
        assert_replay(&to(host).send(&gateway), &first);
    }
    assert_answer(&to("www.example.com").send(&gateway), 201, "stored");
    // Another precondition is another wish.
    assert_answer(&to("api.example.com").line("If-Match: \"1\"").send(&gateway), 201, "stored");
    assert_eq!(upstream.executions().len(), 3);
}

#[test]
fn mismatch_names_what_differs_and_no_value() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway(
        "[policy]\nmethods = [\"POST\", \"PATCH\", \"PUT\"]\nfingerprint_headers = [\"X-Tenant\", \"X-Other\"]\n",
    );
    let ask = || json("differs-1", "{\"card\":\"4242\"}").line("X-Tenant: seven");
    let first = ask().send(&gateway);
    assert_answer(&first, 201, "stored");
    assert_replay(&ask().send(&gateway), &first);
    let body = "{\"card\":\"4242\"}";
    let of = |kind: &str, tenant: &str, body: &str| {
        let ask = Ask::bare("POST /orders").line("Host: shop.example").line(format!("Content-Type: {kind}"));
        ask.line("Idempotency-Key: differs-1").line(format!("X-Tenant: {tenant}")).body(body)
    };
    for (ask, names) in [
        (ask().to("PATCH /orders"), "method"),
        (ask().to("POST /refunds"), "path or query"),
        (ask().to("POST /orders?dry=secret"), "path or query"),
        (of("text/plain", "seven", body), "content type"),
        (ask().line("Content-Encoding: br"), "content type"),
        (of("application/json", "eight", body), "header x-tenant"),
        (ask().line("X-Other: 1"), "header x-other"),
        (ask().line("If-Match: \"1\""), "precondition"),
        (ask().line("If-None-Match: *"), "precondition"),
        (ask().line("If-Unmodified-Since: Sat, 29 Oct 1994 19:43:31 GMT"), "precondition"),
        (of("application/json", "seven", "{\"card\":\"4000\"}"), "body"),
        (
            of("text/plain", "eight", "{\"card\":\"4000\"}").to("PUT /cards"),
            "method, path or query, content type, header x-tenant, body",
        ),
    ] {
        let answer = ask.send(&gateway);
        assert_problem(&answer, "key_reused", "differs-1");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(&format!("What differs: {names}.")), "{names}: {detail}");
        for value in ["4242", "4000", "eight", "secret", "refunds", "1994"] {
            assert!(!detail.contains(value), "{value}: {detail}");
        }
    }
    assert_eq!(upstream.count("differs-1"), 1);
}

#[test]
fn policy_names_what_a_fingerprint_and_a_key_are_made_of() {
    let gateway = Gateway::start(
        "http://127.0.0.1:9",
        "[policy]\nfingerprint = \"json\"\nkey_headers = [\"X-Idempotency-Key\", \"/id\"]\n",
    );
    let policy = gateway.send("GET /.idempotency/policy HTTP/1.1\r\nHost: a\r\n\r\n").json();
    assert_eq!(policy["fingerprint"], "json");
    assert_eq!(policy["key_headers"], serde_json::json!(["x-idempotency-key", "/id"]));
}

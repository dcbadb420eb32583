//! Keys that no header bears: issued here, in a form's hidden field, made, derived.

use crate::client::{Ask, assert_answer, assert_problem, assert_replay, order, outcome, plain_order, poll};
use crate::support::{Answer, Gateway};
use crate::upstream::Upstream;

const ISSUED: &str = "[policy]\nprincipal = [\"header:X-User\"]\n[[route]]\npath = \"/orders\"\nkeys = \"issued\"\nmissing = \"reject\"\n\
                      [[route]]\npath = \"/payments\"\nkeys = \"issued\"\nmissing = \"reject\"\n";

/// Asks for a key as `user`, for a path.
fn issue(gateway: &Gateway, user: &str, path: &str) -> Answer {
    gateway.send(format!(
        "POST /.idempotency/keys?path={path} HTTP/1.1\r\nHost: shop.example\r\nX-User: {user}\r\nContent-Length: 0\r\n\r\n"
    ))
}

fn issued(gateway: &Gateway, user: &str, path: &str) -> String {
    let answer = issue(gateway, user, path);
    assert_eq!((answer.status, answer.one("cache-control")), (201, "no-store"));
    answer.json()["key"].as_str().unwrap().to_owned()
}

fn order_of(user: &str, key: &str) -> Ask {
    order(key).line(format!("X-User: {user}"))
}

#[test]
fn an_issued_key_is_taken_from_its_holder_for_its_route_alone() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway(ISSUED);
    let key = issued(&gateway, "ann", "%2Forders");
    assert_ne!(key, issued(&gateway, "ann", "/orders"), "no two are equal");

    let ask = order_of("ann", &key);
    let first = ask.send(&gateway);
    assert_answer(&first, 201, "stored");
    assert_replay(&ask.send(&gateway), &first);
    for foreign in [order_of("bob", &key), order_of("ann", &key).to("POST /payments"), order(&key)] {
        assert_problem(&foreign.send(&gateway), "key_foreign", "");
    }
    assert_eq!(upstream.count(&key), 1);
}

#[test]
fn a_key_that_nobody_issued_is_refused_however_it_is_spelt() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway(ISSUED);
    let key = issued(&gateway, "ann", "/orders");
    let changed = |at: usize| {
        let mut bytes = key.clone().into_bytes();
        bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
        String::from_utf8(bytes).unwrap()
    };
    let of_another_store = issued(&Upstream::start().gateway(ISSUED), "ann", "/orders");
    // The generation, the expiry, the nonce, the seal; then what is no such key at all.
    let forged = [3, 15, 30, 60].map(changed);
    for forged in forged.iter().chain(&[of_another_store, key.to_uppercase(), "order-7".into(), format!("{key}00")]) {
        assert_problem(&order_of("ann", forged).send(&gateway), "key_forged", "");
    }
    // What says to whom it was issued.
    assert_problem(&order_of("ann", &changed(key.len() - 1)).send(&gateway), "key_foreign", "");
    assert_problem(&plain_order().line("X-User: ann").send(&gateway), "key_missing", "");
    assert_eq!(upstream.executions().len(), 0);
}

#[test]
fn an_issued_key_expires_and_what_was_done_with_it_can_still_be_asked_for() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway(&format!("[keys]\nlifetime = \"1s\"\n{ISSUED}"));
    let answer = issue(&gateway, "ann", "/orders");
    let expires = httpdate::parse_http_date(answer.json()["expires_at"].as_str().unwrap()).unwrap();
    let issued = httpdate::parse_http_date(answer.one("date")).unwrap();
    assert!(expires.duration_since(issued).unwrap().as_secs() <= 2);
    let key = answer.json()["key"].as_str().unwrap().to_owned();
    let ask = order_of("ann", &key);
    let first = ask.send(&gateway);
    let expired = poll("its end", || {
        let answer = ask.send(&gateway);
        (answer.status == 409).then_some(answer)
    });
    assert_problem(&expired, "issued_key_expired", "");
    assert_eq!(outcome(&expired), "expired");
    assert!(upstream.count(&key) <= 1);
    if first.status == 201 {
        let get =
            format!("GET /.idempotency/operation HTTP/1.1\r\nHost: a\r\nX-User: ann\r\nIdempotency-Key: {key}\r\n\r\n");
        assert_eq!(gateway.send(get).body, first.body);
    }
}

#[test]
fn a_raised_generation_takes_the_keys_of_the_one_before() {
    let upstream = Upstream::start();
    let folder = tempfile::tempdir().unwrap();
    let store = format!("embedded:{}", folder.path().join("keys").display());
    let at = |generation: u32| {
        let settings = format!("[keys]\ngeneration = {generation}\n{ISSUED}");
        Gateway::with(&upstream.settings(&store, &settings), &[])
    };
    let first = at(1);
    let key = issued(&first, "ann", "/orders");
    let answer = order_of("ann", &key).send(&first);
    assert_answer(&answer, 201, "stored");
    drop(first);

    let second = at(2);
    assert_replay(&order_of("ann", &key).send(&second), &answer);
    let newer = issued(&second, "ann", "/orders");
    drop(second);
    // One that was not restarted yet takes what the others issue.
    let first = at(1);
    assert_answer(&order_of("ann", &newer).send(&first), 201, "stored");
    drop(first);
    assert_problem(&order_of("ann", &key).send(&at(3)), "key_forged", "");
}

#[test]
fn a_killed_gateway_takes_what_it_issued_before() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway(ISSUED);
    let key = issued(&gateway, "ann", "/orders");
    let gateway = gateway.killed_and_restarted();
    assert_answer(&order_of("ann", &key).send(&gateway), 201, "stored");
}

/// A form as a browser sends it: with this boundary, a field, a file, and the key where there is one.
fn form(boundary: &str, key: Option<&str>, file: &str) -> Ask {
    let hidden = key.map_or_else(String::new, |key| {
        format!("--{boundary}\r\nContent-Disposition: form-data; name=\"once\"\r\n\r\n{key}\r\n")
    });
    let body = format!(
        "{hidden}--{boundary}\r\nContent-Disposition: form-data; name=\"item\"\r\n\r\ntea\r\n--{boundary}\r\n\
         Content-Disposition: form-data; name=\"photo\"; filename=\"p.png\"\r\nContent-Type: image/png\r\n\r\n{file}\r\n--{boundary}--\r\n"
    );
    plain().line(format!("Content-Type: multipart/form-data; boundary={boundary}")).body(body)
}

fn escaped(body: &str) -> Ask {
    plain().line("Content-Type: application/x-www-form-urlencoded").body(body)
}

/// Without a content type.
fn plain() -> Ask {
    Ask::bare("POST /orders").line("Host: shop.example")
}

const FORM: &str = "[policy]\nfingerprint = \"form\"\nform_field = \"once\"\n";

#[test]
fn a_second_submit_of_a_form_is_harmless_whatever_the_boundary() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway(FORM);
    let first = form("----WebKitFormBoundaryA", Some("form-key-1"), "bytes").send(&gateway);
    assert_answer(&first, 201, "stored");
    assert_replay(&form("----WebKitFormBoundaryB", Some("form-key-1"), "bytes").send(&gateway), &first);
    assert_problem(&form("----WebKitFormBoundaryC", Some("form-key-1"), "other").send(&gateway), "key_reused", "");
    // The upstream is told the key as if a header had borne it, and gets the form as it came.
    assert_eq!(upstream.count("form-key-1"), 1);

    let first = escaped("once=form-key-2&item=black+tea").send(&gateway);
    assert_answer(&first, 201, "stored");
    assert_replay(&escaped("once=form-key-2&item=black%20tea").send(&gateway), &first);
    assert_problem(&escaped("once=form-key-2&item=green+tea").send(&gateway), "key_reused", "");
    assert_problem(&escaped("once=no+key&item=tea").send(&gateway), "key_invalid", "");
}

#[test]
fn a_form_without_the_field_is_a_request_without_a_key() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway(&format!("{FORM}[[route]]\npath = \"/payments\"\nmissing = \"reject\"\n"));
    for _ in 0..2 {
        let answer = form("b", None, "bytes").send(&gateway);
        assert_eq!((answer.status, outcome(&answer)), (201, ""));
    }
    assert_problem(&form("b", None, "bytes").to("POST /payments").send(&gateway), "key_missing", "");
    assert_eq!(upstream.executions().len(), 2);
    // What is no form is not read for one.
    let answer = plain_order().body(vec![b'x'; 2 << 20]).send(&gateway);
    assert_eq!((answer.status, outcome(&answer)), (201, ""));
}

#[test]
fn a_hidden_field_can_bear_an_issued_key() {
    let upstream = Upstream::start();
    let gateway = upstream
        .gateway("[policy]\nfingerprint = \"form\"\nform_field = \"once\"\nkeys = \"issued\"\nmissing = \"reject\"\n");
    let key = issued(&gateway, "ann", "/orders");
    let first = form("a", Some(&key), "bytes").send(&gateway);
    assert_answer(&first, 201, "stored");
    assert_replay(&form("b", Some(&key), "bytes").send(&gateway), &first);
    assert_problem(&form("b", Some("made-up"), "bytes").send(&gateway), "key_forged", "");
}

#[test]
fn a_key_that_was_made_is_answered_and_finds_the_answer_again() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[policy]\nmissing = \"generate\"\n");
    let first = plain_order().send(&gateway);
    assert_answer(&first, 201, "stored");
    let key = first.one("idempotency-key").to_owned();
    assert_eq!(upstream.count(&key), 1, "the upstream is told it");
    let again = order(&key).send(&gateway);
    assert_replay(&again, &first.clone().without("idempotency-key"));
    // Another request without a key is another action.
    let other = plain_order().send(&gateway);
    assert_ne!(other.one("idempotency-key"), key);
    assert_eq!(upstream.executions().len(), 2);
    // Also where it ends badly, so that it can be sent again with it.
    let lost = plain_order().step("reset").send(&gateway);
    assert_problem(&lost, "upstream_lost", "");
    assert_problem(&order(lost.one("idempotency-key")).send(&gateway), "outcome_unknown", "");
    // A key that was sent is not told again.
    assert_eq!(order("mine").send(&gateway).one("idempotency-key"), "");
}

#[test]
fn the_same_request_of_the_same_caller_is_one_within_the_window() {
    let upstream = Upstream::start();
    let gateway =
        upstream.gateway("[policy]\nprincipal = [\"header:X-User\"]\nmissing = \"derive\"\nderive_window = \"2s\"\n");
    let of = |user: &str| plain_order().line(format!("X-User: {user}"));
    let first = of("ann").send(&gateway);
    assert_answer(&first, 201, "stored");
    assert_replay(&of("ann").send(&gateway), &first);
    assert_answer(&of("bob").send(&gateway), 201, "stored");
    assert_answer(&of("ann").body("{}").send(&gateway), 201, "stored");
    assert_eq!(upstream.executions().len(), 3);
    assert!(upstream.executions().iter().all(|execution| execution.header("idempotency-key").is_empty()));
    // The window is over some time, and then it is another action.
    let later = poll("the end of the window", || {
        let answer = of("ann").send(&gateway);
        (outcome(&answer) == "stored").then_some(answer)
    });
    assert_ne!(later.body, first.body);
    assert_eq!(upstream.executions().len(), 4);
}

#[test]
fn nothing_is_derived_for_the_anonymous() {
    let upstream = Upstream::start();
    let gateway =
        upstream.gateway("[policy]\nprincipal = [\"header:X-User\"]\nmissing = \"derive\"\nderive_window = \"1h\"\n");
    for _ in 0..2 {
        let answer = plain_order().send(&gateway);
        assert_eq!((answer.status, outcome(&answer)), (201, ""));
    }
    assert_eq!(upstream.executions().len(), 2);
    // A credential that no part names is refused with a key, and passes without one: who could log in else?
    let unnamed = plain_order().line("Cookie: session=1");
    let answer = unnamed.send(&gateway);
    assert_eq!((answer.status, outcome(&answer)), (201, ""));
    assert_problem(&unnamed.line("Idempotency-Key: unnamed-key").send(&gateway), "principal_unknown", "unnamed-key");
}

#[test]
fn the_policy_tells_of_them() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway(&format!("{ISSUED}[[route]]\npath = \"/forms\"\n{}", &FORM["[policy]\n".len()..]));
    let policy = gateway.send("GET /.idempotency/policy HTTP/1.1\r\nHost: a\r\n\r\n").json();
    assert_eq!(policy["issue"]["url"], "/.idempotency/keys");
    assert_eq!(policy["issue"]["lifetime_seconds"], 86_400.0);
    let route = |path: &str| policy["routes"].as_array().unwrap().iter().find(|route| route["path"] == path).unwrap();
    assert_eq!(route("/orders")["keys"], "issued");
    assert_eq!((&route("/forms")["fingerprint"], &route("/forms")["form_field"]), (&"form".into(), &"once".into()));
    assert_eq!(gateway.send("GET /.idempotency/keys HTTP/1.1\r\nHost: a\r\n\r\n").status, 405);
}

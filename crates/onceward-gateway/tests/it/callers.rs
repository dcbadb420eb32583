//! Callers: nobody sees another's response, and nobody becomes another caller unnoticed.

mod tokens;

use crate::client::{assert_answer, assert_problem, assert_replay, order, outcome, plain_order, poll};
use crate::support::Gateway;
use crate::upstream::Upstream;

const KEY: &str = "callers-key-0123456789";

/// The most common of `onceward::principal::CREDENTIAL_HEADERS`, as their documentation spells them.
const CREDENTIALS: [&str; 24] = [
    "X-API-Key",
    "Api-Key",
    "apikey",
    "X-Auth-Token",
    "X-Access-Token",
    "Ocp-Apim-Subscription-Key",
    "X-Shopify-Access-Token",
    "PRIVATE-TOKEN",
    "JOB-TOKEN",
    "X-Amz-Security-Token",
    "X-Vault-Token",
    "X-Goog-Api-Key",
    "X-Functions-Key",
    "X-Forwarded-User",
    "X-Auth-Request-Email",
    "Remote-User",
    "X-Forwarded-Client-Cert",
    "SSL-Client-Cert",
    "Cf-Access-Jwt-Assertion",
    "X-Amzn-Oidc-Data",
    "X-Goog-Iap-Jwt-Assertion",
    "X-Tenant-Id",
    "X-Organization-Id",
    "Stripe-Account",
];

const HARMLESS: [&str; 6] =
    ["X-CSRF-Token", "X-Request-Id", "X-Recaptcha-Token", "X-Forwarded-For", "Stripe-Signature", "Traceparent"];

#[test]
fn credential_header_that_no_rule_names_is_refused_under_each_rule() {
    let upstream = Upstream::start();
    let rules = [
        "",
        "principal = [\"authorization\"]\n",
        "principal = [\"cookie:session\"]\n",
        "principal = [\"header:X-Named\"]\n",
    ];
    for rule in rules {
        let settings = format!("upstream = {:?}\nstore = \"memory:\"\n[policy]\n{rule}", upstream.url());
        let gateway = Gateway::with(&settings, &[]);
        for (at, name) in CREDENTIALS.into_iter().enumerate() {
            let key = format!("{KEY}-{at}");
            // Two callers who have only that header.
            for value in ["secret-of-ann", "secret-of-bob"] {
                let answer = order(&key).line(format!("{name}: {value}")).send(&gateway);
                assert_problem(&answer, "principal_unknown", &key);
                let detail = answer.json()["detail"].as_str().unwrap().to_owned();
                let line = format!("\"header:{}\"", name.to_lowercase());
                assert!(detail.contains(&line) && !detail.contains(value), "{detail}");
            }
            assert_eq!(upstream.count(&key), 0, "{rule} {name}");
            // Without a key it passes.
            let plain = plain_order().line(format!("{name}: 1")).send(&gateway);
            assert_eq!((plain.status, outcome(&plain)), (201, ""), "{rule} {name}");
        }
        for name in HARMLESS {
            let key = format!("{KEY}-{name}");
            assert_answer(&order(&key).line(format!("{name}: 1")).send(&gateway), 201, "stored");
        }
        let log = gateway.logged("principal_unknown");
        assert!(log.contains("\"WARN\"") && log.contains("principal = ["), "{log}");
        assert!(gateway.log().matches("principal_unknown").count() < CREDENTIALS.len(), "the log is rate-limited");
        let warnings = gateway.page("/status", "").1;
        assert_eq!(warnings.contains("no principal is set"), rule.is_empty(), "{warnings}");
    }
}

#[test]
fn unset_principal_is_warned_of_at_the_start() {
    let upstream = Upstream::start();
    let gateway = Gateway::with(&format!("upstream = {:?}\nstore = \"memory:\"\n", upstream.url()), &[]);
    let line = gateway.logged("no principal is set");
    assert!(line.contains("\"WARN\""), "{line}");
}

#[test]
fn configured_credential_headers_replace_the_list() {
    let upstream = Upstream::start();
    let settings = "principal = [\"authorization\"]\ncredential_headers = [\"X-Own-Token\"]\n";
    let gateway = upstream.gateway(&format!("[policy]\n{settings}"));
    assert_problem(&order(KEY).line("X-Own-Token: 1").send(&gateway), "principal_unknown", KEY);
    assert_answer(&order(KEY).line("X-API-Key: 1").send(&gateway), 201, "stored");
}

#[test]
fn visitor_with_only_analytics_cookies_is_served_where_the_rule_names_a_cookie() {
    let upstream = Upstream::start();
    let rule = "[policy]\nprincipal = [\"cookie:session\"]\nmissing = \"derive\"\nderive_window = \"1h\"\n";
    let gateway = upstream.gateway(rule);
    let visitor = order(KEY).line("Cookie: _ga=GA1.1.1");
    let first = visitor.send(&gateway);
    assert_answer(&first, 201, "stored");
    assert_replay(&visitor.send(&gateway), &first);
    // Without a key nobody is refused, whatever they have: they could not log in.
    for line in ["Cookie: _ga=GA1.1.1", "Authorization: Basic dTpw", "X-API-Key: 1"] {
        for _ in 0..2 {
            let login = plain_order().to("POST /login").line(line).send(&gateway);
            assert_eq!((login.status, outcome(&login)), (201, ""), "{line}");
        }
    }
    assert_problem(&order("other-key").line("X-API-Key: 1").send(&gateway), "principal_unknown", "other-key");
    // Where it names none, a cookie may be the caller's, unless that is said.
    let gateway = upstream.gateway("[policy]\nprincipal = [\"header:X-User\"]\n");
    assert_problem(&order("a-cookie").line("Cookie: _ga=1").send(&gateway), "principal_unknown", "a-cookie");
    let gateway = upstream.gateway("[policy]\nprincipal = [\"header:X-User\"]\nignore_cookies = true\n");
    assert_answer(&order("a-cookie").line("Cookie: _ga=1").send(&gateway), 201, "stored");
}

#[test]
fn form_key_of_an_unidentified_caller_is_refused_and_a_form_without_one_passes() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[policy]\nprincipal = [\"header:X-User\"]\nform_field = \"once\"\n");
    let form = |body: &str| {
        crate::client::Ask::bare("POST /orders")
            .line("Host: shop.example")
            .line("Content-Type: application/x-www-form-urlencoded")
            .line("X-API-Key: 1")
            .body(body)
    };
    assert_problem(&form("once=form-key-1&a=b").send(&gateway), "principal_unknown", "form-key-1");
    let plain = form("a=b").send(&gateway);
    assert_eq!((plain.status, outcome(&plain)), (201, ""));
}

#[test]
fn same_caller_in_other_bytes_executes_once() {
    let upstream = Upstream::start();
    for (rule, lines) in [
        (
            "authorization",
            [
                &["Authorization: Bearer x"][..],
                &["authorization: bearer  x"],
                &["Authorization: Bearer x", "Authorization: Bearer x"],
            ],
        ),
        ("header:X-User", [&["X-User: 7"][..], &["x-user:   7"], &["X-User: 7", "X-User: 7"]]),
        (
            "cookie:session",
            [&["Cookie: session=1; _ga=2"][..], &["Cookie: session=1"], &["Cookie: session=1", "Cookie: session=1"]],
        ),
    ] {
        let gateway = upstream.gateway(&format!("[policy]\nprincipal = [{rule:?}]\n"));
        let key = format!("{KEY}-{rule}");
        let send = |lines: &[&str]| lines.iter().fold(order(&key), |order, line| order.line(line)).send(&gateway);
        let first = send(lines[0]);
        assert_answer(&first, 201, "stored");
        for again in &lines[1..] {
            assert_replay(&send(again), &first);
        }
        assert_eq!(upstream.count(&key), 1, "{rule}");
    }
    let gateway =
        upstream.gateway("[policy]\nprincipal = [\"authorization\", \"cookie:session\", \"header:X-User\"]\n");
    for (one, other) in [
        ("Authorization: Bearer a", "Authorization: Bearer b"),
        ("X-User: 7", "X-User: 8"),
        ("Cookie: session=1", "Cookie: session=2"),
    ] {
        let answer = order("two-callers").line(one).line(other).send(&gateway);
        assert_problem(&answer, "credentials_ambiguous", "two-callers");
    }
    assert_eq!(upstream.count("two-callers"), 0);
}

#[test]
fn signed_scheme_is_refused_under_authorization() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway("[policy]\nprincipal = [\"authorization\"]\n");
    for signed in [
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260101/eu-central-1/execute-api/aws4_request, SignedHeaders=host;x-amz-date, Signature=5d67",
        "OAuth oauth_consumer_key=\"k\", oauth_nonce=\"n\", oauth_signature=\"s\"",
        "Digest username=\"u\", realm=\"r\", nonce=\"n\", response=\"1\"",
        "Hawk id=\"1\", ts=\"1\", nonce=\"n\", mac=\"m\"",
        "HMAC key:c2ln",
    ] {
        let answer = order(KEY).line(format!("Authorization: {signed}")).send(&gateway);
        assert_problem(&answer, "principal_unknown", KEY);
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains("signs each request") && detail.contains("header:NAME"), "{detail}");
    }
    assert_eq!(upstream.count(KEY), 0);
}

#[test]
fn expiring_token_under_authorization_is_warned_of_once_a_route() {
    let upstream = Upstream::start();
    let gateway = upstream.one_gateway("[policy]\nprincipal = [\"authorization\"]\n");
    // {"alg":"none"} and {"exp":9999999999}
    let token = "eyJhbGciOiJub25lIn0.eyJleHAiOjk5OTk5OTk5OTl9.c2ln";
    for key in ["expiring-1", "expiring-2"] {
        assert_answer(&order(key).line(format!("Authorization: Bearer {token}")).send(&gateway), 201, "stored");
    }
    let line = gateway.logged("token_expires");
    assert!(line.contains("\"WARN\"") && line.contains("jwt:sub") && !line.contains(token), "{line}");
    assert_eq!(changes(&gateway, "token_expires"), 1);
    assert!(gateway.page("/status", "").1.contains("token_expires"));
}

fn changes(gateway: &Gateway, kind: &str) -> u64 {
    let metrics = gateway.page("/metrics", "").1;
    let line = format!("onceward_principal_changes_total{{kind=\"{kind}\"}} ");
    metrics.lines().find_map(|found| found.strip_prefix(&line)).unwrap_or_else(|| panic!("{metrics}")).parse().unwrap()
}

#[test]
fn renewed_session_cookie_is_noticed() {
    let upstream = Upstream::start();
    for keyed in [true, false] {
        let gateway = upstream.one_gateway("[policy]\nprincipal = [\"cookie:session\"]\n");
        for kind in ["cookie_renewed", "token_expires", "same_request", "rule"] {
            assert_eq!(changes(&gateway, kind), 0, "each series is there from the start");
        }
        let ask = match keyed {
            true => order(&format!("renewed-{keyed}")),
            false => plain_order(),
        };
        let ask = ask.line("Cookie: session=old");
        // The same value again, another cookie, and a login are no renewal.
        for (at, step) in
            ["header Set-Cookie: session=old; Path=/", "header Set-Cookie: theme=dark"].into_iter().enumerate()
        {
            let other =
                plain_order().line("Cookie: session=old").line(format!("Idempotency-Key: unrenewed-{keyed}-{at}"));
            other.step(step).send(&gateway);
        }
        plain_order().step("header Set-Cookie: session=first").send(&gateway);
        assert_eq!(changes(&gateway, "cookie_renewed"), 0);
        ask.step("header Set-Cookie: session=new; Path=/; HttpOnly").send(&gateway);
        let line = gateway.logged("cookie_renewed");
        assert!(line.contains("\"WARN\"") && line.contains("\"session\"") && !line.contains("new;"), "{line}");
        assert_eq!(changes(&gateway, "cookie_renewed"), 1, "keyed: {keyed}");
        assert!(gateway.page("/status", "").1.contains("cookie_renewed"));
    }
}

#[test]
fn one_request_under_two_callers_within_minutes_is_noticed() {
    let upstream = Upstream::start();
    let gateway = upstream.one_gateway("[policy]\nprincipal = [\"cookie:session\"]\n");
    order(KEY).line("Cookie: session=old").send(&gateway);
    order(KEY).line("Cookie: session=old").send(&gateway);
    order(KEY).body("other content").line("Cookie: session=new").send(&gateway);
    assert_eq!(changes(&gateway, "same_request"), 0);
    assert_answer(&order("renewed-between").line("Cookie: session=old").send(&gateway), 201, "stored");
    assert_answer(&order("renewed-between").line("Cookie: session=new").send(&gateway), 201, "stored");
    let line = gateway.logged("same_request");
    assert!(line.contains("\"WARN\"") && !line.contains("renewed-between"), "{line}");
    assert_eq!(changes(&gateway, "same_request"), 1);
    assert!(gateway.page("/status", "").1.contains("same_request"));
}

#[test]
fn scope_separates_a_delivery_id_that_is_the_key_of_two_routes_or_hosts() {
    let upstream = Upstream::start();
    let routes = "[[route]]\npath = \"/hooks/a\"\n[[route]]\npath = \"/hooks/b\"\n";
    let event = |path: &str, host: &str| {
        crate::client::Ask::bare(&format!("POST {path}"))
            .line(format!("Host: {host}"))
            .line("Idempotency-Key: delivery-0123456789")
            .body("{\"event\":1}")
    };
    let without = upstream.gateway(routes);
    assert_answer(&event("/hooks/a", "a").send(&without), 201, "stored");
    let reused = event("/hooks/b", "a").send(&without);
    assert_problem(&reused, "key_reused", "delivery-0123456789");
    assert!(reused.json()["detail"].as_str().unwrap().contains("scope = [\"route\"]"), "{:?}", reused.json());
    for (scope, one, other) in [
        ("route", ("/hooks/a", "a"), ("/hooks/b", "a")),
        ("path", ("/hooks/c", "a"), ("/hooks/d", "a")),
        ("host", ("/hooks/a", "a.example"), ("/hooks/a", "b.example")),
    ] {
        let gateway = upstream.gateway(&format!("[policy]\nscope = [{scope:?}]\n{routes}"));
        let first = event(one.0, one.1).send(&gateway);
        let second = event(other.0, other.1).send(&gateway);
        assert_answer(&first, 201, "stored");
        assert_answer(&second, 201, "stored");
        assert_replay(&event(one.0, one.1).send(&gateway), &first);
        assert_replay(&event(other.0, other.1).send(&gateway), &second);
    }
}

#[test]
fn operation_finds_a_key_under_each_distinct_rule_and_scope() {
    let upstream = Upstream::start();
    let gateway = upstream.gateway(
        "[policy]\nprincipal = [\"authorization\"]\n\
         [[route]]\npath = \"/orders\"\nprincipal = [\"header:X-User\"]\n\
         [[route]]\npath = \"/scoped\"\nprincipal = [\"header:X-User\"]\nscope = [\"route\", \"method\"]\n\
         [[route]]\npath = \"/by-path/{id}\"\nprincipal = [\"header:X-User\"]\nscope = [\"path\"]\n",
    );
    let operation = |query: &str, key: &str, user: &str| {
        gateway.send(format!(
            "GET /.idempotency/operation{query} HTTP/1.1\r\nHost: shop.example\r\nIdempotency-Key: {key}\r\nX-User: {user}\r\n\r\n"
        ))
    };
    let of = |path: &str, key: &str| order(key).to(&format!("POST {path}")).line("X-User: ann").send(&gateway);
    let first = of("/orders", "on-orders");
    assert_answer(&first, 201, "stored");
    let by_path = of("/by-path/7", "by-path-key");
    for query in ["?path=/orders", "?path=%2Forders"] {
        assert_replay(&operation(query, "on-orders", "ann"), &first);
        assert_problem(&operation(query, "on-orders", "bob"), "operation_unknown", "on-orders");
    }
    let scoped = of("/scoped", "on-scoped");
    assert_replay(&operation("?path=/scoped", "on-scoped", "ann"), &scoped);
    assert_replay(&operation("", "on-orders", "ann"), &first);
    assert_replay(&operation("", "on-scoped", "ann"), &scoped);
    assert_replay(&operation("?path=/by-path/7", "by-path-key", "ann"), &by_path);
    assert_problem(&operation("?path=/by-path/8", "by-path-key", "ann"), "operation_unknown", "by-path-key");
    // Nothing is said to be unknown that cannot be looked up without the path.
    assert_ne!(operation("", "by-path-key", "ann").status, 404);
}

#[test]
fn replay_is_shown_only_to_callers_whom_the_upstream_lets_in() {
    let session = Session::start();
    let settings = format!(
        "upstream = \"http://{}\"\nstore = \"memory:\"\n[policy]\nprincipal = [\"header:X-User\"]\nauthorize_replays = \"GET /session\"\n",
        session.address
    );
    let gateway = Gateway::with(&settings, &[]);
    let line = gateway.logged("authorize_replays: schemes that sign");
    assert!(line.contains("DPoP"), "{line}");
    let ann = order(KEY).line("X-User: ann").line("Authorization: Bearer t");
    let first = ann.send(&gateway);
    assert_answer(&first, 201, "stored");
    assert_eq!(session.asked(), 0, "what executes is the upstream's to refuse");
    assert_replay(&ann.send(&gateway), &first);
    assert_replay(&ann.send(&gateway), &first);
    assert_eq!(session.asked(), 1, "a yes is remembered for 5 s");
    let question = session.questions.lock().unwrap()[0].to_lowercase();
    assert!(question.starts_with("get /session ") && question.contains("authorization: bearer t"), "{question}");
    assert!(!question.contains("idempotency-key") && !question.contains("content-length: 2"), "{question}");

    // Access ends. Another token of the same caller is asked about anew.
    session.shut.store(true, std::sync::atomic::Ordering::SeqCst);
    let later = order(KEY).line("X-User: ann").line("Authorization: Bearer u");
    let refused = later.send(&gateway);
    assert_eq!((refused.status, outcome(&refused)), (401, "rejected"));
    assert_eq!((refused.one("www-authenticate"), refused.body.as_slice()), ("Session", &b"log in"[..]));
    assert_eq!(refused.one("idempotency-replayed"), "");
    let operation =
        "GET /.idempotency/operation HTTP/1.1\r\nHost: shop.example\r\nX-User: ann\r\nAuthorization: Bearer u\r\n";
    let refused = gateway.send(format!("{operation}Idempotency-Key: {KEY}\r\n\r\n"));
    assert_eq!((refused.status, outcome(&refused)), (401, "rejected"));
    session.shut.store(false, std::sync::atomic::Ordering::SeqCst);
    assert_replay(&later.send(&gateway), &first);
    assert_replay(&gateway.send(format!("{operation}Idempotency-Key: {KEY}\r\n\r\n")), &first);
    // A proof for one request is none for another.
    for proof in ["DPoP: eyJ.eyJ.c2ln", "Authorization: AWS4-HMAC-SHA256 Credential=a, Signature=b"] {
        let signed = order(KEY).line("X-User: ann").line(proof).send(&gateway);
        assert_problem(&signed, "principal_unknown", KEY);
    }
    // An upstream that cannot be asked lets nobody in.
    drop(session);
    let asked = order(KEY).line("X-User: ann").line("Authorization: Bearer v").send(&gateway);
    assert_eq!((asked.status, outcome(&asked)), (502, "rejected"));
    assert_eq!(asked.json()["executed"], "unknown");
}

/// A service with orders and a session, which it may end.
struct Session {
    address: std::net::SocketAddr,
    shut: std::sync::Arc<std::sync::atomic::AtomicBool>,
    questions: std::sync::Arc<std::sync::Mutex<Vec<String>>>,
    gone: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Session {
    fn start() -> Self {
        use std::io::{BufReader, Read, Write};
        use std::sync::atomic::Ordering;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let session = Self {
            address: listener.local_addr().unwrap(),
            shut: Default::default(),
            questions: Default::default(),
            gone: Default::default(),
        };
        let (shut, questions) = (session.shut.clone(), session.questions.clone());
        let gone = session.gone.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if gone.load(Ordering::SeqCst) {
                    return;
                }
                // One request a connection.
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                if std::io::BufRead::read_line(&mut stream, &mut line).is_err() {
                    continue;
                }
                let lines = crate::support::headers(&mut stream);
                let length = lines.iter().find(|(name, _)| name == "content-length");
                let length = length.map_or(0, |(_, value)| String::from_utf8_lossy(value).parse().unwrap());
                let mut body = vec![0; length];
                let _ = stream.read_exact(&mut body);
                let answer = match (line.starts_with("GET /session "), shut.load(Ordering::SeqCst)) {
                    (true, true) => {
                        "HTTP/1.1 401 No\r\nWWW-Authenticate: Session\r\nContent-Length: 6\r\nConnection: close\r\n\r\nlog in"
                    }
                    (true, false) => "HTTP/1.1 204 Yes\r\nConnection: close\r\n\r\n",
                    _ => "HTTP/1.1 201 Created\r\nContent-Length: 5\r\nConnection: close\r\n\r\norder",
                };
                if line.starts_with("GET /session ") {
                    let head: String = lines
                        .iter()
                        .map(|(name, value)| format!("{name}: {}\n", String::from_utf8_lossy(value)))
                        .collect();
                    questions.lock().unwrap().push(format!("{line}{head}"));
                }
                let _ = stream.get_mut().write_all(answer.as_bytes());
            }
        });
        session
    }

    fn asked(&self) -> usize {
        self.questions.lock().unwrap().len()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.gone.store(true, std::sync::atomic::Ordering::SeqCst);
        // Wakes the listener, which then closes.
        let _ = std::net::TcpStream::connect(self.address);
        poll("a closed listener", || std::net::TcpStream::connect(self.address).is_err().then_some(()));
    }
}

#[test]
fn too_many_new_keys_are_refused_and_replays_never() {
    let upstream = Upstream::start();
    let gateway = upstream.one_gateway("[policy]\nprincipal = [\"header:X-User\"]\nkeys_per_minute = 3\n");
    let of = |user: &str, key: &str| order(key).line(format!("X-User: {user}")).send(&gateway);
    let first = of("ann", "rate-key-0");
    assert_answer(&first, 201, "stored");
    // A released key is no new one when it comes again.
    for key in ["rate-key-1", "rate-key-2"] {
        assert_answer(&of("ann", key), 201, "stored");
    }
    for _ in 0..3 {
        let refused = of("ann", "rate-key-3");
        assert_problem(&refused, "too_many_keys", "rate-key-3");
        assert_replay(&of("ann", "rate-key-0"), &first);
    }
    assert_eq!(upstream.count("rate-key-3"), 0);
    assert_answer(&of("bob", "rate-key-3"), 201, "stored");
    // The anonymous are many callers.
    for key in ["anonymous-1", "anonymous-2", "anonymous-3", "anonymous-4"] {
        assert_answer(&order(key).send(&gateway), 201, "stored");
    }
    let all = upstream.one_gateway("[policy]\nprincipal = []\nkeys_per_minute = 1\n");
    for key in ["all-1", "all-2", "all-3"] {
        assert_answer(&order(key).line("X-User: ann").send(&all), 201, "stored");
    }
    assert!(all.page("/status", "").1.contains("keys_per_minute has no effect"));
}

#[test]
fn concurrent_new_keys_of_one_caller_do_not_pass_the_limit() {
    let upstream = Upstream::start();
    let gateway = upstream.one_gateway("[policy]\nprincipal = [\"header:X-User\"]\nkeys_per_minute = 5\n");
    let sent: Vec<_> =
        (0..20).map(|at| order(&format!("burst-key-{at}")).line("X-User: ann").spawn(&gateway)).collect();
    let answers: Vec<_> = sent.into_iter().map(crate::client::Sent::answer).collect();
    let stored = answers.iter().filter(|answer| outcome(answer) == "stored").count();
    assert!((5..=6).contains(&stored), "{stored} executed");
    assert_eq!(answers.iter().filter(|answer| answer.status == 429).count(), 20 - stored);
}

#[test]
fn another_rule_stops_the_start_unless_it_is_accepted() {
    let upstream = Upstream::start();
    let folder = tempfile::tempdir().unwrap();
    let store = format!("embedded:{}", folder.path().join("data").display());
    let settings = |more: &str, policy: &str| {
        format!("upstream = {:?}\nstore = {store:?}\n{more}\n[policy]\n{policy}\n", upstream.url())
    };
    // From no rule to one: nobody with a name had a key.
    drop(Gateway::with(&settings("", ""), &[]));
    drop(Gateway::with(&settings("", "principal = [\"header:X-User\", \"authorization\"]"), &[]));
    // Their order is none of it.
    drop(Gateway::with(&settings("", "principal = [\"authorization\", \"header:x-user\"]"), &[]));
    for (policy, setting) in [
        ("principal = [\"authorization\"]", "principal of default"),
        ("principal = []", "principal of default"),
        ("principal = [\"authorization\", \"header:X-User\"]\nscope = [\"route\"]", "scope of default"),
    ] {
        let error = fails(&settings("", policy));
        assert!(error.contains(setting) && error.contains("principal_generation = 2"), "{error}");
        assert_eq!(error.trim().lines().filter(|line| line.starts_with("onceward: ")).count(), 1, "{error}");
    }
    let accepted = Gateway::with(&settings("principal_generation = 2", "principal = [\"authorization\"]"), &[]);
    let line = accepted.logged("since principal_generation = 2");
    assert!(line.contains("\"ERROR\""), "{line}");
    assert!(accepted.page("/status", "").1.contains("since principal_generation = 2"));
    assert_eq!(changes(&accepted, "rule"), 1);
    drop(accepted);
    assert!(fails(&settings("principal_generation = 2", "principal = []")).contains("principal_generation = 3"));
}

/// What a gateway says that does not start.
fn fails(settings: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("onceward.toml"), settings).unwrap();
    let mut command = crate::support::command(&folder);
    let output = command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]).output().unwrap();
    assert!(!output.status.success(), "it started");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn each_default_credential_header_is_in_the_docs() {
    let docs = include_str!("../../../../docs/principals.md");
    for name in onceward::principal::CREDENTIAL_HEADERS {
        assert!(docs.contains(&format!("`{name}`")), "docs/principals.md does not name {name}");
    }
}

//! Pages of other origins: what they may send, and read, with a service that has CORS rules of its own.

#[cfg(feature = "demo")]
mod chromium;

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::client::{Ask, assert_problem, outcome, plain_order};
use crate::support::{Answer, Gateway, headers};

/// Of pages that the service allows; requests go to another host.
const SHOP: &str = "https://pages.example";

/// A service that lets the pages of some origins send JSON, and knows nothing of keys.
struct Service {
    address: SocketAddr,
    allowed: Arc<Mutex<Vec<String>>>,
    executed: Arc<AtomicUsize>,
    /// The heads of the preflights that came.
    preflights: Arc<Mutex<Vec<String>>>,
}

impl Service {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let service = Self {
            address: listener.local_addr().unwrap(),
            allowed: Arc::new(Mutex::new(vec![SHOP.into()])),
            executed: Arc::default(),
            preflights: Arc::default(),
        };
        let (allowed, executed) = (Arc::clone(&service.allowed), Arc::clone(&service.executed));
        let preflights = Arc::clone(&service.preflights);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (allowed, executed, preflights) =
                    (Arc::clone(&allowed), Arc::clone(&executed), Arc::clone(&preflights));
                std::thread::spawn(move || serve(stream, &allowed, &executed, &preflights));
            }
        });
        service
    }

    fn gateway(&self, settings: &str) -> Gateway {
        Gateway::start(&format!("http://{}", self.address), settings)
    }

    fn executed(&self) -> usize {
        self.executed.load(Ordering::SeqCst)
    }

    fn allow(&self, origins: &[&str]) {
        *self.allowed.lock().unwrap() = origins.iter().map(|origin| (*origin).to_owned()).collect();
    }
}

fn serve(
    stream: std::net::TcpStream,
    allowed: &Mutex<Vec<String>>,
    executed: &AtomicUsize,
    preflights: &Mutex<Vec<String>>,
) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if std::io::BufRead::read_line(&mut stream, &mut line).ok()? == 0 {
            return None;
        }
        let lines = headers(&mut stream);
        let header = |name: &str| {
            let value = lines.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_slice());
            String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
        };
        let mut body = vec![0; header("content-length").parse().unwrap_or(0)];
        stream.read_exact(&mut body).ok()?;
        let origin = header("origin");
        // On all hosts, or on one.
        let on_host = format!("{} {origin}", header("host"));
        let is_allowed = allowed.lock().unwrap().iter().any(|allowed| *allowed == origin || *allowed == on_host);
        let given = match is_allowed && header("x-do") != "mute" {
            true => format!(
                "Access-Control-Allow-Origin: {origin}\r\nAccess-Control-Allow-Credentials: true\r\nVary: Origin\r\n"
            ),
            false => String::new(),
        };
        let answer = if line.starts_with("OPTIONS") {
            let asked = header("access-control-request-headers");
            preflights.lock().unwrap().push(format!("{} {asked}", line.trim_end()));
            // A strict one refuses what it does not know.
            let knows = asked.split(',').map(str::trim).all(|name| name.is_empty() || name == "content-type");
            match is_allowed && knows {
                true => format!(
                    "HTTP/1.1 204 No Content\r\n{given}Access-Control-Allow-Methods: POST\r\nAccess-Control-Allow-Headers: content-type\r\n\r\n"
                ),
                false => "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".into(),
            }
        } else {
            let number = executed.fetch_add(1, Ordering::SeqCst) + 1;
            let body = format!("{{\"order\":{number}}}");
            let status = if header("x-do") == "busy" { "429 Busy" } else { "201 Created" };
            format!(
                "HTTP/1.1 {status}\r\n{given}Access-Control-Expose-Headers: X-Number\r\nX-Number: {number}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
        };
        stream.get_mut().write_all(answer.as_bytes()).ok()?;
    }
}

fn preflight(gateway: &Gateway, origin: &str, path: &str, asked: &str) -> Answer {
    gateway.send(format!(
        "OPTIONS {path} HTTP/1.1\r\nHost: shop.example\r\nOrigin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\
         Access-Control-Request-Headers: {asked}\r\n\r\n"
    ))
}

fn order_from(origin: &str, key: &str) -> Ask {
    plain_order().line(format!("Origin: {origin}")).line(format!("Idempotency-Key: {key}"))
}

/// All that the lines of a header name, in lower case.
fn names(answer: &Answer, header: &str) -> Vec<String> {
    let lines = answer.all(header);
    let text = lines.iter().map(|line| String::from_utf8_lossy(line).to_lowercase()).collect::<Vec<_>>().join(",");
    text.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}

#[track_caller]
fn assert_readable(answer: &Answer, origin: &str) {
    assert_eq!(answer.one("access-control-allow-origin"), origin, "{answer:?}");
    assert_eq!(answer.one("access-control-allow-credentials"), "true");
    assert!(names(answer, "vary").contains(&"origin".into()), "{answer:?}");
    let exposed = names(answer, "access-control-expose-headers");
    for name in ["idempotency-outcome", "idempotency-replayed", "retry-after"] {
        assert_eq!(exposed.iter().filter(|exposed| *exposed == name).count(), 1, "{name}: {exposed:?}");
    }
}

#[track_caller]
fn assert_unreadable(answer: &Answer) {
    assert!(answer.headers.iter().all(|(name, _)| !name.starts_with("access-control-allow")), "{answer:?}");
}

#[test]
fn what_clients_send_is_added_to_what_a_preflight_allows() {
    let service = Service::start();
    let gateway = service.gateway("");
    let asked = "content-type, Idempotency-Key,prefer,idempotency-first-sent";
    let answer = preflight(&gateway, SHOP, "/orders", asked);
    assert_eq!(answer.status, 204);
    assert_eq!(answer.one("access-control-allow-origin"), SHOP);
    assert_eq!(answer.one("access-control-allow-methods"), "POST");
    let allowed = ["content-type", "idempotency-key", "prefer", "idempotency-first-sent"];
    assert_eq!(names(&answer, "access-control-allow-headers"), allowed);
    // A service that refuses what it does not know never saw them.
    assert_eq!(*service.preflights.lock().unwrap(), ["OPTIONS /orders HTTP/1.1 content-type"]);
    assert_eq!(service.executed(), 0);
}

#[test]
fn what_the_upstream_refuses_stays_refused() {
    let service = Service::start();
    let gateway = service.gateway("");
    let answer = preflight(&gateway, "https://evil.example", "/orders", "idempotency-key");
    assert_eq!((answer.status, names(&answer, "access-control-allow-headers")), (403, vec![]));
    assert_unreadable(&answer);
    // Neither its answer nor what is said in its place.
    for _ in 0..2 {
        assert_unreadable(&order_from("https://evil.example", "evil-key").send(&gateway));
    }
    let other = order_from("https://evil.example", "evil-key").body("{}").send(&gateway);
    assert_problem(&other, "key_reused", "");
    assert_unreadable(&other);
    let answer = preflight(&gateway, SHOP, "/orders", "x-unknown, idempotency-key");
    assert_eq!((answer.status, names(&answer, "access-control-allow-headers")), (403, vec![]));
}

#[test]
fn answers_replays_and_refusals_can_be_read_by_whom_the_upstream_lets_read() {
    let service = Service::start();
    let gateway = service.gateway("");
    let ask = order_from(SHOP, "cors-key");
    for label in ["stored", "replayed"] {
        let answer = ask.send(&gateway);
        assert_eq!((answer.status, outcome(&answer)), (201, label));
        assert_readable(&answer, SHOP);
        assert!(names(&answer, "access-control-expose-headers").contains(&"x-number".into()), "what it exposes itself");
    }
    let reused = ask.clone().body("{}").send(&gateway);
    assert_problem(&reused, "key_reused", "");
    assert_readable(&reused, SHOP);
    let invalid = order_from(SHOP, "\"\"").send(&gateway);
    assert_problem(&invalid, "key_invalid", "");
    assert_readable(&invalid, SHOP);
    // No word to the others, nor to whoever is no page.
    assert_unreadable(&order_from("https://other.example", "cors-key").send(&gateway));
    assert_unreadable(&plain_order().line("Idempotency-Key: cors-key").send(&gateway));
    assert_eq!(service.executed(), 1);
}

#[test]
fn what_is_not_known_is_asked_for_and_what_was_last_given_counts() {
    let service = Service::start();
    let gateway = service.gateway("");
    // Nothing was seen of the upstream yet, and the refusal can be read all the same.
    let invalid = order_from(SHOP, "\"\"").send(&gateway);
    assert_readable(&invalid, SHOP);
    assert_eq!(*service.preflights.lock().unwrap(), ["OPTIONS /orders HTTP/1.1 "]);
    assert_readable(&order_from(SHOP, "\"\"").send(&gateway), SHOP);
    assert_eq!(service.preflights.lock().unwrap().len(), 1, "it is remembered");
    // It changes its mind.
    service.allow(&["https://new.example"]);
    preflight(&gateway, SHOP, "/orders", "content-type");
    assert_unreadable(&order_from(SHOP, "\"\"").send(&gateway));
    preflight(&gateway, "https://new.example", "/orders", "content-type");
    assert_readable(&order_from("https://new.example", "\"\"").send(&gateway), "https://new.example");
}

#[test]
fn a_refusal_of_an_upstream_that_is_gone_can_be_read_if_it_was_known() {
    let service = Service::start();
    // A port that nobody listens on any more.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateway = Gateway::start(&format!("http://{gone}"), &format!("[cors]\norigins = [\"{SHOP}\"]\n"));
    let answer = order_from(SHOP, "gone-key").send(&gateway);
    assert_problem(&answer, "upstream_unreachable", "");
    assert_readable(&answer, SHOP);
    assert_unreadable(&order_from("https://other.example", "gone-key").send(&gateway));
    let without = Gateway::start(&format!("http://{gone}"), "");
    let answer = order_from(SHOP, "gone-key").send(&without);
    assert_problem(&answer, "upstream_unreachable", "");
    assert_unreadable(&answer);
    assert_eq!(service.executed(), 0);
}

#[test]
fn listed_origins_read_refusals_and_replays_whatever_the_upstream_gives() {
    let service = Service::start();
    service.allow(&[]);
    let gateway = service.gateway("[cors]\norigins = [\"https://listed.example\"]\n");
    let ask = order_from("https://listed.example", "listed-key");
    assert_unreadable(&ask.send(&gateway));
    assert_readable(&ask.send(&gateway), "https://listed.example");
    assert_readable(&ask.body("{}").send(&gateway), "https://listed.example");
    assert_eq!(service.preflights.lock().unwrap().len(), 0, "nobody was asked");
}

#[test]
fn the_public_paths_can_be_read_by_the_same_pages() {
    let service = Service::start();
    let gateway = service.gateway("[[route]]\npath = \"/orders\"\nmissing = \"reject\"\n");
    let answer = preflight(&gateway, SHOP, "/.idempotency/operation", "idempotency-key, x-user");
    assert_eq!((answer.status, answer.one("access-control-allow-methods")), (204, "GET, HEAD, POST"));
    assert_eq!(names(&answer, "access-control-allow-headers"), ["idempotency-key", "x-user"]);
    assert_eq!(*service.preflights.lock().unwrap(), ["OPTIONS /orders HTTP/1.1 "], "as of a route of its own");
    for path in ["policy", "operation"] {
        let get =
            format!("GET /.idempotency/{path} HTTP/1.1\r\nHost: a\r\nOrigin: {SHOP}\r\nIdempotency-Key: k\r\n\r\n");
        assert_readable(&gateway.send(get), SHOP);
    }
    let answer = preflight(&gateway, "https://evil.example", "/.idempotency/operation", "idempotency-key");
    assert_unreadable(&answer);
    let get = "GET /.idempotency/policy HTTP/1.1\r\nHost: a\r\nOrigin: https://evil.example\r\n\r\n";
    assert_unreadable(&gateway.send(get));
}

fn invalid_on(host: &str, origin: &str) -> Ask {
    Ask::bare("POST /orders")
        .line(format!("Host: {host}"))
        .line(format!("Origin: {origin}"))
        .line("Idempotency-Key: \"\"")
}

#[test]
fn grant_of_one_host_is_given_on_no_other() {
    let service = Service::start();
    service.allow(&["a.example https://pages.example"]);
    let gateway = service.gateway("");
    // The upstream is asked under the host that the client named.
    assert_readable(&invalid_on("a.example", SHOP).send(&gateway), SHOP);
    assert_unreadable(&invalid_on("b.example", SHOP).send(&gateway));
    let stored = Ask::bare("POST /orders").line("Host: a.example").line(format!("Origin: {SHOP}"));
    assert_readable(&stored.line("Idempotency-Key: on-host-a").send(&gateway), SHOP);
    for host in ["b.example", "a.example:8443", "c.example"] {
        assert_unreadable(&invalid_on(host, SHOP).send(&gateway));
    }
    for (host, is_readable) in [("a.example", true), ("b.example", false)] {
        let get = format!(
            "GET /.idempotency/operation HTTP/1.1\r\nHost: {host}\r\nOrigin: {SHOP}\r\nIdempotency-Key: k\r\n\r\n"
        );
        match is_readable {
            true => assert_readable(&gateway.send(get), SHOP),
            false => assert_unreadable(&gateway.send(get)),
        }
    }
    assert_readable(&invalid_on("A.example", SHOP).send(&gateway), SHOP);
}

#[test]
fn request_of_another_client_takes_no_grant_away() {
    let service = Service::start();
    let gateway = service.gateway("");
    let ask = || invalid_on("shop.example", SHOP).send(&gateway);
    assert_readable(&ask(), SHOP);
    // A response without a word of CORS, to anybody who names that origin.
    for start in ["GET /orders", "POST /orders"] {
        let mute = Ask::bare(start).line("Host: shop.example").line(format!("Origin: {SHOP}")).line("X-Do: mute");
        assert_unreadable(&mute.send(&gateway));
        assert_readable(&ask(), SHOP);
    }
    // A preflight that the service refuses for what it asks for.
    let refused = gateway.send(format!(
        "OPTIONS /orders HTTP/1.1\r\nHost: shop.example\r\nOrigin: {SHOP}\r\nAccess-Control-Request-Method: POST\r\n\
         Access-Control-Request-Headers: x-made-up\r\n\r\n"
    ));
    assert_eq!(refused.status, 403);
    assert_readable(&ask(), SHOP);
}

#[test]
fn a_refusal_of_the_own_page_waits_for_nobody() {
    let service = Service::start();
    let gateway = service.gateway("");
    // Its host is that of the request.
    let own = plain_order().line("Origin: http://shop.example").line("Idempotency-Key: \"\"");
    assert_unreadable(&own.send(&gateway));
    assert_eq!(service.preflights.lock().unwrap().len(), 0);
}

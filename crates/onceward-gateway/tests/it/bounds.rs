//! What has a bound, and what happens there: executions, descriptors, logs, memory, tunnels.

use std::net::TcpListener;

use crate::client::{assert_answer, assert_problem, assert_replay, order, plain_order, poll};
use crate::forward::{OK, Scripted};
use crate::support::{Client, Gateway, command};
use crate::upstream::Upstream;

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

fn keyed(key: usize) -> String {
    format!("POST /orders HTTP/1.1\r\nHost: a\r\nIdempotency-Key: bounds-{key}\r\nContent-Length: 2\r\n\r\nhi")
}

#[test]
fn executions_have_a_bound_and_one_more_is_overloaded() {
    let upstream = Upstream::start();
    let gateway = upstream.one_gateway("[limits]\nexecutions = 2");
    let done = order("bound-done-0123");
    let first = done.send(&gateway);
    assert_answer(&first, 201, "stored");
    let running: Vec<_> = (0..2)
        .map(|at| {
            let sent = order(&format!("bound-running-{at}")).step(format!("hold bound-{at}")).spawn(&gateway);
            upstream.held(&format!("bound-{at}"));
            sent
        })
        .collect();
    for _ in 0..3 {
        assert_problem(&order("bound-more-0123").send(&gateway), "overloaded", "bound-more-0123");
        let plain = plain_order().send(&gateway);
        assert_eq!((plain.status, &plain.json()["code"], plain.one("retry-after")), (503, &"overloaded".into(), "1"));
        assert_eq!(plain.one("idempotency-outcome"), "");
    }
    gateway.logged("overloaded: as many requests execute as may");
    // Replays, mismatches and duplicates need no place.
    assert_replay(&done.send(&gateway), &first);
    assert_problem(&order("bound-running-0").send(&gateway), "in_flight", "bound-running-0");
    assert_problem(&order("bound-running-1").body("other").send(&gateway), "key_reused", "bound-running-1");
    let waiter = order("bound-running-0").line("Prefer: wait=20").spawn(&gateway);
    let (_, status) = gateway.page("/status", "");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!((&status["executing"], &status["executions_max"]), (&2.into(), &2.into()));
    upstream.release("bound-0");
    upstream.release("bound-1");
    for sent in running {
        assert_answer(&sent.answer(), 201, "stored");
    }
    assert_answer(&waiter.answer(), 201, "replayed");
    // Nothing was claimed.
    let more = poll("a free place", || {
        let more = order("bound-more-0123").send(&gateway);
        (more.status != 503).then_some(more)
    });
    assert_answer(&more, 201, "stored");
    assert_eq!(upstream.count("bound-more-0123"), 1);
    poll("no execution", || gateway.page("/metrics", "").1.contains("\nonceward_executions 0\n").then_some(()));
}

#[test]
fn execution_of_a_disconnected_client_holds_its_place_to_its_end() {
    let upstream = Upstream::start();
    let gateway = upstream.one_gateway("[limits]\nexecutions = 1");
    let client = order("bound-left-0123").step("hold left").begin(&gateway);
    upstream.held("left");
    drop(client);
    assert_problem(&order("bound-after-0123").send(&gateway), "overloaded", "bound-after-0123");
    upstream.release("left");
    let after = poll("the end", || {
        let after = order("bound-after-0123").send(&gateway);
        (after.status != 503).then_some(after)
    });
    assert_answer(&after, 201, "stored");
}

#[test]
fn tunnel_holds_a_place_and_ends_soon_after_one_side_did() {
    let upstream = Scripted::start(|conversation| {
        while let Some(seen) = conversation.request() {
            if seen.line.starts_with("GET /ws") {
                conversation
                    .say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
                // Until the test says a line; then this side ends.
                conversation.head();
                return;
            }
            conversation.say(OK);
        }
    });
    let gateway = Gateway::start(&upstream.url(), "[limits]\nexecutions = 1");
    let mut tunnel = gateway.client();
    assert_eq!(tunnel.ask(UPGRADE).status, 101);
    for _ in 0..3 {
        assert_eq!(gateway.send(GET).status, 503, "an idle tunnel goes on");
    }
    tunnel.say("end\r\n\r\n");
    assert!(tunnel.is_closed());
    // The client keeps its own side open.
    poll("the end of the tunnel", || (gateway.send(GET).status == 200).then_some(()));
    drop(tunnel);
}

#[test]
fn clients_that_send_and_disconnect_never_take_the_last_descriptor() {
    let upstream = Upstream::start();
    let settings = upstream.settings("embedded:data", "[limits]\nupstream_timeout = \"60s\"");
    let gateway = Gateway::with_open_files(&settings, 256);
    for at in 0..400 {
        drop(order(&format!("descriptor-{at}-01")).step("hold all").begin(&gateway));
        if at % 50 == 0 {
            assert_eq!(gateway.page("/healthz", "").0, 200);
        }
    }
    gateway.logged("overloaded: as many requests execute as may");
    assert_eq!(gateway.page("/healthz", "").0, 200);
    assert_problem(&order("descriptor-more-1").send(&gateway), "overloaded", "descriptor-more-1");
    upstream.release("all");
    // Each that was executed has its response, and the store takes writes.
    let executed = poll("the end of all", || {
        let (_, status) = gateway.page("/status", "");
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        (status["in_flight"] == 0).then(|| status["census"].clone())
    });
    assert_eq!((&executed["unknown"], &executed["in_flight"]), (&0.into(), &0.into()));
    assert_eq!(executed["completed"].as_u64().unwrap(), upstream.executions().len() as u64);
    assert!(upstream.executions().len() > 20);
    assert_answer(&order("descriptor-more-1").send(&gateway), 201, "stored");
    assert_eq!(gateway.page("/readyz", "").0, 200);
}

#[test]
fn log_that_nobody_reads_stalls_nothing_and_its_drops_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let settings = "upstream = \"http://127.0.0.1:9\"\nstore = \"memory:\"\n[policy]\nprincipal = []\n";
    std::fs::write(folder.path().join("onceward.toml"), settings).unwrap();
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (listen, admin) = (free(), free());
    let mut command = command(&folder);
    command.args(["--listen", &listen.to_string(), "--admin", &admin.to_string()]).env("ONCEWARD_LOG", "trace");
    // Standard error is a pipe, and this test never reads it.
    let mut child = Killed(command.spawn().unwrap());
    poll("a listener", || std::net::TcpStream::connect(listen).is_ok().then_some(()));
    let page = move |path: &str| {
        let page = Client::connect(admin).ask(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        assert_eq!(page.status, 200, "{page:?}");
        (page.status, String::from_utf8(page.body).unwrap())
    };
    let drops = move || !page("/metrics").1.contains("\nonceward_log_lines_dropped_total 0\n");
    let senders: Vec<_> = (0..4)
        .map(|sender| {
            std::thread::spawn(move || {
                let mut client = Client::connect(listen);
                for key in 0..20_000 {
                    let sent = client.ask(keyed(sender * 20_000 + key));
                    assert_eq!(sent.one("idempotency-outcome"), "released");
                    if key % 200 == 199 && drops() {
                        return;
                    }
                }
                panic!("no line was dropped");
            })
        })
        .collect();
    for sender in senders {
        sender.join().unwrap();
    }
    assert_eq!((page("/healthz").0, page("/readyz").0), (200, 200));
    let pid = child.0.id().to_string();
    assert!(std::process::Command::new("kill").args(["-s", "TERM", &pid]).status().unwrap().success());
    let status = poll("the end", || child.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

/// A process that ends with its test.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn equal_log_lines_are_limited_and_what_is_left_out_is_counted() {
    let upstream = Scripted::answering(OK);
    let gateway = Gateway::start(&upstream.url(), "");
    let mut client = gateway.client();
    for key in 0..300 {
        let refused = client.ask("POST / HTTP/1.1\r\nHost: a\r\nIdempotency-Key: \"\"\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!(refused.status, 400);
        assert_eq!(client.ask(keyed(key)).status, 200);
    }
    gateway.logged("equal lines were left out of the log");
    let count = |what: &str| gateway.log().lines().filter(|line| line.contains(what)).count();
    let refusals = count("\"outcome\":\"rejected\"");
    assert!((1..=200).contains(&refusals), "{refusals}");
    // The outcome of each attempt is logged.
    poll("the outcome of each attempt", || (count("\"outcome\":\"stored\"") >= 300).then_some(()));
    assert_eq!(count("\"outcome\":\"stored\""), 300);
}

/// The memory that a process has in use, in bytes.
#[cfg(target_os = "linux")]
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
#[cfg(target_os = "linux")]
fn stored_responses_take_about_the_memory_that_they_count() {
    let body = "x".repeat(5000);
    // In two pieces of one read buffer, and with a header of some size.
    let upstream = Scripted::answering(format!(
        "HTTP/1.1 200 OK\r\nX-Long: {}\r\nContent-Length: {}\r\n\r\n{body}",
        "y".repeat(500),
        body.len()
    ));
    let gateway = Gateway::start(&upstream.url(), "[limits]\ncache = \"0B\"");
    let mut client = gateway.client();
    let mut send = |keys: std::ops::Range<usize>| {
        for key in keys {
            assert_eq!(client.ask(keyed(key)).status, 200);
        }
    };
    send(0..200);
    let before = resident(gateway.pid());
    send(200..3200);
    let grown = resident(gateway.pid()).saturating_sub(before);
    let (_, status) = gateway.page("/status", "");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let counted = status["census"]["bytes"].as_u64().unwrap();
    assert!(counted > 3000 * 5500, "{counted}");
    assert!(grown < counted * 2, "{grown} bytes are held for {counted} that are counted");
}

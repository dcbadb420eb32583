//! The process: what it says when it starts, what operators see, and how it ends.

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::client::poll;
use crate::forward::{OK, Scripted, baton, wait};
use crate::support::{Client, Gateway, PATIENCE, command};

fn keyed(path: &str, key: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: shop\r\nIdempotency-Key: {key}\r\nContent-Length: 2\r\n\r\nhi")
}

/// The exit code of a start that fails, and what it said besides its log.
fn failed_start(settings: &str) -> (Option<i32>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("onceward.toml"), settings).unwrap();
    let output = command(&folder).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let said = said.lines().filter(|line| !line.starts_with('{')).map(str::to_owned).collect();
    (output.status.code(), said)
}

const QUIET: &str = "upstream = \"http://127.0.0.1:9\"\nstore = \"memory:\"\n";

#[test]
fn what_cannot_start_says_why_in_one_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().map(|address| (taken, address)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "no secret").unwrap();
    let file = file.to_str().unwrap();
    let free = "listen = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"";
    for (settings, part) in [
        (format!("{QUIET}listen = \"{}\"", taken.1), "--listen"),
        (format!("{QUIET}listen = \"127.0.0.1:0\"\n[admin]\nlisten = \"{}\"", taken.1), "--admin"),
        (format!("upstream = \"http://127.0.0.1:9\"\nstore = \"embedded:{file}/below\"\n{free}"), "store: "),
        (format!("{QUIET}secret_file = \"{file}\"\n{free}"), "openssl rand -hex 32"),
        (format!("{QUIET}secret_file = \"{file}.absent\"\n{free}"), "cannot be read"),
    ] {
        let (code, said) = failed_start(&settings);
        assert_eq!(code, Some(1), "{settings}: {said:?}");
        assert!(matches!(said.as_slice(), [line] if line.starts_with("onceward: ") && line.contains(part)), "{said:?}");
    }
}

/// `/dev/full` is a disk without a byte left.
#[test]
fn a_log_that_cannot_be_written_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let settings = "upstream = \"http://127.0.0.1:9\"\nstore = \"embedded:data\"\n[policy]\nprincipal = []\n";
    std::fs::write(folder.path().join("onceward.toml"), settings).unwrap();
    // It cannot say where it listens, so it is told.
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (listen, admin) = (free(), free());
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = command(&folder);
    command.args(["--listen", &listen, "--admin", &admin]).env("ONCEWARD_LOG", "trace").stderr(full);
    let mut child = command.spawn().unwrap();
    let until = Instant::now() + PATIENCE;
    while std::net::TcpStream::connect(&listen).is_err() {
        assert!(Instant::now() < until && child.try_wait().unwrap().is_none(), "it does not listen");
        // waits: nobody tells when a process listens that cannot log
        std::thread::sleep(Duration::from_millis(10));
    }
    for key in 0..3 {
        let answer = Client::connect(listen.parse().unwrap()).ask(keyed("/", &format!("unlogged-{key}")));
        assert_eq!(answer.one("idempotency-outcome"), "released");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_folder_that_is_in_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store =
        format!("upstream = \"http://127.0.0.1:9\"\nstore = \"embedded:{}\"\n", folder.path().join("data").display());
    let _first = Gateway::with(&store, &[]);
    let (code, said) = failed_start(&format!("{store}listen = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\""));
    assert_eq!(code, Some(1), "{said:?}");
    assert!(matches!(said.as_slice(), [line] if line.contains("in use") && line.contains("data")), "{said:?}");
}

#[test]
fn another_secret_than_the_stores_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    let settings = format!(
        "upstream = \"http://127.0.0.1:9\"\nstore = \"embedded:{}\"\nsecret_file = \"{}\"\n",
        folder.path().join("data").display(),
        secret.display()
    );
    std::fs::write(&secret, "0123456789abcdef".repeat(4) + "\n").unwrap();
    drop(Gateway::with(&settings, &[]));
    // The same one, raw, is the same one.
    let raw: Vec<u8> = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef].repeat(4);
    std::fs::write(&secret, raw).unwrap();
    drop(Gateway::with(&settings, &[]));
    std::fs::write(&secret, "f".repeat(64)).unwrap();
    let (code, said) = failed_start(&format!("{settings}listen = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\""));
    assert_eq!(code, Some(1), "{said:?}");
    assert!(matches!(said.as_slice(), [line] if line.contains("secret")), "{said:?}");
}

#[test]
fn the_log_says_where_settings_come_from_and_no_secret() {
    let settings = format!("{QUIET}[policy]\nlease = \"20s\"\n");
    let gateway = Gateway::with(&settings, &[("ONCEWARD_ADMIN_TOKEN", "t0ken"), ("ONCEWARD_NONSENSE", "1")]);
    let log = gateway.log();
    assert!(log.contains("policy.lease = \\\"20s\\\" (onceward.toml, line 4)"), "{log}");
    assert!(log.contains("admin.token = … (environment variable ONCEWARD_ADMIN_TOKEN)"), "{log}");
    assert!(log.contains("unknown environment variable ONCEWARD_NONSENSE"), "{log}");
    assert!(!log.contains("t0ken"), "{log}");
}

#[test]
fn no_key_and_no_credential_is_ever_logged() {
    let upstream = Scripted::answering(OK);
    let settings = format!(
        "upstream = {:?}\nstore = \"memory:\"\n[policy]\nprincipal = [\"authorization\", \"cookie:sid\", \"header:X-Api-Key\"]\n",
        upstream.url()
    );
    let gateway = Gateway::with(&settings, &[("ONCEWARD_LOG", "trace")]);
    let request = |key: &str, body: &str| {
        format!(
            "POST /pay?token=Qq-query HTTP/1.1\r\nHost: shop\r\nIdempotency-Key: {key}\r\nAuthorization: Bearer Zz-bearer\r\n\
            Cookie: sid=Zz-cookie\r\nX-Api-Key: Zz-apikey\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    assert_eq!(gateway.send(request("Zz-key", "Zz-body")).one("idempotency-outcome"), "stored");
    assert_eq!(gateway.send(request("Zz-key", "Zz-body")).one("idempotency-outcome"), "replayed");
    assert_eq!(gateway.send(request("Zz-key", "Zz-other")).one("idempotency-outcome"), "mismatch");
    assert_eq!(gateway.send(request("Zz key", "Zz-body")).one("idempotency-outcome"), "rejected");
    assert_eq!(gateway.send(request("Zz-key", "Zz-body").replace("POST", "PUT")).status, 200);
    // One line each, which an operator can find by what the client was told.
    for outcome in ["stored", "replayed", "mismatch", "rejected"] {
        let line = gateway.logged(&format!("\"outcome\":\"{outcome}\""));
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&line["method"], &line["route"]), (&"POST".into(), &"default".into()));
        assert!(line["status"].is_u64() && line["ms"].is_u64() && line["request"].is_string(), "{line}");
        assert_eq!(line["instance"].is_string(), outcome != "rejected", "{line}");
    }
    gateway.logged("\"method\":\"PUT\"");
    let log = gateway.log();
    for secret in ["Zz-", "Zz key", "Qq-query"] {
        assert!(
            !log.contains(secret),
            "{secret} was logged: {}",
            log.lines().find(|line| line.contains(secret)).unwrap()
        );
    }
    let (_, metrics) = gateway.page("/metrics", "");
    assert!(!metrics.contains("Zz"), "{metrics}");
}

#[test]
fn operators_see_whether_it_is_alive_ready_and_what_it_counts() {
    let upstream = Scripted::answering(OK);
    let gateway = Gateway::start(&upstream.url(), "");
    assert_eq!(gateway.page("/healthz", ""), (200, "ok\n".into()));
    assert_eq!(gateway.page("/readyz", ""), (200, "ready\n".into()));
    assert_eq!(gateway.page("/nothing", "").0, 404);
    for (key, count) in [("a", 1), ("a", 2), ("b", 1)] {
        for _ in 0..count {
            assert_eq!(gateway.send(keyed("/orders", key)).status, 200);
        }
    }
    let (_, metrics) = gateway.page("/metrics", "");
    for line in [
        "onceward_requests_total{route=\"default\",outcome=\"stored\"} 2",
        "onceward_requests_total{route=\"default\",outcome=\"replayed\"} 2",
        "onceward_requests_total{route=\"default\",outcome=\"unknown\"} 0",
        "onceward_duplicates_prevented_total{route=\"default\"} 2",
        "onceward_claims_in_flight 0",
        "onceward_keys_unknown 0",
        "onceward_second_executions_total 0",
        "onceward_upstream_seconds_count{route=\"default\"} 2",
        "# EOF",
    ] {
        assert!(metrics.lines().any(|has| has == line), "{line}\n{metrics}");
    }
    assert!(metrics.contains("onceward_store_seconds_count{op=\"insert\"}"), "{metrics}");
    let (status, page) = gateway.page("/status", "");
    let page: serde_json::Value = serde_json::from_str(&page).unwrap();
    assert_eq!((status, &page["census"]["completed"]), (200, &2.into()));
    assert_eq!(page["store"]["kind"], "memory");
    assert_eq!(page["guarantees"][0]["guarantee"], "at-most-once");
    assert!(page["guarantees"][0]["holds"].as_str().unwrap().contains("restart forgets"), "{page}");
    assert!(page["warnings"].as_array().unwrap().iter().any(|warning| warning.as_str().unwrap().contains("forgets")));
    assert!(page["settings"].as_array().unwrap().iter().any(|setting| setting["from"] == "flag --listen"), "{page}");
}

#[test]
fn the_status_is_for_whoever_has_the_token() {
    let gateway = Gateway::with(QUIET, &[("ONCEWARD_ADMIN_TOKEN", "t0ken")]);
    for (headers, status) in [
        ("", 401),
        ("Authorization: Bearer t0ke\r\n", 401),
        ("Authorization: Bearer t0ken2\r\n", 401),
        ("Authorization: t0ken\r\n", 401),
        ("Authorization: Bearer t0ken\r\n", 200),
        ("authorization: bearer t0ken\r\n", 200),
    ] {
        assert_eq!(gateway.page("/status", headers).0, status, "{headers:?}");
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(gateway.page(path, "").0, 200, "{path}");
    }
}

#[test]
fn a_key_is_known_after_a_kill() {
    let upstream = Scripted::answering(OK);
    let settings = format!("upstream = {:?}\n[policy]\nprincipal = []\n", upstream.url());
    let gateway = Gateway::with(&settings, &[]);
    assert_eq!(gateway.send(keyed("/orders", "k")).one("idempotency-outcome"), "stored");
    let gateway = gateway.killed_and_restarted();
    let again = gateway.send(keyed("/orders", "k"));
    assert_eq!((again.status, again.one("idempotency-outcome")), (200, "replayed"));
    assert_eq!(upstream.seen().len(), 1);
}

#[test]
fn a_drain_finishes_what_runs_and_claims_nothing_new() {
    let (go, may_go) = baton();
    let upstream = Scripted::start(move |conversation| {
        while let Some(seen) = conversation.request() {
            if seen.line.contains("/slow") {
                wait(&may_go);
            }
            conversation.say(OK);
        }
    });
    let mut gateway = Gateway::start(&upstream.url(), "");
    assert_eq!(gateway.send(keyed("/orders", "done")).one("idempotency-outcome"), "stored");
    // One whose client waits, and one whose client has gone.
    let mut waiting = gateway.client();
    waiting.say(keyed("/slow", "waiting"));
    let mut gone = gateway.client();
    gone.say(keyed("/slow", "gone"));
    upstream.wait_for_requests(3);
    drop(gone);

    gateway.signal("TERM");
    gateway.logged("draining");
    assert_eq!(gateway.page("/readyz", ""), (503, "draining\n".into()));
    assert_eq!(gateway.page("/healthz", "").0, 200);
    let refused = gateway.send(keyed("/orders", "new"));
    assert_eq!((refused.status, &refused.json()["code"]), (503, &"draining".into()));
    assert!(!refused.one("retry-after").is_empty(), "{refused:?}");
    assert_eq!(gateway.send(keyed("/orders", "done")).one("idempotency-outcome"), "replayed");
    assert_eq!(gateway.send(keyed("/slow", "waiting")).one("idempotency-outcome"), "in-flight");

    go();
    go();
    let answer = waiting.answer(false);
    assert_eq!((answer.status, answer.one("idempotency-outcome")), (200, "stored"));
    assert_eq!(gateway.ended().code(), Some(0), "{}", gateway.log());
    assert_eq!(upstream.seen().len(), 3);
}

#[test]
fn what_outlasts_the_drain_is_unknown_and_not_executed_again() {
    let (go, may_go) = baton();
    let upstream = Scripted::start(move |conversation| {
        conversation.request();
        wait(&may_go);
        conversation.say(OK);
    });
    let settings = format!("upstream = {:?}\ndrain = \"200ms\"\n[policy]\nprincipal = []\n", upstream.url());
    let mut gateway = Gateway::with(&settings, &[]);
    let mut client = gateway.client();
    client.say(keyed("/orders", "k"));
    upstream.wait_for_requests(1);
    let asked = Instant::now();
    gateway.signal("INT");
    assert_eq!(gateway.ended().code(), Some(0), "{}", gateway.log());
    assert!(asked.elapsed() < Duration::from_secs(5), "it took {:?}", asked.elapsed());
    let gateway = gateway.killed_and_restarted();
    let again = gateway.send(keyed("/orders", "k"));
    assert_eq!((again.status, &again.json()["code"]), (409, &"outcome_unknown".into()));
    assert_eq!(upstream.seen().len(), 1);
    go();
}

#[test]
fn a_second_signal_ends_at_once() {
    let (go, may_go) = baton();
    let upstream = Scripted::start(move |conversation| {
        conversation.request();
        wait(&may_go);
    });
    let mut gateway = Gateway::start(&upstream.url(), "drain = \"1h\"");
    let mut client = gateway.client();
    client.say(keyed("/orders", "k"));
    upstream.wait_for_requests(1);
    gateway.signal("TERM");
    gateway.logged("draining");
    gateway.signal("TERM");
    assert_eq!(gateway.ended().code(), Some(1));
    go();
}

#[test]
fn a_drain_does_not_wait_for_connections_that_say_nothing() {
    let upstream = Scripted::answering(OK);
    let mut gateway = Gateway::start(&upstream.url(), "");
    let mut idle = gateway.client();
    assert_eq!(idle.ask(keyed("/orders", "k")).status, 200);
    let silent = Client::connect(gateway.listen);
    let asked = Instant::now();
    gateway.signal("TERM");
    assert_eq!(gateway.ended().code(), Some(0));
    assert!(asked.elapsed() < PATIENCE, "it waited for the whole drain limit");
    assert!(idle.is_closed());
    drop(silent);
}

#[test]
fn a_machine_without_free_sockets_is_outlasted() {
    let upstream = Scripted::answering(OK);
    let settings = format!("upstream = {:?}\nstore = \"memory:\"\n", upstream.url());
    let gateway = Gateway::with_open_files(&settings, 40);
    let crowd: Vec<Client> = (0..60).map(|_| gateway.client()).collect();
    drop(crowd);
    // Until it has seen the crowd leave, it may have a socket for the client and none for the upstream.
    poll("a free socket", || (gateway.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").status == 200).then_some(()));
}

#[test]
fn it_says_what_it_is() {
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_onceward")).args(args).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run(&["--version"]).trim(), concat!("onceward ", env!("CARGO_PKG_VERSION")));
    let help = run(&["serve", "--help"]);
    for flag in ["--upstream", "--listen", "--store", "--admin", "--principal", "--config", "ONCEWARD_LOG"] {
        assert!(help.contains(flag), "{help}");
    }
    assert!(run(&["--help"]).contains("serve"));
}

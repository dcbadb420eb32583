//! The front: which spellings are one path, what is no request, who is believed, and how connections end.

#[cfg(target_os = "linux")]
mod proxies;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::client::{assert_problem, outcome};
use crate::forward::{OK, Scripted};
use crate::support::{Answer, Client, Gateway, PATIENCE};
use crate::waiting::poll;

/// A request, with more header lines.
fn post(target: &str, headers: &str) -> String {
    format!("POST {target} HTTP/1.1\r\nHost: shop\r\n{headers}Content-Length: 2\r\n\r\nhi")
}

const KEY: &str = "Idempotency-Key: front-key-0123456789\r\n";

#[test]
fn route_holds_for_each_spelling_of_its_path() {
    let upstream = Scripted::answering(OK);
    let routes = "[[route]]\npath = \"/Orders\"\nmissing = \"reject\"\n[[route]]\npath = \"/free\"\nmethods = []\n";
    let gateway = Gateway::start(&upstream.url(), &format!("[policy]\n{routes}"));
    let spellings = [
        "/orders",
        "/orders/",
        "/ORDERS",
        "//orders",
        "/./orders",
        "/x/../orders",
        "/%2e/orders",
        "/x/%2E%2e/orders",
        "/orders%2F",
        "/orders;x=1",
        "/orders;x=1/",
        "/%6frders",
        "/orders%5C",
        "/free/../orders",
        "/orders?x=1",
    ];
    for path in spellings {
        let answer = gateway.send(post(path, ""));
        assert_eq!((answer.status, outcome(&answer)), (400, "rejected"), "{path}");
        assert_eq!(answer.json()["code"], "key_missing", "{path}");
    }
    assert_eq!(upstream.seen().len(), 0);
    for (at, path) in spellings.iter().enumerate() {
        let answer = gateway.send(post(path, &format!("Idempotency-Key: spelling-{at}\r\n")));
        assert_eq!(outcome(&answer), "stored", "{path}");
        assert_eq!(upstream.seen()[at].line, format!("POST {path} HTTP/1.1"), "the bytes go on as they came");
    }
    for path in ["/free", "/FREE/", "/orders/../free"] {
        assert_eq!(outcome(&gateway.send(post(path, KEY))), "", "{path} is not protected");
    }
    for path in ["/orders2", "/orders/7", "/order", "/"] {
        assert_eq!(gateway.send(post(path, "")).status, 200, "{path} is another one");
    }
}

#[test]
fn own_paths_are_own_however_they_are_written() {
    let upstream = Scripted::answering(OK);
    let gateway = Gateway::start(&upstream.url(), "");
    for path in
        ["//.onceward/resolve", "/.ONCEWARD/resolve", "/x/../.onceward", "/.onceward;x/resolve", "/%2eonceward%2Fx"]
    {
        let answer = gateway.send(post(path, KEY));
        assert_eq!((answer.status, outcome(&answer)), (404, "rejected"), "{path}");
    }
    for path in ["/.idempotency/policy", "//.idempotency/policy/", "/.Idempotency//policy?x"] {
        let answer = gateway.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!((answer.status, answer.one("content-type")), (200, "application/json"), "{path}");
    }
    assert_eq!(upstream.seen().len(), 0);
}

#[test]
fn invalid_target_is_rejected() {
    let upstream = Scripted::answering(OK);
    let gateway = Gateway::start(&upstream.url(), "");
    let targets = [
        "x",
        "*",
        "evil.example:80",
        "http://u:p@host/",
        "http://u@host/",
        "ftp://a/p",
        "/p#x",
        "/p?q#x",
        "http://a/p#x",
        "http://a?x#y",
        "http://a:b/p",
        "http://a,b/p",
    ];
    for target in targets {
        let answer = gateway.send(post(target, KEY));
        // What no parser takes has no problem to read.
        if !answer.body.is_empty() {
            assert_problem(&answer, "target_invalid", KEY);
        }
        assert_eq!(answer.status, 400, "{target}");
        let answer = gateway.send(post(target, ""));
        assert_eq!((answer.status, outcome(&answer)), (400, ""), "{target}");
    }
    for target in ["/p#x", "http://a?x#y"] {
        assert_problem(&gateway.send(post(target, KEY)), "target_invalid", KEY);
    }
    assert_eq!(upstream.seen().len(), 0);

    // On a connection that is used again, too, and for that request alone.
    let mut client = gateway.client();
    for _ in 0..2 {
        assert_eq!(client.ask(post("/p", "")).status, 200);
    }
    assert_eq!(client.ask(post("/p#x", "")).status, 400);
    assert_eq!(gateway.send(post("/p", "X-Line: POST /p#x HTTP/1.1\r\n")).status, 200);
    assert_eq!(gateway.send(post("http://shop/p", "")).status, 200);
    assert_eq!(gateway.send("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").status, 200);
    let seen: Vec<String> = upstream.seen().into_iter().map(|seen| seen.line).collect();
    let post = "POST /p HTTP/1.1";
    assert_eq!(seen, [post, post, post, post, "OPTIONS * HTTP/1.1"]);
}

#[test]
fn invalid_host_is_rejected() {
    let upstream = Scripted::answering(OK);
    let gateway = Gateway::start(&upstream.url(), "");
    for host in [
        "Host: ###",
        "Host: a@x",
        "Host: x, y",
        "Host: x,y",
        "Host: x/evil",
        "Host: a b",
        "Host: a:b",
        "Host: a:99999",
        "Host: ::1",
        "Host: [::1",
        "Host: :80",
        "Host: a?x",
        "Host: caf\u{e9}",
        "Host: a\r\nHost: a",
        "X: y",
    ] {
        let request = |key| format!("POST /orders HTTP/1.1\r\n{host}\r\n{key}Content-Length: 2\r\n\r\nhi");
        assert_problem(&gateway.send(request(KEY)), "host_invalid", KEY);
        let answer = gateway.send(request(""));
        assert_eq!((answer.status, outcome(&answer)), (400, ""), "{host}");
        assert_eq!(answer.json()["code"], "host_invalid", "{host}");
    }
    assert_eq!(upstream.seen().len(), 0);
    for host in ["shop.example", "my_service:8080", "10.0.0.1", "[2001:db8::1]:8080"] {
        let answer = gateway.send(format!("POST /orders HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\n\r\nhi"));
        assert_eq!(answer.status, 200, "{host}");
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A gateway at a known place.
#[cfg(target_os = "linux")]
fn gateway_at(listen: SocketAddr, upstream: &str) -> Gateway {
    let settings = format!("upstream = {upstream:?}\nstore = \"memory:\"\n[policy]\nprincipal = []\n");
    Gateway::at_places(&settings, listen, free_address())
}

#[cfg(target_os = "linux")]
#[test]
fn gateway_that_is_its_own_upstream_detects_the_loop() {
    let listen = free_address();
    let gateway = gateway_at(listen, &format!("http://localhost:{}", listen.port()));
    let unkeyed = gateway.send(post("/orders", ""));
    assert_eq!((unkeyed.status, outcome(&unkeyed)), (508, ""), "{unkeyed:?}");
    assert_eq!(unkeyed.json()["code"], "loop_detected");
    assert_problem(&gateway.send(post("/orders", KEY)), "loop_detected", KEY);
    let lines = || gateway.log().lines().filter(|line| line.contains("is its own upstream")).count();
    poll("one line a request", || (lines() >= 2).then_some(()));
    assert_eq!(lines(), 2, "one line a request");
    // Nothing is left of the key, so that it works once the settings do.
    let asked = gateway.send(format!("GET /.idempotency/operation HTTP/1.1\r\nHost: a\r\n{KEY}\r\n"));
    assert_eq!((asked.status, outcome(&asked)), (404, "released"));
}

#[cfg(target_os = "linux")]
#[test]
fn loop_by_way_of_another_gateway_is_detected() {
    let (first, second) = (free_address(), free_address());
    let one = gateway_at(first, &format!("http://localhost:{}", second.port()));
    let other = gateway_at(second, &format!("http://{first}"));
    for (at, gateway) in [&one, &other].into_iter().enumerate() {
        let key = format!("Idempotency-Key: loop-key-number-{at}\r\n");
        assert_problem(&gateway.send(post("/orders", &key)), "loop_detected", &key);
        let unkeyed = gateway.send(post("/orders", ""));
        assert_eq!((unkeyed.status, outcome(&unkeyed)), (508, ""));
        for gateway in [&one, &other] {
            let asked = gateway.send(format!("GET /.idempotency/operation HTTP/1.1\r\nHost: a\r\n{key}\r\n"));
            assert_eq!((asked.status, outcome(&asked)), (404, "released"), "the key is free in both");
        }
    }
}

/// Two gateways in a row, and a service that calls another one through its own gateway, are none.
#[test]
fn gateways_in_a_row_are_no_loop() {
    let upstream = Scripted::answering(OK);
    let inner = Gateway::start(&upstream.url(), "");
    let outer = Gateway::start(&format!("http://{}", inner.listen), "");
    assert_eq!(outcome(&outer.send(post("/orders", KEY))), "stored");
    let seen = &upstream.seen()[0];
    assert_eq!(seen.all("onceward-hops").len(), 2);
    let copied: String = seen
        .all("onceward-hops")
        .iter()
        .map(|hop| format!("Onceward-Hops: {}\r\n", String::from_utf8_lossy(hop)))
        .collect();
    assert_eq!(outer.send(post("/payments", &copied)).status, 200);
}

/// A listener that takes no connections, as an address from which no packet comes back.
#[cfg(target_os = "linux")]
fn dead(address: SocketAddr) -> (socket2::Socket, Vec<TcpStream>) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(0).unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        waiting.push(stream);
    }
    (socket, waiting)
}

#[cfg(target_os = "linux")]
#[test]
fn dead_addresses_before_a_good_one_are_passed_by_and_remembered() {
    let listener = TcpListener::bind("127.0.0.9:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let upstream = Scripted::on(listener, |conversation| {
        while conversation.request().is_some() {
            conversation.say(OK);
        }
    });
    let _dead: Vec<_> = (2..5).map(|n| dead(SocketAddr::from(([127, 0, 0, n], port)))).collect();
    let settings =
        format!("upstream = \"http://shop.test:{port}\"\nstore = \"memory:\"\n[limits]\nupstream_idle = \"0s\"\n");
    let names: String = [2, 3, 4, 9].iter().map(|n| format!("127.0.0.{n} shop.test\n")).collect();
    let gateway = Gateway::with_names(&settings, &names);
    let mut took = Vec::new();
    for _ in 0..3 {
        let started = Instant::now();
        assert_eq!(gateway.send(post("/orders", "")).body, b"ok");
        took.push(started.elapsed());
    }
    assert_eq!(upstream.seen().len(), 3);
    assert!(took[1].min(took[2]) * 3 < took[0], "dead addresses were tried again: {took:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn name_that_moved_is_looked_up_again_under_steady_load() {
    let serving = |listener: TcpListener, word: &'static str| {
        Scripted::on(listener, move |conversation| {
            while conversation.request().is_some() {
                conversation.say(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{word}", word.len()));
            }
        })
    };
    let first = TcpListener::bind("127.0.0.2:0").unwrap();
    let port = first.local_addr().unwrap().port();
    let _first = serving(first, "first");
    let _second = serving(TcpListener::bind(("127.0.0.3", port)).unwrap(), "second");
    let settings = format!(
        "upstream = \"http://shop.test:{port}\"\nstore = \"memory:\"\n[limits]\nupstream_idle = \"30s\"\nupstream_max_age = \"300ms\"\n"
    );
    let gateway = Gateway::with_names(&settings, "127.0.0.2 shop.test\n");
    let mut client = gateway.client();
    assert_eq!(client.ask(post("/", "")).body, b"first");
    gateway.set_names("127.0.0.3 shop.test\n");
    // Never idle for longer than it takes to ask again.
    let until = Instant::now() + PATIENCE;
    while client.ask(post("/", "")).body != b"second" {
        assert!(Instant::now() < until, "the old server is asked for ever");
    }
    for _ in 0..10 {
        assert_eq!(client.ask(post("/", "")).body, b"second");
    }
}

/// Gunicorn and others close when their announced time is over, and a request that crosses that is lost.
#[test]
fn connection_is_not_used_past_half_of_its_announced_keep_alive() {
    for (announced, is_used_again) in
        [("Keep-Alive: timeout=0\r\n", false), ("Keep-Alive: timeout=60, max=9\r\n", true)]
    {
        let upstream = Scripted::answering(format!("HTTP/1.1 200 OK\r\n{announced}Content-Length: 2\r\n\r\nok"));
        let gateway = Gateway::start(&upstream.url(), "[limits]\nupstream_idle = \"30s\"");
        for n in 0..20 {
            assert_eq!(
                outcome(&gateway.send(post("/orders", &format!("Idempotency-Key: keep-alive-{n}\r\n")))),
                "stored"
            );
        }
        assert_eq!(upstream.connections() < 20, is_used_again, "{announced}: {} connections", upstream.connections());
    }
}

/// The forwarding headers that the upstream saw.
fn forwarding(upstream: &Scripted) -> Vec<(String, String)> {
    let seen = upstream.seen().pop().unwrap();
    let is_forwarding = |name: &str| {
        name.starts_with("x-forwarded")
            || name.starts_with("x_forwarded")
            || name == "forwarded"
            || name.starts_with("x-real")
    };
    let mut all: Vec<_> = seen
        .headers
        .into_iter()
        .filter(|(name, _)| is_forwarding(name))
        .map(|(name, value)| (name, String::from_utf8(value).unwrap()))
        .collect();
    all.sort();
    all
}

const FORGED: &str = "X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\n\
    X-Forwarded-Port: 443\r\nX_Forwarded_For: 3.3.3.3\r\nX-Real-IP: 1.1.1.1\r\nForwarded: for=1.1.1.1;proto=https\r\n";

#[test]
fn forwarded_headers_are_believed_from_trusted_proxies_alone() {
    let upstream = Scripted::answering(OK);
    let expect = |all: &[(&str, &str)]| {
        let all: Vec<_> = all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert_eq!(forwarding(&upstream), all);
    };
    let own = [
        ("forwarded", "for=127.0.0.1;host=\"shop\";proto=http"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "shop"),
        ("x-forwarded-proto", "http"),
        ("x-real-ip", "127.0.0.1"),
    ];
    for settings in ["", "trusted_proxies = [\"10.0.0.0/8\", \"::1\"]"] {
        let gateway = Gateway::start(&upstream.url(), settings);
        for key in ["", KEY] {
            gateway.send(post("/orders", &format!("{FORGED}{key}")));
            expect(&own);
        }
        assert!(gateway.logged("were replaced").contains("trusted_proxies"));
    }
    let gateway = Gateway::start(&upstream.url(), "trusted_proxies = [\"127.0.0.0/8\"]");
    gateway.send(post("/orders", FORGED));
    expect(&[
        ("forwarded", "for=1.1.1.1;proto=https, for=127.0.0.1"),
        ("x-forwarded-for", "1.1.1.1, 2.2.2.2, 127.0.0.1"),
        ("x-forwarded-host", "evil"),
        ("x-forwarded-port", "443"),
        ("x-forwarded-proto", "https"),
        ("x-real-ip", "1.1.1.1"),
        ("x_forwarded_for", "3.3.3.3"),
    ]);
}

#[test]
fn foreign_protocols_get_a_clear_end_and_one_log_line() {
    let upstream = Scripted::answering(OK);
    let gateway = Gateway::start(&upstream.url(), "");
    let speak = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(gateway.listen).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        heard
    };
    let hello = [&b"\x16\x03\x01\x00\xf8\x01\x00\x00\xf4\x03\x03"[..], &[7; 238]].concat();
    assert_eq!(speak(&hello)[..], [0x15, 0x03, 0x01, 0x00, 0x02, 0x02, 0x28], "a TLS alert");
    // As gRPC clients begin: SETTINGS follow at once.
    let heard = speak(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    assert_eq!((heard[3], heard[9 + 3], heard[9 + 16]), (4, 7, 0x0d), "SETTINGS, GOAWAY, HTTP_1_1_REQUIRED: {heard:?}");
    assert!(String::from_utf8_lossy(&heard).contains("HTTP/1.1"));
    assert!(
        speak(b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").starts_with(b"HTTP/1.1 400 ")
    );
    let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    let answer = gateway.send(upgrade);
    assert_eq!((answer.status, answer.body.as_slice(), answer.one("upgrade")), (200, b"ok".as_slice(), ""));
    for line in ["speaks TLS", "speaks HTTP/2", "PROXY protocol", "upgrade to h2c"] {
        gateway.logged(line);
        assert_eq!(gateway.log().matches(line).count(), 1, "{line}");
    }
    assert_eq!(upstream.seen().len(), 1, "nothing of the others was passed on");
}

/// Sends a keyed upload whole before it reads, as many clients do.
fn upload(address: SocketAddr, bytes: usize, chunked: bool) -> Answer {
    let mut client = Client::connect(address);
    let mut writer = client.writer();
    writer.set_write_timeout(Some(PATIENCE)).unwrap();
    let length = if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {bytes}") };
    let write = move || -> std::io::Result<()> {
        write!(writer, "POST /upload HTTP/1.1\r\nHost: shop\r\n{KEY}{length}\r\n\r\n")?;
        let piece = vec![b'x'; 1 << 16];
        for _ in 0..bytes / piece.len() {
            if chunked {
                write!(writer, "{:x}\r\n", piece.len())?;
            }
            writer.write_all(&piece)?;
            if chunked {
                writer.write_all(b"\r\n")?;
            }
        }
        if chunked { writer.write_all(b"0\r\n\r\n") } else { Ok(()) }
    };
    let sending = std::thread::spawn(write);
    let sent = sending.join().unwrap();
    assert!(sent.is_ok(), "the upload was reset: {sent:?}");
    client.answer(false)
}

#[test]
fn keyed_upload_over_the_limit_gets_413_after_it_was_sent_whole() {
    let upstream = Scripted::answering(OK);
    let gateway = Gateway::start(&upstream.url(), "");
    for bytes in [2 << 20, 8 << 20, 48 << 20] {
        for chunked in [false, true] {
            assert_problem(&upload(gateway.listen, bytes, chunked), "request_too_large", KEY);
        }
    }
    assert_eq!(upstream.seen().len(), 0);
    // What is refused for its head is read on as well.
    let mut client = gateway.client();
    let body = vec![b'x'; 8 << 20];
    client.say(format!("POST x HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
    client.say(&body);
    assert_eq!(client.answer(false).status, 400);
}

#[test]
fn signals_without_a_meaning_do_not_end_the_process() {
    let upstream = Scripted::answering(OK);
    let mut gateway = Gateway::start(&upstream.url(), "");
    for signal in ["HUP", "USR1", "USR2", "ALRM", "VTALRM", "PROF", "IO", "PWR", "XFSZ", "RTMIN", "PIPE", "WINCH"] {
        gateway.signal(signal);
        assert_eq!(gateway.send(post("/orders", "")).status, 200, "{signal}");
    }
    assert!(gateway.logged("SIGHUP").contains("restart"));
    gateway.signal("QUIT");
    assert_eq!(gateway.ended().code(), Some(0));
    assert!(gateway.log().contains("SIGQUIT: draining"));
}

/// A terminal that is closed takes with it whoever could stop the process.
#[cfg(target_os = "linux")]
#[test]
fn sighup_of_a_closed_terminal_drains() {
    let upstream = Scripted::answering(OK);
    let folder = tempfile::tempdir().unwrap();
    let settings = format!("upstream = {:?}\nstore = \"memory:\"\n", upstream.url());
    std::fs::write(folder.path().join("onceward.toml"), settings).unwrap();
    let serve = format!("exec {} serve --listen 127.0.0.1:0 --admin 127.0.0.1:0 2>log", env!("CARGO_BIN_EXE_onceward"));
    let mut terminal = std::process::Command::new("script");
    terminal.args(["-qec", &serve, "/dev/null"]).current_dir(folder.path());
    terminal.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
    let mut terminal = terminal.spawn().unwrap();
    let logged = |text: &str| {
        poll(text, || {
            let log = std::fs::read_to_string(folder.path().join("log")).ok()?;
            log.contains(text).then_some(())
        });
    };
    logged("listening on");
    terminal.kill().unwrap();
    terminal.wait().unwrap();
    logged("SIGHUP: draining");
    logged("stopped");
}

#[test]
fn drain_delay_takes_new_claims_while_readyz_is_red() {
    let upstream = Scripted::answering(OK);
    for (signal, is_delayed) in [("TERM", true), ("QUIT", true), ("INT", false)] {
        let mut gateway = Gateway::start(&upstream.url(), "drain = \"20s\"\ndrain_delay = \"2s\"");
        let mut client = gateway.client();
        assert_eq!(outcome(&client.ask(post("/orders", "Idempotency-Key: before-0123\r\n"))), "stored");
        gateway.signal(signal);
        if is_delayed {
            poll("a red /readyz", || (gateway.page("/readyz", "").0 == 503).then_some(()));
            assert_eq!(outcome(&client.ask(post("/orders", "Idempotency-Key: while-0123\r\n"))), "stored", "{signal}");
            assert_eq!(gateway.send(post("/orders", "")).status, 200);
        }
        assert_eq!(gateway.ended().code(), Some(0));
        assert_eq!(gateway.log().contains("and draining in"), is_delayed, "{signal}");
    }
}

#[test]
fn probes_get_through_idle_connections_at_the_operators_listener() {
    let upstream = Scripted::answering(OK);
    let gateway = Gateway::start(&upstream.url(), "");
    // Ten were answered once, thirty send half of a head, the others nothing. Each does so before the next one
    // connects, since the longest idle connections are closed once all places are taken.
    let connect = |number: usize| {
        let mut client = Client::connect(gateway.admin);
        if number < 10 {
            assert_eq!(client.ask("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").status, 200);
        }
        if number < 40 {
            client.say("GET /healthz HTTP/1.1\r\nHo");
        }
        client
    };
    let idle: Vec<Client> = (0..100).map(connect).collect();
    for _ in 0..5 {
        let started = Instant::now();
        assert_eq!(gateway.page("/healthz", "").0, 200);
        assert!(started.elapsed() < PATIENCE / 5, "idle connections hold it up");
    }
    drop(idle);
}

#[test]
fn operators_listener_without_a_token_answers_to_local_and_literal_hosts_alone() {
    let upstream = Scripted::answering(OK);
    let ask = |gateway: &Gateway, host: &str, more: &str| {
        Client::connect(gateway.admin).ask(format!("GET /status HTTP/1.1\r\nHost: {host}\r\n{more}\r\n")).status
    };
    let open = Gateway::start(&upstream.url(), "");
    for host in ["localhost", "localhost:8081", "127.0.0.1:8081", "[::1]:8081"] {
        assert_eq!(ask(&open, host, ""), 200, "{host}");
    }
    for host in ["rebind.example", "localhost.evil.example:8081", "127.0.0.1.evil.example", "onceward"] {
        assert_eq!(ask(&open, host, ""), 421, "{host}");
    }
    let guarded = Gateway::start(&upstream.url(), "[admin]\ntoken = \"secret\"\n");
    assert_eq!(ask(&guarded, "onceward:8081", "Authorization: Bearer secret\r\n"), 200);
}

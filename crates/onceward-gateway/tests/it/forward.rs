//! Forwarding, over real sockets: what the upstream sees of a request, and the client of an answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex};

use crate::support::{Answer, Gateway, Lines, PATIENCE, chunked, headers};

pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A request as the upstream sees it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) line: String,
    pub(crate) headers: Lines,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Lines,
    /// Which connection it came on, from 1.
    pub(crate) connection: usize,
}

impl Seen {
    pub(crate) fn all(&self, name: &str) -> Vec<&[u8]> {
        self.headers.iter().filter(|(header, _)| header == name).map(|(_, value)| value.as_slice()).collect()
    }

    fn names(&self) -> Vec<&str> {
        self.headers.iter().map(|(name, _)| name.as_str()).collect()
    }
}

/// All requests, in the order of their heads.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    requests: Mutex<Vec<Seen>>,
    came: Condvar,
}

impl Heard {
    fn push(&self, seen: Seen) {
        self.requests.lock().unwrap().push(seen);
        self.came.notify_all();
    }

    /// With its body; one connection has one request at a time.
    fn complete(&self, seen: &Seen) {
        let mut requests = self.requests.lock().unwrap();
        let head = requests.iter_mut().rev().find(|request| request.connection == seen.connection).unwrap();
        head.clone_from(seen);
    }
}

/// A connection to the scripted upstream.
pub(crate) struct Conversation {
    stream: BufReader<TcpStream>,
    number: usize,
    seen: Arc<Heard>,
}

impl Conversation {
    /// The head of the next request, or nothing where the connection ends.
    pub(crate) fn head(&mut self) -> Option<Seen> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) | Err(_) => None,
            Ok(_) => {
                let headers = headers(&mut self.stream);
                let seen = Seen { line: line.trim_end().into(), headers, connection: self.number, ..Seen::default() };
                self.seen.push(seen.clone());
                Some(seen)
            }
        }
    }

    /// The next request, body and all.
    pub(crate) fn request(&mut self) -> Option<Seen> {
        let mut seen = self.head()?;
        if seen.all("transfer-encoding") == [b"chunked"] {
            (seen.body, seen.trailers, _) = chunked(&mut self.stream);
        } else if let [length] = seen.all("content-length")[..] {
            let length = std::str::from_utf8(length).unwrap().parse().unwrap();
            let mut body = vec![0; length];
            self.stream.read_exact(&mut body).ok()?;
            seen.body = body;
        }
        self.seen.complete(&seen);
        Some(seen)
    }

    pub(crate) fn say(&mut self, bytes: impl AsRef<[u8]>) {
        // Whether the gateway still listens is its matter.
        let _ = self.stream.get_mut().write_all(bytes.as_ref());
    }
}

/// An upstream that does what a test says, and remembers what came.
pub(crate) struct Scripted {
    address: SocketAddr,
    seen: Arc<Heard>,
    connections: Arc<AtomicUsize>,
}

impl Scripted {
    pub(crate) fn start(script: impl Fn(&mut Conversation) + Clone + Send + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), script)
    }

    pub(crate) fn on(listener: TcpListener, script: impl Fn(&mut Conversation) + Clone + Send + 'static) -> Self {
        let (seen, connections) = (Arc::<Heard>::default(), Arc::<AtomicUsize>::default());
        let upstream = Self { address: listener.local_addr().unwrap(), seen, connections };
        let (seen, connections) = (Arc::clone(&upstream.seen), Arc::clone(&upstream.connections));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let number = connections.fetch_add(1, Ordering::SeqCst) + 1;
                let (script, seen) = (script.clone(), Arc::clone(&seen));
                std::thread::spawn(move || script(&mut Conversation { stream: BufReader::new(stream), number, seen }));
            }
        });
        upstream
    }

    /// Answers every request with the same bytes.
    pub(crate) fn answering(answer: impl AsRef<[u8]> + Clone + Send + 'static) -> Self {
        Self::start(move |conversation| {
            while conversation.request().is_some() {
                conversation.say(&answer);
            }
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.requests.lock().unwrap().clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// A test's word to a script, and back.
pub(crate) fn baton() -> (impl Fn() + Clone + Send + 'static, Arc<Mutex<Receiver<()>>>) {
    let (sender, receiver) = channel();
    let say = move || {
        let _ = sender.send(());
    };
    (say, Arc::new(Mutex::new(receiver)))
}

pub(crate) fn wait(baton: &Mutex<Receiver<()>>) {
    baton.lock().unwrap().recv_timeout(PATIENCE).expect("nobody gave the word");
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n")
}

/// A problem of a request without a key says nothing of keys.
fn assert_unkeyed_problem(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.one("content-type"), "application/problem+json");
    let problem = answer.json();
    assert_eq!(problem["code"], code);
    assert_eq!(problem["type"], format!("/.idempotency/policy#{code}"));
    assert!(problem.get("executed").is_none() && problem.get("retry").is_none(), "{problem}");
    assert_eq!(answer.one("idempotency-outcome"), "");
    assert!(!problem["detail"].as_str().unwrap().contains("key"), "{problem}");
}

#[test]
fn the_upstream_sees_the_clients_headers_and_no_hop_by_hop_ones() {
    let upstream = Scripted::answering(OK);
    let gateway = Gateway::start(&upstream.url(), "");
    let mut request = b"GET /a%2Fb?q=%20&q HTTP/1.1\r\nHost: shop.example:81\r\nZebra: 1\r\nApple: 1\r\nZebra: 2\r\n\
        Latin: caf\xe9\r\nConnection: keep-alive, Apple2\r\nApple2: gone\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\n\
        TE: gzip\r\nUpgrade: h2c\r\nProxy-Authorization: Basic x\r\nPrefer: wait=3, respond-async\r\n\
        Via: 1.0 edge\r\nX-Forwarded-For: 10.0.0.1\r\nX-Forwarded-For: 10.0.0.2\r\nX-Forwarded-Proto: https\r\n"
        .to_vec();
    request.extend_from_slice(
        b"Onceward-Claim: forged\r\nonceward-Anything: x\r\nOnceward_Claim: forged\r\nIdempotency_Key: k\r\nCustom_Name: stays\r\n\r\n",
    );
    assert_eq!(gateway.send(request).status, 200);

    let seen = &upstream.seen()[0];
    assert_eq!(seen.line, "GET /a%2Fb?q=%20&q HTTP/1.1");
    assert_eq!(seen.all("host"), [b"shop.example:81"]);
    assert_eq!(seen.all("zebra"), [b"1", b"2"]);
    assert_eq!(seen.all("latin"), [b"caf\xe9"]);
    assert_eq!(seen.all("prefer"), [b"wait=3, respond-async"], "it is for the service where there is no key");
    assert_eq!(seen.all("x-forwarded-for"), [b"127.0.0.1"]);
    assert_eq!(seen.all("x-forwarded-proto"), [b"http"]);
    assert_eq!(seen.all("x-forwarded-host"), [b"shop.example:81"]);
    assert_eq!(seen.all("via"), [b"1.0 edge".as_slice(), b"1.1 onceward"]);
    assert_eq!(seen.all("custom_name"), [b"stays"]);
    for gone in [
        "connection",
        "apple2",
        "keep-alive",
        "proxy-connection",
        "te",
        "upgrade",
        "proxy-authorization",
        "onceward-claim",
        "onceward-anything",
        "onceward_claim",
        "idempotency_key",
    ] {
        assert_eq!(seen.all(gone), [b""; 0], "{gone}");
    }
    let place = |name| seen.names().iter().position(|seen| *seen == name).unwrap();
    assert!(place("zebra") < place("apple") && place("apple") < place("latin"), "{:?}", seen.names());
}

#[test]
fn the_client_sees_the_upstreams_headers_and_no_hop_by_hop_ones() {
    let upstream = Scripted::answering(
        b"HTTP/1.1 201 Created\r\nZebra: 1\r\nApple: 1\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nLatin: caf\xe9\r\nConnection: Apple2\r\n\
        Apple2: gone\r\nKeep-Alive: timeout=5\r\nVia: 1.1 app\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Length: 2\r\n\r\nok",
    );
    let gateway = Gateway::start(&upstream.url(), "");
    let answer = gateway.send(get("/"));
    assert_eq!((answer.status, answer.body.as_slice(), answer.is_whole), (201, b"ok".as_slice(), true));
    let names: Vec<&str> = answer.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["zebra", "apple", "set-cookie", "set-cookie", "latin", "via", "via", "date", "content-length"]);
    assert_eq!(answer.all("set-cookie"), [b"a", b"b"]);
    assert_eq!(answer.all("latin"), [b"caf\xe9"]);
    assert_eq!(answer.all("via"), [b"1.1 app".as_slice(), b"1.1 onceward"]);
    assert_eq!(answer.one("date"), "Thu, 01 Jan 1970 00:00:00 GMT");
}

#[test]
fn the_host_is_the_clients_or_the_upstreams() {
    let upstream = Scripted::answering(OK);
    let preserve = Gateway::start(&upstream.url(), "");
    let own = Gateway::start(&upstream.url(), "host = \"upstream\"");
    // An absolute target counts for more than the header.
    preserve.send("GET http://target.example/x HTTP/1.1\r\nHost: other\r\n\r\n");
    preserve.send("GET /old HTTP/1.0\r\n\r\n");
    own.send(get("/y"));
    let seen = upstream.seen();
    assert_eq!((seen[0].line.as_str(), seen[0].all("host")), ("GET /x HTTP/1.1", vec![b"target.example".as_slice()]));
    let address = upstream.address.to_string();
    assert_eq!(seen[1].all("host"), [address.as_bytes()]);
    assert_eq!(seen[2].all("host"), [address.as_bytes()]);
    assert_eq!(seen[2].all("x-forwarded-host"), [b"shop"]);
}

#[test]
fn bodies_stream_both_ways_unbuffered() {
    // Each side speaks its second part only after the other has heard the first one.
    let upstream = Scripted::start(|conversation| {
        conversation.head();
        let mut first = [0; 5];
        conversation.stream.read_exact(&mut first).unwrap();
        conversation.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nheard\r\n");
        let mut second = [0; 5];
        conversation.stream.read_exact(&mut second).unwrap();
        conversation.say([b"5\r\n".as_slice(), &second, b"\r\n0\r\n\r\n"].concat());
    });
    let gateway = Gateway::start(&upstream.url(), "");
    let mut client = gateway.client();
    client.say("PUT /file HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nfirst");
    assert_eq!(client.head().status, 200);
    assert_eq!((client.line(), client.exactly(7)), ("5".into(), b"heard\r\n".to_vec()));
    client.say("other");
    assert_eq!((client.line(), client.exactly(7)), ("5".into(), b"other\r\n".to_vec()));
}

#[test]
fn large_bodies_pass_whole() {
    let upstream = Scripted::start(|conversation| {
        while let Some(seen) = conversation.request() {
            conversation.say(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", seen.body.len()));
            conversation.say(&seen.body);
        }
    });
    let gateway = Gateway::start(&upstream.url(), "");
    let body: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let mut client = gateway.client();
    let mut writer = client.writer();
    let sent = body.clone();
    std::thread::spawn(move || {
        write!(writer, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", sent.len()).unwrap();
        writer.write_all(&sent).unwrap();
    });
    assert!(client.answer(false).body == body, "the body changed on its way");
    assert!(upstream.seen()[0].body == body, "the body changed on its way there");
}

#[test]
fn trailers_pass_both_ways_without_forged_ones() {
    let upstream = Scripted::answering(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Sum\r\n\r\n2\r\nok\r\n0\r\nSum: 7\r\n\r\n",
    );
    let gateway = Gateway::start(&upstream.url(), "");
    let answer = gateway.send(
        "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: Mine, Onceward-Claim, Idempotency_Key, Idempotency-Key\r\nTransfer-Encoding: chunked\r\n\r\n\
        2\r\nhi\r\n0\r\nMine: 1\r\nOnceward-Claim: forged\r\nIdempotency_Key: forged\r\nIdempotency-Key: forged\r\n\r\n",
    );
    assert_eq!((answer.body.as_slice(), answer.is_whole), (b"ok".as_slice(), true));
    assert_eq!(answer.trailers, [("sum".to_owned(), b"7".to_vec())]);
    let seen = &upstream.seen()[0];
    assert_eq!(
        (seen.body.as_slice(), seen.trailers.as_slice()),
        (b"hi".as_slice(), [("mine".to_owned(), b"1".to_vec())].as_slice())
    );
}

#[test]
fn expect_is_answered_here() {
    let upstream = Scripted::answering(OK);
    let gateway = Gateway::start(&upstream.url(), "");
    let mut client = gateway.client();
    client.say("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    assert_eq!(client.head().status, 100);
    client.say("hi");
    assert_eq!(client.answer(false).status, 200);
    let seen = &upstream.seen()[0];
    assert_eq!((seen.all("expect").len(), seen.body.as_slice()), (0, b"hi".as_slice()));
}

#[test]
fn a_connection_is_used_again() {
    let upstream = Scripted::answering(OK);
    let gateway = Gateway::start(&upstream.url(), "[limits]\nupstream_idle = \"30s\"");
    for _ in 0..20 {
        assert_eq!(gateway.send(get("/")).body, b"ok");
    }
    // The pool has it back right after the client has its answer, so that a quick client may miss it now and then.
    assert_eq!(upstream.seen().len(), 20);
    assert!(upstream.connections() <= 10, "{} connections", upstream.connections());
}

#[test]
fn no_connection_is_used_again_where_none_may_idle() {
    let upstream = Scripted::answering(OK);
    let gateway = Gateway::start(&upstream.url(), "[limits]\nupstream_idle = \"0s\"");
    for path in ["/1", "/2", "/3"] {
        assert_eq!(gateway.send(get(path)).body, b"ok");
    }
    let connections: Vec<usize> = upstream.seen().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections, [1, 2, 3]);
}

#[test]
fn a_connection_that_the_upstream_closed_is_not_used_again() {
    let (closed, has_closed) = baton();
    let upstream = Scripted::start(move |conversation| {
        conversation.request();
        // Closed without saying that it would.
        conversation.say(OK);
        let _ = conversation.stream.get_ref().shutdown(Shutdown::Both);
        closed();
    });
    let gateway = Gateway::start(&upstream.url(), "[limits]\nupstream_idle = \"30s\"");
    for path in ["/1", "/2", "/3", "/4"] {
        assert_eq!(gateway.send(get(path)).body, b"ok", "{path}");
        wait(&has_closed);
    }
    assert_eq!(upstream.seen().len(), 4);
}

#[test]
fn what_the_upstream_says_unasked_is_no_answer() {
    let upstream = Scripted::start(|conversation| {
        conversation.request();
        // As some servers do when a connection has idled, here at once.
        conversation.say(format!("{OK}HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"));
        conversation.request();
    });
    let gateway = Gateway::start(&upstream.url(), "[limits]\nupstream_idle = \"30s\"");
    for path in ["/1", "/2", "/3"] {
        assert_eq!(gateway.send(get(path)).status, 200, "{path}");
    }
    assert_eq!(upstream.connections(), 3);
}

#[test]
fn an_early_answer_never_turns_a_body_into_a_request() {
    let (ended, has_ended) = baton();
    let upstream = Scripted::start(move |conversation| {
        // Answers heads, reads no body, and takes what follows for the next request.
        while conversation.head().is_some() {
            conversation.say(OK);
        }
        if conversation.number == 1 {
            ended();
        }
    });
    let gateway = Gateway::start(&upstream.url(), "[limits]\nupstream_idle = \"30s\"");
    let mut client = gateway.client();
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    client.say(format!("POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", smuggled.len()));
    assert_eq!(client.answer(false).body, b"ok");
    // The body comes after the answer, when its connection carries nothing any more.
    client.say(smuggled);
    wait(&has_ended);
    assert_eq!(gateway.send(get("/after")).body, b"ok");
    let lines: Vec<String> = upstream.seen().into_iter().map(|seen| seen.line).collect();
    assert_eq!(lines, ["POST /early HTTP/1.1", "GET /after HTTP/1.1"]);
}

#[test]
fn nothing_written_is_ever_sent_again() {
    for script in [
        (|conversation: &mut Conversation| drop(conversation.request())) as fn(&mut Conversation),
        |conversation| {
            conversation.head();
            let _ = conversation.stream.get_ref().shutdown(Shutdown::Both);
        },
        |conversation| {
            conversation.request();
            conversation.say("HTTP/1.1 200 OK\r\nContent-");
        },
        |conversation| {
            conversation.request();
            conversation.say("no HTTP at all\r\n\r\n");
        },
        |conversation| {
            conversation.request();
            conversation.say("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
        },
    ] {
        let upstream = Scripted::start(script);
        let gateway = Gateway::start(&upstream.url(), "");
        for (at, request) in
            [get("/"), "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi".into()].iter().enumerate()
        {
            assert_unkeyed_problem(&gateway.send(request), 502, "upstream_lost");
            assert_eq!(upstream.seen().len(), at + 1, "it was sent again");
        }
    }
}

#[test]
fn an_upstream_that_is_not_there_was_sent_nothing() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    drop(taken);
    let gateway = Gateway::start(&format!("http://{address}"), "");
    assert_unkeyed_problem(&gateway.send(get("/")), 502, "upstream_unreachable");

    let gateway = Gateway::start("http://no-such-host.invalid", "");
    assert_unkeyed_problem(&gateway.send(get("/")), 502, "upstream_unreachable");
    assert!(gateway.logged("the upstream gave no answer").contains("upstream_unreachable"));
}

#[test]
fn an_answer_that_does_not_begin_in_time_is_not_waited_for() {
    let upstream = Scripted::start(|conversation| {
        conversation.request();
        conversation.request();
    });
    let gateway = Gateway::start(&upstream.url(), "[limits]\nunkeyed_timeout = \"200ms\"");
    assert_unkeyed_problem(&gateway.send(get("/")), 504, "upstream_timeout");
    assert_eq!(upstream.seen().len(), 1);
}

#[test]
fn a_cut_answer_is_not_passed_as_whole() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\nhalf",
    ] {
        let upstream = Scripted::start(move |conversation| {
            conversation.request();
            conversation.say(answer);
        });
        let gateway = Gateway::start(&upstream.url(), "");
        let answer = gateway.send(get("/"));
        assert_eq!((answer.status, answer.is_whole), (200, false), "{answer:?}");
        assert_eq!(upstream.seen().len(), 1);
    }
}

#[test]
fn what_has_no_body_ends_at_its_head() {
    let upstream = Scripted::start(|conversation| {
        while let Some(seen) = conversation.request() {
            conversation.say(match seen.line.split(' ').next().unwrap() {
                "HEAD" => "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
                "DELETE" => "HTTP/1.1 204 No Content\r\n\r\n",
                _ => "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n",
            });
        }
    });
    let gateway = Gateway::start(&upstream.url(), "[limits]\nupstream_idle = \"30s\"");
    let mut client = gateway.client();
    let head = client.ask("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((head.status, head.one("content-length")), (200, "1000"));
    assert_eq!(client.ask("DELETE / HTTP/1.1\r\nHost: a\r\n\r\n").status, 204);
    assert_eq!(client.ask(get("/")).one("etag"), "\"a\"");
    let seen = upstream.seen();
    assert!(seen.iter().all(|seen| seen.all("content-length").is_empty() && seen.all("transfer-encoding").is_empty()));
}

#[test]
fn a_clients_hang_up_ends_a_request_without_a_key() {
    let (gone, upstream_noticed) = baton();
    let upstream = Scripted::start(move |conversation| {
        conversation.head();
        // Ends when the gateway closes.
        let _ = conversation.stream.read_to_end(&mut Vec::new());
        gone();
    });
    let gateway = Gateway::start(&upstream.url(), "");
    let mut client = gateway.client();
    client.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nsome");
    upstream.wait_for_requests(1);
    drop(client);
    wait(&upstream_noticed);
}

#[test]
fn conflicting_lengths_never_make_two_requests() {
    let upstream = Scripted::answering(OK);
    let gateway = Gateway::start(&upstream.url(), "");
    let inner = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let requests = [
        format!(
            "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}",
            inner.len() + 5
        ),
        format!("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: {}\r\n\r\n{inner}", inner.len()),
        format!("POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{inner}"),
        format!("POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n{inner}"),
    ];
    for request in requests {
        let before = upstream.seen().len();
        let mut client = gateway.client();
        client.say(&request);
        let answer = client.answer(false);
        let seen = &upstream.seen()[before..];
        // Either it is refused, or passed with one length; what follows is then the client's own next request, and no part
        // of the first one.
        assert!(answer.status == 400 || answer.status == 200, "{request:?}: {answer:?}");
        for seen in seen {
            let lengths = seen.all("content-length").len() + seen.all("transfer-encoding").len();
            assert!(lengths <= 1, "{request:?}: {seen:?}");
        }
        if answer.status == 400 {
            assert_eq!(seen.len(), 0, "{request:?}");
        }
    }
}

#[test]
fn an_upgrade_is_a_tunnel() {
    let upstream = Scripted::start(|conversation| {
        let seen = conversation.head().unwrap();
        assert_eq!(
            (seen.all("connection"), seen.all("upgrade")),
            (vec![b"upgrade".as_slice()], vec![b"websocket".as_slice()])
        );
        conversation.say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\nhello");
        let mut word = [0; 4];
        conversation.stream.read_exact(&mut word).unwrap();
        conversation.say(word.map(|byte| byte.to_ascii_uppercase()));
    });
    let gateway = Gateway::start(&upstream.url(), "");
    let mut client = gateway.client();
    let answer = client.ask("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n");
    assert_eq!((answer.status, answer.one("upgrade"), answer.one("sec-websocket-accept")), (101, "websocket", "x"));
    assert_eq!(client.exactly(5), b"hello");
    client.say("echo");
    assert_eq!(client.exactly(4), b"ECHO");
    assert!(client.is_closed());
}

#[test]
fn an_upgrade_that_the_upstream_declines_is_an_answer() {
    let upstream = Scripted::answering(OK);
    let gateway = Gateway::start(&upstream.url(), "");
    let mut client = gateway.client();
    let upgrade = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(client.ask(upgrade).body, b"ok");
    assert_eq!(client.ask(get("/next")).body, b"ok");
}

/// Through a tunnel of requests they would pass by the gateway: keyed ones unprotected, and with claims of their own making.
#[test]
fn no_tunnel_is_opened_to_a_protocol_of_requests() {
    let upstream = Scripted::answering(OK);
    let gateway = Gateway::start(&upstream.url(), "");
    for protocol in ["h2c", "HTTP/2.0", "TLS/1.0, HTTP/1.1", "websocket, h2c"] {
        let before = upstream.seen().len();
        let answer = gateway.send(format!(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
        ));
        assert_eq!((answer.status, &answer.body[..]), (200, &b"ok"[..]), "{protocol}");
        let seen = &upstream.seen()[before];
        for name in ["upgrade", "http2-settings"] {
            assert!(seen.all(name).is_empty(), "{protocol}: {name} was passed on");
        }
    }
}

#[test]
fn what_is_refused_before_its_key_is_looked_at_is_labelled_all_the_same() {
    let upstream = Scripted::answering(OK);
    let gateway = Gateway::start(&upstream.url(), "");
    for (status, head) in [
        (404, "POST /.onceward/x HTTP/1.1\r\nHost: a"),
        (400, "POST /orders HTTP/1.1\r\nHost: a\r\nHost: b"),
        (400, "POST /orders HTTP/1.1"),
        (400, "POST http://a/orders HTTP/1.1"),
    ] {
        let keyed = gateway.send(format!("{head}\r\nIdempotency-Key: k\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!((keyed.status, keyed.one("idempotency-outcome")), (status, "rejected"), "{head}");
        let other = gateway.send(format!("{head}\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!((other.status, other.all("idempotency-outcome").len()), (status, 0), "{head}");
    }
    assert_eq!(upstream.seen().len(), 0);
    // Before HTTP/1.1 nobody had to say it.
    assert_eq!(gateway.send("GET / HTTP/1.0\r\n\r\n").status, 200);
}

#[test]
fn paths_of_operators_are_not_there() {
    let upstream = Scripted::answering(OK);
    let gateway = Gateway::start(&upstream.url(), "");
    for path in ["/.onceward", "/.onceward/status", "/%2Eonceward/api"] {
        assert_eq!(gateway.send(get(path)).status, 404, "{path}");
    }
    let two_hosts = "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n";
    assert_eq!(gateway.send(two_hosts).status, 400, "which of the two is meant, others may see otherwise");
    assert_eq!(gateway.send("CONNECT shop:443 HTTP/1.1\r\nHost: shop:443\r\n\r\n").status, 405);
    assert_eq!(upstream.seen().len(), 0);
    assert_eq!(gateway.send(get("/.onceward2")).status, 200);
}

#[test]
fn an_upstream_that_is_trusted_is_spoken_to_by_tls() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let roots = folder.path().join("roots.pem");
    std::fs::write(&roots, certificate.cert.pem()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = rustls::pki_types::PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.cert.der().clone()], key)
        .unwrap();
    let tls = Arc::new(tls);
    let upstream = Scripted::start(move |conversation| {
        let session = rustls::ServerConnection::new(Arc::clone(&tls)).unwrap();
        let mut stream =
            BufReader::new(rustls::StreamOwned::new(session, conversation.stream.get_ref().try_clone().unwrap()));
        let mut line = String::new();
        while stream.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            headers(&mut stream);
            conversation.seen.push(Seen { line: line.clone(), connection: conversation.number, ..Seen::default() });
            stream.get_mut().write_all(OK.as_bytes()).unwrap();
            line.clear();
        }
    });
    let settings = |host: &str| {
        format!(
            "upstream = \"https://{host}:{}\"\nstore = \"memory:\"\n[limits]\nupstream_idle = \"30s\"",
            upstream.address.port()
        )
    };
    let trusted = [("SSL_CERT_FILE", roots.to_str().unwrap())];
    let gateway = Gateway::with(&settings("localhost"), &trusted);
    assert_eq!(gateway.send(get("/1")).body, b"ok");
    assert_eq!(gateway.send(get("/2")).body, b"ok");
    assert_eq!(upstream.seen().len(), 2);

    // Another name than the certificate's, and another authority than the trusted ones: no byte is sent.
    let gateway = Gateway::with(&settings("127.0.0.1"), &trusted);
    assert_unkeyed_problem(&gateway.send(get("/")), 502, "upstream_unreachable");
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&roots, other.cert.pem()).unwrap();
    let gateway = Gateway::with(&settings("localhost"), &trusted);
    assert_unkeyed_problem(&gateway.send(get("/")), 502, "upstream_unreachable");
    assert_eq!(upstream.seen().len(), 2);
}

impl Scripted {
    pub(crate) fn wait_for_requests(&self, count: usize) {
        let requests = self.seen.requests.lock().unwrap();
        let waited = self.seen.came.wait_timeout_while(requests, PATIENCE, |requests| requests.len() < count);
        assert!(waited.unwrap().0.len() >= count, "the requests did not come");
    }
}

/// A request with a key, and more headers.
fn keyed(key: &str, headers: &str) -> String {
    format!("POST /orders HTTP/1.1\r\nHost: shop\r\nIdempotency-Key: {key}\r\n{headers}Content-Length: 2\r\n\r\nhi")
}

fn outcome(answer: &Answer) -> (u16, &str) {
    (answer.status, answer.one("idempotency-outcome"))
}

#[test]
fn a_keyed_request_bears_its_claim_and_nothing_that_was_answered_here() {
    let upstream = Scripted::answering(OK);
    let gateway = Gateway::start(&upstream.url(), "");
    let more = "Onceward-Claim: forged\r\nOnceward_Claim: forged\r\nidempotency_key: forged\r\nPrefer: wait=5\r\nPrefer: respond-async, Wait=3\r\n\
        Expect: 100-continue\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nTE: trailers\r\nX-Own: 1\r\n";
    let answer = gateway.send(keyed("\"order-7\"", more));
    assert_eq!(outcome(&answer), (200, "stored"));
    let answer = gateway.send(keyed("other", ""));
    assert_eq!(outcome(&answer), (200, "stored"));

    let seen = upstream.seen();
    assert_eq!(seen[0].all("idempotency-key"), [b"\"order-7\""]);
    assert_eq!(seen[0].all("prefer"), [b"respond-async"]);
    assert_eq!((seen[0].all("x-own"), seen[0].body.as_slice()), (vec![b"1".as_slice()], b"hi".as_slice()));
    for gone in ["onceward_claim", "idempotency_key", "expect", "connection", "upgrade", "te"] {
        assert_eq!(seen[0].all(gone), [b""; 0], "{gone}");
    }
    let claims: Vec<&[u8]> = seen.iter().flat_map(|seen| seen.all("onceward-claim")).collect();
    assert_eq!(claims.len(), 2);
    assert!(claims.iter().all(|claim| claim.len() > 32 && *claim != b"forged") && claims[0] != claims[1], "{claims:?}");
}

#[test]
fn a_chunked_keyed_request_arrives_with_its_length_and_without_trailers() {
    let upstream = Scripted::answering(OK);
    let gateway = Gateway::start(&upstream.url(), "");
    let answer = gateway.send(
        "POST /orders HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\nTransfer-Encoding: chunked\r\nTrailer: Sum\r\n\r\n\
        1\r\nh\r\n1\r\ni\r\n0\r\nSum: 1\r\n\r\n",
    );
    assert_eq!(outcome(&answer), (200, "stored"));
    let seen = &upstream.seen()[0];
    assert_eq!((seen.all("content-length"), seen.body.as_slice()), (vec![b"2".as_slice()], b"hi".as_slice()));
    assert!(seen.all("transfer-encoding").is_empty() && seen.all("trailer").is_empty() && seen.trailers.is_empty());
}

#[test]
fn a_keyed_request_that_was_not_sent_is_free_to_be_sent_again() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    drop(taken);
    let gateway = Gateway::start(&format!("http://{address}"), "");
    let answer = gateway.send(keyed("k", ""));
    assert_eq!(outcome(&answer), (502, "released"));
    let problem = answer.json();
    assert_eq!(
        (&problem["code"], &problem["executed"], &problem["retry"]),
        (&"upstream_unreachable".into(), &"no".into(), &"same-key".into())
    );
    // Another body is another request: the key is free for it.
    let other = keyed("k", "").replace("\r\n\r\nhi", "\r\n\r\nho");
    assert_eq!(outcome(&gateway.send(other)), (502, "released"));

    let upstream = Scripted::on(TcpListener::bind(address).unwrap(), |conversation| {
        while conversation.request().is_some() {
            conversation.say(OK);
        }
    });
    assert_eq!(outcome(&gateway.send(keyed("k", ""))), (200, "stored"));
    assert_eq!(upstream.seen().len(), 1);
}

#[test]
fn a_keyed_request_that_was_sent_and_lost_is_unknown_and_sent_once() {
    for script in [
        (|conversation: &mut Conversation| drop(conversation.request())) as fn(&mut Conversation),
        |conversation| drop(conversation.head()),
        |conversation| {
            conversation.request();
            conversation.say("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
        },
        |conversation| {
            conversation.request();
            conversation.say("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
        },
    ] {
        let upstream = Scripted::start(script);
        let gateway = Gateway::start(&upstream.url(), "");
        let answer = gateway.send(keyed("k", ""));
        assert_eq!(outcome(&answer), (502, "unknown"), "{answer:?}");
        assert_eq!((&answer.json()["code"], &answer.json()["executed"]), (&"upstream_lost".into(), &"unknown".into()));
        let again = gateway.send(keyed("k", ""));
        assert_eq!((outcome(&again), &again.json()["code"]), ((409, "unknown"), &"outcome_unknown".into()));
        assert_eq!(upstream.seen().len(), 1, "it was sent again");
    }
}

/// Node closes after 5 s, others sooner: the gateway's own limit must be the shorter one, and what it does not know of
/// must still be noticed.
#[test]
fn a_keyed_request_survives_idle_connections_that_the_upstream_closed() {
    let (closed, has_closed) = baton();
    let upstream = Scripted::start(move |conversation| {
        conversation.request();
        conversation.say(OK);
        let _ = conversation.stream.get_ref().shutdown(Shutdown::Both);
        closed();
    });
    let gateway = Gateway::start(&upstream.url(), "[limits]\nupstream_idle = \"30s\"");
    for key in ["1", "2", "3", "4", "5"] {
        assert_eq!(outcome(&gateway.send(keyed(key, ""))), (200, "stored"), "{key}");
        wait(&has_closed);
    }
    assert_eq!(upstream.seen().len(), 5);
}

#[test]
fn routes_have_their_own_policy_however_their_path_is_written() {
    let upstream = Scripted::answering(OK);
    let routes =
        "[[route]]\npath = \"/orders/{id}\"\nmissing = \"reject\"\n[[route]]\npath = \"/free\"\nmethods = []\n";
    let gateway = Gateway::start(&upstream.url(), &format!("[policy]\n{routes}"));
    let post = |path: &str, more: &str| format!("POST {path} HTTP/1.1\r\nHost: a\r\n{more}Content-Length: 2\r\n\r\nhi");
    for path in ["/orders/7", "/%6frders/7", "/orders/7?x=/free"] {
        let answer = gateway.send(post(path, ""));
        assert_eq!((outcome(&answer), &answer.json()["code"]), ((400, "rejected"), &"key_missing".into()), "{path}");
    }
    assert_eq!(upstream.seen().len(), 0);
    assert_eq!(outcome(&gateway.send(post("/orders", ""))), (200, ""));
    assert_eq!(outcome(&gateway.send(post("/free", "Idempotency-Key: k\r\n"))), (200, ""));
    assert_eq!(outcome(&gateway.send(post("/orders/7", "Idempotency-Key: k\r\n"))), (200, "stored"));
    assert!(gateway.logged("\"outcome\":\"stored\"").contains("\"route\":\"/orders/{id}\""));
}

//! Requests with a key, byte by byte, and what is demanded of their answers.

use std::io::{BufRead, Cursor, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::support::{Answer, Gateway, PATIENCE, chunked, headers};
pub(crate) use crate::waiting::poll;

/// A request, until its bytes are asked for.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    start: String,
    lines: Vec<Vec<u8>>,
    body: Vec<u8>,
    chunk: Option<usize>,
}

/// An order with a key.
pub(crate) fn order(key: &str) -> Ask {
    plain_order().line(format!("Idempotency-Key: {key}"))
}

/// An order without a key.
pub(crate) fn plain_order() -> Ask {
    let lines = ["Host: shop.example", "Content-Type: application/json"].map(|line| line.as_bytes().to_vec()).to_vec();
    Ask { start: "POST /orders".into(), lines, body: b"{\"item\":\"tea\",\"qty\":1}".to_vec(), chunk: None }
}

impl Ask {
    /// A request with nothing but its start.
    pub(crate) fn bare(start: &str) -> Self {
        Self { start: start.to_owned(), lines: Vec::new(), body: Vec::new(), chunk: None }
    }

    /// Another method and path.
    pub(crate) fn to(mut self, start: &str) -> Self {
        start.clone_into(&mut self.start);
        self
    }

    /// One more header line.
    pub(crate) fn line(mut self, line: impl AsRef<[u8]>) -> Self {
        self.lines.push(line.as_ref().to_vec());
        self
    }

    /// One more step for the upstream.
    pub(crate) fn step(self, step: impl AsRef<[u8]>) -> Self {
        self.line([b"X-Do: ", step.as_ref()].concat())
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Its body goes out in chunks of so many bytes.
    pub(crate) fn chunked(mut self, bytes: usize) -> Self {
        self.chunk = Some(bytes);
        self
    }

    /// The head alone.
    pub(crate) fn head(&self) -> Vec<u8> {
        let mut head = format!("{} HTTP/1.1\r\n", self.start).into_bytes();
        for line in &self.lines {
            head.extend_from_slice(line);
            head.extend_from_slice(b"\r\n");
        }
        let framing = match self.chunk {
            Some(_) => "Transfer-Encoding: chunked\r\n\r\n".to_owned(),
            None => format!("Content-Length: {}\r\n\r\n", self.body.len()),
        };
        head.extend_from_slice(framing.as_bytes());
        head
    }

    /// The body alone, as it goes out.
    pub(crate) fn tail(&self) -> Vec<u8> {
        let Some(size) = self.chunk else { return self.body.clone() };
        let mut tail = Vec::new();
        for chunk in self.body.chunks(size) {
            tail.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            tail.extend_from_slice(chunk);
            tail.extend_from_slice(b"\r\n");
        }
        tail.extend_from_slice(b"0\r\n\r\n");
        tail
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        [self.head(), self.tail()].concat()
    }

    /// Sends it on a connection of its own.
    pub(crate) fn send(&self, gateway: &Gateway) -> Answer {
        gateway.send(self.bytes())
    }

    /// Sends it from a thread of its own.
    pub(crate) fn spawn(&self, gateway: &Gateway) -> Sent {
        let (address, bytes) = (gateway.place(), self.bytes());
        Sent(std::thread::spawn(move || try_send(address, &bytes)))
    }

    /// Sends it and leaves the connection open, for a client that may hang up.
    pub(crate) fn begin(&self, gateway: &Gateway) -> crate::support::Client {
        let mut client = gateway.client();
        client.say(self.bytes());
        client
    }

    /// Sends it to a gateway whose predecessor was killed. What it finds of an earlier start is lost at once in a store of its
    /// own; in a shared one another gateway may hold it, so that the lease is waited for.
    pub(crate) fn send_after_kill(&self, gateway: &Gateway) -> Answer {
        match crate::stores::is_shared() {
            true => self.send_until_settled(gateway),
            false => self.send(gateway),
        }
    }

    /// Sends it again and again until the answer is no `in_flight`.
    pub(crate) fn send_until_settled(&self, gateway: &Gateway) -> Answer {
        poll("an end of the running request", || {
            let answer = self.send(gateway);
            (outcome(&answer) != "in-flight").then_some(answer)
        })
    }
}

/// A request on its way.
pub(crate) struct Sent(std::thread::JoinHandle<Option<Answer>>);

impl Sent {
    pub(crate) fn answer(self) -> Answer {
        self.try_answer().expect("the connection broke before an answer")
    }

    /// The answer, or nothing where the connection broke before its head.
    pub(crate) fn try_answer(self) -> Option<Answer> {
        self.0.join().unwrap()
    }

    pub(crate) fn is_answered(&self) -> bool {
        self.0.is_finished()
    }
}

/// Sends a request on a connection of its own, which may break at any point.
pub(crate) fn try_send(address: SocketAddr, request: &[u8]) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_nodelay(true).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    // After its first line; the gateway closes when it has answered.
    let at = request.iter().position(|byte| *byte == b'\n')? + 1;
    let request = [&request[..at], b"Connection: close\r\n", &request[at..]].concat();
    stream.write_all(&request).ok()?;
    let mut bytes = Vec::new();
    // A reset is as much of an end as another.
    let _ = stream.read_to_end(&mut bytes);
    let mut bytes = Cursor::new(bytes);
    loop {
        let at = usize::try_from(bytes.position()).ok()?;
        if !bytes.get_ref()[at..].windows(4).any(|window| window == b"\r\n\r\n") {
            return None;
        }
        let mut line = String::new();
        bytes.read_line(&mut line).ok()?;
        let status = line.split(' ').nth(1)?.parse().ok()?;
        let mut answer = Answer { status, headers: headers(&mut bytes), ..Answer::default() };
        if status == 100 {
            continue;
        }
        if answer.one("transfer-encoding") == "chunked" {
            (answer.body, answer.trailers, answer.is_whole) = chunked(&mut bytes);
        } else {
            let _ = bytes.read_to_end(&mut answer.body);
            let length = answer.all("content-length").first().map(|value| String::from_utf8_lossy(value).into_owned());
            answer.is_whole = length.is_none_or(|length| length == answer.body.len().to_string());
        }
        return Some(answer);
    }
}

/// What `Idempotency-Outcome` says.
pub(crate) fn outcome(answer: &Answer) -> &str {
    answer.one("idempotency-outcome")
}

/// An answer of the service, whole, labelled.
#[track_caller]
pub(crate) fn assert_answer(answer: &Answer, status: u16, label: &str) {
    let text = String::from_utf8_lossy(&answer.body);
    assert_eq!((answer.status, outcome(answer)), (status, label), "{text}");
    assert!(answer.is_whole, "it was cut: {answer:?}");
    assert_ne!(answer.one("content-type"), "application/problem+json", "{text}");
    let replayed = if label == "replayed" { "true" } else { "" };
    assert_eq!(answer.one("idempotency-replayed"), replayed);
}

/// The first answer again: status, body, and headers with their order and duplicates, less those that a replay leaves out.
#[track_caller]
pub(crate) fn assert_replay(answer: &Answer, first: &Answer) {
    assert_answer(answer, first.status, "replayed");
    assert_eq!(answer.one("cache-control"), "no-store");
    assert!(answer.body == first.body, "another body");
    let left_out = |name: &str| {
        matches!(
            name,
            "date" | "set-cookie" | "www-authenticate" | "cache-control" | "idempotency-outcome" | "idempotency-replayed"
        ) || name.starts_with("access-control-")
            // How it is framed is each connection's own matter.
            || matches!(name, "content-length" | "transfer-encoding" | "connection" | "preference-applied")
    };
    let kept =
        |answer: &Answer| -> Vec<_> { answer.headers.iter().filter(|(name, _)| !left_out(name)).cloned().collect() };
    assert_eq!(kept(answer), kept(first));
    for gone in ["set-cookie", "www-authenticate", "access-control-allow-origin"] {
        assert_eq!(answer.all(gone), [b""; 0], "a replay says {gone}");
    }
}

/// The table of DESIGN.md, section 5, and the rows that it forgot.
const TABLE: &[(&str, u16, &str, &str, &str)] = &[
    ("key_missing", 400, "rejected", "no", "new-key"),
    ("key_invalid", 400, "rejected", "no", "new-key"),
    ("method_case", 400, "rejected", "no", "new-key"),
    ("keys_differ", 400, "rejected", "no", "new-key"),
    ("form_unreadable", 400, "rejected", "no", "new-key"),
    ("json_unreadable", 400, "rejected", "no", "new-key"),
    ("request_incomplete", 400, "rejected", "unknown", "same-key"),
    ("target_invalid", 400, "rejected", "no", "new-key"),
    ("host_invalid", 400, "rejected", "no", "new-key"),
    ("credentials_ambiguous", 400, "rejected", "no", "new-key"),
    ("token_invalid", 401, "rejected", "no", "stop"),
    ("too_many_keys", 429, "rejected", "no", "same-key"),
    ("key_forged", 400, "rejected", "unknown", "stop"),
    ("principal_unknown", 403, "rejected", "unknown", "stop"),
    ("key_foreign", 403, "rejected", "unknown", "stop"),
    ("operation_unknown", 404, "released", "unknown", "same-key"),
    ("in_flight", 409, "in-flight", "unknown", "wait"),
    ("outcome_unknown", 409, "unknown", "unknown", "stop"),
    ("answer_not_kept", 409, "not-stored", "yes", "stop"),
    ("key_expired", 409, "expired", "yes", "stop"),
    ("issued_key_expired", 409, "expired", "unknown", "stop"),
    ("request_too_large", 413, "rejected", "unknown", "stop"),
    ("key_reused", 422, "mismatch", "unknown", "stop"),
    ("headers_too_large", 431, "rejected", "no", "new-key"),
    ("handler_panicked", 500, "unknown", "unknown", "same-key"),
    ("record_unreadable", 500, "rejected", "unknown", "stop"),
    ("upstream_unreachable", 502, "released", "no", "same-key"),
    ("upstream_lost", 502, "unknown", "unknown", "same-key"),
    ("store_unavailable", 503, "rejected", "unknown", "same-key"),
    ("draining", 503, "rejected", "unknown", "same-key"),
    ("overloaded", 503, "rejected", "unknown", "same-key"),
    ("upstream_timeout", 504, "in-flight", "unknown", "wait"),
    ("loop_detected", 508, "rejected", "no", "stop"),
];

/// A refusal, exactly as its row says, with nothing of the key in it.
#[track_caller]
pub(crate) fn assert_problem(answer: &Answer, code: &str, key: &str) {
    let row = TABLE.iter().find(|row| row.0 == code).expect("the table has the code");
    let (_, status, label, executed, retry) = *row;
    let text = String::from_utf8_lossy(&answer.body);
    assert_eq!((answer.status, answer.json()["code"].as_str()), (status, Some(code)), "{text}");
    assert_eq!(outcome(answer), label, "{text}");
    assert_eq!(answer.one("content-type"), "application/problem+json");
    assert_eq!(answer.one("cache-control"), "no-store");
    assert_eq!(answer.one("idempotency-replayed"), "");
    let problem = answer.json();
    let kind = format!("/.idempotency/policy#{code}");
    assert_eq!(problem["type"], kind.as_str(), "{text}");
    assert_eq!(answer.one("link"), format!("<{kind}>; rel=\"describedby\""));
    assert_eq!(problem["status"], status, "{text}");
    assert_eq!((problem["executed"].as_str(), problem["retry"].as_str()), (Some(executed), Some(retry)), "{text}");
    for said in ["title", "detail", "instance"] {
        assert!(problem[said].as_str().is_some_and(|said| !said.is_empty()), "no {said}: {text}");
    }
    let whole = format!("{answer:?}{text}");
    assert!(key.len() < 8 || !whole.contains(key.trim_matches('"')), "the key is told: {whole}");
    match code {
        "in_flight" | "upstream_timeout" | "store_unavailable" | "draining" | "overloaded" => {
            let seconds: u64 = answer.one("retry-after").parse().expect("it says when to ask again");
            assert!((1..=5).contains(&seconds), "Retry-After: {seconds}");
        }
        "too_many_keys" => {
            let seconds: u64 = answer.one("retry-after").parse().expect("it says when to send again");
            assert!((1..=60).contains(&seconds), "Retry-After: {seconds}");
        }
        _ => assert_eq!(answer.one("retry-after"), "", "nothing changes by waiting"),
    }
}

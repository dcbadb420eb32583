//! An upstream in a process of its own, which counts: each execution is one line in a file, synced before it answers. It
//! speaks raw HTTP/1.1, so that it can misbehave in each way that a test asks for.
//!
//! What a request is to meet stands in its `X-Do` header lines, one step each, in order; [`serve`] lists the steps. The
//! header is no part of a fingerprint, so that a retry may ask for something else.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Gateway, Lines, PATIENCE, chunked, headers};

/// Names the file of executions to the process that is the upstream.
const ROLE: &str = "ONCEWARD_TEST_UPSTREAM";
/// Begins a line that the process says to its test; the harness prints other lines.
const MARK: &str = "@upstream ";

/// A running upstream; it ends when dropped, or with the test.
pub(crate) struct Upstream {
    process: Child,
    say: Mutex<ChildStdin>,
    heard: Arc<(Mutex<Vec<Value>>, Condvar)>,
    file: PathBuf,
    pub(crate) address: SocketAddr,
    _folder: tempfile::TempDir,
}

/// One request that was executed.
#[derive(Clone, Debug)]
pub(crate) struct Execution {
    pub(crate) line: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    pub(crate) bytes: usize,
    pub(crate) connection: u64,
}

impl Execution {
    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(header, _)| header == name).map(|(_, value)| value.as_str()).collect()
    }

    /// The key, as it came here.
    fn key(&self) -> &str {
        self.header("idempotency-key").first().copied().unwrap_or_default().trim_matches('"')
    }
}

impl Upstream {
    /// A process on a free port.
    pub(crate) fn start() -> Self {
        Self::at("127.0.0.1:0".parse().unwrap())
    }

    /// A process that listens there.
    pub(crate) fn at(address: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("executions");
        File::create(&file).unwrap();
        // A build that runs beside the tests may have put another file in this one's place.
        let itself = match cfg!(target_os = "linux") {
            true => "/proc/self/exe".into(),
            false => std::env::current_exe().unwrap(),
        };
        let mut process = Command::new(itself)
            .args(["upstream::upstream_process", "--exact", "--nocapture"])
            .env(ROLE, &file)
            .env("ONCEWARD_TEST_ADDRESS", address.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let say = Mutex::new(process.stdin.take().unwrap());
        let heard: Arc<(Mutex<Vec<Value>>, Condvar)> = Arc::default();
        let (output, ear) = (process.stdout.take().unwrap(), Arc::clone(&heard));
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some(at) = line.find(MARK) {
                    ear.0.lock().unwrap().push(serde_json::from_str(&line[at + MARK.len()..]).unwrap());
                    ear.1.notify_all();
                }
            }
        });
        let mut upstream = Self { process, say, heard, file, address, _folder: folder };
        let listening = upstream.hear("an address", |event| event["kind"] == "listening");
        upstream.address = listening["address"].as_str().unwrap().parse().unwrap();
        upstream
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The gateway before it that the run is about: on which store, and whether it is one or two. A lease of two seconds, all
    /// callers one, and what `settings` say besides.
    pub(crate) fn gateway(&self, settings: &str) -> Gateway {
        let settings = self.settings(&crate::stores::url(), settings);
        let gateway = Gateway::with(&settings, &[]);
        match crate::stores::are_two() {
            true => gateway.and(Gateway::with(&settings, &[])),
            false => gateway,
        }
    }

    /// The same, and surely one process: for tests of what one does.
    pub(crate) fn one_gateway(&self, settings: &str) -> Gateway {
        Gateway::with(&self.settings(&crate::stores::url(), settings), &[])
    }

    /// The settings of such a gateway.
    pub(crate) fn settings(&self, store: &str, settings: &str) -> String {
        let mut policy = "[policy]\n".to_owned();
        for (name, line) in [("principal =", "principal = []\n"), ("lease =", "lease = \"2s\"\n")] {
            if !settings.contains(name) {
                policy.push_str(line);
            }
        }
        let settings = match settings.contains("[policy]") {
            true => settings.replace("[policy]\n", &policy),
            false => format!("{settings}\n{policy}"),
        };
        format!("upstream = {:?}\nstore = {store:?}\n{settings}", self.url())
    }

    /// What was executed, by the file.
    pub(crate) fn executions(&self) -> Vec<Execution> {
        let text = std::fs::read_to_string(&self.file).unwrap();
        text.lines()
            .map(|line| {
                let line: Value = serde_json::from_str(line).unwrap();
                let text = |name: &str| line[name].as_str().unwrap().to_owned();
                let headers = line["headers"].as_array().unwrap().iter();
                Execution {
                    line: text("line"),
                    headers: headers
                        .map(|pair| (pair[0].as_str().unwrap().to_owned(), pair[1].as_str().unwrap().to_owned()))
                        .collect(),
                    body: text("body"),
                    bytes: usize::try_from(line["bytes"].as_u64().unwrap()).unwrap(),
                    connection: line["connection"].as_u64().unwrap(),
                }
            })
            .collect()
    }

    /// What was executed with a key.
    pub(crate) fn executed(&self, key: &str) -> Vec<Execution> {
        let key = key.trim_matches('"');
        self.executions().into_iter().filter(|execution| execution.key() == key).collect()
    }

    /// How often a key was executed.
    pub(crate) fn count(&self, key: &str) -> usize {
        self.executed(key).len()
    }

    /// Waits until a request stands at `hold NAME`.
    pub(crate) fn held(&self, name: &str) {
        self.hear(name, |event| event["kind"] == "held" && event["name"] == name);
    }

    /// Lets all go on that stand, or will stand, at `hold NAME`.
    pub(crate) fn release(&self, name: &str) {
        writeln!(self.say.lock().unwrap(), "go {name}").unwrap();
    }

    /// The next connection is reset as soon as it is accepted. Returns once the process knows.
    pub(crate) fn reset_next(&self) {
        writeln!(self.say.lock().unwrap(), "reset").unwrap();
        self.hear("the word on resets", |event| event["kind"] == "will reset");
    }

    /// The first lines of all that looked like a request here.
    pub(crate) fn lines(&self) -> Vec<String> {
        let heard = self.heard.0.lock().unwrap();
        let heads = heard.iter().filter(|event| event["kind"] == "head");
        heads.map(|event| event["line"].as_str().unwrap().to_owned()).collect()
    }

    /// How many connections came.
    pub(crate) fn connections(&self) -> usize {
        self.heard.0.lock().unwrap().iter().filter(|event| event["kind"] == "connection").count()
    }

    /// Waits for an event that it tells of.
    pub(crate) fn hear(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        let mut heard = self.heard.0.lock().unwrap();
        loop {
            if let Some(event) = heard.iter().find(|event| is_it(event)) {
                return event.clone();
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the upstream did not tell of {what}: {heard:?}");
            heard = self.heard.1.wait_timeout(heard, left).unwrap().0;
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The process: no test of its own, unless a test started it as one.
#[test]
fn upstream_process() {
    let Some(file) = std::env::var_os(ROLE) else { return };
    let address = std::env::var("ONCEWARD_TEST_ADDRESS").unwrap();
    let listener = TcpListener::bind(address).unwrap();
    let shared = Arc::new(Shared {
        file: Mutex::new(OpenOptions::new().append(true).open(file).unwrap()),
        released: Mutex::default(),
        more: Condvar::new(),
        resets: AtomicUsize::new(0),
        count: AtomicUsize::new(0),
    });
    tell(&json!({ "kind": "listening", "address": listener.local_addr().unwrap().to_string() }));
    let accepting = Arc::clone(&shared);
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().map_while(Result::ok).enumerate() {
            tell(&json!({ "kind": "connection", "connection": number }));
            if accepting.resets.load(Ordering::SeqCst) > 0 {
                accepting.resets.fetch_sub(1, Ordering::SeqCst);
                reset(&stream);
                continue;
            }
            let shared = Arc::clone(&accepting);
            std::thread::spawn(move || connection(stream, number, &shared));
        }
    });
    // Standard input ends with the test that started it, however that ends.
    for line in std::io::stdin().lines().map_while(Result::ok) {
        match line.split_once(' ') {
            Some(("go", name)) => {
                shared.released.lock().unwrap().insert(name.to_owned());
                shared.more.notify_all();
            }
            _ => {
                shared.resets.fetch_add(1, Ordering::SeqCst);
                tell(&json!({ "kind": "will reset" }));
            }
        }
    }
    std::process::exit(0);
}

struct Shared {
    file: Mutex<File>,
    released: Mutex<HashSet<String>>,
    more: Condvar,
    resets: AtomicUsize,
    count: AtomicUsize,
}

impl Shared {
    /// Counts an execution: durable when it returns. Gives its number.
    fn execute(&self, line: &str, headers: &Lines, body: &[u8], connection: usize) -> usize {
        let headers: Vec<_> =
            headers.iter().map(|(name, value)| json!([name, String::from_utf8_lossy(value)])).collect();
        let entry = json!({
            "line": line,
            "headers": headers,
            "bytes": body.len(),
            "body": String::from_utf8_lossy(&body[..body.len().min(1024)]),
            "connection": connection,
        });
        let mut file = self.file.lock().unwrap();
        file.write_all(format!("{entry}\n").as_bytes()).unwrap();
        file.sync_data().unwrap();
        let number = self.count.fetch_add(1, Ordering::SeqCst) + 1;
        drop(file);
        tell(&json!({ "kind": "execution", "line": line }));
        number
    }

    fn hold(&self, name: &str) {
        tell(&json!({ "kind": "held", "name": name }));
        let released = self.released.lock().unwrap();
        let _released = self.more.wait_while(released, |released| !released.contains(name)).unwrap();
    }
}

fn tell(event: &Value) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{MARK}{event}");
    let _ = out.flush();
}

/// Closes a connection without a farewell.
fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

fn connection(stream: TcpStream, number: usize, shared: &Shared) {
    let _ = stream.set_nodelay(true);
    let mut stream = BufReader::new(stream);
    while serve(&mut stream, number, shared).is_some() {}
}

/// Serves a request as its steps say, or as one that makes an order. `None`: the connection is over.
///
/// Steps: `reset-unread` (its body is left unread) · `early NAME` (answers, holds, then reads the body) · `hold NAME` ·
/// `reset` · `close` · `garbage` · `interim` (an interim answer first) · `status N` · `header NAME: VALUE` · `body N` (of so
/// many bytes) · `chunked` · `unframed` (its end is the connection's) · `cut-head` · `cut` and `reset-midway` (of the
/// answer's body comes half) · `hold-midway NAME` · `then-say` (after the answer, an answer that nobody asked for) ·
/// `then-close` (after the answer, unannounced).
fn serve(stream: &mut BufReader<TcpStream>, number: usize, shared: &Shared) -> Option<()> {
    let mut line = String::new();
    if stream.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let line = line.trim_end().to_owned();
    let headers = headers(stream);
    tell(&json!({ "kind": "head", "line": line, "connection": number }));
    let steps: Vec<(&[u8], &[u8])> = headers
        .iter()
        .filter(|(name, _)| name == "x-do")
        .map(|(_, step)| match step.iter().position(|byte| *byte == b' ') {
            Some(at) => (&step[..at], &step[at + 1..]),
            None => (step.as_slice(), b"".as_slice()),
        })
        .collect();
    let step = |wanted: &str| {
        let found = steps.iter().find(|(name, _)| *name == wanted.as_bytes());
        found.map(|(_, argument)| String::from_utf8_lossy(argument).into_owned())
    };
    if step("reset-unread").is_some() {
        reset(stream.get_ref());
        return None;
    }
    let early = step("early");
    let body = match early {
        Some(_) => Vec::new(),
        None => read_body(stream, &headers)?,
    };
    let nonce = shared.execute(&line, &headers, &body, number);
    if let Some(name) = step("hold") {
        shared.hold(&name);
    }
    if step("close").is_some() {
        return None;
    }
    if step("reset").is_some() {
        reset(stream.get_ref());
        return None;
    }
    if step("garbage").is_some() {
        let _ = stream.get_mut().write_all(b"no HTTP at all\r\n\r\n");
        return None;
    }
    if step("interim").is_some() {
        stream.get_mut().write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n").ok()?;
    }

    let status = step("status").unwrap_or_else(|| "201".into());
    let is_bare = matches!(status.as_str(), "204" | "304");
    let answer = match step("body") {
        // Every byte there is, so that nothing in between may take it for text.
        Some(bytes) => (0..bytes.parse::<usize>().unwrap()).map(|at| (at % 256).to_le_bytes()[0]).collect(),
        None if is_bare => Vec::new(),
        None => format!("{{\"order\":{nonce}}}\n").into_bytes(),
    };
    let mut head = format!("HTTP/1.1 {status} As Asked\r\nX-Nonce: {nonce}\r\n").into_bytes();
    for (_, header) in steps.iter().filter(|(name, _)| *name == b"header") {
        head.extend_from_slice(header);
        head.extend_from_slice(b"\r\n");
    }
    if step("cut-head").is_some() {
        let _ = stream.get_mut().write_all(&head);
        return None;
    }
    let (is_chunked, is_unframed) = (step("chunked").is_some(), step("unframed").is_some());
    match () {
        () if is_unframed => head.extend_from_slice(b"\r\n"),
        () if is_chunked => head.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n"),
        () if is_bare => head.extend_from_slice(b"\r\n"),
        () => head.extend_from_slice(format!("Content-Length: {}\r\n\r\n", answer.len()).as_bytes()),
    }
    let out = stream.get_mut();
    let (first, second) = answer.split_at(answer.len() / 2);
    let part = |bytes: &[u8]| match is_chunked {
        true => [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat(),
        false => bytes.to_vec(),
    };
    let is_midway = ["cut", "reset-midway", "hold-midway"].iter().any(|name| step(name).is_some());
    if is_midway {
        head.extend_from_slice(&part(first));
        out.write_all(&head).ok()?;
        if let Some(name) = step("hold-midway") {
            shared.hold(&name);
        }
        if step("cut").is_some() {
            return None;
        }
        if step("reset-midway").is_some() {
            reset(out);
            return None;
        }
        head = part(second);
    } else {
        head.extend_from_slice(&part(&answer));
    }
    if is_chunked {
        head.extend_from_slice(b"0\r\n\r\n");
    }
    if step("then-say").is_some() {
        head.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged");
    }
    out.write_all(&head).ok()?;
    if let Some(name) = early {
        shared.hold(&name);
        read_body(stream, &headers)?;
    }
    (!is_unframed && step("then-close").is_none()).then_some(())
}

/// The body, or nothing where it is cut: what was not read whole is not executed.
fn read_body(stream: &mut BufReader<TcpStream>, headers: &Lines) -> Option<Vec<u8>> {
    let header = |name: &str| headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_slice());
    if header("transfer-encoding").is_some() {
        let (body, _, is_whole) = chunked(stream);
        return is_whole.then_some(body);
    }
    let length = header("content-length").map_or(Some(0), |value| std::str::from_utf8(value).ok()?.parse().ok())?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(body)
}

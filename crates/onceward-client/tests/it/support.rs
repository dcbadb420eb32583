//! The real gateway, a service that counts, and a road between them and the client that loses things.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// Whatever is waited for is there by then, or never.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        // waits: between two looks at the condition
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The program `onceward`, built by the same cargo into the same folder.
fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "onceward-gateway", "--bin", "onceward"]);
        assert!(build.status().expect("cargo runs").success(), "the gateway builds");
        // target/debug/deps/it-… has it two folders up.
        let itself = std::env::current_exe().expect("a path");
        itself.ancestors().nth(2).expect("target/debug").join("onceward")
    })
}

/// A running `onceward serve` on the embedded store, killed when dropped.
pub(crate) struct Gateway {
    child: Child,
    pub(crate) address: SocketAddr,
    folder: tempfile::TempDir,
}

impl Gateway {
    pub(crate) fn before(upstream: SocketAddr) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let settings = format!("upstream = \"http://{upstream}\"\n[policy]\nprincipal = []\nlease = \"2s\"\n");
        std::fs::write(folder.path().join("onceward.toml"), settings).expect("the settings are written");
        let (child, address) = start(&folder, "127.0.0.1:0");
        Self { child, address, folder }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// After a kill, where it was.
    pub(crate) fn start_again(&mut self) {
        (self.child, self.address) = start(&self.folder, &self.address.to_string());
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(folder: &tempfile::TempDir, listen: &str) -> (Child, SocketAddr) {
    let mut child = Command::new(program())
        .args(["serve", "--listen", listen, "--admin", "127.0.0.1:0"])
        .current_dir(folder.path())
        .env("ONCEWARD_LOG_FORMAT", "json")
        .stderr(Stdio::piped())
        .spawn()
        .expect("the gateway starts");
    let mut log = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    let line = log.find(|line| line.contains("\"message\":\"listening on ")).expect("it listens");
    // Whoever does not read on stops it.
    std::thread::spawn(move || log.for_each(drop));
    let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    (child, line["listen"].as_str().expect("an address").parse().expect("an address"))
}

/// A service that makes orders, and counts them by their keys.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    keys: Mutex<Vec<String>>,
    requests: Mutex<Vec<String>>,
    held: Mutex<bool>,
    let_go: Condvar,
    /// What the next ones are answered.
    statuses: Mutex<Vec<&'static str>>,
}

impl Service {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let service = Self { address: listener.local_addr().expect("an address"), state: Arc::default() };
        let state = Arc::clone(&service.state);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&state);
                std::thread::spawn(move || while_open(stream, &state));
            }
        });
        service
    }

    /// How many orders were made.
    pub(crate) fn orders(&self) -> usize {
        self.keys().len()
    }

    /// The keys of all orders.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.state.keys.lock().expect("no panic").clone()
    }

    /// How often each key made an order.
    pub(crate) fn by_key(&self) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        self.keys().into_iter().for_each(|key| *counts.entry(key).or_default() += 1);
        counts
    }

    /// The first lines of all that came.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.state.requests.lock().expect("no panic").clone()
    }

    /// Whoever orders from now on waits for the answer.
    pub(crate) fn hold(&self) {
        *self.state.held.lock().expect("no panic") = true;
    }

    pub(crate) fn let_go(&self) {
        *self.state.held.lock().expect("no panic") = false;
        self.state.let_go.notify_all();
    }

    /// The next orders are answered so, instead of being made.
    pub(crate) fn answer(&self, statuses: &[&'static str]) {
        *self.state.statuses.lock().expect("no panic") = statuses.to_vec();
    }
}

fn while_open(stream: TcpStream, state: &State) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let head = head(&mut stream)?;
        let mut body = vec![0; header(&head, "content-length").parse().unwrap_or(0)];
        stream.read_exact(&mut body).ok()?;
        state.requests.lock().ok()?.push(head[0].clone());
        let refused = {
            let mut statuses = state.statuses.lock().ok()?;
            (!statuses.is_empty()).then(|| statuses.remove(0))
        };
        let answer = match refused {
            _ if !head[0].starts_with("POST") => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
            Some(status) => format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"),
            None => {
                let number = {
                    let mut keys = state.keys.lock().ok()?;
                    keys.push(header(&head, "idempotency-key").trim_matches('"').to_owned());
                    keys.len()
                };
                let held = state.held.lock().ok()?;
                drop(state.let_go.wait_while(held, |held| *held).ok()?);
                let body = format!("order {number}");
                format!("HTTP/1.1 201 Created\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            }
        };
        stream.get_mut().write_all(answer.as_bytes()).ok()?;
        if header(&head, "connection") == "close" {
            return None;
        }
    }
}

/// The lines of a head, the first one as it is.
fn head(stream: &mut impl BufRead) -> Option<Vec<String>> {
    let lines: Vec<String> = stream.lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    (!lines.is_empty()).then_some(lines)
}

fn header(head: &[String], name: &str) -> String {
    let pairs = head.iter().filter_map(|line| line.split_once(':'));
    pairs
        .filter(|(header, _)| header.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim().to_owned())
        .next()
        .unwrap_or_default()
}

/// A road to a server: the answers of the first so many POSTs are lost on it, whole or midway.
pub(crate) struct Road {
    pub(crate) address: SocketAddr,
    posts: Arc<AtomicUsize>,
    lost: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Lost {
    /// No byte of it comes.
    Whole,
    /// Its last byte does not come.
    Midway,
}

impl Road {
    pub(crate) fn to(server: SocketAddr, losses: usize, lost: Lost) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let road =
            Self { address: listener.local_addr().expect("an address"), posts: Arc::default(), lost: Arc::default() };
        let (posts, losts) = (Arc::clone(&road.posts), Arc::clone(&road.lost));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (posts, losts) = (Arc::clone(&posts), Arc::clone(&losts));
                std::thread::spawn(move || travel(client, server, losses, lost, &posts, &losts));
            }
        });
        road
    }

    /// How many answers came this far, and no farther.
    pub(crate) fn lost(&self) -> usize {
        self.lost.load(Ordering::SeqCst)
    }

    /// How many POSTs came along.
    pub(crate) fn posts(&self) -> usize {
        self.posts.load(Ordering::SeqCst)
    }
}

/// One request and its answer for each connection.
fn travel(
    client: TcpStream,
    server: SocketAddr,
    losses: usize,
    lost: Lost,
    posts: &AtomicUsize,
    losts: &AtomicUsize,
) -> Option<()> {
    let mut client = BufReader::new(client);
    let mut head = head(&mut client)?;
    let mut body = vec![0; header(&head, "content-length").parse().unwrap_or(0)];
    client.read_exact(&mut body).ok()?;
    let is_post = head[0].starts_with("POST");
    let is_lost = is_post && posts.fetch_add(1, Ordering::SeqCst) < losses;
    head.push("Connection: close\r\n\r\n".into());
    let mut onward = TcpStream::connect(server).ok()?;
    onward.write_all(head.join("\r\n").as_bytes()).ok()?;
    onward.write_all(&body).ok()?;
    let mut answer = Vec::new();
    onward.read_to_end(&mut answer).ok()?;
    losts.fetch_add(usize::from(is_lost), Ordering::SeqCst);
    let until = match (is_lost, lost) {
        (false, _) => answer.len(),
        (true, Lost::Whole) => 0,
        (true, Lost::Midway) => answer.len() - 1,
    };
    client.get_mut().write_all(&answer[..until]).ok()?;
    client.get_ref().shutdown(Shutdown::Both).ok()
}

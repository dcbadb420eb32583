//! The real program as a child process, and a client that says exactly what it sends.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, ChildStdout, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// Longer than anything here takes on a busy machine: what is over by then hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The orders service, listening on a free port. Dropped, it is killed.
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    child: Child,
    _stdout: BufReader<ChildStdout>,
}

impl Service {
    pub(crate) fn start(folder: &Path, more: &[&str]) -> Self {
        Self::start_at("127.0.0.1:0", folder, more)
    }

    pub(crate) fn start_at(listen: &str, folder: &Path, more: &[&str]) -> Self {
        let mut child = program(folder)
            .args(["--listen", listen])
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a line that says where it listens");
        let address = line.split("http://").nth(1).and_then(|rest| rest.split(',').next());
        let address = address.and_then(|address| address.parse().ok());
        let address = address.unwrap_or_else(|| panic!("no address in {line:?}"));
        Self { address, child, _stdout: stdout }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    pub(crate) fn post(&self, json: &str) -> Answer {
        ask(self.address, "POST", "/orders", "Content-Type: application/json\r\n", json.as_bytes())
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        ask(self.address, "GET", path, "", b"")
    }

    /// How many rows there are, by the service's own word.
    pub(crate) fn total(&self) -> usize {
        self.get("/orders").header("orders-total").expect("a total").parse().expect("a number")
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().expect("kill runs");
        assert!(sent.success(), "kill -s {name} {pid}");
    }

    /// Waits until the process has ended by itself, and says how.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let mut status = None;
        await_that("the process ends", || {
            status = self.child.try_wait().expect("a child of ours");
            status.is_some()
        });
        status.and_then(|status| status.code())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The program, on the database in this folder.
pub(crate) fn program(folder: &Path) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_orders"));
    program.current_dir(folder).stdin(Stdio::null());
    program
}

/// Runs the program where it cannot start, and gives what it said.
pub(crate) fn refused_start(folder: &Path, args: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = program(folder).args(args).output().expect("the program starts");
    (status.code(), String::from_utf8(stderr).expect("text"))
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }
}

/// One request on a connection of its own. `headers` are whole lines.
#[track_caller]
pub(crate) fn ask(address: SocketAddr, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{length}{headers}\r\n");
    let mut connection = connect(address);
    connection.write_all(head.as_bytes()).expect("the head is taken");
    connection.write_all(body).expect("the body is taken");
    read_answer(connection)
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let connection = TcpStream::connect(address).expect("the service listens");
    connection.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    connection
}

/// Waits until the service has said "100 Continue": a handler runs, and wants the body.
pub(crate) fn read_continue(connection: &TcpStream) {
    // A buffer of one byte reads nothing of what comes after.
    let mut reader = BufReader::with_capacity(1, connection);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line).expect("a line");
        assert!(line == "\r\n" || line.starts_with("HTTP/1.1 100"), "{line:?}");
    }
}

/// Reads to the end of a connection that bears one answer.
#[track_caller]
pub(crate) fn read_answer(mut connection: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    connection.read_to_end(&mut bytes).expect("an answer and an end");
    let text = String::from_utf8(bytes).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {text:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
    Answer { status, head: head.into(), body: body.into() }
}

/// Looks until it is so.
#[track_caller]
pub(crate) fn await_that(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "still not so: {what}");
        // waits: between two looks at the condition
        thread::sleep(Duration::from_millis(5));
    }
}

/// What the page sends a request to whose answer shall be lost: it passes the request on, reads the
/// whole answer, and cuts the connection. Runs until the process ends. Gives its origin.
///
/// It is invisible, as a bad network is: the service sees the `Host` that the page was loaded from.
/// With its own, the same request sent later without the relay would be another request.
pub(crate) fn relay_to(upstream: SocketAddr) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let origin = format!("http://{}", listener.local_addr().expect("an address"));
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            // A browser opens connections that it may never use.
            thread::spawn(move || drop(relay_one(&connection, upstream)));
        }
    });
    origin
}

fn relay_one(mut connection: &TcpStream, upstream: SocketAddr) -> io::Result<()> {
    let mut reader = BufReader::new(connection);
    let (mut head, mut length, mut host) = (String::new(), 0, String::new());
    while !head.ends_with("\r\n\r\n") {
        let begin = head.len();
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
        let line = head[begin..].to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        if let Some(origin) = line.strip_prefix("origin: http://") {
            host = origin.trim().into();
        }
        if line.starts_with("connection:") || line.starts_with("host:") {
            head.truncate(begin);
        }
    }
    if head.starts_with("OPTIONS ") {
        // Closed after the preflight: a browser that loses a connection that it used before sends the
        // request once more by itself.
        let allowed = "HTTP/1.1 204 No Content\r\nConnection: close\r\nAccess-Control-Allow-Origin: *\r\n\
                       Access-Control-Allow-Methods: POST\r\nAccess-Control-Allow-Headers: content-type, idempotency-key\r\n\r\n";
        return connection.write_all(allowed.as_bytes());
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let head = head.replacen("\r\n", &format!("\r\nHost: {host}\r\nConnection: close\r\n"), 1);
    let mut passed_on = TcpStream::connect(upstream)?;
    passed_on.write_all(&[head.as_bytes(), &body].concat())?;
    passed_on.read_to_end(&mut Vec::new())?;
    Ok(())
}

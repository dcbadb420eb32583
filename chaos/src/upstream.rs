//! Upstream of the tests: each effect is one line in a file, synced before the response. Each
//! request determines its behaviour.
//!
//! The `X-Do` header of a request lists its steps, in order: `wait=MS`, `effect`, then one of
//! `answer=STATUS`, `big` (a 201 that exceeds the size that is stored), `cut` (the head and half of
//! the body) and `reset`. The header is not part of the fingerprint, so a retry may request other
//! steps.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::history::{Of, Recorder, Reply, What};
use crate::http::{self, Message};

/// Size of a body that exceeds the size that is stored.
pub const BIG_BYTES: usize = 96 << 10;

/// Running upstream. After it is dropped, it ends with its last request.
#[derive(Debug)]
pub struct Upstream {
    /// Address that it listens on.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    recorder: Arc<Recorder>,
    executions: Mutex<File>,
    next: AtomicU64,
    closing: AtomicBool,
}

impl Upstream {
    /// Listens on a free port, and creates the file of executions.
    ///
    /// # Errors
    ///
    /// Errors of the file or of the port.
    pub fn start(executions: &Path, recorder: Arc<Recorder>) -> io::Result<Self> {
        let file = OpenOptions::new().create_new(true).append(true).open(executions)?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            recorder,
            executions: Mutex::new(file),
            next: AtomicU64::new(1),
            closing: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if accepting.closing.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                // An error means that the gateway closed the connection: it was killed, or has no
                // more requests.
                thread::spawn(move || drop(shared.serve(stream)));
            }
        });
        Ok(Self { address, shared })
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        // Wakes its accept loop.
        drop(TcpStream::connect(self.address));
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut from = BufReader::new(stream.try_clone()?);
        while self.request(&Message::read(&mut from)?, &mut stream)? {}
        Ok(())
    }

    /// Handles one request. Returns `true` if the connection stays open.
    fn request(&self, request: &Message, stream: &mut TcpStream) -> io::Result<bool> {
        let nonce = format!("n{}", self.next.fetch_add(1, Ordering::SeqCst));
        let of = Of {
            key: request.header("idempotency-key").trim_matches('"').to_owned(),
            principal: request.header("authorization").to_owned(),
            again: request.start.contains(" /again"),
        };
        let (body, claim) = (http::digest(&request.body), request.header("onceward-claim").to_owned());
        let attempt = serde_json::json!({ "key": of, "attempt": claim, "body": body, "nonce": nonce });
        self.recorder.saw(What::Arrived { nonce: nonce.clone(), of, body, claim });
        for step in request.header("x-do").split(' ') {
            let (step, value) = step.split_once('=').unwrap_or((step, ""));
            match step {
                "wait" => thread::sleep(Duration::from_millis(value.parse().unwrap_or(0))),
                "effect" => {
                    let mut file = self.executions.lock().expect("nobody panics while it is held");
                    writeln!(file, "{attempt}")?;
                    file.sync_data()?;
                    drop(file);
                    self.recorder.saw(What::Executed { nonce: nonce.clone() });
                }
                "reset" => {
                    self.recorder.saw(What::Left { nonce, reply: Reply::Cut });
                    socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO))?;
                    return Ok(false);
                }
                "answer" => return self.answer(value.parse().unwrap_or(201), 0, nonce, stream),
                "big" => return self.answer(201, BIG_BYTES, nonce, stream),
                _ => {
                    let (_, bytes) = answer(201, 0, &nonce);
                    self.recorder.saw(What::Left { nonce, reply: Reply::Cut });
                    stream.write_all(&bytes[..bytes.len() - 10])?;
                    return Ok(false);
                }
            }
        }
        self.answer(201, 0, nonce, stream)
    }

    fn answer(&self, status: u16, padding: usize, nonce: String, stream: &mut TcpStream) -> io::Result<bool> {
        let (digest, bytes) = answer(status, padding, &nonce);
        let reply = match status {
            429 => Reply::Released(digest),
            502..=504 => Reply::Doubtful(digest),
            _ => Reply::Whole(digest),
        };
        // Recorded before the first byte: reading the response is a later event of the history.
        self.recorder.saw(What::Left { nonce, reply });
        stream.write_all(&bytes)?;
        Ok(true)
    }
}

/// Returns a response and its digest. The response contains the nonce twice, a repeated header, and
/// bytes that must stay unchanged.
fn answer(status: u16, padding: usize, nonce: &str) -> (String, Vec<u8>) {
    let body = format!("{{\"nonce\":\"{nonce}\",\"padding\":\"{}\"}}\r\n\0", "x".repeat(padding));
    let headers = [("x-nonce", nonce), ("x-twice", "first"), ("x-twice", "second, of two")];
    let digest = http::digest_of(status, headers.into_iter(), body.as_bytes());
    let mut bytes = format!("HTTP/1.1 {status} Said\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        bytes += &format!("{name}: {value}\r\n");
    }
    (digest, (bytes + "\r\n" + &body).into_bytes())
}

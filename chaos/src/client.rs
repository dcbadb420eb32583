//! Clients that log each call before it and after it.

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::gateway::Address;
use crate::history::{Answer, Last, Of, Recorder, What};
use crate::http::{self, Message};

/// How long a client waits for an answer, or for the next byte of it.
const PATIENCE: Duration = Duration::from_secs(12);

static CALLS: AtomicU64 = AtomicU64::new(1);

/// A request.
#[derive(Clone, Debug)]
pub struct Call {
    /// Whose operation it is.
    pub of: Of,
    /// Its body.
    pub body: String,
    /// What the upstream is to do: see [`upstream`](crate::upstream).
    pub steps: String,
    /// How many seconds it is ready to wait for another's answer.
    pub wait: Option<u32>,
    /// Whether it stays for the answer.
    pub leaves: Option<Leaves>,
    /// What is expected of it.
    pub last: Option<Last>,
}

/// How a client goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// Before it has sent all.
    MidBody,
    /// A while after it has sent all.
    After(Duration),
}

impl Call {
    /// Alice's order: executed, and answered at once.
    pub fn new(key: &str) -> Self {
        Self {
            of: Of { key: key.to_owned(), principal: "alice".to_owned(), again: false },
            body: "{\"item\":\"tea\"}".to_owned(),
            steps: "effect answer=201".to_owned(),
            wait: None,
            leaves: None,
            last: None,
        }
    }

    /// The same, and the upstream does this.
    pub fn steps(mut self, steps: &str) -> Self {
        self.steps = steps.to_owned();
        self
    }

    /// Sends it, and logs what came of it.
    pub fn send(&self, to: Address, recorder: &Recorder) -> Option<Answer> {
        let call = CALLS.fetch_add(1, Ordering::SeqCst);
        recorder.saw(What::Sent {
            call,
            of: self.of.clone(),
            body: http::digest(self.body.as_bytes()),
            gateway: to.start,
            last: self.last,
        });
        let answer = self.exchange(to).ok().flatten();
        recorder.saw(match answer.clone() {
            Some(answer) => What::Answered { call, answer },
            None => What::Broke { call },
        });
        answer
    }

    fn exchange(&self, to: Address) -> std::io::Result<Option<Answer>> {
        let mut stream = TcpStream::connect_timeout(&to.listen, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let Self { of, body, steps, .. } = self;
        let wait = self.wait.map_or_else(String::new, |seconds| format!("Prefer: wait={seconds}\r\n"));
        let request = format!(
            "POST {} HTTP/1.1\r\nHost: chaos\r\nIdempotency-Key: {}\r\nAuthorization: {}\r\nX-Do: {steps}\r\n{wait}\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            if of.again { "/again" } else { "/orders" },
            of.key,
            of.principal,
            body.len(),
        );
        match self.leaves {
            Some(Leaves::MidBody) => {
                stream.write_all(&request.as_bytes()[..request.len() - body.len() / 2])?;
                return Ok(None);
            }
            Some(Leaves::After(after)) => {
                stream.write_all(request.as_bytes())?;
                std::thread::sleep(after);
                return Ok(None);
            }
            None => stream.write_all(request.as_bytes())?,
        }
        let answer = Message::read(&mut BufReader::new(stream))?;
        let problem = answer.header("content-type") == "application/problem+json";
        let problem = problem.then(|| serde_json::from_slice::<serde_json::Value>(&answer.body).ok()).flatten();
        let code = problem.and_then(|problem| problem["code"].as_str().map(str::to_owned)).unwrap_or_default();
        Ok(Some(Answer {
            status: answer.status(),
            outcome: answer.header("idempotency-outcome").to_owned(),
            digest: if code.is_empty() { answer.digest() } else { String::new() },
            nonce: answer.header("x-nonce").to_owned(),
            code,
        }))
    }
}

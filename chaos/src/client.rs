//! Clients that record each call before and after it.

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::gateway::Address;
use crate::history::{Answer, Last, Of, Recorder, What};
use crate::http::{self, Message};

/// Timeout of a client for a response, or for its next byte.
const PATIENCE: Duration = Duration::from_secs(12);

static CALLS: AtomicU64 = AtomicU64::new(1);

/// Request of a client.
#[derive(Clone, Debug)]
pub struct Call {
    /// Operation that it belongs to.
    pub of: Of,
    /// Request body.
    pub body: String,
    /// Steps for the upstream: see [`upstream`](crate::upstream).
    pub steps: String,
    /// Seconds for which it waits for another request's response.
    pub wait: Option<u32>,
    /// Client disconnect, if it does not wait for the response.
    pub leaves: Option<Leaves>,
    /// Expected result.
    pub last: Option<Last>,
}

/// Client disconnect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// Disconnects before it has sent the whole request.
    MidBody,
    /// Disconnects some time after it has sent the whole request.
    After(Duration),
}

impl Call {
    /// Creates a call of the principal `alice`, which is executed and answered at once.
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

    /// Returns the same call with these steps for the upstream.
    pub fn steps(mut self, steps: &str) -> Self {
        self.steps = steps.to_owned();
        self
    }

    /// Sends the call, and records the result.
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

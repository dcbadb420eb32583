//! History of events in the order of their observation, by the clients, the upstream and the fault
//! injector.
//!
//! Times are microseconds of one monotonic clock, because all recorders are in one process. Each
//! event gets its time under the lock that orders it. A client's events are recorded before it
//! sends and after it has read. The upstream's are recorded after it has read and before it writes
//! a byte. Therefore the recorder of an earlier event cannot have seen a later one.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Microseconds since the history began.
pub type Micros = u64;

/// Recorded event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Time of the event.
    pub at: Micros,
    /// Content of the event.
    pub what: What,
}

/// Operation that a request belongs to. Keys of different principals are separate.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Of {
    /// Key that the client sent.
    pub key: String,
    /// Principal of the client.
    pub principal: String,
    /// `true` if its route is at-least-once.
    pub again: bool,
}

/// Content of an event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum What {
    /// A client is about to send a request.
    Sent {
        /// Number of the call.
        call: u64,
        /// Operation of the request.
        of: Of,
        /// Digest of the request body.
        body: String,
        /// Start of the gateway that receives the request.
        gateway: u64,
        /// Expected result, for calls after the last recovery.
        last: Option<Last>,
    },
    /// A client got a complete response.
    Answered {
        /// Number of the call.
        call: u64,
        /// Response that it got.
        answer: Answer,
    },
    /// A client got no complete response, or did not wait for one: the call stays open to the end
    /// of the history.
    Broke {
        /// Number of the call.
        call: u64,
    },
    /// A complete request has reached the upstream.
    Arrived {
        /// Nonce of this request, which its response contains.
        nonce: String,
        /// Operation of the request.
        of: Of,
        /// Digest of the received body.
        body: String,
        /// Record and attempt, as the gateway names them.
        claim: String,
    },
    /// The request took effect, and this was synced.
    Executed {
        /// Nonce of the request.
        nonce: String,
    },
    /// The upstream is about to respond, or has ended without a response.
    Left {
        /// Nonce of the request.
        nonce: String,
        /// Reply of the upstream.
        reply: Reply,
    },
    /// Everything that this start of a gateway did was done before this, because its process ended.
    Died {
        /// Start of the gateway.
        gateway: u64,
    },
    /// This start of a gateway continues after it was stopped.
    Continued {
        /// Start of the gateway.
        gateway: u64,
    },
    /// A fault is about to be injected into the shared store or a proxy before it.
    StoreHurt,
    /// The store has recovered: it can serve all later operations.
    StoreHealed,
    /// All faults have ended; the last calls follow.
    Healed,
}

/// Reply of the upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Complete response with this digest.
    Whole(String),
    /// Complete response whose status says that nothing was executed.
    Released(String),
    /// Complete response whose status leaves the execution unknown.
    Doubtful(String),
    /// Truncated response, or none.
    Cut,
}

/// Complete response, as a client read it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Status of the response.
    pub status: u16,
    /// Value of `Idempotency-Outcome`.
    pub outcome: String,
    /// Code of the problem, if the gateway generated the response.
    pub code: String,
    /// Nonce that the upstream gave the request, if this is its response.
    pub nonce: String,
    /// Digest of the status, the headers that the upstream chose, and the body.
    pub digest: String,
}

/// Expected result of a call after the last recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Last {
    /// Faults may have affected its key: a stored response, or an unknown outcome that is reported
    /// as such.
    Settled,
    /// No fault affected its key: it executes, or is replayed.
    Fresh,
}

/// Records events in memory.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    events: Mutex<Vec<Event>>,
}

impl Recorder {
    /// Starts a history.
    pub fn begin() -> Self {
        Self { began: Instant::now(), events: Mutex::default() }
    }

    /// Records an event now.
    pub fn saw(&self, what: What) {
        let mut events = self.events.lock().expect("nobody panics while it is held");
        let at = self.began.elapsed().as_micros() as Micros;
        events.push(Event { at, what });
    }

    /// Returns the number of recorded events.
    pub(crate) fn count(&self) -> usize {
        self.events.lock().expect("nobody panics while it is held").len()
    }

    /// Returns all recorded events.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().expect("nobody panics while it is held").clone()
    }

    /// Writes all recorded events, one line of JSON each.
    ///
    /// # Errors
    ///
    /// Errors of the file.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        for event in self.events() {
            serde_json::to_writer(&mut file, &event)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    }
}

//! What was seen, in the order in which it was seen: by those who called, by the upstream, and by whoever did the harm.
//!
//! Times are microseconds of one monotonic clock, since all who log are one process; each event gets its time under the
//! lock that orders it. What a caller does is logged before it sends and after it has read; what the upstream does, after it
//! has read and before it says a byte. So whoever stands earlier here cannot have seen what stands later.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Microseconds since the history began.
pub type Micros = u64;

/// One thing that was seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at: Micros,
    /// What.
    pub what: What,
}

/// Whose operation it is. Keys of different principals never meet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Of {
    /// What the client sent as its key.
    pub key: String,
    /// Who asked.
    pub principal: String,
    /// What its route promises.
    pub again: bool,
}

/// What was seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum What {
    /// A client is about to send a request.
    Sent {
        /// Which call this is.
        call: u64,
        /// Whose operation.
        of: Of,
        /// A digest of the request's body.
        body: String,
        /// Which start of which gateway it goes to.
        gateway: u64,
        /// What is expected of it, once all is healed.
        last: Option<Last>,
    },
    /// It got a whole answer.
    Answered {
        /// The call.
        call: u64,
        /// What it got.
        answer: Answer,
    },
    /// It got no whole answer, or did not wait for one: open, to the end of the history.
    Broke {
        /// The call.
        call: u64,
    },
    /// A request has reached the upstream, whole.
    Arrived {
        /// Names this request; its answer bears it.
        nonce: String,
        /// Whose operation.
        of: Of,
        /// A digest of the body that came.
        body: String,
        /// The record and the attempt, as the gateway names them.
        claim: String,
    },
    /// It took effect, and that is synced.
    Executed {
        /// The request.
        nonce: String,
    },
    /// The upstream is about to answer, or has ended without an answer.
    Left {
        /// The request.
        nonce: String,
        /// What it says.
        reply: Reply,
    },
    /// All that this start of a gateway did ended before this, for its process did.
    Died {
        /// Which start of which gateway.
        gateway: u64,
    },
    /// This start of a gateway runs again after it was stopped.
    Continued {
        /// Which start of which gateway.
        gateway: u64,
    },
    /// The shared store, or a way to it, is about to be hurt.
    StoreHurt,
    /// It was healed: whatever is asked of it from now on it can do.
    StoreHealed,
    /// Nothing is hurt any more; the last calls follow.
    Healed,
}

/// What the upstream says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// A whole answer, with this digest.
    Whole(String),
    /// A whole answer whose status says that nothing was executed.
    Released(String),
    /// A whole answer whose status leaves open whether it was executed.
    Doubtful(String),
    /// A piece of an answer, or none.
    Cut,
}

/// A whole answer, as a client read it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// `Idempotency-Outcome`.
    pub outcome: String,
    /// The problem's code, where it is one of the gateway's own.
    pub code: String,
    /// What the upstream named the request by, where this is its answer.
    pub nonce: String,
    /// Of the status, the headers that the upstream chose, and the body.
    pub digest: String,
}

/// What is expected of a call after all is healed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Last {
    /// Its key may have been hurt: a kept answer, or an honest word that nobody knows.
    Settled,
    /// Its key was never hurt: it executes, or is replayed.
    Fresh,
}

/// Writes events down, in memory.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    events: Mutex<Vec<Event>>,
}

impl Recorder {
    /// Begins a history.
    pub fn begin() -> Self {
        Self { began: Instant::now(), events: Mutex::default() }
    }

    /// This is seen now.
    pub fn saw(&self, what: What) {
        let mut events = self.events.lock().expect("nobody panics while it is held");
        let at = self.began.elapsed().as_micros() as Micros;
        events.push(Event { at, what });
    }

    /// How much was seen so far.
    pub(crate) fn count(&self) -> usize {
        self.events.lock().expect("nobody panics while it is held").len()
    }

    /// All that was seen so far.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().expect("nobody panics while it is held").clone()
    }

    /// All that was seen, one line of JSON each.
    ///
    /// # Errors
    ///
    /// The file's.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        for event in self.events() {
            serde_json::to_writer(&mut file, &event)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    }
}

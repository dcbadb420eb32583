//! What is asked about a key, owned: whoever asked may go away.

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_postgres::Row;

use super::failure::Next;
use crate::codec;
use crate::record::{Record, Stage, Version};
use crate::secret::RecordId;
use crate::store::Error;

/// What is said to a question: the row that tells, or what to do about the failure and why.
pub(super) type Told = Result<Option<Row>, (Next, Error)>;

/// What is asked.
#[derive(Clone, Debug)]
pub(super) enum Question {
    Insert(Write),
    /// The end of an execution: in flight before, completed after, of the same attempt.
    Complete(Write),
    Replace(Over, Write),
    Get,
    Remove(Over),
}

/// A record as a row. A copy is cheap.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) attempt: [u8; 16],
    pub(super) stage: i16,
    pub(super) record: Bytes,
    /// In microseconds; never is no number.
    pub(super) due: Option<i64>,
}

/// The version that is written over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Over {
    pub(super) attempt: [u8; 16],
    pub(super) stage: i16,
}

/// Which questions go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// Into one statement, as the next ones.
    Inserts,
    Completions,
    Replacements,
    Removals,
    /// Each its own statement, behind one another without a pause: none of them waits for a lock.
    Looks,
}

/// A question, and who waits for its answer.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) id: RecordId,
    pub(super) question: Question,
    /// It goes without others: one of its like held them up, or failed.
    pub(super) is_alone: bool,
    /// What was not sent by then is not sent any more.
    pub(super) until: Instant,
    answer: Mutex<Option<oneshot::Sender<Told>>>,
}

impl Ask {
    pub(super) fn new(
        id: RecordId,
        question: Question,
        is_alone: bool,
        until: Instant,
    ) -> (Self, oneshot::Receiver<Told>) {
        let (answer, told) = oneshot::channel();
        (Self { id, question, is_alone, until, answer: Mutex::new(Some(answer)) }, told)
    }

    /// Answers, once; whether it was this time.
    pub(super) fn answer(&self, told: Told) -> bool {
        let answer = self.answer.lock().take();
        // Who went away does not miss it.
        answer.map(|answer| answer.send(told)).is_some()
    }

    pub(super) fn is_answered(&self) -> bool {
        self.answer.lock().is_none()
    }

    /// Whether nobody waits for the answer any more.
    pub(super) fn is_given_up(&self) -> bool {
        self.answer.lock().as_ref().is_some_and(oneshot::Sender::is_closed)
    }

    pub(super) fn goes_with(&self, other: &Self) -> bool {
        !self.is_alone && !other.is_alone && self.question.group() == other.question.group()
    }
}

impl Question {
    /// To replace what is at version `over`.
    pub(super) fn replace(over: Version, id: &RecordId, record: &Record) -> Self {
        let write = Write::new(id, record);
        let is_end =
            over.attempt == record.attempt && over.stage == Stage::InFlight && record.phase.stage() == Stage::Completed;
        if is_end { Self::Complete(write) } else { Self::Replace(over.into(), write) }
    }

    pub(super) fn group(&self) -> Group {
        match self {
            Self::Insert(_) => Group::Inserts,
            Self::Complete(_) => Group::Completions,
            Self::Replace(..) => Group::Replacements,
            Self::Remove(_) => Group::Removals,
            Self::Get => Group::Looks,
        }
    }

    /// Whether it is about a record that is there already: the word of whoever holds it, or of the sweep.
    pub(super) fn writes_over(&self) -> bool {
        self.over().is_some()
    }

    /// How many bytes it carries.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Insert(write) | Self::Complete(write) | Self::Replace(_, write) => write.record.len(),
            Self::Get | Self::Remove(_) => 0,
        }
    }

    /// Which version it is about.
    pub(super) fn over(&self) -> Option<Over> {
        match self {
            Self::Complete(write) => Some(Over { attempt: write.attempt, stage: number(Stage::InFlight) }),
            Self::Replace(over, _) | Self::Remove(over) => Some(*over),
            Self::Insert(_) | Self::Get => None,
        }
    }

    pub(super) fn write(&self) -> Option<&Write> {
        match self {
            Self::Insert(write) | Self::Complete(write) | Self::Replace(_, write) => Some(write),
            Self::Get | Self::Remove(_) => None,
        }
    }
}

impl Write {
    pub(super) fn new(id: &RecordId, record: &Record) -> Self {
        // What is longer than PostgreSQL's time is long is for ever.
        const LONGEST: i64 = 10_000 * 365 * 86_400 * 1_000_000;
        let micros = |due: std::time::Duration| i64::try_from(due.as_micros()).ok().filter(|micros| *micros <= LONGEST);
        Self {
            attempt: record.attempt.0,
            stage: number(record.phase.stage()),
            record: codec::encode(id, record),
            due: record.due().and_then(micros),
        }
    }
}

impl From<Version> for Over {
    fn from(version: Version) -> Self {
        Self { attempt: version.attempt.0, stage: number(version.stage) }
    }
}

/// The number of a stage, as its column has it.
pub(super) fn number(stage: Stage) -> i16 {
    codec::number(stage).into()
}

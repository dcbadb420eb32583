//! Operations on keys, owned by their queue: their callers may be dropped.

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_postgres::Row;

use super::failure::Reaction;
use crate::codec;
use crate::record::{PhaseKind, Record, Version};
use crate::secret::RecordId;
use crate::store::Error;

/// Result of a job: the row returned, or how to proceed after an error.
pub(super) type JobResult = Result<Option<Row>, (Reaction, Error)>;

/// Operation on one key.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    Insert(Write),
    /// Completion of an attempt: compare-and-swap from in flight to completed.
    Complete(Write),
    Replace(ExpectedVersion, Write),
    Get,
    Remove(ExpectedVersion),
}

/// Record encoded as a row. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) attempt: [u8; 16],
    pub(super) stage: i16,
    pub(super) record: Bytes,
    /// In microseconds; `None` if the record is never due.
    pub(super) due: Option<i64>,
}

/// Version that the stored record must have.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExpectedVersion {
    pub(super) attempt: [u8; 16],
    pub(super) stage: i16,
}

/// Kinds of operations that are batched together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// Batched into one statement, as the next ones are.
    Inserts,
    Completions,
    Replacements,
    Removals,
    /// Pipelined single-row statements: none of them waits for a lock.
    Reads,
}

/// Operation and the channel for its result.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: RecordId,
    pub(super) operation: Operation,
    /// True if it is sent alone: it failed in a batch, or held one up.
    pub(super) unbatched: bool,
    /// Deadline of sending it.
    pub(super) until: Instant,
    tx: Mutex<Option<oneshot::Sender<JobResult>>>,
}

impl Job {
    pub(super) fn new(
        id: RecordId,
        operation: Operation,
        unbatched: bool,
        until: Instant,
    ) -> (Self, oneshot::Receiver<JobResult>) {
        let (tx, rx) = oneshot::channel();
        (Self { id, operation, unbatched, until, tx: Mutex::new(Some(tx)) }, rx)
    }

    /// Sends the result, once. Returns true if this was the first call.
    pub(super) fn respond(&self, result: JobResult) -> bool {
        let tx = self.tx.lock().take();
        // The caller may have been dropped.
        tx.map(|tx| tx.send(result)).is_some()
    }

    pub(super) fn is_done(&self) -> bool {
        self.tx.lock().is_none()
    }

    /// Returns true if the caller was dropped.
    pub(super) fn is_cancelled(&self) -> bool {
        self.tx.lock().as_ref().is_some_and(oneshot::Sender::is_closed)
    }

    pub(super) fn can_batch_with(&self, other: &Self) -> bool {
        !self.unbatched && !other.unbatched && self.operation.group() == other.operation.group()
    }
}

impl Operation {
    /// Builds a compare-and-swap.
    pub(super) fn replace(over: Version, id: &RecordId, record: &Record) -> Self {
        let write = Write::new(id, record);
        let is_end = over.attempt == record.attempt
            && over.stage == PhaseKind::InFlight
            && record.phase.stage() == PhaseKind::Completed;
        if is_end { Self::Complete(write) } else { Self::Replace(over.into(), write) }
    }

    pub(super) fn group(&self) -> Group {
        match self {
            Self::Insert(_) => Group::Inserts,
            Self::Complete(_) => Group::Completions,
            Self::Replace(..) => Group::Replacements,
            Self::Remove(_) => Group::Removals,
            Self::Get => Group::Reads,
        }
    }

    /// Returns true if it changes an existing record: it comes from the claim holder or from the
    /// sweep.
    pub(super) fn modifies(&self) -> bool {
        self.expected().is_some()
    }

    /// Returns the size of the record in bytes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Insert(write) | Self::Complete(write) | Self::Replace(_, write) => write.record.len(),
            Self::Get | Self::Remove(_) => 0,
        }
    }

    /// Returns the version that the stored record must have.
    pub(super) fn expected(&self) -> Option<ExpectedVersion> {
        match self {
            Self::Complete(write) => {
                Some(ExpectedVersion { attempt: write.attempt, stage: number(PhaseKind::InFlight) })
            }
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
        // Longer than PostgreSQL's timestamps reach means never.
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

impl From<Version> for ExpectedVersion {
    fn from(version: Version) -> Self {
        Self { attempt: version.attempt.0, stage: number(version.stage) }
    }
}

/// Returns the phase as a number, as stored in its column.
pub(super) fn number(stage: PhaseKind) -> i16 {
    codec::number(stage).into()
}

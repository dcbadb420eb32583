//! What stands in a key: `attempt (16 bytes) · stage (1 byte) · record`.
//!
//! The first 17 bytes are the version, so that a script compares them without knowing more. An answer stands beside its
//! record, in a key of its own that ends with retention; the record then says what is left: a tombstone. So an answer takes
//! memory as long as it was promised, and no sweep is needed for it.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec;
use crate::record::{Executed, Found, Phase, Record, Stage, Version};
use crate::secret::{RecordId, push_hex};
use crate::store::Error;

/// What a claim and an `unknown` get as their time, so that the server can tell their age: a hundred years. It ends neither.
pub(super) const FOREVER: Duration = Duration::from_secs(36_525 * 86_400);

const VERSION_BYTES: usize = 17;

/// A record as it is sent.
pub(super) struct Sent {
    /// The record's key gets this …
    pub(super) record: Bytes,
    /// … for so many ms.
    pub(super) record_ms: u64,
    /// The answer's key gets this, empty for none …
    pub(super) answer: Bytes,
    /// … for so many ms.
    pub(super) answer_ms: u64,
}

impl Sent {
    pub(super) fn new(id: &RecordId, record: &Record) -> Self {
        let lasts = ms(lasts(record));
        match &record.phase {
            Phase::Completed { print, retention, tombstone, .. } => {
                let phase = Phase::Tombstone { print: print.clone(), executed: Executed::Yes, keep: *tombstone };
                let left = Record { phase, ..record.clone() };
                Self {
                    record: with_version(record.version(), &codec::encode(id, &left)),
                    record_ms: lasts,
                    answer: codec::encode(id, record),
                    answer_ms: ms(*retention),
                }
            }
            _ => Self {
                record: with_version(record.version(), &codec::encode(id, record)),
                record_ms: lasts,
                answer: Bytes::new(),
                answer_ms: 0,
            },
        }
    }
}

/// The version's bytes.
pub(super) fn version(version: Version) -> [u8; VERSION_BYTES] {
    let mut bytes = [0; VERSION_BYTES];
    bytes[..16].copy_from_slice(&version.attempt.0);
    bytes[16] = match version.stage {
        Stage::InFlight => 1,
        Stage::Completed => 2,
        Stage::Released => 3,
        Stage::Unknown => 4,
        Stage::Tombstone => 5,
    };
    bytes
}

/// The key of a record; the braces keep its answer in the same slot.
pub(super) fn record_key(id: &RecordId) -> String {
    key(id, "")
}

/// The key of its answer.
pub(super) fn answer_key(id: &RecordId) -> String {
    key(id, ":answer")
}

fn key(id: &RecordId, end: &str) -> String {
    const BEGIN: &str = "onceward:{";
    let mut key = String::with_capacity(BEGIN.len() + 2 * id.0.len() + 1 + end.len());
    key.push_str(BEGIN);
    push_hex(&mut key, &id.0);
    key.push('}');
    key.push_str(end);
    key
}

/// What stands in a record's key.
pub(super) fn read(id: &RecordId, bytes: &Bytes) -> Result<Record, Error> {
    if bytes.len() < VERSION_BYTES {
        return Err(Error::unreadable("the record is shorter than its version"));
    }
    let record = codec::decode(id, &bytes.slice(VERSION_BYTES..))?;
    let says = version(record.version());
    let is_left = bytes[16] == 2 && matches!(record.phase, Phase::Tombstone { .. });
    match says[..16] == bytes[..16] && (says[16] == bytes[16] || is_left) {
        true => Ok(record),
        false => Err(Error::unreadable("the record is another than its version says")),
    }
}

/// Whether what stands in a record's key has an answer beside it.
pub(super) fn is_completed(bytes: &[u8]) -> bool {
    bytes.get(16) == Some(&2)
}

/// What a record's key, what is left of its time, and its answer's key say together.
pub(super) fn found(id: &RecordId, bytes: &Bytes, left: Duration, answer: Option<Bytes>) -> Result<Found, Error> {
    let record = read(id, bytes)?;
    if let Some(answer) = answer.filter(|_| is_completed(bytes)) {
        return completed(id, &record, &answer);
    }
    let age = match &record.phase {
        // Of an answer whose time is over: since then.
        Phase::Tombstone { keep, .. } => keep.saturating_sub(left),
        _ => lasts(&record).saturating_sub(left),
    };
    Ok(Found { record: Box::new(record), age, holder_gone: false })
}

/// An answer that was found beside its record.
///
/// That it is there says that retention is not over; how far it is gone nobody asks, and the age says less, not more.
pub(super) fn completed(id: &RecordId, left: &Record, answer: &Bytes) -> Result<Found, Error> {
    let record = codec::decode(id, answer)?;
    match record.attempt == left.attempt && matches!(record.phase, Phase::Completed { .. }) {
        true => Ok(Found { record: Box::new(record), age: Duration::ZERO, holder_gone: false }),
        false => Err(Error::unreadable("the answer is another's than its record says")),
    }
}

/// How long the record's key stays from its write on.
fn lasts(record: &Record) -> Duration {
    match &record.phase {
        Phase::InFlight { .. } | Phase::Unknown { .. } => FOREVER,
        Phase::Completed { retention, tombstone, .. } => retention.saturating_add(*tombstone).min(FOREVER),
        Phase::Released { keep } | Phase::Tombstone { keep, .. } => (*keep).min(FOREVER),
    }
}

fn with_version(of: Version, record: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(VERSION_BYTES + record.len());
    bytes.put_slice(&version(of));
    bytes.put_slice(record);
    bytes.freeze()
}

/// At least one: the server takes no zero.
fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.min(FOREVER).as_millis()).unwrap_or(u64::MAX).max(1)
}

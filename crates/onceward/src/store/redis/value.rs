//! What stands in a key: `attempt (16 bytes) · stage (1 byte) · record`, and a small answer with it.
//!
//! The first 17 bytes are the version, so that a script compares them without knowing more. Of a completed record the
//! record is what is left once its answer is gone: a tombstone. The answer stands
//!
//! - **within**, if it is small: stage 6 · when its retention ends, in ms by the server's clock (8 bytes) · the record's
//!   length (4 bytes) · record · answer. One command replays it. A script takes it out when its time is over;
//! - **beside**, in a key of its own that ends with retention, so that what is large takes memory no longer than promised.

use std::time::Duration;

use bytes::Bytes;

use crate::codec;
use crate::record::{Executed, Found, Kept, Phase, Record, Version};
use crate::secret::{RecordId, hex_digits};
use crate::store::Error;

/// What a claim and an `unknown` get as their time, so that the server can tell their age: a hundred years. It ends neither.
pub(super) const FOREVER: Duration = Duration::from_secs(36_525 * 86_400);

pub(super) const VERSION_BYTES: usize = 17;

/// The bytes of what is completed; the other stages' are the codec's. The scripts know 2, 5 and 6.
const BESIDE: u8 = 2;
const TOMBSTONE: u8 = 5;
const WITHIN: u8 = 6;

/// Where the record begins that has its answer within.
const WITHIN_HEAD: usize = VERSION_BYTES + 8 + 4;

const BEGIN: &[u8] = b"onceward:{";

const ANSWER: &[u8] = b":answer";

pub(super) const KEY_BYTES: usize = BEGIN.len() + 64 + 1;

const ANSWER_KEY_BYTES: usize = KEY_BYTES + ANSWER.len();

/// What a record takes without an answer, in bytes, unless its fingerprint takes many headers.
const RECORD_TYPICAL: usize = 288;

/// A record as it is sent.
pub(super) struct Sent {
    /// The record's key gets this …
    pub(super) record: Vec<u8>,
    /// … for so many ms.
    pub(super) record_ms: u64,
    /// The answer's key gets this, empty for none …
    pub(super) answer: Vec<u8>,
    /// … for so many ms.
    pub(super) answer_ms: u64,
}

impl Sent {
    /// An answer of at most `within_max` bytes stands within its record, if it is known what time it is there, in ms.
    pub(super) fn new(id: &RecordId, record: &Record, within_max: usize, now_ms: impl FnOnce() -> Option<u64>) -> Self {
        let mut begin = Vec::with_capacity(RECORD_TYPICAL);
        begin.extend_from_slice(&version(record.version()));
        let mut sent = Self { record: begin, record_ms: ms(lasts(record)), answer: Vec::new(), answer_ms: 0 };
        let Phase::Completed { print, kept, retention, tombstone } = &record.phase else {
            codec::write(&mut sent.record, id, record);
            return sent;
        };
        let phase = Phase::Tombstone { print: print.clone(), executed: Executed::Yes, keep: *tombstone };
        let left = Record { key_hash: record.key_hash, attempt: record.attempt, phase };
        match if size(kept) <= within_max { now_ms() } else { None } {
            Some(now_ms) => {
                sent.record.reserve(RECORD_TYPICAL + size(kept));
                sent.record[VERSION_BYTES - 1] = WITHIN;
                sent.record.extend_from_slice(&now_ms.saturating_add(ms(*retention)).to_be_bytes());
                sent.record.extend_from_slice(&[0; 4]);
                codec::write(&mut sent.record, id, &left);
                let length = u32::try_from(sent.record.len() - WITHIN_HEAD).unwrap_or(u32::MAX);
                sent.record[WITHIN_HEAD - 4..WITHIN_HEAD].copy_from_slice(&length.to_be_bytes());
                codec::write_answer(&mut sent.record, id, record);
            }
            None => {
                codec::write(&mut sent.record, id, &left);
                codec::write_answer(&mut sent.answer, id, record);
                sent.answer_ms = ms(*retention);
            }
        }
        sent
    }
}

/// The version's bytes.
pub(super) fn version(version: Version) -> [u8; VERSION_BYTES] {
    let mut bytes = [0; VERSION_BYTES];
    bytes[..16].copy_from_slice(&version.attempt.0);
    bytes[16] = codec::number(version.stage);
    bytes
}

/// The key of a record, `onceward:{HASH}`; the braces keep its answer in the same slot.
pub(super) fn record_key(id: &RecordId) -> [u8; KEY_BYTES] {
    let mut key = [b'}'; KEY_BYTES];
    key[..BEGIN.len()].copy_from_slice(BEGIN);
    for (digits, byte) in key[BEGIN.len()..].as_chunks_mut().0.iter_mut().zip(id.0) {
        *digits = hex_digits(byte);
    }
    key
}

/// The key of its answer, if that stands beside it. The scripts know it too.
pub(super) fn answer_key(id: &RecordId) -> [u8; ANSWER_KEY_BYTES] {
    answer_of(&record_key(id))
}

/// The same, of the record with this key.
pub(super) fn answer_of(record_key: &[u8; KEY_BYTES]) -> [u8; ANSWER_KEY_BYTES] {
    let mut key = [0; ANSWER_KEY_BYTES];
    key[..KEY_BYTES].copy_from_slice(record_key);
    key[KEY_BYTES..].copy_from_slice(ANSWER);
    key
}

/// Whether one whose version ends so has an answer, or had one.
pub(super) fn has_had_answer(stage: u8) -> bool {
    matches!(stage, BESIDE | TOMBSTONE)
}

/// What the first bytes of a record's key say, which are all that is asked of many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    InFlight,
    /// With its answer within, until so many ms by the server's clock.
    Within(u64),
    /// With its answer beside it.
    Beside,
    Other,
}

impl Head {
    /// How many bytes tell it.
    pub(super) const BYTES: usize = VERSION_BYTES + 8;

    pub(super) fn of(bytes: &[u8]) -> Self {
        match bytes.get(VERSION_BYTES - 1) {
            Some(1) => Self::InFlight,
            Some(&WITHIN) => match bytes.get(VERSION_BYTES..Self::BYTES).and_then(|ends| ends.try_into().ok()) {
                Some(ends) => Self::Within(u64::from_be_bytes(ends)),
                None => Self::Other,
            },
            Some(&BESIDE) => Self::Beside,
            _ => Self::Other,
        }
    }
}

/// What stands in a record's key.
pub(super) struct There {
    pub(super) record: Record,
    /// What stands within.
    answer: Option<Bytes>,
}

impl There {
    pub(super) fn read(id: &RecordId, bytes: &Bytes) -> Result<Self, Error> {
        let cut = || Error::unreadable("the record is shorter than it says");
        let stage = *bytes.get(VERSION_BYTES - 1).ok_or_else(cut)?;
        let (record, answer) = match stage {
            WITHIN => {
                let length = bytes.get(WITHIN_HEAD - 4..WITHIN_HEAD).and_then(|length| length.try_into().ok());
                let ends = WITHIN_HEAD + u32::from_be_bytes(length.ok_or_else(cut)?) as usize;
                if ends > bytes.len() {
                    return Err(cut());
                }
                (bytes.slice(WITHIN_HEAD..ends), Some(bytes.slice(ends..)))
            }
            _ => (bytes.slice(VERSION_BYTES..), None),
        };
        let record = codec::decode(id, &record)?;
        let says = version(record.version());
        let is_left = matches!(stage, BESIDE | WITHIN) && matches!(record.phase, Phase::Tombstone { .. });
        match says[..16] == bytes[..16] && (says[16] == stage || is_left) {
            true => Ok(Self { record, answer }),
            false => Err(Error::unreadable("the record is another than its version says")),
        }
    }

    /// With its answer, which is so old: that within, or the one beside it.
    pub(super) fn completed(
        self,
        id: &RecordId,
        beside: Option<&Bytes>,
        age: impl FnOnce(&Record) -> Duration,
    ) -> Result<Found, Error> {
        let answer = self.answer.as_ref().or(beside).ok_or_else(|| Error::unreadable("the answer is missing"))?;
        let record = codec::decode_answer(id, answer, &self.record)?;
        let age = age(&record);
        Ok(Found { record: Box::new(record), age, holder_gone: false })
    }

    /// As it is where so much of its key's time is left, and whether its answer is still to be had.
    pub(super) fn found(
        self,
        id: &RecordId,
        left: Duration,
        is_kept: bool,
        beside: Option<&Bytes>,
    ) -> Result<Found, Error> {
        if is_kept {
            return self.completed(id, beside, |record| lasts(record).saturating_sub(left));
        }
        let age = match &self.record.phase {
            // Of an answer whose time is over: since then.
            Phase::Tombstone { keep, .. } => keep.saturating_sub(left),
            _ => lasts(&self.record).saturating_sub(left),
        };
        Ok(Found { record: Box::new(self.record), age, holder_gone: false })
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

/// About how many bytes an answer takes.
fn size(kept: &Kept) -> usize {
    match kept {
        Kept::Whole(reply) => {
            reply.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 8).sum::<usize>()
                + reply.body.len()
        }
        Kept::Head(head) => head.location.as_ref().map_or(0, String::len),
    }
}

/// At least one: the server takes no zero.
fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.min(FOREVER).as_millis()).unwrap_or(u64::MAX).max(1)
}

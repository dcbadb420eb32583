//! Layout of a record's value: `attempt (16 bytes) · phase (1 byte) · record`, plus an inline
//! response.
//!
//! The first 17 bytes are the version, so that a script compares them without knowing more.
//! The record of a completed request is what remains without its response: a tombstone.
//! The response is
//!
//! - **inline** if it is small: phase 6 · end of its retention in ms by the server's clock (8
//!   bytes) · the record's length (4 bytes) · record · response. One command replays it. A script
//!   removes it once retention has ended.
//! - **external** otherwise: in a key of its own, which expires with retention, so that a large
//!   response takes no memory afterwards.

use std::time::Duration;

use bytes::Bytes;

use crate::codec;
use crate::record::{Executed, Phase, Record, Retained, StoredRecord, Version};
use crate::secret::{RecordId, hex_digits};
use crate::store::Error;

/// TTL of claims and `unknown` records, a hundred years: it ends neither, and lets the server
/// report their age.
pub(super) const FOREVER: Duration = Duration::from_secs(36_525 * 86_400);

pub(super) const VERSION_BYTES: usize = 17;

/// Phase bytes of completed records; those of other phases are the codec's. The scripts know 2, 5
/// and 6.
const EXTERNAL: u8 = 2;
const TOMBSTONE: u8 = 5;
const INLINE: u8 = 6;

/// Offset of the record in a value with an inline response.
const INLINE_HEADER_BYTES: usize = VERSION_BYTES + 8 + 4;

const KEY_PREFIX: &[u8] = b"onceward:{";

const RESPONSE_SUFFIX: &[u8] = b":answer";

pub(super) const KEY_BYTES: usize = KEY_PREFIX.len() + 64 + 1;

const RESPONSE_KEY_BYTES: usize = KEY_BYTES + RESPONSE_SUFFIX.len();

/// Typical size in bytes of a record without its response; many fingerprinted headers make it
/// larger.
const RECORD_TYPICAL: usize = 224;

/// Record encoded for sending.
pub(super) struct EncodedRecord {
    /// Value of the record's key.
    pub(super) record: Vec<u8>,
    /// TTL of the record's key, in ms.
    pub(super) record_ms: u64,
    /// Value of the external response's key; empty if there is none.
    pub(super) response: Vec<u8>,
    /// TTL of the external response's key, in ms.
    pub(super) response_ms: u64,
}

impl EncodedRecord {
    /// Encodes a record. A response of up to `inline_max` bytes is inline, provided that the
    /// server's clock is known.
    pub(super) fn new(id: &RecordId, record: &Record, inline_max: usize, now_ms: impl FnOnce() -> Option<u64>) -> Self {
        let mut begin = Vec::with_capacity(RECORD_TYPICAL);
        begin.extend_from_slice(&version(record.version()));
        let mut sent = Self { record: begin, record_ms: ms(key_ttl(record)), response: Vec::new(), response_ms: 0 };
        let Phase::Completed { print, kept, retention, tombstone } = &record.phase else {
            codec::write(&mut sent.record, id, record);
            return sent;
        };
        let phase = Phase::Tombstone { print: print.clone(), executed: Executed::Yes, keep: *tombstone };
        let left = Record { key_hash: record.key_hash, attempt: record.attempt, phase };
        match if size(kept) <= inline_max { now_ms() } else { None } {
            Some(now_ms) => {
                sent.record.reserve(RECORD_TYPICAL + size(kept));
                sent.record[VERSION_BYTES - 1] = INLINE;
                sent.record.extend_from_slice(&now_ms.saturating_add(ms(*retention)).to_be_bytes());
                sent.record.extend_from_slice(&[0; 4]);
                codec::write(&mut sent.record, id, &left);
                let length = u32::try_from(sent.record.len() - INLINE_HEADER_BYTES).unwrap_or(u32::MAX);
                sent.record[INLINE_HEADER_BYTES - 4..INLINE_HEADER_BYTES].copy_from_slice(&length.to_be_bytes());
                codec::write_answer(&mut sent.record, id, record);
            }
            None => {
                codec::write(&mut sent.record, id, &left);
                codec::write_answer(&mut sent.response, id, record);
                sent.response_ms = ms(*retention);
            }
        }
        sent
    }
}

/// Returns the bytes of a version.
pub(super) fn version(version: Version) -> [u8; VERSION_BYTES] {
    let mut bytes = [0; VERSION_BYTES];
    bytes[..16].copy_from_slice(&version.attempt.0);
    bytes[16] = codec::number(version.stage);
    bytes
}

/// Returns the key of a record, `onceward:{HASH}`. The braces keep its external response in the
/// same slot.
pub(super) fn record_key(id: &RecordId) -> [u8; KEY_BYTES] {
    let mut key = [b'}'; KEY_BYTES];
    key[..KEY_PREFIX.len()].copy_from_slice(KEY_PREFIX);
    for (digits, byte) in key[KEY_PREFIX.len()..].as_chunks_mut().0.iter_mut().zip(id.0) {
        *digits = hex_digits(byte);
    }
    key
}

/// Returns the key of the record's external response. The scripts build it too.
pub(super) fn response_key(id: &RecordId) -> [u8; RESPONSE_KEY_BYTES] {
    response_key_of(&record_key(id))
}

/// Returns the key of the external response, from the record's key.
pub(super) fn response_key_of(record_key: &[u8; KEY_BYTES]) -> [u8; RESPONSE_KEY_BYTES] {
    let mut key = [0; RESPONSE_KEY_BYTES];
    key[..KEY_BYTES].copy_from_slice(record_key);
    key[KEY_BYTES..].copy_from_slice(RESPONSE_SUFFIX);
    key
}

/// Returns true if a record whose version ends in this phase byte has, or had, an external
/// response.
pub(super) fn may_have_response(stage: u8) -> bool {
    matches!(stage, EXTERNAL | TOMBSTONE)
}

/// First bytes of a record's value, which are enough for a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordHeader {
    InFlight,
    /// Completed, with an inline response that expires at this time in ms, by the server's clock.
    Inline(u64),
    /// Completed, with an external response.
    External,
    Other,
}

impl RecordHeader {
    /// Length of the header.
    pub(super) const BYTES: usize = VERSION_BYTES + 8;

    pub(super) fn of(bytes: &[u8]) -> Self {
        match bytes.get(VERSION_BYTES - 1) {
            Some(1) => Self::InFlight,
            Some(&INLINE) => match bytes.get(VERSION_BYTES..Self::BYTES).and_then(|ends| ends.try_into().ok()) {
                Some(ends) => Self::Inline(u64::from_be_bytes(ends)),
                None => Self::Other,
            },
            Some(&EXTERNAL) => Self::External,
            _ => Self::Other,
        }
    }
}

/// Record and inline response decoded from a record's value.
pub(super) struct DecodedRecord {
    pub(super) record: Record,
    /// Inline response.
    response: Option<Bytes>,
}

impl DecodedRecord {
    pub(super) fn read(id: &RecordId, bytes: &Bytes) -> Result<Self, Error> {
        let cut = || Error::unreadable("the Redis record is truncated");
        let stage = *bytes.get(VERSION_BYTES - 1).ok_or_else(cut)?;
        let (record, response) = match stage {
            INLINE => {
                let length =
                    bytes.get(INLINE_HEADER_BYTES - 4..INLINE_HEADER_BYTES).and_then(|length| length.try_into().ok());
                let ends = INLINE_HEADER_BYTES + u32::from_be_bytes(length.ok_or_else(cut)?) as usize;
                if ends > bytes.len() {
                    return Err(cut());
                }
                (bytes.slice(INLINE_HEADER_BYTES..ends), Some(bytes.slice(ends..)))
            }
            _ => (bytes.slice(VERSION_BYTES..), None),
        };
        let record = codec::decode(id, &record)?;
        let says = version(record.version());
        let is_left = matches!(stage, EXTERNAL | INLINE) && matches!(record.phase, Phase::Tombstone { .. });
        match says[..16] == bytes[..16] && (says[16] == stage || is_left) {
            true => Ok(Self { record, response }),
            false => Err(Error::unreadable("the Redis record does not match its version")),
        }
    }

    /// Adds the response, which is inline or `external`, and its age.
    pub(super) fn completed(
        self,
        id: &RecordId,
        external: Option<&Bytes>,
        age: impl FnOnce(&Record) -> Duration,
    ) -> Result<StoredRecord, Error> {
        let response =
            self.response.as_ref().or(external).ok_or_else(|| Error::unreadable("the stored response is missing"))?;
        let record = codec::decode_answer(id, response, &self.record)?;
        let age = age(&record);
        Ok(StoredRecord { record: Box::new(record), age, owner_lost: false })
    }

    /// Builds the record as stored, given the remaining TTL of its key and whether its response is
    /// available.
    pub(super) fn found(
        self,
        id: &RecordId,
        left: Duration,
        is_kept: bool,
        external: Option<&Bytes>,
    ) -> Result<StoredRecord, Error> {
        if is_kept {
            return self.completed(id, external, |record| key_ttl(record).saturating_sub(left));
        }
        let age = match &self.record.phase {
            // Of an expired response, the age counts from its expiry.
            Phase::Tombstone { keep, .. } => keep.saturating_sub(left),
            _ => key_ttl(&self.record).saturating_sub(left),
        };
        Ok(StoredRecord { record: Box::new(self.record), age, owner_lost: false })
    }
}

/// Returns the TTL of the record's key, from its write.
fn key_ttl(record: &Record) -> Duration {
    match &record.phase {
        Phase::InFlight { .. } | Phase::Unknown { .. } => FOREVER,
        Phase::Completed { retention, tombstone, .. } => retention.saturating_add(*tombstone).min(FOREVER),
        Phase::Released { keep } | Phase::Tombstone { keep, .. } => (*keep).min(FOREVER),
    }
}

/// Returns the approximate size of a response in bytes.
fn size(kept: &Retained) -> usize {
    match kept {
        Retained::Response(reply) => {
            reply.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 8).sum::<usize>()
                + reply.body.len()
        }
        Retained::HeadOnly(head) => head.location.as_ref().map_or(0, String::len),
    }
}

/// Converts to ms, at least one, since the server rejects zero.
fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.min(FOREVER).as_millis()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::redis::{UNKNOWN, sweep_index};

    #[test]
    fn key_names_do_not_change() {
        let id = RecordId([0xab; 32]);
        let record = format!("onceward:{{{}}}", "ab".repeat(32));
        assert_eq!(record_key(&id), *record.as_bytes());
        assert_eq!(response_key(&id), *format!("{record}:answer").as_bytes());
        assert_eq!([EXTERNAL, TOMBSTONE, INLINE], [2, 5, 6]);
        assert_eq!(
            [sweep_index::BEGAN, sweep_index::CLAIMS, sweep_index::ENDS, UNKNOWN],
            ["onceward:began", "onceward:claims", "onceward:ends", "onceward:unknown"]
        );
    }
}

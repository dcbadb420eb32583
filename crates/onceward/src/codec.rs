//! Encoding of a record as bytes: numbered fields, a version, a checksum.
//!
//! `version (1 byte) · checksum (8 bytes) · fields (protobuf)`. The checksum covers the record's id
//! too, so that bytes of another key are rejected. Fields may be added to a version if a reader
//! without them decides the same. Otherwise the version is raised, and an older process reports
//! `record_unreadable` instead of guessing.
//!
//! The checksum of version 1 is the first bytes of a BLAKE3 hash, that of version 2 an XXH3, which
//! takes a tenth of the time. Both detect errors of a disk or a wire. Neither has a key: a process
//! that can write to the store can write either.

mod reader;
mod writer;

use std::time::Duration;

use bytes::Bytes;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

#[cfg(feature = "redis")]
use crate::record::Phase;
use crate::record::{Executed, PhaseKind, Record};
use crate::secret::RecordId;
use crate::store::Error;
use reader::Fields;
use writer::Writer;

/// Version that is written.
pub const VERSION: u8 = 2;

const HEADER: usize = 9;

/// Encodes a record.
pub fn encode(id: &RecordId, record: &Record) -> Bytes {
    let mut bytes = Vec::new();
    write(&mut bytes, id, record);
    bytes.into()
}

/// Appends an encoded record.
pub(crate) fn write(bytes: &mut Vec<u8>, id: &RecordId, record: &Record) {
    sealed(bytes, id, |fields| fields.record(record));
}

/// Appends the encoded response of a completed record alone, for a store that holds it apart from
/// the rest of the record.
#[cfg(feature = "redis")]
pub(crate) fn write_answer(bytes: &mut Vec<u8>, id: &RecordId, record: &Record) {
    sealed(bytes, id, |fields| fields.answer(record));
}

/// Decodes the response that belongs to the rest of its record: a tombstone of the same attempt.
///
/// # Errors
///
/// Those of [`decode`], and an error if the response belongs to another attempt.
#[cfg(feature = "redis")]
pub(crate) fn decode_answer(id: &RecordId, bytes: &Bytes, left: &Record) -> Result<Record, Error> {
    let Phase::Tombstone { print, keep, .. } = &left.phase else { return Err(damaged("answer")) };
    let (kept, retention) = unsealed(id, bytes)?.answer_of(left.attempt)?;
    let phase = Phase::Completed { print: print.clone(), kept, retention, tombstone: *keep };
    Ok(Record { key_hash: left.key_hash, attempt: left.attempt, phase })
}

/// Writes the version, the checksum, and the output of `write`.
fn sealed(bytes: &mut Vec<u8>, id: &RecordId, write: impl FnOnce(&mut Writer<'_>)) {
    let begin = bytes.len();
    bytes.extend_from_slice(&[VERSION, 0, 0, 0, 0, 0, 0, 0, 0]);
    write(&mut Writer(bytes));
    let sum = checksum(id, VERSION, &bytes[begin + HEADER..]);
    bytes[begin + 1..begin + HEADER].copy_from_slice(&sum);
}

/// Decodes a record.
///
/// # Errors
///
/// [`Error::unreadable`]: another version, a checksum that fails, or rules or a phase that this
/// process does not know.
pub fn decode(id: &RecordId, bytes: &Bytes) -> Result<Record, Error> {
    unsealed(id, bytes)?.record()
}

fn unsealed<'b>(id: &RecordId, bytes: &'b Bytes) -> Result<Fields<'b>, Error> {
    match bytes.first() {
        None => return Err(Error::unreadable("the record is empty")),
        Some(1..=VERSION) => {}
        Some(version) => {
            return Err(Error::unreadable(format!(
                "the record has version {version}, and this process knows those up to {VERSION}"
            )));
        }
    }
    if bytes.len() < HEADER || checksum(id, bytes[0], &bytes[HEADER..]) != bytes[1..HEADER] {
        return Err(Error::unreadable("the record's checksum fails"));
    }
    Fields::read(bytes, &bytes[HEADER..])
}

fn checksum(id: &RecordId, version: u8, fields: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    if version == 1 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&id.0).update(&[version]).update(fields);
        hasher.finalize_xof().fill(&mut sum);
        return sum;
    }
    let mut of = [version; 33];
    of[..32].copy_from_slice(&id.0);
    xxh3_64_with_seed(fields, xxh3_64(&of)).to_le_bytes()
}

/// Field numbers. They are permanent: a number that is no longer used is never reused.
mod tag {
    pub(super) const STAGE: u32 = 1;
    pub(super) const ATTEMPT: u32 = 2;
    pub(super) const KEY_HASH: u32 = 3;
    pub(super) const PRINT: u32 = 4;
    pub(super) const LEASE_MS: u32 = 5;
    pub(super) const RETENTION_MS: u32 = 6;
    pub(super) const TOMBSTONE_MS: u32 = 7;
    pub(super) const KEEP_MS: u32 = 8;
    pub(super) const EXECUTED: u32 = 9;
    pub(super) const REPLY: u32 = 10;
    pub(super) const HEAD: u32 = 11;
    pub(super) const BEGAN_MS: u32 = 12;

    /// Fields of a fingerprint.
    pub(super) mod print {
        pub(in super::super) const FINGERPRINT: u32 = 1;
        pub(in super::super) const VERSION: u32 = 2;
        pub(in super::super) const KIND: u32 = 3;
        pub(in super::super) const HEADER: u32 = 4;
        /// The digest by a newer construction, with these same fields. The fields beside it are for
        /// a process that does not know that construction.
        pub(in super::super) const NEWER: u32 = 5;
        pub(in super::super) const HOSTS: u32 = 6;
        pub(in super::super) const EXCEPT: u32 = 7;
        pub(in super::super) const ONLY: u32 = 8;
        pub(in super::super) const PARTS: u32 = 9;
        pub(in super::super) const MEMBERS: u32 = 10;
    }

    /// Fields of a response, and of the head of one that is not stored.
    pub(super) mod reply {
        pub(in super::super) const STATUS: u32 = 1;
        pub(in super::super) const HEADER: u32 = 2;
        pub(in super::super) const BODY: u32 = 3;
        pub(in super::super) const LOCATION: u32 = 2;
        /// A reader that does not know this field refuses the redirected request as a mismatch, as
        /// all versions before it did.
        pub(in super::super) const REDIRECT: u32 = 4;
    }

    /// Fields of a header.
    pub(super) mod header {
        pub(in super::super) const NAME: u32 = 1;
        pub(in super::super) const VALUE: u32 = 2;
    }
}

const IN_FLIGHT: u8 = 1;
const COMPLETED: u8 = 2;
const RELEASED: u8 = 3;
const UNKNOWN: u8 = 4;
const TOMBSTONE: u8 = 5;

/// Returns the number of a phase kind, also for stores that write it beside the record.
pub(crate) fn number(stage: PhaseKind) -> u8 {
    match stage {
        PhaseKind::InFlight => IN_FLIGHT,
        PhaseKind::Completed => COMPLETED,
        PhaseKind::Released => RELEASED,
        PhaseKind::Unknown => UNKNOWN,
        PhaseKind::Tombstone => TOMBSTONE,
    }
}

/// Numbers of body kinds.
const EXACT: u64 = 0;
const FORM: u64 = 2;
const JSON: u64 = 3;
const AUTO: u64 = 4;

/// Number of the rule that leaves the authority out.
const SAME_HOSTS: u64 = 1;

fn executed_number(executed: Executed) -> u64 {
    match executed {
        Executed::Yes => 1,
        Executed::No => 2,
        Executed::Unknown => 3,
    }
}

fn damaged(what: &str) -> Error {
    Error::unreadable(format!("the record's {what} cannot be read"))
}

/// Returns milliseconds. A duration that does not fit is as good as endless.
fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

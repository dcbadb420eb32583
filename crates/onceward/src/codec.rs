//! How a record is written as bytes: numbered fields, a version, a checksum.
//!
//! `version (1 byte) · checksum (8 bytes) · fields (protobuf)`. The checksum covers the record's id too, so that bytes that
//! belong to another key do not pass. Fields may be added to a version as long as a reader without them decides the same;
//! else the version goes up, and an older process says `record_unreadable` instead of guessing.
//!
//! Version 1 had the first bytes of a BLAKE3 as its checksum, version 2 has an XXH3, which takes a tenth of the time. Both notice
//! what a disk or a wire does; neither has a key, and whoever can write into the store can write either.

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

/// The version that is written.
pub const VERSION: u8 = 2;

const HEADER: usize = 9;

/// Writes a record.
pub fn encode(id: &RecordId, record: &Record) -> Bytes {
    let mut bytes = Vec::new();
    write(&mut bytes, id, record);
    bytes.into()
}

/// Writes a record behind what is there.
pub(crate) fn write(bytes: &mut Vec<u8>, id: &RecordId, record: &Record) {
    sealed(bytes, id, |fields| fields.record(record));
}

/// Writes the answer of a completed record alone, for a store that keeps it apart from what is left without it.
#[cfg(feature = "redis")]
pub(crate) fn write_answer(bytes: &mut Vec<u8>, id: &RecordId, record: &Record) {
    sealed(bytes, id, |fields| fields.answer(record));
}

/// Reads the answer that belongs to what is left of its record: a tombstone of the same attempt.
///
/// # Errors
///
/// Those of [`decode`], and where it is another's.
#[cfg(feature = "redis")]
pub(crate) fn decode_answer(id: &RecordId, bytes: &Bytes, left: &Record) -> Result<Record, Error> {
    let Phase::Tombstone { print, keep, .. } = &left.phase else { return Err(damaged("answer")) };
    let (kept, retention) = unsealed(id, bytes)?.answer_of(left.attempt)?;
    let phase = Phase::Completed { print: print.clone(), kept, retention, tombstone: *keep };
    Ok(Record { key_hash: left.key_hash, attempt: left.attempt, phase })
}

/// Writes the version, the checksum, and what `write` writes.
fn sealed(bytes: &mut Vec<u8>, id: &RecordId, write: impl FnOnce(&mut Writer<'_>)) {
    let begin = bytes.len();
    bytes.extend_from_slice(&[VERSION, 0, 0, 0, 0, 0, 0, 0, 0]);
    write(&mut Writer(bytes));
    let sum = checksum(id, VERSION, &bytes[begin + HEADER..]);
    bytes[begin + 1..begin + HEADER].copy_from_slice(&sum);
}

/// Reads a record.
///
/// # Errors
///
/// [`Error::unreadable`]: another version, a checksum that fails, rules or a phase that this process does not know.
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

/// The numbers of the fields. They are for ever: one that is no longer used is not used again.
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

    /// Within a fingerprint.
    pub(super) mod print {
        pub(in super::super) const FINGERPRINT: u32 = 1;
        pub(in super::super) const VERSION: u32 = 2;
        pub(in super::super) const KIND: u32 = 3;
        pub(in super::super) const HEADER: u32 = 4;
        /// The digest by a newer construction, with these fields again. What stands beside it is
        /// for a process that does not know that one.
        pub(in super::super) const NEWER: u32 = 5;
        pub(in super::super) const HOSTS: u32 = 6;
        pub(in super::super) const EXCEPT: u32 = 7;
        pub(in super::super) const ONLY: u32 = 8;
        pub(in super::super) const PARTS: u32 = 9;
        pub(in super::super) const MEMBERS: u32 = 10;
    }

    /// Within an answer, and within what is left of one that is not kept.
    pub(super) mod reply {
        pub(in super::super) const STATUS: u32 = 1;
        pub(in super::super) const HEADER: u32 = 2;
        pub(in super::super) const BODY: u32 = 3;
        pub(in super::super) const LOCATION: u32 = 2;
        /// A reader that does not know it refuses the redirected request as another one, as all did before.
        pub(in super::super) const REDIRECT: u32 = 4;
    }

    /// Within a header.
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

/// The number of a stage, for whoever keeps it beside the record, too.
pub(crate) fn number(stage: PhaseKind) -> u8 {
    match stage {
        PhaseKind::InFlight => IN_FLIGHT,
        PhaseKind::Completed => COMPLETED,
        PhaseKind::Released => RELEASED,
        PhaseKind::Unknown => UNKNOWN,
        PhaseKind::Tombstone => TOMBSTONE,
    }
}

/// The numbers of how bodies are compared.
const EXACT: u64 = 0;
const FORM: u64 = 2;
const JSON: u64 = 3;
const AUTO: u64 = 4;

/// The number of a rule that leaves the authority out.
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

/// A duration beyond what fits is as good as for ever.
fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

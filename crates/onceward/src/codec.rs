//! How a record is written as bytes: numbered fields, a version, a checksum.
//!
//! `version (1 byte) · checksum (8 bytes) · fields (protobuf)`. The checksum covers the record's id too, so that bytes that
//! belong to another key do not pass. Fields may be added to a version as long as a reader without them decides the same;
//! else the version goes up, and an older process says `record_unreadable` instead of guessing.
//!
//! Version 1 had the first bytes of a BLAKE3 as its checksum, version 2 has an XXH3, which takes a tenth of the time. Both notice
//! what a disk or a wire does; neither has a key, and whoever can write into the store can write either.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderName, HeaderValue};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::fingerprint::{self, Fingerprint, Kind, Rules};
use crate::record::{AttemptId, Executed, Kept, Phase, Print, Record, Stage};
use crate::reply::{Head, Reply};
use crate::secret::{KeyHash, RecordId};
use crate::store::Error;

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
    sealed(bytes, id, |fields| {
        fields.number(1, COMPLETED.into());
        fields.piece(2, &record.attempt.0);
        if let Phase::Completed { kept, retention, .. } = &record.phase {
            fields.number(6, ms(*retention));
            fields.kept(kept);
        }
    });
}

/// Reads the answer that belongs to what is left of its record: a tombstone of the same attempt.
///
/// # Errors
///
/// Those of [`decode`], and where it is another's.
#[cfg(feature = "redis")]
pub(crate) fn decode_answer(id: &RecordId, bytes: &Bytes, left: &Record) -> Result<Record, Error> {
    let fields = unsealed(id, bytes)?;
    let Phase::Tombstone { print, keep, .. } = &left.phase else { return Err(damaged("answer")) };
    if fields.stage != u64::from(COMPLETED) || fields.attempt != left.attempt.0.as_slice() {
        return Err(Error::unreadable("the answer is another's than its record says"));
    }
    let retention = Duration::from_millis(fields.retention_ms);
    let phase = Phase::Completed { print: print.clone(), kept: fields.kept()?, retention, tombstone: *keep };
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
    unsealed(id, bytes)?.try_into()
}

fn unsealed(id: &RecordId, bytes: &Bytes) -> Result<Fields, Error> {
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
    // From `Bytes`, so that the body of a reply is a part of what was read, not a copy.
    Fields::decode(bytes.slice(HEADER..))
        .map_err(|error| Error::unreadable("the record's fields cannot be read").because(error))
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

/// The numbers are for ever: one that is no longer used is not used again.
#[derive(Clone, PartialEq, Message)]
struct Fields {
    #[prost(uint64, tag = "1")]
    stage: u64,
    #[prost(bytes = "bytes", tag = "2")]
    attempt: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    key_hash: Bytes,
    #[prost(message, optional, tag = "4")]
    print: Option<PrintFields>,
    #[prost(uint64, tag = "5")]
    lease_ms: u64,
    #[prost(uint64, tag = "6")]
    retention_ms: u64,
    #[prost(uint64, tag = "7")]
    tombstone_ms: u64,
    #[prost(uint64, tag = "8")]
    keep_ms: u64,
    #[prost(uint32, tag = "9")]
    executed: u32,
    #[prost(message, optional, tag = "10")]
    reply: Option<ReplyFields>,
    #[prost(message, optional, tag = "11")]
    head: Option<HeadFields>,
    #[prost(uint64, tag = "12")]
    began_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
struct PrintFields {
    #[prost(bytes = "bytes", tag = "1")]
    fingerprint: Bytes,
    #[prost(uint32, tag = "2")]
    version: u32,
    #[prost(uint32, tag = "3")]
    kind: u32,
    #[prost(string, repeated, tag = "4")]
    headers: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct ReplyFields {
    #[prost(uint32, tag = "1")]
    status: u32,
    #[prost(message, repeated, tag = "2")]
    headers: Vec<HeaderFields>,
    #[prost(bytes = "bytes", tag = "3")]
    body: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct HeaderFields {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct HeadFields {
    #[prost(uint32, tag = "1")]
    status: u32,
    #[prost(string, optional, tag = "2")]
    location: Option<String>,
}

const IN_FLIGHT: u8 = 1;
const COMPLETED: u8 = 2;
const RELEASED: u8 = 3;
const UNKNOWN: u8 = 4;
const TOMBSTONE: u8 = 5;

/// The number of a stage, for whoever keeps it beside the record, too.
pub(crate) fn number(stage: Stage) -> u8 {
    match stage {
        Stage::InFlight => IN_FLIGHT,
        Stage::Completed => COMPLETED,
        Stage::Released => RELEASED,
        Stage::Unknown => UNKNOWN,
        Stage::Tombstone => TOMBSTONE,
    }
}

/// Writes [`Fields`] from a record, in their order, without gathering them first: what is zero or empty is left out.
struct Writer<'b>(&'b mut Vec<u8>);

impl Writer<'_> {
    fn record(&mut self, record: &Record) {
        self.number(1, number(record.phase.stage()).into());
        self.piece(2, &record.attempt.0);
        self.piece(3, &record.key_hash.0);
        if let Some(print) = record.print() {
            self.print(print);
        }
        match &record.phase {
            Phase::InFlight { lease, began, .. } => {
                self.number(5, ms(*lease));
                self.number(12, ms(*began));
            }
            Phase::Completed { kept, retention, tombstone, .. } => {
                self.number(6, ms(*retention));
                self.number(7, ms(*tombstone));
                self.kept(kept);
            }
            Phase::Released { keep } => self.number(8, ms(*keep)),
            Phase::Unknown { .. } => {}
            Phase::Tombstone { executed, keep, .. } => {
                self.number(8, ms(*keep));
                self.number(9, executed_number(*executed));
            }
        }
    }

    fn print(&mut self, print: &Print) {
        let kind = match print.rules.kind {
            Kind::Exact => 0,
            Kind::Form => 2,
        };
        let version = u64::from(fingerprint::VERSION);
        let names = || print.rules.headers.iter().map(HeaderName::as_str);
        let names_length: usize = names().map(|name| piece_length(name.len())).sum();
        self.begin(
            4,
            piece_length(print.fingerprint.0.len()) + number_length(version) + number_length(kind) + names_length,
        );
        self.piece(1, &print.fingerprint.0);
        self.number(2, version);
        self.number(3, kind);
        names().for_each(|name| self.whole_piece(4, name.as_bytes()));
    }

    fn kept(&mut self, kept: &Kept) {
        match kept {
            Kept::Whole(reply) => self.reply(reply),
            Kept::Head(head) => {
                let status = u64::from(head.status.as_u16());
                let location = head.location.as_ref().map_or(0, |location| piece_length(location.len()));
                self.begin(11, number_length(status) + location);
                self.number(1, status);
                if let Some(location) = &head.location {
                    self.whole_piece(2, location.as_bytes());
                }
            }
        }
    }

    fn reply(&mut self, reply: &Reply) {
        let status = u64::from(reply.status.as_u16());
        let header_length = |name: &HeaderName, value: &HeaderValue| {
            piece_length(name.as_str().len()) + if value.is_empty() { 0 } else { piece_length(value.len()) }
        };
        let headers: usize = reply.headers.iter().map(|(name, value)| piece_length(header_length(name, value))).sum();
        let body = if reply.body.is_empty() { 0 } else { piece_length(reply.body.len()) };
        let length = number_length(status) + headers + body;
        self.0.reserve(length + 8);
        self.begin(10, length);
        self.number(1, status);
        for (name, value) in &reply.headers {
            self.begin(2, header_length(name, value));
            self.piece(1, name.as_str().as_bytes());
            self.piece(2, value.as_bytes());
        }
        self.piece(3, &reply.body);
    }

    fn number(&mut self, tag: u32, value: u64) {
        if value != 0 {
            encode_key(tag, WireType::Varint, self.0);
            encode_varint(value, self.0);
        }
    }

    fn piece(&mut self, tag: u32, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.whole_piece(tag, bytes);
        }
    }

    /// One that is there, be it empty.
    fn whole_piece(&mut self, tag: u32, bytes: &[u8]) {
        self.begin(tag, bytes.len());
        self.0.extend_from_slice(bytes);
    }

    /// The begin of something of a known length.
    fn begin(&mut self, tag: u32, length: usize) {
        encode_key(tag, WireType::LengthDelimited, self.0);
        encode_varint(length as u64, self.0);
    }
}

/// How many bytes a number takes with its tag, which is below 16 wherever this is asked.
fn number_length(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + encoded_len_varint(value) }
}

/// How many bytes a piece of this length takes with its tag.
fn piece_length(length: usize) -> usize {
    1 + encoded_len_varint(length as u64) + length
}

fn executed_number(executed: Executed) -> u64 {
    match executed {
        Executed::Yes => 1,
        Executed::No => 2,
        Executed::Unknown => 3,
    }
}

impl Fields {
    fn kept(&self) -> Result<Kept, Error> {
        match (&self.reply, &self.head) {
            (Some(reply), None) => Ok(Kept::Whole(Arc::new(reply.try_into()?))),
            (None, Some(head)) => {
                Ok(Kept::Head(Head { status: status(head.status)?, location: head.location.clone() }))
            }
            _ => Err(damaged("answer")),
        }
    }
}

impl TryFrom<Fields> for Record {
    type Error = Error;

    fn try_from(fields: Fields) -> Result<Self, Error> {
        let print = || fields.print.as_ref().ok_or_else(|| damaged("fingerprint")).and_then(Print::try_from);
        let duration = Duration::from_millis;
        let phase = match u8::try_from(fields.stage).unwrap_or(0) {
            IN_FLIGHT => {
                Phase::InFlight { print: print()?, lease: duration(fields.lease_ms), began: duration(fields.began_ms) }
            }
            COMPLETED => Phase::Completed {
                print: print()?,
                kept: fields.kept()?,
                retention: duration(fields.retention_ms),
                tombstone: duration(fields.tombstone_ms),
            },
            RELEASED => Phase::Released { keep: duration(fields.keep_ms) },
            UNKNOWN => Phase::Unknown { print: print()? },
            TOMBSTONE => Phase::Tombstone {
                print: print()?,
                executed: match fields.executed {
                    1 => Executed::Yes,
                    2 => Executed::No,
                    3 => Executed::Unknown,
                    _ => return Err(damaged("executed")),
                },
                keep: duration(fields.keep_ms),
            },
            _ => {
                return Err(Error::unreadable(format!(
                    "the record is in phase {}, which this process does not know",
                    fields.stage
                )));
            }
        };
        Ok(Self {
            key_hash: KeyHash(array(&fields.key_hash, "key hash")?),
            attempt: AttemptId(array(&fields.attempt, "attempt")?),
            phase,
        })
    }
}

impl TryFrom<&PrintFields> for Print {
    type Error = Error;

    fn try_from(fields: &PrintFields) -> Result<Self, Error> {
        let unknown =
            || Error::unreadable("the record's fingerprint was made by rules that this process does not know");
        if fields.version != u32::from(fingerprint::VERSION) {
            return Err(unknown());
        }
        let kind = match fields.kind {
            0 => Kind::Exact,
            2 => Kind::Form,
            _ => return Err(unknown()),
        };
        let headers: Result<_, _> = fields.headers.iter().map(|name| name.parse::<HeaderName>()).collect();
        Ok(Self {
            fingerprint: Fingerprint(array(&fields.fingerprint, "fingerprint")?),
            rules: Arc::new(Rules { kind, headers: headers.map_err(|_| damaged("fingerprint's rules"))? }),
        })
    }
}

impl TryFrom<&ReplyFields> for Reply {
    type Error = Error;

    fn try_from(fields: &ReplyFields) -> Result<Self, Error> {
        let header = |header: &HeaderFields| {
            let name = header.name.parse::<HeaderName>().map_err(|_| damaged("header"))?;
            let value = HeaderValue::from_maybe_shared(header.value.clone()).map_err(|_| damaged("header"))?;
            Ok((name, value))
        };
        Ok(Self {
            status: status(fields.status)?,
            headers: fields.headers.iter().map(header).collect::<Result<_, Error>>()?,
            body: fields.body.clone(),
        })
    }
}

fn status(number: u32) -> Result<StatusCode, Error> {
    u16::try_from(number).ok().and_then(|number| StatusCode::from_u16(number).ok()).ok_or_else(|| damaged("status"))
}

fn array<const N: usize>(bytes: &Bytes, what: &str) -> Result<[u8; N], Error> {
    bytes.as_ref().try_into().map_err(|_| damaged(what))
}

fn damaged(what: &str) -> Error {
    Error::unreadable(format!("the record's {what} cannot be read"))
}

/// A duration beyond what fits is as good as for ever.
fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

//! How a record is written as bytes: numbered fields, a version, a checksum.
//!
//! `version (1 byte) · checksum (8 bytes) · fields (protobuf)`. The checksum covers the record's id too, so that bytes that
//! belong to another key do not pass. Fields may be added to version 1 as long as a reader without them decides the same;
//! else the version goes up, and an older process says `record_unreadable` instead of guessing.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderName, HeaderValue};
use prost::Message;

use crate::fingerprint::{self, Fingerprint, Kind, Rules};
use crate::record::{AttemptId, Executed, Kept, Phase, Print, Record};
use crate::reply::{Head, Reply};
use crate::secret::{KeyHash, RecordId};
use crate::store::Error;

/// The version that is written.
pub const VERSION: u8 = 1;

const HEADER: usize = 9;

/// Writes a record.
pub fn encode(id: &RecordId, record: &Record) -> Bytes {
    let fields = Fields::from(record);
    let mut bytes = Vec::with_capacity(HEADER + fields.encoded_len());
    bytes.extend_from_slice(&[VERSION, 0, 0, 0, 0, 0, 0, 0, 0]);
    // A Vec grows as needed, so encoding cannot run out of room.
    let _ = fields.encode(&mut bytes);
    let sum = checksum(id, VERSION, &bytes[HEADER..]);
    bytes[1..HEADER].copy_from_slice(&sum);
    bytes.into()
}

/// Reads a record.
///
/// # Errors
///
/// [`Error::unreadable`]: another version, a checksum that fails, rules or a phase that this process does not know.
pub fn decode(id: &RecordId, bytes: &Bytes) -> Result<Record, Error> {
    match bytes.first() {
        None => return Err(Error::unreadable("the record is empty")),
        Some(&VERSION) => {}
        Some(version) => {
            return Err(Error::unreadable(format!(
                "the record has version {version}, and this process knows {VERSION}"
            )));
        }
    }
    if bytes.len() < HEADER || checksum(id, VERSION, &bytes[HEADER..]) != bytes[1..HEADER] {
        return Err(Error::unreadable("the record's checksum fails"));
    }
    // From `Bytes`, so that the body of a reply is a part of what was read, not a copy.
    let fields = Fields::decode(bytes.slice(HEADER..))
        .map_err(|error| Error::unreadable("the record's fields cannot be read").because(error))?;
    fields.try_into()
}

fn checksum(id: &RecordId, version: u8, fields: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&id.0).update(&[version]).update(fields);
    let mut sum = [0; 8];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

/// The numbers are for ever: one that is no longer used is not used again.
#[derive(Clone, PartialEq, Message)]
struct Fields {
    #[prost(uint32, tag = "1")]
    stage: u32,
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

const IN_FLIGHT: u32 = 1;
const COMPLETED: u32 = 2;
const RELEASED: u32 = 3;
const UNKNOWN: u32 = 4;
const TOMBSTONE: u32 = 5;

impl From<&Record> for Fields {
    fn from(record: &Record) -> Self {
        let mut fields = Self {
            attempt: Bytes::copy_from_slice(&record.attempt.0),
            key_hash: Bytes::copy_from_slice(&record.key_hash.0),
            print: record.print().map(PrintFields::from),
            ..Self::default()
        };
        match &record.phase {
            Phase::InFlight { lease, began, .. } => {
                fields.stage = IN_FLIGHT;
                fields.lease_ms = ms(*lease);
                fields.began_ms = ms(*began);
            }
            Phase::Completed { kept, retention, tombstone, .. } => {
                fields.stage = COMPLETED;
                fields.retention_ms = ms(*retention);
                fields.tombstone_ms = ms(*tombstone);
                match kept {
                    Kept::Whole(reply) => fields.reply = Some(reply.as_ref().into()),
                    Kept::Head(head) => {
                        fields.head =
                            Some(HeadFields { status: head.status.as_u16().into(), location: head.location.clone() });
                    }
                }
            }
            Phase::Released { keep } => {
                fields.stage = RELEASED;
                fields.keep_ms = ms(*keep);
            }
            Phase::Unknown { .. } => fields.stage = UNKNOWN,
            Phase::Tombstone { executed, keep, .. } => {
                fields.stage = TOMBSTONE;
                fields.keep_ms = ms(*keep);
                fields.executed = match executed {
                    Executed::Yes => 1,
                    Executed::No => 2,
                    Executed::Unknown => 3,
                };
            }
        }
        fields
    }
}

impl From<&Print> for PrintFields {
    fn from(print: &Print) -> Self {
        Self {
            fingerprint: Bytes::copy_from_slice(&print.fingerprint.0),
            version: fingerprint::VERSION.into(),
            kind: match print.rules.kind {
                Kind::Exact => 0,
                Kind::Form => 2,
            },
            headers: print.rules.headers.iter().map(|name| name.as_str().to_owned()).collect(),
        }
    }
}

impl From<&Reply> for ReplyFields {
    fn from(reply: &Reply) -> Self {
        Self {
            status: reply.status.as_u16().into(),
            headers: reply
                .headers
                .iter()
                .map(|(name, value)| HeaderFields {
                    name: name.as_str().to_owned(),
                    value: Bytes::copy_from_slice(value.as_bytes()),
                })
                .collect(),
            body: reply.body.clone(),
        }
    }
}

impl TryFrom<Fields> for Record {
    type Error = Error;

    fn try_from(fields: Fields) -> Result<Self, Error> {
        let print = || fields.print.as_ref().ok_or_else(|| damaged("fingerprint")).and_then(Print::try_from);
        let duration = Duration::from_millis;
        let phase = match fields.stage {
            IN_FLIGHT => {
                Phase::InFlight { print: print()?, lease: duration(fields.lease_ms), began: duration(fields.began_ms) }
            }
            COMPLETED => Phase::Completed {
                print: print()?,
                kept: match (&fields.reply, &fields.head) {
                    (Some(reply), None) => Kept::Whole(Arc::new(reply.try_into()?)),
                    (None, Some(head)) => {
                        Kept::Head(Head { status: status(head.status)?, location: head.location.clone() })
                    }
                    _ => return Err(damaged("answer")),
                },
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
            stage => {
                return Err(Error::unreadable(format!(
                    "the record is in phase {stage}, which this process does not know"
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

//! Decoder: scans the fields in place, and allocates only the parts of the record.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderName, HeaderValue};
use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::{AUTO, COMPLETED, EXACT, FORM, IN_FLIGHT, JSON, RELEASED, SAME_HOSTS, TOMBSTONE, UNKNOWN, damaged, tag};
use crate::fingerprint::{Details, Fingerprint, Hosts, Kind, Members, Pointer, Rules, VERSION};
use crate::record::{AttemptId, Executed, FingerprintWithRules, Phase, Record, Retained};
use crate::reply::{Head, StoredResponse};
use crate::secret::KeyHash;
use crate::store::Error;

/// Fields of a record or of a response, as slices of its bytes. Of a repeated field the last one
/// applies; a missing one is zero or empty.
#[derive(Default)]
pub(super) struct Fields<'b> {
    /// The buffer that contains the fields: the body of a response is a slice of it, not a copy.
    whole: Bytes,
    stage: u64,
    attempt: &'b [u8],
    key_hash: &'b [u8],
    print: Option<&'b [u8]>,
    lease_ms: u64,
    retention_ms: u64,
    tombstone_ms: u64,
    keep_ms: u64,
    executed: u64,
    reply: Option<&'b [u8]>,
    head: Option<&'b [u8]>,
    began_ms: u64,
}

impl<'b> Fields<'b> {
    /// Reads `fields`, which are a part of `whole`.
    pub(super) fn read(whole: &'b Bytes, fields: &'b [u8]) -> Result<Self, Error> {
        let mut read = Self { whole: whole.clone(), ..Self::default() };
        each(fields, |tag, field| {
            match tag {
                tag::STAGE => read.stage = field.number()?,
                tag::ATTEMPT => read.attempt = field.piece()?,
                tag::KEY_HASH => read.key_hash = field.piece()?,
                tag::PRINT => read.print = Some(field.piece()?),
                tag::LEASE_MS => read.lease_ms = field.number()?,
                tag::RETENTION_MS => read.retention_ms = field.number()?,
                tag::TOMBSTONE_MS => read.tombstone_ms = field.number()?,
                tag::KEEP_MS => read.keep_ms = field.number()?,
                tag::EXECUTED => read.executed = field.number()?,
                tag::REPLY => read.reply = Some(field.piece()?),
                tag::HEAD => read.head = Some(field.piece()?),
                tag::BEGAN_MS => read.began_ms = field.number()?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(read)
    }

    pub(super) fn record(&self) -> Result<Record, Error> {
        let print = || self.print.ok_or_else(|| damaged("fingerprint")).and_then(print);
        let duration = Duration::from_millis;
        let phase = match u8::try_from(self.stage).unwrap_or(0) {
            IN_FLIGHT => {
                Phase::InFlight { print: print()?, lease: duration(self.lease_ms), began: duration(self.began_ms) }
            }
            COMPLETED => Phase::Completed {
                print: print()?,
                kept: self.kept()?,
                retention: duration(self.retention_ms),
                tombstone: duration(self.tombstone_ms),
            },
            RELEASED => Phase::Released { keep: duration(self.keep_ms) },
            UNKNOWN => Phase::Unknown { print: print()? },
            TOMBSTONE => Phase::Tombstone {
                print: print()?,
                executed: match self.executed {
                    1 => Executed::Yes,
                    2 => Executed::No,
                    3 => Executed::Unknown,
                    _ => return Err(damaged("executed")),
                },
                keep: duration(self.keep_ms),
            },
            _ => {
                return Err(Error::unreadable(format!(
                    "the record is in phase {}, which this process does not know",
                    self.stage
                )));
            }
        };
        Ok(Record {
            key_hash: KeyHash(array(self.key_hash, "key hash")?),
            attempt: AttemptId(array(self.attempt, "attempt")?),
            phase,
        })
    }

    /// Returns the response that belongs to an attempt, and its retention.
    #[cfg(feature = "redis")]
    pub(super) fn answer_of(&self, attempt: AttemptId) -> Result<(Retained, Duration), Error> {
        if self.stage != u64::from(COMPLETED) || self.attempt != attempt.0 {
            return Err(Error::unreadable("the answer is another's than its record says"));
        }
        Ok((self.kept()?, Duration::from_millis(self.retention_ms)))
    }

    fn kept(&self) -> Result<Retained, Error> {
        match (self.reply, self.head) {
            (Some(fields), None) => Ok(Retained::Response(Arc::new(reply(&self.whole, fields)?))),
            (None, Some(fields)) => head(fields).map(Retained::HeadOnly),
            _ => Err(damaged("answer")),
        }
    }
}

/// Fields of one construction of a fingerprint.
#[derive(Default)]
struct Construction<'b> {
    fingerprint: &'b [u8],
    version: u64,
    kind: u64,
    names: Vec<&'b [u8]>,
    newer: Option<&'b [u8]>,
    hosts: u64,
    except: Vec<&'b [u8]>,
    only: Vec<&'b [u8]>,
    parts: &'b [u8],
    members: &'b [u8],
}

impl<'b> Construction<'b> {
    fn read(fields: &'b [u8]) -> Result<Self, Error> {
        let mut read = Self::default();
        each(fields, |tag, field| {
            match tag {
                tag::print::FINGERPRINT => read.fingerprint = field.piece()?,
                tag::print::VERSION => read.version = field.number()?,
                tag::print::KIND => read.kind = field.number()?,
                tag::print::HEADER => read.names.push(field.piece()?),
                tag::print::NEWER => read.newer = Some(field.piece()?),
                tag::print::HOSTS => read.hosts = field.number()?,
                tag::print::EXCEPT => read.except.push(field.piece()?),
                tag::print::ONLY => read.only.push(field.piece()?),
                tag::print::PARTS => read.parts = field.piece()?,
                tag::print::MEMBERS => read.members = field.piece()?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(read)
    }

    fn kind(&self) -> Result<Kind, Error> {
        match (self.version, self.kind) {
            (1 | 2, EXACT) => Ok(Kind::Exact),
            (1 | 2, FORM) => Ok(Kind::Form),
            (2, JSON) => Ok(Kind::Json),
            (2, AUTO) => Ok(Kind::Auto),
            _ => Err(unknown_rules()),
        }
    }

    fn fingerprint(&self) -> Result<Fingerprint, Error> {
        array(self.fingerprint, "fingerprint").map(Fingerprint)
    }

    fn print(&self, first: Option<(Fingerprint, Kind)>) -> Result<FingerprintWithRules, Error> {
        let kind = self.kind()?;
        let hosts = match self.hosts {
            0 => Hosts::Distinct,
            SAME_HOSTS => Hosts::Same,
            _ => return Err(unknown_rules()),
        };
        let members = match (self.only.as_slice(), self.except.as_slice()) {
            ([], []) => Members::All,
            (only, []) => Members::Only(pointers(only)?),
            ([], except) => Members::Except(pointers(except)?),
            _ => return Err(unknown_rules()),
        };
        let headers: Result<_, _> = self.names.iter().map(|name| HeaderName::from_bytes(name)).collect();
        let headers = headers.map_err(|_| damaged("fingerprint's rules"))?;
        let version = u8::try_from(self.version).map_err(|_| unknown_rules())?;
        let details = Details { first, parts: self.parts.to_vec(), members: self.members.to_vec() };
        Ok(FingerprintWithRules {
            fingerprint: self.fingerprint()?,
            rules: Arc::new(Rules { version, kind, headers, hosts, members }),
            details: (details != Details::default()).then(|| Arc::new(details)),
        })
    }
}

fn unknown_rules() -> Error {
    Error::unreadable("the record's fingerprint was made by rules that this process does not know")
}

fn pointers(texts: &[&[u8]]) -> Result<Vec<Pointer>, Error> {
    let pointer = |text: &&[u8]| str::from_utf8(text).ok()?.parse().ok();
    texts.iter().map(pointer).collect::<Option<_>>().ok_or_else(|| damaged("fingerprint's rules"))
}

/// Reads the newest construction that is known.
fn print(fields: &[u8]) -> Result<FingerprintWithRules, Error> {
    let own = Construction::read(fields)?;
    if let Some(newer) = own.newer.map(Construction::read).transpose()?
        && newer.version == u64::from(VERSION)
    {
        return newer.print(Some((own.fingerprint()?, own.kind()?)));
    }
    own.print(None)
}

fn reply(whole: &Bytes, fields: &[u8]) -> Result<StoredResponse, Error> {
    let (mut number, mut headers, mut body, mut redirect) = (0, Vec::new(), Bytes::new(), None);
    each(fields, |tag, field| {
        match tag {
            tag::reply::STATUS => number = field.number()?,
            tag::reply::HEADER => headers.push(header(whole, field.piece()?)?),
            tag::reply::BODY => body = whole.slice_ref(field.piece()?),
            tag::reply::REDIRECT => redirect = Some(Fingerprint(array(field.piece()?, "redirect")?)),
            _ => {}
        }
        Ok(())
    })?;
    Ok(StoredResponse { status: status(number)?, headers, body, redirect })
}

fn header(whole: &Bytes, fields: &[u8]) -> Result<(HeaderName, HeaderValue), Error> {
    let (mut name, mut value) = (&[][..], &[][..]);
    each(fields, |tag, field| {
        match tag {
            tag::header::NAME => name = field.piece()?,
            tag::header::VALUE => value = field.piece()?,
            _ => {}
        }
        Ok(())
    })?;
    let name = HeaderName::from_bytes(name).map_err(|_| damaged("header"))?;
    let value = HeaderValue::from_maybe_shared(whole.slice_ref(value)).map_err(|_| damaged("header"))?;
    Ok((name, value))
}

fn head(fields: &[u8]) -> Result<Head, Error> {
    let (mut number, mut location) = (0, None);
    each(fields, |tag, field| {
        match tag {
            tag::reply::STATUS => number = field.number()?,
            tag::reply::LOCATION => location = Some(field.piece()?),
            _ => {}
        }
        Ok(())
    })?;
    let text = |bytes: &[u8]| str::from_utf8(bytes).map(str::to_owned).map_err(|_| damaged("location"));
    Ok(Head { status: status(number)?, location: location.map(text).transpose()? })
}

/// Content of one field.
enum Field<'b> {
    Number(u64),
    Piece(&'b [u8]),
}

impl<'b> Field<'b> {
    fn number(self) -> Result<u64, Error> {
        match self {
            Self::Number(number) => Ok(number),
            Self::Piece(_) => Err(damaged("fields")),
        }
    }

    fn piece(self) -> Result<&'b [u8], Error> {
        match self {
            Self::Piece(piece) => Ok(piece),
            Self::Number(_) => Err(damaged("fields")),
        }
    }
}

/// Calls `take` with the number and the content of each field. Of wire types that no version has
/// written, only the end is determined.
fn each<'b>(mut rest: &'b [u8], mut take: impl FnMut(u32, Field<'b>) -> Result<(), Error>) -> Result<(), Error> {
    let unreadable = |error: DecodeError| damaged("fields").with_source(error);
    while !rest.is_empty() {
        let (tag, kind) = decode_key(&mut rest).map_err(unreadable)?;
        let field = match kind {
            WireType::Varint => Field::Number(decode_varint(&mut rest).map_err(unreadable)?),
            WireType::LengthDelimited => {
                let length = usize::try_from(decode_varint(&mut rest).map_err(unreadable)?).unwrap_or(usize::MAX);
                Field::Piece(rest.split_off(..length).ok_or_else(|| damaged("fields"))?)
            }
            _ => {
                skip_field(kind, tag, &mut rest, DecodeContext::default()).map_err(unreadable)?;
                continue;
            }
        };
        take(tag, field)?;
    }
    Ok(())
}

fn status(number: u64) -> Result<StatusCode, Error> {
    u16::try_from(number).ok().and_then(|number| StatusCode::from_u16(number).ok()).ok_or_else(|| damaged("status"))
}

fn array<const N: usize>(bytes: &[u8], what: &str) -> Result<[u8; N], Error> {
    bytes.try_into().map_err(|_| damaged(what))
}

//! Encoder: writes the fields one after another, each piece once.

use http::header::{HeaderName, HeaderValue};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

#[cfg(feature = "redis")]
use super::COMPLETED;
use super::{AUTO, EXACT, FORM, JSON, SAME_HOSTS, executed_number, ms, number, tag};
use crate::fingerprint::{Details, FIRST_VERSION, Fingerprint, Hosts, Kind, Members, Rules};
use crate::record::{FingerprintWithRules, Phase, Record, Retained};
use crate::reply::StoredResponse;

/// Writes the fields of a record in their order, without an intermediate buffer. Zero and empty
/// fields are left out.
pub(super) struct Writer<'b>(pub(super) &'b mut Vec<u8>);

impl Writer<'_> {
    pub(super) fn record(&mut self, record: &Record) {
        self.number(tag::STAGE, number(record.phase.stage()).into());
        self.piece(tag::ATTEMPT, &record.attempt.0);
        self.piece(tag::KEY_HASH, &record.key_hash.0);
        if let Some(print) = record.print() {
            self.print(print);
        }
        match &record.phase {
            Phase::InFlight { lease, began, .. } => {
                self.number(tag::LEASE_MS, ms(*lease));
                self.number(tag::BEGAN_MS, ms(*began));
            }
            Phase::Completed { kept, retention, tombstone, .. } => {
                self.number(tag::RETENTION_MS, ms(*retention));
                self.number(tag::TOMBSTONE_MS, ms(*tombstone));
                self.kept(kept);
            }
            Phase::Released { keep } => self.number(tag::KEEP_MS, ms(*keep)),
            Phase::Unknown { .. } => {}
            Phase::Tombstone { executed, keep, .. } => {
                self.number(tag::KEEP_MS, ms(*keep));
                self.number(tag::EXECUTED, executed_number(*executed));
            }
        }
    }

    /// Writes the response of a completed record alone.
    #[cfg(feature = "redis")]
    pub(super) fn answer(&mut self, record: &Record) {
        self.number(tag::STAGE, COMPLETED.into());
        self.piece(tag::ATTEMPT, &record.attempt.0);
        if let Phase::Completed { kept, retention, .. } = &record.phase {
            self.number(tag::RETENTION_MS, ms(*retention));
            self.kept(kept);
        }
    }

    fn print(&mut self, print: &FingerprintWithRules) {
        let FingerprintWithRules { fingerprint, rules, details } = print;
        let mut fields = Vec::with_capacity(128);
        let mut writer = Writer(&mut fields);
        match details.as_ref().and_then(|details| details.first) {
            None => writer.rules(fingerprint, rules, details.as_deref()),
            Some((first, kind)) => {
                writer.construction(&first, FIRST_VERSION, kind, rules);
                let mut newer = Vec::with_capacity(96);
                Writer(&mut newer).rules(fingerprint, rules, details.as_deref());
                writer.whole_piece(tag::print::NEWER, &newer);
            }
        }
        self.whole_piece(tag::PRINT, &fields);
    }

    fn rules(&mut self, fingerprint: &Fingerprint, rules: &Rules, details: Option<&Details>) {
        self.construction(fingerprint, rules.version, rules.kind, rules);
        self.number(tag::print::HOSTS, if rules.hosts == Hosts::Same { SAME_HOSTS } else { 0 });
        let (tag, pointers) = match &rules.members {
            Members::All => (tag::print::ONLY, [].as_slice()),
            Members::Only(pointers) => (tag::print::ONLY, pointers.as_slice()),
            Members::Except(pointers) => (tag::print::EXCEPT, pointers.as_slice()),
        };
        pointers.iter().for_each(|pointer| self.whole_piece(tag, pointer.as_str().as_bytes()));
        if let Some(details) = details {
            self.piece(tag::print::PARTS, &details.parts);
            self.piece(tag::print::MEMBERS, &details.members);
        }
    }

    /// Writes the fields that each construction has.
    fn construction(&mut self, fingerprint: &Fingerprint, version: u8, kind: Kind, rules: &Rules) {
        self.piece(tag::print::FINGERPRINT, &fingerprint.0);
        self.number(tag::print::VERSION, version.into());
        let kind = match kind {
            Kind::Exact => EXACT,
            Kind::Form => FORM,
            Kind::Json => JSON,
            Kind::Auto => AUTO,
        };
        self.number(tag::print::KIND, kind);
        rules.headers.iter().for_each(|name| self.whole_piece(tag::print::HEADER, name.as_str().as_bytes()));
    }

    fn kept(&mut self, kept: &Retained) {
        match kept {
            Retained::Response(reply) => self.reply(reply),
            Retained::HeadOnly(head) => {
                let status = u64::from(head.status.as_u16());
                let location = head.location.as_ref().map_or(0, |location| piece_length(location.len()));
                self.begin(tag::HEAD, number_length(status) + location);
                self.number(tag::reply::STATUS, status);
                if let Some(location) = &head.location {
                    self.whole_piece(tag::reply::LOCATION, location.as_bytes());
                }
            }
        }
    }

    fn reply(&mut self, reply: &StoredResponse) {
        let status = u64::from(reply.status.as_u16());
        let header_length = |name: &HeaderName, value: &HeaderValue| {
            piece_length(name.as_str().len()) + if value.is_empty() { 0 } else { piece_length(value.len()) }
        };
        let headers: usize = reply.headers.iter().map(|(name, value)| piece_length(header_length(name, value))).sum();
        let body = if reply.body.is_empty() { 0 } else { piece_length(reply.body.len()) };
        let redirect = reply.redirect.map_or(0, |redirect| piece_length(redirect.0.len()));
        let length = number_length(status) + headers + body + redirect;
        self.0.reserve(length + 8);
        self.begin(tag::REPLY, length);
        self.number(tag::reply::STATUS, status);
        for (name, value) in &reply.headers {
            self.begin(tag::reply::HEADER, header_length(name, value));
            self.piece(tag::header::NAME, name.as_str().as_bytes());
            self.piece(tag::header::VALUE, value.as_bytes());
        }
        self.piece(tag::reply::BODY, &reply.body);
        if let Some(redirect) = &reply.redirect {
            self.piece(tag::reply::REDIRECT, &redirect.0);
        }
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

    /// Writes a piece, even if it is empty.
    fn whole_piece(&mut self, tag: u32, bytes: &[u8]) {
        self.begin(tag, bytes.len());
        self.0.extend_from_slice(bytes);
    }

    /// Writes the tag and the length of a piece.
    fn begin(&mut self, tag: u32, length: usize) {
        encode_key(tag, WireType::LengthDelimited, self.0);
        encode_varint(length as u64, self.0);
    }
}

/// Returns the size of a number with its tag, which must be below 16.
fn number_length(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + encoded_len_varint(value) }
}

/// Returns the size of a piece with its tag.
fn piece_length(length: usize) -> usize {
    1 + encoded_len_varint(length as u64) + length
}

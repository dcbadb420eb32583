//! What is stored: a record in its envelope, the keys of the index, and the state that each batch carries.
//!
//! All of it is under checksums of our own, above those of `fjall`: a journal is read back without any block checksum, and
//! what a bug or a bad memory chip put there must not pass for an answer.

use std::time::Duration;

use bytes::Bytes;

use crate::codec;
use crate::record::{AttemptId, Found, Record, Stage};
use crate::secret::RecordId;
use crate::store::{Census, Error};

/// A due time that never comes.
pub(super) const NEVER: u64 = u64::MAX;

/// `version · boot · written · due · checksum`, before the record.
const ENVELOPE: usize = 1 + 8 + 8 + 8 + 8;
const ENVELOPE_VERSION: u8 = 1;

/// The start of an encoded record, which holds its checksum: it ties the envelope to the record within.
const RECORD_HEAD: usize = 9;

/// A record that is encoded and has no envelope yet: only the writer knows when it is written.
pub(super) struct Draft {
    bytes: Vec<u8>,
    lasts: Option<Duration>,
    pub(super) attempt: AttemptId,
    pub(super) stage: Stage,
}

impl Draft {
    pub(super) fn new(id: &RecordId, record: &Record) -> Self {
        let encoded = codec::encode(id, record);
        // Room for the envelope, so that the writer fills it in without moving a body.
        let mut bytes = Vec::with_capacity(ENVELOPE + encoded.len());
        bytes.resize(ENVELOPE, 0);
        bytes.extend_from_slice(&encoded);
        // A record keeps whole milliseconds; what is due must agree with what is read back.
        let lasts = record.due().map(|due| due - Duration::from_nanos(u64::from(due.subsec_nanos() % 1_000_000)));
        Self { bytes, lasts, attempt: record.attempt, stage: record.phase.stage() }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Puts it into its envelope. Returns that and its place.
    pub(super) fn seal(mut self, id: &RecordId, boot: u64, written: u64) -> (Bytes, Place) {
        let due = self.lasts.map_or(NEVER, |lasts| written.saturating_add(nanos(lasts)));
        self.bytes[0] = ENVELOPE_VERSION;
        self.bytes[1..9].copy_from_slice(&boot.to_be_bytes());
        self.bytes[9..17].copy_from_slice(&written.to_be_bytes());
        self.bytes[17..25].copy_from_slice(&due.to_be_bytes());
        let sum = envelope_sum(id, &self.bytes);
        self.bytes[25..ENVELOPE].copy_from_slice(&sum);
        let place = Place { due, stage: self.stage, bytes: self.bytes.len() as u64 };
        (self.bytes.into(), place)
    }
}

/// Where a record stands in the index and in the census.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) due: u64,
    pub(super) stage: Stage,
    pub(super) bytes: u64,
}

/// A record out of its envelope.
pub(super) struct Row {
    pub(super) record: Record,
    pub(super) boot: u64,
    pub(super) written: u64,
    pub(super) place: Place,
}

impl Row {
    pub(super) fn read(id: &RecordId, bytes: &Bytes) -> Result<Self, Error> {
        let [boot, written, due] = envelope(id, bytes)?;
        let record = codec::decode(id, &bytes.slice(ENVELOPE..))?;
        let place = Place { due, stage: record.phase.stage(), bytes: bytes.len() as u64 };
        Ok(Self { record, boot, written, place })
    }

    /// As it is found at `now` by the process of `boot`.
    pub(super) fn found(self, now: u64, boot: u64) -> Found {
        Found {
            age: Duration::from_nanos(now.saturating_sub(self.written)),
            // One process at a time has the folder, so the writer of an earlier boot is gone for certain.
            holder_gone: self.place.stage == Stage::InFlight && self.boot != boot,
            record: Box::new(self.record),
        }
    }
}

/// When a record is due, without reading what is in it.
pub(super) fn due(id: &RecordId, bytes: &Bytes) -> Result<u64, Error> {
    envelope(id, bytes).map(|[_, _, due]| due)
}

fn envelope(id: &RecordId, bytes: &[u8]) -> Result<[u64; 3], Error> {
    match bytes.first() {
        None => return Err(Error::unreadable("the record is empty")),
        Some(&ENVELOPE_VERSION) => {}
        Some(version) => {
            return Err(Error::unreadable(format!(
                "the record's envelope has version {version}, and this process knows {ENVELOPE_VERSION}"
            )));
        }
    }
    if bytes.len() < ENVELOPE + RECORD_HEAD || envelope_sum(id, bytes) != bytes[25..ENVELOPE] {
        return Err(Error::unreadable("the checksum of the record's envelope fails"));
    }
    Ok([number(&bytes[1..]), number(&bytes[9..]), number(&bytes[17..])])
}

fn envelope_sum(id: &RecordId, bytes: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&id.0).update(&bytes[..25]).update(&bytes[ENVELOPE..ENVELOPE + RECORD_HEAD]);
    short(&hasher)
}

/// The key of the index under which a claim is found at the next start.
pub(super) fn claim_key(id: &RecordId) -> [u8; 33] {
    let mut key = [b'c'; 33];
    key[1..].copy_from_slice(&id.0);
    key
}

/// The key of the index under which a record is found once it is due.
pub(super) fn due_key(due: u64, id: &RecordId) -> [u8; 41] {
    let mut key = [b'd'; 41];
    key[1..9].copy_from_slice(&due.to_be_bytes());
    key[9..].copy_from_slice(&id.0);
    key
}

/// The key of the index for a record at `place`, if it has one.
pub(super) fn index_key(place: &Place, id: &RecordId) -> Option<Vec<u8>> {
    match place.stage {
        Stage::InFlight => Some(claim_key(id).to_vec()),
        _ if place.due == NEVER => None,
        _ => Some(due_key(place.due, id).to_vec()),
    }
}

/// Reads a [`claim_key`].
pub(super) fn read_claim_key(key: &[u8]) -> Option<RecordId> {
    key.strip_prefix(b"c")?.try_into().ok().map(RecordId)
}

/// Reads a [`due_key`].
pub(super) fn read_due_key(key: &[u8]) -> Option<(u64, RecordId)> {
    let (due, id) = key.strip_prefix(b"d")?.split_first_chunk()?;
    Some((u64::from_be_bytes(*due), RecordId(id.try_into().ok()?)))
}

/// The key of a named value.
pub(super) fn name_key(name: &str) -> Vec<u8> {
    [b"n", name.as_bytes()].concat()
}

/// Writes a named value.
pub(super) fn write_named(name: &str, value: &[u8]) -> Bytes {
    [&named_sum(name, value)[..], value].concat().into()
}

/// Reads a named value.
pub(super) fn read_named(name: &str, bytes: &Bytes) -> Result<Bytes, Error> {
    match bytes.split_first_chunk::<8>() {
        Some((sum, value)) if *sum == named_sum(name, value) => Ok(bytes.slice(8..)),
        _ => Err(Error::unreadable(format!("the checksum of the store's value {name:?} fails"))),
    }
}

fn named_sum(name: &str, value: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(name.len() as u64).to_be_bytes()).update(name.as_bytes()).update(value);
    short(&hasher)
}

/// The key of [`State`]; the journal is searched for it.
pub(super) const STATE_KEY: &[u8] = b"state of the onceward store";

/// What each batch carries, so that counting and telling the time need no scan at the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// How many batches there were; the number of this one.
    pub(super) batch: u64,
    /// How many times the folder was opened.
    pub(super) boot: u64,
    /// The latest time that the store has told, so that it never goes back.
    pub(super) now: u64,
    /// What is there after this batch.
    pub(super) census: Census,
}

impl State {
    pub(super) const LEN: usize = 1 + 9 * 8 + 8;
    const VERSION: u8 = 1;

    pub(super) fn write(&self) -> [u8; Self::LEN] {
        let Self { batch, boot, now, census } = self;
        let mut bytes = [Self::VERSION; Self::LEN];
        let numbers = [
            *batch,
            *boot,
            *now,
            census.in_flight,
            census.completed,
            census.released,
            census.unknown,
            census.tombstones,
            census.bytes,
        ];
        for (at, number) in bytes[1..].chunks_exact_mut(8).zip(numbers) {
            at.copy_from_slice(&number.to_be_bytes());
        }
        let sum = state_sum(&bytes);
        bytes[Self::LEN - 8..].copy_from_slice(&sum);
        bytes
    }

    /// `None`: it is damaged, or of another version.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        if bytes[0] != Self::VERSION || state_sum(bytes) != bytes[Self::LEN - 8..] {
            return None;
        }
        let mut numbers = bytes[1..].chunks_exact(8).map(number);
        let mut next = || numbers.next().unwrap_or_default();
        Some(Self {
            batch: next(),
            boot: next(),
            now: next(),
            census: Census {
                in_flight: next(),
                completed: next(),
                released: next(),
                unknown: next(),
                tombstones: next(),
                bytes: next(),
            },
        })
    }
}

fn state_sum(bytes: &[u8; State::LEN]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(STATE_KEY).update(&bytes[..State::LEN - 8]);
    short(&hasher)
}

/// The first eight bytes of a hash.
pub(super) fn short(hasher: &blake3::Hasher) -> [u8; 8] {
    let mut sum = [0; 8];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

/// A number of eight bytes, which are there.
pub(super) fn number(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// A duration beyond what fits is as good as for ever.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

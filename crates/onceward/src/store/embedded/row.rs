//! Stored formats: a record in its envelope, index keys, and the state that each batch carries.
//!
//! All of them have checksums of our own besides those of `fjall`.
//! A journal is read back without block checksums, and data corrupted by a bug or bad memory must
//! not pass for a response.

use std::time::Duration;

use bytes::Bytes;

use crate::codec;
use crate::record::{AttemptId, PhaseKind, Record, StoredRecord};
use crate::secret::RecordId;
use crate::store::{Error, StoreStats};

/// Due time of a record that is never due.
pub(super) const NEVER: u64 = u64::MAX;

/// Layout: `version · boot · written · due · checksum`, before the record.
const ENVELOPE: usize = 1 + 8 + 8 + 8 + 8;
const ENVELOPE_VERSION: u8 = 1;

/// Length of an encoded record's head, which holds its checksum: it ties the envelope to the
/// record.
const RECORD_HEAD: usize = 9;

/// Encoded record without its envelope, since only the writer knows the time of the write.
pub(super) struct EncodedRow {
    bytes: Vec<u8>,
    due_after: Option<Duration>,
    pub(super) attempt: AttemptId,
    pub(super) stage: PhaseKind,
}

impl EncodedRow {
    pub(super) fn new(id: &RecordId, record: &Record) -> Self {
        let encoded = codec::encode(id, record);
        // Space for the envelope, so that the writer fills it in without moving a body.
        let mut bytes = Vec::with_capacity(ENVELOPE + encoded.len());
        bytes.resize(ENVELOPE, 0);
        bytes.extend_from_slice(&encoded);
        // A record stores whole milliseconds; its due time must agree with what is read back.
        let due_after = record.due().map(|due| due - Duration::from_nanos(u64::from(due.subsec_nanos() % 1_000_000)));
        Self { bytes, due_after, attempt: record.attempt, stage: record.phase.stage() }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Completes the envelope. Returns the bytes and the index entry.
    pub(super) fn finish(mut self, id: &RecordId, boot: u64, written: u64) -> (Bytes, IndexEntry) {
        let due = self.due_after.map_or(NEVER, |due_after| written.saturating_add(nanos(due_after)));
        self.bytes[0] = ENVELOPE_VERSION;
        self.bytes[1..9].copy_from_slice(&boot.to_be_bytes());
        self.bytes[9..17].copy_from_slice(&written.to_be_bytes());
        self.bytes[17..25].copy_from_slice(&due.to_be_bytes());
        let sum = envelope_sum(id, &self.bytes);
        self.bytes[25..ENVELOPE].copy_from_slice(&sum);
        let entry = IndexEntry { due, stage: self.stage, bytes: self.bytes.len() as u64 };
        (self.bytes.into(), entry)
    }
}

/// Index entry of a record, and its share of the counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IndexEntry {
    pub(super) due: u64,
    pub(super) stage: PhaseKind,
    pub(super) bytes: u64,
}

/// Record decoded from its envelope.
pub(super) struct Row {
    pub(super) record: Record,
    pub(super) boot: u64,
    pub(super) written: u64,
    pub(super) entry: IndexEntry,
}

impl Row {
    pub(super) fn read(id: &RecordId, bytes: &Bytes) -> Result<Self, Error> {
        let [boot, written, due] = envelope(id, bytes)?;
        let record = codec::decode(id, &bytes.slice(ENVELOPE..))?;
        let entry = IndexEntry { due, stage: record.phase.stage(), bytes: bytes.len() as u64 };
        Ok(Self { record, boot, written, entry })
    }

    /// Builds the record as found at `now` by the process of `boot`.
    pub(super) fn found(self, now: u64, boot: u64) -> StoredRecord {
        StoredRecord {
            age: Duration::from_nanos(now.saturating_sub(self.written)),
            // One process at a time has the directory open, so the owner from an earlier boot is
            // certainly lost.
            owner_lost: self.entry.stage == PhaseKind::InFlight && self.boot != boot,
            record: Box::new(self.record),
        }
    }
}

/// Returns when a record is due, without decoding it.
pub(super) fn due(id: &RecordId, bytes: &Bytes) -> Result<u64, Error> {
    envelope(id, bytes).map(|[_, _, due]| due)
}

fn envelope(id: &RecordId, bytes: &[u8]) -> Result<[u64; 3], Error> {
    match bytes.first() {
        None => return Err(Error::unreadable("the record is empty")),
        Some(&ENVELOPE_VERSION) => {}
        Some(version) => {
            return Err(Error::unreadable(format!(
                "the record's envelope has version {version}, and this process knows only {ENVELOPE_VERSION}"
            )));
        }
    }
    if bytes.len() < ENVELOPE + RECORD_HEAD || envelope_sum(id, bytes) != bytes[25..ENVELOPE] {
        return Err(Error::unreadable("the checksum of the record's envelope is wrong"));
    }
    Ok([number(&bytes[1..]), number(&bytes[9..]), number(&bytes[17..])])
}

fn envelope_sum(id: &RecordId, bytes: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&id.0).update(&bytes[..25]).update(&bytes[ENVELOPE..ENVELOPE + RECORD_HEAD]);
    short(&hasher)
}

/// Returns the index key of a claim, by which it is found at the next start.
pub(super) fn claim_key(id: &RecordId) -> [u8; 33] {
    let mut key = [b'c'; 33];
    key[1..].copy_from_slice(&id.0);
    key
}

/// Returns the index key of a record that is due at `due`.
pub(super) fn due_key(due: u64, id: &RecordId) -> [u8; 41] {
    let mut key = [b'd'; 41];
    key[1..9].copy_from_slice(&due.to_be_bytes());
    key[9..].copy_from_slice(&id.0);
    key
}

/// Returns the index key of a record, if it has one.
pub(super) fn index_key(entry: &IndexEntry, id: &RecordId) -> Option<Vec<u8>> {
    match entry.stage {
        PhaseKind::InFlight => Some(claim_key(id).to_vec()),
        _ if entry.due == NEVER => None,
        _ => Some(due_key(entry.due, id).to_vec()),
    }
}

/// Parses a [`claim_key`].
pub(super) fn read_claim_key(key: &[u8]) -> Option<RecordId> {
    key.strip_prefix(b"c")?.try_into().ok().map(RecordId)
}

/// Parses a [`due_key`].
pub(super) fn read_due_key(key: &[u8]) -> Option<(u64, RecordId)> {
    let (due, id) = key.strip_prefix(b"d")?.split_first_chunk()?;
    Some((u64::from_be_bytes(*due), RecordId(id.try_into().ok()?)))
}

/// Returns the key of a named value.
pub(super) fn name_key(name: &str) -> Vec<u8> {
    [b"n", name.as_bytes()].concat()
}

/// Encodes a named value.
pub(super) fn write_named(name: &str, value: &[u8]) -> Bytes {
    [&named_sum(name, value)[..], value].concat().into()
}

/// Decodes a named value.
pub(super) fn read_named(name: &str, bytes: &Bytes) -> Result<Bytes, Error> {
    match bytes.split_first_chunk::<8>() {
        Some((sum, value)) if *sum == named_sum(name, value) => Ok(bytes.slice(8..)),
        _ => Err(Error::unreadable(format!("the checksum of the named value {name:?} is wrong"))),
    }
}

fn named_sum(name: &str, value: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(name.len() as u64).to_be_bytes()).update(name.as_bytes()).update(value);
    short(&hasher)
}

/// Key of [`State`]; the journal is searched for it.
pub(super) const STATE_KEY: &[u8] = b"state of the onceward store";

/// State carried by each batch, so that startup needs no scan for counts and time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// Number of this batch.
    pub(super) batch: u64,
    /// Number of times the directory was opened.
    pub(super) boot: u64,
    /// Latest time that the store has used, so that its clock never goes back.
    pub(super) now: u64,
    /// Record counts after this batch.
    pub(super) census: StoreStats,
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

    /// Decodes the state; `None` if it is damaged or of another version.
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
            census: StoreStats {
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

/// Returns the first eight bytes of a hash.
pub(super) fn short(hasher: &blake3::Hasher) -> [u8; 8] {
    let mut sum = [0; 8];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

/// Reads a number of eight bytes, which must be there.
pub(super) fn number(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// Converts to nanoseconds; a duration that does not fit is as good as forever.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_do_not_change() {
        let id = RecordId([0xab; 32]);
        assert_eq!(claim_key(&id)[..2], [b'c', 0xab]);
        assert_eq!(due_key(1, &id)[..10], [b'd', 0, 0, 0, 0, 0, 0, 0, 1, 0xab]);
        assert_eq!(name_key("secret"), b"nsecret");
        assert_eq!(STATE_KEY, b"state of the onceward store");
    }
}

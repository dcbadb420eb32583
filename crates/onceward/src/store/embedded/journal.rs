//! Checks the journals before `fjall` opens them.
//!
//! At an unknown tag `fjall` (3.1) assumes the end of the journal and truncates the rest.
//! That is right for a write torn by a power loss, and wrong for a flipped bit, after which
//! acknowledged claims would be absent.
//! If a torn write left a hole before its end, `fjall` does not open at all. So each journal is
//! walked here first.
//! Writes torn before they were acknowledged are truncated; any other damage stops the start.
//!
//! A batch is `1 count:u32 seqno:u64`, then items
//! `2 type:u8 compression:u8 keyspace:u64 key:u16 value:u32 stored:u32 key value`, then
//! `3 checksum:u64 "FJL" 3`.
//! Numbers are little-endian. One writer syncs each batch before it begins the next, so at most one
//! is torn.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3Default;

use super::row::{STATE_KEY, State};

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const TRAILER: &[u8; 4] = b"FJL\x03";

/// Reason why a directory is not opened.
#[derive(Debug)]
pub(super) enum CheckError {
    Damaged(String),
    Io(io::Error),
}

impl From<io::Error> for CheckError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Checks the journals in `data`, and truncates a torn write.
///
/// `acknowledged` is the number of the last acknowledged batch. Returns the number of the last
/// batch in the journals, if there is one.
pub(super) fn check(data: &Path, acknowledged: u64) -> Result<Option<u64>, CheckError> {
    let mut last = Last::default();
    let journals = journals(data)?;
    for (at, path) in journals.iter().enumerate() {
        check_journal(path, at + 1 == journals.len(), acknowledged, &mut last)?;
    }
    Ok(last.batch)
}

/// Last complete batch so far.
#[derive(Default)]
struct Last {
    batch: Option<u64>,
    seqno: Option<u64>,
}

fn check_journal(path: &Path, is_last: bool, acknowledged: u64, last: &mut Last) -> Result<(), CheckError> {
    let damaged = |at: u64, what: &str| CheckError::Damaged(format!("{} at byte {at}: {what}", path.display()));
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let mut reader = Reader { file: BufReader::with_capacity(1 << 16, file), left: len, buffer: Vec::new() };
    loop {
        let at = len - reader.left;
        let Some(batch) = reader.batch()? else {
            let rest = Tail::read(path, at)?;
            if rest.is_empty {
                return Ok(());
            }
            // The journal was completed by a sync, so nothing in it can be torn.
            if !is_last {
                return Err(damaged(at, "a batch cannot be read"));
            }
            let torn = last.batch.map(|number| number + 1).or(rest.first_batch);
            if rest.last_batch > torn || last.batch.is_some_and(|number| number < acknowledged) {
                return Err(damaged(at, "a batch cannot be read, and it was acknowledged"));
            }
            tracing::warn!(journal = %path.display(), at, "truncated a torn write that was not acknowledged");
            let file = OpenOptions::new().write(true).open(path)?;
            file.set_len(at)?;
            return Ok(file.sync_all()?);
        };
        if last.seqno.is_some_and(|seqno| batch.seqno <= seqno) {
            return Err(damaged(at, "a batch is out of order"));
        }
        let Some(state) = batch.state else {
            return Err(damaged(at, "a batch without a number"));
        };
        if last.batch.is_some_and(|number| number + 1 != state.batch) {
            return Err(damaged(at, "a batch is missing"));
        }
        *last = Last { batch: Some(state.batch), seqno: Some(batch.seqno) };
    }
}

struct Batch {
    seqno: u64,
    state: Option<State>,
}

struct Reader {
    file: BufReader<File>,
    left: u64,
    buffer: Vec<u8>,
}

impl Reader {
    /// Reads the next batch if it is complete. Otherwise it may have read a part of it.
    fn batch(&mut self) -> io::Result<Option<Batch>> {
        let before = self.left;
        let batch = self.complete_batch();
        if !matches!(batch, Ok(Some(_))) {
            self.left = before;
        }
        batch
    }

    fn complete_batch(&mut self) -> io::Result<Option<Batch>> {
        let Some([START, c0, c1, c2, c3, seqno @ ..]) = self.take::<13>()? else { return Ok(None) };
        let seqno = u64::from_le_bytes(seqno);
        let mut hasher = Xxh3Default::new();
        let mut state = None;
        for _ in 0..u32::from_le_bytes([c0, c1, c2, c3]) {
            let Some(head) = self.take::<21>()? else { return Ok(None) };
            let [ITEM, kind, 0, _, _, _, _, _, _, _, _, k0, k1, v0, v1, v2, v3, s0, s1, s2, s3] = head else {
                return Ok(None);
            };
            let key = usize::from(u16::from_le_bytes([k0, k1]));
            let value = u32::from_le_bytes([v0, v1, v2, v3]);
            // Nothing is compressed, so both lengths are equal; the kind is a value or a deletion.
            if kind > 1 || value != u32::from_le_bytes([s0, s1, s2, s3]) {
                return Ok(None);
            }
            hasher.update(&head);
            let Some(item) = self.take_many(key as u64 + u64::from(value))? else { return Ok(None) };
            hasher.update(item);
            let (key, value) = item.split_at(key);
            if key == STATE_KEY {
                state = State::read(value);
            }
        }
        let Some([END, sum @ .., t0, t1, t2, t3]) = self.take::<13>()? else { return Ok(None) };
        let is_complete = u64::from_le_bytes(sum) == hasher.digest() && [t0, t1, t2, t3] == *TRAILER;
        Ok(is_complete.then_some(Batch { seqno, state }))
    }

    fn take<const N: usize>(&mut self) -> io::Result<Option<[u8; N]>> {
        if self.left < N as u64 {
            return Ok(None);
        }
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes)?;
        self.left -= N as u64;
        Ok(Some(bytes))
    }

    fn take_many(&mut self, len: u64) -> io::Result<Option<&[u8]>> {
        // Checked before allocating: a flipped bit may ask for gigabytes.
        if self.left < len {
            return Ok(None);
        }
        self.buffer.resize(len as usize, 0);
        self.file.read_exact(&mut self.buffer)?;
        self.left -= len;
        Ok(Some(&self.buffer))
    }
}

/// Bytes after the last complete batch of a journal.
struct Tail {
    /// True if there are only zeros, which were preallocated.
    is_empty: bool,
    /// Numbers of the first and last batch found.
    first_batch: Option<u64>,
    last_batch: Option<u64>,
}

impl Tail {
    fn read(path: &Path, at: u64) -> io::Result<Self> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(at))?;
        let mut rest = Self { is_empty: true, first_batch: None, last_batch: None };
        let overlap = STATE_KEY.len() + State::LEN;
        let mut window = Vec::new();
        loop {
            let kept = window.len().min(overlap);
            window.drain(..window.len() - kept);
            if Read::by_ref(&mut file).take(ZEROS.len() as u64).read_to_end(&mut window)? == 0 {
                return Ok(rest);
            }
            // Nearly all windows are zeros, so this must be cheap; and no state ends in zeros only.
            if window[kept..] == ZEROS[..window.len() - kept] {
                continue;
            }
            rest.is_empty = false;
            for found in states(&window) {
                rest.first_batch = rest.first_batch.or(Some(found.batch));
                rest.last_batch = rest.last_batch.max(Some(found.batch));
            }
        }
    }
}

static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// Finds the states within some bytes, at any offset.
fn states(bytes: &[u8]) -> impl Iterator<Item = State> {
    let starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == STATE_KEY[0]).map(|(at, _)| at);
    starts.filter_map(|at| {
        let value = bytes[at..].strip_prefix(STATE_KEY)?;
        State::read(value.get(..State::LEN)?)
    })
}

fn journals(data: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(data)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "jnl") {
            let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u64>().ok());
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

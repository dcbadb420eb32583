//! Corruption of a killed store's files: flipped bits, torn writes, lost writes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;

use super::{LEASE, claim, id, print, record, released};
use crate::clock::ManualClock;
use crate::record::{Phase, Record, Retained};
use crate::reply::StoredResponse;
use crate::secret::RecordId;
use crate::store::Store;
use crate::store::embedded::journal::CheckError;
use crate::store::embedded::{EmbeddedStore, tables};

/// Store that was killed after these records were acknowledged: some in tables, some in the
/// journal.
struct Image {
    folder: tempfile::TempDir,
    records: Vec<(RecordId, Record)>,
}

const NAMED: &[u8] = b"a named value";

impl Image {
    async fn new() -> Self {
        let [live, folder] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let store = EmbeddedStore::open(live.path()).unwrap();
        let mut records = Vec::new();
        let mut write = async |range: std::ops::Range<u8>| {
            for n in range {
                store.insert(&id(n), &claim(n)).await.unwrap();
                let next = match n % 4 {
                    0 => released(n),
                    1 => record(n, Phase::Unknown { print: print() }),
                    2 => completed(n),
                    _ => claim(n),
                };
                store.compare_and_swap(&id(n), claim(n).version(), &next).await.unwrap();
                records.push((id(n), next));
            }
        };
        store.get_or_insert_meta("name", NAMED).await.unwrap();
        write(0..12).await;
        let engine = store.engine().unwrap();
        for keyspace in [&engine.records, &engine.index, &engine.meta] {
            keyspace.rotate_memtable_and_wait().unwrap();
        }
        write(12..24).await;
        copy(live.path(), folder.path());
        Self { folder, records }
    }

    /// Opens a copy after corrupting it. A copy that opens must return each record unchanged, or
    /// fail; never another one, never none.
    async fn check(&self, corrupt: impl FnOnce(&Path)) -> Outcome {
        let folder = tempfile::tempdir().unwrap();
        copy(self.folder.path(), folder.path());
        corrupt(folder.path());
        let clock = ManualClock::default();
        // Later than all writes, by the machine's clock.
        clock.shift_wall(100 * 365 * 86_400_000);
        let store = match EmbeddedStore::open_with(folder.path(), Arc::new(clock)) {
            Ok(store) => store,
            Err(_) => return Outcome::Rejected,
        };
        let mut failures = 0;
        match store.get_or_insert_meta("name", b"another").await {
            Ok(value) => assert_eq!(value, NAMED, "another named value"),
            Err(_) => failures += 1,
        }
        let due = store.due(1000).await;
        for (id, record) in &self.records {
            match store.get(id).await {
                Ok(Some(found)) => {
                    assert!(*found.record == *record, "{id:?} is another record");
                    let listed = due.as_ref().map_or(true, |due| due.iter().any(|(due, _)| due == id));
                    let is_indexed = matches!(record.phase, Phase::Released { .. } | Phase::Completed { .. });
                    if is_indexed && !listed {
                        failures += 1;
                    } else {
                        assert_eq!(
                            listed || due.is_err(),
                            due.is_err() || record.due().is_some(),
                            "{id:?} in what is due"
                        );
                    }
                }
                Ok(None) => panic!("{id:?} is gone, and its request would be executed again"),
                Err(_) => failures += 1,
            }
            if let Ok(found) = store.insert(id, &claim(99)).await {
                assert!(found.is_some_and(|found| *found.record == *record), "{id:?} was overwritten");
            }
        }
        if failures == 0 { Outcome::Complete } else { Outcome::Errors }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Rejected,
    Errors,
    Complete,
}

pub(super) fn completed(n: u8) -> Record {
    let reply = StoredResponse {
        status: StatusCode::CREATED,
        headers: Vec::new(),
        body: Bytes::from(vec![n; 200]),
        redirect: None,
    };
    let kept = Retained::Response(Arc::new(reply));
    record(n, Phase::Completed { print: print(), kept, retention: LEASE, tombstone: LEASE })
}

/// Copies the files as a crash leaves them: of a journal what was written, and a little of the
/// preallocated space.
pub(super) fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let name = file.strip_prefix(from).unwrap();
        let mut bytes = fs::read(&file).unwrap();
        if file.extension().is_some_and(|extension| extension == "jnl") {
            let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            bytes.truncate(used + 64);
        }
        fs::create_dir_all(to.join(name).parent().unwrap()).unwrap();
        fs::write(to.join(name), bytes).unwrap();
    }
}

pub(super) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

#[tokio::test]
async fn intact_image_opens_completely() {
    assert_eq!(Image::new().await.check(|_| {}).await, Outcome::Complete);
}

/// Flips bits in journals, tables, table lists and heads: none makes a record vanish or turns it
/// into another.
#[tokio::test]
async fn flipped_bit_is_an_error_or_a_rejected_start() {
    let image = Image::new().await;
    let root = image.folder.path();
    for file in files(root) {
        let name = file.strip_prefix(root).unwrap().to_owned();
        let len = fs::metadata(&file).unwrap().len() as usize;
        let mut seen = [0; 3];
        // Each byte of small files; of large ones their ends and a sample, or all.
        let step = if std::env::var_os("ONCEWARD_LONG").is_some() { 1 } else { (len / 60).max(1) };
        for at in (0..len).filter(|at| len <= 64 || at % step == 0 || *at >= len - 16) {
            let outcome = image.check(|copy| flip(&copy.join(&name), at)).await;
            seen[outcome as usize] += 1;
        }
        let [rejected, errors, complete] = seen;
        println!("{}: {rejected} rejected, {errors} with errors, {complete} complete", name.display());
    }
}

/// `fjall` would trust these and allocate so much memory that the process ends, which no other test
/// would survive.
#[tokio::test]
async fn flipped_bit_in_table_metadata_is_detected_before_opening() {
    let image = Image::new().await;
    let data = image.folder.path().join("data");
    tables::check(&data).unwrap();
    let mut checked = 0;
    for file in files(&data.join("keyspaces")) {
        let bytes = fs::read(&file).unwrap();
        let start = bytes.windows(4).rposition(|mark| mark == b"TOC!").unwrap_or(0);
        // The last eight bytes of a table are the length of its contents, which nobody reads.
        let end = if start > 0 { bytes.len() - 8 } else { bytes.len() };
        let is_old = file.file_name().unwrap().to_string_lossy().starts_with('v')
            && !fs::read(file.with_file_name("current")).unwrap().starts_with(&version_of(&file).to_le_bytes());
        for (at, bit) in (start..end).flat_map(|at| (0..8).map(move |bit| (at, bit))).filter(|_| !is_old) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            fs::write(&file, flipped).unwrap();
            let seen = matches!(tables::check(&data), Err(CheckError::Damaged(_)));
            assert!(seen, "{}: bit {bit} of byte {at}", file.display());
            checked += 1;
        }
        fs::write(&file, bytes).unwrap();
    }
    assert!(checked > 1000);
    tables::check(&data).unwrap();
}

fn version_of(file: &Path) -> u64 {
    file.file_name().unwrap().to_str().unwrap()[1..].parse().unwrap()
}

/// A kill leaves a half-written table, which is on no list and does not prevent opening.
#[tokio::test]
async fn unlisted_table_is_ignored() {
    let outcome = Image::new()
        .await
        .check(|copy| {
            for keyspace in fs::read_dir(copy.join("data/keyspaces")).unwrap() {
                fs::write(keyspace.unwrap().path().join("tables/999"), "half").unwrap();
            }
        })
        .await;
    assert_eq!(outcome, Outcome::Complete);
}

/// The acknowledged batch is in a later journal, so only reading a sealed journal detects the
/// damage.
#[tokio::test]
async fn flipped_bit_in_sealed_journal_rejects_the_start() {
    let image = Image::new().await;
    let split = |copy: &Path| {
        let [sealed, active] = ["0.jnl", "1.jnl"].map(|name| copy.join("data").join(name));
        let bytes = fs::read(&sealed).unwrap();
        let ends = batch_ends(&bytes);
        let (first, second) = bytes.split_at(ends[ends.len() / 2]);
        fs::write(&active, second).unwrap();
        fs::write(&sealed, [first, &[0; 64]].concat()).unwrap();
        (sealed, first.len())
    };
    assert_eq!(image.check(|copy| drop(split(copy))).await, Outcome::Complete);
    let scratch = tempfile::tempdir().unwrap();
    copy(image.folder.path(), scratch.path());
    let (_, len) = split(scratch.path());
    for at in (0..len).step_by(37) {
        let outcome = image
            .check(|copy| {
                let (sealed, _) = split(copy);
                flip(&sealed, at);
            })
            .await;
        assert_eq!(outcome, Outcome::Rejected, "byte {at}");
    }
}

/// A power loss may lose the last acknowledgement record; the batches after the damage reveal it.
#[tokio::test]
async fn flipped_bit_before_the_last_batch_rejects_the_start_without_acknowledgement_record() {
    let image = Image::new().await;
    let journal = image.folder.path().join("data/0.jnl");
    let ends = batch_ends(&fs::read(&journal).unwrap());
    let last = ends[ends.len() - 2];
    fs::write(image.folder.path().join("onceward"), super::super::data_dir::head(0)).unwrap();
    assert_eq!(image.check(|_| {}).await, Outcome::Complete);
    for at in (0..last).step_by(23).chain(last - 20..last) {
        let outcome = image.check(|copy| flip(&copy.join("data/0.jnl"), at)).await;
        assert_eq!(outcome, Outcome::Rejected, "byte {at}");
    }
}

/// Tears the last write at every byte, in each way in which a power loss tears: truncated, zeros at
/// its end, zeros at its start.
#[tokio::test]
async fn torn_unacknowledged_write_loses_nothing_else() {
    let torn = Torn::new().await;
    for at in torn.start..torn.end {
        // A second opening shows that the first left nothing behind.
        let openings = if at % 16 == 0 { 2 } else { 1 };
        for way in (0..3).filter(|way| *way < 2 || at % 5 == 0) {
            let folder = torn.copy(torn.end);
            let journal = folder.path().join("data/0.jnl");
            let mut bytes = fs::read(&journal).unwrap();
            match way {
                0 => bytes.truncate(at),
                1 => bytes[at..].fill(0),
                _ => bytes[torn.start..=at].fill(0),
            }
            fs::write(&journal, &bytes).unwrap();
            // All but the last were acknowledged.
            fs::write(folder.path().join("onceward"), &torn.head_before).unwrap();
            for opening in 0..openings {
                let store = EmbeddedStore::open(folder.path())
                    .unwrap_or_else(|error| panic!("byte {at}, way {way}, opening {opening}: {error}"));
                for n in 1..=2 {
                    assert_eq!(*store.get(&id(n)).await.unwrap().unwrap().record, completed(n), "byte {at}, way {way}");
                }
                // It was not acknowledged, so the key is free.
                let found = store.insert(&id(3), &claim(4)).await.unwrap().map(|found| *found.record);
                assert_eq!(found, (opening == 1).then(|| claim(4)), "byte {at}, way {way}");
            }
        }
    }
}

/// A write that was acknowledged is not torn but damaged.
#[tokio::test]
async fn truncated_acknowledged_write_rejects_the_start() {
    let torn = Torn::new().await;
    for at in (0..torn.end).filter(|at| *at >= torn.start || at % 29 == 0) {
        let folder = torn.copy(at);
        let error = EmbeddedStore::open(folder.path()).expect_err("what was acknowledged is gone");
        assert!(error.to_string().contains("is damaged"), "byte {at}: {error}");
        // The second attempt fails too, and the remaining bytes are kept for a repair.
        EmbeddedStore::open(folder.path()).expect_err("what was acknowledged is gone");
        if at >= torn.first_end {
            assert_eq!(fs::metadata(folder.path().join("data/0.jnl")).unwrap().len(), at as u64);
        }
    }
    drop(EmbeddedStore::open(torn.copy(torn.end).path()).unwrap());
}

#[tokio::test]
async fn restored_older_data_reject_the_start() {
    let [live, early] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let store = EmbeddedStore::open(live.path()).unwrap();
    store.insert(&id(1), &claim(1)).await.unwrap();
    copy(live.path(), early.path());
    store.insert(&id(2), &claim(2)).await.unwrap();
    drop(store);
    // The data go back, and the acknowledgement record stays.
    fs::remove_dir_all(live.path().join("data")).unwrap();
    copy(&early.path().join("data"), &live.path().join("data"));
    let error = EmbeddedStore::open(live.path()).unwrap_err();
    assert!(error.to_string().contains(&live.path().display().to_string()), "{error}");
    assert!(error.to_string().contains("acknowledged"), "{error}");
}

/// Two acknowledged responses, and a claim after them.
struct Torn {
    folder: tempfile::TempDir,
    head_before: Vec<u8>,
    /// Offsets in the journal: end of the first write, start and end of the last.
    first_end: usize,
    start: usize,
    end: usize,
}

impl Torn {
    async fn new() -> Self {
        let [live, folder] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let store = EmbeddedStore::open(live.path()).unwrap();
        for n in 1..=2 {
            store.insert(&id(n), &completed(n)).await.unwrap();
        }
        let head_before = fs::read(live.path().join("onceward")).unwrap();
        store.insert(&id(3), &claim(3)).await.unwrap();
        copy(live.path(), folder.path());
        let ends = batch_ends(&fs::read(folder.path().join("data/0.jnl")).unwrap());
        let [first_end, .., start, end] = ends[..] else { panic!("{ends:?}") };
        Self { folder, head_before, first_end, start, end }
    }

    /// Returns a copy with this much of the journal.
    fn copy(&self, journal_len: usize) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        copy(self.folder.path(), folder.path());
        let journal = folder.path().join("data/0.jnl");
        let mut bytes = fs::read(&journal).unwrap();
        bytes.truncate(journal_len);
        fs::write(journal, bytes).unwrap();
        folder
    }
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 1 << (at % 8);
    fs::write(file, bytes).unwrap();
}

/// Returns the offsets at which batches end; no record of these tests contains the trailer.
fn batch_ends(journal: &[u8]) -> Vec<usize> {
    let marks = journal.windows(4).enumerate().filter(|(_, window)| window == b"FJL\x03");
    marks.map(|(at, _)| at + 4).collect()
}

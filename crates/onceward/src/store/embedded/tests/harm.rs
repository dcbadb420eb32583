//! A killed store's files, harmed: flipped bits, torn writes, lost writes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;

use super::{LEASE, claim, id, print, record, released};
use crate::clock::ManualClock;
use crate::record::{Kept, Phase, Record};
use crate::reply::Reply;
use crate::secret::RecordId;
use crate::store::Store;
use crate::store::embedded::journal::Refusal;
use crate::store::embedded::{EmbeddedStore, tables};

/// A store that was killed after these were acknowledged: some in tables, some in the journal.
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
                store.replace(&id(n), claim(n).version(), &next).await.unwrap();
                records.push((id(n), next));
            }
        };
        store.meta("name", NAMED).await.unwrap();
        write(0..12).await;
        let engine = store.engine().unwrap();
        for keyspace in [&engine.records, &engine.index, &engine.meta] {
            keyspace.rotate_memtable_and_wait().unwrap();
        }
        write(12..24).await;
        copy(live.path(), folder.path());
        Self { folder, records }
    }

    /// Opens a copy after `harm`. What opens must show each record as it was, or fail; never another, and never nothing.
    async fn judge(&self, harm: impl FnOnce(&Path)) -> Judgement {
        let folder = tempfile::tempdir().unwrap();
        copy(self.folder.path(), folder.path());
        harm(folder.path());
        let clock = ManualClock::default();
        // After all that was written, by the clock of the machine.
        clock.shift_wall(100 * 365 * 86_400_000);
        let store = match EmbeddedStore::open_with(folder.path(), Arc::new(clock)) {
            Ok(store) => store,
            Err(_) => return Judgement::Refused,
        };
        let mut failures = 0;
        match store.meta("name", b"another").await {
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
        if failures == 0 { Judgement::Whole } else { Judgement::Errors }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    Refused,
    Errors,
    Whole,
}

pub(super) fn completed(n: u8) -> Record {
    let reply =
        Reply { status: StatusCode::CREATED, headers: Vec::new(), body: Bytes::from(vec![n; 200]), redirect: None };
    let kept = Kept::Whole(Arc::new(reply));
    record(n, Phase::Completed { print: print(), kept, retention: LEASE, tombstone: LEASE })
}

/// As a crash leaves it. Of a journal only what was written, and a little of the room that was made.
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
async fn an_image_without_harm_is_whole() {
    assert_eq!(Image::new().await.judge(|_| {}).await, Judgement::Whole);
}

/// In journals, tables, lists of tables and marks: no flipped bit makes a record vanish, or turns it into another.
#[tokio::test]
async fn a_flipped_bit_is_an_error_or_a_refused_start() {
    let image = Image::new().await;
    let root = image.folder.path();
    for file in files(root) {
        let name = file.strip_prefix(root).unwrap().to_owned();
        let len = fs::metadata(&file).unwrap().len() as usize;
        let mut seen = [0; 3];
        // Each byte of small files; of large ones their ends, and many between, or all.
        let step = if std::env::var_os("ONCEWARD_LONG").is_some() { 1 } else { (len / 60).max(1) };
        for at in (0..len).filter(|at| len <= 64 || at % step == 0 || *at >= len - 16) {
            let judgement = image.judge(|copy| flip(&copy.join(&name), at)).await;
            seen[judgement as usize] += 1;
        }
        let [refused, errors, whole] = seen;
        println!("{}: {refused} refused, {errors} with errors, {whole} whole", name.display());
    }
}

/// `fjall` would believe these and ask for so much memory that the process ends, which no other test would survive.
#[tokio::test]
async fn each_flipped_bit_in_the_lists_and_contents_of_tables_is_seen_before_they_are_opened() {
    let image = Image::new().await;
    let data = image.folder.path().join("data");
    tables::check(&data).unwrap();
    let mut checked = 0;
    for file in files(&data.join("keyspaces")) {
        let bytes = fs::read(&file).unwrap();
        let start = bytes.windows(4).rposition(|mark| mark == b"TOC!").unwrap_or(0);
        // The last eight bytes of a table say how long its contents are, and nobody asks.
        let end = if start > 0 { bytes.len() - 8 } else { bytes.len() };
        let is_old = file.file_name().unwrap().to_string_lossy().starts_with('v')
            && !fs::read(file.with_file_name("current")).unwrap().starts_with(&version_of(&file).to_le_bytes());
        for (at, bit) in (start..end).flat_map(|at| (0..8).map(move |bit| (at, bit))).filter(|_| !is_old) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            fs::write(&file, flipped).unwrap();
            let seen = matches!(tables::check(&data), Err(Refusal::Damaged(_)));
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

/// A kill leaves half of what was being written, on no list; it does not keep the store from being opened.
#[tokio::test]
async fn a_table_that_is_on_no_list_is_no_harm() {
    let judgement = Image::new()
        .await
        .judge(|copy| {
            for keyspace in fs::read_dir(copy.join("data/keyspaces")).unwrap() {
                fs::write(keyspace.unwrap().path().join("tables/999"), "half").unwrap();
            }
        })
        .await;
    assert_eq!(judgement, Judgement::Whole);
}

/// A journal that was sealed is not the last word on how far the store reached, so nothing but reading it shows what it lost.
#[tokio::test]
async fn a_flipped_bit_in_a_sealed_journal_refuses_the_start() {
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
    assert_eq!(image.judge(|copy| drop(split(copy))).await, Judgement::Whole);
    let scratch = tempfile::tempdir().unwrap();
    copy(image.folder.path(), scratch.path());
    let (_, len) = split(scratch.path());
    for at in (0..len).step_by(37) {
        let judgement = image
            .judge(|copy| {
                let (sealed, _) = split(copy);
                flip(&sealed, at);
            })
            .await;
        assert_eq!(judgement, Judgement::Refused, "byte {at}");
    }
}

/// A power loss may take the last notes of what was acknowledged with it; what follows the damage then tells.
#[tokio::test]
async fn a_flipped_bit_before_the_last_batch_refuses_the_start_though_no_note_of_it_is_left() {
    let image = Image::new().await;
    let journal = image.folder.path().join("data/0.jnl");
    let ends = batch_ends(&fs::read(&journal).unwrap());
    let last = ends[ends.len() - 2];
    fs::write(image.folder.path().join("onceward"), super::super::folder::head(0)).unwrap();
    assert_eq!(image.judge(|_| {}).await, Judgement::Whole);
    for at in (0..last).step_by(23).chain(last - 20..last) {
        let judgement = image.judge(|copy| flip(&copy.join("data/0.jnl"), at)).await;
        assert_eq!(judgement, Judgement::Refused, "byte {at}");
    }
}

/// The last write, torn at every byte of it, in each way that a power loss tears: cut off, zeros where it was not written,
/// zeros where it was written and what follows was not.
#[tokio::test]
async fn a_torn_write_that_nobody_was_told_of_loses_nothing_else() {
    let torn = Torn::new().await;
    for at in torn.start..torn.end {
        // That nothing is left behind that troubles the next start shows at any byte.
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
            // Told of all but the last.
            fs::write(folder.path().join("onceward"), &torn.head_before).unwrap();
            for opening in 0..openings {
                let store = EmbeddedStore::open(folder.path())
                    .unwrap_or_else(|error| panic!("byte {at}, way {way}, opening {opening}: {error}"));
                for n in 1..=2 {
                    assert_eq!(*store.get(&id(n)).await.unwrap().unwrap().record, completed(n), "byte {at}, way {way}");
                }
                // Nobody was told of it, so it is free, for the first who comes.
                let found = store.insert(&id(3), &claim(4)).await.unwrap().map(|found| *found.record);
                assert_eq!(found, (opening == 1).then(|| claim(4)), "byte {at}, way {way}");
            }
        }
    }
}

/// Once somebody was told of it, it is not torn but damaged.
#[tokio::test]
async fn a_cut_of_what_was_acknowledged_refuses_the_start() {
    let torn = Torn::new().await;
    for at in (0..torn.end).filter(|at| *at >= torn.start || at % 29 == 0) {
        let folder = torn.copy(at);
        let error = EmbeddedStore::open(folder.path()).expect_err("what was acknowledged is gone");
        assert!(error.to_string().contains("is damaged"), "byte {at}: {error}");
        // Nor at the second try; and what is left is still there for whoever can mend it.
        EmbeddedStore::open(folder.path()).expect_err("what was acknowledged is gone");
        if at >= torn.first_end {
            assert_eq!(fs::metadata(folder.path().join("data/0.jnl")).unwrap().len(), at as u64);
        }
    }
    drop(EmbeddedStore::open(torn.copy(torn.end).path()).unwrap());
}

#[tokio::test]
async fn data_of_an_earlier_day_refuse_the_start() {
    let [live, early] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let store = EmbeddedStore::open(live.path()).unwrap();
    store.insert(&id(1), &claim(1)).await.unwrap();
    copy(live.path(), early.path());
    store.insert(&id(2), &claim(2)).await.unwrap();
    drop(store);
    // The data go back, and the note of what was acknowledged stays.
    fs::remove_dir_all(live.path().join("data")).unwrap();
    copy(&early.path().join("data"), &live.path().join("data"));
    let error = EmbeddedStore::open(live.path()).unwrap_err();
    assert!(error.to_string().contains(&live.path().display().to_string()), "{error}");
    assert!(error.to_string().contains("acknowledged"), "{error}");
}

/// Two answers that callers were told of, and a claim after them.
struct Torn {
    folder: tempfile::TempDir,
    head_before: Vec<u8>,
    /// Where the first write ends in the journal, and where the last begins and ends.
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

    /// A copy with so much of the journal.
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

/// Where each batch of a journal ends; no record of these tests has the mark in it.
fn batch_ends(journal: &[u8]) -> Vec<usize> {
    let marks = journal.windows(4).enumerate().filter(|(_, window)| window == b"FJL\x03");
    marks.map(|(at, _)| at + 4).collect()
}

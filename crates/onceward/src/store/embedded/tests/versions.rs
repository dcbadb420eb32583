//! Data directories of older versions: `folder-1` was written by the first, and every later version
//! opens it.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::corruption::{completed, copy, files};
use super::{claim, id, print, record, released};
use crate::clock::ManualClock;
use crate::record::{Phase, Record};
use crate::store::Store;
use crate::store::embedded::EmbeddedStore;

const FOLDER: &[u8] = include_bytes!("folder-1");

/// Environment variable with the path to write such a directory to, for the next schema.
const MAKE: &str = "ONCEWARD_TEST_MAKE_FOLDER";

fn records() -> impl Iterator<Item = (u8, Record)> {
    (0..12).map(|n| match n % 4 {
        0 => (n, released(n)),
        1 => (n, record(n, Phase::Unknown { print: print() })),
        2 => (n, completed(n)),
        _ => (n, claim(n)),
    })
}

/// Packs files: length of the name, name, length of the file, file.
fn pack(folder: &Path) -> Vec<u8> {
    let mut packed = Vec::new();
    for file in files(folder) {
        let name = file.strip_prefix(folder).unwrap().to_str().unwrap().as_bytes().to_vec();
        for part in [name, fs::read(&file).unwrap()] {
            packed.extend_from_slice(&u32::try_from(part.len()).unwrap().to_be_bytes());
            packed.extend_from_slice(&part);
        }
    }
    packed
}

fn unpack(mut packed: &[u8], folder: &Path) {
    let mut next = || {
        let (len, rest) = packed.split_first_chunk()?;
        let (part, rest) = rest.split_at(u32::from_be_bytes(*len) as usize);
        packed = rest;
        Some(part)
    };
    while let (Some(name), Some(bytes)) = (next(), next()) {
        let file = folder.join(std::str::from_utf8(name).unwrap());
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
    }
}

/// Writes some records to tables and some to the journal, as a kill leaves them.
#[tokio::test]
async fn make() {
    let Ok(file) = std::env::var(MAKE) else { return };
    let [live, folder] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let store = EmbeddedStore::open(live.path()).unwrap();
    store.get_or_insert_meta("name", b"a named value").await.unwrap();
    for (n, record) in records() {
        store.insert(&id(n), &record).await.unwrap();
        if n == 7 {
            let engine = store.engine().unwrap();
            for keyspace in [&engine.records, &engine.index, &engine.meta] {
                keyspace.rotate_memtable_and_wait().unwrap();
            }
        }
    }
    copy(live.path(), folder.path());
    fs::write(file, pack(folder.path())).unwrap();
}

#[tokio::test]
async fn data_dir_of_older_version_is_opened_completely() {
    let folder = tempfile::tempdir().unwrap();
    unpack(FOLDER, folder.path());
    for opening in 0..2 {
        let clock = ManualClock::default();
        // Later than all writes, by the machine's clock.
        clock.shift_wall(100 * 365 * 86_400_000);
        let store = EmbeddedStore::open_with(folder.path(), Arc::new(clock)).unwrap();
        assert_eq!(store.get_or_insert_meta("name", b"another").await.unwrap(), &b"a named value"[..]);
        for (n, record) in records() {
            let found = store.insert(&id(n), &claim(99)).await.unwrap();
            assert_eq!(found.map(|found| *found.record), Some(record), "{n}, opening {opening}");
        }
        let census = store.stats().await.unwrap();
        assert_eq!((census.in_flight, census.completed, census.released, census.unknown), (3, 3, 3, 3));
        assert_eq!(store.insert(&id(100 + opening), &claim(9)).await.unwrap(), None);
        assert!(store.remove(&id(100 + opening), claim(9).version()).await.unwrap());
    }
}

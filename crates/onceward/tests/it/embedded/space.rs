//! Compaction: space of removed records is returned to the disk.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use onceward::store::{EmbeddedStore, Store};

use super::{claim, completed, id};

/// Returns the disk usage of the directory in MiB, without the reserve and preallocated journal
/// space.
fn megabytes(folder: &Path) -> u64 {
    let mut blocks = 0;
    for entry in fs::read_dir(folder).unwrap().flatten() {
        if entry.file_name() == "room" {
            continue;
        }
        // The store may delete the file between the two calls.
        let Ok(metadata) = entry.metadata() else { continue };
        blocks += if metadata.is_dir() { megabytes(&entry.path()) * 2048 } else { metadata.blocks() };
    }
    blocks / 2048
}

#[tokio::test]
async fn removed_records_release_disk_space() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(folder.path()).unwrap();
    let kept = completed(1000, 10_000);
    store.insert(&id(1000), &kept).await.unwrap();
    for n in 0..160 {
        store.insert(&id(n), &completed(n, 1 << 20)).await.unwrap();
    }
    let full = megabytes(folder.path());
    assert!(full >= 160, "{full} MiB");
    for n in 0..160 {
        assert!(store.remove(&id(n), completed(n, 0).version()).await.unwrap());
    }
    // A load of small requests continues meanwhile.
    let begun = Instant::now();
    let mut n = 2000;
    loop {
        store.insert(&id(n), &claim(n)).await.unwrap();
        assert!(store.remove(&id(n), claim(n).version()).await.unwrap());
        n += 1;
        let left = megabytes(folder.path());
        if left <= 80 {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{left} MiB of {full} are left");
    }
    assert!(*store.get(&id(1000)).await.unwrap().unwrap().record == kept);
    assert_eq!(store.get(&id(0)).await.unwrap(), None);
    drop(store);
    let store = EmbeddedStore::open(folder.path()).unwrap();
    assert!(*store.get(&id(1000)).await.unwrap().unwrap().record == kept);
    assert_eq!(store.get(&id(159)).await.unwrap(), None);
}

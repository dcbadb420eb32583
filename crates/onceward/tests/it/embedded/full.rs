//! A disk that is really full: a small file system in a mount namespace of its own.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use onceward::store::{Applied, Cas, EmbeddedStore, Error, Store};

use super::child::{Play, tell};
use super::{claim, completed, id};

/// Size of the disk: the engine's journal, the reserve, the limit for claims, and some for both.
const DISK: &str = "size=260m";

/// Writes until the disk is full.
fn fill(disk: &Path) {
    let mut file = File::options().create(true).append(true).open(disk.join("filler")).expect("a file");
    for len in [1 << 20, 4096, 1] {
        while file.write_all(&vec![7; len]).is_ok() {}
    }
}

fn empty(disk: &Path) {
    fs::remove_file(disk.join("filler")).expect("it was filled");
}

#[track_caller]
fn assert_refused(error: &Error, folder: &Path, what: &str) {
    let line = error.to_string();
    assert!(line.contains(what) && line.contains(&folder.display().to_string()), "{line}");
    assert_eq!(error.applied(), Applied::No, "{line}");
}

/// Runs in the other process.
pub(super) async fn fill_up(disk: &Path) {
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", DISK, "tmpfs"]).arg(disk).status();
    assert!(mount.expect("mount is there").success());
    let folder = disk.join("keys");
    let store = EmbeddedStore::open(&folder).expect("there is room");
    store.insert(&id(0), &completed(0, 1 << 20)).await.expect("there is room");
    for n in 1..=30 {
        assert_eq!(store.insert(&id(n), &claim(n)).await.expect("there is room"), None);
    }

    fill(disk);
    for n in 100..103 {
        assert_refused(&store.insert(&id(n), &claim(n)).await.expect_err("it is full"), &folder, "is nearly full");
        assert_eq!(store.get(&id(n)).await.expect("it is read"), None, "a claim that was refused is there");
    }
    let replay = store.insert(&id(0), &claim(200)).await.expect("it is read").expect("it was kept");
    assert!(*replay.record == completed(0, 1 << 20));
    // Claims in flight renew and complete.
    assert_eq!(
        store.compare_and_swap(&id(1), claim(1).version(), &claim(1)).await.expect("there is room"),
        Cas::Swapped
    );
    for n in 1..=20 {
        let kept = store.compare_and_swap(&id(n), claim(n).version(), &completed(n, 1 << 20)).await;
        assert_eq!(kept.expect("room was kept for it"), Cas::Swapped);
        assert_refused(&store.insert(&id(100), &claim(100)).await.expect_err("it is full"), &folder, "is nearly full");
    }
    tell("answers were kept");

    // The rest of the disk is used up too.
    fill(disk);
    let lost = store.compare_and_swap(&id(21), claim(21).version(), &completed(21, 1 << 20)).await;
    assert_refused(&lost.expect_err("nothing is left"), &folder, "is full");
    assert_eq!(*store.get(&id(21)).await.expect("it is read").expect("it runs").record, claim(21));
    empty(disk);
    // No byte of it was written, so the store need not be opened again.
    for n in 21..=25 {
        let kept = store.compare_and_swap(&id(n), claim(n).version(), &completed(n, 1 << 20)).await;
        assert_eq!(kept.expect("there is room again"), Cas::Swapped);
    }
    assert_eq!(store.insert(&id(100), &claim(100)).await.expect("there is room again"), None);
    tell("it goes on");

    // It opens on a full disk too, and returns its records.
    fill(disk);
    drop(store);
    let store = EmbeddedStore::open(&folder).expect("room was kept");
    for n in 0..=25 {
        let found = store.get(&id(n)).await.expect("it is read").expect("it was kept");
        assert!(*found.record == completed(n, 1 << 20), "{n}");
    }
    assert_refused(&store.insert(&id(101), &claim(101)).await.expect_err("it is full"), &folder, "full");
    let kept = store.compare_and_swap(&id(26), claim(26).version(), &completed(26, 1000)).await;
    assert_eq!(kept.expect("room was kept for it"), Cas::Swapped);
    tell("it starts");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn full_disk_rejects_claims_and_stores_responses_in_flight() {
    let disk = tempfile::tempdir().unwrap();
    let mut other = Play::start_with_mounts("fill up", disk.path());
    other.hear_of("answers were kept");
    other.hear_of("it goes on");
    other.hear_of("it starts");
    other.end();
}

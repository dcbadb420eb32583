//! Failing or slow disks: a preloaded library changes the results of system calls in another
//! process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use onceward::store::{Applied, Cas, EmbeddedStore, Store};

use super::child::{Play, tell, wait_for_parent};
use super::{claim, completed, id, released};

/// Builds the library to preload. A C compiler is present, since Rust links with it.
fn faults(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/embedded/faults.c");
    let library = folder.join("faults.so");
    let status =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl").status();
    assert!(status.expect("a C compiler").success());
    library
}

fn set_fault(letter: &str) {
    let path = std::env::var("FAULTS").expect("the parent names it");
    fs::write(path, letter).expect("a temporary file");
}

/// Runs in the other process: reads records that are not yet durable.
pub(super) async fn hold_a_sync(folder: &Path) {
    let store = Arc::new(EmbeddedStore::open(folder).expect("nobody has it"));
    store.insert(&id(1), &claim(1)).await.expect("it is written");
    set_fault("h");
    let mut writes = tokio::spawn({
        let store = store.clone();
        async move {
            let (key, record, released) = (id(2), claim(2), released(1));
            let (insert, replace) = tokio::join!(store.insert(&key, &record), async {
                store.compare_and_swap(&id(1), claim(1).version(), &released).await
            },);
            assert_eq!(insert.expect("it is written"), None);
            assert_eq!(replace.expect("it is written"), Cas::Swapped);
        }
    });
    tokio::select! {
        // The parent has been notified that the sync is held.
        () = async { tokio::task::spawn_blocking(wait_for_parent).await.expect("the parent speaks") } => {}
        _ = &mut writes => {
            tell("it was acknowledged, and nothing was synced");
            std::process::exit(1);
        }
    }
    let found = store.get(&id(2)).await.expect("it is read");
    assert_eq!(found, None, "a claim was shown that a power loss would undo");
    let found = store.get(&id(1)).await.expect("it is read").expect("it was acknowledged");
    assert_eq!(*found.record, claim(1), "a release was shown that a power loss would undo");
    assert!(!writes.is_finished(), "it was acknowledged before its sync");
    assert_eq!(store.stats().await.expect("it counts").released, 0);
    tell("unseen");
    set_fault("");
    writes.await.expect("both are written");
    assert_eq!(*store.get(&id(2)).await.expect("it is read").expect("it was acknowledged").record, claim(2));
    assert_eq!(*store.get(&id(1)).await.expect("it is read").expect("it was acknowledged").record, released(1));
    tell("seen");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn write_is_invisible_until_durable() {
    let (scratch, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let library = faults(scratch.path());
    let control = scratch.path().join("control");
    let environment = [("LD_PRELOAD", library.as_path()), ("FAULTS", control.as_path())];
    let mut other = Play::start("hold a sync", folder.path(), &environment);
    other.hear_of("held");
    other.say();
    other.hear_of("unseen");
    other.hear_of("seen");
    other.end();
}

/// Runs in the other process: the disk fails under concurrent writes.
pub(super) async fn fail(folder: &Path) {
    let store = Arc::new(EmbeddedStore::open(folder).expect("nobody has it"));
    store.insert(&id(1), &completed(1, 100)).await.expect("it is written");
    store.insert(&id(2), &claim(2)).await.expect("it is written");
    set_fault(&fs::read_to_string(folder.join("../fault")).expect("the parent names it"));
    let waiting = (100..150).map(|n| {
        let store = store.clone();
        tokio::spawn(async move { store.insert(&id(n), &claim(n)).await.expect_err("it cannot be durable") })
    });
    let mut unknown = 0;
    for waiting in waiting.collect::<Vec<_>>() {
        let error = waiting.await.expect("it ends");
        // Writes in flight may have been applied; the others were not started.
        unknown += u32::from(error.applied() == Applied::Unknown);
    }
    assert!(unknown > 0, "no write was reported as possibly applied");

    // The disk works again, which proves nothing: no write is accepted until the store is opened
    // again.
    set_fault("");
    let errors = [
        store.insert(&id(3), &claim(3)).await.expect_err("refused"),
        store.compare_and_swap(&id(2), claim(2).version(), &released(2)).await.expect_err("refused"),
        store.remove(&id(1), completed(1, 100).version()).await.expect_err("refused"),
        store.get_or_insert_meta("name", b"value").await.expect_err("refused"),
    ];
    for error in errors {
        assert_eq!(error.applied(), Applied::No);
        assert!(error.to_string().contains("takes no writes until it is opened again"), "{error}");
        assert!(error.to_string().contains(&folder.display().to_string()), "{error}");
    }
    // Durable records are still returned.
    let found = store.get(&id(1)).await.expect("it is read").expect("it was acknowledged");
    assert!(*found.record == completed(1, 100));
    let found = store.insert(&id(1), &claim(9)).await.expect("it is read").expect("it was acknowledged");
    assert!(*found.record == completed(1, 100));
    assert_eq!(*store.get(&id(2)).await.expect("it is read").expect("it was acknowledged").record, claim(2));
    for n in 100..150 {
        assert_eq!(store.get(&id(n)).await.expect("it is read"), None, "what failed was shown");
    }
    drop(store);
    // Once opened again, it works. Failed writes may be present: their outcome was reported as
    // unknown.
    let store = EmbeddedStore::open(folder).expect("the disk is well");
    assert!(*store.get(&id(1)).await.expect("it is read").expect("it was acknowledged").record == completed(1, 100));
    for n in 100..150 {
        store.insert(&id(n), &claim(n)).await.expect("it is written");
        assert_eq!(*store.get(&id(n)).await.expect("it is read").expect("it was written").record, claim(n));
    }
    tell("done");
}

#[cfg(target_os = "linux")]
async fn after_a_failure_nothing_is_written_until_it_is_opened_again(fault: &str) {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("keys");
    let library = faults(scratch.path());
    let control = scratch.path().join("control");
    fs::write(scratch.path().join("fault"), fault).unwrap();
    let environment = [("LD_PRELOAD", library.as_path()), ("FAULTS", control.as_path())];
    let mut other = Play::start("fail", &folder, &environment);
    other.hear_of("done");
    other.end();
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn failed_sync_rejects_writes_until_reopened() {
    after_a_failure_nothing_is_written_until_it_is_opened_again("s").await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn full_disk_error_rejects_writes_until_reopened() {
    after_a_failure_nothing_is_written_until_it_is_opened_again("w").await;
}

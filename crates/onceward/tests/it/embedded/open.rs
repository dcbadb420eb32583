//! Opening: exclusive use of the data directory, and errors that prevent it.

use std::fs;
use std::path::Path;

use onceward::store::{Applied, EmbeddedStore, Error, Store};

use super::child::{Play, tell, wait_for_parent};
use super::{claim, id};

#[track_caller]
fn assert_one_clear_line(error: &Error, folder: &Path, what: &str) {
    let line = error.to_string();
    assert!(line.contains(&folder.display().to_string()), "it does not name the folder: {line}");
    assert!(line.contains(what), "it does not say {what:?}: {line}");
    assert!(!line.contains('\n'), "{line}");
    assert_eq!(error.applied(), Applied::No);
}

/// Runs in the other process: keeps the directory open until it is killed.
pub(super) fn hold(folder: &Path) {
    let store = EmbeddedStore::open(folder).expect("nobody has it");
    tell("open");
    wait_for_parent();
    drop(store);
    tell("closed");
    wait_for_parent();
}

#[tokio::test]
async fn second_process_is_rejected_until_the_first_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut other = Play::start("hold", folder.path(), &[]);
    other.hear_of("open");
    let error = EmbeddedStore::open(folder.path()).unwrap_err();
    assert_one_clear_line(&error, folder.path(), "is in use by another process");
    other.kill();
    other.process.wait().unwrap();
    // A dead process holds nothing.
    drop(EmbeddedStore::open(folder.path()).unwrap());

    let mut other = Play::start("hold", folder.path(), &[]);
    other.hear_of("open");
    EmbeddedStore::open(folder.path()).unwrap_err();
    other.say();
    other.hear_of("closed");
    // Nor does a live one that has closed it.
    drop(EmbeddedStore::open(folder.path()).unwrap());
    other.say();
    other.end();
}

#[tokio::test]
async fn second_open_in_one_process_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(folder.path()).unwrap();
    for _ in 0..3 {
        let error = EmbeddedStore::open(folder.path()).unwrap_err();
        assert_one_clear_line(&error, folder.path(), "is in use");
    }
    store.insert(&id(1), &claim(1)).await.unwrap();
    drop(store);
    assert!(EmbeddedStore::open(folder.path()).unwrap().get(&id(1)).await.unwrap().is_some());
}

#[tokio::test]
async fn queued_writes_are_written_before_close() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..10 {
        let store = EmbeddedStore::open(folder.path()).unwrap();
        for n in 0..round {
            assert!(store.get(&id(n)).await.unwrap().is_some(), "{n} in round {round}");
        }
        // Cancelled by the caller, and accepted by the store.
        let (key, record) = (id(round), claim(round));
        let mut insert = store.insert(&key, &record);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let _ = std::pin::Pin::new(&mut insert).poll(&mut context);
        drop(insert);
        drop(store);
    }
}

#[tokio::test]
async fn newer_schema_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    drop(EmbeddedStore::open(folder.path()).unwrap());
    let mark = folder.path().join("onceward");
    let ours = fs::read(&mark).unwrap();
    let mut newer = ours.clone();
    newer[11] += 1;
    // The rest of a newer schema is unknown.
    newer.extend_from_slice(b"and more");
    fs::write(&mark, newer).unwrap();
    let error = EmbeddedStore::open(folder.path()).unwrap_err();
    assert_one_clear_line(&error, folder.path(), "newer version (schema 2; this one knows 1)");
    fs::write(&mark, ours).unwrap();
    drop(EmbeddedStore::open(folder.path()).unwrap());
}

#[test]
fn foreign_directory_is_rejected_and_left_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("letters.txt"), "dear").unwrap();
    let error = EmbeddedStore::open(folder.path()).unwrap_err();
    assert_one_clear_line(&error, folder.path(), "letters.txt");
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["letters.txt"]);
}

#[test]
fn file_is_rejected_as_data_dir() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert_one_clear_line(&EmbeddedStore::open(&file).unwrap_err(), &file, "is not a directory");
    let below = file.join("keys");
    assert_one_clear_line(&EmbeddedStore::open(&below).unwrap_err(), &below, "cannot be created");
}

/// `/proc` rejects new files, even for root, who ignores permissions.
#[cfg(target_os = "linux")]
#[test]
fn unwritable_directory_is_rejected() {
    let folder = Path::new("/proc/self/onceward");
    assert_one_clear_line(&EmbeddedStore::open(folder).unwrap_err(), folder, "cannot be created");
}

#[cfg(unix)]
#[test]
fn data_dir_is_private_to_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/b");
    drop(EmbeddedStore::open(&path).unwrap());
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o700);
}

/// A crash at any step of creating the directory leaves one that the next start completes.
#[tokio::test]
async fn interrupted_creation_is_repeated() {
    let model = tempfile::tempdir().unwrap();
    drop(EmbeddedStore::open(model.path()).unwrap());
    let head = fs::read(model.path().join("onceward")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // Before the head was complete.
    fs::write(at("lock"), "").unwrap();
    fs::write(at("onceward.new"), &head[..5]).unwrap();
    drop(EmbeddedStore::open(folder.path()).unwrap());
    // Before the data were complete: the head says that nothing was acknowledged.
    let mut fresh = head.clone();
    fresh[12..20].fill(0);
    let sum = blake3::hash(&fresh[..20]);
    fresh[20..].copy_from_slice(&sum.as_bytes()[..8]);
    fs::remove_dir_all(at("data")).unwrap();
    fs::write(at("onceward"), &fresh).unwrap();
    fs::create_dir_all(at("data.new/keyspaces")).unwrap();
    fs::write(at("data.new/0.jnl"), "half").unwrap();
    let store = EmbeddedStore::open(folder.path()).unwrap();
    store.insert(&id(1), &claim(1)).await.unwrap();
    drop(store);
    assert!(!at("data.new").exists());
    // Once something was acknowledged, missing data are an error.
    fs::rename(at("data"), at("elsewhere")).unwrap();
    assert_one_clear_line(&EmbeddedStore::open(folder.path()).unwrap_err(), folder.path(), "its data are missing");
    fs::rename(at("elsewhere"), at("data")).unwrap();
    let head = fs::read(at("onceward")).unwrap();
    fs::remove_file(at("onceward")).unwrap();
    assert_one_clear_line(&EmbeddedStore::open(folder.path()).unwrap_err(), folder.path(), "\"onceward\" is missing");
    fs::write(at("onceward"), head).unwrap();
    assert!(EmbeddedStore::open(folder.path()).unwrap().get(&id(1)).await.unwrap().is_some());
}

#[tokio::test]
async fn info_states_durability() {
    let folder = tempfile::tempdir().unwrap();
    let facts = EmbeddedStore::open(folder.path()).unwrap().info();
    assert_eq!(facts.kind, "embedded");
    assert!(facts.survives_kill && facts.survives_power_loss);
}

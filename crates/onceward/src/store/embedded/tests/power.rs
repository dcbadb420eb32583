//! Power loss: `strace` records the system calls of a store, which are replayed onto a simulated
//! disk.
//!
//! The disk keeps synced data, and any part of the rest. Cut off after each call, the store must
//! open and return what was acknowledged.

mod disk;
mod trace;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use rand::SeedableRng;
use rand::rngs::StdRng;

use self::disk::{DiskMonitor, Keeps};
use self::trace::Call;
use super::corruption::completed;
use super::{claim, id, released};
use crate::record::Record;
use crate::store::embedded::EmbeddedStore;
use crate::store::{Cas, Store};

const PLAY: &str = "ONCEWARD_TEST_POWER";
const KEYS: u8 = 40;

fn end(n: u8) -> Record {
    match n % 3 {
        0 => released(n),
        1 => completed(n),
        _ => claim(n),
    }
}

fn tell(what: &str) {
    // A single write, so that the trace has it as one call, in the right place.
    std::io::stdout().write_all(format!("> {what}\n").as_bytes()).unwrap();
    std::io::stdout().flush().unwrap();
}

/// Runs in the other process, if this is one: reports each acknowledged write.
#[tokio::test]
async fn play() {
    let Ok(folder) = std::env::var(PLAY) else { return };
    let mut store = Some(EmbeddedStore::open(&folder).unwrap());
    for n in 0..KEYS {
        let open = store.as_ref().unwrap();
        open.insert(&id(n), &claim(n)).await.unwrap();
        tell(&format!("claimed {n}"));
        assert_eq!(open.compare_and_swap(&id(n), claim(n).version(), &end(n)).await.unwrap(), Cas::Swapped);
        tell(&format!("ended {n}"));
        if n % 8 == 5 {
            // Memtables are flushed to tables.
            let engine = open.engine().unwrap();
            for keyspace in [&engine.records, &engine.index, &engine.meta] {
                keyspace.rotate_memtable_and_wait().unwrap();
            }
        }
        if n % 16 == 12 {
            drop(store.take());
            store = Some(EmbeddedStore::open(&folder).unwrap());
        }
    }
}

fn trace(scratch: &Path) -> Vec<Call> {
    let log = scratch.join("trace");
    let play = "store::embedded::tests::power::play";
    let status = Command::new("strace")
        .args(["-f", "-y", "-xx", "-s", "100000000", "-e", trace::CALLS, "-o"])
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", play, "--nocapture", "--test-threads=1"])
        .env(PLAY, scratch.join("disk/keys"))
        .stdout(std::process::Stdio::null())
        .status();
    assert!(status.expect("strace is there: cargo xtask installs it").success());
    trace::read(&std::fs::read_to_string(log).unwrap())
}

/// Acknowledged progress of each key.
type Acknowledged = BTreeMap<u8, bool>;

async fn judge(folder: &Path, acknowledged: &Acknowledged, when: &str) {
    let store = EmbeddedStore::open(folder).unwrap_or_else(|error| {
        let because = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        panic!("{when}: {error}: {because}")
    });
    for (n, ended) in acknowledged {
        let found = store.get(&id(*n)).await.unwrap_or_else(|error| panic!("{when}: key {n}: {error}"));
        let found = *found.unwrap_or_else(|| panic!("{when}: key {n} is gone")).record;
        assert!(found == end(*n) || !ended && found == claim(*n), "{when}: key {n}, ended {ended}, is {found:?}");
    }
    // The store stays usable.
    assert_eq!(store.insert(&id(200), &claim(200)).await.unwrap(), None, "{when}");
}

#[tokio::test]
async fn power_loss_at_any_moment_loses_nothing_acknowledged() {
    let scratch = tempfile::tempdir().unwrap();
    std::fs::create_dir(scratch.path().join("disk")).unwrap();
    let calls = trace(scratch.path());
    let step = if std::env::var_os("ONCEWARD_LONG").is_some() { 1 } else { 10 };
    let mut disk = DiskMonitor::new(&scratch.path().join("disk"));
    let mut acknowledged = Acknowledged::new();
    let mut random = StdRng::seed_from_u64(1);
    let (mut at, mut images) = (0, 0);
    for call in &calls {
        match call {
            Call::Told(line) => {
                let (what, n) = line.split_once(' ').unwrap();
                acknowledged.insert(n.parse().unwrap(), what == "ended");
            }
            other if !disk.take(other) => continue,
            _ => {}
        }
        at += 1;
        // Varies the mode at each position.
        if at % step != (at / step) % step {
            continue;
        }
        for keeps in [Keeps::Synced, Keeps::All, Keeps::Some, Keeps::Torn] {
            let image = tempfile::tempdir().unwrap();
            disk.lose_power(keeps, &mut random, image.path());
            judge(&image.path().join("keys"), &acknowledged, &format!("after call {at}, {keeps:?} kept: {call:?}"))
                .await;
            images += 1;
        }
    }
    println!("{at} calls, {images} images");
    assert_eq!(acknowledged.len(), usize::from(KEYS), "the trace does not tell of all");
    assert!(images > 100, "only {images}");
}

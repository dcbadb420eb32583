//! Kill during writes, as by `kill -9`: acknowledged writes are present afterwards.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use onceward::record::{PhaseKind, Record};
use onceward::store::{Cas, EmbeddedStore, Store};

use super::child::{Play, tell};
use super::{claim, completed, id, released};

/// Returns the last record of each key.
fn end(n: u64) -> Record {
    match n % 3 {
        0 => completed(n, 20 + (n as usize * 37) % 3000),
        1 => released(n),
        _ => claim(n),
    }
}

/// Runs in the other process: many tasks claim and complete keys, and report each write once
/// acknowledged.
pub(super) async fn write(folder: &Path) {
    let store = Arc::new(EmbeddedStore::open(folder).expect("nobody has it"));
    let first = store.get_or_insert_meta("first", &0_u64.to_be_bytes()).await.expect("it is written");
    assert_eq!(*first, [0; 8]);
    let from = store.stats().await.expect("it counts");
    let from = (from.in_flight + from.completed + from.released) * 100;
    let tasks = (0..16).map(|task| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in (from + task..).step_by(16) {
                if store.insert(&id(n), &claim(n)).await.expect("it is written").is_some() {
                    continue;
                }
                tell(&format!("claimed {n}"));
                let outcome = store.compare_and_swap(&id(n), claim(n).version(), &end(n)).await.expect("it is written");
                assert_eq!(outcome, Cas::Swapped);
                tell(&format!("ended {n}"));
                if n % 7 == 0 {
                    assert!(store.remove(&id(n), end(n).version()).await.expect("it is written"));
                    tell(&format!("removed {n}"));
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("it goes on for ever");
    }
}

#[tokio::test]
async fn acknowledged_writes_survive_kill() {
    let folder = tempfile::tempdir().unwrap();
    // Acknowledged progress by key: claimed, ended, removed.
    let mut acknowledged: HashMap<u64, u8> = HashMap::new();
    // Each time at another moment, on the data of the previous rounds.
    for wanted in [1, 2, 10, 60, 200, 333, 500, 700] {
        let mut other = Play::start("write", folder.path(), &[]);
        let mut heard = 0;
        while let Some(line) = other.hear() {
            let (what, n) = line.split_once(' ').unwrap();
            let step = ["claimed", "ended", "removed"].iter().position(|word| *word == what).unwrap();
            acknowledged.insert(n.parse().unwrap(), step as u8);
            heard += 1;
            if heard == wanted {
                other.kill();
                // Its last reports are read to the end.
            }
        }
        other.process.wait().unwrap();
        assert!(heard >= wanted, "it died by itself");

        let store = EmbeddedStore::open(folder.path()).unwrap();
        let mut in_flight = 0;
        for (n, step) in &acknowledged {
            let found = store.get(&id(*n)).await.unwrap().map(|found| *found.record);
            let removed = n % 7 == 0;
            let is_right = match (step, &found) {
                (0, Some(found)) => *found == claim(*n) || *found == end(*n),
                (0, None) => false,
                (1, Some(found)) => *found == end(*n),
                // The next write was applied, and not reported any more.
                (1, None) => removed,
                (_, found) => found.is_none(),
            };
            assert!(is_right, "after {heard}: {n}, acknowledged up to {step}, is {:?}", found.map(|it| it.version()));
            in_flight += u64::from(found.is_some_and(|found| found.phase.stage() == PhaseKind::InFlight));
        }
        // Writes that were not reported count too, so there may be more.
        let census = store.stats().await.unwrap();
        assert!(census.in_flight >= in_flight);
        let lost = store.due(100_000).await.unwrap();
        assert!(lost.iter().all(|(_, found)| found.owner_lost));
        assert_eq!(lost.len() as u64, census.in_flight, "each claim that is left is lost");
        // Settled, so that the next round begins without them; including writes that were not
        // reported.
        for (id, found) in lost {
            assert!(store.remove(&id, found.record.version()).await.unwrap());
        }
        let still: Vec<u64> = acknowledged.keys().copied().collect();
        for n in still {
            if store.get(&id(n)).await.unwrap().is_none() {
                acknowledged.remove(&n);
            }
        }
        assert_eq!(store.stats().await.unwrap().in_flight, 0);
    }
    assert!(acknowledged.len() > 100, "hardly anything was kept, so nothing is shown");
}

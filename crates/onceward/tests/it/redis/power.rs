//! Power loss of the server's machine: what is lost is what the documentation says for its
//! configuration.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use onceward::store::redis::{Options, RedisStore};
use onceward::store::{Cas, Store};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::records::{claim, completed, id};
use crate::support::machine::Machine;
use crate::support::redis::{Redis, redis_7, valkey_9};
use crate::support::waiting::PATIENCE;

/// Window of writes that `appendfsync everysec` may lose, as `/status` says.
const EVERY_SECOND: Duration = Duration::from_secs(2);

async fn server_on(machine: &Machine, program: &Path, settings: &str) -> (Redis, RedisStore) {
    let server = Redis::of_in(machine.disk(), program, settings);
    let url = format!("{}?accept=no-persistence", server.url(0));
    let store = RedisStore::connect(Options::parse(&url).unwrap().timeout(PATIENCE)).await.unwrap();
    machine.sync();
    (server, store)
}

/// Returns true if the end of the file was torn, so that the server did not start by itself.
fn lose_power(machine: &Machine, server: &mut Redis) -> bool {
    tokio::task::block_in_place(|| {
        server.kill();
        machine.lose_power();
        server.start_again_after_a_power_loss()
    })
}

async fn keep(store: &RedisStore, n: usize) -> bool {
    matches!(store.insert(&id(n), &claim(1)).await, Ok(None))
        && matches!(store.compare_and_swap(&id(n), claim(1).version(), &completed(1)).await, Ok(Cas::Swapped))
}

async fn knows(store: &RedisStore, n: usize) -> bool {
    let found = store.get(&id(n)).await.unwrap().map(|found| *found.record);
    // The process was killed before it could report that key.
    assert!(found.iter().all(|found| *found == completed(1) || *found == claim(1)), "{n}: {found:?}");
    found.is_some_and(|found| found == completed(1))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_loss_loses_no_more_than_documented() {
    for (settings, says, keeps_before_snapshot, keeps_after) in [
        ("--appendfsync always", "forget nothing", true, true),
        ("--appendfsync no", "what the system had not written", false, false),
        ("--appendonly no --save '3600 1'", "since the last snapshot", true, false),
        ("--appendonly no", "forget all keys", false, false),
    ] {
        let machine = Machine::start(64);
        let (mut server, store) = server_on(&machine, &redis_7(), settings).await;
        let facts = store.info();
        assert!(facts.durability.contains(says), "{settings}: {}", facts.durability);
        assert_eq!(facts.survives_power_loss, keeps_after, "{settings}");
        assert!(keep(&store, 1).await);
        if settings.contains("--save '3600") {
            assert_eq!(server.cli(0, &["SAVE"]), "OK");
        }
        assert!(keep(&store, 2).await);
        lose_power(&machine, &mut server);
        for (n, keeps) in [(1, keeps_before_snapshot), (2, keeps_after)] {
            assert_eq!(knows(&store, n).await, keeps, "{settings}, key {n}");
        }
    }
}

/// The end of a file may be present in length and not in content.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn torn_append_only_file_keeps_complete_writes() {
    for program in [redis_7(), valkey_9()] {
        let mut server = Redis::of(&program, "--appendfsync always");
        let store = RedisStore::connect(Options::parse(&server.url(0)).unwrap().timeout(PATIENCE)).await.unwrap();
        assert!(keep(&store, 1).await);
        let was_torn = tokio::task::block_in_place(|| {
            server.kill();
            let end = server.folder().join("appendonlydir/appendonly.aof.1.incr.aof");
            let mut end = std::fs::File::options().append(true).open(end).unwrap();
            end.write_all(&[0; 4096]).unwrap();
            server.start_again_after_a_power_loss()
        });
        assert!(was_torn && knows(&store, 1).await, "{}", program.display());
    }
}

/// Confirmed keys and when; and the longest gap without a confirmation, since a busy machine may be
/// too slow to sync.
#[derive(Default)]
struct Confirmed {
    keys: Vec<(usize, Instant)>,
    longest_gap: Duration,
}

/// Stores one key after another in parallel tasks, each until it fails or `over` is set.
fn load(store: &Arc<RedisStore>, over: &Arc<AtomicBool>, count: &watch::Sender<usize>) -> JoinSet<Confirmed> {
    const LANES: usize = 8;
    let mut lanes = JoinSet::new();
    for lane in 0..LANES {
        let (store, over, count) = (Arc::clone(store), Arc::clone(over), count.clone());
        lanes.spawn(async move {
            let (mut confirmed, mut last) = (Confirmed::default(), Instant::now());
            for n in (lane..).step_by(LANES) {
                if !keep(&store, n).await || over.load(Ordering::SeqCst) {
                    break;
                }
                let now = Instant::now();
                confirmed.keys.push((n, now));
                confirmed.longest_gap = confirmed.longest_gap.max(now - last);
                last = now;
                count.send_modify(|count| *count += 1);
            }
            confirmed
        });
    }
    lanes
}

/// Checks that all keys confirmed more than `may_forget` before the power loss are present.
async fn lose_power_under_load(program: &Path, fsync: &str, may_forget: Duration) {
    let machine = Machine::start(128);
    let (mut server, store) = server_on(&machine, program, &format!("--appendfsync {fsync}")).await;
    let (store, over, (count, mut counted)) = (Arc::new(store), Arc::default(), watch::channel(0));
    let began = Instant::now();
    let lanes = load(&store, &over, &count);
    // Twice the window of writes that may be lost.
    let is_enough = |count: &usize| *count >= 200 && began.elapsed() > may_forget * 2;
    let enough = timeout(PATIENCE, counted.wait_for(is_enough)).await;
    assert!(enough.is_ok_and(|it| it.is_ok()), "there is hardly any load");
    let lost_at = Instant::now();
    // Keys confirmed from here on do not count: that may be after the loss.
    over.store(true, Ordering::SeqCst);
    let was_torn = lose_power(&machine, &mut server);
    let lanes = lanes.join_all().await;
    let gap = lanes.iter().map(|lane| lane.longest_gap).max().unwrap();
    let (mut forgotten, mut old_enough) = (0, 0);
    for (n, at) in lanes.into_iter().flat_map(|lane| lane.keys).filter(|(_, at)| *at < lost_at) {
        let (age, is_known) = (lost_at - at, knows(&store, n).await);
        forgotten += usize::from(!is_known);
        if may_forget.is_zero() || age > may_forget + gap {
            old_enough += 1;
            assert!(is_known, "{fsync}: key {n} is forgotten, and was confirmed {age:?} before (nothing for {gap:?})");
        }
    }
    let torn = if was_torn { ", its file was torn" } else { "" };
    println!("{} {fsync}: {old_enough} had to be there, {forgotten} were forgotten{torn}", program.display());
    assert!(old_enough >= 50, "hardly anything had to be there: {old_enough} (nothing for {gap:?})");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_loss_under_load_with_fsync_always_loses_nothing() {
    for program in [redis_7(), valkey_9()] {
        lose_power_under_load(&program, "always", Duration::ZERO).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_loss_under_load_with_fsync_everysec_loses_two_seconds() {
    for program in [redis_7(), valkey_9()] {
        lose_power_under_load(&program, "everysec", EVERY_SECOND).await;
    }
}

//! Failover to another server, and migration of slots.

use std::collections::VecDeque;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use onceward::record::Record;
use onceward::secret::RecordId;
use onceward::store::redis::{Options, RedisStore};
use onceward::store::{Cas, Store};
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, timeout};

use super::records::{claim, completed, id, kept_for, key};
use crate::support::fault_proxy::{Fault, FaultProxy};
use crate::support::redis::{Cluster, Redis, Sentinel, Sentinels};
use crate::support::waiting::{PATIENCE, poll};

async fn connect(url: &str) -> RedisStore {
    RedisStore::connect(Options::parse(url).unwrap().timeout(Duration::from_secs(2))).await.unwrap()
}

async fn until_taken(store: &RedisStore, n: usize) {
    let until = Instant::now() + PATIENCE;
    while let Err(error) = store.insert(&id(n), &claim(1)).await {
        assert!(Instant::now() < until, "nobody takes claims: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_is_detected_by_health_check_and_by_readonly_error() {
    let mut group = Sentinels::start();
    let store = connect(&group.url(0)).await;
    until_taken(&store, 1).await;

    // A manual failover: the old master stays as a replica, with its connections.
    let first = group.master();
    group.servers[first].await_replicas(1);
    group.failover();
    let second = poll("another master", || Some(group.master()).filter(|now| *now != first));
    let until = Instant::now() + Duration::from_secs(10);
    while group.servers[second].cli(0, &["EXISTS", "onceward:meta:where"]) == "0" {
        assert!(Instant::now() < until, "it did not follow within seconds");
        let _ = store.get_or_insert_meta("where", b"here").await;
    }
    assert_eq!(*store.get(&id(1)).await.unwrap().unwrap().record, claim(1));

    // A failover after a crash.
    group.servers[second].await_replicas(1);
    group.await_known();
    group.servers[second].kill();
    until_taken(&store, 2).await;
    assert_eq!(group.servers[first].cli(0, &["EXISTS", "onceward:meta:where"]), "1");
    assert_eq!(*store.insert(&id(2), &claim(2)).await.unwrap().unwrap().record, claim(1));
}

/// A Sentinel that is partitioned with an old master reports another server and no failover. It is
/// the first in the URL, and later the only one that replies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitioned_sentinel_with_old_master_is_ignored() {
    let (group, old) = (Sentinels::start(), Redis::start(""));
    let cut_off = Sentinel::start(&old, 1);
    poll("a Sentinel that answers", || cut_off.ask(&["SENTINEL", "MASTER", "orders"]));
    let before = group.master();
    group.servers[before].await_replicas(1);
    group.failover();
    let after = 1 - before;
    group.await_master(after);
    let ways: Vec<_> = group.sentinels.iter().map(|sentinel| FaultProxy::before(sentinel.address)).collect();
    let hosts = [cut_off.address].into_iter().chain(ways.iter().map(|way| way.address)).map(|host| host.to_string());
    let store = connect(&format!("redis-sentinel://{}/orders", hosts.collect::<Vec<_>>().join(","))).await;
    assert_eq!(store.insert(&id(1), &claim(1)).await.unwrap(), None);
    assert_eq!(group.servers[after].cli(0, &["EXISTS", &key(&id(1))]), "1", "it followed the one that is cut off");

    ways.iter().for_each(|way| way.set(Fault::Down));
    group.servers[after].cli(0, &["CLIENT", "KILL", "TYPE", "normal"]);
    let until = Instant::now() + PATIENCE;
    while store.insert(&id(2), &claim(1)).await.is_ok() {
        assert!(Instant::now() < until, "it has a connection all the same");
        group.servers[after].cli(0, &["CLIENT", "KILL", "TYPE", "normal"]);
    }
    ways.iter().for_each(FaultProxy::heal);
    until_taken(&store, 3).await;
    assert_eq!(group.servers[after].cli(0, &["EXISTS", &key(&id(3))]), "1");
    assert_eq!(old.cli(0, &["DBSIZE"]), "0", "it went back");
}

/// Slots that migrate first, one per node. They are few, so each has many keys and migrates for a
/// while.
const MOVED: [u16; 3] = [0, 5461, 10_923];

/// Number of open claims per task of the load.
const OPEN: usize = 16;

/// Returns an id whose slot is cheap to compute.
fn numbered(n: u32) -> RecordId {
    let mut id = RecordId([0; 32]);
    id.0[28..].copy_from_slice(&n.to_be_bytes());
    id
}

/// Returns the cluster slot: the CRC-16 (XMODEM) of the text between the braces of the key.
fn slot(n: u32) -> u16 {
    static BEFORE: LazyLock<u16> = LazyLock::new(|| crc(0, &[b'0'; 56]));
    let digits: [u8; 8] = std::array::from_fn(|at| b"0123456789abcdef"[(n >> (28 - 4 * at) & 15) as usize]);
    crc(*BEFORE, &digits) % 16_384
}

fn crc(begun: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(begun, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 })
    })
}

/// Returns a record with an inline response for even numbers, and an external one for odd numbers.
fn answer(n: usize) -> Record {
    let day = Duration::from_secs(86_400);
    if n.is_multiple_of(2) { completed(1) } else { kept_for(1, day, 17 << 10) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slot_migration_under_load_loses_nothing() {
    let cluster = Arc::new(Cluster::start(0));
    let store = Arc::new(RedisStore::connect(Options::parse(&cluster.url()).unwrap().timeout(PATIENCE)).await.unwrap());
    let (over, (done, mut counted)) = (Arc::new(AtomicBool::new(false)), watch::channel(0));
    let mut load = JoinSet::new();
    for task in 0..8 {
        let (store, over, done) = (Arc::clone(&store), Arc::clone(&over), done.clone());
        load.spawn(async move {
            let (mut open, mut kept) = (VecDeque::new(), Vec::new());
            let moves = |n: &u32| MOVED.contains(&slot(*n));
            for n in (task..).step_by(8).filter(moves).take_while(|_| !over.load(Ordering::SeqCst)) {
                let found = store.insert(&numbered(n), &claim(1)).await.unwrap();
                assert!(found.is_none_or(|found| *found.record == claim(1)));
                open.push_back(n);
                let Some(n) = (if open.len() > OPEN { open.pop_front() } else { None }) else { continue };
                let (id, answer) = (numbered(n), answer(kept.len()));
                match store.compare_and_swap(&id, claim(1).version(), &answer).await.unwrap() {
                    Cas::Swapped => {}
                    Cas::Conflict(found) => assert_eq!(*found.unwrap().record, answer, "{n}"),
                }
                let found = store.insert(&id, &claim(2)).await.unwrap().expect("it was completed");
                assert_eq!(*found.record, answer, "{n}");
                kept.push((n, answer));
                done.send_modify(|done| *done += 1);
            }
            kept
        });
    }
    counted.wait_for(|done| *done > 600).await.unwrap();
    let before = *counted.borrow();
    let moving = Arc::clone(&cluster);
    spawn_blocking(move || (0..2).for_each(|node| moving.reshard(node, 60))).await.unwrap();
    let during = *counted.borrow() - before;
    over.store(true, Ordering::SeqCst);
    let kept = load.join_all().await.concat();
    assert!(during > 50, "hardly anything went on while slots moved");
    for (n, answer) in kept {
        let found = store.get(&numbered(n)).await.unwrap().unwrap_or_else(|| panic!("{n} is forgotten"));
        assert_eq!(*found.record, answer, "{n}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn external_response_in_migrating_slot_is_stored_completely_or_not_at_all() {
    let cluster = Cluster::start(0);
    let store = connect(&cluster.url()).await;
    let (begun, done, answer) = (id(1), id(2), answer(1));
    for id in [begun, done] {
        assert_eq!(store.insert(&id, &claim(1)).await.unwrap(), None);
    }
    assert_eq!(store.compare_and_swap(&done, claim(1).version(), &answer).await.unwrap(), Cas::Swapped);
    let [of_begun, of_done] = [begun, done].map(|id| cluster.begin_to_move(&key(&id)));

    // The record is still on the old node, while new keys go to the other node.
    store.compare_and_swap(&begun, claim(1).version(), &answer).await.unwrap_err();
    assert_eq!(*store.get(&begun).await.unwrap().unwrap().record, claim(1), "it is half written");
    of_begun.carry(&key(&begun));
    of_begun.end();
    assert_eq!(store.compare_and_swap(&begun, claim(1).version(), &answer).await.unwrap(), Cas::Swapped);
    assert_eq!(*store.get(&begun).await.unwrap().unwrap().record, answer);

    // The record has moved and its external response has not: it must not be reported as expired.
    of_done.carry(&key(&done));
    let found = store.insert(&done, &claim(2)).await.unwrap().expect("it is known");
    assert_eq!(*found.record, answer);
    let looked = store.get(&done).await;
    assert!(looked.is_err(), "{looked:?}");
    of_done.carry(&(key(&done) + ":answer"));
    of_done.end();
    assert_eq!(*store.get(&done).await.unwrap().unwrap().record, answer);
    // A claim that did not complete can be released while its slot migrates.
    assert_eq!(store.insert(&id(3), &claim(1)).await.unwrap(), None);
    cluster.begin_to_move(&key(&id(3)));
    assert!(store.remove(&id(3), claim(1).version()).await.unwrap());
    assert_eq!(store.get(&id(3)).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_cluster_master_is_replaced_by_its_replica() {
    let mut cluster = Cluster::start(1);
    let store = connect(&cluster.url()).await;
    for n in 0..30 {
        until_taken(&store, n).await;
    }
    cluster.masters().for_each(|node| node.await_replicas(1));
    let victim = cluster.nodes.iter().position(|node| node.cli(0, &["ROLE"]).starts_with("master")).unwrap();
    cluster.nodes[victim].kill();
    for n in 30..90 {
        until_taken(&store, n).await;
    }
    for n in 0..90 {
        assert_eq!(*store.insert(&id(n), &claim(2)).await.unwrap().expect("it is known").record, claim(1), "{n}");
    }
}

/// The keys of the dead node are unavailable; those of other nodes are served, while it is retried
/// repeatedly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_or_hung_cluster_master_delays_only_its_own_keys() {
    for hangs in [false, true] {
        let mut cluster = Cluster::start(0);
        let store = Arc::new(connect(&cluster.url()).await);
        cluster.nodes[0].cli(0, &["CONFIG", "SET", "appendfsync", "always"]);
        let mut of_dead = (0..).filter(|n| slot(*n) < MOVED[1]).map(numbered);
        let mut of_others = (0..).filter(|n| slot(*n) >= MOVED[1]).map(numbered);
        let begun: Vec<_> = of_dead.by_ref().take(4).collect();
        for id in &begun {
            assert_eq!(store.insert(id, &claim(1)).await.unwrap(), None);
        }
        let pid = cluster.nodes[0].pid().to_string();
        let signal = |signal: &str| assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        if hangs {
            signal("-STOP")
        } else {
            cluster.nodes[0].kill()
        }

        let mut asking = JoinSet::new();
        for id in begun.clone() {
            let store = Arc::clone(&store);
            asking.spawn(async move {
                for _ in 0..3 {
                    let told =
                        timeout(PATIENCE / 4, store.compare_and_swap(&id, claim(1).version(), &completed(1))).await;
                    assert!(told.expect("it is bounded").is_err(), "it is not dead");
                }
            });
        }
        let asking = tokio::spawn(asking.join_all());
        let mut kept = 0;
        while !asking.is_finished() {
            let id = of_others.next().unwrap();
            assert_eq!(store.insert(&id, &claim(1)).await.unwrap(), None, "hangs: {hangs}, {kept} were kept");
            assert_eq!(store.compare_and_swap(&id, claim(1).version(), &completed(1)).await.unwrap(), Cas::Swapped);
            kept += 1;
        }
        asking.await.unwrap();
        assert!(kept > 20, "hardly any key of the others was kept: {kept}");
        // A store that connects only now finds the remaining nodes.
        let late = RedisStore::connect(Options::parse(&cluster.url()).unwrap().timeout(PATIENCE)).await.unwrap();
        assert_eq!(late.insert(&of_others.next().unwrap(), &claim(1)).await.unwrap(), None);

        if hangs {
            signal("-CONT")
        } else {
            cluster.nodes[0].start_again(true)
        }
        let until = Instant::now() + Duration::from_secs(10);
        for id in &begun {
            let found = loop {
                match store.insert(id, &claim(2)).await {
                    Ok(found) => break found.expect("it is forgotten"),
                    Err(error) => assert!(Instant::now() < until, "it does not recover: {error:?}"),
                }
            };
            // Commands sent while it hung may have been executed since.
            assert!([claim(1), completed(1)].contains(&found.record), "{found:?}");
        }
    }
}

impl Sentinels {
    fn failover(&self) {
        self.ask_first(&["SENTINEL", "FAILOVER", "orders"]);
    }
}

/// Slot that is migrating from one node to another.
struct Move<'c> {
    cluster: &'c Cluster,
    slot: String,
    from: &'c Redis,
    to: &'c Redis,
}

impl Move<'_> {
    fn carry(&self, key: &str) {
        let port = self.to.address.port().to_string();
        assert_eq!(self.from.cli(0, &["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]), "OK");
    }

    fn end(&self) {
        let owner = self.to.cli(0, &["CLUSTER", "MYID"]);
        // The new owner first, as `redis-cli` does.
        for node in [self.to].into_iter().chain(&self.cluster.nodes) {
            assert_eq!(node.cli(0, &["CLUSTER", "SETSLOT", &self.slot, "NODE", &owner]), "OK");
        }
    }
}

impl Cluster {
    fn begin_to_move(&self, key: &str) -> Move<'_> {
        let slot = self.nodes[0].cli(0, &["CLUSTER", "KEYSLOT", key]);
        let holds = |node: &&Redis| node.cli(0, &["CLUSTER", "COUNTKEYSINSLOT", &slot]) != "0";
        let from = self.nodes.iter().find(holds).expect("nobody has it");
        let to = self.nodes.iter().find(|node| node.address != from.address).unwrap();
        let id = |node: &Redis| node.cli(0, &["CLUSTER", "MYID"]);
        assert_eq!(to.cli(0, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(from)]), "OK");
        assert_eq!(from.cli(0, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(to)]), "OK");
        Move { cluster: self, slot, from, to }
    }

    /// Moves `slots` slots to a node.
    fn reshard(&self, to: usize, slots: usize) {
        let id = self.nodes[to].cli(0, &["CLUSTER", "MYID"]);
        let said = Command::new("redis-cli")
            .args(["--cluster", "reshard", &self.nodes[0].address.to_string(), "--cluster-from", "all"])
            .args(["--cluster-to", &id, "--cluster-slots", &slots.to_string(), "--cluster-yes"])
            .args(["--cluster-pipeline", "1"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
    }
}

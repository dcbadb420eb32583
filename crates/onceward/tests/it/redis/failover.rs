//! Another server takes over, or keys move to another.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use onceward::store::redis::{Options, RedisStore};
use onceward::store::{Replaced, Store};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::Instant;

use super::records::{claim, completed, id};
use crate::support::redis::{Cluster, Sentinels};
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
async fn a_failover_is_followed_by_a_watch_and_on_read_only() {
    let mut group = Sentinels::start();
    let store = connect(&group.url(0)).await;
    until_taken(&store, 1).await;

    // Asked for: the old master lives on as a replica, and its connections with it.
    let first = group.master();
    group.servers[first].await_replicas(1);
    group.failover();
    let second = poll("another master", || Some(group.master()).filter(|now| *now != first));
    let until = Instant::now() + Duration::from_secs(10);
    while group.servers[second].cli(0, &["EXISTS", "onceward:meta:where"]) == "0" {
        assert!(Instant::now() < until, "it did not follow within seconds");
        let _ = store.meta("where", b"here").await;
    }
    assert_eq!(*store.get(&id(1)).await.unwrap().unwrap().record, claim(1));

    // By a crash.
    group.servers[second].await_replicas(1);
    group.await_known();
    group.servers[second].kill();
    until_taken(&store, 2).await;
    assert_eq!(group.servers[first].cli(0, &["EXISTS", "onceward:meta:where"]), "1");
    assert_eq!(*store.insert(&id(2), &claim(2)).await.unwrap().unwrap().record, claim(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_move_under_load_lose_nothing() {
    let cluster = Arc::new(Cluster::start(0));
    let store = Arc::new(RedisStore::connect(Options::parse(&cluster.url()).unwrap().timeout(PATIENCE)).await.unwrap());
    let (over, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut load = JoinSet::new();
    for task in 0..8 {
        let (store, over, done) = (Arc::clone(&store), Arc::clone(&over), Arc::clone(&done));
        load.spawn(async move {
            let mut n = task;
            while !over.load(Ordering::SeqCst) {
                let found = store.insert(&id(n), &claim(1)).await.unwrap();
                assert!(found.is_none_or(|found| *found.record == claim(1)));
                match store.replace(&id(n), claim(1).version(), &completed(1)).await.unwrap() {
                    Replaced::Yes => {}
                    Replaced::No(found) => assert_eq!(*found.unwrap().record, completed(1)),
                }
                let found = store.insert(&id(n), &claim(2)).await.unwrap().expect("it was completed");
                assert_eq!(*found.record, completed(1));
                n += 8;
                done.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    let moving = Arc::clone(&cluster);
    let (before, counted) = (done.load(Ordering::SeqCst), Arc::clone(&done));
    spawn_blocking(move || {
        poll("some load", || (counted.load(Ordering::SeqCst) > 50).then_some(()));
        moving.reshard(0, 1500);
        moving.reshard(1, 1500);
    })
    .await
    .unwrap();
    let during = done.load(Ordering::SeqCst) - before;
    over.store(true, Ordering::SeqCst);
    while let Some(ended) = load.join_next().await {
        ended.unwrap();
    }
    assert!(during > 50, "hardly anything went on while slots moved");
    for n in 0..done.load(Ordering::SeqCst).min(500) {
        if let Some(found) = store.get(&id(n)).await.unwrap() {
            assert_eq!(*found.record, completed(1));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_of_a_cluster_that_dies_is_followed_by_its_replica() {
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

impl Sentinels {
    fn failover(&self) {
        self.ask_first(&["SENTINEL", "FAILOVER", "orders"]);
    }
}

impl Cluster {
    /// Moves so many slots to a node.
    fn reshard(&self, to: usize, slots: usize) {
        let id = self.nodes[to].cli(0, &["CLUSTER", "MYID"]);
        let said = Command::new("redis-cli")
            .args(["--cluster", "reshard", &self.nodes[0].address.to_string(), "--cluster-from", "all"])
            .args(["--cluster-to", &id, "--cluster-slots", &slots.to_string(), "--cluster-yes"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
    }
}

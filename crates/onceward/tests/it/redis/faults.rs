//! Server errors and network faults: none is mistaken for a response to a claim, and the store
//! recovers by itself.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use onceward::clock::ManualClock;
use onceward::store::redis::{Options, RedisStore};
use onceward::store::{Applied, Cas, Store};
use tokio::time::{Instant, timeout};

use super::records::{LEASE, claim, completed, id, key};
use super::{PERSISTENCE, connect};
use crate::support::fault_proxy::{Fault, FaultProxy};
use crate::support::redis::{Cluster, Redis};
use crate::support::waiting::{PATIENCE, poll};

/// Claims until it succeeds, for at most ten seconds.
async fn recovers(store: &RedisStore, n: usize) {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match store.insert(&id(n), &claim(1)).await {
            Ok(None) => return,
            // An earlier attempt was executed after all.
            Ok(Some(found)) if *found.record == claim(1) => return,
            Ok(Some(found)) => panic!("another's: {found:?}"),
            Err(error) => assert!(Instant::now() < until, "it does not recover: {error:?}"),
        }
        // A store that rejects at once would otherwise let nobody else run.
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn evicted_script_is_sent_again() {
    let server = Redis::start("");
    let store = connect(&server.url(0), PATIENCE).await;
    assert_eq!(store.insert(&id(1), &claim(1)).await.unwrap(), None);
    server.cli(0, &["SCRIPT", "FLUSH"]);
    assert_eq!(store.compare_and_swap(&id(1), claim(1).version(), &completed(1)).await.unwrap(), Cas::Swapped);
    server.cli(0, &["SCRIPT", "FLUSH"]);
    assert_eq!(*store.get(&id(1)).await.unwrap().unwrap().record, completed(1));
}

#[tokio::test]
async fn full_server_rejects_claims_without_applying_them() {
    for settings in PERSISTENCE {
        let server = Redis::start(settings);
        let store = connect(&format!("{}?accept=no-persistence", server.url(0)), Duration::from_millis(300)).await;
        assert_eq!(store.insert(&id(1), &claim(1)).await.unwrap(), None);
        server.cli(0, &["CONFIG", "SET", "maxmemory", "1"]);
        let error = store.insert(&id(2), &claim(1)).await.unwrap_err();
        assert_eq!((error.applied(), error.to_string().contains("no room")), (Applied::No, true), "{error:?}");
        // Known records are still returned.
        assert_eq!(*store.insert(&id(1), &claim(2)).await.unwrap().unwrap().record, claim(1));
        // The response of an executed request is not stored yet either, and nothing is half
        // written.
        let error = store.compare_and_swap(&id(1), claim(1).version(), &completed(1)).await.unwrap_err();
        assert_eq!(error.applied(), Applied::No, "{error:?}");
        assert_eq!(*store.get(&id(1)).await.unwrap().unwrap().record, claim(1));
        server.cli(0, &["CONFIG", "SET", "maxmemory", "0"]);
        assert_eq!(store.compare_and_swap(&id(1), claim(1).version(), &completed(1)).await.unwrap(), Cas::Swapped);
        assert_eq!(store.insert(&id(2), &claim(1)).await.unwrap(), None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_cluster_nodes_still_serve_reads() {
    let cluster = Cluster::start(0);
    let patience = Duration::from_millis(500);
    let store = connect(&cluster.url(), patience).await;
    for n in [1, 2] {
        assert_eq!(store.insert(&id(n), &claim(1)).await.unwrap(), None);
    }
    assert_eq!(store.compare_and_swap(&id(1), claim(1).version(), &completed(1)).await.unwrap(), Cas::Swapped);
    for (setting, faulty, well) in [("maxmemory", "1", "0"), ("min-replicas-to-write", "1", "0")] {
        let set = |value| cluster.nodes.iter().for_each(|node| drop(node.cli(0, &["CONFIG", "SET", setting, value])));
        set(faulty);
        store.insert(&id(3), &claim(1)).await.unwrap_err();
        let told = async |n| store.insert(&id(n), &claim(2)).await.unwrap().expect("it is known");
        assert_eq!(*told(1).await.record, completed(1), "{setting}");
        assert_eq!(*told(2).await.record, claim(1), "{setting}");
        store.compare_and_swap(&id(2), claim(1).version(), &completed(1)).await.unwrap_err();
        assert_eq!(*store.get(&id(2)).await.unwrap().unwrap().record, claim(1), "{setting}");
        set(well);
        recovers(&store, 3).await;
        assert!(store.remove(&id(3), claim(1).version()).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_server_is_retried_then_rejected() {
    let server = Redis::start("--busy-reply-threshold 50");
    let store = connect(&server.url(0), Duration::from_millis(700)).await;
    let mut hog = Command::new("redis-cli")
        .args(["-p", &server.address.port().to_string(), "EVAL", "while true do end", "0"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let until = Instant::now() + PATIENCE;
    let error = loop {
        match store.insert(&id(1), &claim(1)).await {
            Err(error) => break error,
            // The script had not started; it may have by now.
            Ok(_) => match store.remove(&id(1), claim(1).version()).await {
                Err(error) => break error,
                Ok(_) => assert!(Instant::now() < until),
            },
        }
    };
    assert!(error.to_string().contains("server"), "{error:?}");
    server.cli(0, &["SCRIPT", "KILL"]);
    hog.wait().unwrap();
    recovers(&store, 1).await;
}

#[tokio::test]
async fn loading_server_is_retried_and_keeps_its_data() {
    let mut server = Redis::start("--key-load-delay 1000 --loading-process-events-interval-bytes 1024");
    let store = connect(&server.url(0), PATIENCE).await;
    assert_eq!(store.insert(&id(1), &claim(1)).await.unwrap(), None);
    server.cli(0, &["EVAL", "for n = 1, 1500 do redis.call('SET', 'other:' .. n, string.rep('x', 100)) end", "0"]);
    server.cli(0, &["CONFIG", "SET", "appendfsync", "always"]);
    server.cli(0, &["SET", "other", "1"]);
    server.kill();
    server.begin_again(true);
    let address = server.address;
    let saw_loading = tokio::task::spawn_blocking(move || {
        poll("a server that says that it is loading, or is done", || {
            let said = Command::new("redis-cli").args(["-p", &address.port().to_string(), "GET", "x"]).output().ok()?;
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            (!said.contains("refused") && !said.trim().is_empty() || said == "\n").then(|| said.contains("LOADING"))
        })
    });
    let found = store.insert(&id(1), &claim(2)).await.unwrap().expect("the claim was there before");
    assert_eq!(*found.record, claim(1));
    assert!(saw_loading.await.unwrap(), "it was never loading, so nothing is shown");
}

#[tokio::test]
async fn demoted_master_rejects_writes_and_is_abandoned() {
    let server = Redis::start("");
    let store = connect(&server.url(0), Duration::from_millis(300)).await;
    server.cli(0, &["REPLICAOF", "127.0.0.1", "1"]);
    let error = store.insert(&id(1), &claim(1)).await.unwrap_err();
    assert_eq!(error.applied(), Applied::No, "{error:?}");
    server.cli(0, &["REPLICAOF", "NO", "ONE"]);
    recovers(&store, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_response_is_recognized_by_its_attempt() {
    let server = Redis::start("");
    let proxy = FaultProxy::before(server.address);
    let store = connect(&format!("redis://{}", proxy.address), PATIENCE).await;
    let mut lost = 0;
    for n in 0..20 {
        lost += 1;
        proxy.set(Fault::NextAnswerLost);
        let found = store.insert(&id(n), &claim(1)).await.unwrap();
        assert!(found.is_none_or(|found| *found.record == claim(1)), "its own claim was taken for another's");
        proxy.set(Fault::NextAnswerLost);
        match store.compare_and_swap(&id(n), claim(1).version(), &completed(1)).await.unwrap() {
            Cas::Swapped => {}
            Cas::Conflict(found) => assert_eq!(*found.unwrap().record, completed(1)),
        }
        assert_eq!(*store.get(&id(n)).await.unwrap().unwrap().record, completed(1));
        assert_eq!(server.cli(0, &["GETRANGE", &key(&id(n)), "16", "16"]), "\u{6}", "its answer does not stand within");
    }
    assert!(proxy.lost() >= lost, "too few answers were lost: {}", proxy.lost());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_recovers_within_ten_seconds_after_any_network_fault() {
    let server = Redis::start("");
    let proxy = FaultProxy::before(server.address);
    let patience = Duration::from_millis(900);
    let store = connect(&format!("redis://{}", proxy.address), patience).await;
    for (n, fault) in [Fault::Down, Fault::Hanging, Fault::AnswersStuck, Fault::AsksStuck].into_iter().enumerate() {
        proxy.set(fault);
        let error =
            timeout(patience * 3, store.insert(&id(100 + n), &claim(1))).await.expect("it is bounded").unwrap_err();
        if fault == Fault::AnswersStuck {
            assert_eq!(error.applied(), Applied::Unknown, "it was carried out, and says {error:?}");
        }
        proxy.heal();
        recovers(&store, 100 + n).await;
    }
    proxy.set(Fault::Slow(Duration::from_millis(50)));
    assert_eq!(store.insert(&id(200), &claim(1)).await.unwrap(), None);
}

#[tokio::test]
async fn restarted_server_restarts_leases() {
    let mut server = Redis::start("--appendfsync always");
    let clock = ManualClock::default();
    let options = Options::parse(&server.url(0)).unwrap().timeout(PATIENCE);
    let store = RedisStore::connect_with(options, Arc::new(clock.clone())).await.unwrap();
    assert_eq!(store.insert(&id(1), &claim(1)).await.unwrap(), None);
    let age = async || store.get(&id(1)).await.unwrap().unwrap().age;
    clock.advance(LEASE * 2);
    server.age(0, LEASE * 2);
    assert!(age().await >= LEASE, "it was not aged, so nothing is shown");
    server.kill();
    server.start_again(true);
    // The data may be stale: a renewal that followed may be missing.
    assert!(age().await < LEASE / 2, "a claim is as old as the copy says: {:?}", age().await);
    clock.advance(LEASE * 2);
    assert!(age().await >= LEASE, "nobody would ever find its holder lost");
}

#[tokio::test]
async fn server_restarted_empty_has_another_identity() {
    let mut server = Redis::start("");
    let store = connect(&server.url(0), PATIENCE).await;
    assert_eq!(store.get_or_insert_meta("identity", b"first").await.unwrap(), "first");
    assert_eq!(store.insert(&id(1), &claim(1)).await.unwrap(), None);
    server.kill();
    server.start_again(false);
    assert_eq!(store.get(&id(1)).await.unwrap(), None);
    assert_eq!(store.get_or_insert_meta("identity", b"second").await.unwrap(), "second");
}

/// Updating the sweep index fails, and the call of `due` is cancelled meanwhile.
#[tokio::test]
async fn claim_is_tracked_later_after_a_failed_index_update() {
    let server = Redis::start("");
    let proxy = FaultProxy::before(server.address);
    let store = connect(&format!("redis://{}", proxy.address), Duration::from_millis(300)).await;
    for (n, fault) in [Fault::Down, Fault::Hanging].into_iter().enumerate() {
        // Nobody else runs before this task waits.
        assert_eq!(store.insert(&id(n), &claim(1)).await.unwrap(), None);
        proxy.set(fault);
        let looked = timeout(Duration::from_millis(100), store.due(0)).await;
        assert!(!matches!(looked, Ok(Ok(_))), "{fault:?} is none");
        proxy.heal();
        let until = Instant::now() + PATIENCE;
        while server.cli(0, &["ZCARD", "onceward:began"]) != (n + 1).to_string() {
            assert!(Instant::now() < until, "{fault:?}: it is never listed");
            let _ = store.due(0).await;
        }
    }
}

/// A directory in place of the snapshot file makes the server reject writes, as it does by default.
#[tokio::test]
async fn server_with_failing_snapshots_still_serves_reads() {
    let server = Redis::start("--appendonly no --save '3600 1'");
    let store = connect(&server.url(0), Duration::from_millis(300)).await;
    assert_eq!(store.insert(&id(1), &claim(1)).await.unwrap(), None);
    assert_eq!(store.compare_and_swap(&id(1), claim(1).version(), &completed(1)).await.unwrap(), Cas::Swapped);
    let folder = server.cli(0, &["CONFIG", "GET", "dir"]).lines().last().unwrap().to_owned();
    std::fs::create_dir(format!("{folder}/dump.rdb")).unwrap();
    server.cli(0, &["BGSAVE"]);
    poll("a snapshot that fails", || {
        server.cli(0, &["INFO", "persistence"]).contains("rdb_last_bgsave_status:err").then_some(())
    });
    let error = store.insert(&id(2), &claim(1)).await.unwrap_err();
    assert_eq!(error.applied(), Applied::No, "{error:?}");
    assert_eq!(*store.insert(&id(1), &claim(2)).await.unwrap().unwrap().record, completed(1));
    std::fs::remove_dir(format!("{folder}/dump.rdb")).unwrap();
    server.cli(0, &["BGSAVE"]);
    recovers(&store, 2).await;
}

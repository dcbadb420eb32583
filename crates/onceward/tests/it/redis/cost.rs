//! Number of commands that a request costs, as counted by the server.

use std::time::Duration;

use onceward::store::redis::{Options, RedisStore};
use onceward::store::{Cas, Store};
use tokio::time::Instant;

use super::records::{claim, completed, id, kept_for, key};
use crate::support::fault_proxy::{Fault, FaultProxy};
use crate::support::redis::Redis;
use crate::support::waiting::PATIENCE;

const REQUESTS: usize = 200;

/// Command counts of the server, including the calls made by its scripts.
struct Commands {
    set: u64,
    get: u64,
    scripts: u64,
    listed: u64,
}

impl Commands {
    fn of(server: &Redis) -> Self {
        let scripts = server.calls("evalsha") + server.calls("eval");
        Self { set: server.calls("set"), get: server.calls("get"), scripts, listed: server.calls("zadd") }
    }
}

async fn execute(store: &RedisStore, n: usize) {
    assert_eq!(store.insert(&id(n), &claim(1)).await.unwrap(), None);
    assert_eq!(store.compare_and_swap(&id(n), claim(1).version(), &completed(1)).await.unwrap(), Cas::Swapped);
}

async fn replay(store: &RedisStore, n: usize) {
    assert_eq!(*store.insert(&id(n), &claim(2)).await.unwrap().unwrap().record, completed(1));
}

#[tokio::test]
async fn execution_takes_at_most_three_commands_and_replay_one() {
    let server = Redis::start("");
    let store = RedisStore::connect(Options::parse(&server.url(0)).unwrap().timeout(PATIENCE)).await.unwrap();
    execute(&store, 0).await;
    let before = Commands::of(&server);
    for n in 1..=REQUESTS {
        execute(&store, n).await;
    }
    let after = Commands::of(&server);
    // A completion is one script, which calls SET; the other SETs were sent.
    let sets = after.set - before.set - REQUESTS as u64;
    let (scripts, listed) = (after.scripts - before.scripts, after.listed - before.listed);
    println!("{REQUESTS} executed, one after the other: {sets} SET, {scripts} scripts, {listed} ZADD");
    assert_eq!((sets, scripts), (REQUESTS as u64, REQUESTS as u64));
    // The index entry of the request before the first may be written late.
    assert!(listed <= REQUESTS as u64 + 1, "{listed} times listed");

    for n in 1..=REQUESTS {
        replay(&store, n).await;
    }
    let replayed = Commands::of(&server);
    let (sets, gets) = (replayed.set - after.set, replayed.get - after.get);
    println!("{REQUESTS} replayed: {sets} SET, {gets} GET, {} scripts", replayed.scripts - after.scripts);
    assert_eq!((sets, gets), (REQUESTS as u64, 0));
    assert_eq!(replayed.scripts - after.scripts, 0, "a replay lists nothing, and looks once");
}

/// An external response has a key of its own, which expires by itself and is read only when needed.
#[tokio::test]
async fn external_response_takes_one_more_command() {
    let server = Redis::start("");
    let store = RedisStore::connect(Options::parse(&server.url(0)).unwrap().timeout(PATIENCE)).await.unwrap();
    let day = Duration::from_secs(86_400);
    let large = kept_for(1, day, 17 << 10);
    assert_eq!(store.insert(&id(1), &claim(1)).await.unwrap(), None);
    assert_eq!(store.compare_and_swap(&id(1), claim(1).version(), &large).await.unwrap(), Cas::Swapped);
    let before = Commands::of(&server);
    assert_eq!(*store.insert(&id(1), &claim(2)).await.unwrap().unwrap().record, large);
    let after = Commands::of(&server);
    assert_eq!((after.set - before.set, after.get - before.get, after.scripts - before.scripts), (1, 1, 0));
    let left: u128 = server.cli(0, &["PTTL", &(key(&id(1)) + ":answer")]).parse().unwrap();
    assert!(left > 0 && left <= day.as_millis(), "{left} ms");
    assert!(server.cli(0, &["STRLEN", &key(&id(1))]).parse::<usize>().unwrap() < 300, "it stands within, too");
}

#[tokio::test]
async fn retried_claim_with_lost_response_is_recognized() {
    let server = Redis::start("");
    let proxy = FaultProxy::before(server.address);
    let url = server.url(0).replace(&server.address.to_string(), &proxy.address.to_string());
    let store = RedisStore::connect(Options::parse(&url).unwrap().timeout(PATIENCE)).await.unwrap();
    let before = Commands::of(&server);
    let until = Instant::now() + PATIENCE;
    for n in 1.. {
        proxy.set(Fault::NextAnswerLost);
        match store.insert(&id(n), &claim(1)).await.unwrap() {
            Some(found) => {
                assert_eq!(*found.record, claim(1));
                break;
            }
            // The lost response was one to the health check.
            None => assert!(Instant::now() < until, "no claim's answer was lost"),
        }
    }
    assert!(proxy.lost() > 0);
    assert_eq!(Commands::of(&server).get, before.get, "the record was read although the claim had returned it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completions_and_hints_are_batched_under_load() {
    let server = Redis::start("");
    let store = RedisStore::connect(Options::parse(&server.url(0)).unwrap().timeout(PATIENCE)).await.unwrap();
    let store = std::sync::Arc::new(store);
    execute(&store, 0).await;
    let before = Commands::of(&server);
    let mut load = tokio::task::JoinSet::new();
    for task in 0..64 {
        let store = std::sync::Arc::clone(&store);
        load.spawn(async move {
            for n in 0..20 {
                execute(&store, 1 + task * 20 + n).await;
            }
        });
    }
    load.join_all().await;
    let after = Commands::of(&server);
    let (scripts, listed) = (after.scripts - before.scripts, after.listed - before.listed);
    println!("1280 executed by 64 at once: {scripts} scripts, {listed} ZADD");
    assert!(scripts < 1280 / 2, "each completion was a command of its own");
    assert!(listed < 1280 / 2, "each claim was listed by a command of its own");
}

/// The latency is high enough to dominate; the fastest of several runs counts, as the machine may
/// be busy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn execution_waits_for_two_round_trips_and_replay_for_one() {
    const WAY: Duration = Duration::from_millis(40);
    let server = Redis::start("");
    let proxy = FaultProxy::before(server.address);
    let options = Options::parse(&format!("redis://{}", proxy.address)).unwrap().timeout(PATIENCE);
    let store = RedisStore::connect(options).await.unwrap();
    execute(&store, 0).await;
    replay(&store, 0).await;
    proxy.set(Fault::Slow(WAY));
    let (mut executed, mut replayed) = (Duration::MAX, Duration::MAX);
    for n in 1..=10 {
        let begun = Instant::now();
        execute(&store, n).await;
        executed = executed.min(begun.elapsed());
        let begun = Instant::now();
        replay(&store, n).await;
        replayed = replayed.min(begun.elapsed());
    }
    println!("with {WAY:?} each way: executed in {executed:?}, replayed in {replayed:?}");
    for (took, trips) in [(executed, 2), (replayed, 1)] {
        assert!(took >= WAY * 2 * trips, "the way was not slow, so nothing is shown: {took:?}");
        assert!(took < WAY * 2 * (trips + 1), "more than {trips} round trips: {took:?}");
    }
}

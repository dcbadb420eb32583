//! What a request costs the server, as it counts itself.

use std::time::Duration;

use onceward::store::redis::{Options, RedisStore};
use onceward::store::{Replaced, Store};
use tokio::time::Instant;

use super::records::{claim, completed, id};
use crate::support::fault_proxy::{Fault, FaultProxy};
use crate::support::redis::Redis;
use crate::support::waiting::PATIENCE;

const REQUESTS: usize = 200;

/// What the server counts, and what its scripts call within.
struct Commands {
    set: u64,
    get: u64,
    scripts: u64,
}

impl Commands {
    fn of(server: &Redis) -> Self {
        let scripts = server.calls("evalsha") + server.calls("eval");
        Self { set: server.calls("set"), get: server.calls("get"), scripts }
    }
}

async fn execute(store: &RedisStore, n: usize) {
    assert_eq!(store.insert(&id(n), &claim(1)).await.unwrap(), None);
    assert_eq!(store.replace(&id(n), claim(1).version(), &completed(1)).await.unwrap(), Replaced::Yes);
}

async fn replay(store: &RedisStore, n: usize) {
    assert_eq!(*store.insert(&id(n), &claim(2)).await.unwrap().unwrap().record, completed(1));
}

#[tokio::test]
async fn an_executed_request_takes_three_commands_at_most_and_a_replay_two() {
    let server = Redis::start("");
    let store = RedisStore::connect(Options::parse(&server.url(0)).unwrap().timeout(PATIENCE)).await.unwrap();
    execute(&store, 0).await;
    let before = Commands::of(&server);
    for n in 1..=REQUESTS {
        execute(&store, n).await;
    }
    // What is still to be struck from the list of claims counts too.
    assert_eq!(store.due(1).await.unwrap(), []);
    let after = Commands::of(&server);
    // A completion is one script, which sets the record and its answer; the rest were sent.
    let sets = after.set - before.set - 2 * REQUESTS as u64;
    let scripts = after.scripts - before.scripts;
    println!("{REQUESTS} executed, one after the other: {sets} SET, {scripts} scripts");
    assert_eq!(sets, REQUESTS as u64);
    // The last look at what is due takes two, and the request before the first may be listed late.
    assert!(sets + scripts <= 3 * REQUESTS as u64 + 4, "{} commands", sets + scripts);

    let before = after;
    for n in 1..=REQUESTS {
        replay(&store, n).await;
    }
    // Its own claims, which found something, are struck out; none of that belongs to a replay.
    let after = Commands::of(&server);
    let (sets, gets) = (after.set - before.set, after.get - before.get);
    println!("{REQUESTS} replayed: {sets} SET, {gets} GET, {} scripts", after.scripts - before.scripts);
    assert_eq!((sets, gets), (REQUESTS as u64, REQUESTS as u64));
    assert_eq!(after.scripts - before.scripts, 0, "a replay lists nothing");
}

#[tokio::test]
async fn a_claim_whose_answer_is_lost_is_recognised_when_it_is_sent_again() {
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
            // What was lost was an answer to whoever watches the server.
            None => assert!(Instant::now() < until, "no claim's answer was lost"),
        }
    }
    assert!(proxy.lost() > 0);
    assert_eq!(Commands::of(&server).get, before.get, "a look was taken at what the claim itself had told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_an_executed_request_takes_two_commands() {
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
    let scripts = Commands::of(&server).scripts - before.scripts;
    println!("1280 executed by 64 at once: {scripts} scripts, 1280 of them completions");
    assert!(scripts < 1280 * 3 / 2, "each claim was listed by a command of its own");
}

/// Each way takes so long that nothing else counts; of many tries the fastest, for the machine may be busy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_executed_request_waits_for_two_round_trips() {
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
    for took in [executed, replayed] {
        assert!(took >= WAY * 4, "the way was not slow, so nothing is shown: {took:?}");
        assert!(took < WAY * 6, "more than two round trips: {took:?}");
    }
}

//! Expiry of inline responses.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use onceward::clock::ManualClock;
use onceward::record::{Executed, Phase, Record, StoredRecord};
use onceward::store::redis::{Options, RedisStore};
use onceward::store::{Applied, Cas, Store};

use super::records::{LEASE, claim, id, kept_for, key};
use super::written;
use crate::support::redis::Redis;
use crate::support::waiting::PATIENCE;

const RETENTION: Duration = Duration::from_secs(3600);

/// Server, and a store that has observed it for as long as its keys are old.
struct World {
    server: Redis,
    store: RedisStore,
    clock: ManualClock,
}

impl World {
    async fn new() -> Self {
        let (server, clock) = (Redis::start(""), ManualClock::default());
        let options = Options::parse(&server.url(0)).unwrap().timeout(PATIENCE / 10);
        let store = RedisStore::connect_with(options, Arc::new(clock.clone())).await.unwrap();
        Self { server, store, clock }
    }

    /// Advances time by `by` and a second.
    fn pass(&self, by: Duration) {
        let by = by + Duration::from_secs(1);
        self.clock.advance(by);
        self.server.age(0, by);
    }
}

async fn execute(store: &RedisStore, n: usize) {
    execute_for(store, n, RETENTION).await;
}

async fn execute_for(store: &RedisStore, n: usize, retention: Duration) {
    begin(store, n).await;
    complete(store, n, claim(1), retention).await;
}

async fn begin(store: &RedisStore, n: usize) {
    assert_eq!(store.insert(&id(n), &claim(1)).await.unwrap(), None);
}

async fn complete(store: &RedisStore, n: usize, over: Record, retention: Duration) {
    let completed = kept_for(1, retention, 4000);
    assert_eq!(store.compare_and_swap(&id(n), over.version(), &completed).await.unwrap(), Cas::Swapped);
}

fn bytes(server: &Redis, n: usize) -> u64 {
    server.cli(0, &["STRLEN", &key(&id(n))]).parse().unwrap()
}

/// Returns the age of a tombstone.
fn tombstone(found: Option<StoredRecord>) -> Duration {
    let found = found.expect("it is known");
    assert!(matches!(found.record.phase, Phase::Tombstone { executed: Executed::Yes, .. }), "{found:?}");
    found.age
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inline_response_is_evicted_after_retention() {
    const KEYS: usize = 300;
    let world = World::new().await;
    let World { server, store, .. } = &world;
    for n in 0..KEYS {
        execute(store, n).await;
    }
    written(store).await;
    world.pass(LEASE);
    assert_eq!(store.due(10).await.unwrap(), []);
    assert_eq!(server.cli(0, &["ZCARD", "onceward:began"]), "0", "they are looked at again and again");
    assert_ne!(server.cli(0, &["ZCARD", "onceward:ends"]), "0", "nobody will ever look at them");
    assert!(bytes(server, 0) > 4000, "taken out too early");
    let before = server.info("used_memory_dataset");
    world.pass(RETENTION - LEASE);
    // Expired, although no sweep has evicted it yet.
    tombstone(store.insert(&id(0), &claim(2)).await.unwrap());
    tombstone(store.get(&id(1)).await.unwrap());
    assert_eq!(store.due(10).await.unwrap(), []);
    for n in 0..KEYS {
        assert!(bytes(server, n) < 300, "its answer stands there yet");
        assert!(tombstone(store.get(&id(n)).await.unwrap()) < LEASE);
    }
    assert_eq!(server.cli(0, &["ZCARD", "onceward:ends"]), "0", "they are looked at for ever");
    let after = server.info("used_memory_dataset");
    assert!(after + (KEYS as u64 * 3500) < before, "of {before} bytes {after} are left");
    let left: u128 = server.cli(0, &["PTTL", &key(&id(0))]).parse().unwrap();
    assert!(left > 0 && left <= Duration::from_secs(86_400).as_millis(), "the tombstone ends in {left} ms");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_server_evicts_expired_responses() {
    let world = World::new().await;
    let World { server, store, .. } = &world;
    for n in 0..50 {
        execute(store, n).await;
    }
    written(store).await;
    world.pass(LEASE);
    store.due(10).await.unwrap();
    world.pass(RETENTION - LEASE * 3);
    begin(store, 100).await;
    written(store).await;
    assert!(bytes(server, 0) > 4000, "taken out too early");
    world.pass(LEASE * 3);
    server.cli(0, &["CONFIG", "SET", "maxmemory", "1"]);
    // A tracked claim finds no memory for its index entry; expired responses free memory anyway.
    let error = store.due(10).await.unwrap_err();
    assert_eq!(error.applied(), Applied::No, "{error:?}");
    assert!((0..50).all(|n| bytes(server, n) < 300), "the server stays full");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_inline_response_is_evicted() {
    let world = World::new().await;
    let World { server, store, .. } = &world;
    let Phase::InFlight { print, .. } = claim(1).phase else { unreachable!() };
    let unknown = Record { phase: Phase::Unknown { print }, ..claim(1) };
    begin(store, 1).await;
    written(store).await;
    world.pass(LEASE);
    let due = store.due(10).await.unwrap();
    assert_eq!(due.len(), 1, "a claim whose lease is over is due");
    assert_eq!(store.compare_and_swap(&id(1), claim(1).version(), &unknown).await.unwrap(), Cas::Swapped);
    assert_eq!(store.due(10).await.unwrap(), []);
    complete(store, 1, unknown, RETENTION).await;
    written(store).await;
    assert_eq!(store.due(10).await.unwrap(), []);
    world.pass(RETENTION);
    assert_eq!(store.due(10).await.unwrap(), []);
    assert!(bytes(server, 1) < 300, "its answer stands there yet");
}

/// A claim that is renewed repeatedly is in the set of long claims when it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inline_response_of_long_execution_is_evicted() {
    let world = World::new().await;
    let World { server, store, .. } = &world;
    begin(store, 1).await;
    written(store).await;
    world.pass(LEASE / 2);
    assert_eq!(store.compare_and_swap(&id(1), claim(1).version(), &claim(1)).await.unwrap(), Cas::Swapped);
    world.pass(LEASE / 2);
    assert_eq!(store.due(10).await.unwrap(), [], "it was renewed");
    assert_eq!(server.cli(0, &["ZCARD", "onceward:claims"]), "1", "nobody looks at it any more");
    complete(store, 1, claim(1), RETENTION).await;
    world.pass(LEASE);
    assert_eq!(store.due(10).await.unwrap(), []);
    assert_eq!(server.cli(0, &["ZCARD", "onceward:claims"]), "0", "it is looked at for ever");
    world.pass(RETENTION);
    assert_eq!(store.due(10).await.unwrap(), []);
    assert!(bytes(server, 1) < 300, "its answer stands there yet");
}

/// A foreign value, a list in place of a record, hides no other record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_value_does_not_hide_records_from_the_sweep() {
    let world = World::new().await;
    let World { server, store, .. } = &world;
    for n in [1, 3, 4] {
        execute(store, n).await;
    }
    begin(store, 2).await;
    written(store).await;
    let remove = |n| server.cli(0, &["DEL", &key(&id(n))]);
    let spoil = |n| server.cli(0, &["RPUSH", &key(&id(n)), "no record"]);
    remove(1);
    world.pass(LEASE);
    spoil(1);
    let due = store.due(10).await.unwrap();
    assert_eq!(due.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [id(2)]);
    // Its entry in the expiry set is due by now.
    remove(1);
    remove(4);
    world.pass(RETENTION);
    spoil(4);
    store.due(10).await.unwrap();
    assert!(bytes(server, 3) < 300, "its answer stands there yet");
}

/// A response with a longer retention does not delay the eviction of others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn response_expires_with_its_own_retention() {
    let world = World::new().await;
    let World { server, store, .. } = &world;
    execute_for(store, 1, RETENTION * 24).await;
    execute(store, 2).await;
    written(store).await;
    world.pass(LEASE);
    assert_eq!(store.due(10).await.unwrap(), []);
    world.pass(RETENTION);
    assert_eq!(store.due(10).await.unwrap(), []);
    assert!(bytes(server, 2) < 300 && bytes(server, 1) > 4000, "{} and {}", bytes(server, 2), bytes(server, 1));
}

/// Above the limit for exact counts, `/status` estimates from the sweep index.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_flight_count_of_many_keys_uses_the_sweep_index() {
    const MANY: usize = 2001;
    const BEGUN: usize = 40;
    let world = World::new().await;
    let World { server, store, .. } = &world;
    let begin_all = async |keys: Range<usize>| {
        join_all(keys.map(|n| begin(store, n))).await;
        written(store).await;
    };
    begin_all(0..BEGUN).await;
    world.pass(LEASE);
    assert_eq!(store.due(MANY).await.unwrap().len(), BEGUN);
    server.cli(
        0,
        &["EVAL", "for n = 1, tonumber(ARGV[1]) do redis.call('SET', 'other:' .. n, n) end", "0", &MANY.to_string()],
    );
    assert_eq!(store.stats().await.unwrap().in_flight, BEGUN as u64, "those that outlived their lease");
    // Fewer than the sample size, so the estimate is exact.
    begin_all(BEGUN..2 * BEGUN).await;
    join_all((0..10).map(|n| execute(store, MANY + n))).await;
    assert_eq!(store.stats().await.unwrap().in_flight, 2 * BEGUN as u64, "and those that began since");
}

//! Tests of the Redis store against real Redis and Valkey servers.

mod batching;
mod cost;
mod expiry;
mod failover;
mod faults;
mod kill;
#[cfg(target_os = "linux")]
mod power;
mod records;
mod start;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use onceward::clock::ManualClock;
use onceward::conformance::Subject;
use onceward::store::Store;
use onceward::store::redis::{Options, RedisStore};
use tokio::sync::{Mutex, MutexGuard};

use crate::support::redis::{Cluster, Redis, Sentinels};

/// Accuracy of ages, which is limited by the speed of a busy machine.
const SLACK: Duration = Duration::from_secs(10);

/// Server settings for each kind of persistence: fsync on each write, each second, snapshots, none.
const PERSISTENCE: [&str; 4] =
    ["--appendfsync always", "--appendfsync everysec", "--appendonly no --save '3600 1'", "--appendonly no"];

async fn connect(url: &str, patience: Duration) -> RedisStore {
    RedisStore::connect(Options::parse(url).unwrap().timeout(patience)).await.unwrap()
}

static REDIS_7: LazyLock<Redis> = LazyLock::new(|| Redis::start(""));
static VALKEY_9: LazyLock<Redis> = LazyLock::new(|| Redis::valkey(""));
static SENTINELS: LazyLock<Sentinels> = LazyLock::new(Sentinels::start);
static CLUSTER: LazyLock<Cluster> = LazyLock::new(|| Cluster::start(0));
/// Lock for the cluster, which has a single database.
static CLUSTER_TURN: Mutex<()> = Mutex::const_new(());

onceward::store_conformance!(redis_7, || async {
    let database = REDIS_7.database();
    subject(&REDIS_7.url(database), vec![&REDIS_7], database).await
});
// With each response external, as large ones are.
onceward::store_conformance!(redis_7_external, || async {
    let database = REDIS_7.database();
    subject_by(options(&REDIS_7.url(database)).max_inline_response(0), vec![&REDIS_7], database).await
});
onceward::store_conformance!(valkey_9, || async {
    let database = VALKEY_9.database();
    subject(&VALKEY_9.url(database), vec![&VALKEY_9], database).await
});
onceward::store_conformance!(sentinel, || async {
    let database = SENTINELS.servers[0].database();
    subject(&SENTINELS.url(database), vec![&SENTINELS.servers[SENTINELS.master()]], database).await
});
onceward::store_conformance!(cluster, || async {
    let turn: MutexGuard<'static, ()> = CLUSTER_TURN.lock().await;
    CLUSTER.empty();
    subject(&CLUSTER.url(), CLUSTER.masters().collect(), 0).await.keeping(turn)
});

/// Creates two clients of an empty database. Time is moved by moving the stored data into the past.
async fn subject(url: &str, servers: Vec<&'static Redis>, database: usize) -> Subject {
    subject_by(options(url), servers, database).await
}

async fn subject_by(options: Options, servers: Vec<&'static Redis>, database: usize) -> Subject {
    let clock = ManualClock::default();
    let connect = async || RedisStore::connect_with(options.clone(), Arc::new(clock.clone())).await.unwrap();
    let (store, other) = (Arc::new(connect().await), Arc::new(connect().await));
    let both = [Arc::clone(&store), Arc::clone(&other)];
    Subject::moved_by(store, SLACK, move |by| {
        clock.advance(by);
        let (servers, both) = (servers.clone(), both.clone());
        Box::pin(async move {
            written(&both[0]).await;
            written(&both[1]).await;
            let age = move || servers.iter().for_each(|server| server.age(database, by));
            tokio::task::spawn_blocking(age).await.unwrap();
        })
    })
    .with_other(other)
    .ending_by_itself()
}

/// Waits until all acquired claims are in the sweep index.
async fn written(store: &RedisStore) {
    assert_eq!(store.due(0).await.unwrap(), []);
}

/// Parses a URL, with a timeout that allows for a busy machine.
fn options(url: &str) -> Options {
    Options::parse(url).unwrap().timeout(Duration::from_secs(20))
}

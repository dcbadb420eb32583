//! The store in Redis and Valkey, against real servers.

mod cost;
mod ends;
mod failover;
mod faults;
mod kept;
#[cfg(target_os = "linux")]
mod power;
mod records;
mod start;
mod together;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use onceward::clock::ManualClock;
use onceward::conformance::Subject;
use onceward::store::Store;
use onceward::store::redis::{Options, RedisStore};
use tokio::sync::{Mutex, MutexGuard};

use crate::support::redis::{Cluster, Redis, Sentinels};

/// How exact ages are: as exact as a busy machine is fast.
const SLACK: Duration = Duration::from_secs(10);

/// What a server keeps on its disk, by its settings: each write, each second's, now and then all of it, nothing.
const PERSISTENCE: [&str; 4] =
    ["--appendfsync always", "--appendfsync everysec", "--appendonly no --save '3600 1'", "--appendonly no"];

async fn connect(url: &str, patience: Duration) -> RedisStore {
    RedisStore::connect(Options::parse(url).unwrap().timeout(patience)).await.unwrap()
}

static REDIS_7: LazyLock<Redis> = LazyLock::new(|| Redis::start(""));
static VALKEY_9: LazyLock<Redis> = LazyLock::new(|| Redis::valkey(""));
static SENTINELS: LazyLock<Sentinels> = LazyLock::new(Sentinels::start);
static CLUSTER: LazyLock<Cluster> = LazyLock::new(|| Cluster::start(0));
/// A cluster has one database, so one test at a time has it.
static CLUSTER_TURN: Mutex<()> = Mutex::const_new(());

onceward::store_conformance!(redis_7, || async {
    let database = REDIS_7.database();
    subject(&REDIS_7.url(database), vec![&REDIS_7], database).await
});
// With each answer beside its record, as large ones are.
onceward::store_conformance!(redis_7_beside, || async {
    let database = REDIS_7.database();
    subject_by(options(&REDIS_7.url(database)).answers_within(0), vec![&REDIS_7], database).await
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

/// Two clients of an empty database, and time that is moved by moving what was written into the past.
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

/// Claims are listed after they are won: returns when those are that were won by now.
async fn written(store: &RedisStore) {
    assert_eq!(store.due(0).await.unwrap(), []);
}

/// The machine may be busy with other tests.
fn options(url: &str) -> Options {
    Options::parse(url).unwrap().timeout(Duration::from_secs(20))
}

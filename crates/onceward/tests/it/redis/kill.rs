//! Data that survive a kill of the server, for each kind of persistence.

use onceward::store::redis::{Options, RedisStore};
use onceward::store::{Cas, Store};

use super::records::{claim, completed, id};
use crate::support::redis::Redis;
use crate::support::waiting::PATIENCE;

#[tokio::test]
async fn killed_server_loses_no_more_than_documented() {
    for (settings, says, keeps_before_snapshot, keeps_after) in [
        ("--appendfsync always", "forget nothing", true, true),
        ("--appendonly no --save '3600 1'", "since the last snapshot", true, false),
        ("--appendonly no", "forget all keys", false, false),
    ] {
        let mut server = Redis::start(settings);
        let url = format!("{}?accept=no-persistence", server.url(0));
        let store = RedisStore::connect(Options::parse(&url).unwrap().timeout(PATIENCE)).await.unwrap();
        assert!(store.info().durability.contains(says), "{settings}: {}", store.info().durability);
        let keep = async |n| {
            assert_eq!(store.insert(&id(n), &claim(1)).await.unwrap(), None);
            assert_eq!(store.compare_and_swap(&id(n), claim(1).version(), &completed(1)).await.unwrap(), Cas::Swapped);
        };
        keep(1).await;
        if keeps_before_snapshot && !keeps_after {
            assert_eq!(server.cli(0, &["SAVE"]), "OK");
        }
        keep(2).await;
        server.kill();
        server.start_again(true);
        for (n, keeps) in [(1, keeps_before_snapshot), (2, keeps_after)] {
            let found = store.get(&id(n)).await.unwrap().map(|found| *found.record);
            assert_eq!(found, keeps.then(|| completed(1)), "{settings}, key {n}");
        }
    }
}

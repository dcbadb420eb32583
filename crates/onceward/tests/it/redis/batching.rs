//! Batching: concurrent writes go to the server in one script, and each gets its own result.

use std::time::Duration;

use futures_util::future::join_all;
use onceward::store::redis::RedisStore;
use onceward::store::{Applied, Cas, Store};
use tokio::time::timeout;

use super::connect;
use super::records::{claim, completed, id, kept_for, key};
use crate::support::fault_proxy::{Fault, FaultProxy};
use crate::support::redis::Redis;
use crate::support::waiting::PATIENCE;

async fn claims(store: &RedisStore, keys: usize) {
    for found in join_all((0..keys).map(async |n| store.insert(&id(n), &claim(1)).await.unwrap())).await {
        assert_eq!(found, None);
    }
}

/// Completes all records concurrently. In this thread nothing is sent before all are queued.
async fn complete(store: &RedisStore, keys: usize) -> Vec<Result<Cas, onceward::store::Error>> {
    let (over, record) = (claim(1).version(), completed(1));
    join_all((0..keys).map(async |n| store.compare_and_swap(&id(n), over, &record).await)).await
}

fn scripts(server: &Redis) -> u64 {
    server.calls("evalsha") + server.calls("eval")
}

#[tokio::test]
async fn queued_writes_are_batched_into_bounded_scripts() {
    let server = Redis::start("");
    let store = connect(&server.url(0), PATIENCE).await;
    claims(&store, 150).await;
    server.cli(0, &["SCRIPT", "FLUSH"]);
    let before = scripts(&server);
    assert!(complete(&store, 150).await.into_iter().all(|result| result.unwrap() == Cas::Swapped));
    // The first two, and perhaps the third, try the script by its hash in vain.
    let took = scripts(&server) - before;
    assert!((5..=6).contains(&took), "{took} scripts for 64, 64 and 22 records");
    for n in 0..150 {
        assert_eq!(*store.get(&id(n)).await.unwrap().unwrap().record, completed(1), "{n}");
    }

    // The number of bytes is bounded as well; a larger response is external and is sent alone.
    let store = connect(&server.url(1), PATIENCE).await;
    claims(&store, 42).await;
    let (large, larger) = (kept_for(1, Duration::from_secs(60), 16_000), kept_for(1, Duration::from_secs(60), 300_000));
    let before = scripts(&server);
    let record = |n| if n < 40 { &large } else { &larger };
    let result =
        join_all((0..42).map(async |n| store.compare_and_swap(&id(n), claim(1).version(), record(n)).await.unwrap()))
            .await;
    assert!(result.into_iter().all(|result| result == Cas::Swapped));
    assert_eq!(scripts(&server) - before, 3 + 2, "for 40 records of 16 kB, and two of 300 kB");
    for n in 0..42 {
        assert_eq!(*store.get(&id(n)).await.unwrap().unwrap().record, *record(n), "{n}");
    }
}

#[tokio::test]
async fn every_batched_write_gets_its_own_result() {
    let server = Redis::start("");
    let store = connect(&server.url(0), PATIENCE).await;
    claims(&store, 8).await;
    // One was removed, one belongs to another, one was completed by another, one by itself, one is
    // not a record.
    assert!(store.remove(&id(1), claim(1).version()).await.unwrap());
    for n in [2, 3] {
        assert_eq!(store.compare_and_swap(&id(n), claim(1).version(), &claim(2)).await.unwrap(), Cas::Swapped);
    }
    assert_eq!(store.compare_and_swap(&id(3), claim(2).version(), &completed(2)).await.unwrap(), Cas::Swapped);
    assert_eq!(store.compare_and_swap(&id(4), claim(1).version(), &completed(1)).await.unwrap(), Cas::Swapped);
    server.cli(0, &["DEL", &key(&id(5))]);
    server.cli(0, &["LPUSH", &key(&id(5)), "a list"]);
    let before = scripts(&server);
    let result = complete(&store, 8).await;
    assert_eq!(scripts(&server) - before, 1);
    for (n, result) in result.into_iter().enumerate() {
        match (n, result) {
            (0 | 6 | 7, result) => assert_eq!(result.unwrap(), Cas::Swapped, "{n}"),
            (1, result) => assert_eq!(result.unwrap(), Cas::Conflict(None)),
            (2..=4, Ok(Cas::Conflict(Some(found)))) => {
                assert_eq!(*found.record, [claim(2), completed(2), completed(1)][n - 2], "{n}");
            }
            (5, Err(error)) => assert!(error.is_unreadable(), "{error:?}"),
            (n, result) => panic!("{n}: {result:?}"),
        }
    }
    for n in [0, 6, 7] {
        assert_eq!(*store.get(&id(n)).await.unwrap().unwrap().record, completed(1), "{n}");
    }
}

#[tokio::test]
async fn delete_succeeds_on_full_server_despite_batched_insert() {
    let server = Redis::start("");
    let store = connect(&server.url(0), Duration::from_millis(300)).await;
    claims(&store, 3).await;
    server.cli(0, &["CONFIG", "SET", "maxmemory", "1"]);
    let (result, gone) = tokio::join!(complete(&store, 2), async { store.remove(&id(2), claim(1).version()).await });
    for result in result {
        assert_eq!(result.unwrap_err().applied(), Applied::No);
    }
    assert!(gone.unwrap());
    server.cli(0, &["CONFIG", "SET", "maxmemory", "0"]);
    assert!(complete(&store, 2).await.into_iter().all(|result| result.unwrap() == Cas::Swapped));
    assert_eq!(store.get(&id(2)).await.unwrap(), None);
}

#[tokio::test]
async fn lost_batch_response_is_recognized_per_write() {
    let server = Redis::start("");
    let proxy = FaultProxy::before(server.address);
    let store = connect(&format!("redis://{}", proxy.address), PATIENCE).await;
    claims(&store, 30).await;
    proxy.set(Fault::NextAnswerLost);
    assert!(complete(&store, 30).await.into_iter().all(|result| result.unwrap() == Cas::Swapped));
    assert_eq!(proxy.lost(), 1);
    for n in 0..30 {
        assert_eq!(*store.get(&id(n)).await.unwrap().unwrap().record, completed(1), "{n}");
    }
}

#[tokio::test]
async fn unresponsive_server_times_out_every_write_and_delays_no_later_one() {
    let server = Redis::start("");
    let proxy = FaultProxy::before(server.address);
    let patience = Duration::from_millis(900);
    let store = connect(&format!("redis://{}", proxy.address), patience).await;
    claims(&store, 200).await;
    proxy.set(Fault::AnswersStuck);
    let result = timeout(patience * 5, complete(&store, 200)).await.expect("it is bounded");
    for result in result {
        assert_eq!(result.unwrap_err().applied(), Applied::Unknown);
    }
    proxy.heal();
    // They may have been applied or not.
    let mut again = complete(&store, 200).await;
    if again.iter().any(Result::is_err) {
        again = complete(&store, 200).await;
    }
    assert!(again.into_iter().all(|result| result.unwrap() == Cas::Swapped));
}

#[tokio::test]
async fn cancelled_write_delays_nobody() {
    let server = Redis::start("");
    let store = connect(&server.url(0), PATIENCE).await;
    claims(&store, 10).await;
    {
        let record = completed(1);
        for n in 0..5 {
            let id = id(n);
            let asked = store.compare_and_swap(&id, claim(1).version(), &record);
            assert_eq!(futures_util::future::poll_immediate(asked).await.map(|_| ()), None);
        }
    }
    assert!(complete(&store, 10).await.into_iter().all(|result| result.unwrap() == Cas::Swapped));
}

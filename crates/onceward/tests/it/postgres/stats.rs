//! Slow counts: they delay nobody, and only one runs at a time.

use std::time::Duration;

use onceward::record::AttemptId;
use onceward::store::{PostgresStore, Store};
use tokio::time::{Instant, timeout};

use super::POSTGRES_15;
use super::batching::counted_at_the_end;
use super::errors::another;
use super::records::{HEALED, claim, id};

/// Timeout of the engine.
const ENGINE: Duration = Duration::from_secs(2);

#[tokio::test]
async fn slow_count_runs_alone_and_delays_nobody() {
    let url = POSTGRES_15.database();
    drop(PostgresStore::open(&url).await.unwrap());
    let scanned = "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'records'";
    let scans = counted_at_the_end(&url, scanned).await;
    let store = PostgresStore::open(&url).await.unwrap();
    assert_eq!(store.insert(&id(1), &claim(AttemptId::random())).await.unwrap(), None);
    let before = store.stats().await.unwrap();
    assert_eq!((before.in_flight, before.unknown), (1, 0));
    // A lock makes reading the table take long.
    let other = another(&url).await;
    other
        .batch_execute(
            "BEGIN; LOCK TABLE onceward.records; INSERT INTO onceward.records \
             SELECT int4send(n), '\\x00', 4, now(), 'infinity', 'infinity', '\\x00' FROM generate_series(1, 20000) n",
        )
        .await
        .unwrap();
    for n in 0..3 {
        let meanwhile = timeout(ENGINE, store.stats()).await;
        let meanwhile = meanwhile.unwrap_or_else(|_| panic!("{n}: the caller waits for the whole count"));
        assert_eq!(meanwhile.unwrap(), before, "{n}");
    }
    // Operations on other tables are not delayed by the count.
    let named = timeout(ENGINE, store.get_or_insert_meta("name", b"value")).await;
    assert_eq!(named.expect("it waits for the count").unwrap(), "value");
    other.batch_execute("COMMIT").await.unwrap();
    let until = Instant::now() + HEALED;
    let after = loop {
        let told = store.stats().await.unwrap();
        if told != before {
            break told;
        }
        assert!(Instant::now() < until, "the counts are never returned");
        tokio::task::yield_now().await;
    };
    assert_eq!((after.in_flight, after.unknown, after.bytes), (1, 20_000, before.bytes + 20_000 * 129));
    // At most a twentieth of the time is spent on counting; above this number of records the next
    // count is postponed.
    assert_eq!(store.stats().await.unwrap(), after);
    drop((store, other));
    assert_eq!(counted_at_the_end(&url, scanned).await, scans + 2, "it was counted while it was being counted");
}

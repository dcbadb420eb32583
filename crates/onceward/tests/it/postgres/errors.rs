//! Errors of the server: they are retried within bounds, and never mistaken for another result.

use std::sync::Arc;
use std::time::Duration;

use onceward::record::AttemptId;
use onceward::store::{Applied, Cas, PostgresStore, Store};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_postgres::Client;

use super::records::{HEALED, claim, claims_again, completed, id};
use super::{POSTGRES_15, database_of};

/// Connects as another client of the database.
pub(super) async fn another(url: &str) -> Client {
    let plain = url.split('?').next().unwrap();
    let (client, connection) = tokio_postgres::connect(plain, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Waits until a connection of the store waits for a lock.
pub(super) async fn until_it_waits(other: &Client) {
    let waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'onceward' \
         AND wait_event_type = 'Lock'";
    let until = Instant::now() + HEALED;
    while other.query(waits, &[]).await.unwrap().is_empty() {
        assert!(Instant::now() < until, "it does not wait, so nothing is shown");
    }
}

/// Returns true if the server has counted an event of this database in time; backends report with a
/// delay.
pub(super) async fn is_counted(store: &PostgresStore, other: &Client, what: &str, within: Duration) -> bool {
    let count = format!("SELECT {what}::bigint FROM pg_stat_database WHERE datname = current_database()");
    let until = Instant::now() + within;
    while other.query_one(&count, &[]).await.unwrap().get::<_, i64>(0) == 0 {
        if Instant::now() >= until {
            return false;
        }
        store.get(&id(0)).await.unwrap();
    }
    true
}

#[tokio::test]
async fn deadlock_is_retried() {
    let url = POSTGRES_15.database();
    let database = database_of(&url);
    // The store detects the deadlock first, so it is the one that gives way.
    POSTGRES_15.sql("postgres", &format!("ALTER DATABASE {database} SET deadlock_timeout = '50ms'"));
    let store = PostgresStore::open(&url.replace("connections=4", "connections=1")).await.unwrap();
    assert_eq!(store.get(&id(0)).await.unwrap(), None);
    POSTGRES_15.sql(
        &database,
        "CREATE FUNCTION lock_more() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN new; END $$; \
         CREATE TRIGGER lock_more BEFORE UPDATE ON onceward.records FOR EACH ROW \
         WHEN (old.stage <> new.stage) EXECUTE FUNCTION lock_more()",
    );
    let (other, watcher) = (another(&url).await, another(&url).await);
    other.batch_execute("SET deadlock_timeout = '1h'").await.unwrap();
    for n in 1.. {
        let (key, held) = (id(n), claim(AttemptId::random()));
        store.insert(&key, &held).await.unwrap();
        other.batch_execute("BEGIN; SELECT pg_advisory_xact_lock(1)").await.unwrap();
        let end = completed(held.attempt);
        let their_end = async {
            until_it_waits(&watcher).await;
            // They wait for our row, and we for their lock.
            other.batch_execute("UPDATE onceward.records SET look_at = look_at; COMMIT").await.unwrap();
        };
        let (ours, ()) = tokio::join!(store.compare_and_swap(&key, held.version(), &end), their_end);
        assert_eq!(ours.unwrap(), Cas::Swapped);
        assert_eq!(*store.get(&key).await.unwrap().unwrap().record, end);
        // On a busy machine they may come so late that we have stopped waiting; then there was no
        // deadlock.
        if is_counted(&store, &other, "deadlocks", HEALED / 3).await {
            return;
        }
        assert!(n < 5, "no deadlock, so nothing is shown");
    }
}

#[tokio::test]
async fn serialization_failure_is_retried() {
    let url = POSTGRES_15.database();
    let isolation = format!("ALTER DATABASE {} SET default_transaction_isolation = 'serializable'", database_of(&url));
    POSTGRES_15.sql("postgres", &isolation);
    let store = PostgresStore::open(&url.replace("connections=4", "connections=1")).await.unwrap();
    let held = claim(AttemptId::random());
    store.insert(&id(1), &held).await.unwrap();
    let (other, watcher) = (another(&url).await, another(&url).await);
    other.batch_execute("BEGIN; UPDATE onceward.records SET look_at = look_at").await.unwrap();
    let end = completed(held.attempt);
    let key = id(1);
    let their_end = async {
        until_it_waits(&watcher).await;
        // The row we are about to change has changed since our statement began.
        other.batch_execute("COMMIT").await.unwrap();
    };
    let (ours, ()) = tokio::join!(store.compare_and_swap(&key, held.version(), &end), their_end);
    assert_eq!(ours.unwrap(), Cas::Swapped);
    assert_eq!(*store.get(&id(1)).await.unwrap().unwrap().record, end);
    assert!(is_counted(&store, &other, "xact_rollback", HEALED).await, "nothing was rolled back, so nothing is shown");
}

#[tokio::test]
async fn locked_row_is_retried_within_bounds_then_rejected() {
    let url = POSTGRES_15.database();
    let store = PostgresStore::open(&url).await.unwrap();
    let (other, key, held) = (another(&url).await, id(1), claim(AttemptId::random()));
    assert_eq!(store.insert(&key, &held).await.unwrap(), None);
    other.batch_execute("BEGIN; SELECT FROM onceward.records FOR UPDATE").await.unwrap();
    // A completion waits for the row, a second each time.
    let end = completed(held.attempt);
    let ended = store.compare_and_swap(&key, held.version(), &end);
    let error = timeout(Duration::from_secs(20), ended).await.expect("it is bounded").unwrap_err();
    assert_eq!(error.applied(), Applied::No, "{error}");
    other.batch_execute("COMMIT").await.unwrap();
    assert_eq!(*store.get(&key).await.unwrap().unwrap().record, held, "it said that nothing was applied");
    assert_eq!(store.compare_and_swap(&key, held.version(), &end).await.unwrap(), Cas::Swapped);
}

#[tokio::test]
async fn locked_table_delays_all_keys_until_released() {
    let url = POSTGRES_15.database();
    let store = PostgresStore::open(&url).await.unwrap();
    let (other, key, held) = (another(&url).await, id(1), claim(AttemptId::random()));
    // An open connection: preparing on a new one would wait for the lock too, and nothing would be
    // sent.
    assert_eq!(store.get(&key).await.unwrap(), None);
    other.batch_execute("BEGIN; LOCK TABLE onceward.records").await.unwrap();
    // The engine's timeout: its client gets 503.
    assert!(timeout(Duration::from_secs(2), store.insert(&key, &held)).await.is_err());
    other.batch_execute("COMMIT").await.unwrap();
    claims_again(&store, 2).await;
    // The delayed operation was then applied, completely.
    let there = store.insert(&key, &claim(AttemptId::random())).await.unwrap();
    assert!(there.is_none_or(|there| *there.record == held));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminated_backend_is_reported_as_possibly_applied() {
    let url = POSTGRES_15.database();
    let database = database_of(&url);
    let store = Arc::new(PostgresStore::open(&url).await.unwrap());
    // A slow backend, so that most are terminated within a statement.
    POSTGRES_15.sql(
        &database,
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM pg_sleep(0.02); RETURN new; END $$; \
         CREATE TRIGGER dawdle BEFORE INSERT ON onceward.records FOR EACH ROW EXECUTE FUNCTION dawdle()",
    );
    let mut claims = JoinSet::new();
    for n in 0..60 {
        let store = Arc::clone(&store);
        claims.spawn(async move {
            let claim = claim(AttemptId::random());
            let claimed = timeout(Duration::from_secs(30), store.insert(&id(n), &claim)).await.expect("it is bounded");
            (n, claim, claimed)
        });
    }
    let mut ended = 0;
    for _ in 0..5 {
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() \
             AND application_name = 'onceward' AND state = 'active'";
        ended += POSTGRES_15.sql(&database, end).parse::<usize>().unwrap();
    }
    assert!(ended > 0, "none was ended in the middle");
    let mut won = 0;
    for (n, claim, claimed) in claims.join_all().await {
        let there = store.get(&id(n)).await.unwrap().map(|found| *found.record);
        match claimed {
            // Its own claim is never mistaken for another's.
            Ok(found) => assert_eq!((found, there), (None, Some(claim)), "key {n}"),
            Err(error) if error.applied() == Applied::No => assert_eq!(there, None, "key {n}: {error}"),
            Err(_) => assert!(there.is_none_or(|there| there == claim), "key {n}"),
        }
        won += 1;
    }
    assert_eq!(won, 60);
}

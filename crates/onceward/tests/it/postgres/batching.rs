//! Batching: concurrent operations share one statement, and none pays for another.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use onceward::record::{AttemptId, Record, Version};
use onceward::secret::RecordId;
use onceward::store::{Applied, Cas, PostgresStore, Store};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::errors::{another, is_counted, until_it_waits};
use super::faults::behind_a_proxy;
use super::records::{HEALED, chain, claim, completed, id, unknown};
use super::{PGBOUNCER, POSTGRES_15, POSTGRES_18, database_of};
use crate::support::fault_proxy::Fault;
use crate::support::postgres::Postgres;
use crate::support::waiting::PATIENCE;

/// Number of keys used concurrently.
const MANY: usize = 40;

/// Triggers that record the number of rows of each statement.
const COUNTED: &str = "CREATE TABLE counted (kind text, rows bigint); \
     CREATE FUNCTION counted() RETURNS trigger LANGUAGE plpgsql AS \
     $$ BEGIN INSERT INTO public.counted SELECT tg_op, count(*) FROM written; RETURN NULL; END $$; \
     CREATE TRIGGER inserted AFTER INSERT ON onceward.records REFERENCING NEW TABLE AS written \
     FOR EACH STATEMENT EXECUTE FUNCTION counted(); \
     CREATE TRIGGER updated AFTER UPDATE ON onceward.records REFERENCING NEW TABLE AS written \
     FOR EACH STATEMENT EXECUTE FUNCTION counted(); \
     CREATE TRIGGER deleted AFTER DELETE ON onceward.records REFERENCING OLD TABLE AS written \
     FOR EACH STATEMENT EXECUTE FUNCTION counted()";

/// Returns keys with a claim each.
fn claims(from: usize) -> Vec<(RecordId, Record)> {
    (from..from + MANY).map(|n| (id(n), claim(AttemptId::random()))).collect()
}

async fn insert_all(store: &PostgresStore, claims: &[(RecordId, Record)]) {
    for inserted in join_all(claims.iter().map(|(id, claim)| store.insert(id, claim))).await {
        assert_eq!(inserted.unwrap(), None);
    }
}

/// Swaps all concurrently: existing records, then absent ones, then those of another attempt.
async fn replace_all(
    store: &PostgresStore,
    all: &[(RecordId, Record)],
    ends: &[(Version, Record)],
    theirs: &[(RecordId, Record)],
    url: &str,
) {
    let replaced = all.iter().zip(ends).map(|((id, _), (over, end))| store.compare_and_swap(id, *over, end));
    for (n, replaced) in join_all(replaced).await.into_iter().enumerate() {
        match (n / MANY, replaced.unwrap()) {
            (0, Cas::Swapped) | (1, Cas::Conflict(None)) => {}
            (2, Cas::Conflict(Some(there))) => assert_eq!(*there.record, theirs[n % MANY].1, "{url}"),
            (_, replaced) => panic!("{url}: {n} {replaced:?}"),
        }
    }
    for ((id, _), (_, end)) in all.iter().zip(ends).take(MANY) {
        assert_eq!(*store.get(id).await.unwrap().unwrap().record, *end, "{url}");
    }
}

/// Opens a store with one connection, so that concurrent operations are batched.
async fn over_one_connection(url: &str) -> PostgresStore {
    let store = PostgresStore::open(&url.replace("connections=4", "connections=1")).await.unwrap();
    assert_eq!(store.get(&id(0)).await.unwrap(), None);
    store
}

#[tokio::test]
async fn concurrent_operations_are_batched_into_one_statement() {
    let pooled = |url: String| url.replace(&POSTGRES_15.address.to_string(), &PGBOUNCER.address.to_string());
    for (server, url) in [
        (&*POSTGRES_15, POSTGRES_15.database()),
        (&*POSTGRES_18, POSTGRES_18.database()),
        (&*POSTGRES_15, pooled(POSTGRES_15.database())),
    ] {
        let store = over_one_connection(&url).await;
        server.sql(&database_of(&url), COUNTED);
        let claims = claims(1);
        insert_all(&store, &claims).await;
        // Insert again: existing keys by another attempt, and new keys.
        let again: Vec<_> =
            claims.iter().map(|(id, _)| (*id, claim(AttemptId::random()))).chain(self::claims(100)).collect();
        let found = join_all(again.iter().map(|(id, claim)| store.insert(id, claim))).await;
        for (n, found) in found.into_iter().enumerate() {
            let there = found.unwrap().map(|found| *found.record);
            assert_eq!(there.as_ref(), claims.get(n).map(|(_, claim)| claim), "{url}");
        }
        // Completions: of existing records, absent ones, and those of another attempt.
        let (gone, theirs) = (self::claims(200), self::claims(300));
        insert_all(&store, &theirs).await;
        let taken = theirs.iter().map(|(id, _)| (*id, claim(AttemptId::random()))).collect();
        let claims = [claims, gone, taken].concat();
        let ends: Vec<_> = claims.iter().map(|(_, claim)| (claim.version(), completed(claim.attempt))).collect();
        replace_all(&store, &claims, &ends, &theirs, &url).await;
        let most = "SELECT string_agg(rows::text, ' ' ORDER BY kind) FROM (SELECT kind, max(rows) rows FROM counted GROUP BY kind) m";
        assert_eq!(server.sql(&database_of(&url), most), format!("{MANY} {MANY}"), "{url}");
    }
}

/// The sweep works this way.
#[tokio::test]
async fn concurrent_updates_and_deletes_are_batched_into_one_statement() {
    let pooled = |url: String| url.replace(&POSTGRES_15.address.to_string(), &PGBOUNCER.address.to_string());
    for (server, url) in [
        (&*POSTGRES_15, POSTGRES_15.database()),
        (&*POSTGRES_18, POSTGRES_18.database()),
        (&*POSTGRES_15, pooled(POSTGRES_15.database())),
    ] {
        let store = over_one_connection(&url).await;
        let (ours, gone, theirs) = (claims(1), claims(100), claims(200));
        insert_all(&store, &ours).await;
        insert_all(&store, &theirs).await;
        server.sql(&database_of(&url), COUNTED);
        let taken = theirs.iter().map(|(id, _)| (*id, claim(AttemptId::random()))).collect();
        let all = [ours, gone, taken].concat();
        let lost: Vec<_> = all.iter().map(|(_, claim)| (claim.version(), unknown(claim.attempt))).collect();
        replace_all(&store, &all, &lost, &theirs, &url).await;
        let removed = all.iter().zip(&lost).map(|((id, _), (_, lost))| store.remove(id, lost.version()));
        for (n, removed) in join_all(removed).await.into_iter().enumerate() {
            assert_eq!(removed.unwrap(), n < MANY, "{url}: {n}");
        }
        for (n, (id, _)) in all.iter().enumerate() {
            assert_eq!(store.get(id).await.unwrap().is_some(), n / MANY == 2, "{url}: {n}");
        }
        let most = "SELECT string_agg(kind || ' ' || rows, ', ' ORDER BY kind) \
             FROM (SELECT kind, max(rows) rows FROM counted GROUP BY kind) m";
        assert_eq!(server.sql(&database_of(&url), most), format!("DELETE {MANY}, UPDATE {MANY}"), "{url}");
    }
}

/// Updates and deletes of a batch skip a locked row and apply the rest at once.
#[tokio::test]
async fn locked_row_in_batch_is_skipped_until_released() {
    let url = POSTGRES_15.database();
    let store = Arc::new(over_one_connection(&url).await);
    let claims = claims(1);
    insert_all(&store, &claims).await;
    let (locker, watcher) = (another(&url).await, another(&url).await);
    let locked = id(MANY / 2);
    locker.batch_execute("BEGIN").await.unwrap();
    locker.query("SELECT FROM onceward.records WHERE id = $1 FOR UPDATE", &[&&locked.0[..]]).await.unwrap();
    let mut all = JoinSet::new();
    for (id, claim) in claims.clone() {
        let store = Arc::clone(&store);
        all.spawn(async move {
            assert_eq!(
                store.compare_and_swap(&id, claim.version(), &unknown(claim.attempt)).await.unwrap(),
                Cas::Swapped
            );
        });
    }
    let until = Instant::now() + HEALED;
    let others = i64::try_from(MANY - 1).unwrap();
    while watcher
        .query_one("SELECT count(*) FROM onceward.records WHERE stage = 4", &[])
        .await
        .unwrap()
        .get::<_, i64>(0)
        != others
    {
        assert!(Instant::now() < until, "one that is locked holds up its neighbours");
    }
    locker.batch_execute("COMMIT").await.unwrap();
    all.join_all().await;
    assert_eq!(*store.get(&locked).await.unwrap().unwrap().record, unknown(claims[MANY / 2 - 1].1.attempt));
}

#[tokio::test]
async fn crash_loses_no_batched_write() {
    // Without the statement's own setting, commits would wait for the WAL writer, which runs every
    // ten seconds.
    let mut server = Postgres::start(15, "wal_writer_delay = 10s\nautovacuum = off");
    let url = server.database();
    server.sql("postgres", &format!("ALTER DATABASE {} SET synchronous_commit = off", database_of(&url)));
    let store = over_one_connection(&url).await;
    let claims = claims(1);
    insert_all(&store, &claims).await;
    server.stop("immediate");
    server.start_again();
    let ends: Vec<_> = claims.iter().map(|(_, claim)| (claim.version(), completed(claim.attempt))).collect();
    let ended = claims.iter().zip(&ends).map(|((id, _), (over, end))| store.compare_and_swap(id, *over, end));
    let ended = timeout(HEALED, join_all(ended)).await.unwrap();
    assert!(ended.into_iter().all(|ended| ended.unwrap() == Cas::Swapped), "a claim was forgotten");
    server.stop("immediate");
    server.start_again();
    for ((id, _), (_, end)) in claims.iter().zip(&ends) {
        let found = timeout(HEALED, store.get(id)).await.unwrap().unwrap();
        assert_eq!(found.map(|found| *found.record).as_ref(), Some(end), "an end was forgotten");
    }
    let lost: Vec<_> = claims.iter().map(|(_, claim)| unknown(claim.attempt)).collect();
    let replaced = claims.iter().zip(ends.iter().zip(&lost));
    let replaced =
        join_all(replaced.map(|((id, _), ((_, end), lost))| store.compare_and_swap(id, end.version(), lost))).await;
    assert!(replaced.into_iter().all(|replaced| replaced.unwrap() == Cas::Swapped));
    server.stop("immediate");
    server.start_again();
    let removed = claims.iter().zip(&lost).map(|((id, _), lost)| store.remove(id, lost.version()));
    let removed = timeout(HEALED, join_all(removed)).await.unwrap();
    assert!(removed.into_iter().all(Result::unwrap), "what was replaced was forgotten");
    server.stop("immediate");
    server.start_again();
    for (id, _) in &claims {
        assert_eq!(timeout(HEALED, store.get(id)).await.unwrap().unwrap(), None, "a removal was forgotten");
    }
}

#[tokio::test]
async fn locked_row_delays_no_batch_neighbor() {
    let url = POSTGRES_15.database();
    let store = PostgresStore::open(&url).await.unwrap();
    let locker = another(&url).await;
    for n in 0.. {
        let claims = claims(1 + n * MANY);
        insert_all(&store, &claims).await;
        locker.execute("DELETE FROM onceward.records WHERE stage = 2", &[]).await.unwrap();
        let locked = claims[MANY / 2].0.0.as_slice();
        locker.batch_execute("BEGIN").await.unwrap();
        locker.execute("SELECT FROM onceward.records WHERE id = $1 FOR UPDATE", &[&locked]).await.unwrap();
        let ends: Vec<_> = claims.iter().map(|(_, claim)| (claim.version(), completed(claim.attempt))).collect();
        let mut all: Vec<_> =
            claims.iter().zip(&ends).map(|((id, _), (over, end))| store.compare_and_swap(id, *over, end)).collect();
        let mut held = all.remove(MANY / 2);
        let began = Instant::now();
        let ended = tokio::select! {
            biased;
            ended = timeout(PATIENCE, join_all(all)) => ended.expect("a locked row holds up its neighbours"),
            ended = &mut held => panic!("it was locked: {ended:?}"),
        };
        let took = began.elapsed();
        for ended in ended {
            assert_eq!(ended.unwrap(), Cas::Swapped);
        }
        locker.batch_execute("COMMIT").await.unwrap();
        assert_eq!(held.await.unwrap(), Cas::Swapped);
        // The row delayed its batch for a moment, then was retried alone. On a busy machine even
        // that takes a while.
        if took < Duration::from_millis(900) && is_counted(&store, &locker, "xact_rollback", HEALED).await {
            return;
        }
        assert!(n < 5, "its neighbours wait as long as it does: {took:?}");
    }
}

#[tokio::test]
async fn rejected_row_fails_no_batch_neighbor() {
    let url = POSTGRES_15.database();
    let store = over_one_connection(&url).await;
    let refused = id(MANY / 2).0.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let rule =
        format!("ALTER TABLE onceward.records ADD CHECK (id <> '\\x{refused}' AND (id < '\\x80' OR stage <> 2))");
    POSTGRES_15.sql(&database_of(&url), &rule);
    let claims = claims(1);
    for ((key, _), inserted) in
        claims.iter().zip(join_all(claims.iter().map(|(id, claim)| store.insert(id, claim))).await)
    {
        match inserted {
            Ok(found) => assert_eq!((found, *key == id(MANY / 2)), (None, false)),
            Err(error) => {
                assert_eq!((error.applied(), *key), (Applied::No, id(MANY / 2)), "{error}");
                assert!(chain(&error).contains("check constraint"), "{}", chain(&error));
            }
        }
    }
    let ends: Vec<_> = claims.iter().map(|(_, claim)| (claim.version(), completed(claim.attempt))).collect();
    let ended =
        join_all(claims.iter().zip(&ends).map(|((id, _), (over, end))| store.compare_and_swap(id, *over, end))).await;
    let mut failed = 0;
    for ((key, _), ended) in claims.iter().zip(ended) {
        match ended {
            Ok(Cas::Swapped) => assert!(key.0[0] < 0x80),
            Ok(ended) => assert_eq!((ended, *key), (Cas::Conflict(None), id(MANY / 2))),
            Err(error) => {
                assert_eq!((error.applied(), key.0[0] < 0x80), (Applied::No, false), "{error}");
                failed += 1;
            }
        }
    }
    assert!(failed > 0 && failed < MANY - 1, "{failed}");
}

#[tokio::test]
async fn batch_with_lost_response_is_recognized_per_row() {
    let (proxy, store) = behind_a_proxy().await;
    let claims = claims(1);
    proxy.set(Fault::NextAnswerLost);
    insert_all(&store, &claims).await;
    assert_eq!(proxy.lost(), 1);
    let ends: Vec<_> = claims.iter().map(|(_, claim)| (claim.version(), completed(claim.attempt))).collect();
    proxy.set(Fault::NextAnswerLost);
    let ended =
        join_all(claims.iter().zip(&ends).map(|((id, _), (over, end))| store.compare_and_swap(id, *over, end))).await;
    assert!(ended.into_iter().all(|ended| ended.unwrap() == Cas::Swapped), "its own end was taken for another's");
    assert_eq!(proxy.lost(), 2);
    // A record of another attempt is never mistaken for one's own, whatever response was lost.
    let others: Vec<_> = claims.iter().map(|(id, _)| (*id, claim(AttemptId::random()))).collect();
    proxy.set(Fault::NextAnswerLost);
    for (found, (_, end)) in
        join_all(others.iter().map(|(id, claim)| store.insert(id, claim))).await.into_iter().zip(&ends)
    {
        assert_eq!(*found.unwrap().expect("another's was taken for its own").record, *end);
    }
    assert_eq!(proxy.lost(), 3);
}

#[tokio::test]
async fn batches_in_opposite_orders_do_not_deadlock() {
    let url = POSTGRES_15.database();
    let database = database_of(&url);
    let slow = "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM pg_sleep(0.001); RETURN new; END $$; \
         CREATE TRIGGER dawdle BEFORE INSERT ON onceward.records FOR EACH ROW EXECUTE FUNCTION dawdle()";
    // A deadlock is detected before any statement times out.
    POSTGRES_15.sql("postgres", &format!("ALTER DATABASE {database} SET deadlock_timeout = '5ms'"));
    let stores = [over_one_connection(&url).await, over_one_connection(&url).await];
    POSTGRES_15.sql(&database, slow);
    for round in 0..10 {
        let forth = claims(1 + round * MANY);
        let back: Vec<_> = forth.iter().rev().map(|(id, _)| (*id, claim(AttemptId::random()))).collect();
        let ask = |at: usize, asked: Vec<(RecordId, Record)>| {
            let store = &stores[at];
            async move { join_all(asked.iter().map(|(id, claim)| store.insert(id, claim))).await }
        };
        let (first, second) = tokio::join!(ask(0, forth), ask(1, back));
        for (first, second) in first.into_iter().zip(second.into_iter().rev()) {
            let won = [first.unwrap(), second.unwrap()].iter().filter(|found| found.is_none()).count();
            assert_eq!(won, 1);
        }
    }
    drop(stores);
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(counted_at_the_end(&url, deadlocks).await, 0);
}

#[tokio::test]
async fn cached_plan_uses_the_index_on_a_grown_table() {
    for (server, url) in [(&*POSTGRES_15, POSTGRES_15.database()), (&*POSTGRES_18, POSTGRES_18.database())] {
        PostgresStore::open(&url).await.unwrap().insert(&id(9999), &claim(AttemptId::random())).await.unwrap();
        // A table of one page: a sequential scan is cheaper than the index now.
        server.sql(&database_of(&url), "VACUUM ANALYZE onceward.records");
        let scanned = "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'records'";
        let before = counted_at_the_end(&url, scanned).await;
        let store = over_one_connection(&url).await;
        for n in 0..10 {
            let claims = claims(1 + n * MANY);
            insert_all(&store, &claims).await;
            let ends: Vec<_> = claims.iter().map(|(_, claim)| (claim.version(), completed(claim.attempt))).collect();
            let ended = claims.iter().zip(&ends).map(|((id, _), (over, end))| store.compare_and_swap(id, *over, end));
            assert!(join_all(ended).await.into_iter().all(|ended| ended.unwrap() == Cas::Swapped));
            let (last, (_, end)) = (claims[0].0, &ends[0]);
            assert_eq!(*store.get(&last).await.unwrap().unwrap().record, *end);
            assert!(store.remove(&last, end.version()).await.unwrap());
            let lost: Vec<_> = claims[1..].iter().map(|(_, claim)| unknown(claim.attempt)).collect();
            let replaced = claims[1..].iter().zip(&ends[1..]).zip(&lost);
            let replaced = replaced.map(|(((id, _), (_, end)), lost)| store.compare_and_swap(id, end.version(), lost));
            assert!(join_all(replaced).await.into_iter().all(|replaced| replaced.unwrap() == Cas::Swapped));
            let removed = claims[1..].iter().zip(&lost).map(|((id, _), lost)| store.remove(id, lost.version()));
            assert!(join_all(removed).await.into_iter().all(Result::unwrap));
        }
        drop(store);
        assert_eq!(counted_at_the_end(&url, scanned).await, before, "{url}: it read the whole table");
    }
}

/// Returns a statistic of the server; backends report when they end, at the latest.
pub(super) async fn counted_at_the_end(url: &str, what: &str) -> i64 {
    let watcher = another(url).await;
    let until = Instant::now() + HEALED;
    let stands = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'onceward'";
    while !watcher.query(stands, &[]).await.unwrap().is_empty() {
        assert!(Instant::now() < until, "the store's connections do not end");
    }
    watcher.query_one(what, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousand_concurrent_claims_have_one_winner_per_key() {
    const KEYS: usize = 10;
    let url = POSTGRES_15.database();
    let mut racers = JoinSet::new();
    let stores = [0; 2].map(|_| PostgresStore::open(&url));
    let stores = join_all(stores).await.into_iter().map(|store| Arc::new(store.unwrap())).collect::<Vec<_>>();
    for n in 0..1000 {
        let store = Arc::clone(&stores[n % 2]);
        racers.spawn(async move {
            let claim = claim(AttemptId::random());
            let found = store.insert(&id(n / 2 % KEYS), &claim).await.unwrap();
            (n / 2 % KEYS, found.is_none(), found.map_or(claim, |found| *found.record))
        });
    }
    let raced = racers.join_all().await;
    for key in 0..KEYS {
        let of_this: Vec<_> = raced.iter().filter(|(raced, ..)| *raced == key).collect();
        assert_eq!(of_this.len(), 1000 / KEYS);
        assert_eq!(of_this.iter().filter(|(_, won, _)| *won).count(), 1, "key {key}");
        assert!(of_this.iter().all(|(.., seen)| *seen == of_this[0].2), "key {key}: they saw different winners");
    }
}

#[tokio::test]
async fn caller_dropped_before_send_cancels_the_operation() {
    let url = POSTGRES_15.database();
    let store = over_one_connection(&url).await;
    let (other, watcher) = (another(&url).await, another(&url).await);
    other.batch_execute("BEGIN; LOCK TABLE onceward.records").await.unwrap();
    let (first, held) = (id(1), claim(AttemptId::random()));
    let sent = store.insert(&first, &held);
    let rest = async {
        until_it_waits(&watcher).await;
        // The only connection is busy.
        let gone = claim(AttemptId::random());
        assert!(timeout(Duration::from_millis(10), store.insert(&id(2), &gone)).await.is_err());
        other.batch_execute("COMMIT").await.unwrap();
    };
    let (sent, ()) = tokio::join!(sent, rest);
    assert_eq!(sent.unwrap(), None);
    assert_eq!(store.get(&id(2)).await.unwrap(), None);
    assert_eq!(*store.get(&first).await.unwrap().unwrap().record, held);
}

#[tokio::test]
async fn operations_on_one_key_keep_their_order() {
    let url = POSTGRES_15.database();
    let store = PostgresStore::open(&url).await.unwrap();
    for n in 0..20 {
        // Other keys keep all connections busy.
        let others = claims(1000 + n * MANY);
        let others = join_all(others.iter().map(|(id, claim)| store.insert(id, claim)));
        let (key, first, second) = (id(n), claim(AttemptId::random()), claim(AttemptId::random()));
        let lost = unknown(first.attempt);
        let asked = async {
            tokio::join!(
                store.insert(&key, &first),
                store.get(&key),
                store.insert(&key, &second),
                store.get(&key),
                store.compare_and_swap(&key, first.version(), &lost),
                store.remove(&key, lost.version()),
            )
        };
        let (_, (inserted, nothing, inserted_again, found, replaced, removed)) = tokio::join!(others, asked);
        assert_eq!(inserted.unwrap(), None);
        // Updates go before queued claims and reads; each group keeps its order.
        assert_eq!(replaced.unwrap(), Cas::Swapped);
        assert!(removed.unwrap());
        assert_eq!(nothing.unwrap(), None);
        assert_eq!(inserted_again.unwrap(), None);
        assert_eq!(*found.unwrap().unwrap().record, second);
    }
}

/// With one connection and a continuing burst of duplicates, the claim holder's update comes next.
#[tokio::test]
async fn burst_of_duplicates_does_not_delay_the_claim_holder() {
    const STORM: usize = 500;
    let url = POSTGRES_15.database();
    let store = over_one_connection(&url).await;
    let (key, held) = (id(1), claim(AttemptId::random()));
    assert_eq!(store.insert(&key, &held).await.unwrap(), None);
    let duplicates: Vec<_> = (0..STORM).map(|_| claim(AttemptId::random())).collect();
    let end = completed(held.attempt);
    let storm = join_all(duplicates.iter().map(|duplicate| store.insert(&key, duplicate)));
    let (found, ended) = tokio::join!(storm, store.compare_and_swap(&key, held.version(), &end));
    assert_eq!(ended.unwrap(), Cas::Swapped);
    let early = found.into_iter().map(|found| *found.unwrap().expect("it is held").record);
    let early = early.filter(|found| *found == held).count();
    // The first duplicate was already in flight.
    assert!(early <= 1, "{early} of {STORM} duplicates went before the holder");
}

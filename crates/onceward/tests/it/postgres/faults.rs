//! Faults of servers, roles and the network.

use std::sync::Arc;
use std::time::Duration;

use onceward::clock::ManualClock;
use onceward::decide::{EffectiveState, effective_state};
use onceward::record::AttemptId;
use onceward::store::postgres::{Settings, migrate, schema_script};
use onceward::store::{Applied, Cas, PostgresStore, Store};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::records::{HEALED, LEASE, chain, claim, claims_again, completed, id, unknown};
use super::{POSTGRES_15, database_of};
use crate::support::fault_proxy::{Fault, FaultProxy};
use crate::support::postgres::{PgBouncer, Postgres};
use crate::support::waiting::PATIENCE;

/// Opens a store that connects through a proxy.
pub(super) async fn behind_a_proxy() -> (FaultProxy, PostgresStore) {
    behind_a_proxy_with(|settings| settings).await
}

async fn behind_a_proxy_with(settings: impl FnOnce(Settings) -> Settings) -> (FaultProxy, PostgresStore) {
    let url = POSTGRES_15.database();
    let proxy = FaultProxy::before(POSTGRES_15.address);
    let url = url.replace(&POSTGRES_15.address.to_string(), &proxy.address.to_string());
    // One connection, so that the next response is that of the next statement.
    let url = url.replace("connections=4", "connections=1");
    let store = PostgresStore::with(settings(url.parse().unwrap())).await.unwrap();
    assert_eq!(store.get(&id(0)).await.unwrap(), None);
    (proxy, store)
}

#[tokio::test]
async fn claim_with_lost_response_is_recognized() {
    let (proxy, store) = behind_a_proxy().await;
    for n in 1..=5 {
        proxy.set(Fault::NextAnswerLost);
        let claim = claim(AttemptId::random());
        assert_eq!(store.insert(&id(n), &claim).await.unwrap(), None, "its own claim was taken for another's");
        assert_eq!(proxy.lost(), n);
        assert_eq!(*store.get(&id(n)).await.unwrap().unwrap().record, claim);
    }
}

#[tokio::test]
async fn completion_with_lost_response_is_recognized() {
    let (proxy, store) = behind_a_proxy().await;
    for n in 1..=5 {
        let claim = claim(AttemptId::random());
        store.insert(&id(n), &claim).await.unwrap();
        let end = completed(claim.attempt);
        proxy.set(Fault::NextAnswerLost);
        assert_eq!(store.compare_and_swap(&id(n), claim.version(), &end).await.unwrap(), Cas::Swapped);
        proxy.set(Fault::NextAnswerLost);
        assert!(store.remove(&id(n), end.version()).await.unwrap());
        assert_eq!(proxy.lost(), 2 * n);
        assert_eq!(store.get(&id(n)).await.unwrap(), None);
    }
}

#[tokio::test]
async fn unreachable_server_applies_nothing_and_is_reconnected() {
    let (proxy, store) = behind_a_proxy().await;
    proxy.set(Fault::Down);
    // The operation in flight when the server went down may have been applied; later ones were not
    // sent.
    let _ = store.get(&id(1)).await;
    let error = store.insert(&id(1), &claim(AttemptId::random())).await.unwrap_err();
    assert_eq!(error.applied(), Applied::No, "{error}");
    proxy.heal();
    claims_again(&store, 1).await;
}

#[tokio::test]
async fn hung_connection_is_replaced() {
    for fault in [Fault::Hanging, Fault::AnswersStuck, Fault::AsksStuck] {
        let (proxy, store) = behind_a_proxy().await;
        proxy.set(fault);
        let first = claim(AttemptId::random());
        let passed = proxy.passed();
        assert!(timeout(Duration::from_secs(2), store.insert(&id(1), &first)).await.is_err(), "{fault:?}");
        assert_eq!(proxy.passed() > passed, fault == Fault::AnswersStuck, "{fault:?}");
        proxy.heal();
        claims_again(&store, 2).await;
        // The delayed claim is applied completely, or not at all.
        let there = store.insert(&id(1), &claim(AttemptId::random())).await.unwrap();
        assert!(there.is_none_or(|there| *there.record == first), "{fault:?}");
    }
}

#[tokio::test]
async fn slow_network_only_adds_latency() {
    let (proxy, store) = behind_a_proxy().await;
    proxy.set(Fault::Slow(Duration::from_millis(100)));
    let claim = claim(AttemptId::random());
    let began = Instant::now();
    assert_eq!(store.insert(&id(1), &claim).await.unwrap(), None);
    let end = completed(claim.attempt);
    assert_eq!(store.compare_and_swap(&id(1), claim.version(), &end).await.unwrap(), Cas::Swapped);
    assert!(began.elapsed() >= Duration::from_millis(400), "nothing was slow, so nothing is shown");
}

#[tokio::test]
async fn terminated_idle_backend_causes_no_error() {
    let url = POSTGRES_15.database();
    let store = PostgresStore::open(&url).await.unwrap();
    for n in 0..20 {
        assert_eq!(store.insert(&id(n), &claim(AttemptId::random())).await.unwrap(), None);
        if n % 5 == 0 {
            let ended = POSTGRES_15.sql(
                &database_of(&url),
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                 WHERE datname = current_database() AND pid <> pg_backend_pid()",
            );
            assert_ne!(ended, "0");
        }
    }
}

#[tokio::test]
async fn crash_loses_nothing_despite_database_defaults() {
    // Without the statement's own setting, commits would wait for the WAL writer, which runs every
    // ten seconds.
    let mut server = Postgres::start(15, "wal_writer_delay = 10s\nautovacuum = off");
    let url = server.database();
    let database = database_of(&url);
    server.sql("postgres", &format!("ALTER DATABASE {database} SET synchronous_commit = off"));
    let store = PostgresStore::open(&url).await.unwrap();
    last_write_of_each_kind_survives(&store, || {
        server.stop("immediate");
        server.start_again();
    })
    .await;
}

/// Checks each kind of statement as the last one before a crash: a later one would flush it to
/// disk.
pub(super) async fn last_write_of_each_kind_survives(store: &PostgresStore, mut crash: impl FnMut()) {
    for (n, kind) in ["a claim", "an answer", "an unknown", "a removal", "a named value"].into_iter().enumerate() {
        let claim = claim(AttemptId::random());
        let ends = [completed(claim.attempt), unknown(claim.attempt)];
        if kind == "a named value" {
            assert_eq!(store.get_or_insert_meta("name", b"kept").await.unwrap(), "kept");
        } else {
            assert_eq!(store.insert(&id(n), &claim).await.unwrap(), None);
        }
        let last = match kind {
            "a claim" => Some(&claim),
            "an answer" | "an unknown" => {
                let end = &ends[n - 1];
                assert_eq!(store.compare_and_swap(&id(n), claim.version(), end).await.unwrap(), Cas::Swapped);
                Some(end)
            }
            "a removal" => {
                assert!(store.remove(&id(n), claim.version()).await.unwrap());
                None
            }
            _ => None,
        };
        crash();
        if kind == "a named value" {
            assert_eq!(
                timeout(HEALED, store.get_or_insert_meta("name", b"another")).await.unwrap().unwrap(),
                "kept",
                "{kind}"
            );
        }
        let found = timeout(HEALED, store.get(&id(n))).await.unwrap().unwrap();
        assert_eq!(found.map(|found| *found.record).as_ref(), last, "{kind}");
    }
}

#[tokio::test]
async fn restarted_server_restarts_leases() {
    let mut server = Postgres::start(15, "");
    let url = server.database();
    let database = database_of(&url);
    let clock = ManualClock::default();
    // Through a pooler no connection breaks: a statement on an open connection reaches the new
    // server.
    let pooler = PgBouncer::before(server.address);
    let pooled = url.replace(&server.address.to_string(), &pooler.address.to_string());
    let open =
        async |url: &str| PostgresStore::with_clock(url.parse().unwrap(), Arc::new(clock.clone())).await.unwrap();
    let stores = [open(&url).await, open(&pooled).await];
    let held = claim(AttemptId::random());
    assert_eq!(stores[0].insert(&id(1), &held).await.unwrap(), None);
    let ages = async || {
        let mut ages = Vec::new();
        for store in &stores {
            let found = store.get(&id(1)).await.unwrap().unwrap();
            ages.push((found.age, effective_state(&found) == EffectiveState::Lost));
        }
        ages
    };
    clock.advance(LEASE * 2);
    server.sql(&database, "UPDATE onceward.records SET written = written - interval '30 min'");
    assert!(ages().await.iter().all(|(_, is_lost)| *is_lost), "it was not aged, so nothing is shown");
    server.stop("immediate");
    server.start_again();
    // While the server was down, the claim holder could not renew.
    let after = ages().await;
    assert!(
        after.iter().all(|(age, is_lost)| !is_lost && *age < LEASE / 2),
        "a live holder's claim is lost: {after:?}"
    );
    assert_eq!(
        stores[0].due(10).await.unwrap().iter().filter(|(_, due)| effective_state(due) == EffectiveState::Lost).count(),
        0
    );
    clock.advance(LEASE * 2);
    assert!(ages().await.iter().all(|(_, is_lost)| *is_lost), "nobody would ever find its holder lost");
}

#[tokio::test]
async fn serializable_default_isolation_causes_no_error() {
    let url = POSTGRES_15.database();
    let isolation = format!("ALTER DATABASE {} SET default_transaction_isolation = 'serializable'", database_of(&url));
    POSTGRES_15.sql("postgres", &isolation);
    let store = Arc::new(PostgresStore::open(&url).await.unwrap());
    let other = Arc::new(PostgresStore::open(&url).await.unwrap());
    for n in 0..20 {
        let mut racers = JoinSet::new();
        for racer in 0..2 {
            let store = Arc::clone(if racer == 0 { &store } else { &other });
            racers.spawn(async move { store.insert(&id(n), &claim(AttemptId::random())).await.unwrap().is_none() });
        }
        assert_eq!(racers.join_all().await.into_iter().filter(|won| *won).count(), 1);
    }
}

#[tokio::test]
async fn locked_row_delays_no_other_key() {
    let url = POSTGRES_15.database().replace("connections=4", "connections=1");
    let store = PostgresStore::open(&url).await.unwrap();
    let held = claim(AttemptId::random());
    store.insert(&id(1), &held).await.unwrap();
    let plain = url.split('?').next().unwrap();
    let (locker, connection) = tokio_postgres::connect(plain, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    locker.batch_execute("BEGIN; SELECT FROM onceward.records FOR UPDATE").await.unwrap();
    let (version, locked_id) = (held.version(), id(1));
    let mut renewal = store.compare_and_swap(&locked_id, version, &held);
    let others = async {
        for n in 2..20 {
            assert_eq!(store.insert(&id(n), &claim(AttemptId::random())).await.unwrap(), None);
        }
        assert_eq!(*store.get(&id(1)).await.unwrap().unwrap().record, held);
    };
    tokio::select! {
        biased;
        renewed = &mut renewal => panic!("it was locked: {renewed:?}"),
        ended = tokio::time::timeout(PATIENCE, others) => {
            ended.expect("a locked row delays the operations behind it");
        }
    }
    locker.batch_execute("COMMIT").await.unwrap();
    assert_eq!(renewal.await.unwrap(), Cas::Swapped);
}

#[tokio::test]
async fn serving_role_needs_only_documented_grants() {
    let url = POSTGRES_15.database();
    let database = database_of(&url);
    let role = format!("serving_{database}");
    POSTGRES_15.sql(&database, &format!("CREATE ROLE {role} LOGIN CONNECTION LIMIT 3"));
    let serving = url.replace("postgres@", &format!("{role}@"));
    let error = chain(&PostgresStore::open(&serving).await.unwrap_err());
    assert!(error.contains("`onceward migrate`"), "{error}");
    assert_eq!(migrate(&url).await.unwrap(), 0);
    let grants: String = schema_script()
        .lines()
        .filter_map(|line| line.strip_prefix("-- GRANT ").map(|line| format!("GRANT {line}\n")))
        .collect();
    assert!(grants.lines().count() == 3, "{grants}");
    POSTGRES_15.sql(&database, &grants.replace("serving", &role));
    let store = Arc::new(PostgresStore::open(&serving).await.unwrap());
    // The role gets fewer connections than the store wants: keys wait for the existing ones.
    claims_again(&store, 900).await;
    POSTGRES_15.sql(&database, &format!("ALTER ROLE {role} CONNECTION LIMIT 1"));
    let mut all = JoinSet::new();
    for n in 0..200 {
        let (store, id) = (Arc::clone(&store), id(n));
        all.spawn(async move { store.insert(&id, &claim(AttemptId::random())).await });
    }
    for claimed in all.join_all().await {
        assert_eq!(claimed.unwrap(), None);
    }
    // Without any connection, callers get the cause, and learn that nothing was applied.
    POSTGRES_15.sql(&database, &format!("ALTER ROLE {role} CONNECTION LIMIT 0"));
    POSTGRES_15.sql(
        &database,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid()",
    );
    let until = Instant::now() + HEALED;
    let error = loop {
        match store.insert(&id(500), &claim(AttemptId::random())).await {
            Err(error) if error.applied() == Applied::No => break error,
            _ => assert!(Instant::now() < until, "it was never refused"),
        }
    };
    assert!(chain(&error).contains("too many connections"), "{}", chain(&error));
    POSTGRES_15.sql(&database, &format!("ALTER ROLE {role} CONNECTION LIMIT 50"));
    claims_again(&store, 1000).await;
}

#[tokio::test]
async fn printed_schema_equals_the_migrated_one() {
    let url = POSTGRES_15.database();
    POSTGRES_15.sql(&database_of(&url), &schema_script());
    assert_eq!(migrate(&url).await.unwrap(), 1, "it is up to date");
    // Concurrent migrations create it once.
    let url = POSTGRES_15.database();
    let mut all = JoinSet::new();
    for _ in 0..8 {
        let url = url.clone();
        all.spawn(async move { PostgresStore::open(&url).await.map(drop) });
    }
    for opened in all.join_all().await {
        opened.unwrap();
    }
}

#[tokio::test]
async fn newer_schema_is_rejected() {
    let url = POSTGRES_15.database();
    migrate(&url).await.unwrap();
    POSTGRES_15.sql(&database_of(&url), "INSERT INTO onceward.schema_version (version) VALUES (99)");
    for error in [PostgresStore::open(&url).await.unwrap_err(), migrate(&url).await.unwrap_err()] {
        assert!(error.to_string().contains("has version 99"), "{error}");
    }
}

#[tokio::test]
async fn unsafe_settings_are_rejected_or_reported() {
    let url = POSTGRES_15.database();
    let error = chain(&PostgresStore::open(&url.replace("&accept=fsync-off", "")).await.unwrap_err());
    assert!(error.contains("fsync is off") && error.contains("?accept=fsync-off"), "{error}");
    let facts = PostgresStore::open(&url).await.unwrap().info();
    assert!(facts.survives_kill && !facts.survives_power_loss, "{facts:?}");
    assert!(facts.durability.contains("fsync is off"), "{facts:?}");
}

#[tokio::test]
async fn server_that_becomes_unsafe_gets_no_more_claims() {
    for setting in ["fsync", "full_page_writes"] {
        let server = Postgres::start(15, "fsync = on");
        let url = server.database().replace("&accept=fsync-off", "");
        let turn = |to: &str| {
            server.sql("postgres", &format!("ALTER SYSTEM SET {setting} = {to}"));
            server.sql("postgres", "SELECT pg_reload_conf()");
        };
        let store = PostgresStore::open(&url).await.unwrap();
        let [first, second, lost] = [0; 3].map(|_| claim(AttemptId::random()));
        for (n, held) in [&first, &second, &lost].into_iter().enumerate() {
            assert_eq!(store.insert(&id(n), held).await.unwrap(), None);
        }
        turn("off");
        let until = Instant::now() + PATIENCE;
        let mut n = 10;
        let error = loop {
            match store.insert(&id(n), &claim(AttemptId::random())).await {
                Err(error) => break error,
                Ok(_) => assert!(Instant::now() < until, "it goes on over a server whose {setting} is off"),
            }
            n += 1;
            tokio::task::yield_now().await;
        };
        assert_eq!(error.applied(), Applied::No, "{error}");
        assert!(error.to_string().contains(&format!("{setting} is off")), "{error}");
        // A takeover is a claim.
        let taken_over = store.compare_and_swap(&id(2), lost.version(), &claim(AttemptId::random())).await;
        assert_eq!(taken_over.unwrap_err().applied(), Applied::No);
        // Attempts in flight complete, also over another connection, and known records are
        // returned.
        assert_eq!(store.compare_and_swap(&id(0), first.version(), &first).await.unwrap(), Cas::Swapped);
        assert_eq!(
            store.compare_and_swap(&id(0), first.version(), &completed(first.attempt)).await.unwrap(),
            Cas::Swapped
        );
        let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'onceward'";
        assert_ne!(server.sql("postgres", ended), "0");
        assert_eq!(
            store.compare_and_swap(&id(1), second.version(), &completed(second.attempt)).await.unwrap(),
            Cas::Swapped
        );
        let known = store.insert(&id(0), &claim(AttemptId::random())).await.unwrap();
        assert_eq!(*known.expect("it is known").record, completed(first.attempt));
        assert!(!store.info().survives_power_loss);
        assert_eq!(store.due(10).await.unwrap(), []);
        assert_eq!(store.stats().await.unwrap().completed, 2);
        // If the setting is accepted, claims continue.
        let word = setting.replace('_', "-");
        let accepting = PostgresStore::open(&format!("{url}&accept={word}-off")).await.unwrap();
        assert_eq!(accepting.insert(&id(3), &claim(AttemptId::random())).await.unwrap(), None);
        turn("on");
        claims_again(&store, 1_000_000).await;
    }
}

#[tokio::test]
async fn dropped_schema_is_recreated_with_another_identity() {
    let pooler = PgBouncer::before(POSTGRES_15.address);
    for is_pooled in [false, true] {
        let url = POSTGRES_15.database();
        let database = database_of(&url);
        let url = match is_pooled {
            true => url.replace(&POSTGRES_15.address.to_string(), &pooler.address.to_string()),
            false => url,
        };
        let (store, other) = (PostgresStore::open(&url).await.unwrap(), PostgresStore::open(&url).await.unwrap());
        assert_eq!(store.get_or_insert_meta("identity", b"first").await.unwrap(), "first");
        assert_eq!(store.insert(&id(1), &claim(AttemptId::random())).await.unwrap(), None);
        assert_eq!(other.get(&id(2)).await.unwrap(), None);
        POSTGRES_15.sql(&database, "DROP SCHEMA onceward CASCADE");
        let (ours, theirs) = tokio::join!(
            timeout(HEALED, store.get_or_insert_meta("identity", b"second")),
            timeout(HEALED, other.get_or_insert_meta("identity", b"third"))
        );
        let identity = ours.unwrap().unwrap();
        assert!(identity == "second" || identity == "third", "{identity:?}");
        assert_eq!(identity, theirs.unwrap().unwrap());
        claims_again(&store, 10).await;
        claims_again(&other, 1000).await;
        assert_eq!(store.get(&id(1)).await.unwrap(), None);
        // A store that detects it by a claim recovers, too.
        POSTGRES_15.sql(&database, "DROP SCHEMA onceward CASCADE");
        claims_again(&store, 2000).await;
    }
}

#[tokio::test]
async fn dropped_schema_without_permission_is_reported_and_retried() {
    let url = POSTGRES_15.database();
    let database = database_of(&url);
    let role = format!("waiting_{database}");
    POSTGRES_15.sql(&database, &format!("CREATE ROLE {role} LOGIN"));
    let make = async || {
        assert_eq!(migrate(&url).await.unwrap(), 0);
        let script = schema_script();
        for grant in script.lines().filter_map(|line| line.strip_prefix("-- GRANT ")) {
            POSTGRES_15.sql(&database, &format!("GRANT {}", grant.replace("serving", &role)));
        }
    };
    make().await;
    let store = PostgresStore::open(&url.replace("postgres@", &format!("{role}@"))).await.unwrap();
    claims_again(&store, 1).await;
    POSTGRES_15.sql(&database, "DROP SCHEMA onceward CASCADE");
    let error = store.insert(&id(2), &claim(AttemptId::random())).await.unwrap_err();
    assert_eq!(error.applied(), Applied::No, "{error}");
    assert!(chain(&error).contains("`onceward migrate`"), "{}", chain(&error));
    make().await;
    claims_again(&store, 3).await;
}

#[tokio::test]
async fn unsent_operation_is_rejected_before_the_engine_times_out() {
    let (proxy, store) = behind_a_proxy_with(|settings| settings.timeout(Duration::from_secs(1))).await;
    let engine = Duration::from_secs(2);
    proxy.set(Fault::Hanging);
    let (first, second) = (claim(AttemptId::random()), claim(AttemptId::random()));
    // The only connection is busy with a read, which blocks another key and the same key.
    let (key, other) = (id(1), id(2));
    let (_, waited, waited_behind) = tokio::join!(
        timeout(engine, store.get(&key)),
        timeout(engine, store.insert(&other, &first)),
        timeout(engine, store.insert(&key, &second)),
    );
    // Without an open connection, none can be opened.
    proxy.cut();
    let last = claim(AttemptId::random());
    let unmade = timeout(engine, store.insert(&id(3), &last)).await;
    for (what, told) in [("another key", waited), ("the same key", waited_behind), ("no connection", unmade)] {
        let error = told.unwrap_or_else(|_| panic!("{what}: the engine gave up first")).unwrap_err();
        assert_eq!(error.applied(), Applied::No, "{what}: {error}");
    }
    proxy.heal();
    claims_again(&store, 10).await;
    for n in 1..=3 {
        assert_eq!(store.get(&id(n)).await.unwrap(), None, "{n}: it was sent after it was refused");
    }
}

#[tokio::test]
async fn completion_is_a_hot_update() {
    let url = POSTGRES_15.database();
    let store = Arc::new(PostgresStore::open(&url).await.unwrap());
    let mut all = JoinSet::new();
    for n in 0..1000 {
        let store = Arc::clone(&store);
        all.spawn(async move {
            let claim = claim(AttemptId::random());
            store.insert(&id(n), &claim).await.unwrap();
            store.compare_and_swap(&id(n), claim.version(), &completed(claim.attempt)).await.unwrap();
        });
    }
    all.join_all().await;
    drop(store);
    let hot = "SELECT pg_stat_force_next_flush(); SELECT n_tup_hot_upd * 100 / n_tup_upd \
         FROM pg_stat_user_tables WHERE relname = 'records' AND n_tup_upd >= 1000";
    let until = Instant::now() + HEALED;
    let percent: u32 = loop {
        // Backends report their counts with a delay, or when they end.
        if let Ok(percent) = POSTGRES_15.sql(&database_of(&url), hot).trim().parse() {
            break percent;
        }
        assert!(Instant::now() < until, "the server does not tell its counts");
    };
    assert!(percent >= 90, "{percent} % of the updates stayed beside");
}

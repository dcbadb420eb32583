//! Standbys: they reject claims, they take over, and a primary waits for synchronous ones.

use std::sync::Arc;
use std::time::Duration;

use onceward::record::AttemptId;
use onceward::store::{Applied, PostgresStore, Store};
use tokio::time::{Instant, timeout};

use super::database_of;
use super::load::{Load, assert_kept};
use super::records::{HEALED, chain, claim, claims_again, id};
use crate::support::fault_proxy::FaultProxy;
use crate::support::postgres::{PgBouncer, Postgres};
use crate::support::waiting::{PATIENCE, poll};

#[tokio::test]
async fn failover_is_followed_and_former_primary_is_rejected() {
    let mut primary = Postgres::start(15, "");
    let url = primary.database();
    let standby = primary.standby();
    let alone = url.replace(&primary.address.to_string(), &standby.address.to_string());
    let error = chain(&PostgresStore::open(&alone).await.unwrap_err());
    assert!(error.contains("the server is a standby"), "{error}");
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", standby.address.port(), primary.address.port());
    let both = format!("{}&target_session_attrs=read-write", url.replace(&primary.address.to_string(), &hosts));
    let store = PostgresStore::open(&both).await.unwrap();
    let claim = claim(AttemptId::random());
    assert_eq!(store.insert(&id(1), &claim).await.unwrap(), None);
    assert!(store.info().durability.contains("no standby is synchronous"), "{}", store.info().durability);
    let caught_up =
        format!("SELECT pg_last_wal_replay_lsn() >= '{}'", primary.sql("postgres", "SELECT pg_current_wal_lsn()"));
    while standby.sql("postgres", &caught_up) != "t" {}
    primary.stop("immediate");
    standby.promote();
    claims_again(&store, 2).await;
    assert_eq!(*store.get(&id(1)).await.unwrap().unwrap().record, claim);
    // The old primary returns as if nothing had happened, and the new one stops: its data lack the
    // later writes.
    primary.start_again();
    standby.stop("immediate");
    let error = chain(&store.insert(&id(500), &claim).await.unwrap_err());
    assert!(error.contains("a former primary after a failover"), "{error}");
}

/// A pooler hides the switch, since no client connection breaks.
#[tokio::test]
async fn pooler_back_to_former_primary_gets_no_claims() {
    let primary = Postgres::start(15, "");
    let url = primary.database();
    let standby = primary.standby();
    let proxy = FaultProxy::before(primary.address);
    let pooler = PgBouncer::before(proxy.address);
    let pooled = url.replace(&primary.address.to_string(), &pooler.address.to_string());
    let store = PostgresStore::open(&pooled).await.unwrap();
    assert_eq!(store.insert(&id(1), &claim(AttemptId::random())).await.unwrap(), None);
    let caught_up =
        format!("SELECT pg_last_wal_replay_lsn() >= '{}'", primary.sql("postgres", "SELECT pg_current_wal_lsn()"));
    poll("a standby that has it all", || (standby.sql("postgres", &caught_up) == "t").then_some(()));
    // Both accept writes now, and neither knows of the other.
    standby.promote();
    proxy.lead_to(standby.address);
    claims_again(&store, 2).await;
    let asked = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'onceward' AND state = 'idle' \
         AND query LIKE '%pg_walfile_name%'";
    let until = Instant::now() + HEALED;
    while standby.sql("postgres", asked) == "0" {
        assert!(Instant::now() < until, "the new primary was never asked what it is");
        // waits: between two reads of the condition
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Over connections to the new timeline: those to a lower one would be replaced, and rejected.
    claims_again(&store, 50).await;
    proxy.lead_to(primary.address);
    let until = Instant::now() + PATIENCE;
    let mut n = 100;
    let error = loop {
        match store.insert(&id(n), &claim(AttemptId::random())).await {
            Err(error) if chain(&error).contains("a former primary after a failover") => break error,
            _ => assert!(Instant::now() < until, "what was left behind takes claims"),
        }
        n += 1;
        tokio::task::yield_now().await;
    };
    assert_eq!(error.applied(), Applied::No, "{error}");
    proxy.lead_to(standby.address);
    claims_again(&store, 1_000_000).await;
}

/// The database's default would not wait for the standby; the statement's own setting does.
async fn with_a_synchronous_standby() -> (Postgres, Postgres, String) {
    let primary = Postgres::start(15, "");
    let url = primary.database();
    primary.sql("postgres", &format!("ALTER DATABASE {} SET synchronous_commit = local", database_of(&url)));
    let standby = primary.standby();
    primary.wait_for_standbys();
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", primary.address.port(), standby.address.port());
    let both = url.replace(&primary.address.to_string(), &hosts);
    (primary, standby, both)
}

#[tokio::test]
async fn failover_to_synchronous_standby_loses_nothing() {
    let (primary, standby, url) = with_a_synchronous_standby().await;
    let store = Arc::new(PostgresStore::open(&url).await.unwrap());
    assert!(store.info().durability.contains("synchronous standby (*) forgets nothing"), "{}", store.info().durability);
    let load = Load::start(&store, 0);
    load.until(200).await;
    let servers = tokio::task::spawn_blocking(move || {
        primary.stop("immediate");
        standby.promote();
        (primary, standby)
    });
    let _servers = servers.await.unwrap();
    let kept = load.end().await;
    assert!(kept.len() >= 200, "only {} keys were confirmed", kept.len());
    claims_again(&store, 1_000_000).await;
    assert_kept(&store, &kept).await;
}

#[tokio::test]
async fn writes_wait_for_the_synchronous_standby() {
    let (primary, standby, url) = with_a_synchronous_standby().await;
    let store = PostgresStore::open(&url.replace("connections=4", "connections=1")).await.unwrap();
    assert_eq!(store.insert(&id(0), &claim(AttemptId::random())).await.unwrap(), None);
    standby.signal("STOP");
    let attempts: Vec<_> = (0..8).map(|_| AttemptId::random()).collect();
    for (n, attempt) in attempts.iter().enumerate() {
        let (key, claim) = (id(100 + n), claim(*attempt));
        let claimed = timeout(Duration::from_millis(1200), store.insert(&key, &claim)).await;
        // The engine's timeout: its client gets 503, and nothing is sent.
        assert!(!matches!(claimed, Ok(Ok(_))), "a claim was confirmed without the standby: {claimed:?}");
    }
    // Each hung connection is replaced, but not without bound, since others need the server's
    // connections too.
    let open = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'onceward'";
    let open: usize = primary.sql("postgres", open).parse().unwrap();
    standby.signal("CONT");
    let until = Instant::now() + HEALED;
    // The delayed write is confirmed then, and a retry finds it.
    while store.get(&id(100)).await.is_err() {
        assert!(Instant::now() < until, "it does not recover");
    }
    assert_eq!(*store.get(&id(100)).await.unwrap().expect("it waited").record, claim(attempts[0]));
    claims_again(&store, 1000).await;
    assert!((3..=6).contains(&open), "{open} connections were open, of one that was asked for");
}

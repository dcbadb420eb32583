//! Power loss of the server's machine: confirmed writes were synced to its disk, and to that of a
//! synchronous standby, whatever the database's defaults.

use std::sync::Arc;

use onceward::store::{PostgresStore, Store};

use super::database_of;
use super::faults::last_write_of_each_kind_survives;
use super::load::{Load, assert_kept};
use super::records::claims_again;
use crate::support::machine::Machine;
use crate::support::postgres::Postgres;

/// Starts a server that syncs, with a database that would not: without the statement's own setting,
/// commits would wait for the WAL writer, which runs every ten seconds.
fn server_on(machine: &Machine) -> (Postgres, String) {
    let settings = "fsync = on\nfull_page_writes = on\nwal_writer_delay = 10s\nautovacuum = off";
    let server = Postgres::start_in(machine.disk(), 15, settings);
    let url = server.database().replace("&accept=fsync-off", "");
    server.sql("postgres", &format!("ALTER DATABASE {} SET synchronous_commit = off", database_of(&url)));
    machine.sync();
    (server, url)
}

#[tokio::test]
async fn power_loss_loses_no_confirmed_last_write() {
    let machine = Machine::start(512);
    let (mut server, url) = server_on(&machine);
    let store = PostgresStore::open(&url).await.unwrap();
    assert!(store.info().survives_power_loss, "{:?}", store.info());
    last_write_of_each_kind_survives(&store, || {
        server.kill();
        machine.lose_power();
        server.start_again();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_loss_under_load_loses_nothing_confirmed() {
    let rounds = if std::env::var_os("ONCEWARD_LONG").is_some() { 20 } else { 2 };
    let machine = Machine::start(512);
    let (mut server, url) = server_on(&machine);
    let store = Arc::new(PostgresStore::open(&url).await.unwrap());
    let mut all = Vec::new();
    for round in 1..=rounds {
        let load = Load::start(&store, round * 1_000_000);
        load.until(100).await;
        tokio::task::block_in_place(|| {
            server.kill();
            machine.lose_power();
            server.start_again();
        });
        all.extend(load.end().await);
        claims_again(&store, (round + 1) * 1_000_000 - 1000).await;
        assert_kept(&store, &all).await;
    }
    assert!(all.len() >= rounds * 100, "only {} keys were confirmed", all.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_loss_of_both_servers_loses_nothing_on_synchronous_standby() {
    let machines = [Machine::start(512), Machine::start(512)];
    let (primary, url) = server_on(&machines[0]);
    // The database's default requires only the primary's own disk.
    let weaker = format!("ALTER DATABASE {} SET synchronous_commit = local", database_of(&url));
    primary.sql("postgres", &weaker);
    let mut standby = primary.standby_in(machines[1].disk());
    primary.wait_for_standbys();
    machines[1].sync();
    let hosts = format!("127.0.0.1:{},127.0.0.1:{}", primary.address.port(), standby.address.port());
    let store = PostgresStore::open(&url.replace(&primary.address.to_string(), &hosts)).await.unwrap();
    let store = Arc::new(store);
    let load = Load::start(&store, 0);
    load.until(200).await;
    tokio::task::block_in_place(|| {
        // The standby loses power first, since the primary would ignore later confirmations.
        for (server, machine) in [(&standby, &machines[1]), (&primary, &machines[0])] {
            server.kill();
            machine.lose_power();
        }
        standby.start_again();
        standby.promote();
    });
    let kept = load.end().await;
    claims_again(&store, 1_000_000).await;
    assert_kept(&store, &kept).await;
}

//! Authentication, TLS, and server settings that stop the start unless they are accepted.

use std::time::Duration;

use futures_util::future::{join_all, poll_immediate};
use onceward::store::redis::{Options, RedisStore};
use onceward::store::{Applied, Cas, Error, Store};
use tokio::time::Instant;

use super::PERSISTENCE;
use super::records::{claim, completed, id};
use crate::support::certificates::certificates;
use crate::support::fault_proxy::{Fault, FaultProxy};
use crate::support::redis::{Cluster, Redis, Sentinel};
use crate::support::waiting::PATIENCE;

async fn connect(url: &str) -> Result<RedisStore, Error> {
    RedisStore::connect(Options::parse(url).unwrap().timeout(Duration::from_secs(3))).await
}

/// Formats an error and its sources.
fn chain(error: &dyn std::error::Error) -> String {
    let source = error.source().map(chain).unwrap_or_default();
    format!("{error}: {source}")
}

#[tokio::test]
async fn unsafe_server_setting_stops_the_start_unless_accepted() {
    let server = Redis::start("");
    let url = server.url(0);
    connect(&url).await.unwrap();
    for (change, back, accepted) in [
        (
            &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"][..],
            &["CONFIG", "SET", "maxmemory-policy", "noeviction"][..],
            "eviction",
        ),
        (&["CONFIG", "SET", "appendonly", "no"], &["CONFIG", "SET", "appendonly", "yes"], "no-persistence"),
        (&["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"], "replica"),
    ] {
        server.cli(0, change);
        let error = connect(&url).await.unwrap_err();
        assert!(error.to_string().contains(&format!("accept={accepted}")), "{error}");
        let store = connect(&format!("{url}?accept={accepted}")).await.unwrap();
        assert!(!store.info().durability.is_empty() && !store.info().survives_power_loss);
        server.cli(0, back);
    }
    connect(&url).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_that_starts_evicting_gets_no_more_claims() {
    for settings in PERSISTENCE {
        let server = Redis::start(settings);
        let store = connect(&format!("{}?accept=no-persistence", server.url(0))).await.unwrap();
        assert_eq!(store.insert(&id(1), &claim(1)).await.unwrap(), None);
        server.cli(0, &["CONFIG", "SET", "maxmemory-policy", "volatile-ttl"]);
        let until = Instant::now() + PATIENCE;
        let mut n = 2;
        let error = loop {
            match store.insert(&id(n), &claim(1)).await {
                Err(error) => break error,
                Ok(_) => assert!(Instant::now() < until, "it goes on over a server that evicts"),
            }
            n += 1;
            tokio::task::yield_now().await;
        };
        assert!(error.applied() == Applied::No && error.to_string().contains("volatile-ttl"), "{error:?}");
        // Requests in flight complete.
        assert_eq!(store.compare_and_swap(&id(1), claim(1).version(), &completed(1)).await.unwrap(), Cas::Swapped);
        server.cli(0, &["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
        while let Err(error) = store.insert(&id(n), &claim(1)).await {
            assert!(Instant::now() < until, "{error:?}");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evicting_server_gets_no_queued_claims() {
    let (server, another) = (Redis::start(""), Redis::start("--maxmemory-policy allkeys-lru"));
    let proxy = FaultProxy::before(server.address);
    let url = format!("redis://{}", proxy.address);
    let store = RedisStore::connect(Options::parse(&url).unwrap().timeout(PATIENCE)).await.unwrap();
    proxy.set(Fault::Down);
    let (ids, record): (Vec<_>, _) = ((0..20).map(id).collect(), claim(1));
    let mut waiting: Vec<_> = ids.iter().map(|id| store.insert(id, &record)).collect();
    for waits in &mut waiting {
        assert!(poll_immediate(waits).await.is_none(), "nothing is there");
    }
    proxy.lead_to(another.address);
    proxy.heal();
    for told in join_all(waiting).await {
        let error = told.expect_err("it was taken");
        assert!(error.to_string().contains("allkeys-lru"), "{error:?}");
    }
    // A request in flight at the cut may have left an index entry.
    assert_eq!(another.cli(0, &["KEYS", "onceward:{*"]), "");
}

#[tokio::test]
async fn durability_describes_what_this_configuration_may_lose() {
    for (settings, says, survives_power_loss) in [
        ("--appendfsync always", "forget nothing that was confirmed", true),
        ("", "up to 2 s of confirmed writes", false),
        ("--appendonly no --save '3600 1'", "since the last snapshot", false),
    ] {
        let server = Redis::start(settings);
        let facts = connect(&server.url(0)).await.unwrap().info();
        assert!(facts.durability.contains(says) && facts.durability.contains("no replica"), "{}", facts.durability);
        assert_eq!((facts.survives_kill, facts.survives_power_loss), (true, survives_power_loss), "{settings}");
    }
    let server = Redis::valkey("");
    let facts = connect(&server.url(0)).await.unwrap().info();
    assert!(facts.durability.contains("Valkey 9."), "{}", facts.durability);
}

/// Permissions that a user needs, as documented; and those needed in a cluster.
const RIGHTS: &str = "+@read +@write +@scripting +info +config|get +time +dbsize";
const RIGHTS_IN_A_CLUSTER: &str = "+cluster|slots +asking +ping";

/// Creates the user `onceward` with the password `p@ss`.
fn let_in(server: &Redis, rights: &str) {
    let user = "ACL SETUSER onceward on >p@ss resetchannels ~onceward:* -@all".split(' ').chain(rights.split(' '));
    assert_eq!(server.cli(0, &user.collect::<Vec<_>>()), "OK");
}

async fn keeps(store: &RedisStore) {
    for n in 0..20 {
        assert_eq!(store.insert(&id(n), &claim(1)).await.unwrap(), None);
        assert_eq!(store.compare_and_swap(&id(n), claim(1).version(), &completed(1)).await.unwrap(), Cas::Swapped);
        assert_eq!(*store.insert(&id(n), &claim(2)).await.unwrap().unwrap().record, completed(1));
    }
    assert_eq!(store.due(10).await.unwrap(), []);
    assert_eq!(store.stats().await.unwrap().completed, 20);
}

#[tokio::test]
async fn user_needs_few_permissions_and_wrong_password_is_reported() {
    let server = Redis::start("");
    let_in(&server, RIGHTS);
    server.cli(0, &["ACL", "SETUSER", "default", "off"]);
    let store = connect(&format!("redis://onceward:p%40ss@{}", server.address)).await.unwrap();
    assert_eq!(store.insert(&id(1), &claim(1)).await.unwrap(), None);
    assert_eq!(store.compare_and_swap(&id(1), claim(1).version(), &completed(1)).await.unwrap(), Cas::Swapped);
    assert_eq!(store.due(10).await.unwrap(), []);
    assert_eq!(store.stats().await.unwrap().completed, 1);
    for who in ["onceward:wrong@", ""] {
        let error = chain(&connect(&format!("redis://{who}{}", server.address)).await.unwrap_err());
        assert!(error.to_lowercase().contains("auth") && !error.contains("wrong@"), "{error}");
    }
}

#[tokio::test]
async fn tls_verifies_ca_and_client_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    certificates(at, "client");
    let server = Redis::with_tls(at, "--requirepass geheim");
    let place = format!("rediss://:geheim@localhost:{}", server.address.port());
    let file = |name: &str| at.join(name).display().to_string();
    let full = format!("{place}?ca={}&cert={}&key={}", file("ca.pem"), file("client.pem"), file("client.key"));
    let store = connect(&full).await.unwrap();
    assert_eq!(store.insert(&id(1), &claim(1)).await.unwrap(), None);
    assert_eq!(*store.insert(&id(1), &claim(2)).await.unwrap().unwrap().record, claim(1));
    assert_eq!(store.info().kind, "rediss");
    for (url, what) in [
        (place.clone(), "another CA"),
        (format!("{place}?ca={}", file("ca.pem")), "no client certificate"),
        (format!("redis://:geheim@localhost:{}", server.address.port()), "no TLS"),
    ] {
        assert!(connect(&url).await.is_err(), "{what} was let in");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_and_master_use_tls_and_separate_passwords() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    certificates(at, "client");
    let server = Redis::with_tls(at, "--requirepass geheim");
    let_in(&server, RIGHTS);
    let sentinel = Sentinel::with_tls(at, &server);
    let file = |name: &str| at.join(name).display().to_string();
    let files = format!("ca={}&cert={}&key={}", file("ca.pem"), file("client.pem"), file("client.key"));
    let place = format!("localhost:{}/orders", sentinel.address.port());
    let url = format!("redis-sentinel://onceward:p%40ss@{place}?tls=true&{files}");
    let full = format!("{url}&sentinel-user=watcher&sentinel-password=wachsam");
    keeps(&started(&full).await).await;
    for (url, what) in [
        (full.replace("p%40ss", "wrong"), "another password"),
        (full.replace("wachsam", "wrong"), "another password of the Sentinel's"),
        (url, "no password of the Sentinel's"),
        (full.replace(&format!("?tls=true&{files}"), "?"), "no TLS"),
        (
            full.replace(&format!("cert={}&key={}&", file("client.pem"), file("client.key")), ""),
            "no client certificate",
        ),
    ] {
        assert!(connect(&url).await.is_err(), "{what} was let in");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_uses_tls_and_a_restricted_user() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    certificates(at, "client");
    let cluster = Cluster::with_tls(at);
    cluster.nodes.iter().for_each(|node| let_in(node, &format!("{RIGHTS} {RIGHTS_IN_A_CLUSTER}")));
    let file = |name: &str| at.join(name).display().to_string();
    let files = format!("ca={}&cert={}&key={}", file("ca.pem"), file("client.pem"), file("client.key"));
    // The other nodes are discovered from this one.
    let url = format!("redis-cluster://onceward:p%40ss@localhost:{}", cluster.nodes[0].address.port());
    let full = format!("{url}?tls=true&{files}");
    keeps(&started(&full).await).await;
    for (url, what) in [
        (full.replace("p%40ss", "wrong"), "another password"),
        (full.replace("onceward:p%40ss@", ""), "nobody"),
        (url, "no TLS"),
        (
            full.replace(&format!("&cert={}&key={}", file("client.pem"), file("client.key")), ""),
            "no client certificate",
        ),
    ] {
        assert!(connect(&url).await.is_err(), "{what} was let in");
    }
}

/// Connects until the server is ready.
async fn started(url: &str) -> RedisStore {
    let until = Instant::now() + PATIENCE;
    loop {
        match connect(url).await {
            Ok(store) => return store,
            Err(error) => assert!(Instant::now() < until, "{}", chain(&error)),
        }
    }
}

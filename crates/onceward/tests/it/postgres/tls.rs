//! Connections to other machines are encrypted, and both ends are authenticated.

use onceward::record::AttemptId;
use onceward::store::{PostgresStore, Store};

use super::database_of;
use super::records::{chain, claim, id};
use crate::support::certificates::certificates;
use crate::support::postgres::Postgres;

#[tokio::test]
async fn tls_verifies_ca_and_client_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    certificates(at, "postgres");
    let foreign = tempfile::tempdir().unwrap();
    certificates(foreign.path(), "postgres");
    let server = Postgres::with_tls(15, at);
    let plain = server.database();
    let database = database_of(&plain);
    server.admit(&format!(
        "hostssl {database} postgres 127.0.0.1/32 cert\nhostnossl {database} postgres 127.0.0.1/32 reject"
    ));
    let place = plain.replace("127.0.0.1", "localhost");
    let file = |name: &str| format!("{}/{name}", at.display());
    let verified = format!("{place}&sslmode=verify-full&sslrootcert={}", file("ca.pem"));
    let full = format!("{verified}&sslcert={}&sslkey={}", file("client.pem"), file("client.key"));
    let store = PostgresStore::open(&full).await.unwrap();
    assert_eq!(store.insert(&id(1), &claim(AttemptId::random())).await.unwrap(), None);
    let how = format!(
        "SELECT DISTINCT s.ssl, s.client_dn FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) \
         WHERE a.datname = '{database}'"
    );
    assert_eq!(server.sql("postgres", &how), "t|/CN=postgres");
    drop(store);

    let foreign_ca = format!("{}/ca.pem", foreign.path().display());
    let foreign_client = [("client.pem", "sslcert"), ("client.key", "sslkey")]
        .map(|(name, setting)| format!("&{setting}={}/{name}", foreign.path().display()));
    for (url, what, says) in [
        (full.replace(&file("ca.pem"), &foreign_ca), "a server of another CA", "invalid peer certificate"),
        (full.replace("@localhost", "@127.0.0.1"), "a server of another name", "not valid for name"),
        (verified.clone(), "no client certificate", "certificate"),
        (format!("{verified}{}", foreign_client.concat()), "a client of another CA", ""),
        // As documented: in the clear, and no look at who answers. This server lets nobody in so.
        (format!("{place}&sslmode=disable"), "no TLS", "no encryption"),
    ] {
        let error = chain(&PostgresStore::open(&url).await.expect_err(what));
        assert!(error.contains(says), "{what}: {error}");
    }

    // One that does lets them in, and says itself that nothing is encrypted.
    let other = server.database();
    let store = PostgresStore::open(&format!("{other}&sslmode=disable")).await.unwrap();
    assert_eq!(store.insert(&id(1), &claim(AttemptId::random())).await.unwrap(), None);
    assert_eq!(server.sql("postgres", &how.replace(&database, &database_of(&other))), "f|");
}

//! `onceward migrate`: the schema, for people's own tools and for roles that may not make it.

use std::process::Command;

use crate::client::{assert_answer, order};
use crate::postgres::Postgres;
use crate::support::Gateway;
use crate::upstream::Upstream;

const KEY: &str = "migrate-key-0123456789";

/// Its code, what it prints, and what it says went wrong.
fn onceward(arguments: &[&str], store: Option<&str>) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_onceward"));
    command.args(arguments).current_dir(folder.path()).env_remove("ONCEWARD_STORE");
    let said = command.envs(store.map(|store| ("ONCEWARD_STORE", store))).output().unwrap();
    let [printed, failed] = [said.stdout, said.stderr].map(|said| String::from_utf8(said).unwrap());
    (said.status.code(), printed, failed)
}

/// Lines that are none of its log.
fn refusals(failed: &str) -> usize {
    failed.lines().filter(|line| !line.starts_with('{')).count()
}

/// An empty database, its name, and the URL of a role that may make nothing in it.
fn database(server: &Postgres) -> (String, String, String) {
    let url = server.database();
    let database = url.rsplit('/').next().unwrap().split('?').next().unwrap().to_owned();
    let role = format!("serving_{database}");
    server.sql(&database, &format!("CREATE ROLE {role} LOGIN"));
    let serving = url.replace("postgres@", &format!("{role}@"));
    (url, database, serving)
}

/// With the name of its role, as the text asks.
fn grant(server: &Postgres, database: &str, script: &str) {
    let grants = script.lines().filter_map(|line| line.strip_prefix("-- GRANT "));
    let grants: String = grants.map(|grant| format!("GRANT {grant}\n")).collect();
    assert!(grants.contains("TO serving;"), "{script}");
    server.sql(database, &grants.replace("TO serving;", &format!("TO serving_{database};")));
}

fn serves(url: &str) {
    let upstream = Upstream::start();
    let gateway = Gateway::with(&upstream.settings(url, ""), &[]);
    assert_answer(&order(KEY).send(&gateway), 201, "stored");
    assert_eq!(gateway.page("/readyz", "").0, 200);
}

#[test]
fn what_is_printed_is_sql_after_which_a_role_without_rights_to_make_it_serves() {
    let server = Postgres::start(15, "");
    let (url, database, serving) = database(&server);
    let (code, script, failed) = onceward(&["migrate", "--print"], None);
    assert_eq!((code, failed.as_str()), (Some(0), ""));
    server.sql(&database, &script);
    let (code, printed, failed) = onceward(&["migrate", "--store", &url], None);
    assert_eq!((code, printed.contains("it was at version 1")), (Some(0), true), "{printed}{failed}");
    grant(&server, &database, &script);
    serves(&serving);
}

#[test]
fn whoever_may_make_the_schema_makes_it_for_whoever_may_not() {
    let server = Postgres::start(15, "");
    let (url, database, serving) = database(&server);
    let serve = ["serve", "--upstream", "http://127.0.0.1:9", "--store", &serving];
    for arguments in [&["migrate", "--store", &serving][..], &serve] {
        let (code, printed, failed) = onceward(arguments, None);
        assert_eq!((code, printed.as_str(), refusals(&failed)), (Some(1), "", 1), "{arguments:?}: {failed}");
        assert!(failed.contains("run `onceward migrate` once with a role that may"), "{arguments:?}: {failed}");
    }
    let (code, printed, failed) = onceward(&["migrate"], Some(&url));
    assert_eq!((code, printed.contains("it was at version 0")), (Some(0), true), "{printed}{failed}");
    grant(&server, &database, &onceward(&["migrate", "--print"], None).1);
    serves(&serving);
}

#[test]
fn a_newer_schema_stops_the_start_with_one_line() {
    let server = Postgres::start(15, "");
    let (url, database, _) = database(&server);
    assert_eq!(onceward(&["migrate", "--store", &url], None).0, Some(0));
    server.sql(&database, "INSERT INTO onceward.schema_version (version) VALUES (99)");
    for arguments in
        [&["migrate", "--store", &url][..], &["serve", "--upstream", "http://127.0.0.1:9", "--store", &url]]
    {
        let (code, printed, failed) = onceward(arguments, None);
        assert_eq!((code, printed.as_str(), refusals(&failed)), (Some(1), "", 1), "{arguments:?}: {failed}");
        assert!(failed.contains("has version 99") && failed.contains("run a newer program"), "{arguments:?}: {failed}");
    }
}

#[test]
fn only_postgresql_has_a_schema() {
    for (arguments, said) in [
        (&["migrate"][..], "--store is required"),
        (&["migrate", "--store", "memory:"], "only postgres:// has a schema"),
    ] {
        let (code, printed, failed) = onceward(arguments, None);
        assert_eq!((code, printed.as_str(), refusals(&failed)), (Some(2), "", 1), "{arguments:?}: {failed}");
        assert!(failed.contains(said), "{failed}");
    }
}

//! What is PostgreSQL's alone.

mod disk;
mod migrate;

use super::{Pair, Server};
use crate::client::{assert_answer, assert_problem, assert_replay, order, poll};
use crate::postgres::Postgres;
use crate::support::Gateway;
use crate::upstream::Upstream;

#[test]
fn the_status_says_what_a_failover_may_forget_and_no_password() {
    let upstream = Upstream::start();
    let url = Postgres::common().empty().replace("postgres@", "postgres:hidden-word@");
    let gateway = Gateway::with(&upstream.settings(&url, ""), &[]);
    let status = gateway.page("/status", "").1;
    for said in
        ["\"kind\": \"postgres\"", "fsync is off", "no standby is synchronous", "\"survives_power_loss\": false"]
    {
        assert!(status.contains(said), "{said} is not in {status}");
    }
    assert!(!status.contains("hidden-word") && !gateway.log().contains("hidden-word"));
    assert!(gateway.log().contains("postgres:…@127.0.0.1"), "{}", gateway.log());
}

/// `fsync` is turned off, and on again, while the server and the gateway run.
#[test]
fn a_server_that_begins_to_void_a_promise_makes_it_not_ready_and_executes_nothing_new() {
    let upstream = Upstream::start();
    let server = Postgres::start(15, "fsync = on");
    let url = server.database().replace("&accept=fsync-off", "");
    let turn = |to: &str| {
        server.sql("postgres", &format!("ALTER SYSTEM SET fsync = {to}"));
        server.sql("postgres", "SELECT pg_reload_conf()");
    };
    let gateway = Gateway::with(&upstream.settings(&url, "[limits]\ncache = \"0\""), &[]);
    let first = order("known-before").send(&gateway);
    assert_answer(&first, 201, "stored");
    let running = order("begun-before").step("hold running").spawn(&gateway);
    upstream.held("running");
    turn("off");
    let why = poll("a gateway that is not ready", || {
        let (status, said) = gateway.page("/readyz", "");
        (status == 503).then_some(said)
    });
    assert!(why.contains("fsync is off"), "{why}");
    assert_problem(&order("new-after").send(&gateway), "store_unavailable", "new-after");
    assert_replay(&order("known-before").send(&gateway), &first);
    upstream.release("running");
    assert_answer(&running.answer(), 201, "stored");
    turn("on");
    poll("a gateway that is ready", || (gateway.page("/readyz", "").0 == 200).then_some(()));
    assert_answer(&order("new-after").send(&gateway), 201, "stored");
    for key in ["known-before", "begun-before", "new-after"] {
        assert_eq!(upstream.count(key), 1, "{key}");
    }
}

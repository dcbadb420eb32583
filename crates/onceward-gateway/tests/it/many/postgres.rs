//! What is PostgreSQL's alone.

mod disk;
mod migrate;

use super::{Pair, Server};
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

//! Tests of the PostgreSQL store against real servers.

mod batching;
mod errors;
mod faults;
mod load;
#[cfg(target_os = "linux")]
mod power;
mod records;
mod standby;
mod stats;
mod tls;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use onceward::clock::ManualClock;
use onceward::conformance::Subject;
use onceward::store::PostgresStore;

use crate::support::postgres::{PgBouncer, Postgres};

/// Accuracy of ages, which is limited by the speed of a busy machine.
const SLACK: Duration = Duration::from_secs(10);

static POSTGRES_15: LazyLock<Postgres> = LazyLock::new(|| Postgres::start(15, ""));
static POSTGRES_18: LazyLock<Postgres> = LazyLock::new(|| Postgres::start(18, ""));
static PGBOUNCER: LazyLock<PgBouncer> = LazyLock::new(|| PgBouncer::before(POSTGRES_15.address));

onceward::store_conformance!(postgres_15, || subject(&POSTGRES_15, None));
onceward::store_conformance!(postgres_18, || subject(&POSTGRES_18, None));
onceward::store_conformance!(postgres_15_through_pgbouncer, || subject(&POSTGRES_15, Some(&PGBOUNCER)));

/// Creates two clients of an empty database. Time is moved by moving the stored data into the past.
async fn subject(server: &'static Postgres, pooler: Option<&PgBouncer>) -> Subject {
    let direct = server.database();
    let url = match pooler {
        Some(pooler) => direct.replace(&server.address.to_string(), &pooler.address.to_string()),
        None => direct.clone(),
    };
    let clock = ManualClock::default();
    let open = async || PostgresStore::with_clock(url.parse().unwrap(), Arc::new(clock.clone())).await.unwrap();
    let (store, other) = (open().await, open().await);
    Subject::moved_by(Arc::new(store), SLACK, move |by| {
        clock.advance(by);
        let database = database_of(&direct);
        Box::pin(async move {
            let by = format!("{} * interval '1 microsecond'", by.as_micros());
            let past = format!(
                "UPDATE onceward.records SET written = written - {by}, due = due - {by}, look_at = look_at - {by}"
            );
            tokio::task::spawn_blocking(move || server.sql(&database, &past)).await.unwrap();
        })
    })
    .with_other(Arc::new(other))
}

/// Returns the name of the database in a URL.
fn database_of(url: &str) -> String {
    let name = url.rsplit('/').next().unwrap_or_default();
    name.split('?').next().unwrap_or_default().to_owned()
}

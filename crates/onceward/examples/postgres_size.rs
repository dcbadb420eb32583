//! What the store in PostgreSQL takes under a steady load: the sizes of its table and of the indexes, dead rows, and how many
//! updates found their place beside what they replaced (HOT). It prints the table that docs/stores.md shows.
//!
//! ```text
//! cargo run --release -p onceward --features postgres --example postgres_size URL [MINUTES [KEYS_A_SECOND]]
//! ```
//!
//! Each key is claimed, completed, made a tombstone and forgotten, as the engine's sweep does it: answers are kept for a
//! quarter of a minute, tombstones for as long again, so after half a minute as many go as come.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use onceward::engine::Engine;
use onceward::record::AttemptId;
use onceward::secret::RecordId;
use onceward::store::{PostgresStore, Store};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_postgres::{Client, NoTls, Row};

#[path = "shared/records.rs"]
mod records;

/// How long an answer is kept; a tombstone stays as long again.
const KEPT: Duration = Duration::from_secs(15);

/// How many rows the printed table has.
const ROWS: u32 = 8;

const SETTINGS: &str = "SELECT current_setting('server_version'), \
    (SELECT string_agg(name || ' = ' || current_setting(name), ', ' ORDER BY name) FROM pg_settings \
     WHERE name IN ('autovacuum', 'autovacuum_naptime', 'autovacuum_max_workers', 'shared_buffers', 'fsync')), \
    (SELECT array_to_string(reloptions, ', ') FROM pg_class WHERE oid = 'onceward.records'::regclass)";

const SAMPLE: &str = "SELECT (SELECT count(*) FROM onceward.records), pg_relation_size('onceward.records'), \
    pg_indexes_size('onceward.records')::bigint, n_dead_tup, n_tup_upd, n_tup_hot_upd, autovacuum_count \
    FROM pg_stat_user_tables WHERE relid = 'onceward.records'::regclass";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().ok_or("name the URL of an empty database")?;
    let minutes: u32 = arguments.next().map_or(Ok(4), |minutes| minutes.parse())?;
    let rate: u32 = arguments.next().map_or(Ok(500), |rate| rate.parse())?;
    let store = Arc::new(PostgresStore::open(&url).await?);
    // It sweeps by itself.
    let engine = Engine::builder(Arc::clone(&store) as Arc<dyn Store>).build();
    engine.start().await?;
    let (looking, connection) = tokio_postgres::connect(url.split('?').next().unwrap_or(&url), NoTls).await?;
    tokio::spawn(connection);
    let load = tokio::spawn(load(store, rate));
    report(&looking, Duration::from_secs(60) * minutes / ROWS).await?;
    load.abort();
    Ok(())
}

/// New keys at this rate, each claimed and completed.
async fn load(store: Arc<PostgresStore>, rate: u32) {
    let mut ticks = interval(Duration::from_secs(1) / rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        ticks.tick().await;
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let id = RecordId(*blake3::hash(&AttemptId::random().0).as_bytes());
            let claim = records::claim(AttemptId::random());
            let claimed = store.insert(&id, &claim).await;
            if !matches!(claimed, Ok(None)) {
                return eprintln!("a claim failed: {claimed:?}");
            }
            if let Err(error) =
                store.compare_and_swap(&id, claim.version(), &records::completed(claim.attempt, 300, KEPT, KEPT)).await
            {
                eprintln!("a completion failed: {error}");
            }
        });
    }
}

/// A row each so often.
async fn report(client: &Client, every: Duration) -> Result<(), Box<dyn Error>> {
    let settings = client.query_one(SETTINGS, &[]).await?;
    let text = |at| settings.get::<_, Option<String>>(at).unwrap_or_default();
    println!("PostgreSQL {}; {}; the table's own: {}.\n", text(0), text(1), text(2));
    println!("| after | records | table | indexes | bytes a record | dead rows | HOT | vacuums |");
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|");
    let begun = Instant::now();
    let mut before = (0, 0);
    for row in 1..=ROWS {
        tokio::time::sleep_until(begun + every * row).await;
        let sample = client.query_one(SAMPLE, &[]).await?;
        before = print_row(begun.elapsed(), &sample, before);
    }
    Ok(())
}

/// Returns how many updates there were, and how many of them were HOT.
fn print_row(after: Duration, sample: &Row, before: (i64, i64)) -> (i64, i64) {
    let [records, table, indexes, dead, updates, hot, vacuums] = std::array::from_fn(|at| sample.get::<_, i64>(at));
    let share = (hot - before.1) * 100 / (updates - before.0).max(1);
    let mib = |bytes: i64| bytes as f64 / f64::from(1 << 20);
    println!(
        "| {} s | {records} | {:.1} MiB | {:.1} MiB | {} | {dead} | {share} % | {vacuums} |",
        after.as_secs(),
        mib(table),
        mib(indexes),
        (table + indexes) / records.max(1),
    );
    (updates, hot)
}

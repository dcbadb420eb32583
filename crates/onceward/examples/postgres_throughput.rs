//! How fast the store in PostgreSQL is: new keys (a claim and its answer) and replays, of 64 callers at once.
//!
//! ```text
//! cargo run --release -p onceward --features postgres --example postgres_throughput URL [SECONDS [CALLERS]]
//! ```

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use onceward::fingerprint::{Fingerprint, Rules};
use onceward::record::{AttemptId, Kept, Phase, Print, Record};
use onceward::reply::Reply;
use onceward::secret::{KeyHash, RecordId};
use onceward::store::{PostgresStore, Store};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().ok_or("name the URL of an empty database")?;
    let time = Duration::from_secs(arguments.next().map_or(Ok(5), |seconds| seconds.parse())?);
    let callers = arguments.next().map_or(Ok(64), |callers| callers.parse())?;
    let store = Arc::new(PostgresStore::open(&url).await?);
    let done = run("new keys", &store, time, callers, |store, n| async move {
        let claim = claim();
        assert!(store.insert(&id(n), &claim).await.unwrap().is_none());
        store.replace(&id(n), claim.version(), &completed(claim.attempt)).await.unwrap();
    })
    .await;
    run("replays", &store, time, callers, move |store, n| async move {
        assert!(store.insert(&id(n % done), &claim()).await.unwrap().is_some());
    })
    .await;
    Ok(())
}

/// Runs `operation` on the numbers from zero, by as many callers at once, and prints what it took. Returns how many.
async fn run<F: Future<Output = ()> + Send + 'static>(
    what: &str,
    store: &Arc<PostgresStore>,
    time: Duration,
    callers: u64,
    operation: impl Fn(Arc<PostgresStore>, u64) -> F + Clone + Send + 'static,
) -> u64 {
    let next = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let tasks = (0..callers).map(|_| {
        let (store, next, operation) = (Arc::clone(store), Arc::clone(&next), operation.clone());
        tokio::spawn(async move {
            while begun.elapsed() < time {
                operation(Arc::clone(&store), next.fetch_add(1, Ordering::Relaxed)).await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        let _ = task.await;
    }
    let count = next.load(Ordering::Relaxed);
    println!("{what}: {:.0}/s by {callers} callers", count as f64 / begun.elapsed().as_secs_f64());
    count
}

fn id(n: u64) -> RecordId {
    // Spread as hashes are.
    let mut id = [0; 32];
    for (at, word) in id.chunks_exact_mut(8).enumerate() {
        let mixed = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17 * at as u32 + 1);
        word.copy_from_slice(&(mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_be_bytes());
    }
    RecordId(id)
}

fn print() -> Print {
    Print { fingerprint: Fingerprint([1; 32]), rules: Arc::new(Rules::default()) }
}

fn claim() -> Record {
    let phase = Phase::InFlight { print: print(), lease: Duration::from_secs(15), began: Duration::ZERO };
    Record { key_hash: KeyHash([2; 32]), attempt: AttemptId::random(), phase }
}

fn completed(attempt: AttemptId) -> Record {
    let reply = Reply { status: http::StatusCode::CREATED, headers: Vec::new(), body: vec![4; 300].into() };
    let day = Duration::from_secs(86_400);
    let kept = Kept::Whole(Arc::new(reply));
    let phase = Phase::Completed { print: print(), kept, retention: day, tombstone: day * 30 };
    Record { key_hash: KeyHash([2; 32]), attempt, phase }
}

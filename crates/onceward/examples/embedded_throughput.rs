//! How fast the embedded store is on this disk: claims, completions and replays of 64 callers at once.
//!
//! ```text
//! cargo run --release -p onceward --features embedded --example embedded_throughput [FOLDER [SECONDS [CALLERS]]]
//! ```

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use onceward::record::{AttemptId, Record};
use onceward::secret::RecordId;
use onceward::store::{EmbeddedStore, Store};

#[path = "shared/records.rs"]
mod records;

const DAY: Duration = Duration::from_secs(86_400);

/// No two keys are met twice, so that one attempt serves all.
const ATTEMPT: AttemptId = AttemptId([3; 16]);

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().map(PathBuf::from);
    let seconds = arguments.next().map_or(Ok(5), |seconds| seconds.parse())?;
    let callers = arguments.next().map_or(Ok(64), |callers| callers.parse())?;
    let temporary = tempfile::tempdir()?;
    let folder = folder.unwrap_or_else(|| temporary.path().join("keys"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let store = Arc::new(EmbeddedStore::open(&folder)?);
    runtime.block_on(measure(&store, Duration::from_secs(seconds), callers));
    let census = runtime.block_on(store.stats())?;
    drop(store);
    let begun = Instant::now();
    let store = EmbeddedStore::open(&folder)?;
    println!("opened again, with {} completed records, in {:?}", census.completed, begun.elapsed());
    let begun = Instant::now();
    drop(store);
    println!("closed in {:?}", begun.elapsed());
    Ok(())
}

async fn measure(store: &Arc<EmbeddedStore>, time: Duration, callers: u64) {
    let claimed = run("claims", store, time, callers, |store, n| async move {
        assert!(store.insert(&id(n), &claim()).await.unwrap().is_none());
    })
    .await;
    let done = run("completions", store, time, callers, move |store, n| async move {
        if n < claimed {
            store.compare_and_swap(&id(n), claim().version(), &completed(1 << 10)).await.unwrap();
        }
    })
    .await
    .min(claimed);
    run("replays", store, time, callers, move |store, n| async move {
        assert!(store.insert(&id(n % done), &claim()).await.unwrap().is_some());
    })
    .await;
    run("claims and completions, each of a new key", store, time, callers, |store, n| async move {
        store.insert(&id(n + (1 << 40)), &claim()).await.unwrap();
        store.compare_and_swap(&id(n + (1 << 40)), claim().version(), &completed(1 << 10)).await.unwrap();
    })
    .await;
    run("answers of 4 MiB", store, time, callers.min(4), |store, n| async move {
        store.insert(&id(n + (1 << 41)), &completed(4 << 20)).await.unwrap();
    })
    .await;
}

/// Runs `operation` on the numbers from zero, by as many callers at once, and prints what it took. Returns how many.
async fn run<F: Future<Output = ()> + Send + 'static>(
    what: &str,
    store: &Arc<EmbeddedStore>,
    time: Duration,
    callers: u64,
    operation: impl Fn(Arc<EmbeddedStore>, u64) -> F + Clone + Send + 'static,
) -> u64 {
    let next = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let cpu = cpu_seconds();
    let tasks = (0..callers).map(|_| {
        let (store, next, operation) = (store.clone(), next.clone(), operation.clone());
        tokio::spawn(async move {
            let mut took = Vec::new();
            while begun.elapsed() < time {
                let at = Instant::now();
                operation(store.clone(), next.fetch_add(1, Ordering::Relaxed)).await;
                took.push(at.elapsed());
            }
            took
        })
    });
    let mut took = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        took.extend(task.await.unwrap());
    }
    let elapsed = begun.elapsed().as_secs_f64();
    let cpu = cpu_seconds() - cpu;
    took.sort_unstable();
    let count = took.len();
    println!(
        "{what}: {:.0}/s by {callers} callers, {:.1} µs of CPU each; median {:?}, 99 % {:?}, longest {:?}",
        count as f64 / elapsed,
        cpu * 1e6 / count as f64,
        took[count / 2],
        took[count * 99 / 100],
        took[count - 1],
    );
    next.load(Ordering::Relaxed)
}

/// What this process has used, where the system says so.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
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

fn claim() -> Record {
    records::claim(ATTEMPT)
}

fn completed(bytes: usize) -> Record {
    records::completed(ATTEMPT, bytes, DAY, DAY * 30)
}

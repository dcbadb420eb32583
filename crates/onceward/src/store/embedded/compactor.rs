//! Compactor: returns the space of removed records to the disk.
//!
//! `fjall` compacts what is overwritten often.
//! Data that are only removed would stay: deletion markers are in a memtable that is not full, then
//! in a table too small to be merged.
//! So once as many bytes are garbage as are live, all data are rewritten, concurrently with readers
//! and the writer.
//! Each live byte is rewritten at most once more that way.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fjall::Keyspace;

use super::disk_space::DiskMonitor;
use super::engine::Engine;
use super::shared::Shared;
use crate::fault;

/// Amount of garbage below which compaction is not worthwhile.
const GARBAGE_BYTES_MIN: u64 = 64 << 20;

/// Polling interval for the engine's flush, which has no notification.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Returns true if compaction is worthwhile and there is space for it: without space it would fail
/// and end all writing.
pub(super) fn is_due(shared: &Shared) -> bool {
    let live = shared.census.lock().bytes;
    let garbage = shared.garbage.load(Ordering::Relaxed);
    let is_worth_it = garbage >= live.max(GARBAGE_BYTES_MIN) || (fault::is_armed("compaction") && garbage > 0);
    is_worth_it && DiskMonitor::has_room_to_rewrite(&shared.path, live)
}

/// Runs until the store is closed; unparked when compaction may have become due.
pub(super) fn run(engine: &Engine, shared: &Arc<Shared>) {
    while !shared.closing.load(Ordering::Acquire) {
        if is_due(shared) {
            shared.garbage.store(0, Ordering::Relaxed);
            // Named values too: a journal stays until all of its data are in tables.
            for keyspace in [&engine.records, &engine.index, &engine.meta] {
                if let Err(error) = rewrite(engine, shared, keyspace) {
                    tracing::error!(directory = %shared.path.display(), %error, "compaction of the embedded store failed");
                }
            }
        } else {
            std::thread::park();
        }
    }
}

fn rewrite(engine: &Engine, shared: &Shared, keyspace: &Keyspace) -> fjall::Result<()> {
    keyspace.rotate_memtable()?;
    while keyspace.sealed_memtable_count() > 0 {
        // The thread that would flush it may have stopped.
        engine.check()?;
        if shared.closing.load(Ordering::Acquire) {
            return Ok(());
        }
        std::thread::park_timeout(POLL_INTERVAL);
    }
    fault::reach("compaction");
    keyspace.major_compact()
}

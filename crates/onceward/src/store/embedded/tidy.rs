//! Gives the space of what was removed back to the disk.
//!
//! `fjall` compacts what is written over and over. What is only removed it would keep: its marks lie in a memtable that is
//! not full, then in a table that is too small to be merged. So once as many bytes are garbage as are not, all of it is
//! written anew, beside the readers and the writer; each byte that lives costs at most one more that way.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fjall::Keyspace;

use super::engine::Engine;
use super::room::Disk;
use super::shared::Shared;
use crate::fault;

/// Not worth the trouble below this.
const GARBAGE_BYTES_MIN: u64 = 64 << 20;

/// How often it is looked whether the engine is done with what was asked of it, which tells nobody.
const LOOK: Duration = Duration::from_millis(20);

/// Whether it is worth the trouble, and there is room for it: what fails for want of that ends all writing.
pub(super) fn is_due(shared: &Shared) -> bool {
    let live = shared.census.lock().bytes;
    let garbage = shared.garbage.load(Ordering::Relaxed);
    let is_worth_it = garbage >= live.max(GARBAGE_BYTES_MIN) || (fault::is_armed("compaction") && garbage > 0);
    is_worth_it && Disk::has_room_to_rewrite(&shared.path, live)
}

/// Runs until the store is closed; unparked where it may have become due.
pub(super) fn run(engine: &Engine, shared: &Arc<Shared>) {
    while !shared.closing.load(Ordering::Acquire) {
        if is_due(shared) {
            shared.garbage.store(0, Ordering::Relaxed);
            // The named values too: a journal stays until all that is in it is in tables.
            for keyspace in [&engine.records, &engine.index, &engine.meta] {
                if let Err(error) = rewrite(engine, shared, keyspace) {
                    tracing::error!(folder = %shared.path.display(), %error, "space could not be given back to the disk");
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
        // Whoever would write it may have given up.
        engine.check()?;
        if shared.closing.load(Ordering::Acquire) {
            return Ok(());
        }
        std::thread::park_timeout(LOOK);
    }
    fault::reach("compaction");
    keyspace.major_compact()
}

//! Due records: claims from memory, all others from the index.

use std::sync::atomic::Ordering;

use fjall::Keyspace;

use super::engine::{Engine, read_error};
use super::row::{due_key, read_due_key};
use super::shared::Shared;
use crate::record::StoredRecord;
use crate::secret::RecordId;
use crate::store::Error;

/// Upper bound on bytes read per call, since responses are read whole. The next call returns the
/// rest.
const BYTES_MAX: u64 = 16 << 20;

pub(super) fn due(engine: &Engine, shared: &Shared, limit: usize) -> Result<Vec<(RecordId, StoredRecord)>, Error> {
    let (now, unseen) = shared.time.now_and_watermark();
    let mut claims = shared.claims.lock().due(now).into_iter().peekable();
    let mut indexed = Indexed::new(&engine.index, shared.due_from.load(Ordering::Relaxed), now);
    let mut next_indexed = indexed.next();
    // Deletions leave LSM tombstones, so the scan starts at the last known position, not at zero.
    // New entries always sort after it, except those of the batch now being written.
    let first = next_indexed.map_or(now, |(due, _)| due);
    let mut found = Vec::new();
    let mut bytes = 0;
    while found.len() < limit && bytes < BYTES_MAX {
        let (due, id) = match (claims.peek(), next_indexed) {
            (Some(claim), Some(other)) if other < *claim => {
                next_indexed = indexed.next();
                other
            }
            (Some(_), _) | (None, None) => match claims.next() {
                Some(claim) => claim,
                None => break,
            },
            (None, Some(other)) => {
                next_indexed = indexed.next();
                other
            }
        };
        // An unreadable record is reported when its key is used; a record written since is not due
        // any more.
        if let Ok(Some(row)) = engine.row(&id)
            && row.entry.due == due
        {
            bytes += row.entry.bytes;
            found.push((id, row.found(now, shared.boot)));
        }
    }
    match indexed.error {
        Some(error) if found.is_empty() => Err(read_error(error)),
        Some(error) => {
            tracing::error!(directory = %shared.path.display(), %error, "part of the due index is unreadable");
            Ok(found)
        }
        None => {
            shared.due_from.fetch_max(first.min(unseen), Ordering::Relaxed);
            Ok(found)
        }
    }
}

/// Entries of the index, up to the first unreadable one.
struct Indexed {
    entries: fjall::Iter,
    error: Option<fjall::Error>,
}

impl Indexed {
    fn new(index: &Keyspace, from: u64, to: u64) -> Self {
        let range = due_key(from, &RecordId([0; 32]))..=due_key(to, &RecordId([0xff; 32]));
        Self { entries: index.range(range), error: None }
    }

    fn next(&mut self) -> Option<(u64, RecordId)> {
        if self.error.is_some() {
            return None;
        }
        match self.entries.next()?.key() {
            Ok(key) => read_due_key(&key),
            Err(error) => {
                self.error = Some(error);
                None
            }
        }
    }
}

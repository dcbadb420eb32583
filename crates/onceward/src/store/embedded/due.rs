//! What is due: claims from memory, all else from the index.

use std::sync::atomic::Ordering;

use fjall::Keyspace;

use super::engine::{Engine, unread};
use super::row::{due_key, read_due_key};
use super::shared::Shared;
use crate::record::Found;
use crate::secret::RecordId;
use crate::store::Error;

/// Answers are read whole, so their bytes are bounded too: who asks again gets the rest.
const BYTES_MAX: u64 = 16 << 20;

pub(super) fn due(engine: &Engine, shared: &Shared, limit: usize) -> Result<Vec<(RecordId, Found)>, Error> {
    let (now, unseen) = shared.time.glance();
    let mut claims = shared.claims.lock().due(now).into_iter().peekable();
    let mut indexed = Indexed::new(&engine.index, shared.due_from.load(Ordering::Relaxed), now);
    let mut next_indexed = indexed.next();
    // What is swept leaves a mark in the engine, and a day's marks would be walked over each time. What is written later is
    // due later than all that was seen, save for the batch that is being written.
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
        // What cannot be read is told of to whoever asks for it; what was written since is not due any more.
        if let Ok(Some(row)) = engine.row(&id)
            && row.place.due == due
        {
            bytes += row.place.bytes;
            found.push((id, row.found(now, shared.boot)));
        }
    }
    match indexed.error {
        Some(error) if found.is_empty() => Err(unread(error)),
        Some(error) => {
            tracing::error!(folder = %shared.path.display(), %error, "a part of the index of what is due cannot be read");
            Ok(found)
        }
        None => {
            shared.due_from.fetch_max(first.min(unseen), Ordering::Relaxed);
            Ok(found)
        }
    }
}

/// The entries of the index, up to the first that cannot be read.
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

//! The engine beneath: `fjall`, with its errors in our words.

use std::error::Error as _;
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions};

use super::row::{Row, STATE_KEY, State, name_key, read_named};
use crate::secret::RecordId;
use crate::store::Error;

/// Room for blocks that were read.
const CACHE_BYTES: u64 = 64 << 20;

/// A journal is deleted once all that it holds is in tables. This bounds what is read again at the start.
const JOURNALS_BYTES: u64 = 128 << 20;

#[derive(Clone)]
pub(super) struct Engine {
    pub(super) database: Database,
    /// Records, by id.
    pub(super) records: Keyspace,
    /// What is due when, and what is claimed.
    pub(super) index: Keyspace,
    /// Named values, and the state.
    pub(super) meta: Keyspace,
    /// The folder's, let go after all else.
    _lock: Option<Arc<File>>,
}

impl Engine {
    pub(super) fn open(data: &Path, lock: Option<Arc<File>>) -> Result<Self, Error> {
        let failed = || format!("the store's data in {} cannot be opened", data.display());
        // fjall answers some damage by a panic, which would take the process with it.
        match catch_unwind(AssertUnwindSafe(|| Self::open_unguarded(data, lock))) {
            Ok(Ok(engine)) => Ok(engine),
            Ok(Err(fjall::Error::Locked)) => {
                Err(Error::refused(format!("the store's data in {} are in use by another process", data.display())))
            }
            Ok(Err(error)) => Err(Error::unreadable(failed()).because(error)),
            Err(_) => Err(Error::unreadable(failed())),
        }
    }

    fn open_unguarded(data: &Path, lock: Option<Arc<File>>) -> fjall::Result<Self> {
        let database = Database::builder(data)
            .worker_threads(2)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNALS_BYTES)
            // Each batch says itself how it is to be synced.
            .manual_journal_persist(true)
            .open()?;
        let keyspace = |name: &str, memtable: u64| {
            database.keyspace(name, || KeyspaceCreateOptions::default().max_memtable_size(memtable))
        };
        Ok(Self {
            records: keyspace("records", 32 << 20)?,
            index: keyspace("index", 8 << 20)?,
            meta: keyspace("meta", 8 << 20)?,
            database,
            _lock: lock,
        })
    }

    /// A record, with all its checksums looked at.
    pub(super) fn row(&self, id: &RecordId) -> Result<Option<Row>, Error> {
        let bytes = self.records.get(id.0).map_err(unread)?;
        bytes.map(|bytes| Row::read(id, &bytes.into())).transpose()
    }

    /// A named value.
    pub(super) fn named(&self, name: &str) -> Result<Option<Bytes>, Error> {
        let bytes = self.meta.get(name_key(name)).map_err(unread)?;
        bytes.map(|bytes| read_named(name, &bytes.into())).transpose()
    }

    /// The state that the last batch left; `None` before the first.
    pub(super) fn state(&self) -> Result<Option<State>, Error> {
        match self.meta.get(STATE_KEY).map_err(unread)? {
            None => Ok(None),
            Some(bytes) => State::read(&bytes)
                .map(Some)
                .ok_or_else(|| Error::unreadable("the checksum of the store's state fails")),
        }
    }

    /// Whether it has given up, as it does after a failed write or a failed compaction. A commit would say so too, but may
    /// before that wait for ever for room that nobody makes any more.
    pub(super) fn check(&self) -> fjall::Result<()> {
        self.database.persist(fjall::PersistMode::Buffer)
    }
}

/// A read that failed. What fails a checksum is there, and cannot be read; it is not absent.
pub(super) fn unread(error: fjall::Error) -> Error {
    let io = match &error {
        fjall::Error::Io(io) => Some(io),
        other => other.source().and_then(|inner| inner.source()).and_then(|inner| inner.downcast_ref()),
    };
    match io.map(io::Error::kind) {
        // Cut short: as damaged as a checksum that fails.
        None | Some(io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::NotFound) => {
            Error::unreadable("the store's data cannot be read").because(error)
        }
        // Nothing was changed, and nothing will be.
        Some(_) => Error::refused("the store could not read its folder").because(error),
    }
}

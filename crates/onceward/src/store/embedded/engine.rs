//! Underlying engine, `fjall`, with its errors mapped to ours.

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

/// Size of the block cache.
const CACHE_BYTES: u64 = 64 << 20;

/// Upper bound on journals, which bounds what is read at startup. A journal is deleted once all of
/// its data are in tables.
const JOURNALS_BYTES: u64 = 128 << 20;

#[derive(Clone)]
pub(super) struct Engine {
    pub(super) database: Database,
    /// Records by id.
    pub(super) records: Keyspace,
    /// Due index and claims.
    pub(super) index: Keyspace,
    /// Named values and the state.
    pub(super) meta: Keyspace,
    /// Lock of the directory, released after everything else.
    _lock: Option<Arc<File>>,
}

impl Engine {
    pub(super) fn open(data: &Path, lock: Option<Arc<File>>) -> Result<Self, Error> {
        let failed = || format!("the embedded store in {} cannot be opened", data.display());
        // fjall panics on some kinds of damage, which would end the process.
        match catch_unwind(AssertUnwindSafe(|| Self::open_unguarded(data, lock))) {
            Ok(Ok(engine)) => Ok(engine),
            Ok(Err(fjall::Error::Locked)) => {
                Err(Error::refused(format!("the embedded store in {} is in use by another process", data.display())))
            }
            Ok(Err(error)) => Err(Error::unreadable(failed()).with_source(error)),
            Err(_) => Err(Error::unreadable(failed())),
        }
    }

    fn open_unguarded(data: &Path, lock: Option<Arc<File>>) -> fjall::Result<Self> {
        let database = Database::builder(data)
            .worker_threads(2)
            .cache_size(CACHE_BYTES)
            .max_journaling_size(JOURNALS_BYTES)
            // Each batch sets its own durability.
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

    /// Returns a record after verifying all its checksums.
    pub(super) fn row(&self, id: &RecordId) -> Result<Option<Row>, Error> {
        let bytes = self.records.get(id.0).map_err(read_error)?;
        bytes.map(|bytes| Row::read(id, &bytes.into())).transpose()
    }

    /// Returns a named value.
    pub(super) fn named(&self, name: &str) -> Result<Option<Bytes>, Error> {
        let bytes = self.meta.get(name_key(name)).map_err(read_error)?;
        bytes.map(|bytes| read_named(name, &bytes.into())).transpose()
    }

    /// Returns the state that the last batch wrote; `None` before the first.
    pub(super) fn state(&self) -> Result<Option<State>, Error> {
        match self.meta.get(STATE_KEY).map_err(read_error)? {
            None => Ok(None),
            Some(bytes) => State::read(&bytes)
                .map(Some)
                .ok_or_else(|| Error::unreadable("the checksum of the embedded store's state is wrong")),
        }
    }

    /// Fails if the engine has stopped, as it does after a failed write or compaction.
    ///
    /// A commit would fail too, but might first wait forever for space that nobody frees any more.
    pub(super) fn check(&self) -> fjall::Result<()> {
        self.database.persist(fjall::PersistMode::Buffer)
    }
}

/// Maps a failed read. A value with a wrong checksum exists and is unreadable; it is not absent.
pub(super) fn read_error(error: fjall::Error) -> Error {
    let io = match &error {
        fjall::Error::Io(io) => Some(io),
        other => other.source().and_then(|inner| inner.source()).and_then(|inner| inner.downcast_ref()),
    };
    match io.map(io::Error::kind) {
        // A truncated file is as damaged as a wrong checksum.
        None | Some(io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::NotFound) => {
            Error::unreadable("the embedded store's data cannot be read").with_source(error)
        }
        // Nothing was or will be changed.
        Some(_) => Error::refused("reading from the embedded store failed").with_source(error),
    }
}

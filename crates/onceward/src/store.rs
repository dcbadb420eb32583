//! Contract of a store: it inserts, compares and swaps, reads and sweeps records, and makes no
//! decisions.

#[cfg(feature = "embedded")]
pub mod embedded;
#[cfg(feature = "memory")]
pub mod memory;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redis")]
pub mod redis;

use std::fmt::{self, Debug};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::record::{Record, StoredRecord, Version};
use crate::secret::RecordId;

#[cfg(feature = "embedded")]
pub use embedded::EmbeddedStore;
#[cfg(feature = "memory")]
pub use memory::MemoryStore;
#[cfg(feature = "postgres")]
pub use postgres::PostgresStore;
#[cfg(feature = "redis")]
pub use redis::RedisStore;

/// Future of a store operation: either a result that is ready, which takes no allocation, or a
/// boxed future.
///
/// ```
/// use onceward::store::StoreFuture;
///
/// let now: StoreFuture<'_, bool> = StoreFuture::ready(Ok(true));
/// let later: StoreFuture<'_, bool> = StoreFuture::new(async { Ok(true) });
/// # drop((now, later));
/// ```
#[must_use = "an operation that is not awaited may not happen"]
pub struct StoreFuture<'a, T>(Inner<'a, T>);

enum Inner<'a, T> {
    Ready(Option<Result<T, Error>>),
    Boxed(Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>),
}

impl<'a, T> StoreFuture<'a, T> {
    /// Creates a future from a result that is ready.
    pub fn ready(result: Result<T, Error>) -> Self {
        Self(Inner::Ready(Some(result)))
    }

    /// Creates a future from an asynchronous operation.
    pub fn new(future: impl Future<Output = Result<T, Error>> + Send + 'a) -> Self {
        Self(Inner::Boxed(Box::pin(future)))
    }
}

/// Nothing in it is structurally pinned: a ready result is moved out, and a future is in a box.
impl<T> Unpin for StoreFuture<'_, T> {}

impl<T> Future for StoreFuture<'_, T> {
    type Output = Result<T, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Inner::Ready(result) => Poll::Ready(
                result
                    .take()
                    .unwrap_or_else(|| Err(Error::unavailable("the store future was polled after completion"))),
            ),
            Inner::Boxed(future) => future.as_mut().poll(context),
        }
    }
}

impl<T> Debug for StoreFuture<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Inner::Ready(_) => "Pending::ready",
            Inner::Boxed(_) => "Pending::new",
        })
    }
}

/// Stores records.
///
/// # The contract
///
/// 1. **Linearizable.** All operations on one id take effect one after the other, in an order that
///    is consistent with what callers observe. Of two racing inserts exactly one wins.
/// 2. **Durable when it returns**, to the extent that [`Store::info`] states. Reads return durable
///    data only: a response that could still be lost is not returned.
/// 3. **Nothing expires by itself.** A store deletes a record only by [`Store::remove`]. It never
///    evicts a record whose [`due`](Record::due) time has not passed, but a full store may evict
///    tombstones. A backend with native TTLs may expire completed, released and tombstone records
///    itself, and need not return those from `due`. It must never expire an in-flight or unknown
///    record.
/// 4. **Ages by one clock.** [`StoredRecord::age`] is the time since the last write of that record,
///    by the
///    store's own clock, which must not go back. If it can only be estimated, it errs on the young
///    side.
/// 5. **An error that is not [`Applied::No`] leaves the outcome unknown**: the operation may have
///    been, or may still be, applied.
/// 6. **A record that cannot be read is an error of its id**, never an absent record.
///
/// Dropping a returned future may or may not cancel the operation. There are no default methods: a
/// wrapper that omits one does not compile.
pub trait Store: Debug + Send + Sync + 'static {
    /// Inserts `record` if none exists, and returns `None`. Otherwise changes nothing and returns
    /// the existing record.
    fn insert<'a>(&'a self, id: &'a RecordId, record: &'a Record) -> StoreFuture<'a, Option<StoredRecord>>;

    /// Replaces the record if it is still at version `over` (compare-and-swap). Its age is zero
    /// then.
    fn compare_and_swap<'a>(&'a self, id: &'a RecordId, over: Version, record: &'a Record) -> StoreFuture<'a, Cas>;

    /// Returns the record, if there is one.
    fn get<'a>(&'a self, id: &'a RecordId) -> StoreFuture<'a, Option<StoredRecord>>;

    /// Removes the record if it is still at version `over`. Returns true if it was removed.
    fn remove<'a>(&'a self, id: &'a RecordId, over: Version) -> StoreFuture<'a, bool>;

    /// Returns up to `limit` records whose [`due`](Record::due) time has passed, or whose owner is
    /// known to be lost.
    ///
    /// It changes none of them. An unreadable record is left out and does not hide the others.
    fn due<'a>(&'a self, limit: usize) -> StoreFuture<'a, Vec<(RecordId, StoredRecord)>>;

    /// Inserts a named value if none exists, and returns the value stored then.
    fn get_or_insert_meta<'a>(&'a self, name: &'a str, value: &'a [u8]) -> StoreFuture<'a, Bytes>;

    /// Counts the records by phase. Cheap enough to be called once a second.
    fn stats(&self) -> StoreFuture<'_, StoreStats>;

    /// Describes the store and its durability.
    fn info(&self) -> StoreInfo;
}

/// A shared store is a store.
impl<S: Store + ?Sized> Store for Arc<S> {
    fn insert<'a>(&'a self, id: &'a RecordId, record: &'a Record) -> StoreFuture<'a, Option<StoredRecord>> {
        (**self).insert(id, record)
    }

    fn compare_and_swap<'a>(&'a self, id: &'a RecordId, over: Version, record: &'a Record) -> StoreFuture<'a, Cas> {
        (**self).compare_and_swap(id, over, record)
    }

    fn get<'a>(&'a self, id: &'a RecordId) -> StoreFuture<'a, Option<StoredRecord>> {
        (**self).get(id)
    }

    fn remove<'a>(&'a self, id: &'a RecordId, over: Version) -> StoreFuture<'a, bool> {
        (**self).remove(id, over)
    }

    fn due<'a>(&'a self, limit: usize) -> StoreFuture<'a, Vec<(RecordId, StoredRecord)>> {
        (**self).due(limit)
    }

    fn get_or_insert_meta<'a>(&'a self, name: &'a str, value: &'a [u8]) -> StoreFuture<'a, Bytes> {
        (**self).get_or_insert_meta(name, value)
    }

    fn stats(&self) -> StoreFuture<'_, StoreStats> {
        (**self).stats()
    }

    fn info(&self) -> StoreInfo {
        (**self).info()
    }
}

/// Result of a compare-and-swap.
#[derive(Clone, Debug, PartialEq)]
pub enum Cas {
    /// The record was replaced.
    Swapped,
    /// The record was not at the expected version; the current one is returned.
    Conflict(Option<StoredRecord>),
}

/// Numbers of records by phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreStats {
    /// Claims in flight.
    pub in_flight: u64,
    /// Executed requests whose response, or head, is stored.
    pub completed: u64,
    /// Released keys, which may be claimed again.
    pub released: u64,
    /// Requests whose outcome is unknown.
    pub unknown: u64,
    /// Records past their retention.
    pub tombstones: u64,
    /// Approximate size of all records in bytes.
    pub bytes: u64,
}

/// Kind and durability of a store, for `/status`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreInfo {
    /// Kind of the store, as in its URL.
    pub kind: &'static str,
    /// True if records survive a kill of the process.
    pub survives_kill: bool,
    /// True if records survive a power loss of the machine.
    pub survives_power_loss: bool,
    /// Description of the durability for people, including what is not guaranteed.
    pub durability: String,
    /// True if the records are in this process's memory, so that caching them is useless.
    pub in_process: bool,
    /// Reason why it takes no writes until the process is restarted; `None` while it may take them.
    pub broken: Option<String>,
}

impl StoreInfo {
    /// Creates a description.
    pub fn new(
        kind: &'static str,
        survives_kill: bool,
        survives_power_loss: bool,
        durability: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            survives_kill,
            survives_power_loss,
            durability: durability.into(),
            in_process: false,
            broken: None,
        }
    }

    /// Of a store that only a restart helps, and why.
    pub fn broken(mut self, why: Option<String>) -> Self {
        self.broken = why;
        self
    }

    /// Marks the store as one in this process's memory.
    pub fn in_process(mut self) -> Self {
        self.in_process = true;
        self
    }
}

/// Error of a store operation.
///
/// `Display` formats this level only; `source` returns the underlying error.
#[derive(Clone, Debug)]
pub struct Error {
    kind: Kind,
    what: String,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Full,
    Refused,
    Unreadable,
    Unavailable,
}

/// State of a failed operation, as far as its caller must know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The operation was not and will not be applied.
    No,
    /// The operation may have been, or may still be, applied.
    Unknown,
}

impl Error {
    /// Creates an error of a full store. The operation was not applied.
    pub fn full(what: impl Into<String>) -> Self {
        Self { kind: Kind::Full, what: what.into(), source: None }
    }

    /// Creates an error of a store that rejects the operation. It was not applied.
    pub fn refused(what: impl Into<String>) -> Self {
        Self { kind: Kind::Refused, what: what.into(), source: None }
    }

    /// Creates an error of an unreadable record: its checksum is wrong, or its version is unknown.
    /// Nothing was applied.
    pub fn unreadable(what: impl Into<String>) -> Self {
        Self { kind: Kind::Unreadable, what: what.into(), source: None }
    }

    /// Creates an error that leaves open whether the operation was applied, such as a timeout.
    pub fn unavailable(what: impl Into<String>) -> Self {
        Self { kind: Kind::Unavailable, what: what.into(), source: None }
    }

    /// Adds the underlying error.
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into().into());
        self
    }

    /// Returns whether the operation may have been applied.
    pub fn applied(&self) -> Applied {
        match self.kind {
            Kind::Full | Kind::Refused | Kind::Unreadable => Applied::No,
            Kind::Unavailable => Applied::Unknown,
        }
    }

    /// Returns true if the record exists and cannot be read.
    pub fn is_unreadable(&self) -> bool {
        self.kind == Kind::Unreadable
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Formats an error and its sources in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line.push_str(": ");
        line.push_str(&error.to_string());
        source = error.source();
    }
    line
}

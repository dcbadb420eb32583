//! The contract of a store. Stores are dumb: they insert, replace, get and sweep, and judge nothing.

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

use crate::record::{Found, Record, Version};
use crate::secret::RecordId;

#[cfg(feature = "embedded")]
pub use embedded::EmbeddedStore;
#[cfg(feature = "memory")]
pub use memory::MemoryStore;
#[cfg(feature = "postgres")]
pub use postgres::PostgresStore;
#[cfg(feature = "redis")]
pub use redis::RedisStore;

/// What a store's operation returns: an answer that is there already, which takes no allocation, or one to come.
///
/// ```
/// use onceward::store::Pending;
///
/// let now: Pending<'_, bool> = Pending::ready(Ok(true));
/// let later: Pending<'_, bool> = Pending::new(async { Ok(true) });
/// # drop((now, later));
/// ```
#[must_use = "an operation that is not awaited may not happen"]
pub struct Pending<'a, T>(Answer<'a, T>);

enum Answer<'a, T> {
    Ready(Option<Result<T, Error>>),
    Waiting(Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>),
}

impl<'a, T> Pending<'a, T> {
    /// An answer that is there already.
    pub fn ready(answer: Result<T, Error>) -> Self {
        Self(Answer::Ready(Some(answer)))
    }

    /// An answer to come.
    pub fn new(answer: impl Future<Output = Result<T, Error>> + Send + 'a) -> Self {
        Self(Answer::Waiting(Box::pin(answer)))
    }
}

/// No answer is ever pinned: one that is there is handed out, and one to come is in a box.
impl<T> Unpin for Pending<'_, T> {}

impl<T> Future for Pending<'_, T> {
    type Output = Result<T, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Answer::Ready(answer) => {
                Poll::Ready(answer.take().unwrap_or_else(|| Err(Error::unavailable("the answer was taken before"))))
            }
            Answer::Waiting(answer) => answer.as_mut().poll(context),
        }
    }
}

impl<T> Debug for Pending<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Answer::Ready(_) => "Pending::ready",
            Answer::Waiting(_) => "Pending::new",
        })
    }
}

/// Keeps records.
///
/// # The contract
///
/// 1. **Linearizable.** All operations on one id take effect one after the other, in an order that fits what callers saw.
///    Of two racing inserts exactly one wins.
/// 2. **Durable when it returns**, as far as [`Store::facts`] promises it. What is found is durable too: an answer that
///    could still be forgotten is not shown.
/// 3. **Nothing expires by itself.** A store deletes a record by [`Store::remove`] alone; it never evicts a record whose
///    [`due`](Record::due) has not passed, and it may evict tombstones where it is full. A server that ends what is past its
///    time by itself, as the sweep would, may do that to what is completed, released or a tombstone, and need not list it
///    as due; never to a claim or an `unknown`.
/// 4. **Ages by one clock.** [`Found::age`] is the time since the last write of that record, by the store's own clock,
///    which must not go back; where it can only guess, it says less rather than more.
/// 5. **An error that is not [`Applied::No`] leaves the outcome open**: the operation may have taken effect, or may still.
/// 6. **What cannot be read is an error of its id**, never an absent record.
///
/// Dropping a returned future may or may not cancel the operation. There are no default methods: a wrapper that forgets
/// one does not compile.
pub trait Store: Debug + Send + Sync + 'static {
    /// Inserts `record` if nothing is there, and returns `None`. Else changes nothing and returns what is there.
    fn insert<'a>(&'a self, id: &'a RecordId, record: &'a Record) -> Pending<'a, Option<Found>>;

    /// Replaces what is there by `record` if it is still at version `over`; its age is zero then.
    fn replace<'a>(&'a self, id: &'a RecordId, over: Version, record: &'a Record) -> Pending<'a, Replaced>;

    /// Returns what is there.
    fn get<'a>(&'a self, id: &'a RecordId) -> Pending<'a, Option<Found>>;

    /// Removes what is there if it is still at version `over`. Returns whether it was.
    fn remove<'a>(&'a self, id: &'a RecordId, over: Version) -> Pending<'a, bool>;

    /// Returns at most `limit` records whose [`due`](Record::due) has passed, and all whose holder is known to be gone,
    /// changing none. A record that cannot be read is left out, and does not hide the others.
    fn due<'a>(&'a self, limit: usize) -> Pending<'a, Vec<(RecordId, Found)>>;

    /// Inserts a named value if none is there, and returns what is there then.
    fn meta<'a>(&'a self, name: &'a str, value: &'a [u8]) -> Pending<'a, Bytes>;

    /// Counts what is there; cheap enough for once a second.
    fn census(&self) -> Pending<'_, Census>;

    /// What the store is, and what it can promise.
    fn facts(&self) -> Facts;
}

/// Whether a record was replaced.
#[derive(Clone, Debug, PartialEq)]
pub enum Replaced {
    /// It was.
    Yes,
    /// It was not at that version; this is there.
    No(Option<Found>),
}

/// How many records there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Census {
    /// Claims.
    pub in_flight: u64,
    /// Executed, the answer or its head kept.
    pub completed: u64,
    /// Free again.
    pub released: u64,
    /// Nobody knows.
    pub unknown: u64,
    /// Past retention.
    pub tombstones: u64,
    /// About how many bytes all of them take.
    pub bytes: u64,
}

/// What a store is, and what it can promise: for `/status`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Facts {
    /// Its kind, as in its URL.
    pub kind: &'static str,
    /// What is still known after the process was killed.
    pub survives_kill: bool,
    /// What is still known after the machine lost power.
    pub survives_power_loss: bool,
    /// The same in a person's words, with what it does not promise.
    pub promise: String,
    /// The records are in this process's own memory: nothing that was read need be remembered beside them.
    pub in_process: bool,
    /// Why it takes no writes until the process is started again; `None` as long as it may take them.
    pub broken: Option<String>,
}

impl Facts {
    /// All of it.
    pub fn new(kind: &'static str, survives_kill: bool, survives_power_loss: bool, promise: impl Into<String>) -> Self {
        Self { kind, survives_kill, survives_power_loss, promise: promise.into(), in_process: false, broken: None }
    }

    /// Of a store that only a restart helps, and why.
    pub fn broken(mut self, why: Option<String>) -> Self {
        self.broken = why;
        self
    }

    /// Of a store whose records are in this process's own memory.
    pub fn in_process(mut self) -> Self {
        self.in_process = true;
        self
    }
}

/// Why an operation failed.
///
/// `Display` says its own level; `source` says what lies beneath.
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

/// Whether a failed operation took effect: the one thing its caller must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It did not, and will not.
    No,
    /// Nobody knows, or it still may.
    Unknown,
}

impl Error {
    /// There is no room for it. It was not applied.
    pub fn full(what: impl Into<String>) -> Self {
        Self { kind: Kind::Full, what: what.into(), source: None }
    }

    /// The store takes no writes. It was not applied.
    pub fn refused(what: impl Into<String>) -> Self {
        Self { kind: Kind::Refused, what: what.into(), source: None }
    }

    /// What is there cannot be read: a checksum, or a version that this process does not know. Nothing was applied.
    pub fn unreadable(what: impl Into<String>) -> Self {
        Self { kind: Kind::Unreadable, what: what.into(), source: None }
    }

    /// No answer, or an error that leaves open whether it was applied.
    pub fn unavailable(what: impl Into<String>) -> Self {
        Self { kind: Kind::Unavailable, what: what.into(), source: None }
    }

    /// With what lies beneath it.
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into().into());
        self
    }

    /// Whether the operation took effect.
    pub fn applied(&self) -> Applied {
        match self.kind {
            Kind::Full | Kind::Refused | Kind::Unreadable => Applied::No,
            Kind::Unavailable => Applied::Unknown,
        }
    }

    /// Whether the record is there and cannot be read.
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

/// An error with all that lies beneath it, in one line.
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

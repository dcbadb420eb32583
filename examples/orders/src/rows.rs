use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, TransactionBehavior, params};
use serde::Serialize;

use crate::NewOrder;

/// How long a statement waits for another process that has the file locked.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const SCHEMA_VERSION: i64 = 1;
// AUTOINCREMENT: an id is never used again, so what is newer than an id stays newer.
// The database has a name of its own, so that the page notices when it looks at another one.
const SCHEMA: &str = "
    CREATE TABLE orders (
        id         INTEGER PRIMARY KEY AUTOINCREMENT,
        item       TEXT NOT NULL,
        qty        INTEGER NOT NULL,
        created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
    ) STRICT;
    CREATE TABLE about (database TEXT NOT NULL) STRICT;
    INSERT INTO about VALUES (lower(hex(randomblob(8))));
    PRAGMA user_version = 1;
";

/// An order that was placed: a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Order {
    /// Counted up from 1.
    pub id: i64,
    /// What was ordered.
    pub item: String,
    /// How many, from 1 to 1000.
    pub qty: u32,
    /// When, by the database's clock: RFC 3339 in UTC, such as `2026-11-24T06:00:00.000Z`.
    pub created_at: String,
}

/// The orders in a SQLite file. Clones share it.
///
/// Every row is synced to disk before its order is answered.
#[derive(Clone, Debug)]
pub struct Orders {
    connection: Arc<Mutex<Connection>>,
    database: Arc<str>,
}

impl Orders {
    /// Opens the file at `path`, or makes it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let (connection, database) = open(path).map_err(|cause| {
            let doing = format!("cannot open the database `{}`", path.display());
            Error { doing, cause }
        })?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), database: database.into() })
    }

    /// Inserts a row, whether or not there is one like it: this service does not know about retries.
    pub async fn place(&self, order: NewOrder) -> Result<Order, Error> {
        let insert = "INSERT INTO orders (item, qty) VALUES (?1, ?2) RETURNING id, item, qty, created_at";
        self.with("cannot write the order", move |connection| {
            connection.prepare_cached(insert)?.query_row(params![order.item(), order.qty()], read)
        })
        .await
    }

    /// The newest orders, newest first.
    pub async fn list(&self, limit: u32) -> Result<Vec<Order>, Error> {
        let select = "SELECT id, item, qty, created_at FROM orders ORDER BY id DESC LIMIT ?1";
        self.with("cannot read the orders", move |connection| {
            connection.prepare_cached(select)?.query_map([limit], read)?.collect()
        })
        .await
    }

    /// The order with this id, if it exists.
    pub async fn find(&self, id: i64) -> Result<Option<Order>, Error> {
        let select = "SELECT id, item, qty, created_at FROM orders WHERE id = ?1";
        self.with("cannot read the order", move |connection| {
            connection.prepare_cached(select)?.query_row([id], read).optional()
        })
        .await
    }

    /// How many orders there are.
    pub async fn count(&self) -> Result<u64, Error> {
        self.with("cannot count the orders", |connection| {
            let count = connection.prepare_cached("SELECT count(*) FROM orders")?.query_row([], |row| row.get(0));
            count.map(i64::unsigned_abs)
        })
        .await
    }

    /// The name that the database was given when it was made: another one has other orders.
    pub(crate) fn database(&self) -> &str {
        &self.database
    }

    async fn with<T: Send + 'static>(
        &self,
        doing: &str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let connection = self.connection.clone();
        // SQLite waits for the disk; the threads that serve sockets must not.
        let done = tokio::task::spawn_blocking(move || {
            // A panic cannot leave a statement half done: each is a transaction of its own.
            work(&connection.lock().unwrap_or_else(PoisonError::into_inner))
        });
        match done.await {
            Ok(result) => result.map_err(|cause| Error { doing: doing.into(), cause: cause.into() }),
            Err(stopped) => Err(Error { doing: doing.into(), cause: stopped.into() }),
        }
    }
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

fn open(path: &Path) -> Result<(Connection, String), Cause> {
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // In WAL a commit is one sync, and only FULL makes that sync: an order that was answered stays.
    let mode = write_ahead(&connection)?;
    if !mode.eq_ignore_ascii_case("wal") {
        return Err(format!("SQLite stays in journal mode `{mode}` there: choose a file on a local disk").into());
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    // Two processes may open a new file at once: the second to get here finds the tables of the first.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    match transaction.pragma_query_value(None, "user_version", |row| row.get(0))? {
        0 => transaction.execute_batch(SCHEMA)?,
        SCHEMA_VERSION => {}
        version => {
            let known = SCHEMA_VERSION;
            return Err(format!(
                "it has schema version {version}, and this program knows {known}: use a newer program, or another file"
            )
            .into());
        }
    }
    let database = transaction.query_row("SELECT database FROM about", [], |row| row.get(0))?;
    transaction.commit()?;
    Ok((connection, database))
}

/// Switches to WAL, and says what the mode is then.
fn write_ahead(connection: &Connection) -> rusqlite::Result<String> {
    let begun = Instant::now();
    loop {
        let switched = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0));
        match switched {
            // SQLite does not wait here, whatever its time-out: two processes that open a new file at once would
            // wait for each other.
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && begun.elapsed() < BUSY_TIMEOUT =>
            {
                thread::sleep(Duration::from_millis(5));
            }
            done => return done,
        }
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<Order> {
    Ok(Order { id: row.get(0)?, item: row.get(1)?, qty: row.get(2)?, created_at: row.get(3)? })
}

/// The database failed. `Display` says at what, [`source`](std::error::Error::source) why.
#[derive(Debug)]
pub struct Error {
    doing: String,
    cause: Cause,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.doing)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.cause.as_ref())
    }
}

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

/// Timeout of a statement while another process has the file locked.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const SCHEMA_VERSION: i64 = 1;
// AUTOINCREMENT: an id is never reused, so a row that is newer than an id stays newer. The database
// has its own name, so that the page notices another database.
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

/// Stored order: a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Order {
    /// Sequential number from 1.
    pub id: i64,
    /// Ordered item.
    pub item: String,
    /// Quantity, from 1 to 1000.
    pub qty: u32,
    /// Time of the order by the database's clock: RFC 3339 in UTC, such as
    /// `2026-11-24T06:00:00.000Z`.
    pub created_at: String,
}

/// Orders in a SQLite file. Clones share it.
///
/// Every row is synced to disk before the response to its order.
#[derive(Clone, Debug)]
pub struct Orders {
    connection: Arc<Mutex<Connection>>,
    database: Arc<str>,
}

impl Orders {
    /// Opens the file at `path`, or creates it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let (connection, database) = open(path).map_err(|cause| {
            let doing = format!("cannot open the database `{}`", path.display());
            Error { doing, cause }
        })?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), database: database.into() })
    }

    /// Inserts a row, even if there is an equal one: this service does not detect retries.
    pub async fn place(&self, order: NewOrder) -> Result<Order, Error> {
        let insert = "INSERT INTO orders (item, qty) VALUES (?1, ?2) RETURNING id, item, qty, created_at";
        self.with("cannot write the order", move |connection| {
            connection.prepare_cached(insert)?.query_row(params![order.item(), order.qty()], read)
        })
        .await
    }

    /// Returns the newest orders, newest first.
    pub async fn list(&self, limit: u32) -> Result<Vec<Order>, Error> {
        let select = "SELECT id, item, qty, created_at FROM orders ORDER BY id DESC LIMIT ?1";
        self.with("cannot read the orders", move |connection| {
            connection.prepare_cached(select)?.query_map([limit], read)?.collect()
        })
        .await
    }

    /// Returns the order with this id, if it exists.
    pub async fn find(&self, id: i64) -> Result<Option<Order>, Error> {
        let select = "SELECT id, item, qty, created_at FROM orders WHERE id = ?1";
        self.with("cannot read the order", move |connection| {
            connection.prepare_cached(select)?.query_row([id], read).optional()
        })
        .await
    }

    /// Returns the number of orders.
    pub async fn count(&self) -> Result<u64, Error> {
        self.with("cannot count the orders", |connection| {
            let count = connection.prepare_cached("SELECT count(*) FROM orders")?.query_row([], |row| row.get(0));
            count.map(i64::unsigned_abs)
        })
        .await
    }

    /// Returns the name that the database was given at its creation: another database has other
    /// orders.
    pub(crate) fn database(&self) -> &str {
        &self.database
    }

    async fn with<T: Send + 'static>(
        &self,
        doing: &str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let connection = self.connection.clone();
        // SQLite blocks on the disk; the threads that serve sockets must not.
        let done = tokio::task::spawn_blocking(move || {
            // A panic cannot leave a statement half done: each is its own transaction.
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
    // In WAL mode a commit is one sync, and only FULL performs it: an acknowledged order is
    // durable.
    let mode = write_ahead(&connection)?;
    if !mode.eq_ignore_ascii_case("wal") {
        return Err(format!("SQLite stays in journal mode `{mode}` there: choose a file on a local disk").into());
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    // Two processes may open a new file concurrently: the second one finds the tables of the first.
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

/// Switches to WAL mode, and returns the mode that is then in force.
fn write_ahead(connection: &Connection) -> rusqlite::Result<String> {
    let begun = Instant::now();
    loop {
        let switched = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0));
        match switched {
            // SQLite does not wait here, whatever its timeout: two processes that open a new file
            // concurrently would deadlock.
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

/// Database error. `Display` names the failed operation, [`source`](std::error::Error::source) the
/// cause.
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

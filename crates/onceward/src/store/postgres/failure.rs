//! What an error of the server, or of the way to it, means for an operation.

use tokio_postgres::error::{DbError, Severity, SqlState};

use crate::store::Error;

/// What is done about a failed statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It was not applied, and may be sent again over the same connection.
    Again,
    /// The connection is of no use any more; it may have been applied.
    Reconnect,
    /// It was not applied, and would fail again.
    GiveUp,
}

/// What is to be done about an error.
pub(super) fn next(error: &tokio_postgres::Error) -> Next {
    let Some(told) = error.as_db_error() else { return Next::Reconnect };
    if is_fatal(told) {
        return Next::Reconnect;
    }
    let again = [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED, SqlState::LOCK_NOT_AVAILABLE];
    // The server became a standby, forgot what was prepared, or changed a table under it.
    let reconnect = [
        SqlState::READ_ONLY_SQL_TRANSACTION,
        SqlState::INVALID_SQL_STATEMENT_NAME,
        SqlState::DUPLICATE_PSTATEMENT,
        SqlState::FEATURE_NOT_SUPPORTED,
        SqlState::TOO_MANY_CONNECTIONS,
    ];
    match told.code() {
        code if again.contains(code) => Next::Again,
        code if reconnect.contains(code) || code.code().starts_with("08") || code.code().starts_with("57P") => {
            Next::Reconnect
        }
        _ => Next::GiveUp,
    }
}

/// Whether the tables, or all that they stand in, are not there: somebody emptied the database.
pub(super) fn is_schema_gone(error: &tokio_postgres::Error) -> bool {
    [Some(&SqlState::UNDEFINED_TABLE), Some(&SqlState::INVALID_SCHEMA_NAME)].contains(&error.code())
}

/// The store's error for a failed statement or connection.
pub(super) fn error(what: &str, error: tokio_postgres::Error) -> Error {
    let Some(told) = error.as_db_error() else {
        return Error::unavailable(format!("{what}: PostgreSQL does not answer")).because(error);
    };
    // A fatal word may come after the commit.
    if is_fatal(told) || told.code().code().starts_with("08") {
        return Error::unavailable(what).because(error);
    }
    match told.code() {
        &SqlState::DISK_FULL | &SqlState::OUT_OF_MEMORY | &SqlState::INSUFFICIENT_RESOURCES => {
            Error::full(what).because(error)
        }
        _ => Error::refused(what).because(error),
    }
}

fn is_fatal(told: &DbError) -> bool {
    matches!(told.parsed_severity(), Some(Severity::Fatal | Severity::Panic))
}

//! Classification of errors from the server and the connection.

use tokio_postgres::error::{DbError, Severity, SqlState};

use crate::store::Error;

/// Reaction to a failed statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    /// Not applied; may be sent again over the same connection.
    Retry,
    /// May have been applied; the connection is unusable.
    Reconnect,
    /// Not applied; a retry would fail again.
    Fail,
}

/// Classifies an error.
pub(super) fn next(error: &tokio_postgres::Error) -> Reaction {
    let Some(told) = error.as_db_error() else { return Reaction::Reconnect };
    if is_fatal(told) {
        return Reaction::Reconnect;
    }
    let again = [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED, SqlState::LOCK_NOT_AVAILABLE];
    // The server became a standby, lost prepared statements, or changed a table.
    let reconnect = [
        SqlState::READ_ONLY_SQL_TRANSACTION,
        SqlState::INVALID_SQL_STATEMENT_NAME,
        SqlState::DUPLICATE_PSTATEMENT,
        SqlState::FEATURE_NOT_SUPPORTED,
        SqlState::TOO_MANY_CONNECTIONS,
    ];
    match told.code() {
        code if again.contains(code) => Reaction::Retry,
        code if reconnect.contains(code) || code.code().starts_with("08") || code.code().starts_with("57P") => {
            Reaction::Reconnect
        }
        _ => Reaction::Fail,
    }
}

/// Returns true if the tables or their schema are missing: somebody emptied the database.
pub(super) fn is_schema_missing(error: &tokio_postgres::Error) -> bool {
    [Some(&SqlState::UNDEFINED_TABLE), Some(&SqlState::INVALID_SCHEMA_NAME)].contains(&error.code())
}

/// Builds the store's error for a failed statement or connection.
pub(super) fn error(what: &str, error: tokio_postgres::Error) -> Error {
    let Some(told) = error.as_db_error() else {
        return Error::unavailable(format!("{what}: PostgreSQL did not respond")).with_source(error);
    };
    // A fatal error may be reported after the commit.
    if is_fatal(told) || told.code().code().starts_with("08") {
        return Error::unavailable(what).with_source(error);
    }
    match told.code() {
        &SqlState::DISK_FULL | &SqlState::OUT_OF_MEMORY | &SqlState::INSUFFICIENT_RESOURCES => {
            Error::full(what).with_source(error)
        }
        _ => Error::refused(what).with_source(error),
    }
}

fn is_fatal(told: &DbError) -> bool {
    matches!(told.parsed_severity(), Some(Severity::Fatal | Severity::Panic))
}

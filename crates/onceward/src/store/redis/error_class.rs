//! Classification of errors from the server and the connection.

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// Class of an error, which decides whether a command is retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorClass {
    /// Not executed. The server may accept it in a moment.
    Busy,
    /// Not executed. The script is not cached on the server; send its text.
    NoScript,
    /// Not executed. This server no longer accepts writes: find the new master.
    Demoted,
    /// Not executed. The server is out of memory.
    OutOfMemory,
    /// Not executed. The server rejects writes at present, but still serves reads.
    ReadOnly,
    /// May have been executed. The connection was lost.
    ConnectionLost,
    /// Not executed. A retry would fail again.
    Permanent,
}

pub(super) fn classify(error: &RedisError) -> ErrorClass {
    match error.kind() {
        ErrorKind::Server(kind) => match kind {
            ServerErrorKind::BusyLoading
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::Moved
            | ServerErrorKind::Ask => ErrorClass::Busy,
            ServerErrorKind::NoScript => ErrorClass::NoScript,
            ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown => ErrorClass::Demoted,
            // Errors raised in a script carry the code in their message.
            _ => classify_by_message(error),
        },
        ErrorKind::Extension => classify_by_message(error),
        ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig => ErrorClass::Permanent,
        _ => ErrorClass::ConnectionLost,
    }
}

fn classify_by_message(error: &RedisError) -> ErrorClass {
    let message = format!("{} {}", error.code().unwrap_or_default(), error.detail().unwrap_or_default());
    let has_code = |code: &str| message.split(|c: char| !c.is_ascii_uppercase()).any(|it| it == code);
    match () {
        () if has_code("OOM") => ErrorClass::OutOfMemory,
        () if has_code("READONLY") || has_code("MASTERDOWN") || has_code("UNBLOCKED") => ErrorClass::Demoted,
        () if has_code("NOREPLICAS") || has_code("MISCONF") => ErrorClass::ReadOnly,
        () if has_code("BUSY") || has_code("LOADING") => ErrorClass::Busy,
        () if has_code("CLUSTERDOWN") || has_code("TRYAGAIN") => ErrorClass::Busy,
        () => ErrorClass::Permanent,
    }
}

#[cfg(test)]
mod tests {
    use redis::RedisError;

    use super::*;

    #[test]
    fn server_error_codes_map_to_classes() {
        for (line, want) in [
            ("-LOADING Redis is loading the dataset in memory", ErrorClass::Busy),
            (
                "-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
                ErrorClass::Busy,
            ),
            ("-OOM command not allowed when used memory > 'maxmemory'.", ErrorClass::OutOfMemory),
            (
                "-OOM command not allowed when used memory > 'maxmemory'. script: 1f, on @user_script:15.",
                ErrorClass::OutOfMemory,
            ),
            ("-NOSCRIPT No matching script. Please use EVAL.", ErrorClass::NoScript),
            ("-READONLY You can't write against a read only replica.", ErrorClass::Demoted),
            (
                "-READONLY You can't write against a read only replica. script: 1f, on @user_script:15.",
                ErrorClass::Demoted,
            ),
            (
                "-MASTERDOWN ConnectionManager with MASTER is down and replica-serve-stale-data is set to 'no'.",
                ErrorClass::Demoted,
            ),
            ("-CLUSTERDOWN The cluster is down", ErrorClass::Busy),
            ("-TRYAGAIN Multiple keys request during rehashing of slot", ErrorClass::Busy),
            (
                "-MISCONF Redis is configured to save RDB snapshots, but it's unable to persist to disk.",
                ErrorClass::ReadOnly,
            ),
            ("-NOREPLICAS Not enough good replicas to write.", ErrorClass::ReadOnly),
            ("-WRONGTYPE Operation against a key holding the wrong kind of value", ErrorClass::Permanent),
            ("-NOPERM User default has no permissions to run the 'evalsha' command", ErrorClass::Permanent),
            ("-ERR unknown command", ErrorClass::Permanent),
        ] {
            let value = redis::parse_redis_value(format!("{line}\r\n").as_bytes()).unwrap();
            let redis::Value::ServerError(error) = value else { panic!("{line}: no error") };
            assert_eq!(classify(&RedisError::from(error)), want, "{line}");
        }
        let broken = RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!(classify(&broken), ErrorClass::ConnectionLost);
    }
}

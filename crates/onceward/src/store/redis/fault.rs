//! What an error of the server or of the connection means for the command that met it.

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It was not executed; the server may be ready in a moment.
    NotNow,
    /// It was not executed; the script is unknown there and goes along the next time.
    NoScript,
    /// It was not executed; this server takes no writes any more, so another is to be found.
    NotHere,
    /// It was not executed; the server has no room.
    Full,
    /// It was not executed; the server takes no writes now, and may be asked what it knows.
    ReadsAlone,
    /// It may have been executed: the connection failed.
    Lost,
    /// It was not executed, and will not be.
    Never,
}

pub(super) fn judge(error: &RedisError) -> Fault {
    match error.kind() {
        ErrorKind::Server(kind) => match kind {
            ServerErrorKind::BusyLoading
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::Moved
            | ServerErrorKind::Ask => Fault::NotNow,
            ServerErrorKind::NoScript => Fault::NoScript,
            ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown => Fault::NotHere,
            // A script says it in words of its own.
            _ => by_words(error),
        },
        ErrorKind::Extension => by_words(error),
        ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig => Fault::Never,
        _ => Fault::Lost,
    }
}

fn by_words(error: &RedisError) -> Fault {
    let words = format!("{} {}", error.code().unwrap_or_default(), error.detail().unwrap_or_default());
    let says = |word: &str| words.split(|c: char| !c.is_ascii_uppercase()).any(|it| it == word);
    match () {
        () if says("OOM") => Fault::Full,
        () if says("READONLY") || says("MASTERDOWN") || says("UNBLOCKED") => Fault::NotHere,
        () if says("NOREPLICAS") || says("MISCONF") => Fault::ReadsAlone,
        () if says("BUSY") || says("LOADING") => Fault::NotNow,
        () if says("CLUSTERDOWN") || says("TRYAGAIN") => Fault::NotNow,
        () => Fault::Never,
    }
}

#[cfg(test)]
mod tests {
    use redis::RedisError;

    use super::*;

    #[test]
    fn each_word_of_a_server_means_what_it_does() {
        for (line, want) in [
            ("-LOADING Redis is loading the dataset in memory", Fault::NotNow),
            ("-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", Fault::NotNow),
            ("-OOM command not allowed when used memory > 'maxmemory'.", Fault::Full),
            ("-OOM command not allowed when used memory > 'maxmemory'. script: 1f, on @user_script:15.", Fault::Full),
            ("-NOSCRIPT No matching script. Please use EVAL.", Fault::NoScript),
            ("-READONLY You can't write against a read only replica.", Fault::NotHere),
            ("-READONLY You can't write against a read only replica. script: 1f, on @user_script:15.", Fault::NotHere),
            ("-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", Fault::NotHere),
            ("-CLUSTERDOWN The cluster is down", Fault::NotNow),
            ("-TRYAGAIN Multiple keys request during rehashing of slot", Fault::NotNow),
            (
                "-MISCONF Redis is configured to save RDB snapshots, but it's unable to persist to disk.",
                Fault::ReadsAlone,
            ),
            ("-NOREPLICAS Not enough good replicas to write.", Fault::ReadsAlone),
            ("-WRONGTYPE Operation against a key holding the wrong kind of value", Fault::Never),
            ("-NOPERM User default has no permissions to run the 'evalsha' command", Fault::Never),
            ("-ERR unknown command", Fault::Never),
        ] {
            let value = redis::parse_redis_value(format!("{line}\r\n").as_bytes()).unwrap();
            let redis::Value::ServerError(error) = value else { panic!("{line}: no error") };
            assert_eq!(judge(&RedisError::from(error)), want, "{line}");
        }
        let broken = RedisError::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!(judge(&broken), Fault::Lost);
    }
}

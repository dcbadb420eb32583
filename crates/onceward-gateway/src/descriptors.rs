//! File descriptor budget: the limit of the process, and its distribution.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Reserved for the store, the admin listener and its connections, name lookups and logs.
const RESERVED: usize = 128;
/// Upper bound on client connections.
const CONNECTIONS_MAX: usize = 8192;
/// Upper bound on idle connections to the upstream.
const IDLE_MAX: usize = 512;
/// Limit if the system sets none.
const UNBOUNDED: u64 = 1 << 20;

/// Distribution of file descriptors. The sum is below the limit of the process, so that accepting a
/// connection never takes the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    /// Upper bound on client connections.
    pub(crate) connections: usize,
    /// Upper bound on executions, each of which may have a connection to the upstream.
    pub(crate) executions: usize,
    /// Upper bound on idle connections to the upstream.
    pub(crate) idle: usize,
}

impl Budget {
    /// Distributes `files` descriptors, with at most `executions` executions.
    pub(crate) fn of(files: usize, executions: usize) -> Self {
        let free = files.saturating_sub(RESERVED.min(files / 2));
        Self {
            connections: (free / 2).clamp(4, CONNECTIONS_MAX),
            executions: (free * 3 / 8).max(4).min(executions),
            idle: (free / 8).min(IDLE_MAX),
        }
    }
}

/// Raises the soft limit of open files to the hard limit, and returns the limit then in force. The
/// soft limit is 1,024 on many systems, for the sake of programs that use `select`.
pub(crate) fn raise() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, "the limit of open files could not be raised to the hard one");
    }
    usize::try_from(getrlimit(Resource::Nofile).current.unwrap_or(UNBOUNDED).min(UNBOUNDED)).unwrap_or(1024)
}

#[cfg(test)]
mod tests {
    use super::Budget;

    #[test]
    fn budget_never_exceeds_the_open_files() {
        for files in [64, 256, 1024, 4096, 65_536, 1 << 20] {
            let Budget { connections, executions, idle } = Budget::of(files, 4096);
            assert!(connections + executions + idle < files, "{files}");
            assert!(files < 1024 || files - connections - executions - idle >= 100, "{files}");
        }
        assert_eq!(Budget::of(1 << 20, 4096), Budget { connections: 8192, executions: 4096, idle: 512 });
        assert_eq!(Budget::of(1 << 20, 7).executions, 7);
        assert_eq!(Budget::of(1 << 20, 1).executions, 1);
    }
}

//! Server of a shared store: a real one that belongs to this run, with a proxy for each gateway.

use std::net::SocketAddr;
use std::process::Command;

pub(crate) use fault_proxy::{Fault, FaultProxy};
use postgres::Postgres;
use redis::Redis;

#[path = "../../crates/onceward/tests/it/support/fault_proxy.rs"]
mod fault_proxy;
#[path = "../../crates/onceward/tests/it/support/postgres.rs"]
mod postgres;
#[path = "../../crates/onceward/tests/it/support/redis.rs"]
mod redis;
#[path = "../../crates/onceward/tests/it/support/waiting.rs"]
mod waiting;

/// Kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// PostgreSQL 15.
    Postgres,
    /// Redis 7 that syncs each write.
    Redis,
    /// Valkey 9 that syncs each write.
    Valkey,
}

impl Kind {
    /// Returns its name for `--store` and for its page.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::Valkey => "valkey",
        }
    }

    /// Returns its name for people.
    pub(crate) fn in_short(self) -> &'static str {
        match self {
            Self::Postgres => "PostgreSQL",
            Self::Redis => "Redis",
            Self::Valkey => "Valkey",
        }
    }

    /// Returns its name and version, with the relevant settings.
    pub(crate) fn in_words(self) -> &'static str {
        match self {
            Self::Postgres => "PostgreSQL 15 (`fsync` on)",
            Self::Redis => "Redis 7 (`appendonly yes`, `appendfsync always`)",
            Self::Valkey => "Valkey 9 (`appendonly yes`, `appendfsync always`)",
        }
    }
}

/// Running server with its proxies.
#[derive(Debug)]
pub(crate) struct Server {
    process: Process,
    pub(crate) ways: Vec<FaultProxy>,
}

#[derive(Debug)]
enum Process {
    Postgres(Postgres),
    Redis(Redis, String),
}

impl Server {
    /// Starts an empty server with this number of proxies.
    pub(crate) fn start(kind: Kind, ways: usize) -> Self {
        let process = match kind {
            // A restart after a crash is a checkpoint: a small log makes both fast.
            Kind::Postgres => Process::Postgres(Postgres::start(15, "fsync = on\nfull_page_writes = on")),
            Kind::Redis => Process::redis(Redis::start(EACH_WRITE)),
            Kind::Valkey => Process::redis(Redis::valkey(EACH_WRITE)),
        };
        let before = process.address();
        Self { process, ways: (0..ways).map(|_| FaultProxy::before(before)).collect() }
    }

    /// Returns the store's URL through one of the proxies.
    pub(crate) fn url(&self, way: usize) -> String {
        let address = self.ways[way].address;
        match &self.process {
            // Our proxy changes nothing, so prepared statements remain valid.
            Process::Postgres(_) => format!("postgres://postgres@{address}/postgres?prepare=always"),
            Process::Redis(..) => format!("redis://{address}"),
        }
    }

    /// Injects a fault into every proxy.
    pub(crate) fn all(&self, fault: Fault) {
        self.ways.iter().for_each(|way| way.set(fault));
    }

    /// Stops all processes of the server, as a machine that pauses would.
    pub(crate) fn pause(&self) {
        self.signal("STOP");
    }

    /// Continues the server after a pause.
    pub(crate) fn go_on(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        match &self.process {
            Process::Postgres(server) => drop(server.signal(name)),
            Process::Redis(_, pid) => drop(Command::new("kill").args(["-s", name, pid]).output()),
        }
    }

    /// Kills the server as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        match &mut self.process {
            Process::Postgres(server) => server.kill(),
            Process::Redis(server, _) => server.kill(),
        }
    }

    /// Restarts it on the same address, and returns once it responds.
    pub(crate) fn start_again(&mut self) {
        match &mut self.process {
            Process::Postgres(server) => server.start_again(),
            Process::Redis(server, pid) => {
                server.start_again(true);
                *pid = server.pid().to_string();
            }
        }
    }

    /// Makes the server close each connection.
    pub(crate) fn end_connections(&self) {
        match &self.process {
            Process::Postgres(server) => {
                let all = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                     WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
                server.sql("postgres", all);
            }
            Process::Redis(server, _) => drop(server.cli(0, &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])),
        }
    }
}

const EACH_WRITE: &str = "--appendfsync always";

impl Process {
    fn redis(server: Redis) -> Self {
        let pid = server.pid().to_string();
        Self::Redis(server, pid)
    }

    fn address(&self) -> SocketAddr {
        match self {
            Self::Postgres(server) => server.address,
            Self::Redis(server, _) => server.address,
        }
    }
}

//! State that the servers report, and what it means for the guarantees.

use std::fmt::Write;
use std::time::Duration;

use redis::{RedisError, ServerErrorKind, Value};

use super::url::{AcceptedRisks, Kind};

/// State of one server, which is a master or says that it is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Server {
    /// Run id and replication id. If they change, ages reported before and after cannot be
    /// compared.
    pub(super) identity: (String, String),
    /// True if it was a replica before; it does not report since when it is a master.
    was_promoted: bool,
    uptime: Duration,
    /// Its clock, in ms since 1970.
    pub(super) time_ms: Option<u64>,
    is_master: bool,
    pub(super) is_valkey: bool,
    version: String,
    evicts: Option<String>,
    replicas: u64,
    pub(super) memory_bytes: u64,
    persistence: Persistence,
}

/// Persistence, which decides what survives a kill of the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Persistence {
    /// The server does not report it.
    #[default]
    Unknown,
    None,
    Snapshots,
    FsyncEverySecond,
    FsyncByOs,
    FsyncAlways,
}

impl Server {
    /// Parses the reply to `INFO`, and the one to `CONFIG GET save appendfsync` where that is
    /// allowed.
    pub(super) fn read(info: &str, config: Option<&[(String, String)]>) -> Self {
        let get = |name: &str| {
            info.lines().find_map(|line| line.split_once(':').filter(|(key, _)| *key == name)).map_or("", |(_, it)| it)
        };
        let number = |name: &str| get(name).trim().parse::<u64>().unwrap_or_default();
        let set = |name: &str| config?.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let persistence = match (get("aof_enabled").trim(), set("appendfsync"), set("save")) {
            ("1", Some("always"), _) => Persistence::FsyncAlways,
            ("1", Some("no"), _) => Persistence::FsyncByOs,
            // If it is not reported, assume the default, which is also the common setting.
            ("1", _, _) => Persistence::FsyncEverySecond,
            (_, _, Some("")) => Persistence::None,
            (_, _, Some(_)) => Persistence::Snapshots,
            (_, _, None) => Persistence::Unknown,
        };
        let policy = get("maxmemory_policy").trim();
        let is_valkey = get("server_name").trim() == "valkey";
        Self {
            identity: (get("run_id").trim().to_owned(), get("master_replid").trim().to_owned()),
            was_promoted: get("master_replid2").bytes().any(|byte| byte.is_ascii_alphanumeric() && byte != b'0'),
            uptime: Duration::from_secs(number("uptime_in_seconds")),
            time_ms: Some(number("server_time_usec") / 1000).filter(|time| *time > 0),
            is_master: get("role").trim() == "master",
            is_valkey,
            version: get(if is_valkey { "valkey_version" } else { "redis_version" }).trim().to_owned(),
            evicts: (!policy.is_empty() && policy != "noeviction").then(|| policy.to_owned()),
            replicas: number("connected_slaves"),
            memory_bytes: number("used_memory"),
            persistence,
        }
    }

    /// Parses the replies as they were received.
    pub(super) fn from_replies(info: Value, config: Option<Value>) -> Result<Self, RedisError> {
        let info: String = redis::from_redis_value(info)?;
        // While a server loads its append-only file, it reports that it has none.
        if info.lines().any(|line| line.trim() == "loading:1") {
            let what = "the Redis server is loading its dataset from disk";
            return Err(RedisError::from((redis::ErrorKind::Server(ServerErrorKind::BusyLoading), what)));
        }
        let config = config.and_then(|config| {
            let pairs: Vec<String> = redis::from_redis_value(config).ok()?;
            Some(pairs.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect::<Vec<_>>())
        });
        Ok(Self::read(&info, config.as_deref()))
    }

    /// Returns the last known state, without the clock, which is out of date.
    pub(super) fn stale(&self) -> Self {
        Self { time_ms: None, ..self.clone() }
    }

    /// Returns the minimum time for which this server has certainly been the master.
    pub(super) fn observed_for(&self) -> Duration {
        if self.was_promoted { Duration::ZERO } else { self.uptime }
    }
}

/// States of all masters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Servers(pub(super) Vec<Server>);

impl Servers {
    /// Returns the first setting that breaks a guarantee and is not accepted, in one line with the
    /// fix.
    pub(super) fn safety_violation(&self, accepted: AcceptedRisks) -> Option<String> {
        self.0.iter().find_map(|server| {
            if !server.is_master && !accepted.replica {
                return Some(
                    "the Redis server is a replica, which may lag and takes no writes; name the master, or follow it by redis-sentinel:// (or accept the risk: ?accept=replica)".to_owned(),
                );
            }
            if let Some(policy) = server.evicts.as_ref().filter(|_| !accepted.eviction) {
                return Some(format!(
                    "maxmemory-policy is {policy}, so the Redis server may evict keys of executed requests, and a retry would execute again; set it to noeviction (or accept the risk: ?accept=eviction)"
                ));
            }
            match server.persistence {
                _ if accepted.no_persistence => None,
                Persistence::None => Some("the Redis server has no persistence, so a restart loses all keys, and retries would execute again; set appendonly yes (or accept the risk: ?accept=no-persistence)".to_owned()),
                Persistence::Unknown => Some("the Redis server has appendonly off and does not report whether it takes snapshots; allow CONFIG GET, or set appendonly yes (or accept the risk: ?accept=no-persistence)".to_owned()),
                _ => None,
            }
        })
    }

    /// Returns true if every server keeps confirmed writes when its machine loses power.
    pub(super) fn survives_power_loss(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|it| it.persistence == Persistence::FsyncAlways && it.evicts.is_none())
    }

    /// Describes what a crash, a power loss, a failover and a full memory may lose.
    pub(super) fn durability_summary(&self, kind: &Kind) -> String {
        let mut text = String::from("keys outlive every gateway.");
        let mut described: Vec<&Server> = Vec::new();
        for server in &self.0 {
            if described.iter().any(|it| (it.persistence, &it.evicts) == (server.persistence, &server.evicts)) {
                continue;
            }
            described.push(server);
            let name = if server.is_valkey { "Valkey" } else { "Redis" };
            let _ = write!(text, " {name} {}: ", server.version);
            text += match server.persistence {
                Persistence::FsyncAlways => {
                    "a crash and a loss of power forget nothing that was confirmed (appendfsync always)"
                }
                Persistence::FsyncEverySecond => {
                    "a crash of the server forgets what it had not handed to the system, a loss of power up to 2 s of confirmed writes (appendfsync everysec)"
                }
                Persistence::FsyncByOs => {
                    "a loss of power forgets what the system had not written, often 30 s of confirmed writes (appendfsync no)"
                }
                Persistence::Snapshots => {
                    "a crash and a loss of power forget all since the last snapshot (save, without appendonly)"
                }
                Persistence::None => "a crash and a restart forget all keys (no persistence)",
                Persistence::Unknown => {
                    "what a restart forgets is unknown, perhaps all keys (CONFIG GET is not allowed)"
                }
            };
            if let Some(policy) = &server.evicts {
                let _ = write!(text, "; a full memory forgets keys ({policy})");
            }
            text.push('.');
        }
        let replicas: u64 = self.0.iter().map(|server| server.replicas).sum();
        text += match (kind, replicas) {
            (Kind::Alone, 0) => " There is no replica; a server started in its place forgets what it does not have.",
            _ => {
                " A failover forgets confirmed claims and responses that the replica had not received: replication does not wait."
            }
        };
        text += " Where keys are forgotten, a retry executes again.";
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(info: &str, config: Option<&[(&str, &str)]>) -> Server {
        let config: Option<Vec<(String, String)>> =
            config.map(|all| all.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect());
        Server::read(&format!("role:master\r\nmaxmemory_policy:noeviction\r\n{info}"), config.as_deref())
    }

    #[test]
    fn setting_that_breaks_a_guarantee_is_rejected_unless_accepted() {
        let all = AcceptedRisks { eviction: true, no_persistence: true, replica: true };
        let kept = Some(&[("save", "3600 1"), ("appendfsync", "everysec")][..]);
        for (info, config, fix) in [
            ("aof_enabled:1\r\nmaxmemory_policy:allkeys-lru\r\n", kept, ""),
            ("aof_enabled:0", Some(&[("save", ""), ("appendfsync", "everysec")][..]), "appendonly yes"),
            ("aof_enabled:0", None, "allow CONFIG GET"),
            ("aof_enabled:0", kept, ""),
            ("aof_enabled:1", None, ""),
        ] {
            let servers = Servers(vec![server(info, config)]);
            let violation = servers.safety_violation(AcceptedRisks::default()).unwrap_or_default();
            assert_eq!(violation.is_empty(), fix.is_empty(), "{info}: {violation}");
            assert!(violation.contains(fix) && violation.lines().count() <= 1, "{info}: {violation}");
            assert_eq!(servers.safety_violation(all), None);
        }
        for (info, fix) in [
            ("role:slave\nmaxmemory_policy:noeviction\naof_enabled:1", "accept=replica"),
            ("role:master\nmaxmemory_policy:volatile-ttl\naof_enabled:1", "accept=eviction"),
        ] {
            let servers = Servers(vec![Server::read(info, None)]);
            assert!(servers.safety_violation(AcceptedRisks::default()).unwrap().contains(fix));
            assert_eq!(servers.safety_violation(all), None);
        }
    }

    #[test]
    fn only_appendfsync_always_survives_power_loss() {
        for (fsync, survives) in [("always", true), ("everysec", false), ("no", false)] {
            let servers = Servers(vec![server("aof_enabled:1", Some(&[("appendfsync", fsync)]))]);
            assert_eq!(servers.survives_power_loss(), survives, "{fsync}");
            assert!(
                servers.durability_summary(&Kind::Alone).contains(fsync),
                "{}",
                servers.durability_summary(&Kind::Alone)
            );
        }
    }

    #[test]
    fn promoted_replica_is_not_observed_for_its_uptime() {
        let old = server("uptime_in_seconds:900\r\nmaster_replid2:0000000000000000000000000000000000000000", None);
        let promoted = server("uptime_in_seconds:900\r\nmaster_replid2:8371b4fb1155b71f4a04d3e1bc3e18c4a990aeeb", None);
        assert_eq!((old.observed_for(), promoted.observed_for()), (Duration::from_secs(900), Duration::ZERO));
    }
}

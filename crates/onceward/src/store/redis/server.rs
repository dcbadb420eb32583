//! What the servers say of themselves, and what that means for the promises.

use std::fmt::Write;
use std::time::Duration;

use redis::{RedisError, ServerErrorKind, Value};

use super::url::{Accepts, Kind};

/// One server that takes writes, or says that it does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Server {
    /// Another process, or another line of data: its answers about ages cannot be compared with those before.
    pub(super) identity: (String, String),
    /// It was a replica before; for how long it is none, it does not say.
    was_promoted: bool,
    uptime: Duration,
    /// What time it was there, in ms since 1970.
    pub(super) time_ms: Option<u64>,
    is_master: bool,
    pub(super) is_valkey: bool,
    version: String,
    evicts: Option<String>,
    replicas: u64,
    pub(super) memory_bytes: u64,
    persistence: Persistence,
}

/// What is left of its data when it is killed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Persistence {
    /// It does not say.
    #[default]
    Untold,
    None,
    Snapshots,
    EverySecond,
    WhenTheSystemLikes,
    EachWrite,
}

impl Server {
    /// Reads `INFO`, and `CONFIG GET save appendfsync` where that is allowed.
    pub(super) fn read(info: &str, config: Option<&[(String, String)]>) -> Self {
        let get = |name: &str| {
            info.lines().find_map(|line| line.split_once(':').filter(|(key, _)| *key == name)).map_or("", |(_, it)| it)
        };
        let number = |name: &str| get(name).trim().parse::<u64>().unwrap_or_default();
        let set = |name: &str| config?.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let persistence = match (get("aof_enabled").trim(), set("appendfsync"), set("save")) {
            ("1", Some("always"), _) => Persistence::EachWrite,
            ("1", Some("no"), _) => Persistence::WhenTheSystemLikes,
            // Where it is not told, the default, which is also the usual.
            ("1", _, _) => Persistence::EverySecond,
            (_, _, Some("")) => Persistence::None,
            (_, _, Some(_)) => Persistence::Snapshots,
            (_, _, None) => Persistence::Untold,
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

    /// The same, as they were answered.
    pub(super) fn told(info: Value, config: Option<Value>) -> Result<Self, RedisError> {
        let info: String = redis::from_redis_value(info)?;
        // As long as it reads its append-only file it says that it has none.
        if info.lines().any(|line| line.trim() == "loading:1") {
            let what = "the server is loading what it has on its disk";
            return Err(RedisError::from((redis::ErrorKind::Server(ServerErrorKind::BusyLoading), what)));
        }
        let config = config.and_then(|config| {
            let pairs: Vec<String> = redis::from_redis_value(config).ok()?;
            Some(pairs.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect::<Vec<_>>())
        });
        Ok(Self::read(&info, config.as_deref()))
    }

    /// What it said when it was heard last; what time it is there, that does not tell.
    pub(super) fn of_old(&self) -> Self {
        Self { time_ms: None, ..self.clone() }
    }

    /// For how long it surely has been the one that it is.
    pub(super) fn known_for(&self) -> Duration {
        if self.was_promoted { Duration::ZERO } else { self.uptime }
    }
}

/// All that take writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Servers(pub(super) Vec<Server>);

impl Servers {
    /// What voids a promise and is not accepted: one line with the mend.
    pub(super) fn refusal(&self, accepts: Accepts) -> Option<String> {
        self.0.iter().find_map(|server| {
            if !server.is_master && !accepts.replica {
                return Some(
                    "the server is a replica, which may be behind and takes no writes; name the master, or follow it by redis-sentinel:// (or accept it knowingly: ?accept=replica)".to_owned(),
                );
            }
            if let Some(policy) = server.evicts.as_ref().filter(|_| !accepts.eviction) {
                return Some(format!(
                    "maxmemory-policy is {policy}, so the server may forget keys that were executed, and a retry would execute again; set it to noeviction (or accept it knowingly: ?accept=eviction)"
                ));
            }
            match server.persistence {
                _ if accepts.no_persistence => None,
                Persistence::None => Some("the server keeps nothing on its disk, so a restart forgets all keys, and retries would execute again; set appendonly yes (or accept it knowingly: ?accept=no-persistence)".to_owned()),
                Persistence::Untold => Some("the server has appendonly off and does not say whether it makes snapshots; allow CONFIG GET, or set appendonly yes (or accept it knowingly: ?accept=no-persistence)".to_owned()),
                _ => None,
            }
        })
    }

    /// Whether every one keeps what it confirmed over a loss of power.
    pub(super) fn survives_power_loss(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|it| it.persistence == Persistence::EachWrite && it.evicts.is_none())
    }

    /// What a crash, a loss of power, a failover and a full memory may forget.
    pub(super) fn promise(&self, kind: &Kind) -> String {
        let mut text = String::from("keys outlive every gateway.");
        let mut said: Vec<&Server> = Vec::new();
        for server in &self.0 {
            if said.iter().any(|it| (it.persistence, &it.evicts) == (server.persistence, &server.evicts)) {
                continue;
            }
            said.push(server);
            let name = if server.is_valkey { "Valkey" } else { "Redis" };
            let _ = write!(text, " {name} {}: ", server.version);
            text += match server.persistence {
                Persistence::EachWrite => {
                    "a crash and a loss of power forget nothing that was confirmed (appendfsync always)"
                }
                Persistence::EverySecond => {
                    "a crash of the server forgets what it had not handed to the system, a loss of power up to 2 s of confirmed writes (appendfsync everysec)"
                }
                Persistence::WhenTheSystemLikes => {
                    "a loss of power forgets what the system had not written, often 30 s of confirmed writes (appendfsync no)"
                }
                Persistence::Snapshots => {
                    "a crash and a loss of power forget all since the last snapshot (save, without appendonly)"
                }
                Persistence::None => "a crash and a restart forget all keys (no persistence)",
                Persistence::Untold => {
                    "what a restart forgets is not told, perhaps all keys (CONFIG GET is not allowed)"
                }
            };
            if let Some(policy) = &server.evicts {
                let _ = write!(text, "; a full memory forgets keys ({policy})");
            }
            text.push('.');
        }
        let replicas: u64 = self.0.iter().map(|server| server.replicas).sum();
        text += match (kind, replicas) {
            (Kind::Alone, 0) => {
                " There is no replica; whoever brings up another server in its place forgets what that one does not have."
            }
            _ => {
                " A failover forgets confirmed claims and answers that the replica had not received: replication does not wait."
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
    fn what_voids_a_promise_is_refused_unless_it_is_accepted() {
        let all = Accepts { eviction: true, no_persistence: true, replica: true };
        let kept = Some(&[("save", "3600 1"), ("appendfsync", "everysec")][..]);
        for (info, config, mend) in [
            ("aof_enabled:1\r\nmaxmemory_policy:allkeys-lru\r\n", kept, ""),
            ("aof_enabled:0", Some(&[("save", ""), ("appendfsync", "everysec")][..]), "appendonly yes"),
            ("aof_enabled:0", None, "allow CONFIG GET"),
            ("aof_enabled:0", kept, ""),
            ("aof_enabled:1", None, ""),
        ] {
            let servers = Servers(vec![server(info, config)]);
            let refusal = servers.refusal(Accepts::default()).unwrap_or_default();
            assert_eq!(refusal.is_empty(), mend.is_empty(), "{info}: {refusal}");
            assert!(refusal.contains(mend) && refusal.lines().count() <= 1, "{info}: {refusal}");
            assert_eq!(servers.refusal(all), None);
        }
        for (info, mend) in [
            ("role:slave\nmaxmemory_policy:noeviction\naof_enabled:1", "accept=replica"),
            ("role:master\nmaxmemory_policy:volatile-ttl\naof_enabled:1", "accept=eviction"),
        ] {
            let servers = Servers(vec![Server::read(info, None)]);
            assert!(servers.refusal(Accepts::default()).unwrap().contains(mend));
            assert_eq!(servers.refusal(all), None);
        }
    }

    #[test]
    fn only_a_sync_of_each_write_survives_a_loss_of_power() {
        for (fsync, survives) in [("always", true), ("everysec", false), ("no", false)] {
            let servers = Servers(vec![server("aof_enabled:1", Some(&[("appendfsync", fsync)]))]);
            assert_eq!(servers.survives_power_loss(), survives, "{fsync}");
            assert!(servers.promise(&Kind::Alone).contains(fsync), "{}", servers.promise(&Kind::Alone));
        }
    }

    #[test]
    fn one_that_was_promoted_is_not_known_for_its_uptime() {
        let old = server("uptime_in_seconds:900\r\nmaster_replid2:0000000000000000000000000000000000000000", None);
        let promoted = server("uptime_in_seconds:900\r\nmaster_replid2:8371b4fb1155b71f4a04d3e1bc3e18c4a990aeeb", None);
        assert_eq!((old.known_for(), promoted.known_for()), (Duration::from_secs(900), Duration::ZERO));
    }
}

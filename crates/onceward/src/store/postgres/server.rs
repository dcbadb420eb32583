//! State that the server reports, and what it means for the guarantees.

use std::time::Duration;

use tokio_postgres::Client;

use super::failure;
use crate::store::{Error, StoreInfo};

/// State of a server.
#[derive(Clone, Debug, Default)]
pub(super) struct Server {
    pub(super) is_standby: bool,
    pub(super) timeline: u64,
    /// Start time in microseconds since 1970, by the server's clock.
    pub(super) started: i64,
    uptime: Duration,
    /// Port of the client, as the server sees it.
    pub(super) client_port: Option<u16>,
    fsync: bool,
    full_page_writes: bool,
    standbys: String,
    version: String,
}

// The timeline is parsed from the WAL file name: `pg_control` learns of it only at a checkpoint.
const QUERY: &str = "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::bool, \
    CASE WHEN pg_is_in_recovery() THEN '00000000' ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END, \
    inet_client_port(), current_setting('fsync')::bool, current_setting('full_page_writes')::bool, \
    current_setting('synchronous_standby_names'), current_setting('server_version'), \
    (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint, \
    (extract(epoch FROM clock_timestamp() - pg_postmaster_start_time()) * 1000000)::bigint";

impl Server {
    pub(super) async fn query(client: &Client) -> Result<Self, Error> {
        let row = client
            .query_typed_one(QUERY, &[])
            .await
            .map_err(|error| failure::error("the health check of PostgreSQL failed", error))?;
        let port: Option<i32> = row.get(2);
        Ok(Self {
            is_standby: row.get(0),
            timeline: u64::from_str_radix(row.get(1), 16).unwrap_or(0),
            client_port: port.and_then(|port| u16::try_from(port).ok()),
            fsync: row.get(3),
            full_page_writes: row.get(4),
            standbys: row.get(5),
            version: row.get(6),
            started: row.get(7),
            uptime: Duration::from_micros(u64::try_from(row.get::<_, i64>(8)).unwrap_or(0)),
        })
    }

    /// Returns the minimum time for which this server has certainly been the primary. A promoted
    /// one does not report since when.
    pub(super) fn observed_for(&self) -> Duration {
        if self.timeline > 1 { Duration::ZERO } else { self.uptime }
    }

    /// Returns the setting that breaks a guarantee and is not accepted, if there is one; claims are
    /// rejected then.
    pub(super) fn safety_violation(&self, accepted: &[String]) -> Option<String> {
        let settings =
            [(self.fsync, "fsync", "fsync-off"), (self.full_page_writes, "full_page_writes", "full-page-writes-off")];
        let is_off =
            |(is_on, _, word): &(bool, &str, &str)| !is_on && !accepted.iter().any(|accepted| accepted == word);
        settings.into_iter().find(is_off).map(|(_, setting, word)| {
            format!(
                "PostgreSQL's {setting} is off: a power loss may lose keys, and their requests would execute again; turn \
                it on, or accept it with ?accept={word}"
            )
        })
    }

    /// Describes the server and its durability.
    pub(super) fn info(&self) -> StoreInfo {
        let survives_power_loss = self.fsync && self.full_page_writes;
        let mut promise = format!("PostgreSQL {}; a crash of the server forgets nothing", self.version);
        promise.push_str(match survives_power_loss {
            true => {
                "; each claim and answer is synced to its disk, so a loss of power forgets nothing that the disk kept"
            }
            false if self.fsync => "; full_page_writes is off, so a loss of power may damage it and forget any key",
            false => "; fsync is off, so a loss of power may damage it and forget any key",
        });
        promise.push_str(&match self.standbys.trim() {
            "" => {
                "; no standby is synchronous, so a failover may forget the last keys, and their retries would execute \
                   again"
                    .to_owned()
            }
            names => format!("; a failover to a synchronous standby ({names}) forgets nothing, one to another may"),
        });
        StoreInfo::new("postgres", true, survives_power_loss, promise)
    }
}

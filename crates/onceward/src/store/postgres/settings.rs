//! Connection URL of PostgreSQL.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio_postgres::config::{Config, Host, SslMode};

use super::tls;

/// Settings parsed from a `postgres://` URL.
#[derive(Clone)]
pub struct Settings {
    pub(super) config: Config,
    /// TLS configuration; `None` for plain text.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// Upper bound on connections that carry keys.
    pub(super) connections: usize,
    /// Prepares statements if true; `None` prepares them unless a pooler is detected.
    pub(super) prepare: Option<bool>,
    /// Unsafe server settings that are accepted explicitly.
    pub(super) accepted: Vec<String>,
    pub(super) timeout: Duration,
}

/// Paths of PEM files.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) root: Option<String>,
    pub(super) certificate: Option<String>,
    pub(super) key: Option<String>,
}

/// Values of `accept`.
const ACCEPTABLE: [&str; 2] = ["fsync-off", "full-page-writes-off"];

/// Default timeout, a little less than the engine's.
const TIMEOUT: Duration = Duration::from_millis(1800);

/// Default number of connections. Two suffice while the server is fast.
const CONNECTIONS: usize = 12;

impl FromStr for Settings {
    type Err = String;

    /// # Errors
    ///
    /// Returns one line with the fix and without the password.
    fn from_str(url: &str) -> Result<Self, String> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut files, mut ours) = (Files::default(), Ours::default());
        let mut theirs = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "sslrootcert" => files.root = Some(value.to_owned()),
                "sslcert" => files.certificate = Some(value.to_owned()),
                "sslkey" => files.key = Some(value.to_owned()),
                _ if !ours.take(name, value)? => theirs.push(pair),
                _ => {}
            }
        }
        if files.certificate.is_some() != files.key.is_some() {
            return Err("sslcert and sslkey belong together; give both, or none".into());
        }
        let rest = if theirs.is_empty() { base.to_owned() } else { format!("{base}?{}", theirs.join("&")) };
        let mut config = Config::from_str(&rest).map_err(|error| {
            let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            format!("the URL cannot be read ({why}); write postgres://USER:PASSWORD@HOST:5432/DATABASE")
        })?;
        if config.get_hosts().is_empty() {
            return Err("the URL names no host; write postgres://USER:PASSWORD@HOST:5432/DATABASE".into());
        }
        if config.get_application_name().is_none() {
            config.application_name("onceward");
        }
        let encrypted = ours.encrypted.unwrap_or_else(|| !config.get_hosts().iter().all(is_here));
        config.ssl_mode(if encrypted { SslMode::Require } else { SslMode::Disable });
        let tls = encrypted.then(|| tls::config(&files)).transpose()?;
        let connections = ours.connections.unwrap_or(CONNECTIONS);
        Ok(Self { config, tls, connections, prepare: ours.prepare, accepted: ours.accepted, timeout: TIMEOUT })
    }
}

impl Settings {
    /// Sets how long an operation may wait for a connection. The default is 1.8 s.
    ///
    /// Operations that waited longer are rejected without being sent.
    /// Keep it below the caller's timeout: a rejection by the store means that nothing was applied.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

#[derive(Default)]
struct Ours {
    encrypted: Option<bool>,
    connections: Option<usize>,
    prepare: Option<bool>,
    accepted: Vec<String>,
}

impl Ours {
    /// Parses a parameter of our own. Returns false if it is not one.
    fn take(&mut self, name: &str, value: &str) -> Result<bool, String> {
        match (name, value) {
            ("sslmode", "disable") => self.encrypted = Some(false),
            // Encryption without verification is no better than plain text, so all of these verify.
            ("sslmode", "require" | "verify-ca" | "verify-full") => self.encrypted = Some(true),
            ("sslmode", _) => {
                return Err(
                    "sslmode must be \"disable\" or \"verify-full\"; the modes in between do not verify the server"
                        .into(),
                );
            }
            ("connections", value) => match value.parse() {
                Ok(count @ 1..=100) => self.connections = Some(count),
                _ => return Err(format!("connections={value} is not between 1 and 100")),
            },
            ("prepare", "always") => self.prepare = Some(true),
            ("prepare", "never") => self.prepare = Some(false),
            ("prepare", "auto") => self.prepare = None,
            ("prepare", value) => return Err(format!("prepare={value} is not known; write always, never or auto")),
            ("accept", value) => {
                for word in value.split(',') {
                    if !ACCEPTABLE.contains(&word) {
                        return Err(format!("accept={word} is not known; there are {}", ACCEPTABLE.join(" and ")));
                    }
                    self.accepted.push(word.to_owned());
                }
            }
            ("target_session_attrs", "read-write") => {}
            ("target_session_attrs", _) => {
                return Err("target_session_attrs is always read-write: a standby cannot take a claim".into());
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// Returns true if the host is this machine.
fn is_here(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => name == "localhost" || name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback()),
        #[cfg(unix)]
        Host::Unix(_) => true,
    }
}

/// Formats the settings without the password.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("hosts", &self.config.get_hosts())
            .field("ports", &self.config.get_ports())
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_url_is_one_line_with_the_fix_and_no_password() {
        for (url, want) in [
            ("postgres://", "names no host"),
            ("postgres://u:hidden@db:port/x", "write postgres://USER"),
            ("postgres://u:hidden@db/x?sslmode=prefer", "sslmode must be"),
            ("postgres://u:hidden@db/x?connections=0", "between 1 and 100"),
            ("postgres://u:hidden@db/x?prepare=perhaps", "always, never or auto"),
            ("postgres://u:hidden@db/x?accept=anything", "fsync-off and full-page-writes-off"),
            ("postgres://u:hidden@db/x?target_session_attrs=any", "a standby cannot take a claim"),
            ("postgres://u:hidden@db/x?sslcert=a", "give both"),
            ("postgres://u:hidden@db/x?sslrootcert=/nowhere", "/nowhere cannot be read"),
            ("postgres://u:hidden@db/x?colour=red", "colour"),
        ] {
            let error = url.parse::<Settings>().unwrap_err();
            assert!(error.contains(want) && !error.contains("hidden") && !error.contains('\n'), "{url}: {error}");
        }
    }

    #[test]
    fn remote_connection_is_encrypted() {
        for (url, want) in [
            ("postgres://u@localhost/x", false),
            ("postgres://u@127.0.0.1,[::1]/x", false),
            ("postgres://u@db.example/x", true),
            ("postgres://u@127.0.0.1,db.example/x", true),
            ("postgres://u@db.example/x?sslmode=disable", false),
            ("postgres://u@localhost/x?sslmode=verify-full", true),
        ] {
            assert_eq!(url.parse::<Settings>().unwrap().tls.is_some(), want, "{url}");
        }
    }
}

//! What the URL says.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio_postgres::config::{Config, Host, SslMode};

use super::tls;

/// What `onceward` makes of a `postgres://` URL.
#[derive(Clone)]
pub struct Settings {
    pub(super) config: Config,
    /// `None`: in the clear.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// How many connections carry keys at most.
    pub(super) connections: usize,
    /// Whether statements are prepared; `None`: where nothing stands between us and the server.
    pub(super) prepare: Option<bool>,
    /// What of the server's settings voids a promise and is accepted all the same.
    pub(super) accepted: Vec<String>,
    pub(super) timeout: Duration,
}

/// Paths of certificates.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) root: Option<String>,
    pub(super) certificate: Option<String>,
    pub(super) key: Option<String>,
}

/// What can be accepted.
const ACCEPTABLE: [&str; 2] = ["fsync-off", "full-page-writes-off"];

/// A little less than the engine waits.
const TIMEOUT: Duration = Duration::from_millis(1800);

/// Two are enough as long as the server is quick; the others are for when it is not.
const CONNECTIONS: usize = 12;

impl FromStr for Settings {
    type Err = String;

    /// # Errors
    ///
    /// One line with the mend, and no password in it.
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
    /// How long a question may wait for a connection to carry it; then it is refused, and was not sent. 1.8 s unless it is said.
    /// Less than whoever asks waits: to be refused by the store is to know that nothing was applied.
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
    /// Whether this was one of our own.
    fn take(&mut self, name: &str, value: &str) -> Result<bool, String> {
        match (name, value) {
            ("sslmode", "disable") => self.encrypted = Some(false),
            // Encrypted without a look at who answers is no better than in the clear: all of these verify.
            ("sslmode", "require" | "verify-ca" | "verify-full") => self.encrypted = Some(true),
            ("sslmode", _) => {
                return Err("sslmode is \"disable\" or \"verify-full\"; what is in between protects from nobody".into());
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

/// Whether nobody is between us and the server.
fn is_here(host: &Host) -> bool {
    match host {
        Host::Tcp(name) => name == "localhost" || name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback()),
        #[cfg(unix)]
        Host::Unix(_) => true,
    }
}

/// Without the password.
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
    fn what_is_wrong_with_a_url_is_one_line_with_the_mend_and_no_password() {
        for (url, want) in [
            ("postgres://", "names no host"),
            ("postgres://u:hidden@db:port/x", "write postgres://USER"),
            ("postgres://u:hidden@db/x?sslmode=prefer", "sslmode is"),
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
    fn what_leaves_the_machine_is_encrypted() {
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

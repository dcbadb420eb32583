//! Connection URL of Redis or Valkey.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Addresses, credentials and accepted risks of the servers.
///
/// ```
/// use onceward::store::redis::Options;
///
/// let options = Options::parse("redis-sentinel://onceward:secret@10.0.0.1:26379,10.0.0.2/orders").unwrap();
/// assert_eq!(options.to_string(), "redis-sentinel://10.0.0.1:26379,10.0.0.2:26379/orders");
/// let error = Options::parse("redis://10.0.0.1/?accept=everything").unwrap_err();
/// assert!(error.contains("accept=eviction"), "{error}");
/// ```
#[derive(Clone)]
pub struct Options {
    pub(super) kind: Kind,
    pub(super) hosts: Vec<(String, u16)>,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) db: i64,
    pub(super) tls: Option<Tls>,
    pub(super) accepted: AcceptedRisks,
    pub(super) timeout: Duration,
    pub(super) inline_max: usize,
}

/// Topology of the servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Alone,
    Sentinel { master: String, user: Option<String>, password: Option<String> },
    Cluster,
}

/// Paths of PEM files.
#[derive(Clone, Debug, Default)]
pub(super) struct Tls {
    pub(super) ca: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

/// Risks that break a guarantee and are accepted explicitly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct AcceptedRisks {
    pub(super) eviction: bool,
    pub(super) no_persistence: bool,
    pub(super) replica: bool,
}

/// Largest inline response by default: up to here it costs a reader less than another key costs.
const INLINE_MAX: usize = 16 << 10;

const KNOWS: &str = "write tls, ca, cert, key, accept, sentinel-user or sentinel-password";

impl Options {
    /// Parses a URL: `redis://`, `rediss://` (TLS), `redis-sentinel://HOST,HOST/MASTER` or
    /// `redis-cluster://HOST,HOST`.
    ///
    /// `USER:PASSWORD@`, percent-encoded, may precede the hosts. A path with the database number
    /// may follow a single host.
    /// The query takes `tls=true` (Sentinel and Cluster), and `ca=FILE`, `cert=FILE` and `key=FILE`
    /// in PEM.
    /// It also takes `sentinel-user` and `sentinel-password`.
    /// `accept=` takes any of `eviction`, `no-persistence` and `replica`, separated by commas.
    ///
    /// # Errors
    ///
    /// Returns one line that names the fix and never contains a password.
    pub fn parse(url: &str) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").ok_or("is not a URL; write redis://HOST:PORT")?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (who, places) = rest.rsplit_once('@').unwrap_or(("", rest));
        let (hosts, path) = places.split_once('/').unwrap_or((places, ""));
        let (user, password) = match who.split_once(':') {
            Some((user, password)) => (some(user)?, some(password)?),
            None => (some(who)?, None),
        };
        if user.is_some() && password.is_none() {
            return Err("has a user without a password; write USER:PASSWORD@ before the host, or :PASSWORD@".into());
        }
        let query = Query::parse(query)?;
        let port = if scheme == "redis-sentinel" { 26_379 } else { 6379 };
        let hosts: Vec<_> = hosts.split(',').map(|host| host_and_port(host, port)).collect::<Result<_, _>>()?;
        let kind = match scheme {
            "redis" | "rediss" if hosts.len() == 1 => Kind::Alone,
            "redis" | "rediss" => {
                return Err("names more than one host; write redis-sentinel:// or redis-cluster:// for those".into());
            }
            "redis-sentinel" => {
                let master = path.split('/').next().unwrap_or_default();
                if master.is_empty() {
                    return Err(
                        "does not name the Sentinel master; write redis-sentinel://HOST:26379,HOST:26379/MASTER".into(),
                    );
                }
                Kind::Sentinel {
                    master: decoded(master)?,
                    user: query.sentinel_user,
                    password: query.sentinel_password,
                }
            }
            "redis-cluster" => Kind::Cluster,
            other => {
                return Err(format!(
                    "{other:?} is not a scheme of Redis; write redis://, rediss://, redis-sentinel:// or redis-cluster://"
                ));
            }
        };
        let db = match &kind {
            Kind::Sentinel { .. } => path.split_once('/').map_or("", |(_, db)| db),
            _ => path,
        };
        let db = match db {
            "" => 0,
            db => db
                .parse()
                .ok()
                .filter(|db| (0..=0xffff).contains(db))
                .ok_or_else(|| format!("{db:?} is not a database number; write /0, or leave it out"))?,
        };
        if kind == Kind::Cluster && db != 0 {
            return Err("names a database, and a cluster has only one; leave the number out".into());
        }
        let wants_tls = scheme == "rediss" || query.tls;
        let files = [&query.files.ca, &query.files.cert, &query.files.key];
        if !wants_tls && files.iter().any(|file| file.is_some()) {
            return Err("names certificates without TLS; write rediss://, or add tls=true".into());
        }
        if query.files.cert.is_some() != query.files.key.is_some() {
            return Err("names only one of cert and key; a client certificate requires both".into());
        }
        let tls = wants_tls.then_some(query.files);
        let timeout = Duration::from_millis(1800);
        Ok(Self { kind, hosts, user, password, db, tls, accepted: query.accepted, timeout, inline_max: INLINE_MAX })
    }

    /// Sets the timeout of one operation, including connecting and retries. The default is 1.8 s.
    ///
    /// A server that hangs is detected by the health check once a second.
    /// So a command that was sent to one may fail some seconds later than the timeout.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the size in bytes up to which a response is stored inline, in its record. The default
    /// is 16 KiB.
    ///
    /// One command replays an inline response; a larger one is external and has a key of its own.
    pub fn max_inline_response(mut self, bytes: usize) -> Self {
        self.inline_max = bytes;
        self
    }

    pub(super) fn name(&self) -> &'static str {
        match self.kind {
            Kind::Alone if self.tls.is_some() => "rediss",
            Kind::Alone => "redis",
            Kind::Sentinel { .. } => "redis-sentinel",
            Kind::Cluster => "redis-cluster",
        }
    }
}

/// Formats the URL without user and password, for logs.
impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.hosts.iter().map(|(host, port)| format!("{}:{port}", bracketed(host))).collect();
        write!(f, "{}://{}", self.name(), hosts.join(","))?;
        match &self.kind {
            Kind::Sentinel { master, .. } => write!(f, "/{master}"),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Options({self})")
    }
}

#[derive(Default)]
struct Query {
    tls: bool,
    files: Tls,
    accepted: AcceptedRisks,
    sentinel_user: Option<String>,
    sentinel_password: Option<String>,
}

impl Query {
    fn parse(text: &str) -> Result<Self, String> {
        let mut query = Self::default();
        for part in text.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            match name {
                "tls" => {
                    query.tls = match value {
                        "true" => true,
                        "false" => false,
                        _ => return Err("tls is true or false".into()),
                    }
                }
                "ca" => query.files.ca = some(value)?.map(PathBuf::from),
                "cert" => query.files.cert = some(value)?.map(PathBuf::from),
                "key" => query.files.key = some(value)?.map(PathBuf::from),
                "sentinel-user" => query.sentinel_user = some(value)?,
                "sentinel-password" => query.sentinel_password = some(value)?,
                "accept" => {
                    for accepted in value.split(',').filter(|word| !word.is_empty()) {
                        match accepted {
                            "eviction" => query.accepted.eviction = true,
                            "no-persistence" => query.accepted.no_persistence = true,
                            "replica" => query.accepted.replica = true,
                            other => {
                                return Err(format!(
                                    "{other:?} cannot be accepted; write accept=eviction, no-persistence or replica"
                                ));
                            }
                        }
                    }
                }
                other => return Err(format!("{other:?} is not a known query parameter; {KNOWS}")),
            }
        }
        Ok(query)
    }
}

fn host_and_port(text: &str, port: u16) -> Result<(String, u16), String> {
    let invalid = || format!("{text:?} is not a host; write HOST:PORT");
    let (host, digits) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or_else(invalid)?;
            (host, rest.strip_prefix(':'))
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let port = match digits {
        None => port,
        Some(digits) => digits.parse().ok().filter(|port| *port > 0).ok_or_else(invalid)?,
    };
    let is_host = |c: char| c.is_ascii_alphanumeric() || ".-_:%".contains(c);
    match !host.is_empty() && host.chars().all(is_host) {
        true => Ok((host.to_owned(), port)),
        false => Err(invalid()),
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

fn some(text: &str) -> Result<Option<String>, String> {
    let text = decoded(text)?;
    Ok((!text.is_empty()).then_some(text))
}

/// Decodes percent-encoded text. The text may be a password, so errors do not repeat it.
fn decoded(text: &str) -> Result<String, String> {
    let invalid = || "has a % that begins no byte; write %25 for a percent sign".to_owned();
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok()).ok_or_else(invalid)?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| invalid())?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_parts_are_parsed() {
        let options = Options::parse("rediss://us%40er:p%3Aw@[::1]:7000/3?ca=a.pem&cert=b.pem&key=c%20d.pem").unwrap();
        assert_eq!((options.user.as_deref(), options.password.as_deref()), (Some("us@er"), Some("p:w")));
        assert_eq!((options.hosts.as_slice(), options.db), (&[("::1".to_owned(), 7000)][..], 3));
        let tls = options.tls.clone().unwrap();
        assert_eq!(tls.key.unwrap().to_str(), Some("c d.pem"));
        assert_eq!(options.to_string(), "rediss://[::1]:7000");

        let options = Options::parse("redis-cluster://a,b:1?accept=eviction,no-persistence&tls=true").unwrap();
        assert_eq!(options.hosts, [("a".to_owned(), 6379), ("b".to_owned(), 1)]);
        assert_eq!(options.accepted, AcceptedRisks { eviction: true, no_persistence: true, replica: false });
        assert!(options.tls.is_some());
    }

    #[test]
    fn invalid_url_is_reported_without_the_password() {
        for (url, fix) in [
            ("redis", "redis://HOST"),
            ("redis://", "HOST:PORT"),
            ("redis://a,b", "redis-sentinel://"),
            ("redis://a:no", "HOST:PORT"),
            ("redis://a/x", "/0"),
            ("redis-cluster://a/1", "leave the number out"),
            ("redis-sentinel://a:1", "/MASTER"),
            ("redis-cloud://a", "redis-cluster://"),
            ("redis://me@a", "USER:PASSWORD@"),
            ("redis://:geheim%zz@a", "%25"),
            ("redis://:geheim@a?ca=x", "rediss://"),
            ("rediss://a?cert=x", "requires both"),
            ("redis://:geheim@a?accept=all", "accept=eviction"),
            ("redis://:geheim@a?pool=9", "sentinel-password"),
        ] {
            let error = Options::parse(url).unwrap_err();
            assert!(error.contains(fix) && !error.contains("geheim"), "{url}: {error}");
            assert_eq!(error.lines().count(), 1);
        }
    }
}

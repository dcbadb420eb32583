//! Connects to the first host that accepts writes and is on the latest timeline seen.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_postgres::config::Host;
use tokio_postgres::{Client, NoTls};

use super::failure::{self, Reaction};
use super::schema;
use super::server::Server;
use super::settings::Settings;
use super::statements::Statements;
use super::tls::Connector;
use crate::clock::Clock;
use crate::store::Error;

/// Upper bound on open connections, as a multiple of the configured pool size.
///
/// A connection whose statement hangs is replaced, but stays open until the server responds.
const OPEN_MAX_FACTOR: usize = 3;

/// Timeout of connecting to one host.
const CONNECT: Duration = Duration::from_secs(2);

/// Opens connections, and remembers the last known state of the server.
#[derive(Debug)]
pub(super) struct Connect {
    settings: Settings,
    /// Highest timeline seen. A server on a lower one is a former primary.
    timeline: AtomicU64,
    /// Last state reported by the server.
    server: RwLock<Server>,
    /// Number of open connections, including replaced ones.
    open: Arc<AtomicUsize>,
    clock: Arc<dyn Clock>,
    known: Mutex<Option<Known>>,
    /// True if the tables were found missing; the next connection creates them.
    schema_missing: AtomicBool,
}

/// Time for which this server instance had been observed at `at`.
#[derive(Clone, Copy, Debug)]
struct Known {
    started: i64,
    before: Duration,
    at: Duration,
}

/// Open connection, and the server at its other end.
pub(super) struct Connected {
    pub(super) client: Client,
    pub(super) timeline: u64,
    /// True if no pooler is in between, so that the session is ours.
    pub(super) is_direct: bool,
    /// True if prepared statements can be used.
    pub(super) prepares: bool,
}

impl Connect {
    pub(super) fn new(settings: Settings, clock: Arc<dyn Clock>) -> Self {
        Self {
            settings,
            timeline: AtomicU64::new(0),
            server: RwLock::default(),
            open: Arc::default(),
            clock,
            known: Mutex::default(),
            schema_missing: AtomicBool::new(false),
        }
    }

    /// Returns the last state reported by the server.
    pub(super) fn server(&self) -> Server {
        self.server.read().clone()
    }

    /// Stores the state of a server. Fails if the server is unsuitable; a pooler may have switched
    /// to another one.
    pub(super) fn update_server(&self, server: Server) -> Result<(), Error> {
        self.observe(server.started, server.observed_for());
        self.timeline.fetch_max(server.timeline, Ordering::SeqCst);
        let unsuitable_reason = self.unsuitable_reason(&server);
        *self.server.write() = server;
        unsuitable_reason.map_or(Ok(()), |why| Err(Error::refused(why)))
    }

    /// Returns why claims are rejected at present, if they are: the server breaks a guarantee.
    pub(super) fn safety_violation(&self) -> Option<String> {
        let server = self.server.read();
        self.unsuitable_reason(&server).or_else(|| server.safety_violation(&self.settings.accepted))
    }

    /// Returns why a server is unsuitable, if it is: it is a standby or a former primary.
    fn unsuitable_reason(&self, server: &Server) -> Option<String> {
        let seen = self.timeline.load(Ordering::SeqCst);
        if server.is_standby {
            return Some("the server is a standby, or read-only, and cannot take a claim; name the primary".into());
        }
        (server.timeline < seen).then(|| {
            format!(
                "the server is on timeline {}, and {seen} was seen: it is a former primary after a failover; stop it, or make it a standby",
                server.timeline
            )
        })
    }

    /// Caps a claim's age at the time since the server instance that runs since `started` was first
    /// seen.
    ///
    /// While it was down nobody could renew a claim, and after a failover renewals may be missing.
    pub(super) fn observed_for(&self, started: i64) -> Duration {
        self.observe(started, Duration::ZERO)
    }

    fn observe(&self, started: i64, before: Duration) -> Duration {
        let now = self.clock.now();
        let mut known = self.known.lock();
        let Known { before, at, .. } = *match known.filter(|known| known.started == started) {
            Some(same) => known.insert(same),
            None if known.is_none() => known.insert(Known { started, before, at: now }),
            None => {
                tracing::warn!("PostgreSQL server was replaced or restarted; leases start again");
                known.insert(Known { started, before: Duration::ZERO, at: now })
            }
        };
        before + now.saturating_sub(at)
    }

    /// Returns true if a connection to this timeline leads to a former primary.
    pub(super) fn is_stale_timeline(&self, timeline: u64) -> bool {
        timeline < self.timeline.load(Ordering::SeqCst)
    }

    /// Opens the first connection. A setting that breaks a guarantee stops the start; later it only
    /// rejects claims.
    pub(super) async fn begin(&self) -> Result<Connected, Error> {
        let connected = self.connect().await?;
        self.safety_violation().map_or(Ok(connected), |why| Err(Error::refused(why)))
    }

    /// Prepares the statements of a connection. Creates missing tables again.
    ///
    /// A caller that opened the store by its identity finds another identity then.
    pub(super) async fn prepare(&self, connected: &Connected, carries_keys: bool) -> Result<Statements, Error> {
        if !self.schema_missing.load(Ordering::SeqCst) {
            match Statements::new(connected, carries_keys).await {
                Err(error) if failure::is_schema_missing(&error) => {}
                statements => return statements.map_err(unexpected),
            }
        }
        tracing::error!("PostgreSQL schema onceward is missing; all records are lost; creating it again");
        schema::migrate(&connected.client).await?;
        self.schema_missing.store(false, Ordering::SeqCst);
        Statements::new(connected, carries_keys).await.map_err(unexpected)
    }

    /// Classifies the error of a statement.
    pub(super) fn next(&self, error: &tokio_postgres::Error) -> Reaction {
        if failure::is_schema_missing(error) {
            self.schema_missing.store(true, Ordering::SeqCst);
            return Reaction::Reconnect;
        }
        failure::next(error)
    }

    /// Connects to the first suitable host, in their order.
    pub(super) async fn connect(&self) -> Result<Connected, Error> {
        let config = &self.settings.config;
        let most = OPEN_MAX_FACTOR * (self.settings.connections + 1);
        if self.open.load(Ordering::SeqCst) >= most {
            return Err(Error::refused(format!(
                "{most} connections to PostgreSQL are waiting for hung statements: no more are opened until one of them \
                ends; look for a lock on the table, or for an unavailable synchronous standby"
            )));
        }
        let mut refused = None;
        for (n, host) in config.get_hosts().iter().enumerate() {
            let port = match config.get_ports() {
                [] => 5432,
                [port] => *port,
                ports => ports.get(n).copied().unwrap_or(5432),
            };
            let connected = match timeout(CONNECT, self.connect_to(host, port)).await {
                Ok(connected) => connected,
                Err(_) => Err(Error::unavailable("the connection to PostgreSQL timed out")),
            };
            match connected {
                Ok(connected) => return Ok(connected),
                Err(error) => {
                    let name = match host {
                        Host::Tcp(name) => name.clone(),
                        #[cfg(unix)]
                        Host::Unix(path) => path.display().to_string(),
                    };
                    tracing::debug!(host = name, port, error = %crate::store::chain(&error), "PostgreSQL host skipped");
                    let what = format!("{name}:{port}: {error}");
                    let same = match error.applied() {
                        crate::store::Applied::No => Error::refused(what),
                        crate::store::Applied::Unknown => Error::unavailable(what),
                    };
                    refused = Some(match std::error::Error::source(&error) {
                        Some(_) => same.with_source(error),
                        None => same,
                    });
                }
            }
        }
        Err(refused.unwrap_or_else(|| Error::refused("the URL names no host")))
    }

    fn spawn(&self, connection: impl Future<Output = Result<(), tokio_postgres::Error>> + Send + 'static) {
        let open = OpenGuard::one(&self.open);
        tokio::spawn(async move {
            let _open = open;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "PostgreSQL connection closed");
            }
        });
    }

    async fn connect_to(&self, host: &Host, port: u16) -> Result<Connected, Error> {
        let config = &self.settings.config;
        let failed = |error| failure::error("PostgreSQL rejected the connection", error);
        let (client, local_port) = match host {
            Host::Tcp(name) => {
                let stream = TcpStream::connect((name.as_str(), port)).await;
                let stream =
                    stream.map_err(|error| Error::unavailable("PostgreSQL cannot be reached").with_source(error))?;
                let local = tune(&stream)
                    .map_err(|error| Error::unavailable("the TCP connection failed").with_source(error))?;
                let client = match &self.settings.tls {
                    Some(tls) => {
                        let name = ServerName::try_from(name.clone()).map_err(|error| {
                            Error::refused("the host is not a valid name for a TLS certificate").with_source(error)
                        })?;
                        let connector = Connector { config: Arc::clone(tls), name };
                        let (client, connection) = config.connect_raw(stream, connector).await.map_err(failed)?;
                        self.spawn(connection);
                        client
                    }
                    None => {
                        let (client, connection) = config.connect_raw(stream, NoTls).await.map_err(failed)?;
                        self.spawn(connection);
                        client
                    }
                };
                (client, Some(local))
            }
            #[cfg(unix)]
            Host::Unix(folder) => {
                let stream = tokio::net::UnixStream::connect(folder.join(format!(".s.PGSQL.{port}"))).await;
                let stream =
                    stream.map_err(|error| Error::unavailable("PostgreSQL cannot be reached").with_source(error))?;
                let (client, connection) = config.connect_raw(stream, NoTls).await.map_err(failed)?;
                self.spawn(connection);
                (client, None)
            }
        };
        let server = Server::query(&client).await?;
        self.unsuitable_reason(&server).map_or(Ok(()), |why| Err(Error::refused(why)))?;
        // Behind a pooler, the server sees another client port than ours.
        let is_direct = local_port.is_some() && server.client_port == local_port;
        let prepares = self.settings.prepare.unwrap_or(is_direct);
        let timeline = server.timeline;
        self.update_server(server)?;
        Ok(Connected { client, timeline, is_direct, prepares })
    }
}

fn unexpected(error: tokio_postgres::Error) -> Error {
    failure::error("the tables of the schema onceward are not as expected", error)
}

/// Guard that counts an open connection while it lives.
struct OpenGuard(Arc<AtomicUsize>);

impl OpenGuard {
    fn one(of: &Arc<AtomicUsize>) -> Self {
        of.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(of))
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Sets `TCP_NODELAY` and keepalive, which detects a dead peer. Returns the local port.
fn tune(stream: &TcpStream) -> std::io::Result<u16> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    let keepalive =
        socket2::TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(2));
    socket.set_tcp_keepalive(&keepalive)?;
    stream.local_addr().map(|address| address.port())
}

//! Connecting: to the first host that takes writes, and is no older than what was seen before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_postgres::config::Host;
use tokio_postgres::{Client, NoTls};

use super::failure::{self, Next};
use super::schema;
use super::server::Server;
use super::settings::Settings;
use super::statements::Statements;
use super::tls::Connector;
use crate::clock::Clock;
use crate::store::Error;

/// So many times the connections that were asked for stand at most: one that carries a statement which the server does not
/// answer, for a table is locked or a standby is waited for, is left for a new one, and stands until it is answered.
const STANDING_MAX: usize = 3;

/// How long one host may take to let us in.
const CONNECT: Duration = Duration::from_secs(2);

/// Makes connections, and remembers what it saw.
#[derive(Debug)]
pub(super) struct Connect {
    settings: Settings,
    /// The highest timeline that was seen: a server on a lower one was left behind by a failover.
    timeline: AtomicU64,
    /// What the last server said of itself.
    server: RwLock<Server>,
    /// How many connections stand, those that were left for a new one too.
    standing: Arc<AtomicUsize>,
    clock: Arc<dyn Clock>,
    known: Mutex<Option<Known>>,
    /// Whether the tables were found to be gone, so that the next connection makes them.
    schema_is_gone: AtomicBool,
}

/// Since when the server is the one that it is, as far as it is known: so long before `at`.
#[derive(Clone, Copy, Debug)]
struct Known {
    started: i64,
    before: Duration,
    at: Duration,
}

/// A connection, and who is at its other end.
pub(super) struct Connected {
    pub(super) client: Client,
    pub(super) timeline: u64,
    /// Whether nothing stands in between, so that the session is ours.
    pub(super) is_direct: bool,
    /// Whether what is prepared stays prepared.
    pub(super) prepares: bool,
}

impl Connect {
    pub(super) fn new(settings: Settings, clock: Arc<dyn Clock>) -> Self {
        Self {
            settings,
            timeline: AtomicU64::new(0),
            server: RwLock::default(),
            standing: Arc::default(),
            clock,
            known: Mutex::default(),
            schema_is_gone: AtomicBool::new(false),
        }
    }

    /// What the last server said of itself.
    pub(super) fn server(&self) -> Server {
        self.server.read().clone()
    }

    /// Takes note of what a server says of itself, and says why nothing may be asked of it, if that is so: a pooler may lead to
    /// another one by itself.
    pub(super) fn learn(&self, server: Server) -> Result<(), Error> {
        self.known_since(server.started, server.known_for());
        self.timeline.fetch_max(server.timeline, Ordering::SeqCst);
        let unfit = self.unfit(&server);
        *self.server.write() = server;
        unfit.map_or(Ok(()), |why| Err(Error::refused(why)))
    }

    /// Why no claim is taken now: what the last server said of itself voids a promise.
    pub(super) fn refusal(&self) -> Option<String> {
        let server = self.server.read();
        self.unfit(&server).or_else(|| server.refusal(&self.settings.accepted))
    }

    /// Why a server is not the one that counts.
    fn unfit(&self, server: &Server) -> Option<String> {
        let seen = self.timeline.load(Ordering::SeqCst);
        if server.is_standby {
            return Some("it is a standby, or read-only, and cannot take a claim; name the primary".into());
        }
        (server.timeline < seen).then(|| {
            format!(
                "it is on timeline {}, and {seen} was seen: a failover left it behind; stop it, or make it a standby",
                server.timeline
            )
        })
    }

    /// The age of a claim counts at most from when its server became the one that it is, here the one that runs since
    /// `started`: while it was not there, nobody could give a sign of life, and what another knows of may be missing.
    pub(super) fn known_for(&self, started: i64) -> Duration {
        self.known_since(started, Duration::ZERO)
    }

    fn known_since(&self, started: i64, before: Duration) -> Duration {
        let now = self.clock.now();
        let mut known = self.known.lock();
        let Known { before, at, .. } = *match known.filter(|known| known.started == started) {
            Some(same) => known.insert(same),
            None if known.is_none() => known.insert(Known { started, before, at: now }),
            None => {
                tracing::warn!("the server is another or was restarted; leases count anew");
                known.insert(Known { started, before: Duration::ZERO, at: now })
            }
        };
        before + now.saturating_sub(at)
    }

    /// Whether a connection to this timeline leads to a server that was left behind.
    pub(super) fn is_behind(&self, timeline: u64) -> bool {
        timeline < self.timeline.load(Ordering::SeqCst)
    }

    /// The first connection: what voids a promise stops the start. Where it comes later, what was begun is still finished.
    pub(super) async fn begin(&self) -> Result<Connected, Error> {
        let connected = self.connect().await?;
        self.refusal().map_or(Ok(connected), |why| Err(Error::refused(why)))
    }

    /// What is prepared on a connection, or nothing there. Tables that are gone are made as they were at the start: who opened the
    /// store by an identity will find another one.
    pub(super) async fn prepare(&self, connected: &Connected, carries_keys: bool) -> Result<Statements, Error> {
        if !self.schema_is_gone.load(Ordering::SeqCst) {
            match Statements::new(connected, carries_keys).await {
                Err(error) if failure::is_schema_gone(&error) => {}
                statements => return statements.map_err(unexpected),
            }
        }
        tracing::error!("the schema onceward is gone, and with it all that the store knew; it is made anew");
        schema::bring_up(&connected.client).await?;
        self.schema_is_gone.store(false, Ordering::SeqCst);
        Statements::new(connected, carries_keys).await.map_err(unexpected)
    }

    /// What to do about a statement that failed.
    pub(super) fn next(&self, error: &tokio_postgres::Error) -> Next {
        if failure::is_schema_gone(error) {
            self.schema_is_gone.store(true, Ordering::SeqCst);
            return Next::Reconnect;
        }
        failure::next(error)
    }

    /// Tries the hosts in their order.
    pub(super) async fn connect(&self) -> Result<Connected, Error> {
        let config = &self.settings.config;
        let most = STANDING_MAX * (self.settings.connections + 1);
        if self.standing.load(Ordering::SeqCst) >= most {
            return Err(Error::refused(format!(
                "{most} connections carry what the server does not answer, and others need it too: no more are made before \
                 one of them ends; look for a lock of the table, or a synchronous standby that is away"
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
                Err(_) => Err(Error::unavailable("it does not answer")),
            };
            match connected {
                Ok(connected) => return Ok(connected),
                Err(error) => {
                    let name = match host {
                        Host::Tcp(name) => name.clone(),
                        #[cfg(unix)]
                        Host::Unix(path) => path.display().to_string(),
                    };
                    tracing::debug!(host = name, port, error = %crate::store::chain(&error), "not this host");
                    let what = format!("{name}:{port}: {error}");
                    let same = match error.applied() {
                        crate::store::Applied::No => Error::refused(what),
                        crate::store::Applied::Unknown => Error::unavailable(what),
                    };
                    refused = Some(match std::error::Error::source(&error) {
                        Some(_) => same.because(error),
                        None => same,
                    });
                }
            }
        }
        Err(refused.unwrap_or_else(|| Error::refused("the URL names no host")))
    }

    fn spawn(&self, connection: impl Future<Output = Result<(), tokio_postgres::Error>> + Send + 'static) {
        let standing = Standing::one(&self.standing);
        tokio::spawn(async move {
            let _standing = standing;
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to PostgreSQL ended");
            }
        });
    }

    async fn connect_to(&self, host: &Host, port: u16) -> Result<Connected, Error> {
        let config = &self.settings.config;
        let failed = |error| failure::error("it lets nobody in", error);
        let (client, local_port) = match host {
            Host::Tcp(name) => {
                let stream = TcpStream::connect((name.as_str(), port)).await;
                let stream = stream.map_err(|error| Error::unavailable("it cannot be reached").because(error))?;
                let local = tune(&stream).map_err(|error| Error::unavailable("no connection").because(error))?;
                let client = match &self.settings.tls {
                    Some(tls) => {
                        let name = ServerName::try_from(name.clone())
                            .map_err(|error| Error::refused("no name that a certificate could have").because(error))?;
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
                let stream = stream.map_err(|error| Error::unavailable("it cannot be reached").because(error))?;
                let (client, connection) = config.connect_raw(stream, NoTls).await.map_err(failed)?;
                self.spawn(connection);
                (client, None)
            }
        };
        let server = Server::ask(&client).await?;
        self.unfit(&server).map_or(Ok(()), |why| Err(Error::refused(why)))?;
        // A pooler shows itself by a port that is not ours.
        let is_direct = local_port.is_some() && server.client_port == local_port;
        let prepares = self.settings.prepare.unwrap_or(is_direct);
        let timeline = server.timeline;
        self.learn(server)?;
        Ok(Connected { client, timeline, is_direct, prepares })
    }
}

fn unexpected(error: tokio_postgres::Error) -> Error {
    failure::error("its tables are not as expected", error)
}

/// A connection that stands, as long as this lives.
struct Standing(Arc<AtomicUsize>);

impl Standing {
    fn one(of: &Arc<AtomicUsize>) -> Self {
        of.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(of))
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Without delay, and with an end where the other side is gone. Returns our port.
fn tune(stream: &TcpStream) -> std::io::Result<u16> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    let keepalive =
        socket2::TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(2));
    socket.set_tcp_keepalive(&keepalive)?;
    stream.local_addr().map(|address| address.port())
}

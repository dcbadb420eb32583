//! Connection to the servers: one is shared by all callers, dropped on failure and replaced; and
//! command retries.
//!
//! Each process has one multiplexed connection, over which all commands are pipelined; in a cluster
//! one to each node.
//! A new connection is probed before use: another server, or a restarted one, may have lost data.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, TlsCertificates, TlsMode, Value,
};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use super::error_class::{ErrorClass, classify};
use super::nodes::{Layout, NODE_MAX, Nodes};
use super::scripts::Code;
use super::server::{Server, Servers};
use super::url::{Kind, Options};
use crate::clock::Clock;
use crate::store::Error;

/// Timeout of connecting.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// Timeout of a server's reply to a probe.
const PROBE_MAX: Duration = Duration::from_secs(1);

/// Interval of the cluster client's retries, in ms.
///
/// A migrating slot is mostly available in a moment; by default the client would wait for more than
/// a second.
const RETRY_MS: std::ops::Range<u64> = 20..200;

/// Timeout of a Sentinel's reply.
const SENTINEL_MAX: Duration = Duration::from_millis(500);

/// Manages the shared connection and the last known state of the servers.
pub(super) struct ConnectionManager {
    pub(super) options: Options,
    clock: Arc<dyn Clock>,
    current: RwLock<Option<Arc<ActiveConnection>>>,
    /// Held while connecting, so that concurrent callers wait for the same connection
    /// (single-flight).
    connecting: tokio::sync::Mutex<u64>,
    known: Mutex<Known>,
    pub(super) nodes: Nodes,
    /// Config epoch of the latest failover that a Sentinel reported.
    epoch: AtomicU64,
}

struct ActiveConnection {
    number: u64,
    connection: Connection,
    /// Address of the master, as the Sentinels reported it.
    address: Option<(String, u16)>,
    /// Layout of the cluster when this connection was made.
    layout: Layout,
    closed: CloseSignal,
    /// True if a command failed on it although no node reported an error.
    failed: AtomicBool,
}

/// Connection that is not yet installed.
struct NewConnection {
    connection: Connection,
    address: Option<(String, u16)>,
    layout: Layout,
}

/// Signals to all callers that wait on a connection that it was dropped.
///
/// A connection that hangs is detected by the health check once a second, so commands need no timer
/// each.
#[derive(Default)]
struct CloseSignal {
    is_closed: AtomicBool,
    closed: Notify,
}

impl CloseSignal {
    fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        self.closed.notify_waiters();
    }

    /// Returns the output of the future, or `None` if the connection is dropped first.
    async fn unless_closed<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let end = self.closed.notified();
        // It may have been signalled before we subscribed.
        if self.is_closed.load(Ordering::SeqCst) {
            return None;
        }
        tokio::select! {
            biased;
            output = future => Some(output),
            () = end => None,
        }
    }
}

#[derive(Clone)]
enum Connection {
    One(MultiplexedConnection),
    Many(ClusterConnection),
}

/// Last known state of the servers.
#[derive(Default)]
struct Known {
    servers: Servers,
    /// Time for which these servers had been observed at `at`, as far as known.
    before: Duration,
    at: Duration,
    /// Clock of the servers in ms, and when it was received.
    time: Option<(u64, Instant)>,
}

impl ConnectionManager {
    pub(super) fn new(options: Options, clock: Arc<dyn Clock>) -> Self {
        Self {
            options,
            clock,
            current: RwLock::default(),
            connecting: tokio::sync::Mutex::default(),
            known: Mutex::default(),
            nodes: Nodes::default(),
            epoch: AtomicU64::default(),
        }
    }

    /// Caps a claim's age at the time since this server instance was first seen.
    ///
    /// After a restart or failover the data may be stale and lack renewals.
    pub(super) fn observed_for(&self) -> Duration {
        let known = self.known.lock();
        known.before + self.clock.now().saturating_sub(known.at)
    }

    pub(super) fn servers<T>(&self, read: impl FnOnce(&Servers) -> T) -> T {
        read(&self.known.lock().servers)
    }

    /// Returns the servers' clock in ms: the last one reported, plus the time since it was
    /// received.
    ///
    /// It may run ahead by the latency of that report, at most a second. If the servers differ, it
    /// is the latest.
    pub(super) fn now_ms(&self) -> Option<u64> {
        let known = self.known.lock();
        let (reported, received) = known.time?;
        Some(reported + u64::try_from(received.elapsed().as_millis()).ok()?)
    }

    /// Returns why claims are rejected at present, if they are.
    pub(super) fn safety_violation(&self) -> Option<String> {
        self.known.lock().servers.safety_violation(self.options.accepted)
    }

    /// Runs a script by its hash, and by its text if the server does not have it cached.
    pub(super) async fn run(&self, code: &Code, keys: &[&[u8]], arguments: &[&[u8]]) -> Result<Value, Error> {
        let command = |name: &str, code: &str| {
            // Script arguments may be large; allocate once.
            let size = [name.len(), code.len()].into_iter().chain(keys.iter().map(|key| key.len()));
            let size: usize = size.chain(arguments.iter().map(|argument| argument.len())).sum();
            let mut command = Cmd::with_capacity(3 + keys.len() + arguments.len(), size + 20);
            command.arg(name).arg(code).arg(keys.len()).arg(keys);
            for argument in arguments {
                command.arg(argument);
            }
            command
        };
        self.execute(&command("EVALSHA", &code.hash), || command("EVAL", code.text)).await
    }

    /// Sends a command that is not a script.
    pub(super) async fn execute_plain(&self, command: &Cmd) -> Result<Value, Error> {
        self.execute(command, || command.clone()).await
    }

    /// Sends a command and retries it.
    ///
    /// Retrying is safe because every command is a compare-and-set: a second execution sees the
    /// result of the first.
    pub(super) async fn execute(&self, command: &Cmd, full_command: impl Fn() -> Cmd) -> Result<Value, Error> {
        self.execute_again(command, full_command, false).await
    }

    /// Sends a command like `execute`, where an earlier attempt may have been applied if
    /// `maybe_applied` is set.
    pub(super) async fn execute_again(
        &self,
        command: &Cmd,
        full_command: impl Fn() -> Cmd,
        maybe_applied: bool,
    ) -> Result<Value, Error> {
        self.send(command, full_command, SendOptions { maybe_applied, retry_read_only: true, is_claim: false })
            .await
            .map_err(|failed| failed.error)
    }

    /// Sends a command without waiting for a server that rejects writes for lack of memory or
    /// replicas.
    pub(super) async fn execute_if_writable(
        &self,
        command: &Cmd,
        full_command: impl Fn() -> Cmd,
    ) -> Result<RedisReply, Error> {
        into_reply(
            self.send(
                command,
                full_command,
                SendOptions { maybe_applied: false, retry_read_only: false, is_claim: false },
            )
            .await,
        )
    }

    /// Sends a claim, unless a server breaks a guarantee. Does not wait for a server that rejects
    /// writes.
    pub(super) async fn claim(&self, command: &Cmd) -> Result<RedisReply, Error> {
        into_reply(
            self.send(
                command,
                || command.clone(),
                SendOptions { maybe_applied: false, retry_read_only: false, is_claim: true },
            )
            .await,
        )
    }

    /// Retries a claim until the server accepts writes. If `maybe_applied` is set, it may have been
    /// applied before.
    pub(super) async fn retry_claim(&self, command: &Cmd, maybe_applied: bool) -> Result<Value, Error> {
        let options = SendOptions { maybe_applied, retry_read_only: true, is_claim: true };
        self.send(command, || command.clone(), options).await.map_err(|failed| failed.error)
    }

    async fn send(&self, command: &Cmd, full_command: impl Fn() -> Cmd, options: SendOptions) -> Result<Value, Failed> {
        let SendOptions { mut maybe_applied, retry_read_only, is_claim } = options;
        let deadline = Instant::now() + self.options.timeout;
        let mut with_text = None;
        let mut pause = Duration::from_millis(5);
        loop {
            let why = match self.connection(deadline).await {
                Err(error) => error,
                Ok(current) => {
                    let mut connection = current.connection.clone();
                    // Checked on each attempt: after waiting, this may be another server.
                    if is_claim && let Some(violation) = self.safety_violation() {
                        return Err(failed(maybe_applied, &violation).into());
                    }
                    let sent = with_text.as_ref().unwrap_or(command);
                    let reply = match connection {
                        Connection::One(_) => current.closed.unless_closed(connection.send(sent)).await,
                        // A cluster client has many connections, each of which may hang on its own.
                        Connection::Many(_) => timeout_at(deadline, connection.send(sent)).await.ok(),
                    };
                    match reply {
                        Some(Ok(value)) => return Ok(value),
                        Some(Err(error)) => {
                            // The cluster client retries internally and reports only the last
                            // attempt.
                            maybe_applied |= matches!(connection, Connection::Many(_));
                            let class = classify(&error);
                            match class {
                                ErrorClass::NoScript => {
                                    with_text = Some(full_command());
                                    continue;
                                }
                                ErrorClass::Busy | ErrorClass::OutOfMemory | ErrorClass::ReadOnly => {}
                                ErrorClass::Demoted => self.handle_failure(&current),
                                ErrorClass::ConnectionLost => {
                                    maybe_applied = true;
                                    self.handle_failure(&current);
                                }
                                ErrorClass::Permanent => {
                                    return Err(failed(maybe_applied, "the Redis server rejected a command")
                                        .with_source(error)
                                        .into());
                                }
                            }
                            // Whatever happened to earlier attempts, reads may still work.
                            let read_only = matches!(class, ErrorClass::OutOfMemory | ErrorClass::ReadOnly);
                            let error = match class {
                                ErrorClass::OutOfMemory if !maybe_applied => {
                                    Error::full("the Redis server has no room: it is out of memory").with_source(error)
                                }
                                _ => failed(maybe_applied, "the Redis server did not execute a command")
                                    .with_source(error),
                            };
                            if read_only && !retry_read_only {
                                return Err(Failed { error, read_only: Some(maybe_applied) });
                            }
                            error
                        }
                        None => {
                            maybe_applied = true;
                            self.handle_failure(&current);
                            Error::unavailable("the Redis server did not respond before the timeout")
                        }
                    }
                }
            };
            let now = Instant::now();
            if now + pause >= deadline {
                let may_be_applied = maybe_applied && why.applied() == crate::store::Applied::No;
                return Err(match may_be_applied {
                    true => Error::unavailable("the Redis server did not respond before the timeout")
                        .with_source(why)
                        .into(),
                    false => why.into(),
                });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    /// Sends a command to every master, without retries.
    pub(super) async fn execute_on_all(&self, command: &Cmd) -> Result<Vec<Value>, Error> {
        let failed =
            |error: RedisError| Error::unavailable("the Redis server did not execute a command").with_source(error);
        let current = self.connection(Instant::now() + self.options.timeout).await?;
        let Connection::One(mut one) = current.connection.clone() else {
            return self.execute_on_masters(command, self.options.timeout).await.map_err(failed);
        };
        match timeout(self.options.timeout, one.req_packed_command(command)).await {
            Ok(reply) => reply.and_then(Value::extract_error).map(|value| vec![value]).map_err(|error| {
                if classify(&error) == ErrorClass::ConnectionLost {
                    self.drop_connection(current.number);
                }
                failed(error)
            }),
            Err(_) => {
                self.drop_connection(current.number);
                Err(Error::unavailable("the Redis server did not respond before the timeout"))
            }
        }
    }

    /// Checks the servers' health, and reconnects if they are gone or were replaced.
    pub(super) async fn watch(&self) -> Result<(), Error> {
        let current = self.connection(Instant::now() + self.options.timeout).await?;
        if let Some(address) = &current.address
            && self.discover_master().await.is_ok_and(|named| named != *address)
        {
            self.drop_connection(current.number);
            return self.connection(Instant::now() + self.options.timeout).await.map(drop);
        }
        match current.connection.clone() {
            Connection::One(mut one) => {
                self.probe(&mut one).await.inspect_err(|_| self.drop_connection(current.number))
            }
            Connection::Many(_) => self.watch_nodes(&current).await,
        }
    }

    /// Checks the nodes of a cluster.
    ///
    /// The connection stays in use while single nodes do not reply, since others do.
    /// It is replaced if it failed and a new one may help: all nodes reply, or the slots have
    /// moved.
    /// It is used until the new one is installed.
    async fn watch_nodes(&self, current: &ActiveConnection) -> Result<(), Error> {
        let view = self.check_nodes().await?;
        let may_help = view.is_whole || current.layout != view.layout;
        if current.failed.load(Ordering::SeqCst) && may_help {
            let mut number = self.connecting.lock().await;
            let new = self.connect().await?;
            self.install(&mut number, new);
        }
        Ok(())
    }

    async fn connection(&self, deadline: Instant) -> Result<Arc<ActiveConnection>, Error> {
        if let Some(current) = self.current.read().clone() {
            return Ok(current);
        }
        // Nothing has been sent yet.
        let late = || Error::refused("there is no connection to the Redis server");
        let mut number = timeout_at(deadline, self.connecting.lock()).await.map_err(|_| late())?;
        if let Some(current) = self.current.read().clone() {
            return Ok(current);
        }
        let new = timeout_at(deadline, self.connect()).await.map_err(|_| late())??;
        Ok(self.install(&mut number, new))
    }

    fn install(&self, number: &mut u64, new: NewConnection) -> Arc<ActiveConnection> {
        *number += 1;
        let NewConnection { connection, address, layout } = new;
        let (closed, failed) = (CloseSignal::default(), AtomicBool::default());
        let current = Arc::new(ActiveConnection { number: *number, connection, address, layout, closed, failed });
        *self.current.write() = Some(current.clone());
        current
    }

    /// Handles a failed connection: a single one is dropped, that of a cluster is left to the
    /// health check.
    fn handle_failure(&self, current: &ActiveConnection) {
        match current.connection {
            Connection::One(_) => self.drop_connection(current.number),
            Connection::Many(_) => current.failed.store(true, Ordering::SeqCst),
        }
    }

    /// Drops the connection with this number, unless another has replaced it already.
    fn drop_connection(&self, number: u64) {
        let mut current = self.current.write();
        if let Some(gone) = current.take_if(|current| current.number == number) {
            gone.closed.close();
        }
    }

    /// Connects to the servers and probes them.
    async fn connect(&self) -> Result<NewConnection, Error> {
        let failed = |error| Error::refused(format!("{} cannot be reached", self.options)).with_source(error);
        let one = async |host: &(String, u16)| {
            let mut one = self.connect_node(host).await.map_err(failed)?;
            self.probe(&mut one).await?;
            Ok(Connection::One(one))
        };
        match self.options.kind {
            Kind::Alone => {
                let connection = one(&self.options.hosts[0]).await?;
                Ok(NewConnection { connection, address: None, layout: Layout::default() })
            }
            Kind::Sentinel { .. } => {
                let address = self.discover_master().await.map_err(failed)?;
                let connection = one(&address).await?;
                Ok(NewConnection { connection, address: Some(address), layout: Layout::default() })
            }
            Kind::Cluster => {
                // Concurrently, since each waits for a node that hangs.
                let (many, view) = tokio::join!(self.connect_cluster(), self.check_nodes());
                let connection = Connection::Many(many.map_err(failed)?);
                Ok(NewConnection { connection, address: None, layout: view?.layout })
            }
        }
    }

    async fn connect_cluster(&self) -> Result<ClusterConnection, RedisError> {
        let nodes = self.options.hosts.iter().map(|host| self.info(host)).collect::<Result<Vec<_>, _>>()?;
        let mut builder = ClusterClientBuilder::new(nodes)
            .tcp_settings(tcp())
            .connection_timeout(NODE_MAX)
            .response_timeout(self.options.timeout)
            .min_retry_wait(RETRY_MS.start)
            .max_retry_wait(RETRY_MS.end);
        if let Some(user) = &self.options.user {
            builder = builder.username(user);
        }
        if let Some(password) = &self.options.password {
            builder = builder.password(password);
        }
        if self.options.tls.is_some() {
            builder = builder.tls(TlsMode::Secure).certs(self.certificates()?);
        }
        builder.build()?.get_async_connection().await
    }

    pub(super) async fn connect_node(&self, host: &(String, u16)) -> Result<MultiplexedConnection, RedisError> {
        self.client(self.info(host)?)?.get_multiplexed_async_connection_with_config(&config()).await
    }

    fn client(&self, info: ConnectionInfo) -> Result<Client, RedisError> {
        match &self.options.tls {
            Some(_) => Client::build_with_tls(info, self.certificates()?),
            None => Client::open(info),
        }
    }

    fn info(&self, (host, port): &(String, u16)) -> Result<ConnectionInfo, RedisError> {
        let mut redis = RedisConnectionInfo::default().set_db(self.options.db);
        if let Some(user) = &self.options.user {
            redis = redis.set_username(user);
        }
        if let Some(password) = &self.options.password {
            redis = redis.set_password(password);
        }
        Ok(self.address(host, *port).into_connection_info()?.set_redis_settings(redis).set_tcp_settings(tcp()))
    }

    fn address(&self, host: &str, port: u16) -> ConnectionAddr {
        match self.options.tls {
            Some(_) => ConnectionAddr::TcpTls { host: host.to_owned(), port, insecure: false, tls_params: None },
            None => ConnectionAddr::Tcp(host.to_owned(), port),
        }
    }

    /// Reads the certificates. They are read for each connection, so that renewed ones apply.
    fn certificates(&self) -> Result<TlsCertificates, RedisError> {
        let tls = self.options.tls.clone().unwrap_or_default();
        let read = |path: &std::path::PathBuf| {
            std::fs::read(path).map_err(|error| {
                let what = format!("{} cannot be read: {error}", path.display());
                RedisError::from(std::io::Error::new(error.kind(), what))
            })
        };
        let client_tls = match (&tls.cert, &tls.key) {
            (Some(cert), Some(key)) => Some(ClientTlsConfig { client_cert: read(cert)?, client_key: read(key)? }),
            _ => None,
        };
        Ok(TlsCertificates { client_tls, root_cert: tls.ca.as_ref().map(read).transpose()? })
    }

    /// Returns the master's address from the Sentinels that know the latest failover, among those
    /// that reply.
    ///
    /// A Sentinel that is partitioned with an old master keeps reporting it. If only such Sentinels
    /// reply, this fails.
    async fn discover_master(&self) -> Result<(String, u16), RedisError> {
        let mut replies: Vec<SentinelReply> = Vec::new();
        let mut last = RedisError::from((redis::ErrorKind::EmptySentinelList, "no Sentinel replied"));
        let queries = self.options.hosts.iter().map(|host| timeout(SENTINEL_MAX, self.query_sentinel(host)));
        for reply in futures_util::future::join_all(queries).await {
            match reply {
                Ok(Ok(reply)) => replies.push(reply),
                Ok(Err(error)) => last = error,
                Err(_) => {}
            }
        }
        let votes = |replies: &[SentinelReply], address: &(String, u16)| {
            replies.iter().filter(|it| it.address == *address).count()
        };
        let Some(latest) = replies.iter().max_by_key(|it| (it.epoch, votes(&replies, &it.address))) else {
            return Err(last);
        };
        // Of two concurrent calls, the one that knows an older failover must not win.
        match self.epoch.fetch_max(latest.epoch, Ordering::SeqCst) <= latest.epoch {
            true => Ok(latest.address.clone()),
            false => {
                let what = "no Sentinel that replied knows of the latest failover that was seen";
                Err(RedisError::from((redis::ErrorKind::MasterNameNotFoundBySentinel, what)))
            }
        }
    }

    async fn query_sentinel(&self, host: &(String, u16)) -> Result<SentinelReply, RedisError> {
        let Kind::Sentinel { master, user, password } = &self.options.kind else {
            return Err(RedisError::from((redis::ErrorKind::Client, "no Sentinel is configured")));
        };
        let mut redis = RedisConnectionInfo::default();
        if let Some(user) = user {
            redis = redis.set_username(user);
        }
        if let Some(password) = password {
            redis = redis.set_password(password);
        }
        let info = self.address(&host.0, host.1).into_connection_info()?.set_redis_settings(redis);
        let client = self.client(info.set_tcp_settings(tcp()))?;
        let mut sentinel = client.get_multiplexed_async_connection_with_config(&config()).await?;
        // The epoch is read first. If it changes in between, the address is newer than the epoch,
        // never older.
        // `SENTINEL MASTER` has an address too, but the Sentinel that leads a failover changes it
        // only at the end.
        let mut ask = redis::cmd("SENTINEL");
        let reported: HashMap<String, String> = ask.arg("MASTER").arg(master).query_async(&mut sentinel).await?;
        let epoch = reported.get("config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or_default();
        let mut ask = redis::cmd("SENTINEL");
        match ask.arg("get-master-addr-by-name").arg(master).query_async(&mut sentinel).await? {
            Some(address) => Ok(SentinelReply { address, epoch }),
            None => {
                let what = "the Sentinel does not know a master of that name";
                Err(RedisError::from((redis::ErrorKind::MasterNameNotFoundBySentinel, what)))
            }
        }
    }

    /// Asks the server for its state and stores it.
    async fn probe(&self, connection: &mut MultiplexedConnection) -> Result<(), Error> {
        let probed = async {
            let info = connection.req_packed_command(&info_command()).await?.extract_error()?;
            // `CONFIG` may be forbidden; the persistence is unknown then.
            let config = connection.req_packed_command(&config_command()).await;
            Server::from_replies(info, config.and_then(Value::extract_error).ok())
        };
        let failed = || Error::refused("the Redis server did not reply to INFO");
        match timeout(PROBE_MAX, probed).await {
            Ok(Ok(server)) => {
                self.update_servers(Servers(vec![server]));
                Ok(())
            }
            Ok(Err(error)) => Err(failed().with_source(error)),
            Err(_) => Err(failed()),
        }
    }

    pub(super) fn update_servers(&self, servers: Servers) {
        let identities = |servers: &Servers| servers.0.iter().map(|server| server.identity.clone()).collect::<Vec<_>>();
        let mut known = self.known.lock();
        let is_first = known.servers.0.is_empty();
        if is_first || identities(&known.servers) != identities(&servers) {
            let before = servers.0.iter().map(Server::observed_for).min().unwrap_or_default();
            known.before = if is_first { before } else { Duration::ZERO };
            known.at = self.clock.now();
            if !is_first {
                tracing::warn!(store = %self.options, "Redis server was replaced or restarted; leases start again");
            }
        }
        known.time = servers.0.iter().filter_map(|server| server.time_ms).max().map(|time| (time, Instant::now()));
        known.servers = servers;
    }
}

/// Reply of a server to a command.
pub(super) enum RedisReply {
    Value(Value),
    /// The server rejects writes at present, but serves reads. If `maybe_applied` is set, an
    /// earlier attempt may have been executed.
    ReadOnly {
        maybe_applied: bool,
    },
}

/// Reply of a Sentinel.
struct SentinelReply {
    address: (String, u16),
    /// Config epoch, which grows with each failover.
    epoch: u64,
}

/// Options of sending a command.
struct SendOptions {
    /// True if an earlier attempt may have been, or may still be, executed.
    maybe_applied: bool,
    /// True if the command waits for a server that rejects writes.
    retry_read_only: bool,
    is_claim: bool,
}

/// Error of a command.
struct Failed {
    error: Error,
    /// Set if the server rejects writes but serves reads; holds whether an earlier attempt may have
    /// been applied.
    read_only: Option<bool>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, read_only: None }
    }
}

impl Connection {
    async fn send(&mut self, command: &Cmd) -> Result<Value, RedisError> {
        match self {
            Self::One(one) => one.send_packed_command(command).await,
            Self::Many(many) => many.req_packed_command(command).await,
        }?
        .extract_error()
    }
}

fn into_reply(sent: Result<Value, Failed>) -> Result<RedisReply, Error> {
    match sent {
        Ok(value) => Ok(RedisReply::Value(value)),
        Err(Failed { read_only: Some(maybe_applied), .. }) => Ok(RedisReply::ReadOnly { maybe_applied }),
        Err(Failed { error, .. }) => Err(error),
    }
}

pub(super) fn info_command() -> Cmd {
    let mut info = redis::cmd("INFO");
    info.arg(&["server", "memory", "persistence", "replication"]);
    info
}

pub(super) fn config_command() -> Cmd {
    let mut config = redis::cmd("CONFIG");
    config.arg(&["GET", "save", "appendfsync"]);
    config
}

fn tcp() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

/// Disables the client's own response timeout, since each command has a deadline.
fn config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_MAX)).set_response_timeout(None)
}

fn failed(maybe_applied: bool, what: &str) -> Error {
    if maybe_applied { Error::unavailable(what) } else { Error::refused(what) }
}

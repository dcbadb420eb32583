//! The connection: made, shared by all, dropped when it fails, made anew; and how long a command is tried.
//!
//! One multiplexed connection a process, over which all commands are pipelined; a cluster has one to each node. A new one is
//! asked who it is before it is used, for another server, or the same one restarted, may know less.

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

use super::fault::{Fault, judge};
use super::nodes::{Layout, NODE_MAX, Nodes};
use super::scripts::Code;
use super::server::{Server, Servers};
use super::url::{Kind, Options};
use crate::clock::Clock;
use crate::store::Error;

/// How long making a connection may take.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// How long a server may take to say who it is.
const PROBE_MAX: Duration = Duration::from_secs(1);

/// How long a cluster's client waits before it tries again what a node did not take, in ms: a slot on the move is mostly there in a
/// moment, and by itself it would wait for more than a second.
const RETRY_MS: std::ops::Range<u64> = 20..200;

/// How long a Sentinel may take to answer.
const SENTINEL_MAX: Duration = Duration::from_millis(500);

/// The shared connection, and what is known of the servers behind it.
pub(super) struct Link {
    pub(super) options: Options,
    clock: Arc<dyn Clock>,
    current: RwLock<Option<Arc<Current>>>,
    /// Held by whoever makes a connection, so that all others wait for the same one.
    connecting: tokio::sync::Mutex<u64>,
    known: Mutex<Known>,
    pub(super) nodes: Nodes,
    /// Of the latest failover that a Sentinel told of.
    epoch: AtomicU64,
}

struct Current {
    number: u64,
    connection: Connection,
    /// Of the master that a Sentinel named.
    address: Option<(String, u16)>,
    /// Of a cluster, as it was when this was made.
    layout: Layout,
    end: End,
    /// A command failed by it, though no node said so.
    failed: AtomicBool,
}

/// A connection that is new.
struct Made {
    connection: Connection,
    address: Option<(String, u16)>,
    layout: Layout,
}

/// Tells all who wait on a connection that nobody uses it any more. One that hangs is found out by whoever watches it, once a
/// second, so that not each command needs a timer of its own.
#[derive(Default)]
struct End {
    has_come: AtomicBool,
    comes: Notify,
}

impl End {
    fn tell(&self) {
        self.has_come.store(true, Ordering::SeqCst);
        self.comes.notify_waiters();
    }

    /// What comes, unless the end does.
    async fn or<T>(&self, comes: impl Future<Output = T>) -> Option<T> {
        let end = self.comes.notified();
        // It was told before anybody listened.
        if self.has_come.load(Ordering::SeqCst) {
            return None;
        }
        tokio::select! {
            biased;
            it = comes => Some(it),
            () = end => None,
        }
    }
}

#[derive(Clone)]
enum Connection {
    One(MultiplexedConnection),
    Many(ClusterConnection),
}

/// What the servers said last.
#[derive(Default)]
struct Known {
    servers: Servers,
    /// Since when they are the ones that they are, as far as it is known: so long before `at`.
    before: Duration,
    at: Duration,
    /// What time it was at the servers, in ms, and when that was heard.
    time: Option<(u64, Instant)>,
}

impl Link {
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

    /// The age of a claim counts at most from when its server became the one that it is: what it says of the time before
    /// may be an older copy, in which signs of life are missing.
    pub(super) fn known_for(&self) -> Duration {
        let known = self.known.lock();
        known.before + self.clock.now().saturating_sub(known.at)
    }

    pub(super) fn servers<T>(&self, read: impl FnOnce(&Servers) -> T) -> T {
        read(&self.known.lock().servers)
    }

    /// What time it is at the servers, in ms: as they said when they were asked last, and what has passed since they were heard. It
    /// may be later by as long as their answer was on its way, a second at most. Where they differ, the latest.
    pub(super) fn now_ms(&self) -> Option<u64> {
        let known = self.known.lock();
        let (said, heard) = known.time?;
        Some(said + u64::try_from(heard.elapsed().as_millis()).ok()?)
    }

    /// Why no claim is taken now.
    pub(super) fn refusal(&self) -> Option<String> {
        self.known.lock().servers.refusal(self.options.accepts)
    }

    /// Runs a script, whose text goes along only where the server does not know it.
    pub(super) async fn run(&self, code: &Code, keys: &[&[u8]], arguments: &[&[u8]]) -> Result<Value, Error> {
        let command = |name: &str, code: &str| {
            // What a script gets may be large; it is gathered without growing in between.
            let size = [name.len(), code.len()].into_iter().chain(keys.iter().map(|key| key.len()));
            let size: usize = size.chain(arguments.iter().map(|argument| argument.len())).sum();
            let mut command = Cmd::with_capacity(3 + keys.len() + arguments.len(), size + 20);
            command.arg(name).arg(code).arg(keys.len()).arg(keys);
            for argument in arguments {
                command.arg(argument);
            }
            command
        };
        self.ask(&command("EVALSHA", &code.hash), || command("EVAL", code.text)).await
    }

    /// Sends a command that is no script.
    pub(super) async fn ask_plain(&self, command: &Cmd) -> Result<Value, Error> {
        self.ask(command, || command.clone()).await
    }

    /// Sends a command, and again where it surely was not executed, or where whoever sends it twice finds what the first
    /// did: every command here compares what is there with what its sender believes.
    pub(super) async fn ask(&self, command: &Cmd, whole: impl Fn() -> Cmd) -> Result<Value, Error> {
        self.ask_again(command, whole, false).await
    }

    /// The same, where one that was sent before may have been executed, if it is `open`.
    pub(super) async fn ask_again(&self, command: &Cmd, whole: impl Fn() -> Cmd, open: bool) -> Result<Value, Error> {
        self.send(command, whole, Asks { open, waits: true, claims: false }).await.map_err(|failed| failed.error)
    }

    /// The same, but a server that takes no writes, for want of room or of replicas, is not waited for.
    pub(super) async fn ask_if_it_writes(&self, command: &Cmd, whole: impl Fn() -> Cmd) -> Result<Told, Error> {
        told(self.send(command, whole, Asks { open: false, waits: false, claims: false }).await)
    }

    /// The same of a claim, which no server gets that would void a promise.
    pub(super) async fn claim(&self, command: &Cmd) -> Result<Told, Error> {
        told(self.send(command, || command.clone(), Asks { open: false, waits: false, claims: true }).await)
    }

    /// Waits for a server that takes no writes to take this claim. If it is `open`, it may have been taken before.
    pub(super) async fn claim_again(&self, command: &Cmd, open: bool) -> Result<Value, Error> {
        let asks = Asks { open, waits: true, claims: true };
        self.send(command, || command.clone(), asks).await.map_err(|failed| failed.error)
    }

    async fn send(&self, command: &Cmd, whole: impl Fn() -> Cmd, asks: Asks) -> Result<Value, Failed> {
        let Asks { mut open, waits, claims } = asks;
        let deadline = Instant::now() + self.options.timeout;
        let mut spelt_out = None;
        let mut pause = Duration::from_millis(5);
        loop {
            let why = match self.connection(deadline).await {
                Err(error) => error,
                Ok(current) => {
                    let mut connection = current.connection.clone();
                    // Now, for it may have waited, and this may be another server than the one that was there before.
                    if claims && let Some(refusal) = self.refusal() {
                        return Err(failed(open, &refusal).into());
                    }
                    let sent = spelt_out.as_ref().unwrap_or(command);
                    let answer = match connection {
                        Connection::One(_) => current.end.or(connection.send(sent)).await,
                        // It has many connections, each of which may hang alone.
                        Connection::Many(_) => timeout_at(deadline, connection.send(sent)).await.ok(),
                    };
                    match answer {
                        Some(Ok(value)) => return Ok(value),
                        Some(Err(error)) => {
                            // A cluster's client tries again by itself, and tells of the last try alone.
                            open |= matches!(connection, Connection::Many(_));
                            let fault = judge(&error);
                            match fault {
                                Fault::NoScript => {
                                    spelt_out = Some(whole());
                                    continue;
                                }
                                Fault::NotNow | Fault::Full | Fault::ReadsAlone => {}
                                Fault::NotHere => self.give_up(&current),
                                Fault::Lost => {
                                    open = true;
                                    self.give_up(&current);
                                }
                                Fault::Never => {
                                    return Err(failed(open, "the server refused a command").because(error).into());
                                }
                            }
                            // Whatever became of earlier tries: it may be asked what it knows.
                            let takes_no_writes = matches!(fault, Fault::Full | Fault::ReadsAlone);
                            let error = match fault {
                                Fault::Full if !open => Error::full("the server has no room").because(error),
                                _ => failed(open, "the server did not take a command").because(error),
                            };
                            if takes_no_writes && !waits {
                                return Err(Failed { error, takes_no_writes: Some(open) });
                            }
                            error
                        }
                        None => {
                            open = true;
                            self.give_up(&current);
                            Error::unavailable("the server did not answer in time")
                        }
                    }
                }
            };
            let now = Instant::now();
            if now + pause >= deadline {
                let may_have_been = open && why.applied() == crate::store::Applied::No;
                return Err(match may_have_been {
                    true => Error::unavailable("the server did not answer in time").because(why).into(),
                    false => why.into(),
                });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }

    /// Asks every server that takes writes. Not tried again.
    pub(super) async fn ask_all(&self, command: &Cmd) -> Result<Vec<Value>, Error> {
        let failed = |error: RedisError| Error::unavailable("the server did not take a command").because(error);
        let current = self.connection(Instant::now() + self.options.timeout).await?;
        let Connection::One(mut one) = current.connection.clone() else {
            return self.ask_masters(command, self.options.timeout).await.map_err(failed);
        };
        match timeout(self.options.timeout, one.req_packed_command(command)).await {
            Ok(told) => told.and_then(Value::extract_error).map(|value| vec![value]).map_err(|error| {
                if judge(&error) == Fault::Lost {
                    self.drop_connection(current.number);
                }
                failed(error)
            }),
            Err(_) => {
                self.drop_connection(current.number);
                Err(Error::unavailable("the server did not answer in time"))
            }
        }
    }

    /// Looks whether the servers are there and are who they were, and connects anew if they are not.
    pub(super) async fn watch(&self) -> Result<(), Error> {
        let current = self.connection(Instant::now() + self.options.timeout).await?;
        if let Some(address) = &current.address
            && self.named_by_sentinels().await.is_ok_and(|named| named != *address)
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

    /// A cluster's connection goes on where a node of it does not answer, for others do. It is made anew where it failed and that
    /// may help: where all answer, or others have the slots. It is used until the new one is there.
    async fn watch_nodes(&self, current: &Current) -> Result<(), Error> {
        let view = self.probe_nodes().await?;
        let may_help = view.is_whole || current.layout != view.layout;
        if current.failed.load(Ordering::SeqCst) && may_help {
            let mut number = self.connecting.lock().await;
            let made = self.make().await?;
            self.take_up(&mut number, made);
        }
        Ok(())
    }

    async fn connection(&self, deadline: Instant) -> Result<Arc<Current>, Error> {
        if let Some(current) = self.current.read().clone() {
            return Ok(current);
        }
        // Nothing was sent yet.
        let late = || Error::refused("there is no connection to the server");
        let mut number = timeout_at(deadline, self.connecting.lock()).await.map_err(|_| late())?;
        if let Some(current) = self.current.read().clone() {
            return Ok(current);
        }
        let made = timeout_at(deadline, self.make()).await.map_err(|_| late())??;
        Ok(self.take_up(&mut number, made))
    }

    fn take_up(&self, number: &mut u64, made: Made) -> Arc<Current> {
        *number += 1;
        let Made { connection, address, layout } = made;
        let (end, failed) = (End::default(), AtomicBool::default());
        let current = Arc::new(Current { number: *number, connection, address, layout, end, failed });
        *self.current.write() = Some(current.clone());
        current
    }

    /// It failed. A cluster's consists of many, each to a node of its own; whoever watches them sees to it.
    fn give_up(&self, current: &Current) {
        match current.connection {
            Connection::One(_) => self.drop_connection(current.number),
            Connection::Many(_) => current.failed.store(true, Ordering::SeqCst),
        }
    }

    /// Nobody uses it from now on, unless another has taken its place already.
    fn drop_connection(&self, number: u64) {
        let mut current = self.current.write();
        if let Some(gone) = current.take_if(|current| current.number == number) {
            gone.end.tell();
        }
    }

    /// Connects, and hears who is there.
    async fn make(&self) -> Result<Made, Error> {
        let failed = |error| Error::refused(format!("{} cannot be reached", self.options)).because(error);
        let one = async |host: &(String, u16)| {
            let mut one = self.one(host).await.map_err(failed)?;
            self.probe(&mut one).await?;
            Ok(Connection::One(one))
        };
        match self.options.kind {
            Kind::Alone => {
                let connection = one(&self.options.hosts[0]).await?;
                Ok(Made { connection, address: None, layout: Layout::default() })
            }
            Kind::Sentinel { .. } => {
                let address = self.named_by_sentinels().await.map_err(failed)?;
                let connection = one(&address).await?;
                Ok(Made { connection, address: Some(address), layout: Layout::default() })
            }
            Kind::Cluster => {
                // Together, for each waits for a node that hangs.
                let (many, view) = tokio::join!(self.many(), self.probe_nodes());
                let connection = Connection::Many(many.map_err(failed)?);
                Ok(Made { connection, address: None, layout: view?.layout })
            }
        }
    }

    async fn many(&self) -> Result<ClusterConnection, RedisError> {
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

    pub(super) async fn one(&self, host: &(String, u16)) -> Result<MultiplexedConnection, RedisError> {
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

    /// Read anew for each connection, so that a certificate that was renewed counts.
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

    /// The master's address, by those Sentinels that know the latest failover, of all that answer.
    ///
    /// One that is cut off with an old master names that as long as it is. So where only such answer, nobody is named.
    async fn named_by_sentinels(&self) -> Result<(String, u16), RedisError> {
        let mut named: Vec<Named> = Vec::new();
        let mut last = RedisError::from((redis::ErrorKind::EmptySentinelList, "no Sentinel answered"));
        let asked = self.options.hosts.iter().map(|host| timeout(SENTINEL_MAX, self.ask_sentinel(host)));
        for told in futures_util::future::join_all(asked).await {
            match told {
                Ok(Ok(told)) => named.push(told),
                Ok(Err(error)) => last = error,
                Err(_) => {}
            }
        }
        let votes = |named: &[Named], address: &(String, u16)| named.iter().filter(|it| it.address == *address).count();
        let Some(latest) = named.iter().max_by_key(|it| (it.epoch, votes(&named, &it.address))) else {
            return Err(last);
        };
        // Two may ask at the same time, and the one that knows less must not be the later one.
        match self.epoch.fetch_max(latest.epoch, Ordering::SeqCst) <= latest.epoch {
            true => Ok(latest.address.clone()),
            false => {
                let what = "the Sentinels that answer do not know of the last failover that was seen";
                Err(RedisError::from((redis::ErrorKind::MasterNameNotFoundBySentinel, what)))
            }
        }
    }

    async fn ask_sentinel(&self, host: &(String, u16)) -> Result<Named, RedisError> {
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
        // The epoch first: should it change in between, the address is a later one than it says, never an older one. The address is
        // not taken from here, where the Sentinel that leads a failover changes it at the end alone.
        let mut ask = redis::cmd("SENTINEL");
        let said: HashMap<String, String> = ask.arg("MASTER").arg(master).query_async(&mut sentinel).await?;
        let epoch = said.get("config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or_default();
        let mut ask = redis::cmd("SENTINEL");
        match ask.arg("get-master-addr-by-name").arg(master).query_async(&mut sentinel).await? {
            Some(address) => Ok(Named { address, epoch }),
            None => {
                let what = "the Sentinel knows no master of that name";
                Err(RedisError::from((redis::ErrorKind::MasterNameNotFoundBySentinel, what)))
            }
        }
    }

    /// Asks the server who it is, and takes note.
    async fn probe(&self, connection: &mut MultiplexedConnection) -> Result<(), Error> {
        let probed = async {
            let info = connection.req_packed_command(&info_command()).await?.extract_error()?;
            // Where it is not allowed, what it would say is not told.
            let config = connection.req_packed_command(&config_command()).await;
            Server::told(info, config.and_then(Value::extract_error).ok())
        };
        let failed = || Error::refused("the server does not say who it is");
        match timeout(PROBE_MAX, probed).await {
            Ok(Ok(server)) => {
                self.learn(Servers(vec![server]));
                Ok(())
            }
            Ok(Err(error)) => Err(failed().because(error)),
            Err(_) => Err(failed()),
        }
    }

    pub(super) fn learn(&self, servers: Servers) {
        let who = |servers: &Servers| servers.0.iter().map(|server| server.identity.clone()).collect::<Vec<_>>();
        let mut known = self.known.lock();
        let is_first = known.servers.0.is_empty();
        if is_first || who(&known.servers) != who(&servers) {
            let before = servers.0.iter().map(Server::known_for).min().unwrap_or_default();
            known.before = if is_first { before } else { Duration::ZERO };
            known.at = self.clock.now();
            if !is_first {
                tracing::warn!(store = %self.options, "the server is another or was restarted; leases count anew");
            }
        }
        known.time = servers.0.iter().filter_map(|server| server.time_ms).max().map(|time| (time, Instant::now()));
        known.servers = servers;
    }
}

/// What a server said to a command, if it said anything.
pub(super) enum Told {
    Value(Value),
    /// It takes no writes now, and may be asked what it knows. If it is `open`, an earlier try may have been executed.
    TakesNoWrites {
        open: bool,
    },
}

/// What a Sentinel says.
struct Named {
    address: (String, u16),
    /// Grows with each failover.
    epoch: u64,
}

/// How a command is sent.
struct Asks {
    /// An earlier try may have been executed, or may still be.
    open: bool,
    /// A server that takes no writes now is waited for.
    waits: bool,
    claims: bool,
}

/// Why a command was not carried out.
struct Failed {
    error: Error,
    /// The server may be asked what it knows; and whether an earlier try is open.
    takes_no_writes: Option<bool>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, takes_no_writes: None }
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

fn told(sent: Result<Value, Failed>) -> Result<Told, Error> {
    match sent {
        Ok(value) => Ok(Told::Value(value)),
        Err(Failed { takes_no_writes: Some(open), .. }) => Ok(Told::TakesNoWrites { open }),
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

/// Each command has a deadline of its own.
fn config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_MAX)).set_response_timeout(None)
}

fn failed(open: bool, what: &str) -> Error {
    if open { Error::unavailable(what) } else { Error::refused(what) }
}

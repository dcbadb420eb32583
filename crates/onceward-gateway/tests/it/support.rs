//! The real program on free ports, and clients that speak bytes.

mod log;
mod socket;

#[cfg(target_os = "linux")]
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use log::Log;
pub(crate) use socket::{Answer, Client, Lines, chunked, headers};

/// Whatever is waited for is there by then, or never.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running `onceward serve`, killed when dropped. It may be two that share a store: then clients come to one and the other
/// in turn, and what is done to it is done to both.
#[derive(Debug)]
pub(crate) struct Gateway {
    child: Child,
    log: Log,
    /// Where clients connect to; of two, the first one's.
    pub(crate) listen: SocketAddr,
    /// Where operators connect to; of two, the first one's.
    pub(crate) admin: SocketAddr,
    folder: tempfile::TempDir,
    second: Option<Box<Self>>,
    came: AtomicUsize,
}

impl Gateway {
    /// Before this upstream, on a memory store, with all callers one, and what `settings` say besides.
    pub(crate) fn start(upstream: &str, settings: &str) -> Self {
        let top = format!("upstream = {upstream:?}\nstore = \"memory:\"\n");
        let settings = match settings.contains("[policy]") {
            true => settings.replace("[policy]", "[policy]\nprincipal = []"),
            false => format!("{settings}\n[policy]\nprincipal = []\n"),
        };
        Self::with(&format!("{top}{settings}"), &[])
    }

    /// With these settings alone, and these variables.
    pub(crate) fn with(settings: &str, environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("onceward.toml"), settings).unwrap();
        let command = command(&folder);
        Self::in_folder(folder, command, environment)
    }

    /// The same, and it may open so many files.
    pub(crate) fn with_open_files(settings: &str, most: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("onceward.toml"), settings).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {most} && exec \"$0\" serve \"$@\""), env!("CARGO_BIN_EXE_onceward")]);
        command.current_dir(folder.path()).env("ONCEWARD_LOG_FORMAT", "json").stderr(Stdio::piped());
        Self::in_folder(folder, command, &[])
    }

    /// With these settings, and a small file system at `disk`, which it alone sees and which ends with it.
    #[cfg(target_os = "linux")]
    pub(crate) fn on_a_disk_of_its_own(settings: &str, size: &str) -> Self {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("onceward.toml"), settings).unwrap();
        std::fs::create_dir(folder.path().join("disk")).unwrap();
        let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
        let mut command = Command::new("unshare");
        command.arg(if is_root { "-m" } else { "-rm" });
        let script = format!("mount -t tmpfs -o size={size} tmpfs disk && exec \"$0\" serve \"$@\"");
        command.args(["sh", "-c", &script, env!("CARGO_BIN_EXE_onceward")]);
        command.current_dir(folder.path()).env("ONCEWARD_LOG_FORMAT", "json").stderr(Stdio::piped());
        Self::in_folder(folder, command, &[])
    }

    /// Writes to that file system until it takes no more.
    #[cfg(target_os = "linux")]
    pub(crate) fn fill_its_disk(&self) {
        let filler = self.filler();
        let mut file = std::fs::File::options().create(true).append(true).open(&filler).unwrap();
        // In one step: a store that looks while a disk is being filled would give up its reserve, to whoever fills it.
        let free = Command::new("stat").args(["-f", "-c", "%a %S"]).arg(&filler).output().unwrap();
        let free = String::from_utf8(free.stdout).unwrap();
        let free: u64 = free.split_whitespace().map(|number| number.parse::<u64>().unwrap()).product();
        if free > 0 {
            let from = file.metadata().unwrap().len().to_string();
            let mut take = Command::new("fallocate");
            take.args(["--offset", &from, "--length", &free.to_string()]).arg(&filler);
            // What was taken meanwhile is not there to be taken; the rest goes as it is.
            let _ = take.stderr(Stdio::null()).status().unwrap();
        }
        for len in [1 << 20, 4096, 1] {
            while file.write_all(&vec![7; len]).is_ok() {}
        }
    }

    #[cfg(target_os = "linux")]
    pub(crate) fn empty_its_disk(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }

    #[cfg(target_os = "linux")]
    fn filler(&self) -> std::path::PathBuf {
        let folder = self.folder.path().canonicalize().unwrap();
        let root = format!("/proc/{}/root", self.pid());
        std::path::Path::new(&root).join(folder.strip_prefix("/").unwrap()).join("disk/filler")
    }

    /// With these settings alone, at these places.
    #[cfg(target_os = "linux")]
    pub(crate) fn at_places(settings: &str, listen: SocketAddr, admin: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("onceward.toml"), settings).unwrap();
        let mut command = command(&folder);
        command.args(["--listen", &listen.to_string(), "--admin", &admin.to_string()]);
        Self::spawn(folder, command)
    }

    /// With these settings, and names of its own, which it alone sees and which can be changed.
    #[cfg(target_os = "linux")]
    pub(crate) fn with_names(settings: &str, names: &str) -> Self {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("onceward.toml"), settings).unwrap();
        std::fs::write(folder.path().join("names"), names).unwrap();
        let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
        let mut command = Command::new("unshare");
        command.arg(if is_root { "-m" } else { "-rm" });
        let script = "mount --bind names /etc/hosts && exec \"$0\" serve \"$@\"";
        command.args(["sh", "-c", script, env!("CARGO_BIN_EXE_onceward")]);
        command.current_dir(folder.path()).env("ONCEWARD_LOG_FORMAT", "json").stderr(Stdio::piped());
        Self::in_folder(folder, command, &[])
    }

    /// Changes those names.
    #[cfg(target_os = "linux")]
    pub(crate) fn set_names(&self, names: &str) {
        std::fs::write(self.folder.path().join("names"), names).unwrap();
    }

    fn in_folder(folder: tempfile::TempDir, command: Command, environment: &[(&str, &str)]) -> Self {
        Self::at("127.0.0.1:0", folder, command, environment)
    }

    fn at(listen: &str, folder: tempfile::TempDir, mut command: Command, environment: &[(&str, &str)]) -> Self {
        command.args(["--listen", listen, "--admin", "127.0.0.1:0"]).envs(environment.iter().copied());
        Self::spawn(folder, command)
    }

    fn spawn(folder: tempfile::TempDir, mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let log = Log::default();
        log.follow(child.stderr.take().unwrap());
        let line = log.wait_for("\"message\":\"listening on ");
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address = |name: &str| line[name].as_str().unwrap().parse().unwrap();
        let (listen, admin) = (address("listen"), address("admin"));
        Self { child, log, listen, admin, folder, second: None, came: AtomicUsize::new(0) }
    }

    /// Together with another one on the same store.
    pub(crate) fn and(mut self, second: Self) -> Self {
        self.second = Some(Box::new(second));
        self
    }

    /// Kills it as a crash would, and starts it again in its folder.
    pub(crate) fn killed_and_restarted(self) -> Self {
        self.killed_and_at(|_| "127.0.0.1:0".parse().unwrap())
    }

    /// The same, and clients find it where it was.
    pub(crate) fn killed_and_back(self) -> Self {
        self.killed_and_at(|was| was)
    }

    fn killed_and_at(mut self, listen: fn(SocketAddr) -> SocketAddr) -> Self {
        self.kill();
        let second = self.second.take().map(|second| Box::new(second.killed_and_at(listen)));
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        let command = command(&folder);
        let mut again = Self::at(&listen(self.listen).to_string(), folder, command, &[]);
        again.second = second;
        again
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(second) = &mut self.second {
            second.kill();
        }
    }

    /// The process's id; of two, the first one's.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A line of the log that has `text` in it; waited for.
    pub(crate) fn logged(&self, text: &str) -> String {
        self.log.wait_for(text)
    }

    /// The whole log so far.
    pub(crate) fn log(&self) -> String {
        let mut log = self.log.text();
        if let Some(second) = &self.second {
            log += &format!("\n{}", second.log());
        }
        log
    }

    /// Sends a signal, and returns when a process that is to stand still does.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
        #[cfg(target_os = "linux")]
        if name == "STOP" {
            crate::client::poll("a process that stands still", || self.stands_still().then_some(()));
        }
        if let Some(second) = &self.second {
            second.signal(name);
        }
    }

    /// A thread that is still running when the signal comes may do much before it stops.
    #[cfg(target_os = "linux")]
    fn stands_still(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        threads.map_while(Result::ok).all(|thread| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            // The state comes after the name, which may have anything in it.
            stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('T'))
        })
    }

    /// How it ended; waited for. Two must end alike.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        // Its standard error closes when it ends.
        self.log.wait_for_end();
        let status = self.child.wait().unwrap();
        if let Some(second) = &mut self.second {
            assert_eq!(second.ended(), status);
        }
        status
    }

    /// Where the next client connects to.
    pub(crate) fn place(&self) -> SocketAddr {
        match &self.second {
            Some(second) if self.came.fetch_add(1, Ordering::SeqCst) % 2 == 1 => second.listen,
            _ => self.listen,
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.place())
    }

    /// One request on a connection of its own.
    pub(crate) fn send(&self, request: impl AsRef<[u8]>) -> Answer {
        self.client().ask(request)
    }

    /// The status and the body of an operators' page; of two, the first one's.
    pub(crate) fn page(&self, path: &str, headers: &str) -> (u16, String) {
        let answer =
            Client::connect(self.admin).ask(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"));
        (answer.status, String::from_utf8(answer.body).unwrap())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("the gateway's log:\n{}", self.log.text());
        }
    }
}

/// `onceward serve` in a folder, not started yet.
pub(crate) fn command(folder: &tempfile::TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onceward"));
    command.arg("serve").current_dir(folder.path()).env("ONCEWARD_LOG_FORMAT", "json").stderr(Stdio::piped());
    command
}

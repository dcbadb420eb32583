//! The real program on free ports, and clients that speak bytes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Whatever is waited for is there by then, or never.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running `onceward serve`, killed when dropped.
#[derive(Debug)]
pub(crate) struct Gateway {
    child: Child,
    log: Log,
    /// Where clients connect to.
    pub(crate) listen: SocketAddr,
    /// Where operators connect to.
    pub(crate) admin: SocketAddr,
    folder: tempfile::TempDir,
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
        let mut file = std::fs::File::options().create(true).append(true).open(self.filler()).unwrap();
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
        Self { listen: address("listen"), admin: address("admin"), child, log, folder }
    }

    /// Kills it as a crash would, and starts it again in its folder.
    pub(crate) fn killed_and_restarted(mut self) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        let command = command(&folder);
        Self::in_folder(folder, command, &[])
    }

    /// The same, and clients find it where it was.
    pub(crate) fn killed_and_back(mut self) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap());
        let command = command(&folder);
        Self::at(&self.listen.to_string(), folder, command, &[])
    }

    /// The process's id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A line of the log that has `text` in it; waited for.
    pub(crate) fn logged(&self, text: &str) -> String {
        self.log.wait_for(text)
    }

    /// The whole log so far.
    pub(crate) fn log(&self) -> String {
        self.log.lines.0.lock().unwrap().join("\n")
    }

    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// How it ended; waited for.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        // Its standard error closes when it ends.
        self.log.wait_for_end();
        self.child.wait().unwrap()
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.listen)
    }

    /// One request on a connection of its own.
    pub(crate) fn send(&self, request: impl AsRef<[u8]>) -> Answer {
        self.client().ask(request)
    }

    /// The status and the body of an operators' page.
    pub(crate) fn page(&self, path: &str, headers: &str) -> (u16, String) {
        let answer = Client::connect(self.admin).ask(format!("GET {path} HTTP/1.1\r\nHost: a\r\n{headers}\r\n"));
        (answer.status, String::from_utf8(answer.body).unwrap())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the gateway's log:\n{}", self.log());
        }
    }
}

/// `onceward serve` in a folder, not started yet.
pub(crate) fn command(folder: &tempfile::TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onceward"));
    command.arg("serve").current_dir(folder.path()).env("ONCEWARD_LOG_FORMAT", "json").stderr(Stdio::piped());
    command
}

#[derive(Clone, Debug, Default)]
struct Log {
    lines: Arc<(Mutex<Vec<String>>, Condvar)>,
    ended: Arc<(Mutex<bool>, Condvar)>,
}

impl Log {
    fn follow(&self, from: impl Read + Send + 'static) {
        let log = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                log.lines.0.lock().unwrap().push(line);
                log.lines.1.notify_all();
            }
            *log.ended.0.lock().unwrap() = true;
            log.ended.1.notify_all();
        });
    }

    fn wait_for(&self, text: &str) -> String {
        let until = Instant::now() + PATIENCE;
        let mut lines = self.lines.0.lock().unwrap();
        loop {
            if let Some(line) = lines.iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{text:?} was not logged:\n{}", lines.join("\n"));
            lines = self.lines.1.wait_timeout(lines, left).unwrap().0;
        }
    }

    fn wait_for_end(&self) {
        let ended = self.ended.0.lock().unwrap();
        let (ended, _) = self.ended.1.wait_timeout_while(ended, PATIENCE, |ended| !*ended).unwrap();
        assert!(*ended, "it does not end");
    }
}

/// A connection that says bytes and reads answers.
#[derive(Debug)]
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

/// Header lines in their order, names in lower case.
pub(crate) type Lines = Vec<(String, Vec<u8>)>;

/// What came back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Lines,
    pub(crate) body: Vec<u8>,
    /// Of a chunked body.
    pub(crate) trailers: Lines,
    /// Whether the body came to its announced end.
    pub(crate) is_whole: bool,
}

impl Answer {
    /// All values of a header.
    pub(crate) fn all(&self, name: &str) -> Vec<&[u8]> {
        self.headers.iter().filter(|(header, _)| header == name).map(|(_, value)| value.as_slice()).collect()
    }

    /// The only value of a header, or nothing.
    pub(crate) fn one(&self, name: &str) -> &str {
        match self.all(name).as_slice() {
            [] => "",
            [value] => std::str::from_utf8(value).unwrap(),
            more => panic!("{name} came {} times", more.len()),
        }
    }

    /// The same without a header.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(header, _)| header != name);
        self
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub(crate) fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    /// A clone for another thread to write with.
    pub(crate) fn writer(&self) -> TcpStream {
        self.stream.get_ref().try_clone().unwrap()
    }

    /// One line, without its end.
    pub(crate) fn line(&mut self) -> String {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).unwrap();
        String::from_utf8_lossy(&line).trim_end().to_owned()
    }

    pub(crate) fn exactly(&mut self, bytes: usize) -> Vec<u8> {
        let mut buffer = vec![0; bytes];
        self.stream.read_exact(&mut buffer).unwrap();
        buffer
    }

    /// Whether the other side has closed; waited for.
    pub(crate) fn is_closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]), Ok(0) | Err(_))
    }

    pub(crate) fn ask(&mut self, request: impl AsRef<[u8]>) -> Answer {
        self.say(&request);
        self.answer(request.as_ref().starts_with(b"HEAD"))
    }

    /// The next answer, interim ones left out.
    pub(crate) fn answer(&mut self, is_to_head: bool) -> Answer {
        loop {
            let answer = self.head();
            match answer.status {
                100 | 102..=199 => {}
                101 | 204 | 304 => return Answer { is_whole: true, ..answer },
                _ if is_to_head => return Answer { is_whole: true, ..answer },
                _ => return self.body(answer),
            }
        }
    }

    /// The status line and the headers alone.
    pub(crate) fn head(&mut self) -> Answer {
        let status = self.line();
        let status = status.split(' ').nth(1).unwrap_or_else(|| panic!("no answer: {status:?}")).parse().unwrap();
        Answer { status, headers: headers(&mut self.stream), ..Answer::default() }
    }

    fn body(&mut self, mut answer: Answer) -> Answer {
        let length = answer.all("content-length").first().map(|value| String::from_utf8_lossy(value).parse().unwrap());
        if answer.one("transfer-encoding") == "chunked" {
            let chunks = chunked(&mut self.stream);
            (answer.body, answer.trailers, answer.is_whole) = chunks;
        } else if let Some(length) = length {
            let mut body = (&mut self.stream).take(length);
            // A reset is as much of an end as another.
            let _ = body.read_to_end(&mut answer.body);
            answer.is_whole = answer.body.len() as u64 == length;
        } else {
            answer.is_whole = self.stream.read_to_end(&mut answer.body).is_ok();
        }
        answer
    }
}

/// Header lines up to the empty one.
pub(crate) fn headers(from: &mut impl BufRead) -> Lines {
    let mut headers = Vec::new();
    loop {
        let mut line = Vec::new();
        from.read_until(b'\n', &mut line).unwrap();
        let line = line.trim_ascii_end();
        let Some(at) = line.iter().position(|byte| *byte == b':') else { return headers };
        headers.push((String::from_utf8_lossy(&line[..at]).to_lowercase(), line[at + 1..].trim_ascii().to_vec()));
    }
}

/// A chunked body, its trailers, and whether it came to its end.
pub(crate) fn chunked(from: &mut impl BufRead) -> (Vec<u8>, Lines, bool) {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        if from.read_line(&mut line).is_err() {
            return (body, Vec::new(), false);
        }
        match usize::from_str_radix(line.trim(), 16) {
            Ok(0) => return (body, headers(from), true),
            Ok(length) => {
                let mut chunk = vec![0; length + 2];
                if from.read_exact(&mut chunk).is_err() {
                    return (body, Vec::new(), false);
                }
                body.extend_from_slice(&chunk[..length]);
            }
            Err(_) => return (body, Vec::new(), false),
        }
    }
}

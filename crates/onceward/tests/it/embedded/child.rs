//! Another process: this test binary, with its part in an environment variable.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::{disk, full, kill, open};

const PLAY: &str = "ONCEWARD_TEST_PLAY";
const FOLDER: &str = "ONCEWARD_TEST_FOLDER";

/// Runs a part if this process was started for one. Otherwise does nothing.
#[test]
fn play() {
    let (Ok(part), Ok(folder)) = (std::env::var(PLAY), std::env::var(FOLDER)) else { return };
    let folder = Path::new(&folder);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().expect("a runtime");
    runtime.block_on(async {
        match part.as_str() {
            "hold" => open::hold(folder),
            "write" => kill::write(folder).await,
            "hold a sync" => disk::hold_a_sync(folder).await,
            "fail" => disk::fail(folder).await,
            "fill up" => full::fill_up(folder).await,
            _ => panic!("no part is called {part}"),
        }
    });
}

/// Sends a line to the parent, flushed.
pub(super) fn tell(line: &str) {
    // In a single write, which a kill does not split, and not through the test harness, which would
    // capture it.
    std::io::stdout().write_all(format!("> {line}\n").as_bytes()).expect("the parent listens");
    std::io::stdout().flush().expect("the parent listens");
}

/// Waits for a line from the parent.
pub(super) fn wait_for_parent() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("the parent speaks");
}

/// Process that runs a part.
pub(super) struct Play {
    pub(super) process: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Play {
    pub(super) fn start(part: &str, folder: &Path, environment: &[(&str, &Path)]) -> Self {
        let binary = Command::new(std::env::current_exe().expect("this binary"));
        Self::start_by(binary, part, folder, environment)
    }

    /// Starts the process with mounts of its own, which end with it and which only it sees.
    #[cfg(target_os = "linux")]
    pub(super) fn start_with_mounts(part: &str, folder: &Path) -> Self {
        use std::os::unix::fs::MetadataExt;
        let is_root = std::fs::metadata("/proc/self").expect("this process").uid() == 0;
        let mut unshare = Command::new("unshare");
        unshare.arg(if is_root { "-m" } else { "-rm" }).arg(std::env::current_exe().expect("this binary"));
        Self::start_by(unshare, part, folder, &[])
    }

    fn start_by(mut binary: Command, part: &str, folder: &Path, environment: &[(&str, &Path)]) -> Self {
        let mut process = binary
            .args(["--exact", "embedded::child::play", "--nocapture", "--test-threads=1"])
            .env(PLAY, part)
            .env(FOLDER, folder)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("another process");
        let input = process.stdin.take().expect("it is piped");
        let lines = BufReader::new(process.stdout.take().expect("it is piped")).lines();
        Self { process, input, lines }
    }

    /// Returns its next line; `None` once it has ended.
    pub(super) fn hear(&mut self) -> Option<String> {
        self.lines.by_ref().map_while(Result::ok).find_map(|line| {
            // The harness writes the name of the test, without a newline, before the first line.
            line.split_once("> ").map(|(_, told)| told.to_owned())
        })
    }

    /// Reads lines up to and including this one.
    pub(super) fn hear_of(&mut self, line: &str) {
        while let Some(heard) = self.hear() {
            if heard == line {
                return;
            }
        }
        panic!("the process ended without reporting {line:?}");
    }

    pub(super) fn say(&mut self) {
        self.input.write_all(b"go\n").expect("it listens");
    }

    /// Kills it as `kill -9` does.
    pub(super) fn kill(&mut self) {
        self.process.kill().expect("it runs");
    }

    /// Waits until it ends successfully.
    pub(super) fn end(mut self) {
        while self.hear().is_some() {}
        assert!(self.process.wait().expect("it ends").success(), "it failed");
    }
}

/// Kills the process if the test fails.
impl Drop for Play {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

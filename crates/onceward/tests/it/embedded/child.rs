//! Another process: this very binary, told by its environment what to do.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::{disk, full, kill, open};

const PLAY: &str = "ONCEWARD_TEST_PLAY";
const FOLDER: &str = "ONCEWARD_TEST_FOLDER";

/// Plays a part if this process was started for one. As a test of this process it has nothing to say.
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

/// Tells the parent a line, at once.
pub(super) fn tell(line: &str) {
    // In one write, which a kill does not cut; and beneath the test harness, which would keep it.
    std::io::stdout().write_all(format!("> {line}\n").as_bytes()).expect("the parent listens");
    std::io::stdout().flush().expect("the parent listens");
}

/// Waits until the parent says something.
pub(super) fn wait_for_parent() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("the parent speaks");
}

/// A process that plays a part.
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

    /// With mounts of its own, which end with it and which nobody else sees.
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

    /// What it tells next; `None` once it has ended.
    pub(super) fn hear(&mut self) -> Option<String> {
        self.lines.by_ref().map_while(Result::ok).find_map(|line| {
            // The harness writes the name of the test without a line's end before the first.
            line.split_once("> ").map(|(_, told)| told.to_owned())
        })
    }

    /// Hears all up to a line, and that one.
    pub(super) fn hear_of(&mut self, line: &str) {
        while let Some(heard) = self.hear() {
            if heard == line {
                return;
            }
        }
        panic!("it ended, and never told {line:?}");
    }

    pub(super) fn say(&mut self) {
        self.input.write_all(b"go\n").expect("it listens");
    }

    /// As `kill -9` does.
    pub(super) fn kill(&mut self) {
        self.process.kill().expect("it runs");
    }

    /// Waits for it to end well.
    pub(super) fn end(mut self) {
        while self.hear().is_some() {}
        assert!(self.process.wait().expect("it ends").success(), "it failed");
    }
}

/// Of a test that fails, nothing goes on.
impl Drop for Play {
    fn drop(&mut self) {
        // It may have ended long since.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

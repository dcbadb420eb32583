//! Child process of the demo: started, its log read, and restarted.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdin, Command};
use tokio::time::timeout;

use super::show;

/// Timeout of a start. Longer than a store takes to open on a busy machine.
const START_MAX: Duration = Duration::from_secs(60);
/// Timeout of an end. Longer than the kernel takes to end a killed process.
const END_MAX: Duration = Duration::from_secs(5);

/// Command of a part, for its first start and each restart after a kill.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    pub(super) name: &'static str,
    pub(super) args: Vec<OsString>,
    /// Log file of the part.
    pub(super) log: PathBuf,
    /// Shows its log as it is written.
    pub(super) is_live: bool,
}

/// Running part. Dropping it kills the process and waits for its end, so that a directory it writes
/// to can be removed.
#[derive(Debug)]
pub(super) struct Part {
    recipe: Recipe,
    child: Child,
    /// Pipe to the part, to which nothing is ever written. It closes when this process ends, and
    /// then the part ends.
    _lifeline: Option<ChildStdin>,
    pid: u32,
}

impl Part {
    /// Starts the part, and waits until it logs that it listens.
    pub(super) async fn start(recipe: Recipe) -> Result<Self, String> {
        let name = recipe.name;
        let program = env::current_exe().map_err(|error| format!("this program cannot find itself: {error}"))?;
        let mut command = Command::new(program);
        command.args(&recipe.args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        // Settings in the environment are for another gateway.
        for (variable, _) in env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"ONCEWARD_")) {
            command.env_remove(variable);
        }
        command.env(crate::logging::FORMAT, "json");
        // Ctrl-C goes only to the demo, which then ends the parts.
        command.process_group(0).kill_on_drop(true);

        let mut child = command.spawn().map_err(|error| format!("the {name} cannot be started: {error}"))?;
        let lifeline = child.stdin.take();
        let stderr = child.stderr.take().ok_or("the log is not piped")?;
        let pid = child.id().unwrap_or_default();
        let part = Self { recipe, child, _lifeline: lifeline, pid };
        let recipe = &part.recipe;
        let log = File::options().create(true).append(true).open(&recipe.log);
        let log = log.map_err(|error| format!("{} cannot be written: {error}", recipe.log.display()))?;
        let mut log = Log { lines: BufReader::new(stderr).lines(), file: log };
        match timeout(START_MAX, log.until_listening()).await {
            Ok(Ok(())) => {}
            Ok(Err(last)) => return Err(format!("the {name} did not start: {last}")),
            Err(_) => return Err(format!("the {name} did not start in {} s", START_MAX.as_secs())),
        }
        let is_live = recipe.is_live;
        tokio::spawn(async move {
            while let Some(line) = log.next().await {
                if is_live {
                    show::logged(name, &line);
                }
            }
        });
        Ok(part)
    }

    /// Restarts the part with the same command.
    pub(super) async fn restart(&mut self) -> Result<(), String> {
        *self = Self::start(self.recipe.clone()).await?;
        Ok(())
    }

    /// Waits for its end, and returns the exit status.
    pub(super) async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Kills the part as `kill -9` does, and returns the exit status.
    pub(super) async fn kill(&mut self) -> std::io::Result<ExitStatus> {
        self.child.start_kill()?;
        self.ended().await
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn name(&self) -> &'static str {
        self.recipe.name
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // A process that has ended cannot be killed, and need not be.
        let _ = self.child.start_kill();
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && begun.elapsed() < END_MAX {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

struct Log {
    lines: Lines<BufReader<ChildStderr>>,
    file: File,
}

impl Log {
    async fn next(&mut self) -> Option<String> {
        let line = self.lines.next_line().await.ok()??;
        // A full disk must not stop the part that logs.
        let _ = writeln!(self.file, "{line}");
        Some(line)
    }

    /// Reads the log until the part listens. If it ends before, returns its last line as the error.
    async fn until_listening(&mut self) -> Result<(), String> {
        let mut last = String::from("it ended without a word");
        while let Some(line) = self.next().await {
            let message = serde_json::from_str::<Value>(&line).ok();
            match message.as_ref().and_then(|event| event["message"].as_str()) {
                Some(message) if message.starts_with("listening on ") => return Ok(()),
                Some(message) => last = message.into(),
                None => last = line.split_once(": ").map_or(line.as_str(), |(_, what)| what).into(),
            }
        }
        Err(last)
    }
}

//! Gateway process, which is restarted after each fault.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use onceward::fault;

use crate::history::{Recorder, What};

/// Timeout of every wait for a process. An action that takes longer never ends.
const PATIENCE: Duration = Duration::from_secs(30);
/// Polling interval of a process, which sends no event when it changes.
const LOOK: Duration = Duration::from_millis(5);
/// Upper bound on the retained lines of a log, for the search for a cause.
const LOG_LINES: usize = 400;

/// Counts the starts of all gateways.
static STARTS: AtomicU64 = AtomicU64::new(1);

/// Gateway with its successive starts.
#[derive(Debug)]
pub struct Gateway {
    program: PathBuf,
    folder: PathBuf,
    environment: Vec<(String, String)>,
    recorder: Arc<Recorder>,
    child: Option<Child>,
    now: Arc<Mutex<Option<Address>>>,
    log: Arc<Mutex<VecDeque<String>>>,
}

/// Address of a start of a gateway.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    /// Public listener.
    pub listen: SocketAddr,
    /// Number of the start.
    pub start: u64,
}

impl Gateway {
    /// Creates a gateway that is not started yet. `folder` contains its `onceward.toml`.
    pub fn new(program: &Path, folder: &Path, environment: Vec<(String, String)>, recorder: Arc<Recorder>) -> Self {
        Self {
            program: program.to_owned(),
            folder: folder.to_owned(),
            environment,
            recorder,
            child: None,
            now: Arc::default(),
            log: Arc::default(),
        }
    }

    /// Returns its current address, for clients on other threads.
    pub fn address(&self) -> Arc<Mutex<Option<Address>>> {
        Arc::clone(&self.now)
    }

    /// Starts it, with additional variables for this start, and waits until it listens. One that is
    /// set to abort at a failpoint may have ended before it listens: on a busy machine it sweeps
    /// before that.
    ///
    /// # Errors
    ///
    /// Its last log lines, if it does not listen.
    pub fn start(&mut self, variables: &[(&str, String)]) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.start_once(variables) {
                // A gateway whose store is slow ends, and its supervisor restarts it.
                Err(why) if why.contains("onceward: store:") && Instant::now() < until => thread::sleep(LOOK),
                started => return started,
            }
        }
    }

    fn start_once(&mut self, variables: &[(&str, String)]) -> Result<(), String> {
        let mut child = self
            .command()
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{} does not start: {error}", self.program.display()))?;
        let start = STARTS.fetch_add(1, Ordering::SeqCst);
        let (tell, told) = mpsc::channel();
        let (errors, log) = (child.stderr.take().ok_or("it has no log")?, Arc::clone(&self.log));
        thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                let value: Option<serde_json::Value> = serde_json::from_str(&line).ok();
                let listen = value.as_ref().and_then(|line| line["listen"].as_str()?.parse().ok());
                if let Some(listen) = listen {
                    let _ = tell.send(listen);
                }
                let mut log = log.lock().expect("nobody panics while it is held");
                log.push_back(line);
                if log.len() > LOG_LINES {
                    log.pop_front();
                }
            }
        });
        self.child = Some(child);
        match told.recv_timeout(PATIENCE) {
            Ok(listen) => {
                *self.now.lock().expect("nobody panics while it is held") = Some(Address { listen, start });
                Ok(())
            }
            Err(mpsc::RecvTimeoutError::Disconnected)
                if variables.iter().any(|(name, _)| *name == fault::FAILPOINT) =>
            {
                Ok(())
            }
            Err(_) => {
                self.kill();
                Err(format!("the gateway did not start: {}", self.last_words()))
            }
        }
    }

    /// Starts it and kills it, possibly before it listens.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start_and_kill_after(&mut self, after: Duration) -> Result<(), String> {
        let mut child = self.command().stderr(Stdio::null()).spawn().map_err(|error| error.to_string())?;
        thread::sleep(after);
        // An error only means that it ended before.
        let _ = child.kill();
        child.wait().map(drop).map_err(|error| error.to_string())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .current_dir(&self.folder)
            .env("ONCEWARD_LOG_FORMAT", "json")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// Returns the last lines of its log.
    pub fn last_words(&self) -> String {
        let log = self.log.lock().expect("nobody panics while it is held");
        log.iter().rev().take(3).rev().map(String::as_str).collect::<Vec<_>>().join(" | ")
    }

    /// Returns the retained lines of its log.
    pub fn log(&self) -> String {
        let log = self.log.lock().expect("nobody panics while it is held");
        log.iter().map(|line| format!("{line}\n")).collect()
    }

    /// Kills it as `kill -9` does, stopped or not, if it runs.
    pub fn kill(&mut self) {
        if let Some(child) = &mut self.child {
            // An error only means that it ended before.
            let _ = child.kill();
            let _ = child.wait();
            self.ended();
        }
    }

    /// Waits until it has ended by itself. Returns `None` after a timeout.
    pub fn wait(&mut self, most: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + most;
        let child = self.child.as_mut()?;
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                self.ended();
                return Some(status);
            }
            if Instant::now() >= until {
                return None;
            }
            thread::sleep(LOOK);
        }
    }

    fn ended(&mut self) {
        self.child = None;
        if let Some(Address { start, .. }) = self.now.lock().expect("nobody panics while it is held").take() {
            self.recorder.saw(What::Died { gateway: start });
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        if let Some(child) = &self.child {
            let _ = Command::new("kill").args(["-s", name, &child.id().to_string()]).stderr(Stdio::null()).status();
        }
    }

    /// Continues it after it was stopped.
    pub fn resume(&self) {
        self.signal("CONT");
        if let Some(Address { start, .. }) = *self.now.lock().expect("nobody panics while it is held") {
            self.recorder.saw(What::Continued { gateway: start });
        }
    }

    /// Waits until it has stopped itself. Returns `true` if it has.
    pub fn is_stopped(&mut self, most: Duration) -> bool {
        let until = Instant::now() + most;
        let Some(child) = &self.child else { return false };
        let stat = format!("/proc/{}/stat", child.id());
        loop {
            let text = std::fs::read_to_string(&stat).unwrap_or_default();
            // The name before it is in brackets, and may contain any character.
            if text.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T')) {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            thread::sleep(LOOK);
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill();
    }
}

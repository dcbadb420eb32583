//! Processes under test: starts them, distinguishes them, and reads their CPU time.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

/// Clock tick of `/proc`, in seconds: Linux has a hundred per second on every machine that this
/// runs on.
const TICK: f64 = 0.01;

/// Process of this program that listens. Killed when dropped.
pub(crate) struct Process {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Process {
    /// Starts a service, which prints its address as its first line.
    pub(crate) fn service(words: &[&str]) -> Result<Self, String> {
        let mut child = own(&["service"], words).spawn().map_err(|error| format!("service: {error}"))?;
        let said = child.stdout.take().ok_or("it has no output")?;
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line).map_err(|error| format!("service: {error}"))?;
        let address = line.trim().parse().map_err(|_| format!("the service {words:?} does not start"))?;
        Ok(Self { child, address })
    }

    /// Starts a gateway, whose log contains its address.
    pub(crate) fn gateway(words: &[&str], folder: &std::path::Path) -> Result<Self, String> {
        let mut gateway = own(&["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"], words);
        let mut child =
            gateway.current_dir(folder).stderr(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
        let mut log = BufReader::new(child.stderr.take().ok_or("it has no log")?);
        let mut said = String::new();
        let address = loop {
            let mut line = String::new();
            if log.read_line(&mut line).unwrap_or(0) == 0 {
                return Err(format!("the gateway does not start: {said}"));
            }
            let value: Option<serde_json::Value> = serde_json::from_str(&line).ok();
            match value.as_ref().and_then(|line| line["listen"].as_str()?.parse().ok()) {
                Some(address) => break address,
                None => said += &line,
            }
        };
        // The log is drained, or the gateway would block on the pipe.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Ok(Self { child, address })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn own(first: &[&str], words: &[&str]) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(first).args(words).stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// Returns the CPU seconds of a process and all of its children.
pub(crate) fn cpu_seconds(process: u32) -> f64 {
    let own = stat(process).map_or(0, |fields| [11, 12, 13, 14].iter().filter_map(|at| number(&fields, *at)).sum());
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    own as f64 * TICK + children.map(cpu_seconds).sum::<f64>()
}

/// Returns the fields after the name, so that `state` is the first.
fn stat(process: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    Some(text.rsplit(')').next()?.split_whitespace().map(str::to_owned).collect())
}

fn number(fields: &[String], at: usize) -> Option<u64> {
    fields.get(at)?.parse().ok()
}

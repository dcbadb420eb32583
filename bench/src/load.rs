//! Load: `wrk` with 64 connections, the same order each time, with new keys or with a few repeated
//! ones.

use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use serde::Deserialize;

const CONNECTIONS: u32 = 64;

/// Number of repeated keys.
const SAME_KEYS: u32 = 1_000;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    None,
    New,
    Same,
}

/// Result of one run.
#[derive(Clone, Copy, Deserialize)]
pub(crate) struct Run {
    pub(crate) requests: u64,
    micros: u64,
    failed: u64,
}

impl Run {
    pub(crate) fn per_second(&self) -> f64 {
        self.requests as f64 * 1e6 / self.micros as f64
    }
}

/// Order of about 300 bytes, and the hooks of `wrk` before each request and after all.
const SCRIPT: &str = r#"
local body = '{"item":"espresso machine, stainless, with a steam wand","qty":1,"note":"please ring twice; the bell of the ' ..
  'second floor is the one that works, and the dog is friendly. Leave it with the neighbours on the left if nobody ' ..
  'answers, they know about it and are at home all day.","address":"12 Main Street"}'
local prefix, count, n = KEYS
wrk.method, wrk.body = "POST", body
wrk.headers["Content-Type"] = "application/json"
n = 0
function request()
  if prefix ~= "" then
    wrk.headers["Idempotency-Key"] = prefix .. (count > 0 and n % count or n)
    n = n + 1
  end
  return wrk.format()
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\n{"requests":%d,"micros":%d,"failed":%d}\n', summary.requests, summary.duration,
    e.connect + e.read + e.write + e.status + e.timeout))
end
"#;

/// Runs the load against a service. A failed request ends the run: only successful requests may be
/// measured.
pub(crate) fn run(address: SocketAddr, keys: Keys, name: &str, seconds: u32) -> Result<Run, String> {
    let script = tempfile::Builder::new().suffix(".lua").tempfile().map_err(|error| error.to_string())?;
    let keys = match keys {
        Keys::None => "\"\", 0".to_owned(),
        Keys::New => format!("\"{name}-\", 0"),
        Keys::Same => format!("\"{name}-same-\", {SAME_KEYS}"),
    };
    fs::write(script.path(), SCRIPT.replace("KEYS", &keys)).map_err(|error| error.to_string())?;
    let mut wrk = Command::new("wrk");
    wrk.args(["-t1", &format!("-c{CONNECTIONS}"), &format!("-d{seconds}s"), "-s"]);
    let said = wrk.arg(script.path()).arg(format!("http://{address}/orders")).output();
    let said = said.map_err(|error| format!("wrk does not start: {error}"))?;
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let run: Option<Run> = text.lines().rev().find_map(|line| serde_json::from_str(line).ok());
    match run {
        Some(run) if run.failed == 0 && run.requests > 0 => Ok(run),
        Some(run) => Err(format!("{name}: {} of {} requests failed", run.failed, run.requests)),
        None => Err(format!("wrk says nothing: {text}{}", String::from_utf8_lossy(&said.stderr))),
    }
}

/// Sends a hundred concurrent duplicates to a slow service. Returns the number of executions.
pub(crate) fn executions_of_a_hundred(address: SocketAddr) -> Result<u64, String> {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--no-keepalive", "-Z", "--parallel-immediate", "--parallel-max", "100"]);
    curl.args(["-H", "content-type: application/json", "-H", "idempotency-key: one-of-a-hundred", "-H", "x-slow: 1"]);
    curl.args(["-d", r#"{"item":"tea","qty":1}"#]).args(vec![format!("http://{address}/orders"); 100]);
    let sent = curl
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|error| format!("curl does not start: {error}"))?;
    if !sent.success() {
        return Err(format!("curl failed: {sent}"));
    }
    let said = Command::new("curl").args(["-sS", &format!("http://{address}/executed")]).output();
    let said = said.map_err(|error| error.to_string())?;
    String::from_utf8_lossy(&said.stdout).trim().parse().map_err(|_| "the service does not count".to_owned())
}

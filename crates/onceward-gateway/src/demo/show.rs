//! Console output of the demo.

use std::io::{self, IsTerminal, Write};
use std::process::ExitStatus;

use serde_json::Value;

use super::part::Part;
use super::script::Script;
use super::{Folder, Stage};

/// Prints a line. A closed pipe is ignored.
pub(super) fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

pub(super) fn welcome(stage: &Stage, script: &Script, folder: &Folder) {
    let (gateway, orders, admin, relay) = (stage.gateway, stage.orders, stage.admin, stage.relay);
    let network = stage.network;
    let (gateway_pid, orders_pid) = (stage.gateway_part.pid(), stage.orders_part.pid());
    let fate = match folder {
        Folder::Fresh(_) => "removed at the end; --keep DIR keeps it",
        Folder::Kept(..) => "stays when this ends",
    };
    say("");
    say(&bold("  Open the page: order, lose the answer, kill the server, click twice"));
    say("");
    say(&format!("    {}", bold(&format!("http://{network}/"))));
    say("");
    for (name, at, what) in [
        (
            "network",
            format!("http://{network}"),
            "between the page and the gateway, and as bad as the page asks".into(),
        ),
        ("gateway", format!("http://{gateway}"), format!("`onceward serve`, pid {gateway_pid}")),
        (
            "orders",
            format!("http://{orders}"),
            format!("the service behind it, which knows nothing of keys, pid {orders_pid}"),
        ),
        ("relay", format!("http://{relay}"), "a network that passes requests on and loses every answer".into()),
        ("admin", format!("http://{admin}/status"), "what the gateway knows; also /metrics and /readyz".into()),
        ("data", folder.path().display().to_string(), fate.into()),
    ] {
        say(&format!("  {name:<8} {at:<34} {}", dim(&what)));
    }
    say("");
    say(&bold("  Or paste these: three requests, one order"));
    for (what, curl) in script.curl_lines() {
        say("");
        say(&dim(&format!("  # {what}")));
        say(&format!("  {curl}"));
    }
    say("");
    say(&format!("  Kill one: `kill -9 {gateway_pid}`. It is started again, and a retry still finds its answer."));
    say("  Ctrl-C ends all.");
    say("");
}

pub(super) fn died(part: &Part, how: &io::Result<ExitStatus>) {
    let how = how.as_ref().map_or_else(ToString::to_string, ToString::to_string);
    say(&format!("  the {} (pid {}) is gone: {how}", part.name(), part.pid()));
}

pub(super) fn back(part: &Part) {
    say(&format!("  the {} is back: pid {}", part.name(), part.pid()));
}

/// Prints a log line of a part, if it is meant for a person.
pub(super) fn logged(name: &str, line: &str) {
    let Ok(event) = serde_json::from_str::<Value>(line) else { return say(&format!("  {name}: {line}")) };
    let text = |field: &str| event[field].as_str().unwrap_or_default();
    match (text("level"), text("message")) {
        (_, "keyed request") => {
            let (status, ms) = (&event["status"], &event["ms"]);
            let shown = format!("{} {} {status} {:<9} {ms} ms", text("method"), text("route"), text("outcome"));
            say(&format!("  {name}: {shown}"));
        }
        ("WARN" | "ERROR", message) => say(&format!("  {name}: {message}")),
        _ => {}
    }
}

fn bold(text: &str) -> String {
    styled(text, "1")
}

fn dim(text: &str) -> String {
    styled(text, "2")
}

fn styled(text: &str, style: &str) -> String {
    match io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        true => format!("\x1b[{style}m{text}\x1b[0m"),
        false => text.into(),
    }
}

//! Runs parts one after another and reports the result of each.

use std::{
    io::{BufRead, BufReader, IsTerminal},
    path::Path,
    process::Stdio,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use crate::{
    cargo,
    parts::{Kind, Part},
    tally::{self, Counts, Heard, Report},
};

/// Timeout of the output of a part after cargo has ended.
const OUTPUT_LINGERS_MAX: Duration = Duration::from_secs(5);

/// Runs `parts`, prints the table and the last line, and returns `true` if all passed.
pub(crate) fn all(root: &Path, parts: &[Part], only: Option<&str>) -> bool {
    let mut reports: Vec<Report> = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let gate_failed =
            reports.iter().zip(parts).any(|(report, part)| part.kind == Kind::Gate && report.counts.failed > 0);
        if gate_failed && part.kind != Kind::Gate {
            break;
        }
        heading(&format!("part {} of {} · {}", index + 1, parts.len(), part.name), &part.command());
        let report = one(root, part);
        println!("{} · {} · {}", report.name, report.counts, tally::minutes(report.took));
        reports.push(report);
    }

    heading("minutes per part", "");
    print!("{}", tally::table(&reports));
    let total: Counts = reports.iter().map(|report| report.counts).sum();
    let left = parts.len() - reports.len();
    if left > 0 {
        println!("stopped: format, lints and docs come first; {left} parts did not run");
    }
    if total == Counts::default() {
        match only {
            Some(name) => {
                println!("nothing ran: no part is called `{name}` and no test's name contains it")
            }
            None => println!("nothing ran"),
        }
    }
    println!("{total}");
    total.all_well()
}

/// Runs one part to its end. Standard output is shown and parsed; errors go straight to the
/// terminal.
fn one(root: &Path, part: &Part) -> Report {
    let begun = Instant::now();
    let mut command = cargo();
    command.current_dir(root).args(&part.args).envs(part.env.iter().copied());
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            let (counts, _) = Heard::default().judge(Kind::Check, false);
            let troubles = vec![format!("failed: cargo did not start: {error}")];
            return Report { name: part.name.clone(), counts, took: begun.elapsed(), troubles };
        }
    };

    let (sender, lines) = mpsc::channel();
    let output = child.stdout.take().expect("it was piped");
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            let Ok(line) = line else { break };
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });

    // A process that a test left behind holds the pipe open for its lifetime. Therefore the part
    // ends when cargo ends, after a moment for the rest of the output.
    let mut heard = Heard::default();
    let mut ended: Option<(bool, Instant)> = None;
    let mut left_behind = false;
    loop {
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => {
                println!("{line}");
                heard.line(line.trim_end());
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        match ended {
            None => ended = child.try_wait().ok().flatten().map(|status| (status.success(), Instant::now())),
            Some((_, at)) if at.elapsed() > OUTPUT_LINGERS_MAX => {
                left_behind = true;
                break;
            }
            Some(_) => {}
        }
    }
    let success = match ended {
        Some((success, _)) => success,
        None => child.wait().is_ok_and(|status| status.success()),
    };

    let (mut counts, mut troubles) = heard.judge(part.kind, success);
    if left_behind {
        counts.failed += 1;
        troubles.push("failed: it left a process behind that still holds its output".into());
    }
    Report { name: part.name.clone(), counts, took: begun.elapsed(), troubles }
}

fn heading(name: &str, command: &str) {
    let separator = if command.is_empty() { "" } else { " · " };
    if std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        println!("\n\x1b[1m── {name}\x1b[0m{separator}{command}");
    } else {
        println!("\n── {name}{separator}{command}");
    }
}

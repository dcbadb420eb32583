//! Chaos run: one round after another, each on its own cluster with its own history, until the time
//! is over.
//!
//! Round `n` of seed `s` is round 0 of seed `s + n`, so its own seed is enough to repeat a finding
//! of a round. A seed determines the calls, and the order of the faults. Their timing depends on
//! the machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::check::{Seen, Verdict, check};
use crate::harm::{Harm, Tools};
use crate::history::What;
use crate::load::Load;
use crate::moments::Moments;
use crate::server::{Kind, Server};
use crate::stage::{Set, Stage, rules};
use crate::tally::Tally;

/// Minimum counts of each round.
const LEAST: Seen =
    Seen { calls: 200, executed: 50, replayed: 20, refused: 20, unknown: 5, open: 0, arrived: 0, keys: 0 };

/// Mount option of the small disk.
const DISK: &str = "size=192m";

/// Store of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// Embedded store, new in each round.
    Embedded,
    /// Server of the run's own, new in each round. Faults are injected into it too.
    Own(Kind),
    /// Existing shared store, which gets no faults.
    Url(String),
}

impl Store {
    /// Returns the value of `--store`.
    pub(crate) fn typed(&self) -> Option<&str> {
        match self {
            Self::Embedded => None,
            Self::Own(kind) => Some(kind.name()),
            Self::Url(url) => Some(url),
        }
    }

    /// Returns the file name of the report.
    pub(crate) fn page(&self) -> String {
        match self {
            Self::Own(kind) => format!("reliability-{}.md", kind.name()),
            Self::Embedded | Self::Url(_) => "reliability.md".to_owned(),
        }
    }
}

/// Plan of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Duration of the run; a round that has begun is completed.
    pub time: Duration,
    /// Seed of the random numbers.
    pub seed: u64,
    /// Store of the gateways.
    pub store: Store,
    /// Number of gateways that share it.
    pub gateways: usize,
    /// Directory for the histories of rounds with findings.
    pub findings: PathBuf,
}

/// Result of a run.
#[derive(Debug)]
pub struct Outcome {
    /// Counters of faults and calls.
    pub(crate) tally: Arc<Tally>,
    /// Counters of the checker.
    pub seen: Seen,
    /// Number of rounds.
    pub rounds: u64,
    /// Duration of the run.
    pub took: Duration,
    /// Findings, one line each.
    pub found: Vec<String>,
}

/// Runs rounds until the time is over, or a round has a finding.
///
/// # Errors
///
/// If nothing can be checked: a program is missing, or a gateway does not start.
pub fn run(plan: &Plan) -> Result<Outcome, String> {
    let began = Instant::now();
    let shim = build_shim(&plan.findings)?;
    let mut outcome =
        Outcome { tally: Arc::default(), seen: Seen::default(), rounds: 0, took: Duration::ZERO, found: Vec::new() };
    let mut longest = Duration::ZERO;
    // A round is not started if more than half of it would run after the time.
    while outcome.rounds == 0 || began.elapsed() + longest / 2 < plan.time {
        let seed = plan.seed + outcome.rounds;
        let round_began = Instant::now();
        let mut round = Round { plan, seed, tally: &outcome.tally, began };
        let (verdict, history) = round.play(&shim).map_err(|error| format!("round of seed {seed}: {error}"))?;
        outcome.rounds += 1;
        outcome.seen += verdict.seen;
        longest = longest.max(round_began.elapsed());
        outcome.took = began.elapsed();
        say(began, plan, &format!("round {}, seed {seed}: {}", outcome.rounds, line(&verdict.seen)));
        if !verdict.breaches.is_empty() {
            let history = history.map_or_else(String::new, |path| format!(" (its history: {})", path.display()));
            outcome.found.push(format!("seed {seed} broke {} rules{history}", verdict.breaches.len()));
            outcome.found.extend(verdict.breaches.iter().take(10).map(|breach| format!("  {breach}")));
            break;
        }
    }
    Ok(outcome)
}

struct Round<'a> {
    plan: &'a Plan,
    seed: u64,
    tally: &'a Arc<Tally>,
    began: Instant,
}

impl Round<'_> {
    fn play(&mut self, shim: &Path) -> Result<(Verdict, Option<PathBuf>), String> {
        let failed = |error: std::io::Error| error.to_string();
        let folder = tempfile::tempdir().map_err(failed)?;
        let is_embedded = self.plan.store == Store::Embedded;
        // Alternates, so that each condition occurs with and without the others: a small disk, or a
        // controlled clock.
        let disk = (is_embedded && self.seed.is_multiple_of(2))
            .then(|| Disk::mount(&folder.path().join("disk")))
            .transpose()?;
        let clock = (!self.seed.is_multiple_of(2)).then(|| folder.path().join("clock"));
        let mut preload = vec![shim.to_owned()];
        let faults = folder.path().join("faults");
        let mut environment = vec![("FAULTS".to_owned(), faults.display().to_string())];
        if let Some(clock) = &clock {
            std::fs::write(clock, "+0").map_err(failed)?;
            preload.push(faketime()?);
            environment.push(("FAKETIME_TIMESTAMP_FILE".to_owned(), clock.display().to_string()));
            environment.push(("FAKETIME_CACHE_DURATION".to_owned(), "1".to_owned()));
            environment.push(("FAKETIME_DONT_FAKE_MONOTONIC".to_owned(), "1".to_owned()));
        }
        let preload: Vec<String> = preload.iter().map(|path| path.display().to_string()).collect();
        environment.push(("LD_PRELOAD".to_owned(), preload.join(":")));
        let set = Set {
            program: "/proc/self/exe".into(),
            folder: folder.path().to_owned(),
            store: match &self.plan.store {
                Store::Url(url) => url.clone(),
                // Each gateway gets the URL of its own proxy.
                Store::Own(_) => "memory:".to_owned(),
                Store::Embedded if disk.is_some() => "embedded:disk/store".to_owned(),
                Store::Embedded => "embedded:store".to_owned(),
            },
            namespace: format!("chaos-{}-{}", std::process::id(), self.seed),
            gateways: self.plan.gateways,
            environment,
            server: match self.plan.store {
                Store::Own(kind) => Some(Server::start(kind, self.plan.gateways)),
                Store::Embedded | Store::Url(_) => None,
            },
        };
        let tools = Tools {
            faults,
            clock,
            disk: disk.as_ref().map(|disk| disk.path.clone()),
            is_embedded,
            has_server: set.server.is_some(),
        };
        let mut stage = Stage::set(set).map_err(failed)?;
        for gateway in &mut stage.gateways {
            gateway.start(&[])?;
        }
        self.hurt(&mut stage, &tools)?;
        let events = stage.recorder.events();
        for event in &events {
            if let What::Answered { answer, .. } = &event.what {
                let passed_on = if answer.nonce.is_empty() { "" } else { "the upstream's answer" };
                self.tally.add(&format!("answer: {} {}{passed_on}", answer.outcome, answer.code));
            }
        }
        let verdict = check(&events, &rules(LEAST));
        let mut history = None;
        if !verdict.breaches.is_empty() {
            let path = self.plan.findings.join(format!("history-{}.jsonl", self.seed));
            stage.recorder.write(&path).map_err(failed)?;
            let logs: String = stage.gateways.iter().map(|gateway| gateway.log()).collect();
            std::fs::write(path.with_extension("log"), logs).map_err(failed)?;
            history = Some(path);
        }
        Ok((verdict, history))
    }

    /// Runs the load and injects one fault after another; then recovers from all, and makes the
    /// last calls.
    fn hurt(&mut self, stage: &mut Stage, tools: &Tools) -> Result<(), String> {
        let mut moments = Moments::of(self.seed);
        let addresses = stage.gateways.iter().map(|gateway| gateway.address()).collect();
        let load = Arc::new(Load::new(Arc::clone(&stage.recorder), addresses, Arc::clone(self.tally)));
        let clients = load.run(self.seed);
        let mut said = Instant::now();
        let mut result = Ok(());
        for harm in Harm::all(tools, &mut moments) {
            std::thread::sleep(moments.between(100, 600));
            if said.elapsed() > Duration::from_secs(10) {
                said = Instant::now();
                say(self.began, self.plan, &format!("seed {}: {}", self.seed, harm.name()));
            }
            result = harm.happen(stage, tools, &mut moments, self.tally);
            if result.is_err() {
                break;
            }
        }
        load.ending.store(true, Ordering::SeqCst);
        clients.into_iter().for_each(|client| drop(client.join()));
        result?;
        if let Some(clock) = &tools.clock {
            std::fs::write(clock, "+0").map_err(|error| error.to_string())?;
        }
        stage.recorder.saw(What::Healed);
        load.last_calls();
        Ok(())
    }
}

/// Formats the counters in one line.
pub(crate) fn line(seen: &Seen) -> String {
    let Seen { calls, open, executed, replayed, refused, unknown, keys, .. } = seen;
    format!(
        "{calls} calls ({open} open) of {keys} keys: {executed} executed, {replayed} replayed, {refused} refused, {unknown} unknown"
    )
}

fn say(began: Instant, plan: &Plan, what: &str) {
    let seconds = |time: Duration| format!("{}:{:02}", time.as_secs() / 60, time.as_secs() % 60);
    println!("chaos {} of {} · {what}", seconds(began.elapsed()), seconds(plan.time));
}

/// Builds the shim that makes the journal's system calls fail. A C compiler exists, because Rust
/// needs one to link.
///
/// # Errors
///
/// Errors of the compiler or of the directory.
pub fn build_shim(folder: &Path) -> Result<PathBuf, String> {
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let folder = folder.canonicalize().map_err(|error| error.to_string())?;
    let (source, library) = (folder.join("faults.c"), folder.join("faults.so"));
    std::fs::write(&source, include_str!("../../crates/onceward/tests/it/embedded/faults.c"))
        .map_err(|error| error.to_string())?;
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl").status();
    match built {
        Ok(status) if status.success() => Ok(library),
        Ok(status) => Err(format!("cc failed: {status}")),
        Err(error) => Err(format!("cc, which builds faults.c, did not start: {error}")),
    }
}

/// Returns the library of `faketime`, which controls the wall clock.
fn faketime() -> Result<PathBuf, String> {
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    folders
        .map(|folder| folder.join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.is_file())
        .ok_or_else(|| "libfaketime is not below /usr/lib; install the package faketime".to_owned())
}

/// Small disk, unmounted when dropped.
struct Disk {
    path: PathBuf,
}

impl Disk {
    fn mount(path: &Path) -> Result<Self, String> {
        std::fs::create_dir(path).map_err(|error| error.to_string())?;
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", DISK, "chaos"]).arg(path).status();
        match mounted {
            Ok(status) if status.success() => Ok(Self { path: path.to_owned() }),
            _ => Err("a tmpfs could not be mounted, so that a disk can be filled; run it as root".to_owned()),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

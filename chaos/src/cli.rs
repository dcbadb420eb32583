//! Command line, and the last line of output.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use onceward::fault::POINTS;

use crate::report;
use crate::run::{Outcome, Plan, Store, line, run};
use crate::server::Kind;

/// Minimum number of aborts per failpoint and hour; proportionally fewer in a shorter run.
const ABORTS_AN_HOUR: u64 = 50;

/// Injects faults into real gateways, and checks the recorded history.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask chaos")]
struct Args {
    /// Duration in minutes.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    minutes: u64,
    /// Seed of the random numbers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Runs for an hour, and writes the table to docs/reliability.md, or docs/reliability-STORE.md.
    #[arg(long)]
    long: bool,
    /// Writes the table there, whatever the duration.
    #[arg(long)]
    write: bool,
    /// `postgres`, `redis` or `valkey`: a server of the run's own that gateways share, into which
    /// faults are injected too. Or the URL of an existing one, which gets no faults. By default
    /// each round has an embedded store.
    #[arg(long)]
    store: Option<String>,
    /// Number of gateways that share the store; an embedded one allows one.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=16))]
    gateways: Option<u64>,
    /// Directory for the histories of rounds with findings.
    #[arg(long, default_value = "target/chaos")]
    findings: PathBuf,
}

/// Runs the command line. Returns 0 without findings, 1 with findings, and 2 if nothing could be
/// checked.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let store = match args.store.as_deref() {
        None => Store::Embedded,
        Some("postgres") => Store::Own(Kind::Postgres),
        Some("redis") => Store::Own(Kind::Redis),
        Some("valkey") => Store::Own(Kind::Valkey),
        Some(url) if url.contains(':') => Store::Url(url.to_owned()),
        Some(other) => {
            eprintln!(
                "chaos: --store {other}: write postgres, redis, valkey, or the URL of a store that gateways share"
            );
            return ExitCode::from(2);
        }
    };
    let is_embedded = store == Store::Embedded;
    let gateways = args.gateways.unwrap_or(if is_embedded { 1 } else { 3 }) as usize;
    if is_embedded && gateways > 1 {
        eprintln!("chaos: --gateways {gateways}: an embedded store is one gateway's; name another with --store");
        return ExitCode::from(2);
    }
    let minutes = if args.long { 60 } else { args.minutes };
    let plan =
        Plan { time: Duration::from_secs(minutes * 60), seed: args.seed, store, gateways, findings: args.findings };
    let mut outcome = match run(&plan) {
        Ok(outcome) => outcome,
        Err(error) => {
            eprintln!("chaos: it could not be judged: {error}");
            return ExitCode::from(2);
        }
    };
    outcome.found.extend(missed(&plan, &outcome));
    let page = plan.store.page();
    let mut pages = vec![plan.findings.join(&page)];
    if args.long || args.write {
        pages.push(PathBuf::from("docs").join(&page));
    }
    for page in pages {
        if let Err(error) = std::fs::write(&page, report::markdown(&plan, &outcome)) {
            eprintln!("chaos: {}: {error}", page.display());
            return ExitCode::from(2);
        }
    }
    let took = outcome.took.as_secs_f64() / 60.0;
    if outcome.found.is_empty() {
        println!(
            "chaos: nothing found in {took:.1} min, {} rounds from seed {}: {}",
            outcome.rounds,
            plan.seed,
            line(&outcome.seen)
        );
        return ExitCode::SUCCESS;
    }
    for line in &outcome.found {
        println!("{line}");
    }
    let seed = plan.seed + outcome.rounds - 1;
    let store = plan.store.typed().map_or_else(String::new, |store| format!(" --store {store} --gateways {gateways}"));
    println!(
        "chaos: FOUND SOMETHING after {took:.1} min; repeat it: cargo xtask chaos --minutes 1 --seed {seed}{store}"
    );
    ExitCode::FAILURE
}

/// Returns the failpoints that were reached too rarely to allow a conclusion.
fn missed(plan: &Plan, outcome: &Outcome) -> Vec<String> {
    let least = plan.time.as_secs() * ABORTS_AN_HOUR / 3600;
    let reached = |point: &str| outcome.tally.count(&format!("gateway: aborted at {point}"));
    let in_the_store = ["commit-before", "commit-after", "compaction"];
    POINTS
        .into_iter()
        .filter(|point| plan.store == Store::Embedded || !in_the_store.contains(point))
        .filter(|point| outcome.found.is_empty() && reached(point) < least)
        .map(|point| format!("{point} ended a gateway {} times, and fewer than {least} say nothing", reached(point)))
        .collect()
}

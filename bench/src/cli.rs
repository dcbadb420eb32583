//! Command line, and the pages of the tables.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;

use crate::{gateway, postgres, redis, scale};

/// Measures the cost of Onceward, as ratios in one run, and writes docs/performance.md and
/// docs/scale.md.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench")]
struct Args {
    /// Section to run: layer, redis, postgres, gateway.
    #[arg(long)]
    only: Option<String>,
    /// Number of rounds; each one measures everything in turn.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Seconds per measurement.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Only prints the tables.
    #[arg(long)]
    dry: bool,
    /// Table of `cargo bench -p onceward`, which runs before this program.
    #[arg(long, hide = true)]
    layer: Option<std::path::PathBuf>,
}

/// Settings of the measurements.
pub(crate) struct Plan {
    pub(crate) rounds: u32,
    pub(crate) seconds: u32,
    pub(crate) warm_seconds: u32,
    begun: Instant,
}

impl Plan {
    /// Prints one line about the current measurement.
    pub(crate) fn progress(&self, round: u32, what: &str) {
        eprintln!("bench {:>4} s · round {} of {} · {what}", self.begun.elapsed().as_secs(), round + 1, self.rounds);
    }
}

const PAGE: &str = "docs/performance.md";
const SCALE: &str = "docs/scale.md";

pub(crate) fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), String> {
    let plan = Plan { rounds: args.rounds, seconds: args.seconds, warm_seconds: 1, begun: Instant::now() };
    let mut tables = Vec::new();
    if let Some(file) = &args.layer {
        let said = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let table: Vec<&str> = said.lines().filter(|line| line.starts_with('|')).collect();
        tables.push(("layer", table.join("\n") + "\n"));
    }
    let is_asked = |name: &str| args.only.as_deref().is_none_or(|only| only == name);
    let mut costs = (None, None, None);
    if is_asked("redis") {
        let (table, cost) = redis::measure(&plan)?;
        tables.push(("redis", table));
        costs.0 = Some(cost);
    }
    if is_asked("postgres") {
        let (table, cost) = postgres::measure(&plan)?;
        tables.push(("postgres", table));
        costs.1 = Some(cost);
    }
    if is_asked("gateway") {
        let (table, cost) = gateway::measure(&plan)?;
        tables.push(("gateway", table));
        costs.2 = Some(cost);
    }
    if tables.is_empty() {
        return Err(format!("there is no {:?}; there are layer, redis, postgres and gateway", args.only));
    }
    for (name, table) in &tables {
        println!("\n{name}\n\n{table}");
        if !args.dry {
            write(Path::new(PAGE), name, table)?;
        }
    }
    if let (Some(redis), Some(postgres), Some(gateway)) = costs {
        let table = scale::table(gateway, redis, postgres);
        println!("\nscale\n\n{table}");
        if !args.dry {
            write(Path::new(SCALE), "scale", &table)?;
        }
    }
    Ok(())
}

/// Replaces a table on the page, and leaves the rest unchanged.
fn write(page: &Path, name: &str, table: &str) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", page.display());
    let text = fs::read_to_string(page).map_err(failed)?;
    let text = placed(&text, name, table).ok_or_else(|| format!("{} has no place for {name}", page.display()))?;
    fs::write(page, text).map_err(failed)
}

fn placed(text: &str, name: &str, table: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- bench: {name} -->\n"), format!("<!-- end: {name} -->"));
    let from = text.find(&begin)? + begin.len();
    let to = from + text[from..].find(&end)?;
    Some(format!("{}{}\n{}", &text[..from], table.trim_end(), &text[to..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_takes_the_place_of_the_one_before() {
        let page = "before\n<!-- bench: a -->\nold\n<!-- end: a -->\nafter\n";
        let once = placed(page, "a", "| new |\n").unwrap();
        assert_eq!(once, "before\n<!-- bench: a -->\n| new |\n<!-- end: a -->\nafter\n");
        assert_eq!(placed(&once, "a", "| new |"), Some(once.clone()));
        assert_eq!(placed(page, "b", ""), None);
    }
}

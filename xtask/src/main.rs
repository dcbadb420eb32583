//! Commands of the project: `cargo xtask test`, `ci`, `chaos` and `bench`.
//!
//! Only `std` is used, so that the command itself builds in a second in a fresh clone.

mod args;
mod page;
mod parts;
mod programs;
mod run;
mod tally;
mod web;

use std::{
    env,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use args::{Action, Asked};
use parts::{Kind, Part};

fn main() -> ExitCode {
    let typed: Vec<String> = env::args().skip(1).collect();
    // Commands of the parts `web` and `page`: they are not for people to type.
    let npm: Option<NpmPart> = match typed.first().map(String::as_str) {
        Some("web") => Some(web::run),
        Some("page") => Some(page::run),
        _ => None,
    };
    if let Some(run) = npm {
        return match run(typed.get(1).map(String::as_str)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(line) => {
                eprintln!("xtask: {line}");
                ExitCode::FAILURE
            }
        };
    }
    let asked = match Asked::parse(typed) {
        Ok(asked) => asked,
        Err(line) => {
            eprintln!("xtask: {line}");
            return ExitCode::from(2);
        }
    };
    match asked.action {
        Action::Help => {
            print!("{}", args::HELP);
            ExitCode::SUCCESS
        }
        Action::Test | Action::Ci | Action::Chaos | Action::Bench => match asked_for(&asked) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(line) => {
                eprintln!("xtask: {line}");
                ExitCode::FAILURE
            }
        },
    }
}

/// Runs an npm part with a filter on test names. The error is the one line to print.
type NpmPart = fn(Option<&str>) -> Result<(), String>;

fn asked_for(asked: &Asked) -> Result<bool, String> {
    match asked.action {
        Action::Chaos => chaos(&asked.rest),
        Action::Bench => bench(&asked.rest),
        _ => test(asked),
    }
}

/// Installs the additional programs of a chaos run's store, which its arguments name.
fn chaos(rest: &[String]) -> Result<bool, String> {
    let store = rest.iter().position(|word| word == "--store").and_then(|at| rest.get(at + 1));
    let store = store.map(String::as_str).filter(|store| ["postgres", "redis", "valkey"].contains(store));
    programs::provide(&[parts::chaos(store)])?;
    hand_over(&parts::chaos(None), rest)
}

/// Installs the programs of a part, and runs it with these arguments. It reports its own result.
fn hand_over(part: &Part, rest: &[String]) -> Result<bool, String> {
    programs::provide(std::slice::from_ref(part))?;
    let status = cargo().current_dir(root()).args(&part.args).args(rest).status();
    status.map(|status| status.success()).map_err(|error| format!("cargo did not start: {error}"))
}

/// Benchmarks the layer in process first, then those that need servers; the latter write the page.
fn bench(rest: &[String]) -> Result<bool, String> {
    let part = parts::measure();
    let only = rest.iter().position(|word| word == "--only").and_then(|at| rest.get(at + 1));
    if rest.iter().any(|word| word == "--help" || word == "-h") || only.is_some_and(|only| only != "layer") {
        return hand_over(&part, rest);
    }
    let (root, failed) = (root(), |error| format!("cargo did not start: {error}"));
    println!("cargo bench -p onceward");
    let said = cargo().current_dir(&root).args(["bench", "-p", "onceward"]).stderr(Stdio::inherit()).output();
    let said = said.map_err(failed)?;
    print!("{}", String::from_utf8_lossy(&said.stdout));
    if !said.status.success() {
        return Ok(false);
    }
    let file = root.join("target/bench-layer.txt");
    std::fs::write(&file, &said.stdout).map_err(|error| format!("{}: {error}", file.display()))?;
    let layer = ["--layer".to_owned(), file.display().to_string()];
    hand_over(&part, &[&layer, rest].concat())
}

/// Installs missing programs, runs the requested parts, and returns `true` if all passed.
fn test(asked: &Asked) -> Result<bool, String> {
    let root = root();
    let manifest = root.join("crates/onceward/Cargo.toml");
    let manifest = std::fs::read_to_string(&manifest).map_err(|error| format!("{}: {error}", manifest.display()))?;
    let mut parts = parts::choose(parts::all(&parts::features(&manifest)), asked.only.as_deref());
    if asked.action == Action::Ci {
        parts.splice(0..0, parts::gates());
    }
    if asked.list {
        let width = parts.iter().map(|part| part.name.len()).max().unwrap_or(0);
        for part in &parts {
            println!("{:width$}  {}", part.name, part.command());
        }
        return Ok(true);
    }

    programs::provide(&parts)?;
    let parts = parts
        .into_iter()
        .map(|mut part| {
            if asked.long {
                part = match part.name.as_str() {
                    "chaos" => parts::minutes_of_chaos(None, &["--long"]),
                    "chaos-postgres" => parts::minutes_of_chaos(Some("postgres"), &["--minutes", "10", "--write"]),
                    "chaos-valkey" => parts::minutes_of_chaos(Some("valkey"), &["--minutes", "10", "--write"]),
                    "chaos-redis" => parts::minutes_of_chaos(Some("redis"), &["--minutes", "10", "--write"]),
                    _ => part,
                };
            }
            if asked.long && part.kind == Kind::Tests {
                part.env.push(("ONCEWARD_LONG", "1"));
            }
            // Incremental files help the next build of the same tree; CI has no next build.
            if asked.action == Action::Ci && env::var_os("CI").is_some() {
                part.env.push(("CARGO_INCREMENTAL", "0"));
            }
            part
        })
        .collect::<Vec<Part>>();
    Ok(run::all(&root, &parts, asked.only.as_deref()))
}

/// Returns a cargo command without the environment of this one.
fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // `cargo run` sets variables that describe this package. Passed on, they would differ from what
    // a plain `cargo test` sees, and build scripts that read them would rebuild each time the two
    // alternate.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
    }
    cargo
}

fn root() -> PathBuf {
    // Read at run time: a compiled-in path would be wrong after the directory is moved.
    match env::var_os("CARGO_MANIFEST_DIR") {
        Some(xtask) => PathBuf::from(xtask).join(".."),
        None => PathBuf::from("."),
    }
}

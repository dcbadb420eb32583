//! Command-line arguments.

pub(crate) const HELP: &str = "\
The project's own commands.

cargo xtask test    installs what is missing, runs everything, ends in `N passed, N failed, N skipped`
    --only NAME     one part by its name (`feature` is all of `feature/…`), or else tests whose name contains NAME
    --long          repetitions and soaks in full, instead of a tenth
    --list          print the parts and their commands, and run nothing
cargo xtask ci      format, lints and docs, then what `test` runs
cargo xtask chaos   hurts real gateways and checks what was seen: --minutes N, --seed S, --store postgres, --long; `--help` says more
cargo xtask bench   measures ratios, and writes docs/performance.md: --only layer|redis|postgres|gateway; `bench --help` says more
";

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) action: Action,
    pub(crate) only: Option<String>,
    pub(crate) long: bool,
    pub(crate) list: bool,
    /// Passed on unchanged.
    pub(crate) rest: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Help,
    Test,
    Ci,
    Chaos,
    Bench,
}

impl Asked {
    /// Parses the arguments. The error is the one line to print.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut arguments = arguments.into_iter();
        let action = match arguments.next().as_deref() {
            Some("test") => Action::Test,
            Some("ci") => Action::Ci,
            Some("chaos") => Action::Chaos,
            Some("bench") => Action::Bench,
            Some("help" | "-h" | "--help") => Action::Help,
            Some(other) => {
                return Err(format!("unknown command `{other}`; there are `test`, `ci`, `chaos` and `bench`"));
            }
            None => {
                return Err(
                    "which command? There are `test`, `ci`, `chaos` and `bench`; `cargo xtask help` says more".into()
                );
            }
        };
        let mut asked = Self { action, only: None, long: false, list: false, rest: Vec::new() };
        if matches!(action, Action::Chaos | Action::Bench) {
            // These commands parse their own arguments.
            asked.rest = arguments.collect();
            return Ok(asked);
        }
        while let Some(argument) = arguments.next() {
            match (action, argument.as_str()) {
                (_, "-h" | "--help") => asked.action = Action::Help,
                (Action::Test, "--long") => asked.long = true,
                (Action::Test, "--list") => asked.list = true,
                (Action::Test, "--only") => asked.only = Some(name(arguments.next().as_deref())?),
                (Action::Test, other) if other.starts_with("--only=") => {
                    asked.only = Some(name(other.strip_prefix("--only="))?);
                }
                (Action::Test, other) => {
                    return Err(format!("`test` does not know `{other}`; it takes --only NAME, --long and --list"));
                }
                (_, other) => {
                    return Err(format!("unexpected `{other}`; this command takes no arguments"));
                }
            }
        }
        Ok(asked)
    }
}

fn name(given: Option<&str>) -> Result<String, String> {
    match given {
        Some(name) if !name.is_empty() && !name.starts_with('-') => Ok(name.into()),
        _ => Err("--only needs the name of a part or a piece of a test's name; --list prints the parts".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Asked, String> {
        Asked::parse(line.split_whitespace().map(String::from))
    }

    #[test]
    fn commands_and_flags_are_read() {
        for (line, action, only, long, list) in [
            ("test", Action::Test, None, false, false),
            ("test --long --list", Action::Test, None, true, true),
            ("test --only lib", Action::Test, Some("lib"), false, false),
            ("test --only=a::b --long", Action::Test, Some("a::b"), true, false),
            ("ci", Action::Ci, None, false, false),
            ("--help", Action::Help, None, false, false),
            ("ci --help", Action::Help, None, false, false),
        ] {
            let only = only.map(String::from);
            let want = Asked { action, only, long, list, rest: Vec::new() };
            assert_eq!(parse(line), Ok(want), "{line}");
        }
    }

    #[test]
    fn chaos_and_bench_know_their_own_arguments() {
        for (line, action, rest) in [
            ("chaos --minutes 1 --seed 7 --help", Action::Chaos, "--minutes 1 --seed 7 --help"),
            ("bench --only redis", Action::Bench, "--only redis"),
        ] {
            let asked = parse(line).unwrap();
            assert_eq!((asked.action, asked.rest.join(" ").as_str()), (action, rest));
        }
    }

    #[test]
    fn a_mistake_is_one_line_that_names_it() {
        for (line, named) in [
            ("", "which command"),
            ("bnech", "`bnech`"),
            ("test --olny lib", "`--olny`"),
            ("test lib", "`lib`"),
            ("test --only", "--only needs"),
            ("test --only=", "--only needs"),
            ("test --only --long", "--only needs"),
            ("ci --long", "`--long`"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(named) && error.lines().count() == 1, "{line:?} → {error}");
        }
    }
}

//! Parts that `test` and `ci` run: one row per part.

#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// Arguments for cargo.
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(&'static str, &'static str)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Runs first and is cheap: if one fails, the rest is not worth its minutes.
    Gate,
    /// Passes or fails as a whole.
    Check,
    /// Runs tests, which are counted.
    Tests,
}

use Kind::{Check, Gate, Tests};

/// Returns the parts that `ci` runs before the tests.
pub(crate) fn gates() -> Vec<Part> {
    let mut doc = part("doc", Gate, "doc --workspace --no-deps --all-features");
    doc.env.push(("RUSTDOCFLAGS", "-D warnings"));
    vec![
        part("fmt", Gate, "fmt --all --check"),
        part("clippy", Gate, "clippy --workspace --all-targets --all-features -- -D warnings"),
        part("clippy-bare", Gate, "clippy -p onceward --no-default-features -- -D warnings"),
        doc,
    ]
}

/// Returns all parts that `test` runs, given the features of the library.
pub(crate) fn all(features: &[String]) -> Vec<Part> {
    let alone = std::iter::once(part("feature/none", Check, "check -p onceward --no-default-features")).chain(
        features.iter().map(|feature| {
            let check = format!("check -p onceward --no-default-features --features {feature}");
            part(&format!("feature/{feature}"), Check, &check)
        }),
    );
    let mut parts = vec![
        part("tidy", Tests, "test -p xtask --test it"),
        part("xtask", Tests, "test -p xtask --bins"),
        part("lib", Tests, "test -p onceward"),
        part("lib-all", Tests, "test -p onceward --all-features"),
    ];
    parts.extend(alone);
    parts.extend([
        // Checked, not built: the bench profile links with LTO, which costs minutes and finds
        // nothing more.
        part("benches", Check, "check -p onceward --benches --all-features"),
        part("bench", Tests, "test -p bench"),
        part("orders", Tests, "test -p orders"),
        part("gateway", Tests, "test -p onceward-gateway"),
        part("axum", Tests, "test -p onceward-axum"),
        part("client", Tests, "test -p onceward-client"),
        two_gateways_over("postgres"),
        two_gateways_over("redis"),
        part("gateway-bare", Check, "check -p onceward-gateway --no-default-features"),
        part("model", Tests, "test --release -p model"),
        part("planted", Tests, "test -p chaos --features planted"),
        minutes_of_chaos(None, &["--minutes", "5"]),
        minutes_of_chaos(Some("postgres"), &["--minutes", "1"]),
        minutes_of_chaos(Some("redis"), &["--minutes", "1"]),
        minutes_of_chaos(Some("valkey"), &["--minutes", "1"]),
        part("demo", Check, "run --release -- demo --check"),
    ]);
    // TypeScript package: xtask itself runs npm, and reports the results of its tests in cargo's
    // format.
    parts.push(Part { kind: Tests, ..part("web", Check, "run --quiet -p xtask -- web") });
    // Page of the demo: rebuilt and compared with the committed one, then tested in a browser.
    parts.push(Part { kind: Tests, ..part("page", Check, "run --quiet -p xtask -- page") });
    parts
}

/// Tests of one gateway over an embedded store, run with two gateways over a shared store.
fn two_gateways_over(store: &'static str) -> Part {
    let tests = "test -p onceward-gateway --test it -- rows:: faults:: kills:: drain:: keys:: cors::";
    let mut part = part(&format!("gateway-{store}"), Tests, tests);
    part.env.extend([("ONCEWARD_TEST_STORE", store), ("ONCEWARD_TEST_GATEWAYS", "2")]);
    part
}

/// Chaos run over an embedded store or a server, with further arguments from the command line.
pub(crate) fn chaos(store: Option<&str>) -> Part {
    let name = store.map_or_else(|| "chaos".to_owned(), |store| format!("chaos-{store}"));
    let mut part = part(&name, Check, "run --quiet -p chaos --");
    part.args.extend(store.iter().flat_map(|store| ["--store", store]).map(String::from));
    part
}

/// Benchmarks that need servers, without debug assertions and with all optimizations.
pub(crate) fn measure() -> Part {
    part("measure", Check, "run --quiet --profile dist -p bench --")
}

pub(crate) fn minutes_of_chaos(store: Option<&str>, asked: &[&str]) -> Part {
    let mut part = chaos(store);
    part.args.extend(asked.iter().copied().map(String::from));
    part
}

/// Selects the parts that `only` means: those with that name, or else every test part, its tests
/// filtered by that name.
pub(crate) fn choose(parts: Vec<Part>, only: Option<&str>) -> Vec<Part> {
    let Some(only) = only else { return parts };
    let called = |part: &Part| part.name == only || part.name.split_once('/').is_some_and(|(group, _)| group == only);
    if parts.iter().any(called) {
        return parts.into_iter().filter(called).collect();
    }
    let mut parts: Vec<Part> = parts.into_iter().filter(|part| part.kind == Tests).collect();
    for part in &mut parts {
        part.args.push(only.into());
    }
    parts
}

/// Returns the names in the `[features]` of a manifest, without `default`.
///
/// Read from their declaration, so that a new feature cannot be missed here.
pub(crate) fn features(manifest: &str) -> Vec<String> {
    manifest
        .lines()
        .map(str::trim)
        .skip_while(|line| *line != "[features]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| {
            // A line of a multi-line array begins with a quote or a bracket.
            let (name, _) = line.split_once('=')?;
            let name = name.trim().trim_matches('"');
            let is_name = name.chars().all(|c| c.is_alphanumeric() || "-_+.".contains(c));
            (is_name && name != "default").then(|| name.to_owned())
        })
        .collect()
}

impl Part {
    /// Returns the command as a person would type it.
    pub(crate) fn command(&self) -> String {
        let mut command = String::new();
        for (name, value) in &self.env {
            command += &if value.contains(' ') { format!("{name}=\"{value}\" ") } else { format!("{name}={value} ") };
        }
        command + "cargo " + &self.args.join(" ")
    }
}

fn part(name: &str, kind: Kind, args: &str) -> Part {
    let mut args: Vec<String> = args.split(' ').map(String::from).collect();
    if kind == Tests {
        // Otherwise cargo would stop at the first test binary that fails, and hide the results of
        // the others.
        args.insert(1, "--no-fail-fast".into());
    }
    Part { name: name.into(), kind, args, env: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(parts: &[Part]) -> Vec<&str> {
        parts.iter().map(|part| part.name.as_str()).collect()
    }

    #[test]
    fn features_are_read_from_the_manifest() {
        let manifest = "\
[package]
name = \"x\"

[features]
# None.
default = [\"layer\"]
layer = [
    \"engine\",
    \"dep:a=b\",
]
engine = []
axum-08 = [\"layer\"]   # a word = a word

[dependencies]
http = \"1\"
";
        assert_eq!(features(manifest), ["layer", "engine", "axum-08"]);
        assert!(features("[package]\nname = \"x\"\n").is_empty());
    }

    #[test]
    fn only_means_a_part_or_a_group_or_else_tests() {
        let parts = || all(&["memory".into(), "layer".into()]);
        assert_eq!(names(&choose(parts(), Some("lib"))), ["lib"]);
        assert_eq!(names(&choose(parts(), Some("feature/layer"))), ["feature/layer"]);
        assert_eq!(names(&choose(parts(), Some("feature"))), ["feature/none", "feature/memory", "feature/layer"]);

        let filtered = choose(parts(), Some("late_word"));
        assert!(filtered.len() > 3 && filtered.iter().all(|part| part.kind == Tests));
        assert!(filtered.iter().all(|part| part.command().ends_with(" late_word")));
    }

    #[test]
    fn each_member_of_the_workspace_is_tested() {
        let manifest = include_str!("../../Cargo.toml");
        let members = manifest.lines().find_map(|line| line.strip_prefix("members = [")).expect("one line of members");
        let parts = all(&[]);
        for member in members.trim_end_matches(']').split(", ") {
            let name = member.trim_matches('"').rsplit('/').next().unwrap();
            let tests = |part: &Part| part.kind == Tests && part.args.iter().any(|arg| arg == name);
            assert!(parts.iter().any(tests), "no part tests {name}");
        }
    }

    #[test]
    fn the_command_is_shown_as_one_would_type_it() {
        let doc = gates().pop().unwrap();
        assert_eq!(doc.command(), "RUSTDOCFLAGS=\"-D warnings\" cargo doc --workspace --no-deps --all-features");
    }
}

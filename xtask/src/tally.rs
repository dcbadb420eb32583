//! Counts results, and formats the summary.

use std::{fmt, iter::Sum, time::Duration};

use crate::parts::Kind;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) skipped: u32,
}

/// Result of one part.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) name: String,
    pub(crate) counts: Counts,
    pub(crate) took: Duration,
    /// Failures, one line each.
    pub(crate) troubles: Vec<String>,
}

/// State of reading cargo's output, line by line.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    counts: Counts,
    results: u32,
    troubles: Vec<String>,
    /// Index of the failure whose details are being read.
    told: Option<usize>,
    /// Location of its panic, once read: the message is in the next line.
    place: Option<String>,
}

impl Heard {
    pub(crate) fn line(&mut self, line: &str) {
        if let Some(place) = self.place.take() {
            if let Some(told) = self.told.take() {
                self.troubles[told] += &format!(" · {place} {line}");
            }
        } else if let Some(test) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            let name = format!("failed: {test}");
            self.told = self
                .troubles
                .iter()
                .position(|trouble| trouble.strip_suffix(" - should panic").unwrap_or(trouble) == name);
        } else if let Some((_, place)) = line.split_once(" panicked at ").filter(|_| self.told.is_some()) {
            self.place = Some(place.to_owned());
        } else if let Some(counts) = Counts::from_result(line) {
            self.counts = self.counts + counts;
            self.results += 1;
        } else if let Some((test, word)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... ")) {
            if word == "FAILED" {
                self.troubles.push(format!("failed: {test}"));
            } else if word.starts_with("ignored") {
                self.troubles.push(format!("skipped: {test}"));
            }
        }
    }

    /// Returns the result of a part from the output and the exit status of cargo.
    pub(crate) fn judge(mut self, kind: Kind, success: bool) -> (Counts, Vec<String>) {
        match (kind, success) {
            (Kind::Tests, true) if self.results == 0 => {
                // Cargo has changed its format, or ran nothing: missing results must not count as a
                // success.
                self.counts.failed = 1;
                self.troubles.push("failed: it ended well and without a `test result:` line".into());
            }
            (Kind::Tests, true) => {}
            (Kind::Tests, false) => {
                if self.counts.failed == 0 {
                    self.counts.failed = 1;
                    self.troubles.push("failed: it did not compile, or a test binary broke off; see above".into());
                }
            }
            (_, true) => self = Self { counts: Counts { passed: 1, ..Counts::default() }, ..Self::default() },
            (_, false) => self = Self { counts: Counts { failed: 1, ..Counts::default() }, ..Self::default() },
        }
        (self.counts, self.troubles)
    }
}

impl Counts {
    /// Parses libtest's `test result: ok. 5 passed; 0 failed; 1 ignored; …`.
    fn from_result(line: &str) -> Option<Self> {
        let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let number = |what: &str| {
            numbers.split("; ").find_map(|piece| piece.strip_suffix(what)?.strip_suffix(' ')?.parse::<u32>().ok())
        };
        Some(Self { passed: number("passed")?, failed: number("failed")?, skipped: number("ignored")? })
    }

    /// Returns `true` if nothing failed, nothing was skipped, and something ran.
    pub(crate) fn all_well(self) -> bool {
        self.failed == 0 && self.skipped == 0 && self.passed > 0
    }
}

impl std::ops::Add for Counts {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self {
            passed: self.passed + more.passed,
            failed: self.failed + more.failed,
            skipped: self.skipped + more.skipped,
        }
    }
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, more| sum + more)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Returns the table of times, then the failures.
pub(crate) fn table(reports: &[Report]) -> String {
    let width = reports.iter().map(|report| report.name.len()).max().unwrap_or(0).max("total".len());
    let mut out = format!("{:width$}  minutes  passed  failed  skipped\n", "part");
    let mut row = |name: &str, took: Duration, counts: Counts| {
        let Counts { passed, failed, skipped } = counts;
        out += &format!("{name:width$}  {:>7}  {passed:>6}  {failed:>6}  {skipped:>7}\n", minutes(took));
    };
    for report in reports {
        row(&report.name, report.took, report.counts);
    }
    row("total", reports.iter().map(|report| report.took).sum(), reports.iter().map(|report| report.counts).sum());
    for report in reports {
        for trouble in &report.troubles {
            out += &format!("{}: {trouble}\n", report.name);
        }
    }
    out
}

/// Formats minutes and seconds, as on a clock.
pub(crate) fn minutes(took: Duration) -> String {
    let seconds = (took.as_millis() + 500) / 1000;
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Captured from `cargo test --no-fail-fast` of Rust 1.95, the backtrace shortened.
    const CAPTURED: &str = "
running 4 tests
test tests::calm - should panic ... FAILED
test tests::held ... ok
test tests::slow ... ignored, slow
test tests::broken ... FAILED

failures:

---- tests::calm stdout ----
note: test did not panic as expected at src/lib.rs:18:8
---- tests::broken stdout ----
test result: fake

thread 'tests::broken' (8708) panicked at src/lib.rs:20:50:
assertion `left == right` failed
  left: 1
 right: 2


failures:
    tests::broken
    tests::calm

test result: FAILED. 1 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.09s


running 2 tests
test src/lib.rs - a (line 5) ... ignored
test src/lib.rs - a (line 1) ... ok

test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s

all doctests ran in 0.22s; merged doctests compilation took 0.21s
";

    fn hear(output: &str) -> Heard {
        let mut heard = Heard::default();
        output.lines().for_each(|line| heard.line(line));
        heard
    }

    #[test]
    fn all_result_lines_are_summed_and_what_did_not_pass_is_named() {
        let (counts, troubles) = hear(CAPTURED).judge(Kind::Tests, false);
        assert_eq!(counts, Counts { passed: 2, failed: 2, skipped: 2 });
        assert_eq!(
            troubles,
            [
                "failed: tests::calm - should panic",
                "skipped: tests::slow",
                "failed: tests::broken · src/lib.rs:20:50: assertion `left == right` failed",
                "skipped: src/lib.rs - a (line 5)",
            ]
        );
    }

    #[test]
    fn a_part_is_judged_by_its_kind_and_how_cargo_ended() {
        let fine = "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.00s";
        let counts = |passed, failed| Counts { passed, failed, skipped: 0 };
        for (rule, output, kind, success, want) in [
            ("tests that pass are counted", fine, Kind::Tests, true, counts(3, 0)),
            ("a binary that broke off is one failure", fine, Kind::Tests, false, counts(3, 1)),
            ("what does not compile is one failure", "", Kind::Tests, false, counts(0, 1)),
            ("no news is no good news", "", Kind::Tests, true, counts(0, 1)),
            ("a check that passes is one", "", Kind::Check, true, counts(1, 0)),
            ("a check that fails is one", "", Kind::Check, false, counts(0, 1)),
            ("what a check prints is not counted", fine, Kind::Check, true, counts(1, 0)),
            ("a gate is a check", "", Kind::Gate, false, counts(0, 1)),
        ] {
            assert_eq!(hear(output).judge(kind, success).0, want, "{rule}");
        }
    }

    #[test]
    fn a_skip_is_not_well_and_nothing_is_not_well() {
        assert!(Counts { passed: 1, failed: 0, skipped: 0 }.all_well());
        for counts in [(1, 1, 0), (1, 0, 1), (0, 0, 0)] {
            let (passed, failed, skipped) = counts;
            assert!(!Counts { passed, failed, skipped }.all_well(), "{counts:?}");
        }
    }

    #[test]
    fn the_table_is_aligned_and_the_last_line_is_exact() {
        let report = |name: &str, seconds, passed, failed| Report {
            name: name.into(),
            counts: Counts { passed, failed, skipped: 0 },
            took: Duration::from_secs(seconds),
            troubles: (0..failed).map(|n| format!("failed: t{n}")).collect(),
        };
        let reports = [report("lib", 61, 120, 0), report("gateway-bare", 3, 0, 1)];
        assert_eq!(
            table(&reports),
            "\
part          minutes  passed  failed  skipped
lib              1:01     120       0        0
gateway-bare     0:03       0       1        0
total            1:04     120       1        0
gateway-bare: failed: t0
"
        );
        let total: Counts = reports.iter().map(|report| report.counts).sum();
        assert_eq!(total.to_string(), "120 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn minutes_are_rounded_to_seconds() {
        assert_eq!(minutes(Duration::from_millis(59_600)), "1:00");
        assert_eq!(minutes(Duration::from_millis(400)), "0:00");
        assert_eq!(minutes(Duration::from_secs(3_725)), "62:05");
    }
}

//! Computes medians and ranges, and formats the tables.

use std::net::SocketAddr;

use crate::cli::Plan;
use crate::load::{self, Keys, Run};

/// Values of several rounds, in order.
#[derive(Clone, Default)]
pub(crate) struct Series(Vec<f64>);

impl Series {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// Divides each value by the other's value of the same round: a disturbance of the machine
    /// affects both.
    pub(crate) fn by(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(value, other)| value / other).collect())
    }

    pub(crate) fn median(&self) -> f64 {
        let sorted = self.sorted();
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// Formats the median with the minimum and the maximum.
    pub(crate) fn with_range(&self, digits: usize) -> String {
        let sorted = self.sorted();
        let [least, most] = [sorted.first(), sorted.last()].map(|end| end.copied().unwrap_or(f64::NAN));
        format!("{:.digits$} ({least:.digits$} – {most:.digits$})", self.median())
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

/// Subject of a measurement: its name, its rate, and the CPU time per request of the processes
/// under test.
#[derive(Clone, Default)]
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) per_second: Series,
    pub(crate) micros: Series,
    /// CPU time of the server only.
    pub(crate) server_micros: Series,
}

impl Subject {
    pub(crate) fn named(name: &'static str) -> Self {
        Self { name, ..Self::default() }
    }

    /// Warms up a service, runs the load, and records the result. `cpu` returns the CPU seconds of
    /// the service and of its server. `before` is called in between.
    pub(crate) fn load<T>(
        &mut self,
        plan: &Plan,
        address: SocketAddr,
        keys: Keys,
        cpu: impl Fn() -> (f64, f64),
        before: impl FnOnce() -> T,
    ) -> Result<(Run, T), String> {
        const WARM: &str = "warm";
        load::run(address, keys, WARM, plan.warm_seconds)?;
        let (seen, began) = (before(), cpu());
        // Repeated keys are those of the warm-up.
        let run = load::run(address, keys, if keys == Keys::Same { WARM } else { "new" }, plan.seconds)?;
        self.took(began, cpu(), run.requests as f64, run.per_second());
        Ok((run, seen))
    }

    /// Records a run: the CPU seconds of the service and of its server before and after it.
    pub(crate) fn took(&mut self, before: (f64, f64), after: (f64, f64), requests: f64, per_second: f64) {
        self.per_second.push(per_second);
        let (own, servers) = (after.0 - before.0, after.1 - before.1);
        self.micros.push((own + servers) * 1e6 / requests);
        self.server_micros.push(servers * 1e6 / requests);
    }
}

/// Formats the subjects as a table.
pub(crate) fn subjects(of: &[Subject]) -> String {
    let mut text = "| | requests a second | CPU of a request, µs |\n|---|---|---|\n".to_owned();
    for subject in of {
        let (rate, micros) = (subject.per_second.with_range(0), subject.micros.with_range(1));
        text += &format!("| {} | {rate} | {micros} |\n", subject.name);
    }
    text
}

/// Ratio with its limit.
pub(crate) struct Ratio {
    pub(crate) what: &'static str,
    /// Ratio of each round.
    pub(crate) value: Series,
    pub(crate) limit: &'static str,
    pub(crate) aim: &'static str,
}

pub(crate) fn ratios(of: &[Ratio]) -> String {
    let mut text = "| ratio | measured | must be | aim |\n|---|---|---|---|\n".to_owned();
    for Ratio { what, value, limit, aim } in of {
        text += &format!("| {what} | {} | {limit} | {aim} |\n", value.with_range(2));
    }
    text
}

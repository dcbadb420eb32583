//! Medians, ranges and the tables that are printed.

/// Values of some rounds.
#[derive(Clone, Default)]
pub(crate) struct Series(Vec<f64>);

impl Series {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    pub(crate) fn median(&self) -> f64 {
        self.0.get(self.0.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// The median and, behind it, the least and the most.
    pub(crate) fn with_range(&self, digits: usize) -> String {
        let [least, most] = [self.0.first(), self.0.last()].map(|end| end.copied().unwrap_or(f64::NAN));
        format!("{:.digits$} ({least:.digits$} – {most:.digits$})", self.median())
    }
}

/// One subject: what it was, how fast, and what CPU time a request took of the processes under test.
#[derive(Clone, Default)]
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) per_second: Series,
    pub(crate) micros: Series,
}

impl Subject {
    pub(crate) fn named(name: &'static str) -> Self {
        Self { name, ..Self::default() }
    }
}

/// The subjects beside each other.
pub(crate) fn subjects(of: &[Subject]) -> String {
    let mut text = "| | requests a second | CPU of a request, µs |\n|---|---|---|\n".to_owned();
    for subject in of {
        let micros = if subject.micros.median().is_nan() { "–".to_owned() } else { subject.micros.with_range(1) };
        text += &format!("| {} | {} | {micros} |\n", subject.name, subject.per_second.with_range(0));
    }
    text
}

/// One ratio beside what it must be.
pub(crate) struct Ratio {
    pub(crate) what: &'static str,
    pub(crate) value: f64,
    pub(crate) limit: &'static str,
    pub(crate) aim: &'static str,
}

pub(crate) fn ratios(of: &[Ratio]) -> String {
    let mut text = "| ratio | measured | must be | aim |\n|---|---|---|---|\n".to_owned();
    for Ratio { what, value, limit, aim } in of {
        text += &format!("| {what} | {value:.2} × | {limit} | {aim} |\n");
    }
    text
}

//! The checker: believes nothing, and looks at a history alone. One pass over it, a bounded look at each event.

mod key;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use crate::history::{Answer, Event, Last, Micros, Of, What};
use key::{Key, Run};

/// What a history is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How long a claim is believed without a sign of life.
    pub lease: Duration,
    /// What a gateway may take between what a client or the upstream did and what it makes of it.
    pub grace: Duration,
    /// How much of each must have been seen at least, or the run says nothing.
    pub least: Seen,
}

/// How much was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Requests that were sent.
    pub calls: u64,
    /// Of these, those without a whole answer.
    pub open: u64,
    /// Requests that reached the upstream.
    pub arrived: u64,
    /// Of these, those that took effect.
    pub executed: u64,
    /// Answers that were the first one again.
    pub replayed: u64,
    /// Refusals: in flight, mismatch, store unavailable, draining.
    pub refused: u64,
    /// Answers that say that nobody knows.
    pub unknown: u64,
    /// Operations.
    pub keys: u64,
}

impl std::ops::AddAssign for Seen {
    fn add_assign(&mut self, more: Self) {
        self.calls += more.calls;
        self.open += more.open;
        self.arrived += more.arrived;
        self.executed += more.executed;
        self.replayed += more.replayed;
        self.refused += more.refused;
        self.unknown += more.unknown;
        self.keys += more.keys;
    }
}

/// What a history breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// At most one execution of a key, as its guarantee says.
    Once,
    /// No answer of another key or principal, and none that the upstream never gave.
    Own,
    /// Each kept answer is the upstream's, byte for byte, and whole.
    Same,
    /// Another body with the key is neither executed nor answered.
    Mismatch,
    /// What was kept and seen is there for every later call.
    Kept,
    /// Nobody reads `in_flight` later than lease + 5 s after the last live holder.
    Stuck,
    /// Each label says what happened.
    Honest,
    /// Each gateway serves again within ten seconds of a heal of the store.
    Recovers,
    /// After the last heal, the last calls succeed.
    Last,
    /// Enough was seen.
    Vacuous,
}

/// One breach.
#[derive(Clone, Debug)]
pub struct Breach {
    /// What is broken.
    pub rule: Rule,
    /// When it was seen.
    pub at: Micros,
    /// What was seen, and of which key.
    pub what: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {} ms: {}", self.rule, self.at / 1000, self.what)
    }
}

/// What the checker found.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Everything that is wrong.
    pub breaches: Vec<Breach>,
    /// How much was looked at.
    pub seen: Seen,
}

impl Verdict {
    /// Whether a rule is broken.
    pub fn breaks(&self, rule: Rule) -> bool {
        self.breaches.iter().any(|breach| breach.rule == rule)
    }
}

/// Checks a history, whose events stand in the order in which they were seen.
pub fn check(events: &[Event], rules: &Rules) -> Verdict {
    let mut checker = Checker { rules: *rules, ..Checker::new() };
    for event in events {
        checker.look(event);
    }
    checker.end(events.last().map_or(0, |event| event.at))
}

struct Checker<'a> {
    rules: Rules,
    keys: Vec<Key<'a>>,
    by_of: HashMap<(&'a str, &'a str), usize>,
    calls: HashMap<u64, Asked<'a>>,
    /// Which key's which request bears a nonce.
    runs: HashMap<&'a str, (usize, usize)>,
    gateways: Gateways,
    verdict: Verdict,
}

/// Which starts of gateways ended when, and which last ran again when; and when the store that they share was last healed.
#[derive(Default)]
struct Gateways {
    died: HashMap<u64, Micros>,
    continued: HashMap<u64, Micros>,
    /// Nothing where it is hurt, or never was.
    store_healed: Option<Micros>,
    /// Who has served since.
    serve: HashSet<u64>,
    /// A sign of life of each claim, since leases begin anew with another server or the same one restarted.
    store_back: Micros,
}

/// How long a gateway may take to serve again after its store was healed.
const RECOVERS_MAX: Micros = 10_000_000;

impl Gateways {
    /// An answer of a gateway: one that only says that the store is unavailable shows that it has not recovered.
    fn answered(&mut self, gateway: u64, sent: Micros, code: &str) -> Option<(Rule, String)> {
        let healed = self.store_healed.filter(|healed| sent > *healed)?;
        if code != "store_unavailable" {
            self.serve.insert(gateway);
            return None;
        }
        let was_stopped = self.continued.get(&gateway).is_some_and(|at| *at > healed);
        let is_late = sent > healed + RECOVERS_MAX && !self.serve.contains(&gateway) && !was_stopped;
        is_late.then(|| {
            let after = (sent - healed) / 1000;
            (
                Rule::Recovers,
                format!("gateway {gateway} has no store {after} ms after it was healed, and has served nobody"),
            )
        })
    }
}

#[derive(Clone, Copy)]
struct Asked<'a> {
    key: usize,
    body: &'a str,
    gateway: u64,
    sent: Micros,
    last: Option<Last>,
}

impl<'a> Checker<'a> {
    fn new() -> Self {
        let rules = Rules { lease: Duration::ZERO, grace: Duration::ZERO, least: Seen::default() };
        Self {
            rules,
            keys: Vec::new(),
            by_of: HashMap::new(),
            calls: HashMap::new(),
            runs: HashMap::new(),
            gateways: Gateways::default(),
            verdict: Verdict::default(),
        }
    }

    fn key(&mut self, of: &'a Of) -> usize {
        *self.by_of.entry((&of.key, &of.principal)).or_insert_with(|| {
            self.keys.push(Key::new(of));
            self.keys.len() - 1
        })
    }

    fn look(&mut self, event: &'a Event) {
        let at = event.at;
        let seen = &mut self.verdict.seen;
        match &event.what {
            What::Sent { call, of, body, gateway, last } => {
                seen.calls += 1;
                seen.open += 1;
                let key = self.key(of);
                let asked = Asked { key, body, gateway: *gateway, sent: at, last: *last };
                self.keys[key].sent(*call, &asked);
                self.calls.insert(*call, asked);
            }
            What::StoreHurt => self.gateways.store_healed = None,
            What::StoreHealed => {
                self.gateways.store_healed = Some(at);
                self.gateways.serve.clear();
                self.gateways.store_back = at;
            }
            What::Broke { .. } | What::Healed => {}
            What::Answered { call, answer } => self.answered(*call, answer, at),
            What::Arrived { nonce, of, body, .. } => {
                seen.arrived += 1;
                let key = self.key(of);
                self.runs.insert(nonce, (key, self.keys[key].runs.len()));
                let run = Run { nonce, body, reply: None, executed: false };
                let breach = self.keys[key].arrived(run, &self.gateways);
                self.report(at, key, breach);
            }
            What::Executed { nonce } => {
                seen.executed += 1;
                if let Some((key, run)) = self.runs.get(nonce.as_str()).copied() {
                    let breach = self.keys[key].executed(run);
                    self.report(at, key, breach);
                }
            }
            What::Left { nonce, reply } => {
                if let Some((key, run)) = self.runs.get(nonce.as_str()).copied() {
                    self.keys[key].left(run, reply, at);
                }
            }
            What::Died { gateway } => {
                self.gateways.died.insert(*gateway, at);
            }
            What::Continued { gateway } => {
                self.gateways.continued.insert(*gateway, at);
            }
        }
    }

    fn answered(&mut self, call: u64, answer: &'a Answer, at: Micros) {
        let Some(asked) = self.calls.get(&call).copied() else { return };
        let seen = &mut self.verdict.seen;
        seen.open -= 1;
        match (answer.outcome.as_str(), answer.code.as_str()) {
            ("replayed", _) => seen.replayed += 1,
            ("unknown", _) => seen.unknown += 1,
            ("rejected" | "in-flight" | "mismatch", _) => seen.refused += 1,
            _ => {}
        }
        let unrecovered = self.gateways.answered(asked.gateway, asked.sent, &answer.code);
        self.report(at, asked.key, unrecovered);
        // Whose answer it is, whatever it is called.
        let mut breaches = Vec::new();
        let run = match self.runs.get(answer.nonce.as_str()).copied() {
            _ if answer.nonce.is_empty() => None,
            None => {
                breaches.push((Rule::Own, format!("an answer that the upstream never gave: {answer:?}")));
                None
            }
            Some((key, _)) if key != asked.key => {
                let Of { key, principal, .. } = self.keys[key].of;
                breaches.push((Rule::Own, format!("the answer of {principal}'s {key}: {answer:?}")));
                None
            }
            Some((_, run)) => Some(run),
        };
        let (key, gateways) = (&mut self.keys[asked.key], &self.gateways);
        key.answered((call, &asked), (at, answer, run), gateways, &self.rules, &mut breaches);
        for breach in breaches {
            self.report(at, asked.key, Some(breach));
        }
    }

    fn report(&mut self, at: Micros, key: usize, breach: Option<(Rule, String)>) {
        if let Some((rule, what)) = breach {
            let Of { key, principal, .. } = self.keys[key].of;
            self.verdict.breaches.push(Breach { rule, at, what: format!("{principal}'s {key}: {what}") });
        }
    }

    fn end(mut self, at: Micros) -> Verdict {
        for key in 0..self.keys.len() {
            let unsettled = self.keys[key].unsettled();
            self.report(at, key, unsettled);
        }
        self.verdict.seen.keys = self.keys.len() as u64;
        let Seen { calls, executed, replayed, refused, unknown, .. } = self.verdict.seen;
        let least = self.rules.least;
        for (name, seen, least) in [
            ("calls", calls, least.calls),
            ("executed", executed, least.executed),
            ("replayed", replayed, least.replayed),
            ("refused", refused, least.refused),
            ("unknown", unknown, least.unknown),
        ] {
            if seen < least {
                let what = format!("{seen} {name}, and fewer than {least} say nothing");
                self.verdict.breaches.push(Breach { rule: Rule::Vacuous, at, what });
            }
        }
        self.verdict
    }
}

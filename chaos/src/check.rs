//! Checker: verifies a history without trusting any other component. One pass, with bounded work
//! per event.

mod key;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use crate::history::{Answer, Event, Last, Micros, Of, What};
use key::{Key, Run};

/// Rules for a history.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Time for which a claim is valid without a renewal.
    pub lease: Duration,
    /// Tolerated delay between an event at a client or the upstream and the gateway's reaction.
    pub grace: Duration,
    /// Minimum counts; with fewer the run proves nothing.
    pub least: Seen,
}

/// Counters of a history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Requests sent.
    pub calls: u64,
    /// Requests without a complete response.
    pub open: u64,
    /// Requests that reached the upstream.
    pub arrived: u64,
    /// Requests that took effect.
    pub executed: u64,
    /// Responses that replayed the first one.
    pub replayed: u64,
    /// Rejections: in flight, mismatch, store unavailable, draining.
    pub refused: u64,
    /// Responses that report an unknown outcome.
    pub unknown: u64,
    /// Distinct operations.
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

/// Rule that a history may violate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// At most one execution of a key, as its guarantee says.
    Once,
    /// No response of another key or principal, and none that the upstream never sent.
    Own,
    /// Each stored response is the upstream's, byte for byte, and complete.
    Same,
    /// A request with another body and the same key is neither executed nor answered with the
    /// response.
    Mismatch,
    /// A response that was stored and seen is available to every later call.
    Kept,
    /// No client reads `in_flight` later than lease + 5 s after the last live holder.
    Stuck,
    /// Each outcome is true.
    Honest,
    /// Each gateway serves again within ten seconds of a recovery of the store.
    Recovers,
    /// After the last recovery, the last calls succeed.
    Last,
    /// The history has enough events.
    Vacuous,
}

/// Violation of a rule.
#[derive(Clone, Debug)]
pub struct Breach {
    /// Violated rule.
    pub rule: Rule,
    /// Time of the event.
    pub at: Micros,
    /// Description with the key.
    pub what: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {} ms: {}", self.rule, self.at / 1000, self.what)
    }
}

/// Result of a check.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// All violations.
    pub breaches: Vec<Breach>,
    /// Counters of the history.
    pub seen: Seen,
}

impl Verdict {
    /// Returns `true` if a rule is violated.
    pub fn breaks(&self, rule: Rule) -> bool {
        self.breaches.iter().any(|breach| breach.rule == rule)
    }
}

/// Checks a history, whose events are in the order of their observation.
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
    /// Key and request of each nonce.
    runs: HashMap<&'a str, (usize, usize)>,
    gateways: Gateways,
    verdict: Verdict,
}

/// State of the gateways: the end of each start, the last continuation of each, and the last
/// recovery of their shared store.
#[derive(Default)]
struct Gateways {
    died: HashMap<u64, Micros>,
    continued: HashMap<u64, Micros>,
    /// `None` during a fault, or if there was none.
    store_healed: Option<Micros>,
    /// Starts that have served since then.
    serve: HashSet<u64>,
    /// Counts as a renewal of each claim, because leases start again with another server or after a
    /// restart.
    store_back: Micros,
}

/// Upper bound on the time until a gateway serves again after its store recovered.
const RECOVERS_MAX: Micros = 10_000_000;

impl Gateways {
    /// Records a response of a gateway. One that reports only an unavailable store shows that the
    /// gateway has not recovered.
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
        // Finds the owner of the response, whatever its outcome.
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

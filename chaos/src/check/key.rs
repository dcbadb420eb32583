//! State of one key up to an event, and the events that violate a rule then.

use std::collections::{HashMap, HashSet};

use super::{Asked, Gateways, Rule, Rules};
use crate::history::{Answer, Last, Micros, Of, Reply};

/// Time after the lease for which a key may still be reported as in flight, in microseconds.
const AFTER_LEASE: Micros = 5_000_000;

pub(super) struct Key<'a> {
    pub(super) of: &'a Of,
    pub(super) runs: Vec<Run<'a>>,
    pub(super) executions: u32,
    /// Number of requests at the upstream without a response.
    running: u32,
    bodies: HashSet<&'a str>,
    /// Calls without a response. Each may be a lease holder while its gateway lives.
    open: HashMap<u64, (u64, Micros)>,
    /// Time of the last response to a call that may have been a lease holder, by gateway.
    held: HashMap<u64, Micros>,
    /// Time at which a request last left the upstream.
    left: Micros,
    kept: Option<Kept>,
    /// `true` if the last call after the final recovery was settled. `None` if there was none.
    last: Option<bool>,
}

/// Request that reached the upstream.
pub(super) struct Run<'a> {
    pub(super) nonce: &'a str,
    pub(super) body: &'a str,
    pub(super) reply: Option<&'a Reply>,
    pub(super) executed: bool,
}

/// First response that was reported as stored or replayed.
struct Kept {
    run: usize,
    at: Micros,
}

pub(super) type Breaches = Vec<(Rule, String)>;

impl<'a> Key<'a> {
    pub(super) fn new(of: &'a Of) -> Self {
        Self {
            of,
            runs: Vec::new(),
            executions: 0,
            running: 0,
            bodies: HashSet::new(),
            open: HashMap::new(),
            held: HashMap::new(),
            left: 0,
            kept: None,
            last: None,
        }
    }

    pub(super) fn sent(&mut self, call: u64, asked: &Asked<'a>) {
        self.bodies.insert(asked.body);
        self.open.insert(call, (asked.gateway, asked.sent));
        if asked.last.is_some() {
            self.last.get_or_insert(false);
        }
    }

    /// Records that a request reached the upstream. Returns the violation, if it must not.
    pub(super) fn arrived(&mut self, run: Run<'a>, gateways: &Gateways) -> Option<(Rule, String)> {
        let breach = self.may_arrive(gateways);
        self.runs.push(run);
        self.running += 1;
        breach
    }

    fn may_arrive(&self, gateways: &Gateways) -> Option<(Rule, String)> {
        if let Some(kept) = &self.kept {
            // A request can still be in transit only if it was claimed before the response was
            // seen, on a route that is at-least-once.
            let on_its_way = |(gateway, sent): &(u64, Micros)| *sent < kept.at && !gateways.died.contains_key(gateway);
            if !self.of.again || !self.open.values().any(on_its_way) {
                return Some((Rule::Once, "it reached the upstream again after its answer was kept and seen".into()));
            }
        }
        // All before the last one were checked when the next one arrived.
        let earlier =
            self.runs.last().filter(|run| !self.of.again && !matches!(run.reply, Some(Reply::Released(_))))?;
        let how = match (earlier.reply, earlier.executed) {
            (None, _) => "is at work",
            (_, true) => "was executed",
            (_, false) => "may have been executed",
        };
        Some((Rule::Once, format!("it reached the upstream again, and {} {how}", earlier.nonce)))
    }

    pub(super) fn executed(&mut self, run: usize) -> Option<(Rule, String)> {
        self.runs[run].executed = true;
        self.executions += 1;
        (!self.of.again && self.executions > 1).then(|| (Rule::Once, "it took effect twice".to_owned()))
    }

    pub(super) fn left(&mut self, run: usize, reply: &'a Reply, at: Micros) {
        self.runs[run].reply = Some(reply);
        self.running -= 1;
        self.left = at;
    }

    /// Records that a call got a complete response, with the nonce of this run, if any.
    pub(super) fn answered(
        &mut self,
        call: (u64, &Asked<'a>),
        (at, answer, run): (Micros, &Answer, Option<usize>),
        gateways: &Gateways,
        rules: &Rules,
        breaches: &mut Breaches,
    ) {
        let (call, asked) = call;
        self.open.remove(&call);
        if let Some(run) = run.map(|run| &self.runs[run])
            && run.body != asked.body
        {
            breaches.push((Rule::Mismatch, format!("it got the answer to another body: {answer:?}")));
        }
        if let Some(breach) = self.label(asked, answer, run, gateways, rules) {
            breaches.push(breach);
        }
        if matches!((answer.outcome.as_str(), answer.code.as_str()), ("stored" | "replayed", "")) {
            self.kept_answer(answer, run, asked, at, breaches);
        }
        // A call that was rejected at once holds nothing; all others may have held the lease.
        if matches!(answer.code.as_str(), "" | "upstream_timeout" | "upstream_lost" | "store_unavailable") {
            self.held.insert(asked.gateway, at);
        }
        match asked.last {
            Some(Last::Fresh) if !matches!(answer.outcome.as_str(), "stored" | "replayed") => {
                breaches.push((Rule::Last, format!("nothing is hurt any more, and a new key gets: {answer:?}")));
            }
            Some(_) => {
                // A mismatch counts too: then the first request with the key was the wrong one.
                let is_settled = !matches!(answer.outcome.as_str(), "in-flight" | "rejected" | "");
                self.last = Some(is_settled);
            }
            None => {}
        }
    }

    /// Checks that the outcome of the response can be true.
    fn label(
        &self,
        asked: &Asked<'a>,
        answer: &Answer,
        run: Option<usize>,
        gateways: &Gateways,
        rules: &Rules,
    ) -> Option<(Rule, String)> {
        let seen_before = self.kept.as_ref().is_some_and(|kept| kept.at < asked.sent);
        let was_released = run.is_some_and(|run| matches!(self.runs[run].reply, Some(Reply::Released(_))));
        let dishonest = |why: &str| Some((Rule::Honest, format!("{why}: {answer:?}")));
        match (answer.outcome.as_str(), answer.code.as_str()) {
            ("stored" | "replayed", "") => None,
            ("mismatch", "key_reused") if self.bodies.len() > 1 => None,
            ("rejected", "store_unavailable" | "draining") => None,
            ("not-stored", "answer_not_kept") if self.executions == 0 => dishonest("nothing was executed"),
            // The last two: the loss, or that nothing was sent, could not be written to the store.
            ("not-stored", "" | "answer_not_kept" | "upstream_lost" | "upstream_unreachable") => None,
            (
                "released" | "unknown" | "in-flight",
                "" | "upstream_unreachable" | "outcome_unknown" | "upstream_lost" | "in_flight" | "upstream_timeout",
            ) if seen_before => Some((Rule::Kept, format!("its answer was kept and seen, and now: {answer:?}"))),
            ("released", "") if !was_released => dishonest("the upstream did not say that it was released"),
            ("released", "upstream_unreachable") if !self.of.again && self.executions > 0 => dishonest("it executed"),
            ("released", "" | "upstream_unreachable") => None,
            ("unknown", "" | "outcome_unknown" | "upstream_lost") => None,
            ("in-flight", "in_flight") => {
                let until = self.live_until(asked.sent, gateways, rules);
                let limit = until + rules.lease.as_micros() as Micros + AFTER_LEASE;
                let late = asked.sent.saturating_sub(until) / 1000;
                (asked.sent > limit)
                    .then(|| (Rule::Stuck, format!("still in flight {late} ms after its last live holder")))
            }
            ("in-flight", "upstream_timeout") => None,
            _ => dishonest("no such label fits what was done"),
        }
    }

    /// Checks a response that is reported as the stored one of the key.
    fn kept_answer(
        &mut self,
        answer: &Answer,
        run: Option<usize>,
        asked: &Asked<'_>,
        at: Micros,
        breaches: &mut Breaches,
    ) {
        let Some(run) = run else {
            if answer.nonce.is_empty() {
                breaches.push((Rule::Same, format!("a kept answer that bears no execution: {answer:?}")));
            }
            return;
        };
        match self.runs[run].reply {
            Some(Reply::Whole(digest)) if *digest == answer.digest => {}
            Some(Reply::Whole(_)) => breaches.push((Rule::Same, format!("not what the upstream said: {answer:?}"))),
            Some(Reply::Released(_) | Reply::Doubtful(_)) => {
                breaches.push((Rule::Honest, format!("kept, and its status says not to: {answer:?}")));
            }
            Some(Reply::Cut) | None => breaches.push((Rule::Same, format!("a partial answer is kept: {answer:?}"))),
        }
        match &self.kept {
            None => self.kept = Some(Kept { run, at }),
            Some(kept) if kept.run != run => {
                let first = self.runs[kept.run].nonce;
                breaches.push((Rule::Same, format!("{first} was kept first, and now: {answer:?}")));
            }
            Some(kept) if kept.at < asked.sent && answer.outcome == "stored" => {
                breaches.push((Rule::Honest, format!("called stored, and it was before this was asked: {answer:?}")));
            }
            Some(_) => {}
        }
    }

    /// Returns the latest time at which a lease may have been held, as seen by a read sent at
    /// `sent`. In doubt it is later.
    fn live_until(&self, sent: Micros, gateways: &Gateways, rules: &Rules) -> Micros {
        let grace = rules.grace.as_micros() as Micros;
        let holders = self.open.values().map(|(gateway, sent)| (*gateway, *sent));
        let ends = holders.chain(self.held.iter().map(|(gateway, at)| (*gateway, *at))).map(|(gateway, begun)| {
            let continued = gateways.continued.get(&gateway).copied().unwrap_or(0);
            let left = if self.running > 0 { sent } else { self.left };
            let end = begun.max(left).max(continued) + grace;
            gateways.died.get(&gateway).map_or(end, |died| end.min(*died))
        });
        // The holder may be dead, and the store's lease may have started again.
        ends.max().map_or(0, |end| end.max(gateways.store_back))
    }

    pub(super) fn unsettled(&self) -> Option<(Rule, String)> {
        (self.last == Some(false))
            .then(|| (Rule::Last, "all is healed, and its last call got no settled answer".into()))
    }
}

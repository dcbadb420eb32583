//! Observed history, and the checks on it.

use std::ops::AddAssign;
use std::time::Duration;

use onceward::problem::Code;
use onceward::wire::Outcome;

/// Result of a call, as seen by the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answered {
    /// Response of its own execution.
    Own(u64, Outcome),
    /// Replay of the stored response.
    Replay(u64),
    /// Declined by the service.
    Declined,
    /// Rejected.
    Refused(Code),
}

/// Call that returned. A call without a response is open and proves nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) key: u8,
    pub(super) print: u8,
    pub(super) from: Duration,
    pub(super) to: Duration,
    pub(super) answered: Answered,
    /// True if the call was made after recovery, when every dead process had been dead for longer
    /// than its lease plus 5 s.
    pub(super) is_last: bool,
}

/// Execution, as recorded by the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Execution {
    pub(super) key: u8,
    pub(super) print: u8,
    pub(super) nonce: u64,
}

/// Counts of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) executed: usize,
    pub(super) stored: usize,
    pub(super) replayed: usize,
    pub(super) declined: usize,
    pub(super) not_stored: usize,
    pub(super) unknown: usize,
    pub(super) mismatched: usize,
    pub(super) in_flight: usize,
    pub(super) unavailable: usize,
    pub(super) hung_up: usize,
    pub(super) crashed: usize,
    pub(super) repeated: usize,
    pub(super) late: usize,
}

impl AddAssign for Seen {
    fn add_assign(&mut self, other: Self) {
        self.executed += other.executed;
        self.stored += other.stored;
        self.replayed += other.replayed;
        self.declined += other.declined;
        self.not_stored += other.not_stored;
        self.unknown += other.unknown;
        self.mismatched += other.mismatched;
        self.in_flight += other.in_flight;
        self.unavailable += other.unavailable;
        self.hung_up += other.hung_up;
        self.crashed += other.crashed;
        self.repeated += other.repeated;
        self.late += other.late;
    }
}

impl Seen {
    pub(super) fn count(&mut self, call: &Call) {
        match call.answered {
            Answered::Own(_, Outcome::Stored) => self.stored += 1,
            Answered::Own(..) => self.not_stored += 1,
            Answered::Replay(_) => self.replayed += 1,
            Answered::Declined => self.declined += 1,
            Answered::Refused(Code::OutcomeUnknown | Code::UpstreamLost) => self.unknown += 1,
            Answered::Refused(Code::KeyReused) => self.mismatched += 1,
            Answered::Refused(Code::InFlight | Code::UpstreamTimeout) => self.in_flight += 1,
            Answered::Refused(Code::StoreUnavailable) => self.unavailable += 1,
            Answered::Refused(_) => {}
        }
    }
}

/// Returns all violations in the history of a key. `is_unsent`: no byte of it was sent, and the
/// gateways that know so survived.
pub(super) fn violations(key: u8, executions: &[Execution], calls: &[Call], is_unsent: bool) -> Vec<String> {
    let executed: Vec<_> = executions.iter().filter(|execution| execution.key == key).collect();
    let calls: Vec<_> = calls.iter().filter(|call| call.key == key).collect();
    let mut wrong = Vec::new();
    if executed.len() > 1 {
        wrong.push(format!("key {key} was executed {} times", executed.len()));
    }
    let kept_at = calls.iter().filter(|call| kept(call.answered).is_some()).map(|call| call.to).min();
    let first = calls.iter().find_map(|call| kept(call.answered));
    for call in &calls {
        let shown = match call.answered {
            Answered::Own(nonce, _) | Answered::Replay(nonce) => Some(nonce),
            Answered::Declined | Answered::Refused(_) => None,
        };
        if let Some(nonce) = shown {
            match executions.iter().find(|execution| execution.nonce == nonce) {
                None => wrong.push(format!("an answer that nobody gave: {call:?}")),
                Some(execution) if execution.key != key => {
                    wrong.push(format!("the answer of another key, {}: {call:?}", execution.key));
                }
                Some(execution) if execution.print != call.print => {
                    wrong.push(format!("the answer of another request: {call:?}"));
                }
                Some(_) => {}
            }
        }
        if kept(call.answered).is_some_and(|nonce| Some(nonce) != first) {
            wrong.push(format!("two answers were shown as kept, {first:?} and {call:?}"));
        }
        let unavailable = call.answered == Answered::Refused(Code::StoreUnavailable);
        let honest = match call.answered {
            Answered::Replay(_) => true,
            Answered::Refused(Code::KeyReused) => executed.first().is_none_or(|first| first.print != call.print),
            _ => unavailable,
        };
        if kept_at.is_some_and(|kept_at| call.from > kept_at) && !honest {
            wrong.push(format!("the answer was shown as kept at {kept_at:?}, and later: {call:?}"));
        }
        let in_flight = matches!(call.answered, Answered::Refused(Code::InFlight | Code::UpstreamTimeout));
        if is_unsent && call.answered == Answered::Refused(Code::OutcomeUnknown) {
            wrong.push(format!("no byte of key {key} was sent, and it is unknown: {call:?}"));
        }
        if call.is_last && (in_flight || unavailable) {
            wrong.push(format!("key {key} is still in flight, or its store away: {call:?}"));
        }
    }
    wrong
}

/// Returns the response if it was reported as stored.
fn kept(answered: Answered) -> Option<u64> {
    match answered {
        Answered::Own(nonce, Outcome::Stored) | Answered::Replay(nonce) => Some(nonce),
        _ => None,
    }
}

//! Decides the next step of a retry: a pure function over an observation, which returns its
//! reasons. The cases of `wire/cases.json` test it, and the TypeScript client too.

use std::time::Duration;

use onceward::problem::{Executed, Retry};
use onceward::wire::Outcome;

/// Failure of a request without a complete response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The request was sent, or may have been sent.
    Network,
    /// The timeout of the attempt expired.
    Timeout,
    /// No byte of the request was sent.
    Unsent,
}

/// Observation after a send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// No complete response.
    Failed(Failure),
    /// Complete response.
    Answered(Answered),
}

/// Parts of a response that the decision depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// Status of the response.
    pub status: u16,
    /// Value of `Idempotency-Outcome`, if it is known here.
    pub outcome: Option<Outcome>,
    /// Code of the problem.
    pub code: Option<String>,
    /// `executed` member of the problem.
    pub executed: Option<Executed>,
    /// `retry` member of the problem.
    pub retry: Option<Retry>,
    /// Value of `Retry-After`.
    pub retry_after: Option<Duration>,
}

/// Context of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// `true` if this is the response to `GET operation`, not to the request itself.
    pub asked: bool,
    /// `true` if the origin supports keys. `None` if that is not known yet.
    pub honoured: Option<bool>,
    /// `true` if an earlier send of the key may have been executed.
    pub doubt: bool,
    /// Remaining time until the total deadline.
    pub left: Duration,
}

/// Next action, and the knowledge of the outcome so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Next action.
    pub action: Action,
    /// `true` if the key is kept: only a definite outcome releases it.
    pub keeps_key: bool,
    /// Knowledge of the key's operation over all attempts. Unless it is `No`, the operation may
    /// have executed from now on.
    pub executed: Executed,
    /// Reason for the action.
    pub because: Reason,
}

/// Next action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Return this response to the caller.
    Return,
    /// Send the same request with the same key.
    Resend(After),
    /// Look up the outcome with `GET operation`.
    Ask(After),
    /// Check whether the origin supports keys, and decide again.
    Check,
    /// Fail with an error.
    Fail(Kind),
}

/// Delay before an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Fixed delay.
    Time(Duration),
    /// Delay of our own [`backoff`].
    Backoff,
}

/// Kind of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "`Error` says what each means")]
pub enum Kind {
    AnswerNotKept,
    InFlight,
    KeyExpired,
    KeyRefused,
    KeyReused,
    NotSent,
    OutcomeUnknown,
}

/// Reason for an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the vectors say when each is given")]
pub enum Reason {
    Answer,
    Plain,
    NotExecuted,
    Busy,
    InFlight,
    AnswerLost,
    Unsent,
    Kept,
    Free,
    Unknown,
    NotKept,
    Mismatch,
    Expired,
    Refused,
    NotHonoured,
    NotKnownToBeHonoured,
    Deadline,
}

use Executed::{No, Unknown, Yes};

/// Returns the decision for an observation.
pub fn decide(given: Given, heard: &Heard) -> Decision {
    let case = Case { given, heard };
    let before = if given.doubt { Unknown } else { No };
    let answered = match heard {
        Heard::Failed(Failure::Unsent) => return case.again(before, Reason::Unsent),
        Heard::Failed(Failure::Network | Failure::Timeout) => return case.again(Unknown, Reason::AnswerLost),
        Heard::Answered(answered) => answered,
    };
    match outcome_of(answered) {
        Some(outcome) => {
            let given = Given { honoured: Some(true), ..given };
            labelled(&Case { given, heard }, outcome, answered, before)
        }
        None => plain(&case, answered.status, before),
    }
}

/// Decides on a response from a server that supports keys.
fn labelled(case: &Case<'_>, outcome: Outcome, answered: &Answered, before: Executed) -> Decision {
    let Answered { status, retry, .. } = *answered;
    let code = answered.code.as_deref();
    let asked = case.given.asked;
    match outcome {
        // An anonymous caller gets only the status, not the response: sending again returns the
        // response.
        Outcome::Stored if asked => case.resend_now(Yes, Reason::Kept),
        Outcome::NotStored if asked || code == Some("answer_not_kept") => {
            drop_key(Action::Fail(Kind::AnswerNotKept), Yes, Reason::NotKept)
        }
        Outcome::NotStored if is_lost(status) || retry == Some(Retry::SameKey) => {
            case.again(Unknown, Reason::AnswerLost)
        }
        Outcome::Stored | Outcome::Replayed | Outcome::NotStored => drop_key(Action::Return, Yes, Reason::Answer),
        // Never seen here, or released: an earlier send may still arrive, so `executed` stays open.
        Outcome::Released if asked => case.resend_now(Unknown, Reason::Free),
        // The request did not execute, and the response says when to send it again, or reports an
        // overload that passes.
        Outcome::Released
            if is_busy(status) || status == 503 || answered.retry_after.is_some() || retry == Some(Retry::SameKey) =>
        {
            case.again(No, Reason::Busy)
        }
        Outcome::Released => keep_key(Action::Return, No, Reason::NotExecuted),
        Outcome::InFlight => case.again(Unknown, Reason::InFlight),
        Outcome::Unknown if asked && retry != Some(Retry::Wait) => {
            keep_key(Action::Fail(Kind::OutcomeUnknown), Unknown, Reason::Unknown)
        }
        Outcome::Unknown if retry == Some(Retry::SameKey) || code.is_none() && is_lost(status) => {
            case.again(Unknown, Reason::AnswerLost)
        }
        Outcome::Unknown => match retry {
            Some(Retry::Wait) => case.ask(Unknown, Reason::Unknown, case.told()),
            _ => case.ask(Unknown, Reason::Unknown, After::Time(Duration::ZERO)),
        },
        Outcome::Mismatch => keep_key(Action::Fail(Kind::KeyReused), Unknown, Reason::Mismatch),
        Outcome::Expired => {
            let executed = answered.executed.unwrap_or(Unknown);
            let action = Action::Fail(Kind::KeyExpired);
            Decision { action, keeps_key: executed != Yes, executed, because: Reason::Expired }
        }
        // `rejected`, and outcomes that a later version adds.
        _ => {
            let executed = match answered.executed {
                // These are sent before anything of this attempt executes.
                Some(Unknown) | None if code.is_some_and(|code| BEFORE.contains(&code)) => before,
                Some(executed) => executed,
                None => before,
            };
            match retry {
                Some(Retry::SameKey | Retry::Wait) => case.again(executed, Reason::Busy),
                _ => {
                    let action = Action::Fail(Kind::KeyRefused);
                    Decision { action, keeps_key: retry != Some(Retry::NewKey), executed, because: Reason::Refused }
                }
            }
        }
    }
}

/// Decides on a response without an outcome: from a service that does not support keys, or from a
/// proxy in between.
fn plain(case: &Case<'_>, status: u16, before: Executed) -> Decision {
    match status {
        _ if is_busy(status) => case.again(before, Reason::Busy),
        _ if is_lost(status) => case.again(Unknown, Reason::AnswerLost),
        _ if case.given.asked => keep_key(Action::Fail(Kind::OutcomeUnknown), Unknown, Reason::Unknown),
        ..400 => drop_key(Action::Return, Yes, Reason::Plain),
        409 => keep_key(Action::Return, Unknown, Reason::Plain),
        500.. if !KEPT.contains(&status) => keep_key(Action::Return, Unknown, Reason::Plain),
        _ => {
            let keeps_key = case.given.doubt || KEPT.contains(&status);
            Decision { action: Action::Return, keeps_key, executed: before, because: Reason::Plain }
        }
    }
}

/// Statuses after which the user can fix the request, wait or sign in without a new intent, so the
/// key is kept.
const KEPT: [u16; 23] =
    [401, 403, 407, 409, 410, 411, 412, 417, 419, 421, 422, 423, 425, 426, 428, 429, 431, 440, 449, 498, 509, 511, 561];
/// Codes of rejections that are sent before anything of this attempt executes.
const BEFORE: [&str; 5] =
    ["store_unavailable", "draining", "request_incomplete", "request_too_large", "principal_unknown"];

/// Returns `true` for statuses of a proxy or a service that may have executed the request.
fn is_lost(status: u16) -> bool {
    matches!(status, 408 | 502..=504 | 520..=527 | 530 | 598 | 599)
}

/// Returns `true` for statuses of a server that did not execute it.
fn is_busy(status: u16) -> bool {
    matches!(status, 425 | 429 | 529)
}

/// Returns the outcome of the header, else the one that the problem's code implies.
fn outcome_of(answered: &Answered) -> Option<Outcome> {
    answered.outcome.or_else(|| {
        answered.retry?;
        Some(match answered.code.as_deref() {
            Some("in_flight" | "upstream_timeout") => Outcome::InFlight,
            Some("outcome_unknown" | "upstream_lost") => Outcome::Unknown,
            Some("answer_not_kept") => Outcome::NotStored,
            Some("key_expired") => Outcome::Expired,
            Some("key_reused") => Outcome::Mismatch,
            _ => Outcome::Rejected,
        })
    })
}

fn keep_key(action: Action, executed: Executed, because: Reason) -> Decision {
    Decision { action, keeps_key: true, executed, because }
}

fn drop_key(action: Action, executed: Executed, because: Reason) -> Decision {
    Decision { action, keeps_key: false, executed, because }
}

struct Case<'a> {
    given: Given,
    heard: &'a Heard,
}

impl Case<'_> {
    /// Returns the delay of the response. A delay of zero means our own backoff.
    fn told(&self) -> After {
        match self.heard {
            Heard::Answered(Answered { retry_after: Some(time), .. }) if !time.is_zero() => After::Time(*time),
            _ => After::Backoff,
        }
    }

    /// Repeats the last action, if that is safe and there is time.
    fn again(&self, executed: Executed, because: Reason) -> Decision {
        match self.given.asked {
            true => self.ask(executed, because, self.told()),
            false => self.once_more(Action::Resend(self.told()), self.told(), executed, because),
        }
    }

    fn resend_now(&self, executed: Executed, because: Reason) -> Decision {
        let now = After::Time(Duration::ZERO);
        self.once_more(Action::Resend(now), now, executed, because)
    }

    fn ask(&self, executed: Executed, because: Reason, after: After) -> Decision {
        self.once_more(Action::Ask(after), after, executed, because)
    }

    fn once_more(&self, action: Action, after: After, executed: Executed, because: Reason) -> Decision {
        let wait = match after {
            After::Time(time) => time,
            After::Backoff => Duration::ZERO,
        };
        if self.given.left <= wait {
            return self.give_up(executed, because, Reason::Deadline);
        }
        // Safety: a request that may have been executed is sent again only to an origin that
        // supports keys.
        let is_first = because == Reason::Unsent && !self.given.doubt;
        match self.given.honoured {
            _ if is_first || self.given.asked => keep_key(action, executed, because),
            Some(true) => keep_key(action, executed, because),
            Some(false) => self.give_up(executed, because, Reason::NotHonoured),
            None => keep_key(Action::Check, executed, Reason::NotKnownToBeHonoured),
        }
    }

    fn give_up(&self, executed: Executed, was: Reason, because: Reason) -> Decision {
        let action = match (executed, self.heard) {
            _ if was == Reason::InFlight && because == Reason::Deadline => Action::Fail(Kind::InFlight),
            (Yes | Unknown, _) => Action::Fail(Kind::OutcomeUnknown),
            (No, Heard::Failed(_)) => Action::Fail(Kind::NotSent),
            (No, Heard::Answered(_)) => Action::Return,
        };
        keep_key(action, executed, because)
    }
}

const BACKOFF_FIRST_MS: f64 = 500.0;
const BACKOFF_MS_MAX: f64 = 15_000.0;

/// Returns the backoff after `sends` sends, given a random number from 0 up to, not including, 1.
pub fn backoff(sends: u32, random: f64) -> Duration {
    let doublings = i32::try_from(sends.saturating_sub(1)).unwrap_or(i32::MAX);
    let most = (BACKOFF_FIRST_MS * 2_f64.powi(doublings)).min(BACKOFF_MS_MAX);
    Duration::from_millis((most / 2.0 + most / 2.0 * random) as u64)
}

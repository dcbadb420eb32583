//! May we, and when? A pure function over what was heard, with its reasons: the cases of `wire/cases.json`, which the
//! TypeScript client runs too.

use std::time::Duration;

use onceward::problem::{Executed, Retry};
use onceward::wire::Outcome;

/// How a request ended without a whole answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It was sent, or perhaps sent.
    Network,
    /// The attempt's own patience ended.
    Timeout,
    /// No byte of it was sent.
    Unsent,
}

/// What was heard after a send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// No whole answer.
    Failed(Failure),
    /// An answer.
    Answered(Answered),
}

/// What counts of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// Its status.
    pub status: u16,
    /// What `Idempotency-Outcome` says, if that is known here.
    pub outcome: Option<Outcome>,
    /// The problem's code.
    pub code: Option<String>,
    /// What the problem says of the execution.
    pub executed: Option<Executed>,
    /// What the problem says to do next.
    pub retry: Option<Retry>,
    /// What `Retry-After` says.
    pub retry_after: Option<Duration>,
}

/// What is known besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// Whether this answers `GET operation`, and not the request itself.
    pub asked: bool,
    /// Whether keys are honoured at the origin; `None`: not known yet.
    pub honoured: Option<bool>,
    /// Whether an earlier send of the key may have been executed.
    pub doubt: bool,
    /// What is left of the total deadline.
    pub left: Duration,
}

/// What to do, and what is known by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// Whether the key is kept: only a definite outcome lets it go.
    pub keeps_key: bool,
    /// What is known of the key's operation over all attempts; unless it is `No`, there is a doubt from now on.
    pub executed: Executed,
    /// Why.
    pub because: Reason,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Hand this response over.
    Return,
    /// Send the same request with the same key.
    Resend(After),
    /// Ask `GET operation`.
    Ask(After),
    /// Find out whether keys are honoured here, and decide again.
    Check,
    /// Fail.
    Fail(Kind),
}

/// When.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// After so long.
    Time(Duration),
    /// After our own [`backoff`].
    Backoff,
}

/// Which failure it is.
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

/// Why something is done.
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

/// What to do after what was heard.
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

/// Somebody who knows of keys spoke.
fn labelled(case: &Case<'_>, outcome: Outcome, answered: &Answered, before: Executed) -> Decision {
    let Answered { status, retry, .. } = *answered;
    let code = answered.code.as_deref();
    let asked = case.given.asked;
    match outcome {
        // Whoever has no name is told that it is kept, and not the answer itself: sending again brings that.
        Outcome::Stored if asked => case.resend_now(Yes, Reason::Kept),
        Outcome::NotStored if asked || code == Some("answer_not_kept") => {
            drop_key(Action::Fail(Kind::AnswerNotKept), Yes, Reason::NotKept)
        }
        Outcome::NotStored if is_lost(status) || retry == Some(Retry::SameKey) => {
            case.again(Unknown, Reason::AnswerLost)
        }
        Outcome::Stored | Outcome::Replayed | Outcome::NotStored => drop_key(Action::Return, Yes, Reason::Answer),
        // Never seen here, or released: what was sent earlier may yet arrive, so `executed` stays open.
        Outcome::Released if asked => case.resend_now(Unknown, Reason::Free),
        // It did not execute, and says when to send the same again, or comes from a crowd that passes.
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
        // `rejected`, and what a later version says besides.
        _ => {
            let executed = match answered.executed {
                // These come before anything of this attempt was executed.
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

/// Nobody who knows of keys spoke: a service without them, or a proxy on the way.
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

/// What may be mended, waited for or signed in to without a new intent, so that the same key goes on.
const KEPT: [u16; 23] =
    [401, 403, 407, 409, 410, 411, 412, 417, 419, 421, 422, 423, 425, 426, 428, 429, 431, 440, 449, 498, 509, 511, 561];
/// The refusals that come before anything of this attempt was executed.
const BEFORE: [&str; 5] =
    ["store_unavailable", "draining", "request_incomplete", "request_too_large", "principal_unknown"];

/// Said by a proxy, or a service, that may have executed the request.
fn is_lost(status: u16) -> bool {
    matches!(status, 408 | 502..=504 | 520..=527 | 530 | 598 | 599)
}

/// Said by one that did not.
fn is_busy(status: u16) -> bool {
    matches!(status, 425 | 429 | 529)
}

/// What the header says, else what the problem's code stands for.
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
    /// When, by what was said; a time of zero is our own backoff.
    fn told(&self) -> After {
        match self.heard {
            Heard::Answered(Answered { retry_after: Some(time), .. }) if !time.is_zero() => After::Time(*time),
            _ => After::Backoff,
        }
    }

    /// Once more what was just done, if that is safe and there is time.
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
        // Never the duplicate itself: a request that perhaps was executed is sent again only to where keys are honoured.
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

/// Our own backoff after so many sends, given a random number from 0 up to, not including, 1.
pub fn backoff(sends: u32, random: f64) -> Duration {
    let doublings = i32::try_from(sends.saturating_sub(1)).unwrap_or(i32::MAX);
    let most = (BACKOFF_FIRST_MS * 2_f64.powi(doublings)).min(BACKOFF_MS_MAX);
    Duration::from_millis((most / 2.0 + most / 2.0 * random) as u64)
}

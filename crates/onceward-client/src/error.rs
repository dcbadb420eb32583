//! Error of a request that has no response to return.

use std::fmt;

use http::StatusCode;
use onceward::problem::Executed;

use crate::decide::{Kind, Reason};

/// Error of a keyed request that has no response to return. `Display` states what is known and what
/// to do.
///
/// Wrapped in [`reqwest_middleware::Error::Middleware`]; [`Error::of`] unwraps it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Error {
    /// Kind of the failure.
    pub kind: Kind,
    /// Knowledge of the operation's execution.
    pub executed: Executed,
    /// Reason for the failure.
    pub because: Reason,
    /// Code of the problem, if a server that supports keys rejected the request.
    pub code: Option<String>,
    /// Status of the response to the first request with the key, if another request used the key
    /// and the server reports it.
    pub first_status: Option<StatusCode>,
    source: Option<anyhow::Error>,
}

impl Error {
    pub(crate) fn new(kind: Kind, executed: Executed, because: Reason) -> Self {
        Self { kind, executed, because, code: None, first_status: None, source: None }
    }

    pub(crate) fn code(mut self, code: Option<String>) -> Self {
        self.code = code;
        self
    }

    pub(crate) fn first(mut self, status: Option<StatusCode>) -> Self {
        self.first_status = status;
        self
    }

    pub(crate) fn because_of(mut self, source: Option<anyhow::Error>) -> Self {
        self.source = source;
        self
    }

    /// Returns the error of a keyed request, if the client's error wraps one.
    pub fn of(error: &reqwest_middleware::Error) -> Option<&Self> {
        match error {
            reqwest_middleware::Error::Middleware(error) => error.downcast_ref(),
            reqwest_middleware::Error::Reqwest(_) => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.kind, self.because) {
            (Kind::AnswerNotKept, _) => "it was executed, and its answer was not kept: look at its effect",
            (Kind::InFlight, _) => "it is still running: ask again later, with the same key",
            (Kind::KeyExpired, _) => "the key is older than what is remembered: look at the effect before a new action",
            (Kind::KeyRefused, _) => "the request was refused before it could execute",
            (Kind::KeyReused, _) => "the key was used for another request",
            (Kind::NotSent, _) => "nothing was sent: it is safe to try again",
            (Kind::OutcomeUnknown, Reason::NotHonoured) => {
                "it may have been executed, and keys are not honoured there, so that it was not sent again: look at its effect"
            }
            (Kind::OutcomeUnknown, _) => "it may have been executed or not: look at its effect, or ask a person",
        })?;
        match &self.code {
            Some(code) => write!(f, " ({code})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

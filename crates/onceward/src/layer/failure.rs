//! Causes of failures of the inner service or of a body.

use std::any::Any;
use std::error::Error;

use http_body_util::LengthLimitError;
use tower::buffer::error::Closed;
use tower::load_shed::error::Overloaded;

use super::body::BoxError;
use crate::policy::Disposition;
use crate::problem::Code;

/// Cause of a request body that could not be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BodyFailure {
    /// A limit in front of the layer refused it: every retry fails as well.
    TooLarge,
    /// The connection ended before the body did.
    Truncated,
    /// Another layer in front refused it; carries that layer's message.
    Refused(String),
}

impl BodyFailure {
    /// Looks for a known cause in the whole chain of sources: each layer wraps the error of the one
    /// in front of it.
    pub(super) fn of(error: &BoxError) -> Self {
        let mut last: &(dyn Error + 'static) = &**error;
        loop {
            if last.is::<LengthLimitError>() {
                return Self::TooLarge;
            }
            if let Some(io) = last.downcast_ref::<std::io::Error>() {
                // `source()` of an `io::Error` skips the error that it wraps, and returns that
                // error's source.
                match io.get_ref() {
                    Some(inner) if inner.is::<LengthLimitError>() => return Self::TooLarge,
                    _ => return Self::Truncated,
                }
            }
            match last.source() {
                Some(source) => last = source,
                None => break,
            }
        }
        // The server's own error for a body that ended early may have no cause with a public type.
        let text = last.to_string();
        let lost = ["connection", "stream", "EOF", "incomplete", "reset", "body from"];
        match lost.iter().any(|word| text.contains(word)) {
            true => Self::Truncated,
            false => Self::Refused(text),
        }
    }

    pub(super) fn code(&self) -> Code {
        match self {
            Self::TooLarge => Code::RequestTooLarge,
            Self::Truncated | Self::Refused(_) => Code::RequestIncomplete,
        }
    }
}

/// Recognises the errors by which `tower`'s own layers refuse a request that they did not pass on:
/// those of `load_shed` and of a closed `buffer`. Checks the error itself and not its sources: a
/// handler that executed may return the error of another service.
pub(super) fn fate_of(error: &dyn Any) -> Option<Disposition> {
    let is_unsent = match error.downcast_ref::<BoxError>() {
        Some(boxed) => boxed.is::<Overloaded>() || boxed.is::<Closed>(),
        None => error.is::<Overloaded>() || error.is::<Closed>(),
    };
    is_unsent.then_some(Disposition::NotSent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_error_chain_names_the_cause() {
        let io = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        for (rule, error, want) in [
            ("an io error is a truncation", BoxError::from(io), BodyFailure::Truncated),
            (
                "what else a layer says is its refusal",
                "checksum differs".into(),
                BodyFailure::Refused("checksum differs".into()),
            ),
        ] {
            assert_eq!(BodyFailure::of(&error), want, "{rule}");
        }
    }
}

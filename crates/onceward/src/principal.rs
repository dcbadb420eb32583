//! The principal: who is asking. Keys of different principals never meet.

use std::fmt;
use std::str::FromStr;

use http::header::{AUTHORIZATION, COOKIE, HeaderMap, HeaderName};

use crate::secret::Digest;

/// One part of a request that tells who is asking.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// The whole `Authorization` header: fit for API keys, not for tokens that are renewed.
    Authorization,
    /// A header.
    Header(HeaderName),
    /// One cookie.
    Cookie(String),
}

impl FromStr for Part {
    type Err = PartInvalid;

    fn from_str(text: &str) -> Result<Self, PartInvalid> {
        let invalid = || PartInvalid(text.to_owned());
        match text.split_once(':') {
            None if text == "authorization" => Ok(Self::Authorization),
            Some(("header", name)) => name.parse().map(Self::Header).map_err(|_| invalid()),
            Some(("cookie", name)) if HeaderName::try_from(name).is_ok() => Ok(Self::Cookie(name.to_owned())),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Authorization => f.write_str("authorization"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
        }
    }
}

/// A text that names no part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartInvalid(String);

impl fmt::Display for PartInvalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no part of a principal; write \"authorization\", \"header:NAME\" or \"cookie:NAME\"", self.0)
    }
}

impl std::error::Error for PartInvalid {}

/// How it is told who is asking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Rule {
    /// Nobody said: a request without a credential is anonymous, one with a credential is refused.
    #[default]
    Unset,
    /// These parts, together. No part at all: all callers are one.
    Parts(Vec<Part>),
}

/// Who is asking, as far as a rule could tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Principal {
    /// No part, and no credential.
    Anonymous,
    /// Somebody: a digest of the parts, or of their absence where the rule says that all callers are one.
    Named(Digest),
}

/// The request has a credential, and no rule says what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown;

impl Rule {
    /// Tells who is asking.
    ///
    /// # Errors
    ///
    /// [`Unknown`] where a credential is there that no part of the rule speaks of: lumping such callers together would
    /// show one the answers of another.
    pub fn identify(&self, headers: &HeaderMap) -> Result<Principal, Unknown> {
        let parts = match self {
            Self::Unset => [].as_slice(),
            // The digest of no parts is the same for all callers, which is what an empty list asks for.
            Self::Parts(parts) if parts.is_empty() => return Ok(Principal::Named(Digest::of_parts([].into_iter()))),
            Self::Parts(parts) => parts,
        };
        let found: Vec<(String, Vec<Vec<u8>>)> =
            parts.iter().map(|part| (part.to_string(), values(part, headers))).collect();
        if found.iter().any(|(_, values)| !values.is_empty()) {
            let flat = found.iter().flat_map(|(name, values)| {
                let count = (values.len() as u64).to_le_bytes().to_vec();
                [name.as_bytes().to_vec(), count].into_iter().chain(values.iter().cloned())
            });
            return Ok(Principal::Named(Digest::of_parts(flat)));
        }
        match headers.keys().any(|name| *name == AUTHORIZATION || *name == COOKIE) {
            true => Err(Unknown),
            false => Ok(Principal::Anonymous),
        }
    }
}

/// The values of a part; an empty value counts as an absent one. All of several, for which of two equal cookies a service
/// believes is not known here, and taking one would let another caller's stand in for it.
fn values(part: &Part, headers: &HeaderMap) -> Vec<Vec<u8>> {
    let of = |name: &HeaderName| -> Vec<Vec<u8>> {
        headers.get_all(name).iter().map(|value| value.as_bytes().to_vec()).filter(|value| !value.is_empty()).collect()
    };
    match part {
        Part::Authorization => of(&AUTHORIZATION),
        Part::Header(name) => of(name),
        Part::Cookie(name) => headers
            .get_all(COOKIE)
            .iter()
            .flat_map(|line| line.as_bytes().split(|byte| *byte == b';'))
            .filter_map(|pair| {
                let pair = pair.trim_ascii();
                let at = pair.iter().position(|byte| *byte == b'=')?;
                (&pair[..at] == name.as_bytes()).then(|| pair[at + 1..].to_vec())
            })
            .filter(|value| !value.is_empty())
            .collect(),
    }
}

//! Scope: the parts of a request that separate key spaces besides the principal.

use std::fmt;
use std::str::FromStr;

use http::header::{HOST, HeaderMap};
use http::{Method, Uri};

use crate::secret::LengthPrefixed;
use crate::wire::line;

/// Part of a scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ScopePart {
    /// The host that the client named.
    Host,
    /// The method.
    Method,
    /// The path.
    Path,
    /// The route's name.
    Route,
}

impl ScopePart {
    /// All parts, in order.
    pub const ALL: [Self; 4] = [Self::Host, Self::Method, Self::Path, Self::Route];

    /// Returns the part's name, as used in settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Method => "method",
            Self::Path => "path",
            Self::Route => "route",
        }
    }
}

impl FromStr for ScopePart {
    type Err = ParseScopeError;

    fn from_str(text: &str) -> Result<Self, ParseScopeError> {
        Self::ALL.into_iter().find(|part| part.as_str() == text).ok_or_else(|| ParseScopeError(text.to_owned()))
    }
}

/// Error of a text that names no part of a scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseScopeError(String);

impl fmt::Display for ParseScopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no part of a scope; write \"route\", \"path\", \"host\" or \"method\"", self.0)
    }
}

impl std::error::Error for ParseScopeError {}

/// Parts of a request that separate key spaces, sorted. Empty: all routes of a namespace share one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scope(Vec<ScopePart>);

impl FromIterator<ScopePart> for Scope {
    fn from_iter<I: IntoIterator<Item = ScopePart>>(parts: I) -> Self {
        let mut parts: Vec<ScopePart> = parts.into_iter().collect();
        parts.sort_unstable();
        parts.dedup();
        Self(parts)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (at, part) in self.0.iter().enumerate() {
            write!(f, "{}\"{}\"", if at == 0 { "" } else { ", " }, part.as_str())?;
        }
        f.write_str("]")
    }
}

impl Scope {
    /// Returns true if the scope has no part.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns true if the scope has this part.
    pub fn contains(&self, part: ScopePart) -> bool {
        self.0.contains(&part)
    }

    /// Returns the key space of a request.
    pub fn of(&self, route: &str, method: &Method, uri: &Uri, headers: &HeaderMap) -> KeySpace {
        if self.0.is_empty() {
            return KeySpace::default();
        }
        let mut framed = LengthPrefixed::default();
        for part in &self.0 {
            framed.field(part.as_str().as_bytes());
            match part {
                ScopePart::Host => framed.field(host(uri, headers).as_bytes()),
                ScopePart::Method => framed.field(method.as_str().as_bytes()),
                ScopePart::Path => framed.field(uri.path().as_bytes()),
                ScopePart::Route => framed.field(route.as_bytes()),
            }
        }
        KeySpace(framed.bytes().into())
    }
}

/// Returns the host in lower case, without the default port of its scheme.
fn host(uri: &Uri, headers: &HeaderMap) -> String {
    let authority = match uri.authority() {
        Some(authority) => authority.as_str().as_bytes(),
        None => line(headers, &HOST).map_or(b"".as_slice(), |host| host.as_bytes()),
    };
    let host = String::from_utf8_lossy(authority).to_ascii_lowercase();
    let plain = host.strip_suffix(":80").or_else(|| host.strip_suffix(":443")).unwrap_or(&host);
    plain.to_owned()
}

/// Key space of a request: the values of its scope. Empty if the scope is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct KeySpace(Box<[u8]>);

impl KeySpace {
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        (!self.0.is_empty()).then_some(&*self.0)
    }
}

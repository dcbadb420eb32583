//! JSON Pointer (RFC 6901): the location of a value in a JSON document.

use std::fmt;
use std::str::FromStr;

/// JSON Pointer, such as `/order/items/0`.
///
/// ```
/// use onceward::fingerprint::Pointer;
///
/// let pointer: Pointer = "/meta/sent~1at".parse().unwrap();
/// assert_eq!(pointer.as_str(), "/meta/sent~1at");
/// assert!("meta".parse::<Pointer>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pointer {
    text: String,
    tokens: Vec<Vec<u8>>,
}

impl Pointer {
    /// Returns the pointer in its original spelling.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the names and indexes of the path, with escapes decoded.
    pub(crate) fn tokens(&self) -> &[Vec<u8>] {
        &self.tokens
    }
}

/// Error of a text that is not a JSON Pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsePointerError(String);

impl fmt::Display for ParsePointerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is no JSON Pointer; write \"/member\", or \"/member/0/inner\" with ~0 for ~ and ~1 for /",
            self.0
        )
    }
}

impl std::error::Error for ParsePointerError {}

impl FromStr for Pointer {
    type Err = ParsePointerError;

    fn from_str(text: &str) -> Result<Self, ParsePointerError> {
        let invalid = || ParsePointerError(text.to_owned());
        let rest = text.strip_prefix('/').ok_or_else(invalid)?;
        let tokens: Option<Vec<Vec<u8>>> = rest.split('/').map(token).collect();
        Ok(Self { text: text.to_owned(), tokens: tokens.ok_or_else(invalid)? })
    }
}

fn token(text: &str) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'~' => match bytes.next()? {
                b'0' => b'~',
                b'1' => b'/',
                _ => return None,
            },
            byte => byte,
        });
    }
    Some(plain)
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

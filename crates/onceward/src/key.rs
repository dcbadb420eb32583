//! Idempotency key: a client sends one per operation in `Idempotency-Key`, the same on each retry.

use std::fmt;

use http::HeaderMap;
use http::header::{CONNECTION, HeaderName, HeaderValue};

/// Largest length of a key in bytes, after unquoting.
pub const KEY_BYTES_MAX: usize = 255;

/// Key that was checked: 1 to 255 bytes of `0x21..=0x7E`.
///
/// The key is never displayed: `Debug` prints only its length, since a key in a log is readable by
/// many.
///
/// ```
/// use onceward::key::Key;
///
/// // An RFC 9651 string and the bare form are the same key.
/// assert_eq!(Key::parse(b"\"order-7\"").unwrap(), Key::parse(b"order-7").unwrap());
/// assert!(Key::parse(b"").is_err());
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key(HeaderValue);

impl Key {
    /// Parses the value of one header line.
    ///
    /// # Errors
    ///
    /// [`ParseKeyError`] describes in one sentence what is wrong, and where.
    pub fn parse(value: &[u8]) -> Result<Self, ParseKeyError> {
        let value = value.trim_ascii();
        match value.first() {
            None => Err(ParseKeyError::Empty),
            Some(b'"') => unquote(value),
            Some(_) => match value.iter().position(|byte| !is_bare_byte(*byte)) {
                Some(at) => Err(ParseKeyError::Byte { at }),
                None => checked(value),
            },
        }
    }

    /// Finds the key of a request in the header `name`. `None`: the request has none.
    ///
    /// # Errors
    ///
    /// Besides a malformed value: two lines, of which a proxy may join or drop one, and a
    /// `Connection` header that asks the next hop to drop the key.
    pub fn of(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Self>, ParseKeyError> {
        let mut lines = crate::wire::lines(headers, name);
        let Some(line) = lines.next() else { return Ok(None) };
        if lines.next().is_some() {
            return Err(ParseKeyError::Repeated);
        }
        if crate::wire::names_in(headers, &CONNECTION).any(|option| option.eq_ignore_ascii_case(name.as_str())) {
            return Err(ParseKeyError::Connection);
        }
        let value = line.as_bytes();
        let is_bare = !value.is_empty() && value.len() <= KEY_BYTES_MAX && value.iter().all(|byte| is_bare_byte(*byte));
        // The header's own bytes are shared, not copied.
        if is_bare { Ok(Some(Self(line.clone()))) } else { Self::parse(value).map(Some) }
    }

    /// Creates a key from a text that is the key itself, without the syntax of a header.
    ///
    /// # Errors
    ///
    /// Those of [`Key::parse`] that concern length and bytes.
    pub fn from_text(text: &[u8]) -> Result<Self, ParseKeyError> {
        match text.iter().position(|byte| !is_key_byte(*byte)) {
            Some(at) => Err(ParseKeyError::Byte { at }),
            None => checked(text),
        }
    }

    /// Creates a key that was generated here from a prefix and hexadecimal digits, and so needs no
    /// check.
    #[cfg(feature = "layer")]
    pub(crate) fn visible(made: String) -> Self {
        debug_assert!((1..=KEY_BYTES_MAX).contains(&made.len()) && made.bytes().all(is_key_byte));
        Self(HeaderValue::from_str(&made).unwrap_or_else(|_| unreachable!("what is made is visible ASCII")))
    }

    /// Returns the key as an RFC 9651 string, for a header.
    #[cfg(feature = "layer")]
    pub(crate) fn header_value(&self) -> HeaderValue {
        let quoted = format!("\"{}\"", self.as_str().replace('\\', "\\\\").replace('"', "\\\""));
        HeaderValue::from_str(&quoted).unwrap_or_else(|_| unreachable!("a key is visible ASCII"))
    }

    /// Returns the key, unquoted.
    pub fn as_str(&self) -> &str {
        // A key is visible ASCII.
        self.0.to_str().unwrap_or_else(|_| unreachable!("a key is visible ASCII"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} bytes)", self.0.len())
    }
}

/// Error of a value that is not a key. `Display` gives one sentence without the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParseKeyError {
    /// The value is empty, or contains nothing between the quotes.
    Empty,
    /// More than [`KEY_BYTES_MAX`] bytes.
    TooLong,
    /// A byte that is not allowed, at this offset of the value.
    Byte {
        /// Offset from the start of the value, in bytes.
        at: usize,
    },
    /// A quote that is not closed, or an escape other than `\"` and `\\`.
    Quote,
    /// Data after the closing quote.
    Parameters,
    /// More than one header line.
    Repeated,
    /// The `Connection` header names the key's header.
    Connection,
}

impl fmt::Display for ParseKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "the key is empty; send 1 to {KEY_BYTES_MAX} visible ASCII characters"),
            Self::TooLong => write!(f, "the key is longer than {KEY_BYTES_MAX} bytes; send a UUID, for example"),
            Self::Byte { at } => {
                write!(
                    f,
                    "byte {at} of the header's value may not stand in a key; use visible ASCII without \" , ; \\ and without spaces"
                )
            }
            Self::Quote => f.write_str("the quoted key is not closed, or has an escape other than \\\" and \\\\"),
            Self::Parameters => f.write_str("something follows the closing quote; send the quoted key alone"),
            Self::Repeated => f.write_str("the header was sent more than once; send one line"),
            Self::Connection => f.write_str(
                "the Connection header names the key's header, which asks a proxy to drop it; leave it out there",
            ),
        }
    }
}

impl ParseKeyError {
    /// Returns the description with a capital letter and a full stop.
    #[cfg(feature = "layer")]
    pub(crate) fn sentence(self) -> String {
        let words = self.to_string();
        let mut letters = words.chars();
        letters.next().map_or_else(String::new, |first| format!("{}{}.", first.to_uppercase(), letters.as_str()))
    }
}

impl std::error::Error for ParseKeyError {}

/// Unquotes an RFC 9651 string, which starts with a quote.
fn unquote(value: &[u8]) -> Result<Key, ParseKeyError> {
    let mut plain = Vec::with_capacity(value.len());
    let mut bytes = value.iter().enumerate().skip(1);
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' if at + 1 == value.len() => return checked(&plain),
            b'"' => return Err(ParseKeyError::Parameters),
            b'\\' => match bytes.next() {
                Some((_, escaped @ (b'"' | b'\\'))) => plain.push(*escaped),
                _ => return Err(ParseKeyError::Quote),
            },
            byte if is_key_byte(*byte) => plain.push(*byte),
            _ => return Err(ParseKeyError::Byte { at }),
        }
    }
    Err(ParseKeyError::Quote)
}

fn checked(plain: &[u8]) -> Result<Key, ParseKeyError> {
    match plain.len() {
        0 => Err(ParseKeyError::Empty),
        // Visible ASCII is always a valid header value.
        1..=KEY_BYTES_MAX => HeaderValue::from_bytes(plain).map(Key).map_err(|_| ParseKeyError::Byte { at: 0 }),
        _ => Err(ParseKeyError::TooLong),
    }
}

fn is_bare_byte(byte: u8) -> bool {
    is_key_byte(byte) && !matches!(byte, b'"' | b',' | b';' | b'\\')
}

fn is_key_byte(byte: u8) -> bool {
    (0x21..=0x7E).contains(&byte)
}

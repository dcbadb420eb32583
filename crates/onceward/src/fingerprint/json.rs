//! JSON (RFC 8259), compared by its values.
//!
//! White space, the order of members and escapes are normalised. Numbers are compared by their
//! literals, since `1` and `1.0` differ to some parsers, and few parse `1e400`. A body that cannot
//! be parsed unambiguously is an error, and is then compared byte by byte.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;

use super::{Members, Pointer, coding};
use crate::secret::LengthPrefixed;

/// Largest depth of nesting that is parsed.
pub(crate) const DEPTH_MAX: usize = 64;

/// Largest document that is parsed, in bytes.
pub(crate) const BYTES_MAX: usize = 1 << 20;

/// Error of a JSON body that is not parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JsonError {
    /// The body is not JSON.
    Syntax,
    /// An object contains a duplicate member.
    Duplicate,
    /// The body is nested deeper than 64 levels, or larger than 1 MiB.
    TooLarge,
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Syntax => "the body is no JSON",
            Self::Duplicate => "a member stands twice in one object of the JSON body",
            Self::TooLarge => "the JSON body is nested too deeply or too large",
        })
    }
}

impl std::error::Error for JsonError {}

/// Returns true if a body with these headers is JSON, by its content type.
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(CONTENT_TYPE).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return false };
    let media =
        line.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
    matches!(media.as_slice(), b"application/json" | b"text/json") || media.ends_with(b"+json")
}

/// Parses a body, which may be compressed.
pub(crate) fn read<'b>(headers: &HeaderMap, body: &'b Bytes) -> Result<Value<'b>, JsonError> {
    match coding::decoded(headers, body, BYTES_MAX).ok_or(JsonError::Syntax)? {
        Cow::Borrowed(text) => parse(text),
        Cow::Owned(text) => parse(&text).map(Value::into_owned),
    }
}

/// Parses a document.
pub(crate) fn parse(text: &[u8]) -> Result<Value<'_>, JsonError> {
    if text.len() > BYTES_MAX {
        return Err(JsonError::TooLarge);
    }
    str::from_utf8(text).map_err(|_| JsonError::Syntax)?;
    let mut parser = Parser { text, at: 0 };
    let value = parser.value(0)?;
    parser.space();
    if parser.at == text.len() { Ok(value) } else { Err(JsonError::Syntax) }
}

/// JSON value. The members of an object are sorted by name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value<'b> {
    Null,
    Bool(bool),
    Number(Cow<'b, [u8]>),
    /// A string with its escapes decoded. A lone surrogate is encoded as three bytes, as UTF-8
    /// would.
    String(Cow<'b, [u8]>),
    Array(Vec<Value<'b>>),
    Object(Vec<(Cow<'b, [u8]>, Value<'b>)>),
    /// An element of an array that a rule leaves out.
    LeftOut,
}

impl Value<'_> {
    fn into_owned(self) -> Value<'static> {
        let owned = |bytes: Cow<'_, [u8]>| Cow::Owned(bytes.into_owned());
        match self {
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Bool(value),
            Self::Number(literal) => Value::Number(owned(literal)),
            Self::String(text) => Value::String(owned(text)),
            Self::Array(items) => Value::Array(items.into_iter().map(Value::into_owned).collect()),
            Self::Object(members) => {
                Value::Object(members.into_iter().map(|(name, value)| (owned(name), value.into_owned())).collect())
            }
            Self::LeftOut => Value::LeftOut,
        }
    }

    /// Returns the value that a pointer leads to.
    pub(crate) fn find(&self, pointer: &Pointer) -> Option<&Self> {
        pointer.tokens().iter().try_fold(self, |value, token| match value {
            Self::Object(members) => {
                let at = members.binary_search_by(|(name, _)| name.as_ref().cmp(token)).ok()?;
                Some(&members[at].1)
            }
            Self::Array(items) => items.get(index(token)?),
            _ => None,
        })
    }

    fn remove(&mut self, tokens: &[Vec<u8>]) {
        let Some((token, rest)) = tokens.split_first() else { return };
        match self {
            Self::Object(members) => {
                let Ok(at) = members.binary_search_by(|(name, _)| name.as_ref().cmp(token)) else { return };
                match rest.is_empty() {
                    true => drop(members.remove(at)),
                    false => members[at].1.remove(rest),
                }
            }
            Self::Array(items) => {
                let Some(item) = index(token).and_then(|at| items.get_mut(at)) else { return };
                match rest.is_empty() {
                    // The other elements keep their indexes.
                    true => *item = Self::LeftOut,
                    false => item.remove(rest),
                }
            }
            _ => {}
        }
    }

    /// Adds the members of a document that the rules select to a digest. Returns the name of each,
    /// and its range.
    pub(crate) fn frame_root(mut self, members: &Members, into: &mut LengthPrefixed) -> Vec<(String, Range<usize>)> {
        match members {
            Members::Only(pointers) if !pointers.is_empty() => {
                let mut named = Vec::with_capacity(pointers.len());
                into.number(pointers.len());
                for pointer in pointers {
                    let start = into.bytes().len();
                    into.field(pointer.as_str().as_bytes());
                    match self.find(pointer) {
                        Some(value) => value.frame(into),
                        None => into.number(ABSENT),
                    }
                    named.push((pointer.as_str().to_owned(), start..into.bytes().len()));
                }
                return named;
            }
            Members::Except(pointers) => pointers.iter().for_each(|pointer| self.remove(pointer.tokens())),
            Members::All | Members::Only(_) => {}
        }
        let Self::Object(members) = &self else {
            self.frame(into);
            return Vec::new();
        };
        into.number(OBJECT);
        into.number(members.len());
        let mut named = Vec::with_capacity(members.len());
        for (name, value) in members {
            let start = into.bytes().len();
            into.field(name);
            value.frame(into);
            named.push((String::from_utf8_lossy(name).into_owned(), start..into.bytes().len()));
        }
        named
    }

    fn frame(&self, into: &mut LengthPrefixed) {
        match self {
            Self::Null => into.number(NULL),
            Self::Bool(false) => into.number(FALSE),
            Self::Bool(true) => into.number(TRUE),
            Self::Number(literal) => {
                into.number(NUMBER);
                into.field(literal);
            }
            Self::String(text) => {
                into.number(STRING);
                into.field(text);
            }
            Self::Array(items) => {
                into.number(ARRAY);
                into.number(items.len());
                items.iter().for_each(|item| item.frame(into));
            }
            Self::Object(members) => {
                into.number(OBJECT);
                into.number(members.len());
                for (name, value) in members {
                    into.field(name);
                    value.frame(into);
                }
            }
            Self::LeftOut => into.number(ABSENT),
        }
    }
}

const ABSENT: usize = 0;
const NULL: usize = 1;
const FALSE: usize = 2;
const TRUE: usize = 3;
const NUMBER: usize = 4;
const STRING: usize = 5;
const ARRAY: usize = 6;
const OBJECT: usize = 7;

/// Parses an index as in RFC 6901: without leading zeros.
fn index(token: &[u8]) -> Option<usize> {
    let is_index = token == b"0" || !token.starts_with(b"0") && token.iter().all(u8::is_ascii_digit);
    str::from_utf8(token).ok().filter(|_| is_index)?.parse().ok()
}

struct Parser<'b> {
    text: &'b [u8],
    at: usize,
}

impl<'b> Parser<'b> {
    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Result<u8, JsonError> {
        let byte = self.peek().ok_or(JsonError::Syntax)?;
        self.at += 1;
        Ok(byte)
    }

    /// Consumes the expected text.
    fn take(&mut self, text: &[u8]) -> Result<(), JsonError> {
        match self.text[self.at..].starts_with(text) {
            true => {
                self.at += text.len();
                Ok(())
            }
            false => Err(JsonError::Syntax),
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value<'b>, JsonError> {
        if depth > DEPTH_MAX {
            return Err(JsonError::TooLarge);
        }
        self.space();
        match self.peek().ok_or(JsonError::Syntax)? {
            b'n' => self.take(b"null").map(|()| Value::Null),
            b'f' => self.take(b"false").map(|()| Value::Bool(false)),
            b't' => self.take(b"true").map(|()| Value::Bool(true)),
            b'"' => self.string().map(Value::String),
            b'[' => self.array(depth),
            b'{' => self.object(depth),
            _ => self.number().map(|literal| Value::Number(literal.into())),
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value<'b>, JsonError> {
        self.take(b"[")?;
        let mut items = Vec::new();
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.space();
            match self.next()? {
                b',' => {}
                b']' => return Ok(Value::Array(items)),
                _ => return Err(JsonError::Syntax),
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value<'b>, JsonError> {
        self.take(b"{")?;
        let mut members = Vec::new();
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Object(members));
        }
        loop {
            self.space();
            let name = self.string()?;
            self.space();
            self.take(b":")?;
            members.push((name, self.value(depth + 1)?));
            self.space();
            match self.next()? {
                b',' => {}
                b'}' => break,
                _ => return Err(JsonError::Syntax),
            }
        }
        members.sort_by(|one, other| one.0.cmp(&other.0));
        match members.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            true => Err(JsonError::Duplicate),
            false => Ok(Value::Object(members)),
        }
    }

    fn number(&mut self) -> Result<&'b [u8], JsonError> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.next()? {
            b'0' => {}
            b'1'..=b'9' => self.skip_digits(),
            _ => return Err(JsonError::Syntax),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(&self.text[start..self.at])
    }

    fn skip_digits(&mut self) {
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        self.skip_digits();
        if self.at > start { Ok(()) } else { Err(JsonError::Syntax) }
    }

    fn string(&mut self) -> Result<Cow<'b, [u8]>, JsonError> {
        self.take(b"\"")?;
        let start = self.at;
        let plain_end = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..0x20);
        let length = self.text[start..].iter().position(plain_end).ok_or(JsonError::Syntax)?;
        self.at = start + length;
        if self.peek() == Some(b'"') {
            self.at += 1;
            return Ok(self.text[start..start + length].into());
        }
        let mut text = self.text[start..self.at].to_vec();
        loop {
            match self.next()? {
                b'"' => return Ok(text.into()),
                b'\\' => self.escape(&mut text)?,
                0..0x20 => return Err(JsonError::Syntax),
                byte => text.push(byte),
            }
        }
    }

    fn escape(&mut self, text: &mut Vec<u8>) -> Result<(), JsonError> {
        text.push(match self.next()? {
            byte @ (b'"' | b'\\' | b'/') => byte,
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                self.unicode(text)?;
                return Ok(());
            }
            _ => return Err(JsonError::Syntax),
        });
        Ok(())
    }

    fn unicode(&mut self, text: &mut Vec<u8>) -> Result<(), JsonError> {
        let unit = self.unit()?;
        let mut code = u32::from(unit);
        if (0xd800..0xdc00).contains(&unit) && self.text[self.at..].starts_with(b"\\u") {
            let before = self.at;
            self.at += 2;
            let low = self.unit()?;
            match (0xdc00..0xe000).contains(&low) {
                true => code = 0x10000 + ((code - 0xd800) << 10) + (u32::from(low) - 0xdc00),
                // A separate escape, which the next iteration parses.
                false => self.at = before,
            }
        }
        match char::from_u32(code) {
            Some(c) => text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            None => text.extend_from_slice(&[
                0xe0 | (code >> 12) as u8,
                0x80 | (code >> 6 & 0x3f) as u8,
                0x80 | (code & 0x3f) as u8,
            ]),
        }
        Ok(())
    }

    /// Parses four hexadecimal digits.
    fn unit(&mut self) -> Result<u16, JsonError> {
        (0..4).try_fold(0, |unit, _| {
            let digit = char::from(self.next()?).to_digit(16).ok_or(JsonError::Syntax)?;
            Ok(unit << 4 | digit as u16)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{DEPTH_MAX, JsonError, parse};

    #[test]
    fn json_that_is_malformed_is_an_error() {
        for text in [
            "",
            " ",
            "{",
            "}",
            "[1,]",
            "{\"a\":1,}",
            "{a:1}",
            "{'a':1}",
            "01",
            "1.",
            ".5",
            "+1",
            "1e",
            "-",
            "nul",
            "tru",
            "\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\n\"",
            "1 2",
            "\u{feff}1",
            "[1}",
            "{\"a\"}",
            "NaN",
            "Infinity",
            "/**/1",
        ] {
            assert_eq!(parse(text.as_bytes()).err(), Some(JsonError::Syntax), "{text:?}");
        }
        assert_eq!(parse(b"\"\xff\"").err(), Some(JsonError::Syntax));
    }

    #[test]
    fn json_with_a_member_twice_is_an_error_however_it_is_spelled() {
        for text in [r#"{"a":1,"a":1}"#, r#"{"a":1,"b":2,"a":3}"#, r#"[{"b":{"a":1,"\u0061":1}}]"#] {
            assert_eq!(parse(text.as_bytes()).err(), Some(JsonError::Duplicate), "{text}");
        }
    }

    #[test]
    fn json_beyond_the_limits_is_an_error() {
        let nested = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
        assert!(parse(&nested(DEPTH_MAX + 1)).is_ok());
        assert_eq!(parse(&nested(DEPTH_MAX + 2)).err(), Some(JsonError::TooLarge));
        assert_eq!(parse(&nested(100_000)).err(), Some(JsonError::TooLarge));
        let large = format!("\"{}\"", "x".repeat(super::BYTES_MAX));
        assert_eq!(parse(large.as_bytes()).err(), Some(JsonError::TooLarge));
    }

    fn values() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_map(|number| serde_json::json!(number)),
            ".{0,6}".prop_map(Into::into),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::btree_map(".{0,3}", inner, 0..4)
                    .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn json_is_equal_whatever_its_layout(value in values()) {
            let plain = value.to_string();
            let pretty = serde_json::to_string_pretty(&value).expect("JSON");
            prop_assert_eq!(parse(plain.as_bytes()), parse(pretty.as_bytes()));
            prop_assert!(parse(plain.as_bytes()).is_ok());
        }

        #[test]
        fn json_is_read_exactly_if_another_parser_reads_it(text in "[\\[\\]{}:,\"\\\\a0-9.eE+ \\-ntrufls]{0,12}") {
            let theirs = serde_json::from_str::<serde_json::Value>(&text).is_ok();
            let ours = parse(text.as_bytes());
            // serde_json uses the last of two members, and rejects numbers out of its range and
            // lone surrogates.
            if theirs {
                prop_assert!(matches!(ours, Ok(_) | Err(JsonError::Duplicate)), "{}", text);
            } else if ours.is_ok() {
                prop_assert!(text.contains(['e', 'E']) || text.contains("\\u"), "{}", text);
            }
        }
    }
}

//! Forms in the first construction of fingerprints. It never changes, so that older records are
//! still compared by it.

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};

use crate::secret::LengthPrefixed;

/// Parsed form.
pub(super) struct Form {
    /// The content type, without the boundary.
    kind: Vec<u8>,
    fields: Vec<Field>,
}

/// Field or file.
struct Field {
    /// Attributes of a part: its headers, names in lower case. Of an escaped pair: its name, and
    /// the presence of a value.
    headers: Vec<(Vec<u8>, Vec<u8>)>,
    value: Bytes,
}

impl Form {
    /// Parses the body by its content type.
    pub(super) fn read(headers: &HeaderMap, body: &Bytes) -> Option<Self> {
        match media(headers)? {
            Media::Escaped => {
                let kind = headers.get(CONTENT_TYPE)?.as_bytes().to_vec();
                let pairs = body.split(|byte| *byte == b'&').filter(|_| !body.is_empty());
                Some(Self { kind, fields: pairs.map(pair).collect::<Option<_>>()? })
            }
            Media::Parts { boundary, kind } => Some(Self { kind, fields: parts(body, &boundary)? }),
        }
    }

    /// Returns the content type, without the boundary that a browser generates for each submit.
    pub(super) fn kind(&self) -> &[u8] {
        &self.kind
    }

    /// Adds the fields to a digest, in their order.
    pub(super) fn frame(&self, into: &mut LengthPrefixed) {
        into.number(self.fields.len());
        for field in &self.fields {
            into.number(field.headers.len());
            for (name, value) in &field.headers {
                into.field(name);
                into.field(value);
            }
            into.field(&field.value);
        }
    }
}

enum Media {
    Escaped,
    Parts { boundary: Vec<u8>, kind: Vec<u8> },
}

/// Returns the media type of a form. A body that is compressed, or has two types, is not parsed.
fn media(headers: &HeaderMap) -> Option<Media> {
    let mut lines = headers.get_all(CONTENT_TYPE).iter();
    let line = lines.next()?.as_bytes();
    if lines.next().is_some() || headers.contains_key(CONTENT_ENCODING) {
        return None;
    }
    let mut pieces = line.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    let kind = pieces.next()?.to_ascii_lowercase();
    match kind.as_slice() {
        b"application/x-www-form-urlencoded" => Some(Media::Escaped),
        b"multipart/form-data" => {
            let is_boundary = |piece: &&[u8]| piece.len() > 9 && piece[..9].eq_ignore_ascii_case(b"boundary=");
            let (boundaries, rest): (Vec<&[u8]>, Vec<&[u8]>) = pieces.partition(is_boundary);
            let [boundary] = boundaries.as_slice() else { return None };
            let boundary = match &boundary[9..] {
                [b'"', inside @ .., b'"'] => inside,
                plain => plain,
            };
            // A quoted boundary with a semicolon, or with an escape, was split above.
            let is_plain = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
            if boundary.is_empty() || boundary.len() > 70 || !boundary.iter().all(is_plain) {
                return None;
            }
            let kind = std::iter::once(kind.as_slice()).chain(rest).collect::<Vec<_>>().join(&b';');
            Some(Media::Parts { boundary: boundary.to_vec(), kind })
        }
        _ => None,
    }
}

/// Parses `a=b`, with escapes decoded. "a" and "a=" stay distinct.
fn pair(pair: &[u8]) -> Option<Field> {
    let at = pair.iter().position(|byte| *byte == b'=');
    let name = unescaped(&pair[..at.unwrap_or(pair.len())])?;
    let value = at.map_or_else(|| Some(Vec::new()), |at| unescaped(&pair[at + 1..]))?;
    let mark = if at.is_some() { b"=".to_vec() } else { Vec::new() };
    Some(Field { headers: vec![(name, mark)], value: value.into() })
}

fn unescaped(text: &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(*bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => *byte,
        });
    }
    Some(plain)
}

/// Parses the parts between boundaries (RFC 7578), with nothing before the first and nothing after
/// the last.
fn parts(body: &Bytes, boundary: &[u8]) -> Option<Vec<Field>> {
    let delimiter = [b"\r\n--", boundary].concat();
    let mut at = strip(body, 0, &delimiter[2..])?;
    let mut fields = Vec::new();
    loop {
        if let Some(end) = strip(body, at, b"--") {
            return matches!(&body[end..], b"" | b"\r\n").then_some(fields);
        }
        let start = strip(body, at, b"\r\n")?;
        // A part without headers has no name, and is not a field of a form.
        let headers_end = start + find(&body[start..], b"\r\n\r\n")?;
        let value = headers_end + 4;
        let value_end = value + find(&body[value..], &delimiter)?;
        fields.push(part(&body[start..headers_end], body.slice(value..value_end))?);
        at = value_end + delimiter.len();
    }
}

fn part(head: &[u8], value: Bytes) -> Option<Field> {
    let mut headers = Vec::new();
    let mut rest = head;
    loop {
        let end = find(rest, b"\r\n").unwrap_or(rest.len());
        let colon = rest[..end].iter().position(|byte| *byte == b':')?;
        headers.push((rest[..colon].to_ascii_lowercase(), rest[colon + 1..end].trim_ascii().to_vec()));
        match rest.get(end + 2..) {
            Some(more) => rest = more,
            None => break,
        }
    }
    let (_, disposition) = headers.iter().find(|(name, _)| name == b"content-disposition")?;
    quoted(disposition, b"name=\"")?;
    Some(Field { headers, value })
}

/// Returns the text between the quotes after `; name="`. Browsers escape a quote as %22, so the
/// next quote ends it.
fn quoted<'a>(disposition: &'a [u8], opening: &[u8]) -> Option<&'a [u8]> {
    let opening = [b"; ", opening].concat();
    let start = find(disposition, &opening)? + opening.len();
    let length = disposition[start..].iter().position(|byte| *byte == b'"')?;
    Some(&disposition[start..start + length])
}

/// Returns the position after `what`, if `text` has it at `at`.
fn strip(text: &[u8], at: usize, what: &[u8]) -> Option<usize> {
    text.get(at..)?.starts_with(what).then_some(at + what.len())
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    memchr::memmem::find(text, what)
}

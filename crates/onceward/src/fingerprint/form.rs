//! Forms (RFC 7578, RFC 2183 and the URL standard): forms are equal regardless of the boundary that
//! a browser generated, and of the encoding of a name or a byte.
//!
//! A body that cannot be parsed as a form is `None`, and is then compared byte by byte: two
//! requests are never equal just because both are malformed.

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;

use super::coding;
use crate::secret::LengthPrefixed;

/// CSRF fields of frameworks, which are generated for each page, by their exact names. They are not
/// part of the user's input. `docs/fingerprints.md` names the framework of each.
pub(crate) const CSRF_FIELDS: [&str; 17] = [
    "__RequestVerificationToken",
    "__anti-forgery-token",
    "_csrf",
    "_csrf-backend",
    "_csrf-frontend",
    "_csrfToken",
    "_csrf_token",
    "_token",
    "_wpnonce",
    "_xsrf",
    "authenticity_token",
    "csrfToken",
    "csrf_test_name",
    "csrf_token",
    "csrfmiddlewaretoken",
    "form_token",
    "gorilla.csrf.Token",
];

/// Largest decoded size of a compressed form, in bytes.
const DECODED_MAX: usize = 8 << 20;

/// Parsed form.
pub(crate) struct Form {
    /// The content type, without the boundary.
    kind: Vec<u8>,
    fields: Vec<Field>,
    is_sound: bool,
}

/// Field or file.
struct Field {
    name: Vec<u8>,
    /// Attributes of the value: the file's name, its type, other headers. Of a URL-encoded pair:
    /// the presence of a value.
    about: Vec<(Vec<u8>, Vec<u8>)>,
    is_file: bool,
    /// True if its value has a transfer encoding.
    is_encoded: bool,
    value: Vec<u8>,
}

/// Returns true if the body is a form, by its content type.
pub(crate) fn is_form(headers: &HeaderMap) -> bool {
    media_types(headers).any(|media| media == URLENCODED || media == MULTIPART)
}

/// Returns true if the body is a multipart form, by its content type.
pub(crate) fn is_multipart(headers: &HeaderMap) -> bool {
    media_types(headers).any(|media| media == MULTIPART)
}

const URLENCODED: &[u8] = b"application/x-www-form-urlencoded";
const MULTIPART: &[u8] = b"multipart/form-data";

fn media_types(headers: &HeaderMap) -> impl Iterator<Item = Vec<u8>> {
    headers.get_all(CONTENT_TYPE).iter().map(|line| {
        line.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase()
    })
}

impl Form {
    /// Parses the body by its content type.
    pub(crate) fn read(headers: &HeaderMap, body: &Bytes) -> Option<Self> {
        let mut lines = headers.get_all(CONTENT_TYPE).iter();
        let line = lines.next()?;
        if lines.next().is_some() {
            return None;
        }
        let body = coding::decoded(headers, body, DECODED_MAX.max(body.len()))?;
        let (media, parameters) = parameters(line.as_bytes())?;
        let mut kind = media.clone();
        for (name, value) in parameters.iter().filter(|(name, _)| name != b"boundary") {
            kind.push(b';');
            kind.extend_from_slice(name);
            kind.push(b'=');
            kind.extend_from_slice(value);
        }
        match media.as_slice() {
            URLENCODED => {
                let pairs: Vec<_> =
                    body.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()).map(pair).collect();
                let is_sound = pairs.iter().all(|(_, is_sound)| *is_sound);
                Some(Self { kind, fields: pairs.into_iter().map(|(field, _)| field).collect(), is_sound })
            }
            MULTIPART => {
                let mut boundaries = parameters.iter().filter(|(name, _)| name == b"boundary");
                let (Some((_, boundary)), None) = (boundaries.next(), boundaries.next()) else { return None };
                let is_boundary = (1..=256).contains(&boundary.len())
                    && boundary.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ');
                if !is_boundary {
                    return None;
                }
                Some(Self { kind, fields: parts(&body, boundary)?, is_sound: true })
            }
            _ => None,
        }
    }

    /// Returns true if the body can be parsed in one way only.
    pub(crate) fn is_sound(&self) -> bool {
        self.is_sound
    }

    /// Returns the values of the field `name`, in their order. Files are not fields. `None`: a
    /// value has a transfer encoding.
    pub(crate) fn values(&self, name: &str) -> Option<Vec<&[u8]>> {
        let fields = self.fields.iter().filter(|field| !field.is_file && field.name == name.as_bytes());
        fields.map(|field| (!field.is_encoded).then_some(&*field.value)).collect()
    }

    /// Returns the content type, without the boundary that a browser generates for each submit.
    pub(crate) fn kind(&self) -> &[u8] {
        &self.kind
    }

    /// Adds the fields to a digest, in their order, without those of [`CSRF_FIELDS`].
    pub(crate) fn frame(&self, into: &mut LengthPrefixed) {
        let is_csrf = |field: &&Field| !field.is_file && CSRF_FIELDS.iter().any(|name| name.as_bytes() == field.name);
        let fields = || self.fields.iter().filter(|field| !is_csrf(field));
        into.number(fields().count());
        for field in fields() {
            into.field(&field.name);
            into.number(field.is_file.into());
            into.number(field.about.len());
            for (name, value) in &field.about {
                into.field(name);
                into.field(value);
            }
            into.field(&field.value);
        }
    }
}

/// Parses `a=b`, with escapes decoded as in the URL standard. Also returns true if no escape was
/// broken. "a" and "a=" stay distinct.
fn pair(pair: &[u8]) -> (Field, bool) {
    let at = pair.iter().position(|byte| *byte == b'=');
    let (name, is_sound_name) = unescaped(&pair[..at.unwrap_or(pair.len())]);
    let (value, is_sound_value) = at.map_or((Vec::new(), true), |at| unescaped(&pair[at + 1..]));
    let about = if at.is_some() { vec![(b"=".to_vec(), Vec::new())] } else { Vec::new() };
    (Field { name, about, is_file: false, is_encoded: false, value }, is_sound_name && is_sound_value)
}

fn unescaped(text: &[u8]) -> (Vec<u8>, bool) {
    let mut plain = Vec::with_capacity(text.len());
    let mut is_sound = true;
    let mut at = 0;
    while at < text.len() {
        let digit = |at: usize| text.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        match (text[at], digit(at + 1), digit(at + 2)) {
            (b'+', ..) => plain.push(b' '),
            (b'%', Some(high), Some(low)) => {
                plain.push((high << 4 | low) as u8);
                at += 2;
            }
            (byte, ..) => {
                is_sound &= byte != b'%';
                plain.push(byte);
            }
        }
        at += 1;
    }
    (plain, is_sound)
}

/// Parses the parts between boundaries. A preamble and an epilogue are not part of the form (RFC
/// 2046, 5.1.1).
fn parts(body: &[u8], boundary: &[u8]) -> Option<Vec<Field>> {
    let delimiter = [b"\r\n--", boundary].concat();
    // The first boundary needs no line end before it if the body starts with it.
    let mut next = match body.starts_with(&delimiter[2..]) {
        true => delimiter_end(body, delimiter.len() - 2).map(|end| (0, end)),
        false => None,
    };
    if next.is_none() {
        next = find_delimiter(body, 0, &delimiter);
    }
    let mut fields = Vec::new();
    loop {
        let start = match next?.1 {
            End::Close => return Some(fields),
            End::Part(start) => start,
        };
        // A part without headers has no name, and is not a field of a form.
        let headers_end = start + memchr::memmem::find(&body[start..], b"\r\n\r\n")?;
        let value = headers_end + 4;
        let found = find_delimiter(body, value, &delimiter)?;
        fields.push(part(&body[start..headers_end], &body[value..found.0])?);
        next = Some(found);
    }
}

/// Kind of a boundary.
#[derive(Clone, Copy)]
enum End {
    /// Start of another part; carries the position of its headers.
    Part(usize),
    Close,
}

/// Finds the next boundary that is alone on its line. Returns its position and its kind.
fn find_delimiter(body: &[u8], from: usize, delimiter: &[u8]) -> Option<(usize, End)> {
    memchr::memmem::find_iter(&body[from..], delimiter)
        .map(|at| from + at)
        .find_map(|at| delimiter_end(body, at + delimiter.len()).map(|end| (at, end)))
}

/// Parses the rest of a boundary's line: two hyphens or none, spaces, the end of the line.
fn delimiter_end(body: &[u8], at: usize) -> Option<End> {
    let rest = body.get(at..)?;
    let (is_close, rest) = match rest.strip_prefix(b"--") {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let padding = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    match &rest[padding..] {
        [] if is_close => Some(End::Close),
        [b'\r', b'\n', ..] if is_close => Some(End::Close),
        [b'\r', b'\n', ..] => Some(End::Part(body.len() - rest.len() + padding + 2)),
        _ => None,
    }
}

fn part(head: &[u8], value: &[u8]) -> Option<Field> {
    let mut headers: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for line in lines_of(head) {
        // A folded line continues the one before.
        if line.first().is_some_and(|byte| matches!(byte, b' ' | b'\t')) {
            let (_, value) = headers.last_mut()?;
            value.push(b' ');
            value.extend_from_slice(line.trim_ascii());
            continue;
        }
        let colon = line.iter().position(|byte| *byte == b':')?;
        headers.push((line[..colon].trim_ascii().to_ascii_lowercase(), line[colon + 1..].trim_ascii().to_vec()));
    }
    let mut dispositions = headers.iter().filter(|(name, _)| name == b"content-disposition");
    let (Some((_, disposition)), None) = (dispositions.next(), dispositions.next()) else { return None };
    let (kind, parameters) = parameters(disposition)?;
    let mut names = parameters.iter().filter(|(name, _)| name == b"name");
    let (Some((_, name)), None, b"form-data") = (names.next(), names.next(), kind.as_slice()) else { return None };
    let is_file = parameters.iter().any(|(name, _)| name == b"filename" || name == b"filename*");
    let is_plain = |value: &[u8]| matches!(value.to_ascii_lowercase().as_slice(), b"7bit" | b"8bit" | b"binary");
    let is_encoded = headers.iter().any(|(name, value)| name == b"content-transfer-encoding" && !is_plain(value));
    let name = name.clone();
    let mut about: Vec<_> = parameters.into_iter().filter(|(name, _)| name != b"name").collect();
    about.extend(
        headers
            .into_iter()
            .filter(|(name, _)| name != b"content-disposition")
            .map(|(name, value)| ([name, b":".to_vec()].concat(), value)),
    );
    Some(Field { name, about, is_file, is_encoded, value: value.to_vec() })
}

/// Iterates over lines that end in CR LF.
fn lines_of(mut head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut is_over = false;
    std::iter::from_fn(move || {
        if is_over {
            return None;
        }
        let at = memchr::memmem::find(head, b"\r\n");
        let line = &head[..at.unwrap_or(head.len())];
        match at {
            Some(at) => head = &head[at + 2..],
            None => is_over = true,
        }
        Some(line)
    })
}

type Parameters = Vec<(Vec<u8>, Vec<u8>)>;

/// Parses `value; name=value; name="value"`: the first value and the names in lower case. A quoted
/// string may contain a semicolon and an escaped quote. A backslash before any other character is
/// literal, since old browsers send Windows paths. `None`: a quote that is not closed, or a
/// parameter without a value.
fn parameters(line: &[u8]) -> Option<(Vec<u8>, Parameters)> {
    let end = line.iter().position(|byte| *byte == b';').unwrap_or(line.len());
    let first = line[..end].trim_ascii().to_ascii_lowercase();
    let mut rest = &line[end..];
    let mut parameters = Vec::new();
    while let Some((b';', after)) = rest.split_first() {
        rest = after.trim_ascii_start();
        if rest.is_empty() || rest[0] == b';' {
            continue;
        }
        let equals = rest.iter().position(|byte| matches!(byte, b'=' | b';'))?;
        if rest[equals] != b'=' {
            return None;
        }
        let name = rest[..equals].trim_ascii().to_ascii_lowercase();
        rest = rest[equals + 1..].trim_ascii_start();
        let value = match rest.split_first() {
            Some((b'"', inside)) => {
                let (value, after) = quoted(inside)?;
                rest = after.trim_ascii_start();
                if !matches!(rest.first(), None | Some(b';')) {
                    return None;
                }
                value
            }
            _ => {
                let end = rest.iter().position(|byte| *byte == b';').unwrap_or(rest.len());
                let value = rest[..end].trim_ascii().to_vec();
                rest = &rest[end..];
                value
            }
        };
        parameters.push((name, value));
    }
    Some((first, parameters))
}

/// Parses up to the closing quote.
fn quoted(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut value = Vec::new();
    let mut at = 0;
    loop {
        match (*text.get(at)?, text.get(at + 1)) {
            (b'"', _) => return Some((value, &text[at + 1..])),
            (b'\\', Some(escaped @ (b'"' | b'\\'))) => {
                value.push(*escaped);
                at += 1;
            }
            (byte, _) => value.push(byte),
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderMap;
    use http::header::CONTENT_TYPE;

    use super::Form;

    /// Name, true if it is a file, and value.
    type Fields = Vec<(String, bool, Vec<u8>)>;

    fn ours(kind: &str, body: &str) -> Option<Fields> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, kind.parse().expect("a value"));
        let form = Form::read(&headers, &Bytes::from(body.to_owned()))?;
        let text = |name: Vec<u8>| String::from_utf8(name).expect("text");
        Some(form.fields.into_iter().map(|field| (text(field.name), field.is_file, field.value)).collect())
    }

    /// Parses with an independent parser.
    async fn theirs(kind: &str, body: &str) -> Option<Fields> {
        let boundary = multer::parse_boundary(kind).ok()?;
        let body = Bytes::from(body.to_owned());
        let stream = futures_util::stream::once(async { Ok::<_, std::io::Error>(body) });
        let mut parts = multer::Multipart::new(stream, boundary);
        let mut fields = Vec::new();
        while let Some(field) = parts.next_field().await.ok()? {
            let (name, is_file) = (field.name()?.to_owned(), field.file_name().is_some());
            fields.push((name, is_file, field.bytes().await.ok()?.to_vec()));
        }
        Some(fields)
    }

    const ITEM: &str = "Content-Disposition: form-data; name=\"item\"\r\n\r\ntea";

    #[tokio::test]
    async fn form_of_parts_is_read_as_another_parser_reads_it() {
        let plain = format!("--b\r\n{ITEM}\r\n--b--\r\n");
        let spelled = |head: &str| format!("--b\r\n{head}\r\n\r\ntea\r\n--b--\r\n");
        let kind = "multipart/form-data; boundary=b";
        for (what, kind, body) in [
            ("plain", kind, plain.clone()),
            ("a quoted boundary", "multipart/form-data; boundary=\"b\"", plain.clone()),
            ("the type in capital letters", "Multipart/Form-Data; BOUNDARY=b", plain.clone()),
            ("a name without quotes", kind, spelled("Content-Disposition: form-data; name=item")),
            ("a header's name in lower case", kind, spelled("content-disposition: form-data; name=\"item\"")),
            ("no space", kind, spelled("Content-Disposition:form-data;name=\"item\"")),
            ("a preamble", kind, format!("This is a form.\r\n{plain}")),
            ("an epilogue", kind, format!("{plain}The end.")),
            ("no line end at the end", kind, plain.trim_end().to_owned()),
            ("two fields", kind, format!("--b\r\n{ITEM}\r\n{plain}")),
            (
                "a file",
                kind,
                spelled("Content-Disposition: form-data; name=\"item\"; filename=\"p.png\"\r\nContent-Type: image/png"),
            ),
            ("a file without quotes", kind, spelled("Content-Disposition: form-data; name=item; filename=p.png")),
            ("an empty field", kind, plain.replace("tea", "")),
            ("a value with line ends", kind, plain.replace("tea", "a\r\n\r\n--c\r\n")),
            ("an escaped quote", kind, spelled("Content-Disposition: form-data; name=\"a\\\"b\"")),
        ] {
            let read = ours(kind, &body);
            assert!(read.is_some(), "{what} is read");
            assert_eq!(read, theirs(kind, &body).await, "{what}");
        }
        // Neither parses a truncated form, or one without a boundary.
        for (kind, body) in [(kind, &plain[..plain.len() - 5]), ("multipart/form-data", &plain[..]), (kind, "")] {
            assert_eq!((ours(kind, body), theirs(kind, body).await), (None, None), "{body:?}");
        }
    }
}

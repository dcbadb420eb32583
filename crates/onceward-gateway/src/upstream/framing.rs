//! Response framing: the end of the body, its declared length, and the reuse of its connection.

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use onceward::wire;

/// Framing that the head of a response declares (RFC 9112, 6.3).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Framing {
    /// Length to forward, as one number.
    pub(crate) length: Option<u64>,
    /// The body ends with its connection, so that a truncated body looks like a whole one.
    pub(crate) ends_with_connection: bool,
    /// Only the next response can follow on the connection.
    pub(crate) is_reusable: bool,
}

impl Framing {
    /// Reads the framing of a final response to a request with this method.
    ///
    /// # Errors
    ///
    /// A transfer coding other than a single `chunked`: the body cannot be decoded.
    pub(crate) fn of(method: &Method, status: StatusCode, headers: &HeaderMap) -> Result<Self, &'static str> {
        let is_bare = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let has_body = !is_bare && *method != Method::HEAD;
        let codings: Vec<_> = wire::names_in(headers, &TRANSFER_ENCODING).collect();
        let is_coded = headers.contains_key(TRANSFER_ENCODING);
        if has_body && is_coded && !matches!(&*codings, [one] if one.eq_ignore_ascii_case("chunked")) {
            return Err("its Transfer-Encoding is not chunked alone, and no other coding is understood");
        }
        let length = length(headers);
        let has_length = headers.contains_key(CONTENT_LENGTH);
        Ok(Self {
            // Chunks delimit the body; a 204 has no length (RFC 9110, 8.6).
            length: length.filter(|_| !is_coded && status != StatusCode::NO_CONTENT),
            ends_with_connection: has_body && !is_coded && !has_length,
            is_reusable: match () {
                () if is_bare => !claims_body(headers),
                () => !(is_coded && has_length),
            },
        })
    }

    /// Returns the headers with the length of this framing, and no other length.
    pub(crate) fn applied_to(&self, headers: HeaderMap) -> HeaderMap {
        let own = self.length.map(HeaderValue::from);
        if headers.get_all(CONTENT_LENGTH).iter().eq(own.iter()) {
            return headers;
        }
        // Rebuilt, because a removal would change the order of the other headers.
        let mut own = own;
        let mut framed = HeaderMap::with_capacity(headers.len());
        for (name, value) in &headers {
            if *name != CONTENT_LENGTH {
                framed.append(name.clone(), value.clone());
            } else if let Some(own) = own.take() {
                framed.append(CONTENT_LENGTH, own);
            }
        }
        framed
    }
}

/// Returns `true` if the head of a response that has no body declares one.
pub(crate) fn claims_body(headers: &HeaderMap) -> bool {
    let is_long = headers.contains_key(CONTENT_LENGTH) && length(headers) != Some(0);
    is_long || headers.contains_key(TRANSFER_ENCODING)
}

/// Returns the length that all values of `Content-Length` agree on.
fn length(headers: &HeaderMap) -> Option<u64> {
    let mut found = None;
    for line in headers.get_all(CONTENT_LENGTH) {
        for value in line.to_str().ok()?.split(',').map(str::trim) {
            let is_digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
            let value = value.parse::<u64>().ok().filter(|_| is_digits)?;
            if found.replace(value).is_some_and(|before| before != value) {
                return None;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: u16, lines: &[(&'static str, &'static str)]) -> Option<(Option<u64>, bool, bool)> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let framing = Framing::of(&Method::POST, StatusCode::from_u16(status).unwrap(), &headers).ok()?;
        Some((framing.length, framing.ends_with_connection, framing.is_reusable))
    }

    #[test]
    fn framing_of_a_response_follows_rfc_9112() {
        let (length, coding) = ("content-length", "transfer-encoding");
        for (status, lines, expected) in [
            (200, vec![], Some((None, true, true))),
            (200, vec![(length, "5")], Some((Some(5), false, true))),
            (200, vec![(length, "5, 5")], Some((Some(5), false, true))),
            (200, vec![(length, "5"), (length, "5")], Some((Some(5), false, true))),
            (200, vec![(coding, "chunked")], Some((None, false, true))),
            (200, vec![(coding, "Chunked"), (length, "5")], Some((None, false, false))),
            (200, vec![(coding, "gzip, chunked")], None),
            (200, vec![(coding, "gzip"), (coding, "chunked")], None),
            (200, vec![(coding, "chunked, chunked")], None),
            (200, vec![(coding, "identity")], None),
            (200, vec![(coding, "")], None),
            (204, vec![], Some((None, false, true))),
            (204, vec![(length, "0")], Some((None, false, true))),
            (204, vec![(length, "5")], Some((None, false, false))),
            (204, vec![(coding, "chunked")], Some((None, false, false))),
            (304, vec![(length, "5")], Some((Some(5), false, false))),
            (304, vec![(coding, "gzip, chunked")], Some((None, false, false))),
        ] {
            assert_eq!(of(status, &lines), expected, "{status} {lines:?}");
        }
    }
}

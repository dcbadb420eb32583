//! Content codings of request bodies, decoded to compare fields or members.

use std::borrow::Cow;
use std::io::Read;

use bytes::Bytes;
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::HeaderMap;
use http::header::CONTENT_ENCODING;

use crate::wire::lines;

/// Decodes the content codings of a body. `None`: a coding is not known, or the body is damaged, or
/// it decodes to more than `most` bytes.
pub(crate) fn decoded<'b>(headers: &HeaderMap, body: &'b Bytes, most: usize) -> Option<Cow<'b, [u8]>> {
    let mut codings = Vec::new();
    for line in lines(headers, &CONTENT_ENCODING) {
        codings.extend(line.to_str().ok()?.split(',').map(|coding| coding.trim().to_ascii_lowercase()));
    }
    codings.retain(|coding| !matches!(coding.as_str(), "" | "identity"));
    if codings.len() > 2 {
        return None;
    }
    let mut plain = Cow::Borrowed(&body[..]);
    // The last coding was applied last.
    for coding in codings.iter().rev() {
        plain = Cow::Owned(match coding.as_str() {
            "gzip" | "x-gzip" => all(MultiGzDecoder::new(&plain[..]), most)?,
            // With a zlib header, as in the standard, or without, as some clients send it.
            "deflate" => {
                all(ZlibDecoder::new(&plain[..]), most).or_else(|| all(DeflateDecoder::new(&plain[..]), most))?
            }
            _ => return None,
        });
    }
    Some(plain)
}

fn all(decoder: impl Read, most: usize) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    let limit = u64::try_from(most).ok()?.saturating_add(1);
    decoder.take(limit).read_to_end(&mut plain).ok()?;
    (plain.len() <= most).then_some(plain)
}

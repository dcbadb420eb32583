//! Content codings: checks if a client accepts the coding of a stored response, and decodes that
//! response.

use std::pin::Pin;
use std::sync::Arc;

use async_compression::tokio::bufread::{BrotliDecoder, DeflateDecoder, GzipDecoder, ZlibDecoder, ZstdDecoder};
use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, ETAG, HeaderMap, HeaderName, HeaderValue, VARY};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::engine::Boxed;
use crate::reply::StoredResponse;
use crate::wire;

/// Bytes after which a decoder yields to other tasks.
const SLICE: usize = 256 << 10;

/// Digests of the body in its coded form (RFC 9530, and older).
const DIGESTS: [&str; 4] = ["content-digest", "repr-digest", "digest", "content-md5"];

/// Content codings that a request accepts: all, if it has no `Accept-Encoding` (RFC 9110, 12.5.3).
#[derive(Clone, Debug, Default)]
pub(crate) struct Accepted(Option<HeaderValue>);

impl Accepted {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut lines = wire::lines(headers, &ACCEPT_ENCODING);
        let Some(first) = lines.next() else { return Self(None) };
        match lines.next() {
            None => Self(Some(first.clone())),
            Some(_) => {
                let all: Vec<&[u8]> = wire::lines(headers, &ACCEPT_ENCODING).map(HeaderValue::as_bytes).collect();
                Self(HeaderValue::from_bytes(&all.join(&b","[..])).ok())
            }
        }
    }

    fn takes(&self, coding: &str) -> bool {
        let Some(line) = &self.0 else { return true };
        let same = |name: &str| canonical(&name.trim().to_ascii_lowercase()) == coding;
        let mut of_any = false;
        for item in line.to_str().unwrap_or_default().split(',') {
            let (name, weight) = item.split_once(';').unwrap_or((item, ""));
            let weight = weight.trim().strip_prefix(['q', 'Q']).map(|weight| weight.trim_start_matches([' ', '=']));
            let is_taken = weight.and_then(|weight| weight.trim().parse().ok()).unwrap_or(1.0_f32) > 0.0;
            if same(name) {
                return is_taken;
            }
            of_any |= name.trim() == "*" && is_taken;
        }
        of_any
    }

    /// Returns the response in a form that the request accepts: decoded, if its coding is excluded
    /// and can be decoded within `limit` bytes; else `None`.
    pub(crate) fn decode(
        &self,
        reply: &Arc<StoredResponse>,
        limit: usize,
    ) -> Option<Boxed<'static, Option<Arc<StoredResponse>>>> {
        let codings = codings(&reply.headers);
        if codings.is_empty() || codings.iter().all(|coding| self.takes(coding)) {
            return None;
        }
        let reply = Arc::clone(reply);
        Some(Box::pin(async move {
            let body = decoded(&codings, reply.body.clone(), limit).await?;
            Some(Arc::new(StoredResponse {
                headers: headers_of_decoded(&reply.headers, body.len()),
                body,
                ..(*reply).clone()
            }))
        }))
    }
}

fn canonical(coding: &str) -> &str {
    coding.strip_prefix("x-").unwrap_or(coding)
}

/// Returns the codings of a body, in the order in which they were applied.
fn codings(headers: &[(HeaderName, HeaderValue)]) -> Vec<String> {
    let lines = headers.iter().filter(|(name, _)| *name == CONTENT_ENCODING);
    lines
        .filter_map(|(_, line)| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(|coding| canonical(&coding.trim().to_ascii_lowercase()).to_owned())
        .filter(|coding| !coding.is_empty() && coding != "identity")
        .collect()
}

/// Decodes the body of a message with these headers. `None`: its coding is not known, or the body
/// is damaged or too large.
pub(crate) async fn decoded_body(headers: &HeaderMap, body: Bytes, limit: usize) -> Option<Bytes> {
    let lines: Vec<_> = wire::lines(headers, &CONTENT_ENCODING).map(|line| (CONTENT_ENCODING, line.clone())).collect();
    decoded(&codings(&lines), body, limit).await
}

async fn decoded(codings: &[String], mut body: Bytes, limit: usize) -> Option<Bytes> {
    for coding in codings.iter().rev() {
        let coded = body.as_ref();
        body = match coding.as_str() {
            "gzip" => {
                let mut decoder = GzipDecoder::new(coded);
                decoder.multiple_members(true);
                read(decoder, limit).await?
            }
            "br" => read(BrotliDecoder::new(coded), limit).await?,
            "zstd" => read(ZstdDecoder::new(coded), limit).await?,
            // By RFC 9110 this is the zlib format; some servers send raw deflate.
            "deflate" => match read(ZlibDecoder::new(coded), limit).await {
                Some(plain) => plain,
                None => read(DeflateDecoder::new(coded), limit).await?,
            },
            _ => return None,
        };
    }
    Some(body)
}

async fn read(decoder: impl AsyncRead + Send, limit: usize) -> Option<Bytes> {
    let mut decoder: Pin<Box<dyn AsyncRead + Send + '_>> = Box::pin(decoder);
    let mut plain = Vec::new();
    loop {
        // One byte more than the limit shows that there is more.
        let most = SLICE.min(limit + 1 - plain.len());
        let read = (&mut decoder).take(most as u64).read_to_end(&mut plain).await.ok()?;
        if plain.len() > limit {
            return None;
        }
        if read < most {
            return Some(plain.into());
        }
        tokio::task::yield_now().await;
    }
}

/// Returns the headers of a decoded response: without those that describe the coded bytes.
fn headers_of_decoded(headers: &[(HeaderName, HeaderValue)], length: usize) -> Vec<(HeaderName, HeaderValue)> {
    let mut plain: Vec<_> = headers
        .iter()
        .filter(|(name, _)| *name != CONTENT_ENCODING && !DIGESTS.contains(&name.as_str()))
        .cloned()
        .collect();
    for (name, value) in &mut plain {
        if *name == CONTENT_LENGTH {
            *value = HeaderValue::from(length);
        } else if *name == ETAG
            && !value.as_bytes().starts_with(b"W/")
            && let Ok(weak) = HeaderValue::from_bytes(&[b"W/", value.as_bytes()].concat())
        {
            // Semantically equal to the coded response, no longer byte by byte.
            *value = weak;
        }
    }
    plain.push((VARY, HeaderValue::from_name(ACCEPT_ENCODING)));
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_encoding_excludes_what_it_does_not_name() {
        for (accept, coding, takes) in [
            (None, "br", true),
            (Some(""), "gzip", false),
            (Some("gzip"), "gzip", true),
            (Some("GZIP"), "gzip", true),
            (Some("X-GZip"), "gzip", true),
            (Some("gzip"), "br", false),
            (Some("identity"), "br", false),
            (Some("*"), "br", true),
            (Some("gzip;q=0, *"), "gzip", false),
            (Some("gzip;q=0, *"), "br", true),
            (Some("*;q=0"), "br", false),
            (Some("br;q=0.001"), "br", true),
            (Some("br; q=0.0"), "br", false),
            (Some("br ; Q=1"), "br", true),
        ] {
            let accepted = Accepted(accept.map(HeaderValue::from_static));
            assert_eq!(accepted.takes(coding), takes, "{accept:?} {coding}");
        }
    }
}

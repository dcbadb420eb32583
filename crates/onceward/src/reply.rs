//! Stored response, and its replay.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, DATE, HeaderMap, HeaderName, HeaderValue, LOCATION};
use http::{Response, StatusCode};

use crate::fingerprint::Fingerprint;
use crate::wire;

/// Response as it is stored: the status, the end-to-end headers that a replay has (in their order,
/// with duplicates), and the body. Headers that a replay leaves out, such as `Set-Cookie`, are not
/// stored at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredResponse {
    /// The status.
    pub status: StatusCode,
    /// The headers, in order.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The whole body.
    pub body: Bytes,
    /// Fingerprint of the same request at the `Location` of this response, if that is a 307 or a
    /// 308.
    pub redirect: Option<Fingerprint>,
}

impl StoredResponse {
    /// Builds the stored form of a whole response.
    pub fn keep(status: StatusCode, headers: &HeaderMap, body: Bytes) -> Self {
        let mut kept = Vec::with_capacity(headers.len());
        kept.extend(
            wire::end_to_end(headers)
                .filter(|(name, _)| !wire::is_left_out_of_replays(name))
                .map(|(name, value)| (name.clone(), value.clone())),
        );
        let mut reply = Self { status, headers: kept, body, redirect: None };
        reply.compact();
        reply
    }

    /// Moves headers and body into one buffer of exactly their size. Otherwise a response that is
    /// stored for days would hold on to many small and half-empty buffers between those of
    /// short-lived requests, and slow allocations down.
    fn compact(&mut self) {
        let length = self.headers.iter().map(|(_, value)| value.len()).sum::<usize>() + self.body.len();
        let mut gathered = Vec::with_capacity(length);
        self.headers.iter().for_each(|(_, value)| gathered.extend_from_slice(value.as_bytes()));
        gathered.extend_from_slice(&self.body);
        let mut gathered = Bytes::from(gathered);
        for (_, value) in &mut self.headers {
            // Bytes of a valid header value stay valid.
            if let Ok(mut own) = HeaderValue::from_maybe_shared(gathered.split_to(value.len())) {
                own.set_sensitive(value.is_sensitive());
                *value = own;
            }
        }
        self.body = gathered;
    }

    /// Returns the response again, without `Date`, which the server sets, and with `Cache-Control:
    /// no-store`: the caching headers of the first response do not apply to a replay.
    pub fn replay(&self) -> Response<Bytes> {
        let mut response = Response::new(self.body.clone());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.reserve(self.headers.len() + 4);
        for (name, value) in &self.headers {
            if *name != CACHE_CONTROL && *name != DATE {
                headers.append(name.clone(), value.clone());
            }
        }
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    /// Returns the head of a response that is not stored.
    pub fn head(status: StatusCode, headers: &HeaderMap) -> Head {
        Head { status, location: headers.get(LOCATION).and_then(|location| location.to_str().ok()).map(str::to_owned) }
    }

    /// Returns its approximate memory use, in bytes.
    pub fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 72).sum();
        size_of::<Self>() + headers + self.body.len()
    }
}

/// Head of a response that is not stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its status.
    pub status: StatusCode,
    /// Its `Location`.
    pub location: Option<String>,
}

//! Wire contract: header names, outcomes, and the scope of headers.

use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Header that carries the key.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Header of every keyed response that states its outcome.
pub const IDEMPOTENCY_OUTCOME: HeaderName = HeaderName::from_static("idempotency-outcome");
/// Header with the value `true` on a replay.
pub const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
/// Header that passes a claim to the upstream: record and attempt, opaque and unguessable.
pub const ONCEWARD_CLAIM: HeaderName = HeaderName::from_static("onceward-claim");
/// Header of preferences (RFC 7240).
pub const PREFER: HeaderName = HeaderName::from_static("prefer");
/// Header of applied preferences (RFC 7240).
pub const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// Default mount path of the public paths.
pub const ENDPOINTS: &str = "/.idempotency";

/// Outcome of a keyed request: the value of `Idempotency-Outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// Executed now, and the response is stored.
    Stored,
    /// Executed earlier; this is the stored response.
    Replayed,
    /// Not executed, or declared so by its status: the key is free.
    Released,
    /// Executed, but the response is not stored, or not confirmed as stored.
    NotStored,
    /// Another request with the key is executing.
    InFlight,
    /// The key was used with a different request before.
    Mismatch,
    /// The request may or may not have been executed.
    Unknown,
    /// Executed, but the response's retention is over.
    Expired,
    /// Refused before it could execute.
    Rejected,
}

impl Outcome {
    /// All outcomes, in the order of the docs.
    pub const ALL: [Self; 9] = [
        Self::Stored,
        Self::Replayed,
        Self::Released,
        Self::NotStored,
        Self::InFlight,
        Self::Mismatch,
        Self::Unknown,
        Self::Expired,
        Self::Rejected,
    ];

    /// Returns the value used in the header.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Replayed => "replayed",
            Self::Released => "released",
            Self::NotStored => "not-stored",
            Self::InFlight => "in-flight",
            Self::Mismatch => "mismatch",
            Self::Unknown => "unknown",
            Self::Expired => "expired",
            Self::Rejected => "rejected",
        }
    }

    /// Returns the outcome in a response's headers, if it is a known one.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let value = line(headers, &IDEMPOTENCY_OUTCOME)?.as_bytes();
        Self::ALL.into_iter().find(|outcome| outcome.as_str().as_bytes() == value)
    }

    /// Returns the header value.
    pub fn value(self) -> HeaderValue {
        HeaderValue::from_static(self.as_str())
    }
}

/// Iterates over the lines of a header. Each name is compared: for the few headers of a message
/// that is faster than the hash lookup of a map, and many lookups are made.
pub(crate) fn lines<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h HeaderValue> {
    headers.iter().filter(move |(its, _)| *its == name).map(|(_, value)| value)
}

/// Returns the first line of a header.
pub(crate) fn line<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    lines(headers, name).next()
}

/// Iterates over the tokens of all comma-separated lines of a header, such as `Connection`.
pub fn names_in<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    lines(headers, name)
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

/// Returns true if a header is hop-by-hop (RFC 9110, 7.6.1), by its own name.
pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::CONNECTION
            | header::PROXY_AUTHENTICATE
            | header::PROXY_AUTHORIZATION
            | header::TE
            | header::TRAILER
            | header::TRANSFER_ENCODING
            | header::UPGRADE
    ) || matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings")
}

/// Iterates over the end-to-end headers of a message, in their order: without the hop-by-hop
/// headers, which are known by name or named by `Connection`.
pub fn end_to_end(headers: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    let named: Vec<&str> = names_in(headers, &header::CONNECTION).collect();
    headers.iter().filter(move |(name, _)| {
        !is_hop_by_hop(name) && !named.iter().any(|option| option.eq_ignore_ascii_case(name.as_str()))
    })
}

/// Returns true if a replay leaves this end-to-end header out: it belongs to the moment, the
/// session or the origin of the first request, not to the response. `Preference-Applied` stays: it
/// says how the service understood the request.
pub fn is_left_out_of_replays(name: &HeaderName) -> bool {
    matches!(*name, header::DATE | header::SET_COOKIE | header::WWW_AUTHENTICATE)
        || matches!(name.as_str(), "idempotency-outcome" | "idempotency-replayed")
        || name.as_str().starts_with("access-control-")
}

/// Returns the time that the client is ready to wait, by `Prefer: wait=N` (RFC 7240). The first
/// `wait` applies.
pub fn prefer_wait(headers: &HeaderMap) -> Option<Duration> {
    preferences(headers).find_map(wait_of).map(Duration::from_secs)
}

/// Returns the `Prefer` to pass on to the upstream: without `wait`, which is honoured here. `None`:
/// nothing is left of it.
pub fn prefer_without_wait(headers: &HeaderMap) -> Option<HeaderValue> {
    let rest: Vec<&[u8]> = preferences(headers).filter(|preference| wait_of(preference).is_none()).collect();
    match rest.is_empty() {
        true => None,
        false => HeaderValue::from_bytes(&rest.join(&b", "[..])).ok(),
    }
}

/// Iterates over the preferences of all lines of `Prefer`, each with its parameters.
fn preferences(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers
        .get_all(PREFER)
        .iter()
        .flat_map(|line| unquoted_split(line.as_bytes(), b','))
        .map(<[u8]>::trim_ascii)
        .filter(|preference| !preference.is_empty())
}

fn wait_of(preference: &[u8]) -> Option<u64> {
    let preference = unquoted_split(preference, b';').next()?;
    let at = preference.iter().position(|byte| *byte == b'=')?;
    let (name, value) = (preference[..at].trim_ascii(), preference[at + 1..].trim_ascii());
    let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    match name.eq_ignore_ascii_case(b"wait") && value.iter().all(u8::is_ascii_digit) {
        true => str::from_utf8(value).ok()?.parse().ok(),
        false => None,
    }
}

/// Splits a header's value at a separator, except within a quoted string (RFC 9110, 5.6.4).
fn unquoted_split(value: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    value.split(move |byte| {
        if is_escaped {
            is_escaped = false;
            return false;
        }
        match byte {
            b'\\' => is_escaped = is_quoted,
            b'"' => is_quoted = !is_quoted,
            _ => return !is_quoted && *byte == separator,
        }
        false
    })
}

/// Returns the headers without those of some names. The order of the others stays.
#[cfg(feature = "layer")]
pub(crate) fn without(headers: &HeaderMap, is_left_out: impl Fn(&HeaderName) -> bool) -> HeaderMap {
    let mut others = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers.iter().filter(|(name, _)| !is_left_out(name)) {
        others.append(name.clone(), value.clone());
    }
    others
}

//! Selects the headers to forward, and adds the gateway's own.

use http::header::{CONNECTION, EXPECT, HOST, TE, TRAILER, UPGRADE, VIA};
use http::request;
use http::{HeaderMap, HeaderName, HeaderValue};
use onceward::wire::{self, ONCEWARD_CLAIM, PREFER};

use crate::config::Host;
use crate::forwarded::{self, Sender};
use crate::loops::Mark;

const OUR_VIA: HeaderValue = HeaderValue::from_static("1.1 onceward");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// Context of a forwarded request, from which headers are added to the client's own.
pub(crate) struct Hop<'a> {
    /// Claim of a keyed request.
    pub(crate) claim: Option<HeaderValue>,
    /// Protocol to upgrade the connection to.
    pub(crate) upgrade: Option<&'a HeaderValue>,
    /// `Host` of the upstream's URL.
    pub(crate) upstream: &'a HeaderValue,
    /// Policy for the `Host` that the upstream receives.
    pub(crate) host: Host,
}

/// Returns the headers of a request to the upstream: the client's, in their order.
pub(crate) fn to_upstream(request: &request::Parts, hop: &Hop<'_>) -> HeaderMap {
    let is_keyed = hop.claim.is_some();
    let clients = &request.headers;
    let mut headers = HeaderMap::with_capacity(clients.len() + 8);
    // An absolute target takes precedence over the header (RFC 9112, 3.2.2).
    let asked = match request.uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => clients.get(HOST).cloned(),
    };
    let host = match hop.host {
        Host::Preserve => asked.clone().unwrap_or_else(|| hop.upstream.clone()),
        Host::Upstream => hop.upstream.clone(),
    };
    headers.insert(HOST, host);
    for (name, value) in wire::end_to_end(clients) {
        // `Expect` is handled here, as is `Prefer: wait` of a keyed request.
        let is_answered = *name == HOST || *name == EXPECT || *name == PREFER && is_keyed;
        if !is_answered && !forwarded::is_forwarding(name) && !is_ours(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    if is_keyed && let Some(preferences) = wire::prefer_without_wait(clients) {
        headers.insert(PREFER, preferences);
    }
    // Requests that the gateway makes itself have no sender.
    if let Some(sender) = request.extensions.get::<Sender>() {
        forwarded::describe(*sender, clients, asked.as_ref(), &mut headers);
    }
    if let Some(mark) = request.extensions.get::<Mark>() {
        mark.write(clients, &mut headers);
    }
    headers.append(VIA, OUR_VIA);
    if let Some(claim) = &hop.claim {
        headers.insert(ONCEWARD_CLAIM, claim.clone());
    }
    if let Some(protocol) = hop.upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol.clone());
    } else if !is_keyed {
        // Only if nothing is stored: a stored response has no trailers.
        if wire::names_in(clients, &TE).any(|coding| coding.eq_ignore_ascii_case("trailers")) {
            headers.insert(TE, TRAILERS);
            headers.insert(CONNECTION, HeaderValue::from_static("te"));
        }
        announce_trailers(clients, &mut headers);
    }
    headers
}

/// Returns the headers of a response to the client.
pub(crate) fn to_client(upstreams: &HeaderMap, is_keyed: bool) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(upstreams.len() + 2);
    for (name, value) in wire::end_to_end(upstreams) {
        headers.append(name.clone(), value.clone());
    }
    headers.append(VIA, OUR_VIA);
    if !is_keyed {
        announce_trailers(upstreams, &mut headers);
    }
    headers
}

/// Returns the trailers of a request, without names that are reserved for the gateway and without a
/// key, which is valid only as a header.
pub(crate) fn trailers_to_upstream(trailers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::with_capacity(trailers.len());
    for (name, value) in trailers.iter().filter(|(name, _)| !is_ours(name) && **name != wire::IDEMPOTENCY_KEY) {
        kept.append(name.clone(), value.clone());
    }
    kept
}

/// Copies `Trailer`. hyper sends only the trailers that it announces.
fn announce_trailers(from: &HeaderMap, to: &mut HeaderMap) {
    for line in from.get_all(TRAILER) {
        to.append(TRAILER, line.clone());
    }
}

/// Returns `true` if a client must not send this name to the upstream. That covers reserved names,
/// also as CGI and similar interfaces read them: there an underscore equals a hyphen.
fn is_ours(name: &HeaderName) -> bool {
    let name = name.as_str();
    let plain = name.replace('_', "-");
    plain.starts_with("onceward-") || name.contains('_') && plain == "idempotency-key"
}

//! Re-authorizes replays: a stored response is returned only to callers whom the upstream still
//! authorizes.

use std::num::NonZeroUsize;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, COOKIE, HeaderMap, HeaderName};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use lru::LruCache;
use onceward::layer::FromRecord;
use onceward::policy::Policy;
use onceward::principal::{PrincipalPart, signed_scheme};
use onceward::problem::{Code, Executed, Problem};
use onceward::wire::{self, Outcome};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tower_service::Service;

use crate::app::Out;
use crate::config::AuthorizeReplays;
use crate::forwarded::Sender;
use crate::upstream::{Forwarder, FromUpstream, Own};

/// Duration for which an authorization by the upstream is cached.
const YES_FOR: Duration = Duration::from_secs(5);
/// Upper bound on cached callers.
const CALLERS_MAX: NonZeroUsize = NonZeroUsize::new(16_384).expect("more than none");
/// Headers that carry a proof for one request.
const PROOFS: [&str; 3] = ["dpop", "signature", "signature-input"];

/// Credentials of a request, held until it is known whether the response comes from a record.
pub(crate) struct Shown {
    headers: HeaderMap,
    sender: Option<Sender>,
    caller: u128,
}

/// Asks the upstream to authorize callers.
pub(crate) struct Authorizer {
    forwarder: Forwarder<Empty<Bytes>>,
    endpoints: String,
    /// Cached authorizations by a hash of target and credentials, never by a credential itself.
    let_in: Mutex<LruCache<u128, Instant>>,
    seeds: [std::hash::RandomState; 2],
}

impl Authorizer {
    pub(crate) fn new(forwarder: Forwarder<Empty<Bytes>>, endpoints: String) -> Self {
        let let_in = Mutex::new(LruCache::new(CALLERS_MAX));
        Self { forwarder, endpoints, let_in, seeds: Default::default() }
    }

    /// Copies the credentials that identify the caller of a request.
    pub(crate) fn shown<B>(&self, target: &AuthorizeReplays, policy: &Policy, request: &Request<B>) -> Shown {
        let headers = request.headers();
        let names: Vec<&HeaderName> = policy.principal.parts().iter().filter_map(named_header).collect();
        let mut named: Vec<(&str, &[u8])> = headers
            .iter()
            .filter(|(name, _)| {
                *name == AUTHORIZATION
                    || *name == COOKIE
                    || *name == header::HOST
                    || names.contains(name)
                    || policy.credentials.headers.contains(name)
            })
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect();
        named.sort_unstable();
        let whole = (&target.method, target.target.as_str(), named);
        let [high, low] = [0, 1].map(|at| u128::from(std::hash::BuildHasher::hash_one(&self.seeds[at], &whole)));
        Shown { headers: headers.clone(), sender: request.extensions().get().copied(), caller: high << 64 | low }
    }

    /// Returns the response if the caller may see it, else the upstream's refusal.
    pub(crate) async fn check(
        &self,
        target: &AuthorizeReplays,
        shown: Shown,
        response: Response<Out>,
    ) -> Response<Out> {
        // This rejection may contain the `Location` of the first response.
        let is_head =
            response.status() == StatusCode::CONFLICT && Outcome::of(response.headers()) == Some(Outcome::NotStored);
        let tells = is_head || response.extensions().get::<FromRecord>().is_some();
        if !tells {
            return response;
        }
        if self.let_in.lock().get(&shown.caller).is_some_and(|since| since.elapsed() < YES_FOR) {
            return response;
        }
        if let Some(proof) = proof_of(&shown.headers) {
            return self.refused(Code::PrincipalUnknown, &format!(
                "The stored response is shown only after {} {} with the caller's credentials, and {proof} is made for one request, so it cannot be used there. Authenticate with a bearer token or a cookie.",
                target.method, target.target
            ));
        }
        let Ok(request) = self.question(target, &shown) else {
            return self.refused(
                Code::UpstreamUnreachable,
                "The service cannot be asked whether the stored response may be shown.",
            );
        };
        let asked = timeout(target.timeout, self.forwarder.clone().call(request)).await;
        let Ok(Ok(answer)) = asked else { return self.unreachable() };
        if answer.extensions().get::<FromUpstream>().is_none() {
            return self.unreachable();
        }
        if answer.status().is_success() {
            self.let_in.lock().put(shown.caller, Instant::now());
            return response;
        }
        let mut refusal = answer.map(|body| body.map_err(Into::into).boxed_unsync());
        refusal.headers_mut().insert(wire::IDEMPOTENCY_OUTCOME, Outcome::Rejected.value());
        refusal
    }

    /// Builds the authorization request: the caller's headers, without those that belong to its
    /// body, its key or a cache.
    fn question(&self, target: &AuthorizeReplays, shown: &Shown) -> Result<Request<Empty<Bytes>>, http::Error> {
        let mut request =
            Request::builder().method(&target.method).uri(target.target.as_str()).body(Empty::<Bytes>::new())?;
        let left_out = |name: &HeaderName| {
            let text = name.as_str();
            *name == CONTENT_LENGTH
                || *name == wire::IDEMPOTENCY_KEY
                || *name == wire::PREFER
                || wire::is_hop_by_hop(name)
                || text.starts_with("content-")
                || text.starts_with("if-")
                || matches!(text, "range" | "expect" | "accept-encoding" | "origin" | "idempotency-first-sent")
        };
        for (name, value) in wire::end_to_end(&shown.headers).filter(|(name, _)| !left_out(name)) {
            request.headers_mut().append(name.clone(), value.clone());
        }
        request.extensions_mut().insert(Own);
        if let Some(sender) = shown.sender {
            request.extensions_mut().insert(sender);
        }
        Ok(request)
    }

    fn unreachable(&self) -> Response<Out> {
        self.refused(
            Code::UpstreamUnreachable,
            "The service could not be asked whether the stored response may be shown to this caller. Send the request again with the same key.",
        )
    }

    fn refused(&self, code: Code, detail: &str) -> Response<Out> {
        let problem = Problem::new(code, "urn:onceward:authorize_replays")
            .endpoints(Some(&self.endpoints))
            .with_outcome(Outcome::Rejected)
            .executed(Executed::Unknown)
            .detail(detail);
        let response = problem.into_response();
        response.map(|body| http_body_util::Full::new(body).map_err(|never| match never {}).boxed_unsync())
    }
}

fn named_header(part: &PrincipalPart) -> Option<&HeaderName> {
    match part {
        PrincipalPart::Header(name) => Some(name),
        _ => None,
    }
}

/// Returns the part that makes the credentials of a request valid for that request only.
fn proof_of(headers: &HeaderMap) -> Option<String> {
    let scheme = headers.get(AUTHORIZATION).and_then(|value| signed_scheme(value.as_bytes()));
    if let Some(scheme) = scheme {
        return Some(format!("the scheme {scheme}"));
    }
    let name = PROOFS.into_iter().find(|name| headers.contains_key(*name))?;
    Some(format!("the proof in {name}"))
}

/// Returns `true` for methods that an authorization request may use.
pub(crate) fn may_ask(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

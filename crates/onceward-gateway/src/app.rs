//! What happens to a request, from top to bottom.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use onceward::endpoints::Endpoints;
use onceward::layer::{self, Idempotency, IdempotencyLayer};
use onceward::wire::{self, Outcome};
use parking_lot::Mutex;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use crate::config::Config;
use crate::cors::{Asked, Cors};
use crate::metrics::RECORD;
use crate::upstream::{Forwarder, Peer, RequestId};

type Protected = Idempotency<Forwarder<layer::Body<Incoming>>>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of any answer.
pub(crate) type Out = UnsyncBoxBody<Bytes, BoxError>;

/// The public listener's service.
pub(crate) struct App {
    /// Which of `protected` a path belongs to.
    routes: matchit::Router<usize>,
    /// The first one holds where no route matches.
    protected: Vec<(Arc<str>, Protected)>,
    endpoints: (String, Endpoints),
    cors: Cors,
    requests: AtomicU64,
}

impl App {
    /// All routes over one engine and one pool of connections.
    pub(crate) fn new(
        layer: &IdempotencyLayer,
        forwarder: &Forwarder<layer::Body<Incoming>>,
        cors: Cors,
        config: &Config,
    ) -> Self {
        let mut routes = matchit::Router::new();
        let mut protected = Vec::new();
        let mut protect = |policy: &onceward::policy::Policy| {
            let service = layer.with_policy(policy.clone()).layer(forwarder.clone());
            protected.push((Arc::clone(&policy.route), service));
            protected.len() - 1
        };
        protect(&config.policy);
        for (pattern, policy) in &config.routes {
            // The settings were read with the same router, so what it refuses was refused there.
            let _ = routes.insert(pattern, protect(policy));
        }
        let endpoints = layer.with_policy(config.policy.clone()).endpoints_at(&config.endpoints, config.routes.clone());
        // Ids of several processes shall not look alike.
        let first = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
        Self {
            routes,
            protected,
            endpoints: (config.endpoints.clone(), endpoints),
            cors,
            requests: AtomicU64::new(first),
        }
    }

    pub(crate) async fn call(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Result<Response<Out>, Infallible> {
        let id = RequestId(self.requests.fetch_add(1, Ordering::Relaxed));
        request.extensions_mut().insert(Peer(peer));
        request.extensions_mut().insert(id);

        let path = unescaped(request.uri().path());
        if let Some((status, why)) = is_no_request_for_us(&request, &path) {
            let mut response = plain(status, why);
            if request.headers().contains_key(wire::IDEMPOTENCY_KEY) {
                response.headers_mut().insert(wire::IDEMPOTENCY_OUTCOME, Outcome::Rejected.value());
            }
            return Ok(response);
        }
        let asked = Asked::of(&request);
        let (mount, endpoints) = &self.endpoints;
        if is_below(&path, mount) {
            if let Some(asked) = asked.as_ref().filter(|asked| asked.is_preflight) {
                return Ok(self.cors.preflight(asked, request.headers(), boxed(Full::default())).await);
            }
            let Ok(mut response) = endpoints.clone().call(request).await;
            if let Some(asked) = &asked {
                self.cors.complete_own(asked, &mut response).await;
            }
            return Ok(response.map(boxed));
        }
        let (route, protected) = &self.protected[self.routes.at(&path).map_or(0, |found| *found.value)];
        if asked.as_ref().is_some_and(|asked| asked.is_preflight) {
            Cors::to_upstream(request.headers_mut());
        }

        let started = Instant::now();
        let method = request.method().clone();
        let mut protected = protected.clone();
        let answered = async {
            let response = protected.call(request).await;
            (response, RECORD.with(|record| *record.lock()))
        };
        let (Ok(mut response), record) = RECORD.scope(Mutex::new(None), answered).await;
        if let Some(asked) = &asked {
            self.cors.complete(asked, &mut response).await;
        }
        let status = response.status().as_u16();
        let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        match Outcome::of(response.headers()) {
            Some(outcome) => tracing::info!(
                request = %id,
                %method,
                route = &**route,
                outcome = outcome.as_str(),
                status,
                ms,
                instance = record.map(|id| id.instance()),
                "keyed request"
            ),
            None => tracing::debug!(request = %id, %method, route = &**route, status, ms, "request"),
        }
        Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
    }
}

fn boxed(body: Full<Bytes>) -> Out {
    body.map_err(|never| match never {}).boxed_unsync()
}

/// An answer to what is not for anybody behind this gateway. The connection is closed, for nobody reads the rest of the
/// request.
fn plain(status: StatusCode, text: &'static str) -> Response<Out> {
    let mut response = Response::new(boxed(Full::new(Bytes::from_static(text.as_bytes()))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// What is answered before anybody looks whether there is a key.
fn is_no_request_for_us<B>(request: &Request<B>, path: &str) -> Option<(StatusCode, &'static str)> {
    let hosts = request.headers().get_all(HOST).iter().count();
    if request.method() == Method::CONNECT {
        return Some((StatusCode::METHOD_NOT_ALLOWED, "this is no forward proxy\n"));
    }
    // hyper undoes `chunked`; what is under it would reach the upstream as if it were the body.
    let mut codings = wire::names_in(request.headers(), &TRANSFER_ENCODING);
    if codings.next().is_some_and(|coding| !coding.eq_ignore_ascii_case("chunked")) || codings.next().is_some() {
        return Some((StatusCode::NOT_IMPLEMENTED, "of transfer codings only chunked is understood\n"));
    }
    // Two gateways that each take another for the one meant would know one request by two fingerprints.
    if hosts > 1 || hosts == 0 && request.version() == Version::HTTP_11 {
        return Some((StatusCode::BAD_REQUEST, "send one Host header\n"));
    }
    // What the operators' listener has is not to be reached from here, nor passed on as if it were the service's.
    is_below(path, "/.onceward").then_some((StatusCode::NOT_FOUND, "not found\n"))
}

fn is_below(path: &str, mount: &str) -> bool {
    path.strip_prefix(mount).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// A path with needless escapes undone (RFC 3986, 6.2.2.2), so that `/%6frders` is held to what is said of `/orders`.
fn unescaped(path: &str) -> std::borrow::Cow<'_, str> {
    if !path.contains('%') {
        return path.into();
    }
    let bytes = path.as_bytes();
    let mut plain = String::with_capacity(path.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = path.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match escape.and_then(|digits| u8::from_str_radix(digits, 16).ok()).map(char::from) {
            Some(c) if c.is_ascii_alphanumeric() || "-._~".contains(c) => {
                plain.push(c);
                at += 3;
            }
            _ => {
                let c = path[at..].chars().next().unwrap_or_default();
                plain.push(c);
                at += c.len_utf8().max(1);
            }
        }
    }
    plain.into()
}

#[cfg(test)]
mod tests {
    use super::{is_below, unescaped};

    #[test]
    fn needless_escapes_are_undone_and_no_others() {
        for (path, plain) in [
            ("/orders", "/orders"),
            ("/%6frders", "/orders"),
            ("/%2Eonceward/x", "/.onceward/x"),
            ("/a%2Fb%25%3f", "/a%2Fb%25%3f"),
            ("/a%", "/a%"),
            ("/a%6", "/a%6"),
            ("/%+6", "/%+6"),
            ("/%zz%6F", "/%zzo"),
        ] {
            assert_eq!(unescaped(path), plain, "{path}");
        }
    }

    #[test]
    fn a_mount_has_only_what_is_below_it() {
        assert!(is_below("/.idempotency", "/.idempotency") && is_below("/.idempotency/policy", "/.idempotency"));
        assert!(!is_below("/.idempotency2", "/.idempotency") && !is_below("/", "/.idempotency"));
    }
}

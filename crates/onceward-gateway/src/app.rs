//! Handles requests from the listener to the response.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use onceward::endpoints::Endpoints;
use onceward::layer::{self, Idempotency, IdempotencyLayer};
use onceward::paths;
use onceward::policy::Policy;
use onceward::problem::{Code, Problem};
use onceward::wire::{self, Outcome};
use parking_lot::Mutex;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use crate::callers::Callers;
use crate::config::{Config, TrustedProxies};
use crate::cors::{Asked, Cors};
use crate::forwarded::Sender;
use crate::loops::{Looped, Loops};
use crate::metrics::RECORD;
use crate::target;
use crate::upstream::{Forwarder, RequestId};

type Protected = Idempotency<Forwarder<layer::Body<Incoming>>>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Body of every response.
pub(crate) type Out = UnsyncBoxBody<Bytes, BoxError>;

/// Service of the public listener.
pub(crate) struct App {
    /// Index in `protected` of each route.
    routes: matchit::Router<usize>,
    /// The first entry applies if no route matches.
    protected: Vec<(Arc<Policy>, Protected)>,
    endpoints: (String, Endpoints),
    /// Path of the endpoints, in normal form.
    mount: String,
    cors: Cors,
    trusted_proxies: TrustedProxies,
    loops: Arc<Loops>,
    callers: Callers,
    requests: AtomicU64,
    header_lines: usize,
    header_size: usize,
}

impl App {
    /// Creates all routes over one engine and one connection pool.
    pub(crate) fn new(
        layer: &IdempotencyLayer,
        forwarder: &Forwarder<layer::Body<Incoming>>,
        cors: Cors,
        callers: Callers,
        config: &Config,
    ) -> Self {
        let mut routes = matchit::Router::new();
        let mut protected = Vec::new();
        let mut protect = |policy: &onceward::policy::Policy| {
            let service = layer.with_policy(policy.clone()).layer(forwarder.clone());
            protected.push((Arc::new(policy.clone()), service));
            protected.len() - 1
        };
        protect(&config.policy);
        for (pattern, policy) in &config.routes {
            // The configuration was validated with the same router, so an invalid pattern was
            // rejected there.
            let normal = paths::pattern(pattern).unwrap_or_else(|_| pattern.clone());
            let _ = routes.insert(normal, protect(policy));
        }
        let endpoints = layer.with_policy(config.policy.clone()).endpoints_at(&config.endpoints, config.routes.clone());
        // Ids of several processes must not look alike.
        let first = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
        Self {
            routes,
            protected,
            endpoints: (config.endpoints.clone(), endpoints),
            mount: paths::normal(&config.endpoints).into_owned(),
            cors,
            trusted_proxies: config.trusted_proxies.clone(),
            loops: Loops::new(),
            callers,
            requests: AtomicU64::new(first),
            header_lines: config.header_lines,
            header_size: config.header_size,
        }
    }

    pub(crate) async fn call(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Result<Response<Out>, Infallible> {
        let id = RequestId(self.requests.fetch_add(1, Ordering::Relaxed));
        request.extensions_mut().insert(Sender { address: peer, is_trusted: self.trusted_proxies.contains(peer.ip()) });
        request.extensions_mut().insert(id);

        if let Err(refusal) = self.check(&request, id) {
            return Ok(*refusal);
        }
        let place = self.place(request.uri());
        let asked = Asked::of(&request);
        let at = match place {
            // Paths of the admin listener must be neither reachable here nor forwarded as if they
            // were the service's.
            Place::Hidden => return Ok(rejected(&request, plain(StatusCode::NOT_FOUND, "not found\n"))),
            Place::Own(path) => {
                if let Some(asked) = asked.as_ref().filter(|asked| asked.is_preflight) {
                    return Ok(self.cors.preflight(asked, request.headers(), boxed(Full::default())).await);
                }
                if let Some(path) = path {
                    *request.uri_mut() = path;
                }
                let caller = self.callers.endpoint(&self.protected[0].0, &mut request).await;
                let Ok(response) = self.endpoints.1.clone().call(request).await;
                let mut response = self.callers.may_see(caller, response.map(boxed)).await;
                if let Some(asked) = &asked {
                    self.cors.complete_own(asked, &mut response).await;
                }
                return Ok(response);
            }
            Place::Route(at) => at,
        };
        let (policy, protected) = &self.protected[at];
        if asked.as_ref().is_some_and(|asked| asked.is_preflight) {
            Cors::to_upstream(request.headers_mut());
        }
        let mark = self.loops.mark(&request);
        request.extensions_mut().insert(mark);

        let started = Instant::now();
        let method = request.method().clone();
        let mut protected = protected.clone();
        let caller = self.callers.request(policy, &mut request).await;
        let answered = async {
            let response = protected.call(request).await;
            (response, RECORD.with(|record| *record.lock()))
        };
        let (Ok(response), record) = RECORD.scope(Mutex::new(None), answered).await;
        let response = response.map(|body| body.map_err(Into::into).boxed_unsync());
        let mut response = self.callers.response(policy, caller, response).await;
        let route = &policy.route;
        if response.extensions().get::<Looped>().is_some() && Outcome::of(response.headers()).is_some() {
            response.headers_mut().insert(wire::IDEMPOTENCY_OUTCOME, Outcome::Rejected.value());
        }
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
        Ok(response)
    }

    /// Rejects requests that are invalid for every service, before the key is read.
    fn check<B>(&self, request: &Request<B>, id: RequestId) -> Result<(), Box<Response<Out>>> {
        if request.method() == Method::CONNECT {
            let response = plain(StatusCode::METHOD_NOT_ALLOWED, "this is no forward proxy\n");
            return Err(Box::new(rejected(request, response)));
        }
        if self.is_head_too_large(request) {
            return Err(Box::new(self.refuse(request, id, Code::HeadersTooLarge, None)));
        }
        // hyper decodes `chunked`. An inner coding would reach the upstream as if it were the body.
        let mut codings = wire::names_in(request.headers(), &TRANSFER_ENCODING);
        if codings.next().is_some_and(|coding| !coding.eq_ignore_ascii_case("chunked")) || codings.next().is_some() {
            let response = plain(StatusCode::NOT_IMPLEMENTED, "of transfer codings only chunked is understood\n");
            return Err(Box::new(rejected(request, response)));
        }
        if wire::names_in(request.headers(), &UPGRADE).any(|protocol| protocol.eq_ignore_ascii_case("h2c")) {
            tracing::info!(request = %id, "a client asked to upgrade to h2c; it gets its response in HTTP/1.1");
        }
        if let Err((code, detail)) = target::check(request) {
            return Err(Box::new(self.refuse(request, id, code, Some(detail))));
        }
        if self.loops.has_come_back(request) {
            tracing::error!(
                request = %id,
                method = %request.method(),
                "the gateway is its own upstream: a request that it sent came back; set upstream to the address of the service"
            );
            return Err(Box::new(self.refuse(request, id, Code::LoopDetected, None)));
        }
        Ok(())
    }

    /// Returns a problem for a request that was not looked up.
    fn refuse<B>(&self, request: &Request<B>, id: RequestId, code: Code, detail: Option<&str>) -> Response<Out> {
        let mut problem = Problem::new(code, format!("urn:onceward:request:{id}")).endpoints(Some(&self.endpoints.0));
        if let Some(detail) = detail {
            problem = problem.detail(detail);
        }
        if !request.headers().contains_key(wire::IDEMPOTENCY_KEY) {
            problem = problem.without_key();
        }
        let mut response = problem.into_response().map(|body| boxed(Full::new(body)));
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        response
    }

    /// Finds the destination of a path by its normal form.
    fn place(&self, uri: &Uri) -> Place {
        let normal = paths::normal(uri.path());
        if is_below(&normal, "/.onceward") {
            return Place::Hidden;
        }
        if let Some(rest) = normal.strip_prefix(&*self.mount).filter(|_| is_below(&normal, &self.mount)) {
            let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
            return Place::Own(Uri::try_from(format!("{}{rest}{query}", self.endpoints.0)).ok());
        }
        Place::Route(self.routes.at(&normal).map_or(0, |found| *found.value))
    }
}

/// Destination of a path.
enum Place {
    /// Path that only the admin listener serves.
    Hidden,
    /// Path of the gateway itself, in its usual spelling if that is a valid target.
    Own(Option<Uri>),
    /// Upstream, under the route of this index.
    Route(usize),
}

impl App {
    fn is_head_too_large<B>(&self, request: &Request<B>) -> bool {
        let headers = request.headers();
        let lines = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
        let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
        headers.len() > self.header_lines || lines.sum::<usize>() + target > self.header_size
    }
}

fn boxed(body: Full<Bytes>) -> Out {
    body.map_err(|never| match never {}).boxed_unsync()
}

/// Returns a response to a request that is invalid for every service. Closes the connection,
/// because the rest of the request is not read.
fn plain(status: StatusCode, text: &'static str) -> Response<Out> {
    let mut response = Response::new(boxed(Full::new(Bytes::from_static(text.as_bytes()))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Labels a rejection of a request with a key.
fn rejected<B>(request: &Request<B>, mut response: Response<Out>) -> Response<Out> {
    if request.headers().contains_key(wire::IDEMPOTENCY_KEY) {
        response.headers_mut().insert(wire::IDEMPOTENCY_OUTCOME, Outcome::Rejected.value());
    }
    response
}

fn is_below(path: &str, mount: &str) -> bool {
    path.strip_prefix(mount).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::is_below;

    #[test]
    fn a_mount_has_only_what_is_below_it() {
        assert!(is_below("/.idempotency", "/.idempotency") && is_below("/.idempotency/policy", "/.idempotency"));
        assert!(!is_below("/.idempotency2", "/.idempotency") && !is_below("/", "/.idempotency"));
    }
}

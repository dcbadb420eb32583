//! Public paths: `policy` describes the protected routes, `operation` returns the status of a key,
//! `keys` issues a key.

use std::convert::Infallible;
use std::fmt::Write;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Method, Request, Response, StatusCode, Uri, request};
use http_body_util::Full;
use serde_json::{Value, json};
use tower_service::Service;

use crate::engine::{Engine, KeyStatus};
use crate::fingerprint::Pointer;
use crate::key::{KEY_BYTES_MAX, Key};
use crate::layer::coding::Accepted;
use crate::layer::{FromRecord, Hooks};
use crate::paths;
use crate::policy::{AcceptedKeys, MissingKey, Policy};
use crate::principal::{KeySpace, Principal, ScopePart, UnidentifiedCallerError};
use crate::problem::{Code, Problem};
use crate::wire::{self, Outcome};

/// Serves `GET policy`, `GET operation` and `POST keys` at any mount path.
#[derive(Clone, Debug)]
pub struct Endpoints {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    engine: Engine,
    policy: Policy,
    routes: Vec<(String, Policy)>,
    hooks: Hooks,
    /// Index into `routes` by path.
    routes_by_path: matchit::Router<usize>,
}

/// Principal and key space under which the record of a key may be.
type Place = (Principal, KeySpace);

impl Endpoints {
    pub(crate) fn new(engine: Engine, policy: Policy, routes: Vec<(String, Policy)>) -> Self {
        let mut routes_by_path = matchit::Router::new();
        for (at, (pattern, _)) in routes.iter().enumerate() {
            // An invalid or duplicate pattern matches nothing: the default policy applies to its
            // paths.
            let normal = paths::pattern(pattern).unwrap_or_else(|_| pattern.clone());
            if routes_by_path.insert(normal, at).is_err() {
                tracing::warn!(pattern, "the pattern cannot be matched, so no keys are issued for it");
            }
        }
        Self { shared: Arc::new(Shared { engine, policy, routes, hooks: Hooks::default(), routes_by_path }) }
    }

    /// Sets the hooks, so that callers are named as in the layer.
    pub(crate) fn hooks(mut self, hooks: Hooks) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.hooks = hooks;
        }
        self
    }
}

impl<B: Send + 'static> Service<Request<B>> for Endpoints {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        let (mut head, _) = request.into_parts();
        shared.hooks.name_caller(&mut head);
        Box::pin(async move {
            // Mounted with or without its prefix, the last segment of the path identifies the
            // endpoint.
            let name = head.uri.path().rsplit('/').next().unwrap_or_default();
            let response = match (name, &head.method) {
                ("policy", &Method::GET | &Method::HEAD) => shared.policy(&head.headers),
                ("operation", &Method::GET | &Method::HEAD) => shared.operation(&head).await,
                ("keys", &Method::POST) => shared.issue(&head).await,
                ("policy" | "operation", _) => not_allowed("use GET\n", "GET, HEAD"),
                ("keys", _) => not_allowed("use POST\n", "POST"),
                _ => plain(StatusCode::NOT_FOUND, "there are policy, operation and keys\n"),
            };
            Ok(response.map(Full::new))
        })
    }
}

impl Shared {
    fn policy(&self, headers: &HeaderMap) -> Response<Bytes> {
        let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
        if accept.contains("text/html") {
            return body(StatusCode::OK, "text/html; charset=utf-8", self.page());
        }
        let mut policy = describe(&self.policy);
        policy["header"] = "Idempotency-Key".into();
        policy["key"] = json!({
            "bytes_max": KEY_BYTES_MAX,
            "format": "an RFC 9651 string (\"k\") or bare (k): visible ASCII, bare without \" , ; \\",
        });
        policy["routes"] = self
            .routes
            .iter()
            .map(|(path, policy)| {
                let mut route = describe(policy);
                route["path"] = path.as_str().into();
                route
            })
            .collect();
        let mount = self.engine.mount().unwrap_or_default();
        policy["operation"] = format!("{mount}/operation").into();
        policy["operation_query"] =
            "path: the path that the key was sent to, where routes have rules or scopes of their own".into();
        policy["issue"] = json!({
            "url": format!("{mount}/keys"),
            "query": "path: the path that the key is for",
            "lifetime_seconds": seconds(self.engine.issuing().lifetime),
        });
        body(StatusCode::OK, "application/json", policy.to_string())
    }

    /// Renders the page that the `type` and `Link` of a refusal lead to, with an anchor per code.
    fn page(&self) -> String {
        let mut page = String::from(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
             <title>Idempotency-Key</title><style>body{font:1rem/1.5 system-ui;max-width:46rem;margin:2rem auto;padding:0 1rem;\
             color-scheme:light dark}code{font-size:.9em}h2{margin-top:2rem}:target{outline:2px solid;outline-offset:.4rem}</style>\
             <h1>Requests that take effect once</h1><p>Send <code>Idempotency-Key</code> with a value that you make once for each \
             action, and send the same one with each retry. The first answer is kept and comes again.</p>",
        );
        for code in Code::ALL.iter().copied() {
            let row = code.row();
            // Writing to a String cannot fail.
            let _ = write!(
                page,
                "<section id=\"{code}\"><h2>{title}</h2><p><code>{status} {code}</code></p><p>{detail}</p>\
                 <p>Executed: {executed}. Next: {retry}.</p></section>",
                code = row.code,
                title = row.title,
                status = row.status.as_u16(),
                detail = row.detail.replace('&', "&amp;").replace('<', "&lt;"),
                executed = row.executed.as_str(),
                retry = row.retry.as_str(),
            );
        }
        page.push_str("</html>\n");
        page
    }

    /// Issues a key to the caller, for the route of the path that the query names.
    async fn issue(&self, head: &request::Parts) -> Response<Bytes> {
        let policy = named_path(head).map_or(&self.policy, |path| self.policy_of(&path));
        let principal = match policy.identify(head) {
            Ok(principal) => principal,
            Err(error) => return self.unidentified(policy, &error).into_response(),
        };
        match self.engine.issue(&principal, policy).await {
            Ok((key, expires_at)) => {
                let issued = json!({ "key": key.as_str(), "expires_at": expires_at });
                body(StatusCode::CREATED, "application/json", issued.to_string())
            }
            Err(problem) => problem.into_response(),
        }
    }

    /// Returns the policy of a path.
    fn policy_of(&self, path: &str) -> &Policy {
        let route = self.routes_by_path.at(&paths::normal(path)).ok().and_then(|found| self.routes.get(*found.value));
        route.map_or(&self.policy, |(_, policy)| policy)
    }

    fn unidentified(&self, policy: &Policy, error: &UnidentifiedCallerError) -> Problem {
        self.engine.report_unidentified(&policy.route, error);
        self.engine.refusal(error.code()).detail(error.detail())
    }

    /// Returns the places where the records of a key may be: under each distinct rule and scope, or
    /// those of the path that the query names.
    ///
    /// Also returns true if there may be more, in scopes that cannot be derived without the path.
    ///
    /// # Errors
    ///
    /// The refusal, if no rule can identify the caller.
    fn places(&self, head: &request::Parts) -> Result<(Vec<Place>, bool), Box<Problem>> {
        let path = named_path(head);
        let all = [("", &self.policy)].into_iter().chain(self.routes.iter().map(|(path, policy)| (&**path, policy)));
        let policies: Vec<(&str, &Policy)> = match &path {
            Some(path) => vec![(&**path, self.policy_of(path))],
            None => all.collect(),
        };
        let mut places = Vec::new();
        let mut refused = None;
        let mut needs_path = false;
        for (path, policy) in policies {
            let principal = match policy.identify(head) {
                Ok(principal) => principal,
                Err(error) => {
                    refused.get_or_insert((policy, error));
                    continue;
                }
            };
            // A pattern without parameters is itself the path.
            let uri =
                Some(path).filter(|path| !path.is_empty() && !path.contains('{')).and_then(|path| path.parse().ok());
            let uri: Uri = match uri {
                Some(uri) => uri,
                None if policy.scope.contains(ScopePart::Path) => {
                    needs_path = true;
                    continue;
                }
                None => Uri::default(),
            };
            // If the method is not part of the scope, each gives the same place.
            for method in &policy.methods {
                let place = (principal, policy.scope.of(&policy.route, method, &uri, &head.headers));
                if !places.contains(&place) {
                    places.push(place);
                }
            }
        }
        match refused {
            Some((policy, error)) if places.is_empty() && !needs_path => {
                Err(Box::new(self.unidentified(policy, &error)))
            }
            _ => Ok((places, needs_path)),
        }
    }

    /// Returns the status of a key, from the first place that has a record for it.
    async fn look(
        &self,
        key: &Key,
        places: &[(Principal, KeySpace)],
        wait: Option<Duration>,
    ) -> (Result<KeyStatus, Problem>, Principal) {
        let mut free = Principal::Anonymous;
        for (principal, space) in places {
            // Only a place with a record in flight makes this call wait.
            match self.engine.lookup(key, principal, space, wait).await {
                Ok(KeyStatus::Free) => free = *principal,
                look => return (look, *principal),
            }
        }
        (Ok(KeyStatus::Free), free)
    }

    async fn operation(&self, head: &request::Parts) -> Response<Bytes> {
        let engine = &self.engine;
        let headers = &head.headers;
        let key = match Key::of(headers, &wire::IDEMPOTENCY_KEY) {
            Ok(Some(key)) => key,
            Ok(None) => return engine.refusal(Code::KeyMissing).into_response(),
            Err(invalid) => {
                return engine.refusal(Code::KeyInvalid).detail(invalid.sentence()).into_response();
            }
        };
        let (places, needs_path) = match self.places(head) {
            Ok(places) => places,
            Err(problem) => return problem.into_response(),
        };
        let wait = wire::prefer_wait(headers);
        let (look, principal) = self.look(&key, &places, wait).await;
        let mut response = match (look, principal) {
            // A client that took the key for free would place a new order.
            (Ok(KeyStatus::Free), _) if needs_path => engine
                .refusal(Code::OutcomeUnknown)
                .detail("Keys are separate by path here. Ask with the path of the request: GET operation?path=/orders, for example.")
                .into_response(),
            (Ok(KeyStatus::Free), _) => engine.refusal(Code::OperationUnknown).into_response(),
            (Err(problem), _) => problem.into_response(),
            (Ok(look), Principal::Anonymous) => state_of(&look),
            (Ok(KeyStatus::InFlight(seconds)), _) => in_flight(seconds),
            (Ok(KeyStatus::Replay(reply)), _) => {
                let accepted = Accepted::of(headers);
                let decoded = match accepted.decode(&reply, engine.limits().response_body) {
                    Some(decoding) => decoding.await,
                    None => None,
                };
                let mut response = decoded.as_ref().unwrap_or(&reply).replay();
                response.headers_mut().insert(wire::IDEMPOTENCY_OUTCOME, Outcome::Replayed.value());
                response.headers_mut().insert(wire::IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
                response.extensions_mut().insert(FromRecord);
                response
            }
            (Ok(KeyStatus::Refused(problem)), _) => problem.into_response(),
        };
        if let Some(wait) = wait {
            let applied = format!("wait={}", wait.min(engine.limits().wait_max).as_secs());
            if let Ok(applied) = HeaderValue::from_str(&applied) {
                response.headers_mut().append(wire::PREFERENCE_APPLIED, applied);
            }
        }
        response
    }
}

/// Returns the path that the query names, to which the key belongs.
fn named_path(head: &request::Parts) -> Option<String> {
    let query = head.uri.query().unwrap_or_default();
    let path = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "path").map(|(_, path)| path);
    path.filter(|path| path.starts_with('/')).map(std::borrow::Cow::into_owned)
}

/// Returns the response to an anonymous caller: the request could come from anybody, so the stored
/// response itself is not returned.
fn state_of(look: &KeyStatus) -> Response<Bytes> {
    let (outcome, executed, seconds) = match look {
        KeyStatus::Replay(_) => (Outcome::Stored, "yes", None),
        KeyStatus::InFlight(seconds) => (Outcome::InFlight, "unknown", Some(*seconds)),
        KeyStatus::Refused(problem) => (problem.outcome(), problem.code().row().executed.as_str(), None),
        KeyStatus::Free => (Outcome::Released, "unknown", None),
    };
    let mut response = body(
        StatusCode::OK,
        "application/json",
        json!({ "state": outcome.as_str(), "executed": executed }).to_string(),
    );
    response.headers_mut().insert(wire::IDEMPOTENCY_OUTCOME, outcome.value());
    if let Some(seconds) = seconds {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn in_flight(seconds: u64) -> Response<Bytes> {
    let state = json!({ "state": "in-flight", "executed": "unknown", "retry": "wait" });
    let mut response = body(StatusCode::ACCEPTED, "application/json", state.to_string());
    response.headers_mut().insert(wire::IDEMPOTENCY_OUTCOME, Outcome::InFlight.value());
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    response
}

fn describe(policy: &Policy) -> Value {
    json!({
        "methods": policy.methods.iter().map(Method::as_str).collect::<Vec<_>>(),
        "missing": match policy.missing {
            MissingKey::Pass => "pass",
            MissingKey::Reject => "reject",
            MissingKey::Generate => "generate",
            MissingKey::Derive { .. } => "derive",
        },
        "derive_window_seconds": match policy.missing {
            MissingKey::Derive { window } => Some(seconds(window)),
            _ => None,
        },
        "keys": match policy.keys { AcceptedKeys::Any => "any", AcceptedKeys::Issued => "issued" },
        "form_field": policy.form_field.as_deref(),
        "key_headers": key_sources(policy),
        "fingerprint": policy.fingerprint.kind.as_str(),
        "guarantee": policy.guarantee.as_str(),
        "retention_seconds": seconds(policy.retention),
        "tombstone_seconds": seconds(policy.tombstone),
        "wait_seconds": seconds(policy.wait),
    })
}

/// Returns the names of the places besides `Idempotency-Key` that may contain a key, as used in
/// settings.
fn key_sources(policy: &Policy) -> Vec<&str> {
    let members = policy.key_members.iter().map(Pointer::as_str);
    policy.key_headers.iter().map(HeaderName::as_str).chain(members).collect()
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

fn not_allowed(text: &'static str, allowed: &'static str) -> Response<Bytes> {
    let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, text);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Bytes> {
    body(status, "text/plain", text.to_owned())
}

fn body(status: StatusCode, kind: &'static str, text: String) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

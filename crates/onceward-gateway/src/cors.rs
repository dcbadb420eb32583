//! CORS (the Fetch standard): lets cross-origin pages send keys, and read the related response
//! headers.
//!
//! Only the upstream decides which origins, methods and headers are allowed. If it responds to a
//! preflight, the request headers that our clients send are added to those it allows, and our
//! response headers to those it exposes. Responses that the gateway generates (rejections, replays
//! and its own paths) get what the upstream last allowed for that host, origin, path and method. If
//! that is not cached, as after a restart, the gateway sends the upstream a preflight of its own.
//! `[cors] origins` replaces all of this by a list.
//!
//! A permission is cached from any response of the upstream to that origin. A denial is cached only
//! from our own preflight: one crafted by a client may ask for a header that the service does not
//! allow, and so revoke the permissions of a page.

mod learned;

use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HOST, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Empty;
use onceward::wire::{self, Outcome};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tower_service::Service;

use crate::config::{Config, Host};
use crate::upstream::{Forwarder, FromUpstream};
use learned::{Given, Learned, Place};

/// Request headers that our clients add to those a service knows.
const SENT: &str = "idempotency-key, prefer, idempotency-first-sent";
/// Response headers of keyed requests.
const SAID: HeaderValue = HeaderValue::from_static(
    "idempotency-outcome, idempotency-replayed, idempotency-key, preference-applied, retry-after, link",
);
/// Timeout of a preflight to the upstream, for which a rejection waits.
const ASK_MAX: Duration = Duration::from_secs(1);
/// Upper bound on concurrent preflights to the upstream; further rejections get no CORS headers.
const ASKS_AT_ONCE_MAX: usize = 8;
/// Upper bound on the bytes of an origin; browsers send none that are longer.
const ORIGIN_BYTES_MAX: usize = 256;
/// Upper bound on the bytes of a cached path.
const PATH_BYTES_MAX: usize = 1024;
/// Time for which a browser may cache the preflight of the gateway's own paths.
const MAX_AGE_SECONDS: u64 = 600;

/// CORS attributes of a request from a page.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Host that the client named.
    host: HeaderValue,
    origin: HeaderValue,
    path: String,
    method: Method,
    /// Same host and port: its page needs no permission.
    is_own: bool,
    pub(crate) is_preflight: bool,
}

impl Asked {
    /// Returns `None` if the request is not from a page, or its origin, host or path is too long to
    /// cache.
    pub(crate) fn of<B>(request: &Request<B>) -> Option<Self> {
        let headers = request.headers();
        let origin = headers.get(ORIGIN).filter(|origin| origin.len() <= ORIGIN_BYTES_MAX)?;
        let path = request.uri().path();
        if path.len() > PATH_BYTES_MAX {
            return None;
        }
        let host = match request.uri().authority() {
            Some(authority) => HeaderValue::from_str(authority.as_str()).ok()?,
            None => headers.get(HOST).cloned().unwrap_or_else(|| HeaderValue::from_static("")),
        };
        if host.len() > ORIGIN_BYTES_MAX {
            return None;
        }
        let authority =
            origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, authority)| authority);
        let preflight = headers.get(ACCESS_CONTROL_REQUEST_METHOD).filter(|_| *request.method() == Method::OPTIONS);
        Some(Self {
            host: HeaderValue::from_bytes(&host.as_bytes().to_ascii_lowercase()).ok()?,
            origin: origin.clone(),
            path: path.to_owned(),
            method: preflight
                .and_then(|method| Method::from_bytes(method.as_bytes()).ok())
                .unwrap_or(request.method().clone()),
            is_own: authority.is_some_and(|authority| authority.as_bytes().eq_ignore_ascii_case(host.as_bytes())),
            is_preflight: preflight.is_some(),
        })
    }
}

/// Decides which responses cross-origin pages may read.
pub(crate) struct Cors {
    origins: Vec<String>,
    learned: Learned,
    forwarder: Forwarder<Empty<Bytes>>,
    asks: Semaphore,
    /// Path of the preflight that is sent for the gateway's own paths.
    probe: String,
    /// Method of that preflight.
    probe_method: Method,
    /// `Host` that the upstream receives, whatever the client named.
    upstream_host: Option<HeaderValue>,
}

impl Cors {
    pub(crate) fn new(forwarder: Forwarder<Empty<Bytes>>, config: &Config) -> Self {
        let plain = config.routes.iter().map(|(path, _)| path).find(|path| !path.contains('{'));
        Self {
            origins: config.origins.clone(),
            learned: Learned::default(),
            forwarder,
            asks: Semaphore::new(ASKS_AT_ONCE_MAX),
            probe: plain.map_or_else(|| "/".to_owned(), Clone::clone),
            probe_method: config.policy.methods.first().cloned().unwrap_or(Method::POST),
            upstream_host: match config.host {
                Host::Preserve => None,
                Host::Upstream => Some(config.upstream.authority.clone()),
            },
        }
    }

    /// Removes our own headers from a preflight to the upstream, which need not know them.
    pub(crate) fn to_upstream(headers: &mut HeaderMap) {
        let Some(rest) = without_ours(headers) else { return };
        let others = headers.iter().filter(|(name, _)| **name != ACCESS_CONTROL_REQUEST_HEADERS);
        let mut left: HeaderMap = others.map(|(name, value)| (name.clone(), value.clone())).collect();
        if !rest.is_empty()
            && let Ok(rest) = HeaderValue::from_str(&rest)
        {
            left.insert(ACCESS_CONTROL_REQUEST_HEADERS, rest);
        }
        *headers = left;
    }

    /// Adds the CORS headers to a response to a page, from the upstream or from the gateway.
    pub(crate) async fn complete<B>(&self, asked: &Asked, response: &mut Response<B>) {
        if response.extensions().get::<FromUpstream>().is_none() {
            self.give(asked, response.headers_mut()).await;
            return;
        }
        self.learned.learn(self.place(asked), asked, response.headers());
        let is_keyed = Outcome::of(response.headers()).is_some();
        let headers = response.headers_mut();
        if !Given::of(headers).is_some_and(|given| given.allows(&asked.origin)) {
            return;
        }
        match asked.is_preflight {
            true => drop(headers.append(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(SENT))),
            false if is_keyed => drop(headers.append(ACCESS_CONTROL_EXPOSE_HEADERS, SAID)),
            false => {}
        }
    }

    /// Adds the CORS headers to a response of the gateway's own paths.
    pub(crate) async fn complete_own<B>(&self, asked: &Asked, response: &mut Response<B>) {
        self.give(&self.probing(asked), response.headers_mut()).await;
    }

    /// Returns the attributes that stand for one of the gateway's own paths at the upstream.
    fn probing(&self, asked: &Asked) -> Asked {
        Asked { path: self.probe.clone(), method: self.probe_method.clone(), is_preflight: false, ..asked.clone() }
    }

    fn place(&self, asked: &Asked) -> Place {
        Place {
            host: self.upstream_host.clone().unwrap_or_else(|| asked.host.clone()),
            origin: asked.origin.clone(),
            path: asked.path.clone(),
            method: asked.method.clone(),
        }
    }

    /// Responds to a preflight for one of the gateway's own paths.
    pub(crate) async fn preflight<B>(&self, asked: &Asked, requested: &HeaderMap, empty: B) -> Response<B> {
        let mut response = Response::new(empty);
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        self.give(&self.probing(asked), headers).await;
        if headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, POST"));
            headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(MAX_AGE_SECONDS));
            // No header is forwarded from these paths, so every header is allowed.
            for line in requested.get_all(ACCESS_CONTROL_REQUEST_HEADERS) {
                headers.append(ACCESS_CONTROL_ALLOW_HEADERS, line.clone());
            }
        }
        response
    }

    /// Adds the headers that let the page's origin read the response.
    async fn give(&self, asked: &Asked, headers: &mut HeaderMap) {
        let listed = || self.origins.iter().any(|origin| origin.as_bytes() == asked.origin.as_bytes());
        let given = match self.origins.is_empty() {
            false => listed().then(|| Given::to(&asked.origin)),
            true => match self.learned.find(&self.place(asked)) {
                Some(known) => known,
                // A same-host page needs no permission, and its rejections need not wait for a
                // preflight.
                None if asked.is_own => None,
                None => self.ask(asked).await,
            },
        };
        let Some(given) = given else { return };
        for exposed in given.exposed {
            headers.append(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
        headers.append(ACCESS_CONTROL_EXPOSE_HEADERS, SAID);
        if given.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        if given.origin != "*" {
            headers.append(VARY, HeaderValue::from_static("Origin"));
        }
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, given.origin);
    }

    /// Sends the upstream a preflight as a browser would, and caches the result.
    async fn ask(&self, asked: &Asked) -> Option<Given> {
        let _permit = self.asks.try_acquire().ok()?;
        let request = Request::builder()
            .method(Method::OPTIONS)
            .uri(asked.path.as_str())
            .header(HOST, &asked.host)
            .header(ORIGIN, &asked.origin)
            .header(ACCESS_CONTROL_REQUEST_METHOD, asked.method.as_str())
            .body(Empty::new())
            .ok()?;
        let Ok(Ok(response)) = timeout(ASK_MAX, self.forwarder.clone().call(request)).await else { return None };
        // A response that the forwarder generated, because the upstream gave none, is not cached.
        response.extensions().get::<FromUpstream>()?;
        let place = self.place(asked);
        let asked = Asked { is_preflight: true, ..asked.clone() };
        match Given::of(response.headers()) {
            Some(given) if given.allows(&asked.origin) => {
                self.learned.learn(place.clone(), &asked, response.headers());
            }
            // An error of the service, or of a proxy in between, says nothing about origins.
            _ if response.status().is_server_error() => {}
            _ => self.learned.refuse(place.clone()),
        }
        self.learned.find(&place).flatten()
    }
}

/// Returns the headers that a preflight asks for, without those of our clients. Returns `None` if
/// it asks for none of ours.
fn without_ours(headers: &HeaderMap) -> Option<String> {
    let is_ours = |name: &&str| SENT.split(", ").any(|ours| name.eq_ignore_ascii_case(ours));
    let (ours, rest): (Vec<&str>, Vec<&str>) =
        wire::names_in(headers, &ACCESS_CONTROL_REQUEST_HEADERS).partition(is_ours);
    (!ours.is_empty()).then(|| rest.join(","))
}

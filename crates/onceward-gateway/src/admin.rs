//! Admin listener: liveness, readiness, status and metrics. No response contains a key.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use onceward::engine::Engine;
use onceward::policy::Policy;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::config::{Config, Origin};
use crate::metrics::Metrics;
use crate::target;

/// Readiness is cached for this time.
const READY_FOR: Duration = Duration::from_secs(1);

type Page = Response<Full<Bytes>>;

/// Handles requests of operators.
#[derive(Debug)]
pub(crate) struct Admin {
    engine: Engine,
    metrics: Arc<Metrics>,
    config: Arc<Config>,
    connections_max: usize,
    /// The process is shutting down, and may still accept new claims for `drain_delay`.
    leaving: Arc<AtomicBool>,
    /// Faults found at startup.
    faults: Vec<String>,
    started: Instant,
    /// Time and result of the last readiness check.
    ready: Mutex<Option<(Instant, Result<(), String>)>>,
}

impl Admin {
    pub(crate) fn new(
        engine: Engine,
        metrics: Arc<Metrics>,
        config: Arc<Config>,
        connections_max: usize,
        leaving: Arc<AtomicBool>,
        faults: Vec<String>,
    ) -> Self {
        let (started, ready) = (Instant::now(), Mutex::default());
        Self { engine, metrics, config, connections_max, leaving, faults, started, ready }
    }

    pub(crate) async fn call<B>(&self, request: Request<B>) -> Result<Page, Infallible> {
        // A cross-origin page may resolve a name of its own to this address, and read the response
        // (DNS rebinding).
        let hosts = request.headers().get_all(HOST);
        if self.config.admin.token.is_none() && !hosts.iter().all(target::is_local_or_literal) {
            let why = "without a token in [admin] this listener answers to localhost and to addresses alone; use one in the URL, or set the token\n";
            return Ok(text(StatusCode::MISDIRECTED_REQUEST, why));
        }
        Ok(match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/healthz") => self.healthz(),
            (&Method::GET | &Method::HEAD, "/readyz") => self.readyz().await,
            (&Method::GET | &Method::HEAD, "/metrics") => self.metrics().await,
            (&Method::GET | &Method::HEAD, "/status") if self.may_see(&request) => self.status().await,
            (&Method::GET | &Method::HEAD, "/status") => {
                let mut page = text(StatusCode::UNAUTHORIZED, "send Authorization: Bearer and the token of [admin]\n");
                page.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
                page
            }
            (_, "/healthz" | "/readyz" | "/metrics" | "/status") => {
                text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered here\n")
            }
            _ => text(StatusCode::NOT_FOUND, "there are /healthz, /readyz, /status and /metrics\n"),
        })
    }

    fn may_see<B>(&self, request: &Request<B>) -> bool {
        let Some(token) = &self.config.admin.token else { return true };
        let given = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let given = match given.split_at_checked(7) {
            Some((scheme, given)) if scheme.eq_ignore_ascii_case(b"bearer ") => given.trim_ascii(),
            _ => &[],
        };
        is_equal(token.as_bytes(), given)
    }

    /// Fails if only a restart can help.
    fn healthz(&self) -> Page {
        match self.engine.store().info().broken {
            None => text(StatusCode::OK, "ok\n"),
            Some(why) => {
                text(StatusCode::SERVICE_UNAVAILABLE, format!("the store takes no writes until a restart: {why}\n"))
            }
        }
    }

    /// Checks the store with writes and reads: a store that serves only reads is not ready.
    async fn readyz(&self) -> Page {
        if self.engine.is_draining() || self.leaving.load(Ordering::Relaxed) {
            return text(StatusCode::SERVICE_UNAVAILABLE, "draining\n");
        }
        // Single-flight: concurrent probes wait for the same result.
        let mut ready = self.ready.lock().await;
        let fresh = ready.take().filter(|(at, _)| at.elapsed() < READY_FOR);
        let (at, said) = match fresh {
            Some(known) => known,
            None => {
                let said = match timeout(self.config.limits.store_timeout, self.engine.self_test()).await {
                    Ok(result) => result.map_err(|error| format!("the store failed: {}", crate::chain(&error))),
                    Err(_) => Err("the store is slow: it did not finish in store_timeout".into()),
                };
                if let Err(why) = &said {
                    tracing::warn!(why, "not ready");
                }
                (Instant::now(), said)
            }
        };
        let page = match &said {
            Ok(()) => text(StatusCode::OK, "ready\n"),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        };
        *ready = Some((at, said));
        page
    }

    async fn metrics(&self) -> Page {
        match self.engine.stats().await {
            Ok(census) => self.metrics.set_census(census.in_flight, census.unknown),
            Err(error) => tracing::warn!(%error, "the store could not be counted"),
        }
        self.metrics.set_process(self.engine.executing(), crate::logging::dropped_lines());
        match self.metrics.text() {
            Ok(body) => {
                let mut page = text(StatusCode::OK, body);
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
                page
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    async fn status(&self) -> Page {
        let config = &self.config;
        let facts = self.engine.store().info();
        let holds = match (facts.survives_kill, facts.survives_power_loss) {
            (true, true) => "over a kill and a loss of power",
            (true, false) => "over a kill, not over a loss of power",
            (false, _) => "until this process ends: a restart forgets all keys",
        };
        let guarantee = |policy: &Policy| {
            json!({
                "route": &*policy.route,
                "methods": policy.methods.iter().map(Method::as_str).collect::<Vec<_>>(),
                "guarantee": policy.guarantee.as_str(),
                "holds": holds,
                "principal": policy.principal.to_string(),
                "scope": policy.scope.to_string(),
            })
        };
        let policies = std::iter::once(&config.policy).chain(config.routes.iter().map(|(_, policy)| policy));
        let census = match self.engine.stats().await {
            Ok(census) => json!({
                "in_flight": census.in_flight,
                "completed": census.completed,
                "released": census.released,
                "unknown": census.unknown,
                "tombstones": census.tombstones,
                "bytes": census.bytes,
            }),
            Err(error) => json!({ "error": crate::chain(&error) }),
        };
        let source = |(setting, value, origin): &(String, String, Origin)| json!({ "setting": setting, "value": value, "from": origin.to_string() });
        let mut warnings = config.warnings.clone();
        if !facts.survives_kill {
            warnings
                .push("the store forgets all keys when this process ends; a retry after that executes again".into());
        }
        warnings.extend(self.metrics.principal_warnings());
        let body = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "draining": self.engine.is_draining(),
            "in_flight": self.engine.in_flight(),
            "connections_max": self.connections_max,
            "log_lines_dropped": crate::logging::dropped_lines(),
            "executing": self.engine.executing(),
            "executions_max": self.engine.limits().executions,
            "upstream": config.upstream.to_string(),
            "namespace": config.namespace,
            "guarantees": policies.map(guarantee).collect::<Vec<_>>(),
            "store": {
                "kind": facts.kind,
                "survives_kill": facts.survives_kill,
                "survives_power_loss": facts.survives_power_loss,
                "promise": facts.durability,
            },
            "census": census,
            "settings": config.sources.iter().map(source).collect::<Vec<_>>(),
            "warnings": warnings,
            "errors": self.faults,
        });
        let mut page = text(StatusCode::OK, pretty(&body));
        page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        page
    }
}

fn pretty(body: &Value) -> String {
    format!("{body:#}\n")
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Page {
    let mut page = Response::new(Full::new(body.into()));
    *page.status_mut() = status;
    page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    page.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    page
}

/// Compares in constant time.
fn is_equal(token: &[u8], given: &[u8]) -> bool {
    let differs = token.iter().zip(given).fold(0, |differs, (a, b)| std::hint::black_box(differs | (a ^ b)));
    token.len() == given.len() && differs == 0
}

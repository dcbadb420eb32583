//! Keys that verify tokens: a JWKS (RFC 7517) in a file or at a URL, cached, and read again when it
//! rotates.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::ACCEPT;
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use onceward::engine::Engine;
use parking_lot::RwLock;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tower_service::Service;

use super::Rejected;
use crate::config::{Config, Host, KeySource};
use crate::upstream::{Forwarder, FromUpstream, Own};

/// Timeout of a fetch from a URL.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Upper bound on the bytes of a key set.
const SET_BYTES_MAX: usize = 1 << 20;
/// Upper bound on the keys of a set.
const KEYS_MAX: usize = 100;
/// Upper bound on the keys that are tried for one token without a `kid`.
const TRIED_MAX: usize = 8;
/// Minimum time between two refreshes that tokens cause: any client can send an unknown `kid`.
const READ_AGAIN_EVERY: Duration = Duration::from_secs(5);

struct OneKey {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

/// Set of keys. It stays in use while its source fails.
pub(super) struct KeySet {
    source: KeySource,
    client: Option<Forwarder<Empty<Bytes>>>,
    keys: RwLock<Arc<Vec<OneKey>>>,
    /// Time of the last refresh, successful or not.
    last_read: Mutex<Option<Instant>>,
}

impl KeySet {
    pub(super) async fn open(source: KeySource, config: &Config, engine: &Engine) -> Result<Self, String> {
        let client = match &source {
            KeySource::Url { server, .. } => {
                let mut of_server = config.clone();
                of_server.upstream = server.clone();
                of_server.host = Host::Upstream;
                of_server.limits.upstream_timeout = FETCH_TIMEOUT;
                of_server.unkeyed_timeout = FETCH_TIMEOUT;
                Some(Forwarder::new(&of_server, engine.clone(), 1).map_err(|error| format!("jwt.jwks: {error}"))?)
            }
            _ => None,
        };
        let set = Self { source, client, keys: RwLock::default(), last_read: Mutex::default() };
        match set.read().await {
            Ok(keys) => *set.keys.write() = Arc::new(keys),
            // A file exists or does not; a server may become reachable later.
            Err(error) if set.client.is_none() => return Err(format!("jwt.jwks: {error}")),
            Err(error) => {
                tracing::warn!(
                    "jwt.jwks: {error}; asked again with the next token, until then keyed requests with tokens are refused"
                );
            }
        }
        Ok(set)
    }

    /// Returns the keys that may have signed a token. An unknown `kid` refreshes the set.
    pub(super) async fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Result<Vec<DecodingKey>, Rejected> {
        let found = self.matching(id, algorithm);
        if !found.is_empty() {
            return Ok(found);
        }
        self.read_again().await;
        if self.keys.read().is_empty() {
            return Err(Rejected::NoKeys);
        }
        Ok(self.matching(id, algorithm))
    }

    fn matching(&self, id: Option<&str>, algorithm: Algorithm) -> Vec<DecodingKey> {
        let keys = Arc::clone(&self.keys.read());
        let matches = |one: &&OneKey| {
            one.algorithms.contains(&algorithm)
                && match (id, &one.id) {
                    (Some(id), Some(its)) => id == its,
                    // A key without an id may match any.
                    (_, None) | (None, _) => true,
                }
        };
        keys.iter().filter(matches).take(TRIED_MAX).map(|one| one.key.clone()).collect()
    }

    /// Refreshes the set, unless that was done just before. Single-flight: concurrent callers wait
    /// for the same refresh.
    async fn read_again(&self) {
        let mut last = self.last_read.lock().await;
        if last.is_some_and(|last| last.elapsed() < READ_AGAIN_EVERY) {
            return;
        }
        self.replace().await;
        *last = Some(Instant::now());
    }

    /// Refreshes the set.
    pub(super) async fn refresh(&self) {
        let mut last = self.last_read.lock().await;
        self.replace().await;
        *last = Some(Instant::now());
    }

    async fn replace(&self) {
        match self.read().await {
            Ok(keys) => *self.keys.write() = Arc::new(keys),
            Err(error) => tracing::warn!("jwt.jwks: {error}; the keys that were read before stay in use"),
        }
    }

    async fn read(&self) -> Result<Vec<OneKey>, String> {
        let text = match (&self.source, &self.client) {
            (KeySource::Url { target, url, .. }, Some(client)) => {
                let fetched = timeout(FETCH_TIMEOUT, fetch(client, target)).await;
                fetched
                    .unwrap_or_else(|_| Err("no response in 5 s".into()))
                    .map_err(|error| format!("{url}: {error}"))?
            }
            (KeySource::File(path), _) => read_file(path)?,
            _ => return Err("no source is set".into()),
        };
        let keys = parse(&text)?;
        if keys.is_empty() {
            return Err("it has no key that verifies a signature (RSA, EC P-256 or P-384, Ed25519)".into());
        }
        Ok(keys)
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let text = std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    match text.len() <= SET_BYTES_MAX {
        true => Ok(text),
        false => Err(format!("{} is larger than 1 MiB", path.display())),
    }
}

async fn fetch(client: &Forwarder<Empty<Bytes>>, target: &str) -> Result<Vec<u8>, String> {
    let request = Request::get(target)
        .extension(Own)
        .header(ACCEPT, HeaderValue::from_static("application/jwk-set+json, application/json"))
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    let Ok(response) = client.clone().call(request).await;
    if response.extensions().get::<FromUpstream>().is_none() {
        return Err("the server cannot be reached".into());
    }
    if response.status() != StatusCode::OK {
        return Err(format!("the server responded {}", response.status()));
    }
    let mut body = std::pin::pin!(response.into_body());
    let mut text = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| error.to_string())?;
        if let Ok(data) = frame.into_data() {
            text.extend_from_slice(&data);
        }
        if text.len() > SET_BYTES_MAX {
            return Err("the set is larger than 1 MiB".into());
        }
    }
    Ok(text.to_vec())
}

/// Parses a set. Skips keys of other kinds: those for encryption, and shared secrets.
fn parse(text: &[u8]) -> Result<Vec<OneKey>, String> {
    let set: Value = serde_json::from_slice(text).map_err(|error| format!("it is not JSON: {error}"))?;
    let keys = set["keys"].as_array().ok_or("it is no JWKS; write {\"keys\": […]}")?;
    if keys.len() > KEYS_MAX {
        return Err(format!("it has {} keys; at most {KEYS_MAX} are read", keys.len()));
    }
    Ok(keys.iter().filter_map(|key| one_key(serde_json::from_value(key.clone()).ok()?)).collect())
}

fn one_key(jwk: Jwk) -> Option<OneKey> {
    use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
    if matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption)) {
        return None;
    }
    let of_kind: &[Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &[RS256, RS384, RS512, PS256, PS384, PS512],
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => &[ES256],
            EllipticCurve::P384 => &[ES384],
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => &[EdDSA],
        _ => return None,
    };
    let algorithms = match jwk.common.key_algorithm {
        None => of_kind.to_vec(),
        Some(named) => of_kind.iter().copied().filter(|algorithm| is_same(named, *algorithm)).collect(),
    };
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    (!algorithms.is_empty()).then(|| OneKey { id: jwk.common.key_id, algorithms, key })
}

fn is_same(named: KeyAlgorithm, algorithm: Algorithm) -> bool {
    format!("{named:?}") == format!("{algorithm:?}")
}

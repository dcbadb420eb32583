//! The key of a request: found in it, remembered of it, or made for it.

use std::time::SystemTime;

use http::{Extensions, HeaderValue};
use onceward::key::Key;
use onceward::wire::IDEMPOTENCY_KEY;
use reqwest::Request;
use uuid::Uuid;

/// What a person or a program means to do once, in words of its own, such as `"order 7"`: as long as its outcome is open, a
/// request with the same intent and the same content has the same key, also after a crash if there is a journal. Given by
/// [`RequestBuilder::with_extension`](reqwest_middleware::RequestBuilder::with_extension).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent(pub(crate) String);

impl Intent {
    /// Any words.
    pub fn new(words: impl Into<String>) -> Self {
        Self(words.into())
    }
}

/// A request with its key, and what is known of it so far.
#[derive(Clone, Debug)]
pub(crate) struct Keyed {
    pub(crate) key: String,
    /// An IMF-fixdate.
    pub(crate) first_sent: String,
    /// Whether an earlier send may have been executed.
    pub(crate) doubt: bool,
    pub(crate) digest: Digest,
}

/// Of method, URL and body. `None` as a body: it is streamed, and cannot be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    pub(crate) fn of(request: &Request) -> Self {
        let mut hasher = blake3::Hasher::new();
        let body = request.body().and_then(|body| body.as_bytes()).unwrap_or_default();
        for part in [request.method().as_str().as_bytes(), request.url().as_str().as_bytes(), body] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        Self(*hasher.finalize().as_bytes())
    }

    pub(crate) fn hex(self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }
}

/// What a middleware outside of ours sends again has the key of its first send: it hands the same extensions in.
#[derive(Clone, Debug, Default)]
struct Before(Vec<Keyed>);

impl Keyed {
    /// One that is remembered of an earlier send of this very request.
    pub(crate) fn before(extensions: &Extensions, digest: Digest) -> Option<Self> {
        let Before(before) = extensions.get()?;
        before.iter().find(|keyed| keyed.digest == digest).cloned()
    }

    pub(crate) fn remember(&self, extensions: &mut Extensions) {
        let Before(before) = extensions.get_or_insert_default();
        before.retain(|keyed| keyed.digest != self.digest);
        before.push(self.clone());
    }

    /// A new one: UUIDv7, or what the caller wrote into the header.
    pub(crate) fn new(request: &Request, digest: Digest, now: SystemTime) -> Self {
        let own = request.headers().get(IDEMPOTENCY_KEY).and_then(|value| Key::parse(value.as_bytes()).ok());
        Self {
            key: own.map_or_else(|| Uuid::now_v7().to_string(), |key| key.as_str().to_owned()),
            first_sent: httpdate::fmt_http_date(now),
            doubt: false,
            digest,
        }
    }

    /// The key as an RFC 9651 string.
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        let quoted = format!("\"{}\"", self.key.replace('\\', "\\\\").replace('"', "\\\""));
        HeaderValue::from_str(&quoted).ok()
    }
}

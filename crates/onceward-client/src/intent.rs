//! Key of a request: found in it, remembered from an earlier send, or created for it.

use std::time::SystemTime;

use http::{Extensions, HeaderValue};
use onceward::key::Key;
use onceward::wire::IDEMPOTENCY_KEY;
use reqwest::Request;
use uuid::Uuid;

/// Name of an action that is meant to happen once, such as `"order 7"`. Set with
/// [`RequestBuilder::with_extension`](reqwest_middleware::RequestBuilder::with_extension).
///
/// A name stands for one action and one key, whatever the content, from the first send until 24
/// hours after its end. The process remembers it, and with a [`Journal`](crate::Journal) a later
/// run does too. Sent again with equal content, it gets the first response. With other content it
/// is sent under the same key: a server that has seen the key rejects it, and the request fails
/// with [`Kind::KeyReused`](crate::decide::Kind::KeyReused).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intent {
    pub(crate) name: String,
    pub(crate) repeatable: bool,
}

impl Intent {
    /// Returns an intent with this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), repeatable: false }
    }

    /// Releases the name as soon as its end was delivered, so that it can then name another action.
    pub fn repeatable(mut self) -> Self {
        self.repeatable = true;
        self
    }
}

/// Key of a request, and the knowledge of its sends so far.
#[derive(Clone, Debug)]
pub(crate) struct Keyed {
    pub(crate) key: String,
    /// Time of the first send, as an IMF-fixdate.
    pub(crate) first_sent: String,
    /// `true` if an earlier send may have been executed.
    pub(crate) maybe_executed: bool,
    pub(crate) digest: Digest,
}

/// Digest of method, URL and body. The digest of a streamed body, which cannot be read, equals no
/// other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    pub(crate) fn of(request: &Request) -> Self {
        let body = match request.body() {
            None => &[],
            Some(body) => match body.as_bytes() {
                Some(bytes) => bytes,
                None => return Self::unequal(),
            },
        };
        let mut hasher = blake3::Hasher::new();
        for part in [request.method().as_str().as_bytes(), request.url().as_str().as_bytes(), body] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// Returns a digest that equals no other.
    pub(crate) fn unequal() -> Self {
        Self(rand::random())
    }

    pub(crate) fn hex(self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }
}

/// Keys of the requests that a middleware outside of this one sent with these extensions.
#[derive(Clone, Debug, Default)]
struct Earlier(Vec<Keyed>);

impl Keyed {
    /// Returns the key of an earlier send of this request by a retrying middleware outside.
    pub(crate) fn earlier(extensions: &Extensions, digest: Digest) -> Option<Self> {
        let Earlier(earlier) = extensions.get()?;
        earlier.iter().find(|keyed| keyed.digest == digest).cloned()
    }

    pub(crate) fn remember(&self, extensions: &mut Extensions) {
        let Earlier(earlier) = extensions.get_or_insert_default();
        earlier.retain(|keyed| keyed.digest != self.digest);
        earlier.push(self.clone());
    }

    /// Creates a key: the one in the request's header, else a UUIDv7.
    pub(crate) fn new(request: &Request, digest: Digest, now: SystemTime) -> Self {
        let own = request.headers().get(IDEMPOTENCY_KEY).and_then(|value| Key::parse(value.as_bytes()).ok());
        Self {
            key: own.map_or_else(|| Uuid::now_v7().to_string(), |key| key.as_str().to_owned()),
            first_sent: httpdate::fmt_http_date(now),
            maybe_executed: false,
            digest,
        }
    }

    /// Returns the key as an RFC 9651 string.
    pub(crate) fn header(&self) -> Option<HeaderValue> {
        let quoted = format!("\"{}\"", self.key.replace('\\', "\\\\").replace('"', "\\\""));
        HeaderValue::from_str(&quoted).ok()
    }
}

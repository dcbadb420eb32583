//! What the upstream gave to an origin, as far as it was seen.

use std::num::NonZeroUsize;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, HeaderMap,
};
use http::{HeaderValue, StatusCode};
use lru::LruCache;
use parking_lot::Mutex;

use super::Asked;

/// Of so many pairs of origin and path it is remembered what the upstream gave them; the one that was looked at longest ago
/// goes first.
const PAIRS_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("more than none");
/// More than this of what an answer exposes is not remembered.
const EXPOSED_BYTES_MAX: usize = 1024;

/// What the upstream gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) origin: HeaderValue,
    pub(super) credentials: bool,
    /// Its own headers that a page may read.
    pub(super) exposed: Vec<HeaderValue>,
}

impl Given {
    /// What an answer gives. `None`: nothing.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let origin = headers.get(ACCESS_CONTROL_ALLOW_ORIGIN)?.clone();
        let credentials = headers.get(ACCESS_CONTROL_ALLOW_CREDENTIALS).is_some_and(|value| value == "true");
        let exposed: Vec<_> = headers.get_all(ACCESS_CONTROL_EXPOSE_HEADERS).iter().cloned().collect();
        let bytes: usize = exposed.iter().map(HeaderValue::len).sum();
        Some(Self { origin, credentials, exposed: if bytes <= EXPOSED_BYTES_MAX { exposed } else { Vec::new() } })
    }

    /// What the settings give.
    pub(super) fn to(origin: &HeaderValue) -> Self {
        Self { origin: origin.clone(), credentials: true, exposed: Vec::new() }
    }

    /// Whether a browser takes it for a yes.
    pub(super) fn allows(&self, origin: &HeaderValue) -> bool {
        self.origin == *origin || self.origin == "*" && !self.credentials
    }
}

/// By origin and path; `None`: the upstream was seen to give nothing.
pub(super) struct Learned(Mutex<LruCache<(HeaderValue, String), Option<Given>>>);

impl Default for Learned {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(PAIRS_MAX)))
    }
}

impl Learned {
    /// Remembers what an answer of the upstream gives.
    pub(super) fn learn(&self, asked: &Asked, status: StatusCode, headers: &HeaderMap) {
        let mut known = self.0.lock();
        let pair = (asked.origin.clone(), asked.path.clone());
        match Given::of(headers) {
            Some(mut given) => {
                // A preflight does not say what may be read; what an answer said before still holds.
                if asked.is_preflight
                    && let Some(Some(before)) = known.get(&pair)
                {
                    given.exposed.clone_from(&before.exposed);
                }
                known.put(pair, Some(given));
            }
            // An error page of something in between says nothing about origins; an answer does.
            None if asked.is_preflight || status.is_success() => drop(known.put(pair, None)),
            None => {}
        }
    }

    /// What was last given. `None`: not known.
    pub(super) fn find(&self, origin: &HeaderValue, path: &str) -> Option<Option<Given>> {
        self.0.lock().get(&(origin.clone(), path.to_owned())).cloned()
    }
}

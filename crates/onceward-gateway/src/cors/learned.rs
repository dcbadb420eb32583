//! What the upstream gave to an origin, as far as it was seen.

use std::num::NonZeroUsize;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, HeaderMap,
};
use http::{HeaderValue, Method};
use lru::LruCache;
use parking_lot::Mutex;

use super::Asked;

/// Upper bound on places of which it is remembered what the upstream gave; the one that was looked at longest ago goes first.
const PLACES_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("more than none");
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

/// What something is given for. What one host of a service allows says nothing about another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// As the upstream sees it.
    pub(super) host: HeaderValue,
    pub(super) origin: HeaderValue,
    pub(super) path: String,
    pub(super) method: Method,
}

/// By place; `None`: the upstream was seen to give nothing.
pub(super) struct Learned(Mutex<LruCache<Place, Option<Given>>>);

impl Default for Learned {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(PLACES_MAX)))
    }
}

impl Learned {
    /// Remembers what a response of the upstream gives. A client's preflight without anything is asked about again.
    pub(super) fn learn(&self, place: Place, asked: &Asked, headers: &HeaderMap) {
        let mut known = self.0.lock();
        match Given::of(headers) {
            // For another origin than this one: a service that has one origin names it to all.
            Some(given) if !given.allows(&asked.origin) => {}
            Some(mut given) => {
                // A preflight does not say what may be read; what a response said before still holds.
                if asked.is_preflight
                    && let Some(Some(before)) = known.get(&place)
                {
                    given.exposed.clone_from(&before.exposed);
                }
                known.put(place, Some(given));
            }
            None if asked.is_preflight => drop(known.pop(&place)),
            None => {}
        }
    }

    /// Remembers that the upstream gives nothing.
    pub(super) fn refuse(&self, place: Place) {
        self.0.lock().put(place, None);
    }

    /// What was last given. `None`: not known.
    pub(super) fn find(&self, place: &Place) -> Option<Option<Given>> {
        self.0.lock().get(place).cloned()
    }
}

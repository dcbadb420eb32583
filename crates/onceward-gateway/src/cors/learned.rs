//! Caches the CORS permissions that the upstream gave to origins.

use std::num::NonZeroUsize;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, HeaderMap,
};
use http::{HeaderValue, Method};
use lru::LruCache;
use parking_lot::Mutex;

use super::Asked;

/// Upper bound on cached places. The least recently used one is evicted first.
const PLACES_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("more than none");
/// Upper bound on the cached bytes of the headers that a response exposes.
const EXPOSED_BYTES_MAX: usize = 1024;

/// CORS permission from the upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) origin: HeaderValue,
    pub(super) credentials: bool,
    /// Headers of the upstream that a page may read.
    pub(super) exposed: Vec<HeaderValue>,
}

impl Given {
    /// Reads the permission from a response. Returns `None` if it gives none.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let origin = headers.get(ACCESS_CONTROL_ALLOW_ORIGIN)?.clone();
        let credentials = headers.get(ACCESS_CONTROL_ALLOW_CREDENTIALS).is_some_and(|value| value == "true");
        let exposed: Vec<_> = headers.get_all(ACCESS_CONTROL_EXPOSE_HEADERS).iter().cloned().collect();
        let bytes: usize = exposed.iter().map(HeaderValue::len).sum();
        Some(Self { origin, credentials, exposed: if bytes <= EXPOSED_BYTES_MAX { exposed } else { Vec::new() } })
    }

    /// Returns the permission of an origin that the settings list.
    pub(super) fn to(origin: &HeaderValue) -> Self {
        Self { origin: origin.clone(), credentials: true, exposed: Vec::new() }
    }

    /// Returns `true` if a browser accepts it as a permission for `origin`.
    pub(super) fn allows(&self, origin: &HeaderValue) -> bool {
        self.origin == *origin || self.origin == "*" && !self.credentials
    }
}

/// Cache key of a permission. A permission of one host of a service does not apply to another host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// `Host` that the upstream receives.
    pub(super) host: HeaderValue,
    pub(super) origin: HeaderValue,
    pub(super) path: String,
    pub(super) method: Method,
}

/// Permissions by place. `None` means that the upstream gave none.
pub(super) struct Learned(Mutex<LruCache<Place, Option<Given>>>);

impl Default for Learned {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(PLACES_MAX)))
    }
}

impl Learned {
    /// Caches the permission from a response of the upstream. A client's preflight that got none
    /// only removes the cached one, so that the gateway sends a preflight of its own.
    pub(super) fn learn(&self, place: Place, asked: &Asked, headers: &HeaderMap) {
        let mut known = self.0.lock();
        match Given::of(headers) {
            // The permission is for another origin: a service with one allowed origin names it to
            // all.
            Some(given) if !given.allows(&asked.origin) => {}
            Some(mut given) => {
                // A preflight response does not list readable headers; those from an earlier
                // response still apply.
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

    /// Caches that the upstream gives no permission.
    pub(super) fn refuse(&self, place: Place) {
        self.0.lock().put(place, None);
    }

    /// Returns the cached permission, or `None` if nothing is cached.
    pub(super) fn find(&self, place: &Place) -> Option<Option<Given>> {
        self.0.lock().get(place).cloned()
    }
}

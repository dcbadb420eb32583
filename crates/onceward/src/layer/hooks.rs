//! Hooks by which the program customises a layer.

use std::any::{Any, type_name};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::{Extensions, Uri, request};

use super::failure;
use crate::policy::Disposition;
use crate::principal::Caller;

type UriOf = dyn for<'a> Fn(&'a request::Parts) -> &'a Uri + Send + Sync;
type PrincipalOf = dyn Fn(&request::Parts) -> Option<Vec<u8>> + Send + Sync;
type Classify = dyn Fn(&dyn Any) -> Option<Disposition> + Send + Sync;

/// Closures that were given to the builder, and the extensions that must not be present.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    pub(super) uri: Option<Arc<UriOf>>,
    pub(super) principal: Option<Arc<PrincipalOf>>,
    pub(super) classify: Option<Arc<Classify>>,
    pub(super) inner_only: Vec<InnerOnly>,
}

impl Hooks {
    /// Returns the URI as it was received.
    pub(super) fn uri<'a>(&self, head: &'a request::Parts) -> &'a Uri {
        match &self.uri {
            Some(uri) => uri(head),
            None => &head.uri,
        }
    }

    /// Names the caller by the closure, if there is one and it returns a name, as a middleware in
    /// front would.
    pub(crate) fn name_caller(&self, head: &mut request::Parts) {
        if let Some(name) = self.principal.as_ref().and_then(|principal| principal(head)) {
            head.extensions.insert(Caller::new(name));
        }
    }

    /// Returns true if a closure names the caller.
    pub(super) fn name_callers(&self) -> bool {
        self.principal.is_some()
    }

    /// Returns the disposition of an attempt whose inner service returned an error.
    pub(super) fn fate_of<E: 'static>(&self, error: &E) -> Option<Disposition> {
        let own = self.classify.as_ref().and_then(|classify| classify(error));
        own.or_else(|| failure::fate_of(error))
    }

    /// Warns once for each extension that a layer outside has made, and that belongs inside.
    pub(super) fn warn_of(&self, extensions: &Extensions) {
        for marker in &self.inner_only {
            if (marker.is_in)(extensions) && !marker.warned.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    extension = marker.name,
                    "{}: a client disconnect drops the layers outside of Onceward while the handler runs on, so what they would \
                     commit or save is lost, and the retry replays a response to it; put Onceward around the whole application",
                    marker.why,
                );
            }
        }
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks")
            .field("uri", &self.uri.is_some())
            .field("principal", &self.principal.is_some())
            .field("classify_error", &self.classify.is_some())
            .field("inner_only", &self.inner_only)
            .finish()
    }
}

/// Extension of requests that only layers inside of this one may make.
#[derive(Clone)]
pub(super) struct InnerOnly {
    is_in: fn(&Extensions) -> bool,
    name: &'static str,
    why: &'static str,
    warned: Arc<AtomicBool>,
}

impl InnerOnly {
    pub(super) fn of<T: Clone + Send + Sync + 'static>(why: &'static str) -> Self {
        let is_in = |extensions: &Extensions| extensions.get::<T>().is_some();
        Self { is_in, name: type_name::<T>(), why, warned: Arc::default() }
    }
}

impl fmt::Debug for InnerOnly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

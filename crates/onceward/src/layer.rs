//! The `tower` layer: put it before a service, and a retried POST takes effect once.
//!
//! # Example
//!
//! ```
//! use onceward::layer::IdempotencyLayer;
//! use onceward::store::MemoryStore;
//! use tower_layer::Layer;
//!
//! # #[derive(Clone)] struct PlaceOrder;
//! // `PlaceOrder` is any cloneable `tower` service over HTTP.
//! let once = IdempotencyLayer::new(MemoryStore::default());
//! let service = once.require_key().layer(PlaceOrder);
//! # let _ = service;
//! ```
//!
//! # Example: another policy, and another store's limits
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//! use onceward::layer::IdempotencyLayer;
//! use onceward::limits::Limits;
//! use onceward::policy::Policy;
//! use onceward::principal::{Part, Rule};
//! use onceward::store::MemoryStore;
//!
//! let mut limits = Limits::default();
//! limits.request_body = 64 << 10;
//! let mut policy = Policy::default();
//! policy.principal = Rule::Parts(vec![Part::Authorization]);
//! policy.retention = Duration::from_secs(48 * 3600);
//!
//! let once = IdempotencyLayer::builder(Arc::new(MemoryStore::default())).limits(limits).build().with_policy(policy);
//! # let _ = once;
//! ```

//! # Where to put it
//!
//! Outside of whatever shortens the path: a fingerprint is made of the URI that the layer sees, and where `/shops/1/orders` and
//! `/shops/2/orders` both arrive as `/orders`, one of them would be told the other's answer instead of `422 key_reused`. With the
//! feature `axum-08` the URI as it was received counts, so that it may stand within `Router::nest`.

pub mod body;
pub(crate) mod coding;
mod future;
mod keys;
mod redirect;
mod service;

use std::sync::Arc;

use tower_layer::Layer;

use crate::clock::Clock;
use crate::endpoints::Endpoints;
use crate::engine::{self, Engine};
use crate::issued::Issuing;
use crate::limits::Limits;
use crate::observe::Observer;
use crate::policy::{Keys, Missing, Policy};
use crate::secret::Secret;
use crate::store::Store;
use crate::wire;

pub use body::Body;
pub use future::ResponseFuture;
use service::Settings;
pub use service::{FromRecord, Idempotency};

/// Applies [`Idempotency`]. Clones share the engine. See the [module's docs](crate::layer) for examples.
#[derive(Clone, Debug)]
pub struct IdempotencyLayer {
    settings: Arc<Settings>,
}

impl IdempotencyLayer {
    /// Over a store, with the documented defaults.
    pub fn new(store: impl Store) -> Self {
        Self::builder(Arc::new(store)).build()
    }

    /// Over a store, with other settings.
    pub fn builder(store: Arc<dyn Store>) -> Builder {
        Builder { engine: Engine::builder(store), forwarding: false }
    }

    /// The same with another policy, over the same engine.
    pub fn with_policy(&self, policy: Policy) -> Self {
        let settings = Settings { policy: Arc::new(policy), ..(*self.settings).clone() };
        Self { settings: Arc::new(settings) }
    }

    /// The same, refusing requests without a key.
    pub fn require_key(&self) -> Self {
        self.with_policy(Policy { missing: Missing::Reject, ..self.policy().clone() })
    }

    /// The same, taking keys alone that `POST keys` of [`IdempotencyLayer::endpoints`] issued.
    pub fn issued_keys(&self) -> Self {
        self.with_policy(Policy { keys: Keys::Issued, missing: Missing::Reject, ..self.policy().clone() })
    }

    /// The public paths `policy`, `operation` and `keys`, to be mounted at `/.idempotency`; refusals link to them from then on.
    pub fn endpoints(&self) -> Endpoints {
        self.endpoints_at(wire::ENDPOINTS, Vec::new())
    }

    /// The public paths, to be mounted at `mount`, with the routes that have a policy of their own.
    pub fn endpoints_at(&self, mount: &str, routes: Vec<(String, Policy)>) -> Endpoints {
        self.engine().mounted_at(mount);
        Endpoints::new(self.engine().clone(), self.policy().clone(), routes)
    }

    /// The engine: to start it before the first request, to drain it, to count.
    pub fn engine(&self) -> &Engine {
        &self.settings.engine
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.settings.policy
    }
}

impl<S> Layer<S> for IdempotencyLayer {
    type Service = Idempotency<S>;

    fn layer(&self, inner: S) -> Idempotency<S> {
        Idempotency::new(inner, Arc::clone(&self.settings))
    }
}

/// Builds an [`IdempotencyLayer`].
#[derive(Debug)]
pub struct Builder {
    engine: engine::Builder,
    forwarding: bool,
}

impl Builder {
    /// Services that share a store have a namespace each.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.engine = self.engine.namespace(namespace);
        self
    }

    /// The limits.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.engine = self.engine.limits(limits);
        self
    }

    /// The secret. Unset: the first process puts one into the store, and all others read it there.
    pub fn secret(mut self, secret: Secret) -> Self {
        self.engine = self.engine.secret(secret);
        self
    }

    /// How keys are issued.
    pub fn issuing(mut self, issuing: Issuing) -> Self {
        self.engine = self.engine.issuing(issuing);
        self
    }

    /// Who is told what happens.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.engine = self.engine.observer(observer);
        self
    }

    /// The holder's clock.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.engine = self.engine.clock(clock);
        self
    }

    /// The inner service forwards, and awaits [`Claim::first_byte`](crate::claim::Claim::first_byte) itself, right before
    /// it writes. Otherwise calling the inner service counts as the first byte.
    pub fn forwarding(mut self) -> Self {
        self.forwarding = true;
        self
    }

    /// The layer.
    pub fn build(self) -> IdempotencyLayer {
        let settings = Settings { engine: self.engine.build(), policy: Arc::default(), forwarding: self.forwarding };
        IdempotencyLayer { settings: Arc::new(settings) }
    }
}

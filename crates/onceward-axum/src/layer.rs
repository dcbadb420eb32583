use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, OriginalUri};
use http::{Uri, request};
use onceward::clock::Clock;
use onceward::endpoints::Endpoints;
use onceward::engine::Engine;
use onceward::issued::IssuerConfig;
use onceward::layer::{self, LayerError};
use onceward::limits::Limits;
use onceward::observe::Observer;
use onceward::policy::{Disposition, Policy};
use onceward::principal;
use onceward::secret::Secret;
use onceward::store::Store;
use tower_layer::Layer;

use crate::service::{Adapter, Idempotency};

/// Applies [`Idempotency`]: takes and returns axum's body, and compares requests by the URI as it
/// was received, even if a router in front has removed a part of its path. Clones share the engine.
#[derive(Clone, Debug)]
pub struct IdempotencyLayer(layer::IdempotencyLayer);

impl IdempotencyLayer {
    /// Creates a layer over a store, with the documented defaults.
    pub fn new(store: impl Store) -> Self {
        Self::builder(store).build()
    }

    /// Starts building a layer over a store, with other settings. An `Arc<dyn Store>` is accepted
    /// as well.
    pub fn builder(store: impl Store) -> Builder {
        let matched = "the layer is inside of a router, where each layer that is added later is outside of it";
        let builder = layer::IdempotencyLayer::builder(store)
            .uri(|head| head.extensions.get::<OriginalUri>().map_or(&head.uri, |original| &original.0));
        Builder(builder.inner_only::<MatchedPath>(matched))
    }

    /// Puts the layer around a whole application. Layers that are added to the returned router are
    /// outside.
    pub fn around(&self, app: Router) -> Router {
        Router::new().fallback_service(self.layer(app))
    }

    /// Returns a layer with another policy, over the same engine.
    pub fn with_policy(&self, policy: Policy) -> Self {
        Self(self.0.with_policy(policy))
    }

    /// Returns a layer with another policy for one path, such as `/orders` or `/orders/{id}`, over
    /// the same engine. A policy without a principal of its own gets the layer's.
    /// [`IdempotencyLayer::endpoints`] includes it from then on.
    pub fn policy_for(&self, path: &str, policy: Policy) -> Self {
        Self(self.0.policy_for(path, policy))
    }

    /// Returns a layer that refuses requests without a key at one path. Other paths accept them as
    /// before.
    pub fn require_key_for(&self, path: &str) -> Self {
        Self(self.0.require_key_for(path))
    }

    /// Returns a layer that refuses requests without a key, at all paths.
    pub fn require_key(&self) -> Self {
        Self(self.0.require_key())
    }

    /// Returns a layer that accepts only keys that `POST keys` of [`IdempotencyLayer::endpoints`]
    /// issued.
    pub fn issued_keys(&self) -> Self {
        Self(self.0.issued_keys())
    }

    /// Checks the policies, and opens the store before the first request does.
    /// [`serve`](crate::serve) does so.
    ///
    /// # Errors
    ///
    /// [`LayerError`] if a policy or a path is unusable, or if the store does not open.
    pub async fn start(&self) -> Result<(), LayerError> {
        self.0.start().await
    }

    /// Returns the public paths `policy`, `operation` and `keys`, to be nested at `/.idempotency`.
    /// Refusals link to them from then on.
    pub fn endpoints(&self) -> Endpoints {
        self.0.endpoints()
    }

    /// Returns the engine: to drain it, to read its counts.
    pub fn engine(&self) -> &Engine {
        self.0.engine()
    }

    /// Returns the policy of all paths that have none of their own.
    pub fn policy(&self) -> &Policy {
        self.0.policy()
    }
}

impl<S> Layer<S> for IdempotencyLayer {
    type Service = Idempotency<S>;

    fn layer(&self, inner: S) -> Idempotency<S> {
        Idempotency::new(self.0.layer(Adapter::new(inner)))
    }
}

/// Builds an [`IdempotencyLayer`].
#[derive(Debug)]
pub struct Builder(layer::Builder);

impl Builder {
    /// Sets the namespace. Services that share a store need one each.
    pub fn namespace(self, namespace: impl Into<String>) -> Self {
        Self(self.0.namespace(namespace))
    }

    /// Sets the policy of all paths that have none of their own.
    pub fn policy(self, policy: Policy) -> Self {
        Self(self.0.policy(policy))
    }

    /// Sets the parts of a request that name the caller. See [`layer::Builder::principal`].
    pub fn principal(self, rule: impl Into<principal::PrincipalRule>) -> Self {
        Self(self.0.principal(rule))
    }

    /// Sets a closure that names the caller from the head of a request. See
    /// [`layer::Builder::principal_with`].
    pub fn principal_with<N: Into<Vec<u8>>>(
        self,
        name: impl Fn(&request::Parts) -> Option<N> + Send + Sync + 'static,
    ) -> Self {
        Self(self.0.principal_with(name))
    }

    /// Sets a closure that returns the URI of a request as it was received. Unset: axum's original
    /// URI.
    pub fn uri(self, uri: impl for<'a> Fn(&'a request::Parts) -> &'a Uri + Send + Sync + 'static) -> Self {
        Self(self.0.uri(uri))
    }

    /// Sets the disposition for errors of the inner service. See
    /// [`layer::Builder::classify_error`].
    pub fn classify_error<E: 'static>(
        self,
        classify: impl Fn(&E) -> Option<Disposition> + Send + Sync + 'static,
    ) -> Self {
        Self(self.0.classify_error(classify))
    }

    /// Logs a warning if a layer outside has made this extension. See
    /// [`layer::Builder::inner_only`].
    pub fn inner_only<T: Clone + Send + Sync + 'static>(self, why: &'static str) -> Self {
        Self(self.0.inner_only::<T>(why))
    }

    /// Sets the limits.
    pub fn limits(self, limits: Limits) -> Self {
        Self(self.0.limits(limits))
    }

    /// Sets the secret. Unset: the first process writes one into the store, and all others read it
    /// from there.
    pub fn secret(self, secret: Secret) -> Self {
        Self(self.0.secret(secret))
    }

    /// Sets the configuration of issued keys.
    pub fn issuing(self, issuing: IssuerConfig) -> Self {
        Self(self.0.issuing(issuing))
    }

    /// Sets the observer, which is notified of events.
    pub fn observer(self, observer: Arc<dyn Observer>) -> Self {
        Self(self.0.observer(observer))
    }

    /// Sets the clock of claim holders. Tests of a service need not set it: the default follows
    /// tokio's paused time.
    pub fn clock(self, clock: Arc<dyn Clock>) -> Self {
        Self(self.0.clock(clock))
    }

    /// Builds the layer.
    pub fn build(self) -> IdempotencyLayer {
        IdempotencyLayer(self.0.build())
    }
}

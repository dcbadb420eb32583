//! `tower` layer for idempotency: wrapped around an application, it makes a retried POST take
//! effect once.
//!
//! For axum use the crate `onceward-axum`: the same layer over axum's body, an extractor, and one
//! function that serves with a graceful shutdown.
//!
//! # Example
//!
//! ```
//! use onceward::layer::IdempotencyLayer;
//! use onceward::policy::Policy;
//! use onceward::principal::PrincipalPart;
//! use onceward::store::MemoryStore;
//! use tower_layer::Layer;
//!
//! # #[derive(Clone)] struct App;
//! // `App` is any cloneable `tower` service over HTTP.
//! let once = IdempotencyLayer::builder(MemoryStore::default()).principal(PrincipalPart::Authorization).build();
//! let once = once.policy_for("/orders", Policy::default().principal(PrincipalPart::Authorization).require_key());
//! let service = once.layer(App);
//! # let _ = service;
//! ```
//!
//! # Example: another policy and other limits
//!
//! ```
//! use std::time::Duration;
//! use onceward::layer::IdempotencyLayer;
//! use onceward::limits::Limits;
//! use onceward::policy::Policy;
//! use onceward::principal::PrincipalPart;
//! use onceward::store::MemoryStore;
//!
//! let policy = Policy::default().principal(PrincipalPart::Authorization).retention(Duration::from_secs(48 * 3600));
//! let limits = Limits::default().request_body(64 << 10);
//! let once = IdempotencyLayer::builder(MemoryStore::default()).policy(policy).limits(limits).build();
//! # let _ = once;
//! ```
//!
//! # Order of layers
//!
//! The layer runs a handler to its end even if the client disconnects, and stores its response.
//! Layers whose work must complete with the handler go inside; layers that concern the connection
//! go outside.
//!
//! Outside of the layer:
//!
//! - Request ids, traces, access logs: they see replays and refusals too. The handler keeps the
//!   span when it outlives the connection.
//! - CORS: a browser hides each response without its headers, a replay included. Allow and expose
//!   the contract's headers.
//! - Authentication that names the caller: the layer must know whose key it is. See
//!   [`Builder::principal_with`].
//! - Rate limits by client, limits of the request's size: they refuse before a key is claimed. A
//!   body over such a limit gets 413.
//! - Compression of responses: each replay is compressed again, as its client accepts.
//!
//! Inside of the layer:
//!
//! - Sessions, transactions, `task_local!` scopes: dropped with the connection they would not save
//!   or commit, and the retry would replay a success.
//! - Timeouts of the handler: their response is an ordinary end of the attempt, and is stored.
//! - `load_shed`, `buffer`, circuit breakers, concurrency limits: an error before the handler frees
//!   the key ([`Builder::classify_error`]). Behind a router, a duplicate that waits holds no
//!   permit.
//! - Panics that are caught and turned into a response: that response is stored. Without it the
//!   layer responds with 500 `handler_panicked`, and the key is unknown.
//!
//! A fingerprint is made of the URI that the layer sees. A router in front may remove a part of the
//! path, as axum's `Router::nest` does. Then `/shops/1/orders` and `/shops/2/orders` both arrive as
//! `/orders`, and a retry of the one would get the response of the other. Put the layer around that
//! router, or return the URI as it was received from [`Builder::uri`].
//!
//! # Limits of a replay
//!
//! A replay has no response extensions, no trailers and no `Set-Cookie`: a flash message in a
//! cookie is shown once. It has `Cache-Control: no-store`. The boundary of a `multipart/form-data`
//! body differs with each submit, so routes that take forms need
//! [`Kind::Form`](crate::fingerprint::Kind::Form).
//!
//! Requests of gRPC, gRPC-Web and Connect execute once. Their responses are streams to the layer,
//! so they are not stored: a retry is refused with `answer_not_kept` in the client's own dialect
//! (`grpc-status`, with the code at the start of `grpc-message`), and so is each other refusal.
//! Unary Connect responses are stored and replayed like others.
//!
//! # Graceful shutdown
//!
//! A handler whose client has disconnected runs in a task that no server waits for. After the
//! server has stopped accepting:
//!
//! ```
//! # async fn stop(once: onceward::layer::IdempotencyLayer) {
//! once.engine().drain(); // when the signal comes: no new claims
//! once.engine().drained().await; // after the server has ended: what runs is finished and stored
//! # }
//! ```
//!
//! # Types
//!
//! The layer passes [`Body`] on in both directions, so an inner service must accept any body type.
//! For a service with a fixed type, convert it with `tower`'s `map_request_body` and
//! `map_response_body`, for example to a boxed body of `http-body-util`; `onceward-axum` does that
//! for axum. The `tower` adapters of poem and salvo accept services of their own body types only,
//! and actix has none: put the gateway in front of such a service.

pub mod body;
pub(crate) mod coding;
mod dialect;
mod failure;
mod future;
mod hooks;
mod keys;
mod redirect;
mod routes;
mod service;

use std::any::Any;
use std::sync::Arc;

use http::{Uri, request};
use parking_lot::Mutex;
use tower_layer::Layer;

use crate::clock::Clock;
use crate::endpoints::Endpoints;
use crate::engine::{self, Engine};
use crate::issued::IssuerConfig;
use crate::limits::Limits;
use crate::observe::Observer;
use crate::policy::{AcceptedKeys, Disposition, MissingKey, Policy};
use crate::principal;
use crate::secret::Secret;
use crate::store::Store;
use crate::wire;

pub use body::Body;
pub use future::ResponseFuture;
pub(crate) use hooks::Hooks;
use hooks::InnerOnly;
pub use routes::{LayerError, RouteError};
use service::Settings;
pub use service::{FromRecord, Idempotency};

/// Applies [`Idempotency`]. Clones share the engine. See the [module's docs](crate::layer) for
/// examples.
#[derive(Clone, Debug)]
pub struct IdempotencyLayer {
    settings: Arc<Settings>,
}

impl IdempotencyLayer {
    /// Creates a layer over a store, with the documented defaults.
    pub fn new(store: impl Store) -> Self {
        Self::builder(store).build()
    }

    /// Starts building a layer over a store, with other settings. An `Arc<dyn Store>` is accepted
    /// as well.
    pub fn builder(store: impl Store) -> Builder {
        Builder {
            engine: Engine::builder(shared(store)),
            policy: Policy::default(),
            hooks: Hooks::default(),
            forwarding: false,
        }
    }

    /// Returns a layer with another policy, over the same engine.
    pub fn with_policy(&self, policy: Policy) -> Self {
        self.with(|settings| settings.policy = Arc::new(policy))
    }

    /// Returns a layer with another policy for one path, such as `/orders` or `/orders/{id}`, over
    /// the same engine. A policy without a principal of its own gets the layer's.
    /// [`IdempotencyLayer::endpoints`] includes it from then on.
    pub fn policy_for(&self, path: &str, mut policy: Policy) -> Self {
        if *policy.route == *Policy::default().route {
            policy.route = path.into();
        }
        if policy.principal == principal::PrincipalRule::Unset {
            policy.principal = self.policy().principal.clone();
        }
        let mut registered = self.settings.registered.lock();
        match registered.iter_mut().find(|(known, _)| known == path) {
            Some((_, known)) => *known = policy.clone(),
            None => registered.push((path.to_owned(), policy.clone())),
        }
        drop(registered);
        self.with(|settings| settings.routes = Arc::new(settings.routes.with(path, policy)))
    }

    /// Returns a layer that refuses requests without a key at one path. Other paths accept them as
    /// before.
    pub fn require_key_for(&self, path: &str) -> Self {
        self.policy_for(path, self.policy().clone().require_key())
    }

    /// Returns a layer that refuses requests without a key.
    pub fn require_key(&self) -> Self {
        self.with_policy(Policy { missing: MissingKey::Reject, ..self.policy().clone() })
    }

    /// Returns a layer that accepts only keys that `POST keys` of [`IdempotencyLayer::endpoints`]
    /// issued.
    pub fn issued_keys(&self) -> Self {
        self.with_policy(Policy { keys: AcceptedKeys::Issued, missing: MissingKey::Reject, ..self.policy().clone() })
    }

    fn with(&self, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = (*self.settings).clone();
        change(&mut settings);
        Self { settings: Arc::new(settings) }
    }

    /// Checks the policies, and opens the store before the first request does.
    ///
    /// # Errors
    ///
    /// [`LayerError`] if a policy or a path is unusable, or if the store does not open.
    pub async fn start(&self) -> Result<(), LayerError> {
        let settings = &self.settings;
        settings
            .policy
            .check()
            .map_err(|error| LayerError::Policy { route: settings.policy.route.to_string(), error })?;
        settings.routes.check()?;
        self.engine().start().await.map_err(LayerError::Store)
    }

    /// Returns the public paths `policy`, `operation` and `keys`, to be mounted at `/.idempotency`.
    /// Refusals link to them from then on.
    pub fn endpoints(&self) -> Endpoints {
        let routes = self.settings.registered.lock().clone();
        self.endpoints_at(wire::ENDPOINTS, routes)
    }

    /// Returns the public paths, to be mounted at `mount`, with the routes that have a policy of
    /// their own.
    pub fn endpoints_at(&self, mount: &str, routes: Vec<(String, Policy)>) -> Endpoints {
        self.engine().mounted_at(mount);
        Endpoints::new(self.engine().clone(), self.policy().clone(), routes).hooks(self.settings.hooks.clone())
    }

    /// Returns the engine: to start it before the first request, to drain it, to read its counts.
    pub fn engine(&self) -> &Engine {
        &self.settings.engine
    }

    /// Returns the policy of all paths that have none of their own.
    pub fn policy(&self) -> &Policy {
        &self.settings.policy
    }
}

/// Returns the store as the engine shares it. A shared store is not wrapped again.
fn shared<S: Store>(store: S) -> Arc<dyn Store> {
    match (&store as &dyn Any).downcast_ref::<Arc<dyn Store>>() {
        Some(shared) => Arc::clone(shared),
        None => Arc::new(store),
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
    policy: Policy,
    hooks: Hooks,
    forwarding: bool,
}

impl Builder {
    /// Sets the namespace. Services that share a store need one each.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.engine = self.engine.namespace(namespace);
        self
    }

    /// Sets the policy of all paths that have none of their own.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets the parts of a request that name the caller, such as
    /// [`PrincipalPart::Authorization`](principal::PrincipalPart). Keys of different callers never
    /// collide. An empty list declares that all callers are one.
    pub fn principal(mut self, rule: impl Into<principal::PrincipalRule>) -> Self {
        self.policy.principal = rule.into();
        self
    }

    /// Sets a closure that names the caller from the head of a request, for example by the result
    /// of an authentication layer outside. `None`: the policy's rule decides. The closure must read
    /// only data that was *verified* outside of this layer: a header that an inner layer writes is
    /// still the client's here, and a header that an outer layer writes must overwrite the
    /// client's.
    ///
    /// ```
    /// # use onceward::{layer::IdempotencyLayer, store::MemoryStore};
    /// # #[derive(Clone)] struct User { id: String }
    /// let once = IdempotencyLayer::builder(MemoryStore::default())
    ///     .principal_with(|head| head.extensions.get::<User>().map(|user| user.id.clone()))
    ///     .build();
    /// # let _ = once;
    /// ```
    pub fn principal_with<N: Into<Vec<u8>>>(
        mut self,
        name: impl Fn(&request::Parts) -> Option<N> + Send + Sync + 'static,
    ) -> Self {
        self.hooks.principal = Some(Arc::new(move |head| name(head).map(Into::into)));
        self
    }

    /// Sets a closure that returns the URI of a request as it was received, for a router in front
    /// that has shortened it. Unset: the request's own.
    pub fn uri(mut self, uri: impl for<'a> Fn(&'a request::Parts) -> &'a Uri + Send + Sync + 'static) -> Self {
        self.hooks.uri = Some(Arc::new(uri));
        self
    }

    /// Sets the disposition for errors of the inner service: [`Disposition::NotSent`] or
    /// [`Disposition::Released`] if it surely did not execute, so that the key is free; `None` or
    /// another one if the outcome is unknown. Errors of `tower`'s `load_shed` and of a closed
    /// `buffer` are recognised as not executed.
    ///
    /// ```
    /// # use onceward::{layer::IdempotencyLayer, policy::Disposition, store::MemoryStore};
    /// # #[derive(Debug)] struct CircuitOpen;
    /// let once = IdempotencyLayer::builder(MemoryStore::default())
    ///     .classify_error(|_: &CircuitOpen| Some(Disposition::NotSent))
    ///     .build();
    /// # let _ = once;
    /// ```
    pub fn classify_error<E: 'static>(
        mut self,
        classify: impl Fn(&E) -> Option<Disposition> + Send + Sync + 'static,
    ) -> Self {
        let earlier = self.hooks.classify.take();
        self.hooks.classify = Some(Arc::new(move |error| match error.downcast_ref::<E>() {
            Some(error) => classify(error),
            None => earlier.as_ref().and_then(|earlier| earlier(error)),
        }));
        self
    }

    /// Logs a warning, once, if a request arrives with this extension: a layer outside has made it.
    /// Whatever that layer would do after the handler (save a session, commit a transaction) is
    /// lost when the client disconnects.
    ///
    /// ```
    /// # use onceward::{layer::IdempotencyLayer, store::MemoryStore};
    /// # #[derive(Clone)] struct Session;
    /// let once = IdempotencyLayer::builder(MemoryStore::default()).inner_only::<Session>("sessions are made outside").build();
    /// # let _ = once;
    /// ```
    pub fn inner_only<T: Clone + Send + Sync + 'static>(mut self, why: &'static str) -> Self {
        self.hooks.inner_only.push(InnerOnly::of::<T>(why));
        self
    }

    /// Sets the limits.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.engine = self.engine.limits(limits);
        self
    }

    /// Sets the secret. Unset: the first process writes one into the store, and all others read it
    /// from there.
    pub fn secret(mut self, secret: Secret) -> Self {
        self.engine = self.engine.secret(secret);
        self
    }

    /// Sets the configuration of issued keys.
    pub fn issuing(mut self, issuing: IssuerConfig) -> Self {
        self.engine = self.engine.issuing(issuing);
        self
    }

    /// Sets the observer, which is notified of events.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.engine = self.engine.observer(observer);
        self
    }

    /// Sets the clock of claim holders. Tests of a service need not set it: the default follows
    /// tokio's paused time.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.engine = self.engine.clock(clock);
        self
    }

    /// Declares that the inner service forwards, and itself awaits
    /// [`Claim::mark_sending`](crate::claim::Claim::mark_sending) right before it writes. Otherwise
    /// the call of the inner service counts as the first byte.
    pub fn forwarding(mut self) -> Self {
        self.forwarding = true;
        self
    }

    /// Builds the layer.
    pub fn build(self) -> IdempotencyLayer {
        let settings = Settings {
            engine: self.engine.build(),
            policy: Arc::new(self.policy),
            forwarding: self.forwarding,
            hooks: self.hooks,
            routes: Arc::default(),
            registered: Arc::new(Mutex::default()),
        };
        IdempotencyLayer { settings: Arc::new(settings) }
    }
}

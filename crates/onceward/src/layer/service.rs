//! HTTP service of the layer: handles each request that has a key.

use std::future::Future;
use std::marker::PhantomData;
use std::mem;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, HeaderMap, HeaderName, HeaderValue, VARY,
};
use http::{Method, Request, Response, StatusCode, request, response};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tower_service::Service;
use tracing::Instrument;

use super::body::{Body, BoxError, Chunk, Patience, ReadBody, into_bytes, next, read};
use super::coding::{Accepted, decoded_body};
use super::dialect::Dialect;
use super::failure::BodyFailure;
use super::future::ResponseFuture;
use super::hooks::Hooks;
use super::keys::{self, KeyChoice, Known, SentError, Source};
use super::redirect::SentRequest;
use super::routes::Routes;
use crate::claim::{Claim, LaterEnd};
use crate::engine::{AttemptEnd, Boxed, Engine, Execution, KeyedRequest, Operation, RunOutcome};
use crate::fault;
use crate::fingerprint::{Fingerprint, Parts, Rules};
use crate::limits::Limits;
use crate::observe::PrincipalChange;
use crate::policy::{
    AcceptedKeys, CloseDelimited, Disposition, EndsWithConnection, JsonPointer, MissingKey, Policy, Stream,
};
use crate::principal::{Principal, RequestView, UnidentifiedCallerError};
use crate::problem::{Code, Problem, page};
use crate::record::FingerprintWithRules;
use crate::reply::StoredResponse;
use crate::secret::HashKeys;
use crate::wire::{self, Outcome};

/// Longest time for which the body of a keyed request may stall. The body is read whole before
/// anything else happens, so a client that stops half way would occupy its memory for ever.
const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Timeout of the body of a keyed request as a whole.
const BODY_TIMEOUT: Duration = Duration::from_secs(300);

/// Executes each request that has a key once. Created by
/// [`IdempotencyLayer`](super::IdempotencyLayer).
#[derive(Clone, Debug)]
pub struct Idempotency<S> {
    inner: S,
    settings: Arc<Settings>,
}

/// Settings that a layer and all its services share by one reference: a router may create a service
/// for each request, and clones it in any case, with or without a key.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) engine: Engine,
    pub(super) policy: Arc<Policy>,
    pub(super) forwarding: bool,
    pub(super) hooks: Hooks,
    /// Policies of this layer by path.
    pub(super) routes: Arc<Routes>,
    /// Policies by path of all layers over this engine, for the public paths.
    pub(super) registered: Arc<Mutex<Vec<(String, Policy)>>>,
}

impl Settings {
    /// Returns the policy of a request.
    fn policy_of(&self, head: &request::Parts) -> &Arc<Policy> {
        self.routes.at(self.hooks.uri(head).path()).unwrap_or(&self.policy)
    }

    /// Returns true if a request has a key, or needs one.
    fn is_keyed(&self, policy: &Policy, method: &Method, request: RequestView<'_>) -> bool {
        let in_another_case = policy.differs_in_case(method);
        (policy.covers(method) || in_another_case)
            && (in_another_case && policy.missing != MissingKey::Pass
                || keys::are_sent(policy, request.headers)
                || keys::key_required(policy, request))
    }

    /// Returns true if the request is not for this layer to claim: an outer layer of the same
    /// engine has the claim, or the request goes to the public paths.
    fn is_settled_elsewhere(&self, policy: &Policy, head: &request::Parts) -> bool {
        let is_claimed = head.extensions.get::<Claim>().is_some_and(|claim| {
            keys::sent(policy, &head.headers).is_ok_and(|key| self.engine.is_own(claim, key.as_ref()))
        });
        let is_public = || {
            let path = self.hooks.uri(head).path();
            let below = |mount| path.strip_prefix(mount).is_some_and(|rest: &str| rest.starts_with('/'));
            !self.forwarding && self.engine.mount().is_some_and(below)
        };
        is_claimed || is_public()
    }
}

impl<S> Idempotency<S> {
    pub(super) fn new(inner: S, settings: Arc<Settings>) -> Self {
        Self { inner, settings }
    }
}

impl<S, B, R> Service<Request<B>> for Idempotency<S>
where
    S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    B: http_body::Body + Send + 'static,
    B::Error: Into<BoxError>,
    R: http_body::Body + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Response = Response<Body<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, R, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let settings = &self.settings;
        // Without policies by path, and without a closure that names callers, the head need not be
        // taken apart.
        if settings.routes.is_empty() && !settings.hooks.name_callers() {
            if !settings.is_keyed(&settings.policy, request.method(), RequestView::from(&request)) {
                return ResponseFuture::passed(self.inner.call(request.map(Body::passed)));
            }
            let policy = Arc::clone(&settings.policy);
            let (head, body) = request.into_parts();
            return Call::begin(self, policy, head, body);
        }
        let (mut head, body) = request.into_parts();
        settings.hooks.name_caller(&mut head);
        let policy = settings.policy_of(&head);
        if !settings.is_keyed(policy, &head.method, RequestView::from(&head)) {
            return ResponseFuture::passed(self.inner.call(Request::from_parts(head, Body::passed(body))));
        }
        let policy = Arc::clone(policy);
        Call::begin(self, policy, head, body)
    }
}

/// Builds the response from the engine's outcome.
fn answer<R: http_body::Body, E>(
    ask: &KeyedRequest,
    limits: &Limits,
    dialect: Dialect,
    answer: RunOutcome<Result<Box<Response<Body<R>>>, E>>,
) -> Result<Response<Body<R>>, E> {
    let mut response = match answer {
        RunOutcome::Own(response, outcome) => return response.map(|response| with_outcome_header(*response, outcome)),
        RunOutcome::Replay(reply) => {
            let mut response = reply.replay();
            let headers = response.headers_mut();
            headers.insert(wire::IDEMPOTENCY_OUTCOME, Outcome::Replayed.value());
            headers.insert(wire::IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
            response.extensions_mut().insert(FromRecord);
            response.map(|body| Body::buffered(body, None))
        }
        RunOutcome::Released(reply) => {
            let mut response = reply.replay();
            response.extensions_mut().insert(FromRecord);
            response.headers_mut().insert(wire::IDEMPOTENCY_OUTCOME, Outcome::Released.value());
            response.map(|body| Body::buffered(body, None))
        }
        RunOutcome::Refused(problem) => refusal(*problem, dialect, false),
    };
    // The preference had an effect: this is not the response of the request's own execution.
    if let Some(wait) = ask.wait
        && let Ok(applied) = HeaderValue::from_str(&format!("wait={}", wait.min(limits.wait_max).as_secs()))
    {
        // In addition to the service's own line for other preferences.
        response.headers_mut().append(wire::PREFERENCE_APPLIED, applied);
    }
    Ok(response)
}

/// Marks a response, in its extensions, that another request produced: a replay, or the response to
/// a waiter.
#[derive(Clone, Copy, Debug)]
pub struct FromRecord;

/// Logs and builds the refusal of a request whose caller cannot be identified.
fn unidentified(engine: &Engine, policy: &Policy, error: &UnidentifiedCallerError) -> Problem {
    engine.report_unidentified(&policy.route, error);
    let problem = engine.refusal(error.code()).detail(error.detail());
    if error.code() == Code::StoreUnavailable { problem.retry_after(1) } else { problem }
}

/// Call of the inner service, as an operation of the engine.
struct Call<S, B> {
    inner: S,
    /// The body type of the inner service. The body itself was read.
    takes: PhantomData<fn(B)>,
    head: request::Parts,
    body: Bytes,
    trailers: Option<Box<HeaderMap>>,
    source: Source,
    policy: Arc<Policy>,
    /// The refusal of a request whose caller cannot be identified, while it is not yet known if it
    /// has a key.
    unidentified: Option<Problem>,
    /// The format in which the client reads a refusal.
    dialect: Dialect,
    settings: Arc<Settings>,
}

impl<S, B> Call<S, B> {
    /// Returns the keyed request, or the reason for refusing it before its body is read.
    #[allow(clippy::result_large_err, reason = "called once, and no `?` hands it on")]
    fn ask(&mut self) -> Result<KeyedRequest, Problem> {
        let sent = keys::sent(&self.policy, &self.head.headers);
        if let (Ok(None), Some(source)) = (&sent, Source::instead(&self.policy, &self.head.headers)) {
            self.source = source;
        }
        let Self { head, settings, source, policy, .. } = &*self;
        let Settings { engine, hooks, .. } = &**settings;
        let refused = |code| self.early(engine.refusal(code));
        if !policy.covers(&head.method) {
            return Err(refused(Code::MethodCase));
        }
        let key = match sent {
            Ok(Some(key)) => key,
            Ok(None) if *source != Source::Header => keys::random(),
            Ok(None) => return Err(refused(Code::KeyMissing)),
            Err(SentError::Differ) => return Err(refused(Code::KeysDiffer)),
            Err(SentError::Invalid(name, invalid)) if name == wire::IDEMPOTENCY_KEY => {
                return Err(refused(Code::KeyInvalid).detail(invalid.sentence()));
            }
            Err(SentError::Invalid(name, invalid)) => {
                return Err(refused(Code::KeyInvalid).detail(format!("In {name}: {invalid}.")));
            }
        };
        let (principal, unidentified) = match policy.identify(head) {
            Ok(principal) => (principal, None),
            Err(error) => {
                let problem = unidentified(engine, policy, &error);
                match source {
                    Source::Body => (Principal::Anonymous, Some(problem)),
                    _ => return Err(self.early(problem)),
                }
            }
        };
        let most = policy.request_body.unwrap_or(engine.limits().request_body);
        if declared_length(&head.headers).is_some_and(|length| length > most as u64) {
            return Err(refused(Code::RequestTooLarge));
        }
        let space = policy.key_space(&head.method, hooks.uri(head), &head.headers);
        let ask =
            KeyedRequest { key, principal, space, policy: Arc::clone(policy), wait: wire::prefer_wait(&head.headers) };
        self.unidentified = unidentified;
        Ok(ask)
    }

    /// Notifies the observer of a refusal for which no record was read.
    fn early(&self, problem: Problem) -> Problem {
        if let Some(observer) = self.settings.engine.observer() {
            observer.answered(&self.policy.route, problem.outcome(), None);
        }
        match problem.code() {
            // The text in the table names the gateway's settings; in a layer they are code.
            Code::RequestTooLarge if !self.settings.forwarding => problem.detail(TOO_LARGE_FOR_THE_LAYER),
            _ => problem,
        }
    }

    /// Finds or makes the key of a request whose body was read.
    fn settle<'a>(&'a self, ask: &'a mut KeyedRequest) -> Boxed<'a, Result<KeyChoice, Problem>> {
        // The inner service is not captured, so it need not be `Sync`.
        let Self { head, body, settings, source, unidentified, .. } = self;
        let unidentified = unidentified.clone();
        Box::pin(async move {
            let hooks = &settings.hooks;
            let known = Known { source: *source, headers: &head.headers, body, unidentified };
            let derived = |rules: &Rules, keys: &HashKeys| rules.derived_key(keys, &parts(hooks, head, body));
            known.settle(&settings.engine, ask, derived).await
        })
    }
}

impl<S, B, R> Call<S, B>
where
    S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    B: http_body::Body + Send + 'static,
    B::Error: Into<BoxError>,
    R: http_body::Body + Send + 'static,
    R::Error: Into<BoxError>,
{
    /// Begins a request with a key. Separate from [`Idempotency::call`], so that the future of a
    /// request without a key contains nothing of it.
    #[inline(never)]
    fn begin(
        service: &mut Idempotency<S>,
        policy: Arc<Policy>,
        mut head: request::Parts,
        body: B,
    ) -> ResponseFuture<S::Future, R, S::Error> {
        // `poll_ready` prepared this service, not its clones: use it, and keep a clone for the next
        // call.
        let clone = service.inner.clone();
        let mut ready = mem::replace(&mut service.inner, clone);
        if service.settings.is_settled_elsewhere(&policy, &head) {
            return ResponseFuture::passed(ready.call(Request::from_parts(head, Body::passed(body))));
        }
        service.settings.hooks.warn_of(&head.extensions);
        let claimed = head.headers.get(wire::ONCEWARD_CLAIM).cloned();
        if claimed.is_some() {
            head.headers = wire::without(&head.headers, |name| *name == wire::ONCEWARD_CLAIM);
        }
        let mut call = Box::new(Call {
            takes: PhantomData,
            inner: ready,
            dialect: Dialect::of(&head.headers),
            head,
            body: Bytes::new(),
            trailers: None,
            source: Source::Header,
            policy,
            unidentified: None,
            settings: Arc::clone(&service.settings),
        });
        let is_navigation = page::is_wanted(&call.head.headers);
        if let Some(claimed) = claimed {
            let running = call.run_unless_claimed(claimed, body);
            return ResponseFuture::keyed(match is_navigation {
                true => Box::pin(async move { running.await.map(as_page) }),
                false => running,
            });
        }
        // Synchronous work is done here, so that the future carries little state.
        match (call.ask(), is_navigation) {
            (Ok(ask), false) => ResponseFuture::keyed(Box::pin(call.run(ask, body))),
            (Ok(ask), true) => ResponseFuture::keyed(Box::pin(async move { call.run(ask, body).await.map(as_page) })),
            (Err(problem), _) => ResponseFuture::keyed(Box::pin(async move {
                let response = call.refuse_unread(problem, body).await;
                Ok(if is_navigation { as_page(response) } else { response })
            })),
        }
    }

    /// Runs a request with a key.
    #[allow(clippy::manual_async_fn, reason = "an `async fn` keeps its arguments twice, in the future of each request")]
    fn run(
        mut self: Box<Self>,
        ask: KeyedRequest,
        body: B,
    ) -> impl Future<Output = Result<Response<Body<R>>, S::Error>> + Send {
        async move {
            let mut body = pin!(body);
            if let Err(failure) = self.read_body(body.as_mut()).await {
                return Ok(self.refuse(failure, body).await);
            }
            self.run_read(ask).await
        }
    }

    /// Reads the body of the request, up to the limit.
    async fn read_body(&mut self, body: Pin<&mut B>) -> Result<(), Unread> {
        let engine = &self.settings.engine;
        let patience = Some(Patience { clock: &**engine.clock(), idle: BODY_IDLE_TIMEOUT, whole: BODY_TIMEOUT });
        let most = self.policy.request_body.unwrap_or(engine.limits().request_body);
        match read(body, most, patience).await {
            ReadBody::Complete(body, trailers) => {
                (self.body, self.trailers) = (body, trailers);
                Ok(())
            }
            ReadBody::TooLarge(..) => Err(Unread::Larger),
            ReadBody::Stalled => Err(Unread::Failed(BodyFailure::Truncated)),
            ReadBody::Failed(error) => Err(Unread::Failed(BodyFailure::of(&error))),
        }
    }

    /// Runs a request whose body was read.
    #[allow(clippy::manual_async_fn, reason = "an `async fn` keeps its arguments twice, in the future of each request")]
    fn run_read(
        self: Box<Self>,
        ask: KeyedRequest,
    ) -> impl Future<Output = Result<Response<Body<R>>, S::Error>> + Send {
        async move {
            if let Err(error) = ask.policy.fingerprint.check(&self.head.headers, &self.body) {
                let problem = self.early(keys::unreadable_json(&self.settings.engine, error));
                return Ok(refusal(problem, self.dialect, false));
            }
            if self.source != Source::Header || ask.policy.keys == AcceptedKeys::Issued {
                return self.settle_and_run(ask).await;
            }
            let (settings, dialect) = (Arc::clone(&self.settings), self.dialect);
            let accepted = Accepted::of(&self.head.headers);
            let limits = settings.engine.limits();
            let mut answered = settings.engine.run(&ask, self).await;
            recode(&mut answered, &accepted, limits).await;
            answer(&ask, limits, dialect, answered)
        }
    }

    /// Passes a request on if another Onceward in front of this one holds its claim, and runs any
    /// other. Boxed, since it is rare.
    fn run_unless_claimed(
        mut self: Box<Self>,
        claimed: HeaderValue,
        body: B,
    ) -> Boxed<'static, Result<Response<Body<R>>, S::Error>> {
        Box::pin(async move {
            let mut body = pin!(body);
            if let Err(failure) = self.read_body(body.as_mut()).await {
                return Ok(self.refuse(failure, body).await);
            }
            if self.is_claimed(&claimed).await {
                return self.pass().await;
            }
            match self.ask() {
                Ok(ask) => self.run_read(ask).await,
                Err(problem) => Ok(refusal(problem, self.dialect, false)),
            }
        })
    }

    /// Runs a request whose key is issued here, is in the body, or has to be generated or derived.
    /// Boxed, since it is rare.
    fn settle_and_run(
        mut self: Box<Self>,
        mut ask: KeyedRequest,
    ) -> Boxed<'static, Result<Response<Body<R>>, S::Error>> {
        Box::pin(async move {
            let mut shown = None;
            match self.settle(&mut ask).await {
                Ok(KeyChoice::FromRequest) => {}
                Ok(KeyChoice::Generated { upstream, client }) => {
                    if upstream && ask.policy.forward_key {
                        self.head.headers.insert(wire::IDEMPOTENCY_KEY, ask.key.header_value());
                    }
                    shown = client.then(|| ask.key.header_value());
                }
                Ok(KeyChoice::None) => return self.pass().await,
                Err(problem) => return Ok(refusal(self.early(problem), self.dialect, false)),
            }
            let (settings, dialect) = (Arc::clone(&self.settings), self.dialect);
            let accepted = Accepted::of(&self.head.headers);
            let limits = settings.engine.limits();
            let mut answered = settings.engine.run(&ask, self).await;
            recode(&mut answered, &accepted, limits).await;
            answer(&ask, limits, dialect, answered).map(|response| with_key(response, shown))
        })
    }

    /// Returns true if another Onceward in front holds the claim of this very request.
    fn is_claimed<'a>(&'a self, claimed: &'a HeaderValue) -> Boxed<'a, bool> {
        // The inner service is not captured, so it need not be `Sync`.
        let Self { head, body, settings, .. } = self;
        Box::pin(async move {
            let fingerprint =
                |rules: &Rules, keys: &HashKeys| rules.fingerprint(keys, &parts(&settings.hooks, head, body));
            settings.engine.is_claimed(claimed, fingerprint).await
        })
    }

    /// Calls the inner service. A plain function, so that the future of the response does not carry
    /// the request.
    #[allow(clippy::boxed_local, reason = "a future that is given the box is small")]
    fn start(self: Box<Self>, claim: Claim) -> (S::Future, Arc<Settings>, Box<SentRequest>) {
        let Self { mut inner, mut head, body, mut trailers, policy, settings, .. } = *self;
        // For the request that would follow a redirect.
        let sent = Box::new(SentRequest {
            method: head.method.clone(),
            uri: settings.hooks.uri(&head).clone(),
            headers: policy.fingerprint.headers_of(&head.headers),
            body: body.clone(),
        });
        if !policy.forward_key {
            head.headers = without_key(&policy, &head.headers);
        }
        // Some servers merge trailers into the headers, and would take an unchecked key from there
        // for the checked one.
        if let Some(trailers) = trailers.as_mut().filter(|trailers| trailers.contains_key(wire::IDEMPOTENCY_KEY)) {
            **trailers = without_key(&policy, trailers);
        }
        head.extensions.insert(claim);
        (inner.call(Request::from_parts(head, Body::buffered(body, trailers))), settings, sent)
    }

    /// Passes on a request that turned out to have no key and to need none.
    #[allow(clippy::boxed_local, reason = "a future that is given the box is small")]
    async fn pass(self: Box<Self>) -> Result<Response<Body<R>>, S::Error> {
        let Self { mut inner, head, body, trailers, .. } = *self;
        let response = inner.call(Request::from_parts(head, Body::buffered(body, trailers))).await?;
        Ok(response.map(Body::passed))
    }

    /// Refuses a request whose body could not be read. Boxed, since it is rare.
    fn refuse(self: Box<Self>, failure: Unread, rest: Pin<&mut B>) -> Boxed<'_, Response<Body<R>>> {
        Box::pin(async move {
            let engine = &self.settings.engine;
            match failure {
                // Reading the body has already sent 100 Continue, if the client waited for it.
                Unread::Larger => {
                    let problem = self.early(engine.refusal(Code::RequestTooLarge));
                    read_on_and_refuse(engine, problem, self.dialect, rest).await
                }
                Unread::Failed(failure) => {
                    let problem = self.early(engine.refusal(failure.code()));
                    let problem = match failure {
                        BodyFailure::Truncated => problem,
                        BodyFailure::TooLarge => problem.detail(TOO_LARGE_IN_FRONT),
                        BodyFailure::Refused(why) => {
                            problem.detail(format!("The request's body was refused before it was whole: {why}."))
                        }
                    };
                    refusal(problem, self.dialect, true)
                }
            }
        })
    }

    fn refuse_unread<'a, U>(&'a self, problem: Problem, body: U) -> Boxed<'a, Response<Body<R>>>
    where
        U: http_body::Body + Send + 'a,
        U::Error: Into<BoxError>,
    {
        refuse_unread(&self.settings.engine, problem, self.dialect, &self.head, body)
    }
}

/// Reason why the body is not complete.
enum Unread {
    /// The body is larger than the limit.
    Larger,
    Failed(BodyFailure),
}

const TOO_LARGE_FOR_THE_LAYER: &str = "The body is larger than requests with a key may be. Send a smaller one, or raise \
    `request_body` of the `Limits` that the layer was built with: `builder(store).limits(Limits::default().request_body(bytes))`.";

const TOO_LARGE_IN_FRONT: &str =
    "The body is larger than a limit in front of the layer allows. Send a smaller one, or raise that limit.";

impl<S, B, R> Operation for Call<S, B>
where
    S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    B: http_body::Body + Send + 'static,
    B::Error: Into<BoxError>,
    R: http_body::Body + Send + 'static,
    R::Error: Into<BoxError>,
{
    /// Boxed, since it is moved often on its way to the client.
    type Response = Result<Box<Response<Body<R>>>, S::Error>;

    fn fingerprint(&self, rules: &Rules, keys: &HashKeys) -> Fingerprint {
        let Self { head, body, settings, .. } = self;
        rules.fingerprint(keys, &parts(&settings.hooks, head, body))
    }

    fn survives_timeout(&self) -> bool {
        !self.settings.forwarding
    }

    fn print(&self, rules: &Arc<Rules>, keys: &HashKeys) -> FingerprintWithRules {
        let Self { head, body, settings, .. } = self;
        let (fingerprint, details) = rules.fingerprint_with_details(keys, &parts(&settings.hooks, head, body));
        FingerprintWithRules {
            details: details.map(Arc::new),
            ..FingerprintWithRules::new(fingerprint, Arc::clone(rules))
        }
    }

    fn difference(&self, print: &FingerprintWithRules, keys: &HashKeys) -> Option<String> {
        let Self { head, body, settings, .. } = self;
        let details = print.details.as_ref()?;
        print.rules.difference(keys, &parts(&settings.hooks, head, body), &print.fingerprint, details)
    }

    async fn execute(self: Box<Self>, claim: Claim) -> Execution<Self::Response> {
        if !self.settings.forwarding && claim.mark_sending().await.is_err() {
            return Execution { answer: Err(Code::UpstreamUnreachable), end: AttemptEnd::Released(None) };
        }
        let policy = Arc::clone(&self.policy);
        // Needed only if a cookie names the caller.
        let renewable = policy.principal.names_a_cookie().then(|| cookies_of(&self.head.headers));
        let (responding, settings, sent) = self.start(claim.clone());
        let response = match responding.await {
            Ok(response) => response,
            Err(error) => {
                let end = match settings.hooks.fate_of(&error) {
                    Some(Disposition::NotSent | Disposition::Released) => AttemptEnd::Released(None),
                    Some(Disposition::Unknown | Disposition::NotKept) | None => AttemptEnd::Unknown,
                };
                return Execution { answer: Ok(Err(error)), end };
            }
        };
        fault::reach("executed");
        claim.response_began();
        let (head, body) = response.into_parts();
        if let Some(name) = renewable.as_ref().and_then(|had| policy.principal.renewed_cookie(had, &head.headers)) {
            settings.engine.report_change(&policy.route, PrincipalChange::CookieRenewed, name);
        }
        let fate = claim
            .declared()
            .or_else(|| head.extensions.get::<Disposition>().copied())
            .or_else(|| policy.disposition(head.status, &head.headers));
        let response_limit = settings.engine.limits().response_body;
        let length = declared_length(&head.headers);
        let known = length.or_else(|| http_body::Body::size_hint(&body).exact());
        let keeps_later = |claim: &Claim| {
            let (status, headers) = (head.status, head.headers.clone());
            Keeper { status, headers, data: BytesMut::new(), limit: response_limit, end: claim.end_later() }
        };
        let spilled = |prefix, rest, keeper| stream_in_background(prefix, rest, &claim, &settings.engine, fate, keeper);
        let (whole, body) = match flow(&policy, &head, known, response_limit) {
            Flow::Passes => (None, spilled(Bytes::new(), Box::pin(body), None)),
            Flow::IsKeptLater if fate.is_none() => {
                (None, spilled(Bytes::new(), Box::pin(body), Some(keeps_later(&claim))))
            }
            Flow::IsKeptLater => (None, spilled(Bytes::new(), Box::pin(body), None)),
            Flow::IsHeld => match read(Box::pin(body), response_limit, None).await {
                ReadBody::Complete(data, _)
                    if length.is_some_and(|length| length != data.len() as u64 && carries_body(head.status)) =>
                {
                    return Execution { answer: Err(Code::UpstreamLost), end: AttemptEnd::Unknown };
                }
                ReadBody::Complete(data, trailers) => (Some(data.clone()), Body::buffered(data, trailers)),
                ReadBody::TooLarge(prefix, rest) => (None, spilled(prefix, rest, None)),
                ReadBody::Failed(_) | ReadBody::Stalled if fault::planted("partial-kept") => {
                    (Some(Bytes::new()), Body::buffered(Bytes::new(), None))
                }
                ReadBody::Failed(_) | ReadBody::Stalled => {
                    return Execution { answer: Err(Code::UpstreamLost), end: AttemptEnd::Unknown };
                }
            },
        };
        let mut fate = fate;
        let mut redirect = None;
        if fate.is_none()
            && Outcome::of(&head.headers).is_none()
            && let Some(whole) = &whole
        {
            let target = sent.target(head.status, &head.headers);
            let followed = target.and_then(|uri| claim.fingerprint(&sent.at(&uri)));
            redirect = followed.map(|(fingerprint, _)| fingerprint);
            // A redirect to the very same request: it is to be sent again.
            let is_sent_again = followed.is_some_and(|(_, is_own)| is_own);
            let says_released = match &policy.released_when {
                Some(pointer) if !head.status.is_server_error() => {
                    says_released(pointer, &head.headers, whole, response_limit).await
                }
                _ => false,
            };
            if is_sent_again || says_released {
                fate = Some(Disposition::Released);
            }
        }
        let keep = |data: &Bytes| {
            Arc::new(StoredResponse { redirect, ..StoredResponse::keep(head.status, &head.headers, data.clone()) })
        };
        let end = match (fate, &whole) {
            (Some(Disposition::NotSent | Disposition::Released), whole) => {
                AttemptEnd::Released(whole.as_ref().map(keep))
            }
            (Some(Disposition::Unknown), _) => AttemptEnd::Unknown,
            (None, Some(whole)) => AttemptEnd::Completed(keep(whole)),
            (Some(Disposition::NotKept), _) | (None, None) => {
                AttemptEnd::NotKept(StoredResponse::head(head.status, &head.headers))
            }
        };
        Execution { answer: Ok(Ok(Box::new(Response::from_parts(head, body)))), end }
    }
}

/// Delivery of a response to its client.
enum Flow {
    /// Whole, once it is stored.
    IsHeld,
    /// Streamed, and not stored.
    Passes,
    /// Streamed, and stored once it is complete.
    IsKeptLater,
}

/// Decides the delivery of a response to its client. `known`: the length of its body, if it is
/// known before its end.
fn flow(policy: &Policy, head: &response::Parts, known: Option<u64>, limit: usize) -> Flow {
    // A response of known length has an end that can be awaited, regardless of its content type.
    if let Some(length) = known {
        return if length > limit as u64 { Flow::Passes } else { Flow::IsHeld };
    }
    let ends_with_connection = head.extensions.get::<EndsWithConnection>().is_some();
    if ends_with_connection && policy.close_delimited == CloseDelimited::Pass {
        return Flow::Passes;
    }
    match policy.stream {
        Stream::Auto if !is_declared_stream(&head.headers) => Flow::IsHeld,
        Stream::Auto | Stream::Pass => Flow::Passes,
        Stream::Keep => Flow::IsKeptLater,
    }
}

/// Collects a response while it is streamed, to store it once it is complete.
struct Keeper {
    status: StatusCode,
    headers: HeaderMap,
    data: BytesMut,
    limit: usize,
    end: LaterEnd,
}

impl Keeper {
    /// Collects a chunk. If the response exceeds the limit, it is recorded without its body, and
    /// collecting stops.
    fn take(mut self, data: Option<&Bytes>) -> Option<Self> {
        let data = data.map_or(&[][..], |data| data);
        if self.data.len() + data.len() > self.limit {
            let head = StoredResponse::head(self.status, &self.headers);
            drop(self.end.send(AttemptEnd::NotKept(head)));
            return None;
        }
        self.data.extend_from_slice(data);
        Some(self)
    }

    /// Stores the collected response. The future resolves once it is stored.
    fn keep(self) -> oneshot::Receiver<()> {
        let reply = StoredResponse::keep(self.status, &self.headers, self.data.freeze());
        self.end.send(AttemptEnd::Completed(Arc::new(reply)))
    }
}

/// Decodes a stored response whose coding the request excludes.
async fn recode<T>(answered: &mut RunOutcome<T>, accepted: &Accepted, limits: &Limits) {
    if let RunOutcome::Replay(reply) | RunOutcome::Released(reply) = answered
        && let Some(decoding) = accepted.decode(reply, limits.response_body)
        && let Some(decoded) = decoding.await
    {
        *reply = decoded;
    }
}

/// Returns true if the body, at the route's `released_when`, says that nothing was executed. Boxed,
/// since it is rare.
fn says_released<'a>(
    pointer: &'a JsonPointer,
    headers: &'a HeaderMap,
    body: &'a Bytes,
    limit: usize,
) -> Boxed<'a, bool> {
    Box::pin(
        async move { decoded_body(headers, body.clone(), limit).await.is_some_and(|body| pointer.is_set_in(&body)) },
    )
}

/// Returns the headers without those that carry the key, in their order. Go's HTTP client by itself
/// repeats a request without a body if it has `Idempotency-Key` or `X-Idempotency-Key`.
fn without_key(policy: &Policy, headers: &HeaderMap) -> HeaderMap {
    const X_IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("x-idempotency-key");
    let carries_key = |name: &HeaderName| {
        [wire::IDEMPOTENCY_KEY, X_IDEMPOTENCY_KEY].contains(name) || policy.key_headers.contains(name)
    };
    wire::without(headers, carries_key)
}

/// Streams the rest of a response to the client. A task reads it, so that a client disconnect does
/// not truncate it: the response is read to its end, or until `capture_timeout` after the
/// disconnect. A truncated response leaves the outcome unknown.
fn stream_in_background<R>(
    prefix: Bytes,
    mut rest: Pin<Box<R>>,
    claim: &Claim,
    engine: &Engine,
    fate: Option<Disposition>,
    mut keeper: Option<Keeper>,
) -> Body<R>
where
    R: http_body::Body + Send + 'static,
    R::Error: Into<BoxError>,
{
    let (sender, receiver) = mpsc::channel::<Chunk>(4);
    let (claim, engine) = (claim.clone(), engine.clone());
    let running = engine.running();
    let reading = async move {
        let _running = running;
        let clock = Arc::clone(engine.clock());
        let mut aborted = std::pin::pin!(engine.aborted());
        // After a client disconnect, reading continues for this time.
        let listen_on = || clock.sleep_until(clock.now().saturating_add(engine.limits().capture_timeout));
        let mut alone = None;
        let cut = loop {
            let frame = tokio::select! {
                biased;
                () = &mut aborted => break None,
                () = async { match alone.as_mut() { Some(deadline) => deadline.await, None => sender.closed().await } } => {
                    if alone.is_some() {
                        break None;
                    }
                    alone = Some(listen_on());
                    continue;
                }
                // Converted into `Bytes` at once: a body's own data need not be `Send`.
                frame = AssertUnwindSafe(next(rest.as_mut())).catch_unwind() => {
                    frame.map(|frame| frame.map(|frame| frame.map(|frame| frame.map_data(into_bytes)).map_err(Into::into)))
                }
            };
            let piece = match frame {
                Ok(Some(Ok(frame))) => Chunk::Frame(frame),
                Ok(Some(Err(error))) => break Some(Chunk::Cut(error)),
                Ok(None) => Chunk::End,
                Err(panic) => break Some(Chunk::Panicked(panic)),
            };
            if let Chunk::Frame(frame) = &piece {
                keeper = keeper.and_then(|keeper| keeper.take(frame.data_ref()));
            }
            let ended = matches!(piece, Chunk::End);
            // The client sees the end once a retry would be a replay, unless the store is slow.
            if ended && let Some(keeper) = keeper.take() {
                let stored = keeper.keep();
                tokio::select! {
                    _ = stored => {}
                    () = clock.sleep_until(clock.now().saturating_add(engine.limits().store_timeout)) => {}
                    () = &mut aborted => {}
                }
            }
            if alone.is_none() {
                let sent = tokio::select! {
                    biased;
                    () = &mut aborted => break None,
                    sent = sender.send(piece) => sent,
                };
                if sent.is_err() {
                    alone = Some(listen_on());
                }
            }
            if ended {
                return;
            }
        };
        // A response that was recorded without its body is now known to be truncated. One that was
        // to be stored becomes unknown as soon as its keeper is dropped.
        if keeper.take().is_none() && matches!(fate, None | Some(Disposition::NotKept)) {
            claim.mark_truncated().await;
        }
        if let Some(piece) = cut {
            // An error only means that the client has disconnected.
            let _ = sender.send(piece).await;
        }
    };
    tokio::spawn(reading.in_current_span());
    Body::spilled(prefix, receiver)
}

/// Returns the cookies of a request.
fn cookies_of(headers: &HeaderMap) -> HeaderMap {
    headers.get_all(COOKIE).iter().map(|line| (COOKIE, line.clone())).collect()
}

/// Returns the parts of a request that its fingerprint is made of.
fn parts<'a>(hooks: &Hooks, head: &'a request::Parts, body: &'a Bytes) -> Parts<'a> {
    Parts { method: &head.method, uri: hooks.uri(head), headers: &head.headers, body }
}

/// Sets the outcome header on the response of a request's own execution.
fn with_outcome_header<R: http_body::Body>(mut response: Response<Body<R>>, outcome: Outcome) -> Response<Body<R>> {
    // An upstream that follows the same contract reported on its own key, not on this one.
    if wire::line(response.headers(), &wire::IDEMPOTENCY_REPLAYED).is_some() {
        let headers = wire::without(response.headers(), |name| *name == wire::IDEMPOTENCY_REPLAYED);
        *response.headers_mut() = headers;
    }
    response.headers_mut().insert(wire::IDEMPOTENCY_OUTCOME, outcome.value());
    response
}

/// Adds the key that was made for the request, for its client.
fn with_key<R: http_body::Body>(mut response: Response<Body<R>>, key: Option<HeaderValue>) -> Response<Body<R>> {
    if let Some(key) = key {
        response.headers_mut().insert(wire::IDEMPOTENCY_KEY, key);
    }
    response
}

fn refusal<R: http_body::Body>(problem: Problem, dialect: Dialect, close: bool) -> Response<Body<R>> {
    let mut response = dialect.refuse(problem.clone());
    response.headers_mut().insert(VARY, page::VARY);
    if close {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response.extensions_mut().insert(Refusal(problem));
    response.map(|body| Body::buffered(body, None))
}

/// Refusal that a response was built from, so that it can be rendered again in another format.
#[derive(Clone)]
struct Refusal(Problem);

/// Renders a refusal as a page for people.
fn as_page<R: http_body::Body>(mut response: Response<Body<R>>) -> Response<Body<R>> {
    match response.extensions_mut().remove::<Refusal>() {
        Some(Refusal(problem)) => {
            let (mut head, _) = response.into_parts();
            let body = page::of(&problem, &mut head.headers);
            Response::from_parts(head, Body::buffered(body, None))
        }
        None => response,
    }
}

/// Refuses a request whose body was not read. Reads on for a while, so that the refusal is not lost
/// to a broken pipe. Closes the connection if the body did not end, so that its rest is never taken
/// for the next request.
fn refuse_unread<'a, B, R>(
    engine: &'a Engine,
    problem: Problem,
    dialect: Dialect,
    head: &'a request::Parts,
    body: B,
) -> Pin<Box<dyn Future<Output = Response<Body<R>>> + Send + 'a>>
where
    B: http_body::Body + Send + 'a,
    B::Error: Into<BoxError>,
    R: http_body::Body + Send + 'a,
    R::Error: Into<BoxError>,
{
    // Boxed, since it is rare, and would make each request's own future larger.
    Box::pin(async move {
        // A client that waits for 100 Continue has sent nothing yet, and reading would request its
        // body.
        match head.headers.contains_key(EXPECT) {
            true => refusal(problem, dialect, true),
            false => read_on_and_refuse(engine, problem, dialect, body).await,
        }
    })
}

async fn read_on_and_refuse<B, R>(engine: &Engine, problem: Problem, dialect: Dialect, body: B) -> Response<Body<R>>
where
    B: http_body::Body,
    R: http_body::Body,
{
    let deadline = engine.clock().sleep_until(engine.clock().now() + Duration::from_secs(5));
    let discard = async {
        let mut body = std::pin::pin!(body);
        let mut left = engine.limits().request_body.saturating_mul(4);
        while !body.is_end_stream() {
            match next(body.as_mut()).await {
                None => return true,
                Some(Err(_)) => return false,
                Some(Ok(frame)) => {
                    let length = frame.data_ref().map_or(0, bytes::Buf::remaining);
                    match left.checked_sub(length) {
                        Some(rest) => left = rest,
                        None => return false,
                    }
                }
            }
        }
        true
    };
    let ended = tokio::select! {
        biased;
        ended = discard => ended,
        () = deadline => false,
    };
    refusal(problem, dialect, !ended)
}

fn declared_length(headers: &HeaderMap) -> Option<u64> {
    wire::line(headers, &CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// Returns true if a response declares itself as a stream, whose chunks must reach the client as
/// they arrive.
fn is_declared_stream(headers: &HeaderMap) -> bool {
    const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
    let kind = wire::line(headers, &CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    is_stream_type(&kind)
        || wire::line(headers, &X_ACCEL_BUFFERING).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"no"))
}

/// Returns true if a media type, in lower case and without parameters, is that of a stream.
fn is_stream_type(kind: &str) -> bool {
    const STREAMS: [&str; 24] = [
        // Events.
        "text/event-stream",
        "application/x-dom-event-stream",
        "application/vnd.amazon.eventstream",
        // Parts.
        "multipart/mixed",
        "multipart/x-mixed-replace",
        // JSON: a value per line or per record.
        "application/jsonl",
        "application/x-jsonl",
        "application/jsonlines",
        "application/x-jsonlines",
        "application/json-lines",
        "application/x-json-lines",
        "application/jsonl+json",
        "application/ndjson",
        "application/x-ndjson",
        "application/x-ldjson",
        "application/ldjson",
        "text/x-ndjson",
        "text/ndjson",
        "text/jsonl",
        "application/json-seq",
        "application/x-json-stream",
        "application/stream+json",
        "application/json-stream",
        "application/x-json-seq",
    ];
    // gRPC and gRPC-Web name their codec behind a plus; Connect's streams always do.
    let is_grpc = ["application/grpc", "application/grpc-web", "application/grpc-web-text"]
        .iter()
        .any(|grpc| kind.strip_prefix(grpc).is_some_and(|codec| codec.is_empty() || codec.starts_with('+')));
    is_grpc || kind.starts_with("application/connect+") || kind.ends_with("+json-seq") || STREAMS.contains(&kind)
}

fn carries_body(status: StatusCode) -> bool {
    !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

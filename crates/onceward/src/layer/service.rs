//! The service: what a request with a key goes through, over HTTP.

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
use http::{Request, Response, StatusCode, request, response};
use tokio::sync::{mpsc, oneshot};
use tower_service::Service;

use super::body::{Body, Patience, Piece, Read, into_bytes, next, read};
use super::coding::{Accepted, decoded_body};
use super::future::ResponseFuture;
use super::keys::{self, Known, SentError, Settled, Source};
use super::redirect::SentRequest;
use crate::claim::{Claim, LaterEnd};
use crate::engine::{Answer, Ask, Boxed, End, Engine, Execution, Operation};
use crate::fault;
use crate::fingerprint::{Fingerprint, Parts, Rules};
use crate::limits::Limits;
use crate::observe::PrincipalChange;
use crate::policy::{CloseDelimited, EndsWithConnection, Fate, JsonPointer, Keys, Missing, Policy, Stream};
use crate::principal::{Principal, RequestView, UnidentifiedCallerError};
use crate::problem::{Code, Problem, page};
use crate::record::Print;
use crate::reply::Reply;
use crate::secret::HashKeys;
use crate::wire::{self, Outcome};

/// How long the body of a request with a key may bring nothing. It is read whole before anything happens, so that a client that
/// stops in the middle would hold its part of the process for ever.
const STALLED: Duration = Duration::from_secs(60);
/// How long the body of a request with a key may take as a whole.
const BODY_TIMEOUT: Duration = Duration::from_secs(300);

/// Does each request that bears a key once. Made by [`IdempotencyLayer`](super::IdempotencyLayer).
#[derive(Clone, Debug)]
pub struct Idempotency<S> {
    inner: S,
    settings: Arc<Settings>,
}

/// What a layer and all its services share by one reference: a router may make a service anew for each request, and clones it in
/// any case, whether the request bears a key or not.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) engine: Engine,
    pub(super) policy: Arc<Policy>,
    pub(super) forwarding: bool,
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
    B::Error: Send,
    R: http_body::Body + Send + 'static,
    R::Error: Send,
{
    type Response = Response<Body<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, R, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let policy = &self.settings.policy;
        let in_another_case = policy.differs_in_case(request.method());
        let keyed = (policy.covers(request.method()) || in_another_case)
            && (in_another_case && policy.missing != Missing::Pass
                || keys::are_sent(policy, request.headers())
                || keys::are_wanted(policy, RequestView::from(&request)));
        if !keyed {
            return ResponseFuture::passed(self.inner.call(request.map(Body::passed)));
        }
        Call::begin(self, request)
    }
}

/// What the engine says, as a response.
fn answer<R: http_body::Body, E>(
    ask: &Ask,
    limits: &Limits,
    answer: Answer<Result<Box<Response<Body<R>>>, E>>,
) -> Result<Response<Body<R>>, E> {
    let mut response = match answer {
        Answer::Own(response, outcome) => return response.map(|response| labelled(*response, outcome)),
        Answer::Replay(reply) => {
            let mut response = reply.replay();
            let headers = response.headers_mut();
            headers.insert(wire::IDEMPOTENCY_OUTCOME, Outcome::Replayed.value());
            headers.insert(wire::IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
            response.extensions_mut().insert(FromRecord);
            response.map(|body| Body::buffered(body, None))
        }
        Answer::Released(reply) => {
            let mut response = reply.replay();
            response.extensions_mut().insert(FromRecord);
            response.headers_mut().insert(wire::IDEMPOTENCY_OUTCOME, Outcome::Released.value());
            response.map(|body| Body::buffered(body, None))
        }
        Answer::Refused(problem) => refusal(*problem, false),
    };
    // The preference had a say: this is not the answer of the request's own execution.
    if let Some(wait) = ask.wait
        && let Ok(applied) = HeaderValue::from_str(&format!("wait={}", wait.min(limits.wait_max).as_secs()))
    {
        // Beside what the service says of the other preferences.
        response.headers_mut().append(wire::PREFERENCE_APPLIED, applied);
    }
    Ok(response)
}

/// Marks a response, in its extensions, that was made by another request: a replay, and what a waiter is told.
#[derive(Clone, Copy, Debug)]
pub struct FromRecord;

/// Logs and words the refusal of a request whose caller cannot be told.
fn unidentified(engine: &Engine, policy: &Policy, error: &UnidentifiedCallerError) -> Problem {
    engine.report_unidentified(&policy.route, error);
    let problem = engine.refusal(error.code()).detail(error.detail());
    if error.code() == Code::StoreUnavailable { problem.retry_after(1) } else { problem }
}

/// The inner call, as the engine sees it.
struct Call<S, B> {
    inner: S,
    /// The body that the inner service takes, in name only: it was read.
    takes: PhantomData<fn(B)>,
    head: request::Parts,
    body: Bytes,
    trailers: Option<Box<HeaderMap>>,
    source: Source,
    /// The refusal of a request whose caller cannot be told, while it is not known whether it has a key.
    unidentified: Option<Problem>,
    settings: Arc<Settings>,
}

impl<S, B> Call<S, B> {
    /// What the request asks, or why it is refused before its body is read.
    #[allow(clippy::result_large_err, reason = "called once, and no `?` hands it on")]
    fn ask(&mut self) -> Result<Ask, Problem> {
        let sent = keys::sent(&self.settings.policy, &self.head.headers);
        if let (Ok(None), Some(source)) = (&sent, Source::instead(&self.settings.policy, &self.head.headers)) {
            self.source = source;
        }
        let Self { head, settings, source, .. } = &*self;
        let Settings { policy, engine, .. } = &**settings;
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
        let space = policy.key_space(&head.method, parts(head, &Bytes::new()).uri, &head.headers);
        let ask = Ask { key, principal, space, policy: Arc::clone(policy), wait: wire::prefer_wait(&head.headers) };
        self.unidentified = unidentified;
        Ok(ask)
    }

    /// Counts a refusal before a record was looked at.
    fn early(&self, problem: Problem) -> Problem {
        if let Some(observer) = self.settings.engine.observer() {
            observer.answered(&self.settings.policy.route, problem.outcome(), None);
        }
        problem
    }

    /// Finds or makes the key of a request whose body was read.
    fn settle<'a>(&'a self, ask: &'a mut Ask) -> Boxed<'a, Result<Settled, Problem>> {
        // The inner service stays behind: it need not be fit to be shared between threads.
        let Self { head, body, settings, source, unidentified, .. } = self;
        let unidentified = unidentified.clone();
        Box::pin(async move {
            let known = Known { source: *source, headers: &head.headers, body, unidentified };
            let derived = |rules: &Rules, keys: &HashKeys| rules.derived_key(keys, &parts(head, body));
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
    B::Error: Send,
    R: http_body::Body + Send + 'static,
    R::Error: Send,
{
    /// A request with a key. Apart from [`Idempotency::call`], so that one without a key carries nothing of it.
    #[inline(never)]
    fn begin(service: &mut Idempotency<S>, request: Request<B>) -> ResponseFuture<S::Future, R, S::Error> {
        // `poll_ready` prepared this service, not its clones: run it, keep a clone for next time.
        let clone = service.inner.clone();
        let ready = mem::replace(&mut service.inner, clone);
        let (head, body) = request.into_parts();
        let mut call = Box::new(Call {
            takes: PhantomData,
            inner: ready,
            head,
            body: Bytes::new(),
            trailers: None,
            source: Source::Header,
            unidentified: None,
            settings: Arc::clone(&service.settings),
        });
        let is_navigation = page::is_wanted(&call.head.headers);
        // What needs no waiting is done here, so that little is carried through the future.
        match (call.ask(), is_navigation) {
            (Ok(ask), false) => ResponseFuture::keyed(Box::pin(call.run(ask, body))),
            (Ok(ask), true) => ResponseFuture::keyed(Box::pin(async move { call.run(ask, body).await.map(as_page) })),
            (Err(problem), _) => ResponseFuture::keyed(Box::pin(async move {
                let response = call.refuse_unread(problem, body).await;
                Ok(if is_navigation { as_page(response) } else { response })
            })),
        }
    }

    /// What becomes of a request with a key.
    #[allow(clippy::manual_async_fn, reason = "an `async fn` keeps its arguments twice, in the future of each request")]
    fn run(mut self: Box<Self>, ask: Ask, body: B) -> impl Future<Output = Result<Response<Body<R>>, S::Error>> + Send {
        async move {
            let mut body = pin!(body);
            let engine = &self.settings.engine;
            let patience = Some(Patience { clock: &**engine.clock(), idle: STALLED, whole: BODY_TIMEOUT });
            let most = ask.policy.request_body.unwrap_or(engine.limits().request_body);
            let refused = match read(body.as_mut(), most, patience).await {
                Read::Whole(body, trailers) => {
                    (self.body, self.trailers) = (body, trailers);
                    None
                }
                Read::Larger(..) => Some(Code::RequestTooLarge),
                Read::Cut => Some(Code::RequestIncomplete),
            };
            if let Some(code) = refused {
                return Ok(self.refuse(code, body).await);
            }
            if let Err(error) = ask.policy.fingerprint.check(&self.head.headers, &self.body) {
                let problem = self.early(keys::unreadable_json(&self.settings.engine, error));
                return Ok(refusal(problem, false));
            }
            if self.source != Source::Header || ask.policy.keys == Keys::Issued {
                return self.settle_and_run(ask).await;
            }
            let settings = Arc::clone(&self.settings);
            let accepted = Accepted::of(&self.head.headers);
            let limits = settings.engine.limits();
            let mut answered = settings.engine.run(&ask, self).await;
            recode(&mut answered, &accepted, limits).await;
            answer(&ask, limits, answered)
        }
    }

    /// The same if the key is issued here, or stands elsewhere than in its header, or is to be made. Boxed, for it is rare.
    fn settle_and_run(mut self: Box<Self>, mut ask: Ask) -> Boxed<'static, Result<Response<Body<R>>, S::Error>> {
        Box::pin(async move {
            let mut shown = None;
            match self.settle(&mut ask).await {
                Ok(Settled::Sent) => {}
                Ok(Settled::Made { upstream, client }) => {
                    if upstream && ask.policy.forward_key {
                        self.head.headers.insert(wire::IDEMPOTENCY_KEY, ask.key.header_value());
                    }
                    shown = client.then(|| ask.key.header_value());
                }
                Ok(Settled::None) => return self.pass().await,
                Err(problem) => return Ok(refusal(self.early(problem), false)),
            }
            let settings = Arc::clone(&self.settings);
            let accepted = Accepted::of(&self.head.headers);
            let limits = settings.engine.limits();
            let mut answered = settings.engine.run(&ask, self).await;
            recode(&mut answered, &accepted, limits).await;
            answer(&ask, limits, answered).map(|response| with_key(response, shown))
        })
    }

    /// Calls the inner service. A plain function, so that the request is not carried through the future of the response.
    #[allow(clippy::boxed_local, reason = "a future that is given the box is small")]
    fn start(self: Box<Self>, claim: Claim) -> (S::Future, Arc<Settings>, Box<SentRequest>) {
        let Self { mut inner, mut head, body, mut trailers, settings, .. } = *self;
        // What a redirect would be followed with.
        let sent = Box::new(SentRequest {
            method: head.method.clone(),
            uri: parts(&head, &body).uri.clone(),
            headers: head.headers.clone(),
            body: body.clone(),
        });
        if !settings.policy.forward_key {
            head.headers = without_key(&head.headers);
        }
        // Some servers take a trailer for a header, and a key that nobody has looked at for one that was checked.
        if let Some(trailers) = trailers.as_mut().filter(|trailers| trailers.contains_key(wire::IDEMPOTENCY_KEY)) {
            **trailers = without_key(trailers);
        }
        head.extensions.insert(claim);
        (inner.call(Request::from_parts(head, Body::buffered(body, trailers))), settings, sent)
    }

    /// Passes a request on that turned out to bear no key and to need none.
    #[allow(clippy::boxed_local, reason = "a future that is given the box is small")]
    async fn pass(self: Box<Self>) -> Result<Response<Body<R>>, S::Error> {
        let Self { mut inner, head, body, trailers, .. } = *self;
        let response = inner.call(Request::from_parts(head, Body::buffered(body, trailers))).await?;
        Ok(response.map(Body::passed))
    }

    /// Refuses a request whose body is too large, or broke off. Boxed, for it is rare.
    fn refuse(self: Box<Self>, code: Code, rest: Pin<&mut B>) -> Boxed<'_, Response<Body<R>>> {
        Box::pin(async move {
            let problem = self.early(self.settings.engine.refusal(code));
            match code {
                Code::RequestIncomplete => refusal(problem, true),
                // What was read of it asked the client to go on, if it waited to be asked.
                _ => read_on_and_refuse(&self.settings.engine, problem, rest).await,
            }
        })
    }

    fn refuse_unread<'a, U>(&'a self, problem: Problem, body: U) -> Boxed<'a, Response<Body<R>>>
    where
        U: http_body::Body + Send + 'a,
        U::Error: Send,
    {
        refuse_unread(&self.settings.engine, problem, &self.head, body)
    }
}

impl<S, B, R> Operation for Call<S, B>
where
    S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    B: http_body::Body + Send + 'static,
    B::Error: Send,
    R: http_body::Body + Send + 'static,
    R::Error: Send,
{
    /// Boxed, for it is moved often on its way to the client.
    type Answer = Result<Box<Response<Body<R>>>, S::Error>;

    fn fingerprint(&self, rules: &Rules, keys: &HashKeys) -> Fingerprint {
        let Self { head, body, .. } = self;
        rules.fingerprint(keys, &parts(head, body))
    }

    fn print(&self, rules: &Arc<Rules>, keys: &HashKeys) -> Print {
        let Self { head, body, .. } = self;
        let (fingerprint, details) = rules.fingerprint_with_details(keys, &parts(head, body));
        Print { details: details.map(Arc::new), ..Print::new(fingerprint, Arc::clone(rules)) }
    }

    fn difference(&self, print: &Print, keys: &HashKeys) -> Option<String> {
        let Self { head, body, .. } = self;
        let details = print.details.as_ref()?;
        print.rules.difference(keys, &parts(head, body), &print.fingerprint, details)
    }

    async fn execute(self: Box<Self>, claim: Claim) -> Execution<Self::Answer> {
        if !self.settings.forwarding && claim.first_byte().await.is_err() {
            return Execution { answer: Err(Code::UpstreamUnreachable), end: End::Released(None) };
        }
        // Kept only where a cookie names the caller.
        let renewable = self.settings.policy.principal.names_a_cookie().then(|| cookies_of(&self.head.headers));
        let (responding, settings, sent) = self.start(claim.clone());
        let response = match responding.await {
            Ok(response) => response,
            Err(error) => return Execution { answer: Ok(Err(error)), end: End::Unknown },
        };
        fault::reach("executed");
        claim.response_began();
        let (head, body) = response.into_parts();
        if let Some(name) =
            renewable.as_ref().and_then(|had| settings.policy.principal.renewed_cookie(had, &head.headers))
        {
            settings.engine.report_change(&settings.policy.route, PrincipalChange::CookieRenewed, name);
        }
        let fate = claim
            .declared()
            .or_else(|| head.extensions.get::<Fate>().copied())
            .or_else(|| settings.policy.fate(head.status, &head.headers));
        let response_limit = settings.engine.limits().response_body;
        let length = declared_length(&head.headers);
        let known = length.or_else(|| http_body::Body::size_hint(&body).exact());
        let keeps_later = |claim: &Claim| {
            let (status, headers) = (head.status, head.headers.clone());
            Keeper { status, headers, data: BytesMut::new(), limit: response_limit, end: claim.end_later() }
        };
        let spilled = |prefix, rest, keeper| spill(prefix, rest, &claim, &settings.engine, fate, keeper);
        let (whole, body) = match flow(&settings.policy, &head, known, response_limit) {
            Flow::Passes => (None, spilled(Bytes::new(), Box::pin(body), None)),
            Flow::IsKeptLater if fate.is_none() => {
                (None, spilled(Bytes::new(), Box::pin(body), Some(keeps_later(&claim))))
            }
            Flow::IsKeptLater => (None, spilled(Bytes::new(), Box::pin(body), None)),
            Flow::IsHeld => match read(Box::pin(body), response_limit, None).await {
                Read::Whole(data, _)
                    if length.is_some_and(|length| length != data.len() as u64 && carries_body(head.status)) =>
                {
                    return Execution { answer: Err(Code::UpstreamLost), end: End::Unknown };
                }
                Read::Whole(data, trailers) => (Some(data.clone()), Body::buffered(data, trailers)),
                Read::Larger(prefix, rest) => (None, spilled(prefix, rest, None)),
                Read::Cut if fault::planted("partial-kept") => (Some(Bytes::new()), Body::buffered(Bytes::new(), None)),
                Read::Cut => return Execution { answer: Err(Code::UpstreamLost), end: End::Unknown },
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
            // To the very same request: it is to be sent again.
            let is_sent_again = followed.is_some_and(|(_, is_own)| is_own);
            let says_released = match &settings.policy.released_when {
                Some(pointer) if !head.status.is_server_error() => {
                    says_released(pointer, &head.headers, whole, response_limit).await
                }
                _ => false,
            };
            if is_sent_again || says_released {
                fate = Some(Fate::Released);
            }
        }
        let keep = |data: &Bytes| Arc::new(Reply { redirect, ..Reply::keep(head.status, &head.headers, data.clone()) });
        let end = match (fate, &whole) {
            (Some(Fate::NotSent | Fate::Released), whole) => End::Released(whole.as_ref().map(keep)),
            (Some(Fate::Unknown), _) => End::Unknown,
            (None, Some(whole)) => End::Completed(keep(whole)),
            (Some(Fate::NotKept), _) | (None, None) => End::NotKept(Reply::head(head.status, &head.headers)),
        };
        Execution { answer: Ok(Ok(Box::new(Response::from_parts(head, body)))), end }
    }
}

/// How a response goes to its client.
enum Flow {
    /// Whole, once it is stored.
    IsHeld,
    /// As it comes, and it is not stored.
    Passes,
    /// As it comes, and it is stored once its end was seen.
    IsKeptLater,
}

/// Decides how a response goes to its client. `known`: the length of its body, if it is known before its end.
fn flow(policy: &Policy, head: &response::Parts, known: Option<u64>, limit: usize) -> Flow {
    // A response whose length is known has an end to wait for, whatever its kind.
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

/// Collects a response that is handed on as it comes, to store it once its end was seen.
struct Keeper {
    status: StatusCode,
    headers: HeaderMap,
    data: BytesMut,
    limit: usize,
    end: LaterEnd,
}

impl Keeper {
    /// Collects a piece. A response that grows over the limit ends without its body, and is collected no further.
    fn take(mut self, data: Option<&Bytes>) -> Option<Self> {
        let data = data.map_or(&[][..], |data| data);
        if self.data.len() + data.len() > self.limit {
            let head = Reply::head(self.status, &self.headers);
            drop(self.end.send(End::NotKept(head)));
            return None;
        }
        self.data.extend_from_slice(data);
        Some(self)
    }

    /// Stores what was collected. The future resolves once it is stored.
    fn keep(self) -> oneshot::Receiver<()> {
        let reply = Reply::keep(self.status, &self.headers, self.data.freeze());
        self.end.send(End::Completed(Arc::new(reply)))
    }
}

/// Decodes a stored response whose coding the request excludes.
async fn recode<T>(answered: &mut Answer<T>, accepted: &Accepted, limits: &Limits) {
    if let Answer::Replay(reply) | Answer::Released(reply) = answered
        && let Some(decoding) = accepted.decode(reply, limits.response_body)
        && let Some(decoded) = decoding.await
    {
        *reply = decoded;
    }
}

/// Returns true if the body says, where the route's `released_when` points to, that nothing was executed. Boxed, for it is rare.
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

/// The headers without those that carry the key, in their order. Go's HTTP client sends a request again by itself that has
/// either of them.
fn without_key(headers: &HeaderMap) -> HeaderMap {
    const X_IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("x-idempotency-key");
    let mut others = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers.iter().filter(|(name, _)| ![wire::IDEMPOTENCY_KEY, X_IDEMPOTENCY_KEY].contains(name)) {
        others.append(name.clone(), value.clone());
    }
    others
}

/// Hands the rest of an answer on as it comes. A task reads it, so that the client's hang-up cuts nothing: the upstream is
/// read to its end, or as long as an answer is listened for. What breaks off was not executed to its end, as far as anybody
/// knows.
fn spill<R>(
    prefix: Bytes,
    mut rest: Pin<Box<R>>,
    claim: &Claim,
    engine: &Engine,
    fate: Option<Fate>,
    mut keeper: Option<Keeper>,
) -> Body<R>
where
    R: http_body::Body + Send + 'static,
    R::Error: Send,
{
    let (sender, receiver) = mpsc::channel::<Piece<R::Error>>(4);
    let (claim, engine) = (claim.clone(), engine.clone());
    let running = engine.running();
    tokio::spawn(async move {
        let _running = running;
        let clock = Arc::clone(engine.clock());
        let mut given_up = std::pin::pin!(engine.given_up());
        // Where nobody listens any longer, it is read for so long.
        let listen_on = || clock.sleep_until(clock.now() + engine.limits().capture_timeout);
        let mut alone = None;
        let cut = loop {
            let frame = tokio::select! {
                biased;
                () = &mut given_up => break None,
                () = async { match alone.as_mut() { Some(deadline) => deadline.await, None => sender.closed().await } } => {
                    if alone.is_some() {
                        break None;
                    }
                    alone = Some(listen_on());
                    continue;
                }
                // At once made into `Bytes`: a body's own data need not be able to change threads.
                frame = AssertUnwindSafe(next(rest.as_mut())).catch_unwind() => {
                    frame.map(|frame| frame.map(|frame| frame.map(|frame| frame.map_data(into_bytes))))
                }
            };
            let piece = match frame {
                Ok(Some(Ok(frame))) => Piece::Frame(frame),
                Ok(Some(Err(error))) => break Some(Piece::Cut(error)),
                Ok(None) => Piece::End,
                Err(panic) => break Some(Piece::Panicked(panic)),
            };
            if let Piece::Frame(frame) = &piece {
                keeper = keeper.and_then(|keeper| keeper.take(frame.data_ref()));
            }
            let ended = matches!(piece, Piece::End);
            // The client sees the end once a retry would be a replay, unless the store takes its time.
            if ended && let Some(keeper) = keeper.take() {
                let stored = keeper.keep();
                tokio::select! {
                    _ = stored => {}
                    () = clock.sleep_until(clock.now() + engine.limits().store_timeout) => {}
                    () = &mut given_up => {}
                }
            }
            if alone.is_none() {
                let sent = tokio::select! {
                    biased;
                    () = &mut given_up => break None,
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
        // A response that was recorded without its body is now known to be truncated. One that was to be stored is unknown
        // as soon as its keeper is gone.
        if keeper.take().is_none() && matches!(fate, None | Some(Fate::NotKept)) {
            claim.tell_cut().await;
        }
        if let Some(piece) = cut {
            // An error only says that the client went away.
            let _ = sender.send(piece).await;
        }
    });
    Body::spilled(prefix, receiver)
}

/// Returns the cookies of a request.
fn cookies_of(headers: &HeaderMap) -> HeaderMap {
    headers.get_all(COOKIE).iter().map(|line| (COOKIE, line.clone())).collect()
}

/// What a fingerprint is made of.
fn parts<'a>(head: &'a request::Parts, body: &'a Bytes) -> Parts<'a> {
    #[cfg(feature = "axum-08")]
    let uri = crate::extract::uri_as_received(head);
    #[cfg(not(feature = "axum-08"))]
    let uri = &head.uri;
    Parts { method: &head.method, uri, headers: &head.headers, body }
}

/// Marks the answer of a request's own execution.
fn labelled<R: http_body::Body>(mut response: Response<Body<R>>, outcome: Outcome) -> Response<Body<R>> {
    // What an upstream that speaks the same language said of its own key is not what happened here.
    if wire::line(response.headers(), &wire::IDEMPOTENCY_REPLAYED).is_some() {
        let mut headers = HeaderMap::with_capacity(response.headers().len() + 1);
        for (name, value) in response.headers().iter().filter(|(name, _)| **name != wire::IDEMPOTENCY_REPLAYED) {
            headers.append(name.clone(), value.clone());
        }
        *response.headers_mut() = headers;
    }
    response.headers_mut().insert(wire::IDEMPOTENCY_OUTCOME, outcome.value());
    response
}

/// Tells the client the key that was made for its request.
fn with_key<R: http_body::Body>(mut response: Response<Body<R>>, key: Option<HeaderValue>) -> Response<Body<R>> {
    if let Some(key) = key {
        response.headers_mut().insert(wire::IDEMPOTENCY_KEY, key);
    }
    response
}

fn refusal<R: http_body::Body>(problem: Problem, close: bool) -> Response<Body<R>> {
    let mut response = problem.clone().into_response();
    response.headers_mut().insert(VARY, page::VARY);
    if close {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response.extensions_mut().insert(Refusal(problem));
    response.map(|body| Body::buffered(body, None))
}

/// What a response refuses, for whoever words it anew.
#[derive(Clone)]
struct Refusal(Problem);

/// Words a refusal for a person.
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

/// Refuses a request whose body was not read: reads on for a while, so that the refusal is not lost to a broken pipe, and
/// closes the connection if the body did not end, so that its rest is never taken for the next request.
fn refuse_unread<'a, B, R>(
    engine: &'a Engine,
    problem: Problem,
    head: &'a request::Parts,
    body: B,
) -> Pin<Box<dyn Future<Output = Response<Body<R>>> + Send + 'a>>
where
    B: http_body::Body + Send + 'a,
    B::Error: Send,
    R: http_body::Body + Send + 'a,
    R::Error: Send,
{
    // Boxed, for it is rare, and would make each request's own future larger.
    Box::pin(async move {
        // A client that waits for 100 Continue has sent nothing yet, and reading would ask it to.
        match head.headers.contains_key(EXPECT) {
            true => refusal(problem, true),
            false => read_on_and_refuse(engine, problem, body).await,
        }
    })
}

async fn read_on_and_refuse<B, R>(engine: &Engine, problem: Problem, body: B) -> Response<Body<R>>
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
    refusal(problem, !ended)
}

fn declared_length(headers: &HeaderMap) -> Option<u64> {
    wire::line(headers, &CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// Returns true if a response says of itself that it is a stream, whose pieces are to reach the client as they come.
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
        // JSON, a value a line or a record.
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
    // gRPC and gRPC-web name their codec behind a plus; Connect's streams always do.
    let is_grpc = ["application/grpc", "application/grpc-web", "application/grpc-web-text"]
        .iter()
        .any(|grpc| kind.strip_prefix(grpc).is_some_and(|codec| codec.is_empty() || codec.starts_with('+')));
    is_grpc || kind.starts_with("application/connect+") || kind.ends_with("+json-seq") || STREAMS.contains(&kind)
}

fn carries_body(status: StatusCode) -> bool {
    !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

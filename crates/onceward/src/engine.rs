//! Engine of a keyed request: claims the key, renews the claim, executes, stores the end, and maps
//! each failure to a response.
//!
//! [`Engine::run`] is the entry point, and handles a request from start to end. `decide` makes the
//! decisions, and the store persists them. This module contains only the order of the steps and the
//! handling of failures.

mod acquire;
mod cache;
mod callers;
mod detach;
mod execute;
mod finalize;
mod init;
mod issuing;
pub mod rules;
mod sweeper;
mod waiting;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::poll_immediate;
use http::HeaderValue;
use tokio::sync::{Notify, OnceCell, OwnedSemaphorePermit, Semaphore, watch};

use crate::claim::{Attempt, Claim};
use crate::clock::{Clock, SystemClock};
use crate::fingerprint::{Fingerprint, Rules};
use crate::issued::IssuerConfig;
use crate::key::Key;
use crate::limits::Limits;
use crate::observe::Observer;
use crate::policy::Policy;
use crate::principal::{KeySpace, Principal};
use crate::problem::{Code, Problem};
use crate::record::{AttemptId, FingerprintWithRules, Phase, Record, StoredRecord, Version};
use crate::reply::{Head, StoredResponse};
use crate::secret::{HashKeys, RecordId, Secret};
use crate::store::{Cas, Error, Store, StoreFuture, StoreStats, chain};
use crate::waiters::Waiters;
use crate::wire::Outcome;
use acquire::{Begun, Ended, live};
use cache::Cache;
use callers::Callers;
use detach::DetachOnDrop;
use init::StoreSession;

/// Operation that executes at most once: a request, and the way to run it.
pub trait Operation: Send + Sized + 'static {
    /// Response for the client that began it.
    type Response: Send + 'static;

    /// Returns the request's fingerprint, by the given rules.
    fn fingerprint(&self, rules: &Rules, keys: &HashKeys) -> Fingerprint;

    /// Returns the fingerprint, with the details that a record contains besides.
    fn print(&self, rules: &Arc<Rules>, keys: &HashKeys) -> FingerprintWithRules {
        FingerprintWithRules::new(self.fingerprint(rules, keys), Arc::clone(rules))
    }

    /// Returns a description of the difference between this request and the one of a record, if the
    /// record has the details for it.
    fn difference(&self, _print: &FingerprintWithRules, _keys: &HashKeys) -> Option<String> {
        None
    }

    /// Returns true if an execution that takes too long runs on until its end, because dropping it
    /// half way would leave its work partly done. Otherwise it is dropped when nobody waits for it
    /// any longer.
    fn survives_timeout(&self) -> bool {
        false
    }

    /// Executes. A client disconnect does not cancel it: without a caller it continues in a task.
    fn execute(self: Box<Self>, claim: Claim) -> impl Future<Output = Execution<Self::Response>> + Send;
}

/// Result of an execution.
#[derive(Debug)]
pub struct Execution<T> {
    /// The response for the client.
    pub answer: Result<T, Code>,
    /// The end to store.
    pub end: AttemptEnd,
}

/// End of an attempt, as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub enum AttemptEnd {
    /// Executed, with this whole response.
    Completed(Arc<StoredResponse>),
    /// Executed, but its response is not stored.
    NotKept(Head),
    /// Not executed. The duplicates that waited for it get this response.
    Released(Option<Arc<StoredResponse>>),
    /// Possibly executed: the outcome is unknown.
    Unknown,
}

/// Request with a key.
#[derive(Clone, Debug)]
pub struct KeyedRequest {
    /// The key.
    pub key: Key,
    /// The caller.
    pub principal: Principal,
    /// The key space: what separates the key besides its caller.
    pub space: KeySpace,
    /// The route's policy.
    pub policy: Arc<Policy>,
    /// Time that the client is ready to wait for another attempt's response, if it sent a
    /// preference.
    pub wait: Option<Duration>,
}

/// Outcome of a keyed request.
#[derive(Debug)]
pub enum RunOutcome<T> {
    /// The response of its own execution.
    Own(T, Outcome),
    /// The first response, replayed.
    Replay(Arc<StoredResponse>),
    /// The response of a released attempt that it waited for.
    Released(Arc<StoredResponse>),
    /// A refusal. Boxed, since it is rare, and outcomes are moved often.
    Refused(Box<Problem>),
}

impl<T> RunOutcome<T> {
    fn refused(problem: Problem) -> Self {
        Self::Refused(Box::new(problem))
    }
}

/// Status of a key, for a caller without a request.
#[derive(Debug)]
pub enum KeyStatus {
    /// No record that still applies exists.
    Free,
    /// An attempt is executing; carries the seconds after which to ask again.
    InFlight(u64),
    /// The first response.
    Replay(Arc<StoredResponse>),
    /// A refusal that describes the status.
    Refused(Problem),
}

/// Engine: one per process and store. Clones share it.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

impl Engine {
    /// Builds an engine over a store.
    pub fn builder(store: Arc<dyn Store>) -> Builder {
        Builder {
            store,
            namespace: "default".to_owned(),
            limits: Limits::default(),
            secret: None,
            issuing: IssuerConfig::default(),
            observer: None,
            clock: Arc::new(SystemClock),
        }
    }

    /// Runs `operation` once, or returns the outcome of its key.
    ///
    /// Runs in the caller's task. If the caller drops this future after the claim was sent, the
    /// rest runs in a spawned task.
    pub async fn run<O: Operation>(&self, ask: &KeyedRequest, operation: Box<O>) -> RunOutcome<O::Response> {
        let shared = &self.shared;
        if let Err(error) = ask.policy.check() {
            tracing::error!(route = &*ask.policy.route, %error, "a policy voids its promise");
            let problem = self.refusal(Code::StoreUnavailable).detail(error.to_string());
            let answer = RunOutcome::refused(problem);
            shared.observe(&ask.policy, &answer, None);
            return answer;
        }
        let keys = match shared.open().await {
            Ok(opened) => &opened.keys,
            Err(error) => {
                let answer = RunOutcome::refused(shared.store_refusal(None, &error));
                shared.observe(&ask.policy, &answer, None);
                return answer;
            }
        };
        let mut held = Attempt::asking(Arc::clone(shared), keys, ask, &*operation);
        shared.notice_two_callers(ask, &held);
        let mut operation = operation;
        let other = loop {
            match begin(&held, operation).await {
                Begun::Answered(answer) => {
                    shared.observe(&ask.policy, &answer, Some(&held.id));
                    return answer;
                }
                Begun::Running(other) => break other,
                Begun::Redirected(to) => (held, operation) = (held.redirected(to.id), to.operation),
            }
        };
        let answer = shared.wait_or_refuse(other, ask.wait.unwrap_or(ask.policy.wait)).await;
        shared.observe(&ask.policy, &answer, Some(&held.id));
        answer
    }

    /// Opens the store: reads or creates the secret, and checks it. Otherwise the first request
    /// does so.
    ///
    /// # Errors
    ///
    /// The store's, and an error if the store belongs to another secret.
    pub async fn start(&self) -> Result<(), Error> {
        self.shared.open().await.map(drop)
    }

    /// Writes, reads back and replays a synthetic key, so that a store that never replays is
    /// detected before it matters.
    ///
    /// # Errors
    ///
    /// Describes what the store failed to do.
    pub async fn self_test(&self) -> Result<(), Error> {
        self.shared.open().await?;
        self.shared.self_test().await
    }

    /// Begins a graceful shutdown: no new claims are accepted. Replays and refusals go on.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::SeqCst);
    }

    /// Returns true if [`Engine::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::SeqCst)
    }

    /// Resolves when nothing is executing, detached or not, and no write is pending.
    pub async fn drained(&self) {
        loop {
            let ended = self.shared.idle.notified();
            if self.in_flight() == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Writes all attempts that still execute as unknown, at once. Await [`Engine::drained`] after
    /// it.
    pub fn abort(&self) {
        self.shared.abort.send_replace(true);
    }

    /// Returns the number of claims that are being made, executing, or being finalized in this
    /// process.
    pub fn in_flight(&self) -> usize {
        self.shared.running.load(Ordering::SeqCst)
    }

    /// Acquires an execution permit, which is released when it is dropped: for requests without a
    /// key, which the engine never sees. `None`: all of [`Limits::executions`] are in use.
    pub fn begin_execution(&self) -> Option<ExecutionPermit> {
        self.shared.begin_execution()
    }

    /// Returns the number of requests that execute in this process, with or without a key.
    pub fn executing(&self) -> usize {
        self.shared.limits.executions.saturating_sub(self.shared.executions.available_permits())
    }

    /// Returns the store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.shared.store
    }

    /// Counts the store's records.
    ///
    /// # Errors
    ///
    /// The store's.
    pub async fn stats(&self) -> Result<StoreStats, Error> {
        self.shared.timed("census", self.shared.store.stats()).await
    }

    /// Returns the limits.
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// Returns a guard that [`Engine::drained`] waits for, until it is dropped.
    pub(crate) fn running(&self) -> Running {
        Running::begin(&self.shared)
    }

    /// Resolves when [`Engine::abort`] was called.
    pub(crate) async fn aborted(&self) {
        wait_aborted(&mut self.shared.abort.subscribe()).await;
    }

    pub(crate) fn observer(&self) -> Option<&dyn Observer> {
        self.shared.observer.as_deref()
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.shared.clock
    }

    /// Returns true if a claim is one of this engine's, for a request with this key. Any key
    /// matches if the request has none.
    pub(crate) fn is_own(&self, claim: &Claim, key: Option<&Key>) -> bool {
        let same_key = || match (key, self.shared.opened.get()) {
            (Some(key), Some(opened)) => opened.keys.key_hash(key) == claim.held.key_hash,
            (None, _) => true,
            (Some(_), None) => false,
        };
        Arc::ptr_eq(&claim.held.shared, &self.shared) && same_key()
    }

    /// Returns true if `header`, the value of an `Onceward-Claim`, names an attempt that is in
    /// flight in this store, for a request with this fingerprint: another Onceward in front holds
    /// the claim. The ids are unguessable, so nobody else can name one.
    pub(crate) async fn is_claimed(
        &self,
        header: &HeaderValue,
        fingerprint: impl Fn(&Rules, &HashKeys) -> Fingerprint,
    ) -> bool {
        let Some((id, attempt)) = crate::claim::parse_header(header) else { return false };
        let Ok(opened) = self.shared.open().await else { return false };
        let found = match self.shared.timed("get", self.shared.store.get(&id)).await {
            Ok(Some(found)) => found,
            Ok(None) => return false,
            Err(error) => {
                tracing::warn!(%error, "an Onceward-Claim could not be looked up");
                return false;
            }
        };
        match &found.record.phase {
            Phase::InFlight { print, .. } if found.record.attempt == attempt => {
                fingerprint(&print.rules, &opened.keys) == print.fingerprint
            }
            _ => false,
        }
    }

    /// Creates a refusal for a request whose record was not read.
    pub(crate) fn refusal(&self, code: Code) -> Problem {
        let instance = format!("urn:onceward:{}", crate::secret::hex(&AttemptId::random().0[..12]));
        Problem::new(code, instance).endpoints(self.shared.mount.get().map(String::as_str))
    }

    /// Sets the path at which the public paths are mounted, so that refusals link to them. Only the
    /// first call has an effect.
    pub(crate) fn mounted_at(&self, mount: &str) {
        let _ = self.shared.mount.set(mount.trim_end_matches('/').to_owned());
    }

    pub(crate) fn mount(&self) -> Option<&str> {
        self.shared.mount.get().map(String::as_str)
    }

    /// Processes due records once. Returns the number of records that were processed. The engine
    /// does so itself every second; tests that move a clock need not wait for it.
    ///
    /// # Errors
    ///
    /// The store's.
    pub async fn sweep(&self) -> Result<usize, Error> {
        self.shared.sweep().await
    }
}

/// Runs the request, and waits for its client's outcome.
async fn begin<O: Operation>(held: &Arc<Attempt>, operation: Box<O>) -> Begun<O> {
    let mut life = live(Arc::clone(held), operation);
    // A caller cannot be dropped within a poll, so a request that ends in its first poll needs no
    // guard.
    match poll_immediate(&mut life).await {
        Some(ended) => ended.told(),
        None => go_on(held, life).await,
    }
}

/// Runs the request until its client gets an outcome: at the end of the request, or earlier, at its
/// timeout. If the caller is dropped, a task continues it.
fn go_on<O: Operation>(held: &Attempt, life: Boxed<'static, Ended<O>>) -> Boxed<'static, Begun<O>> {
    let life = DetachOnDrop::new(life);
    let impatience = held.impatience.listen();
    Box::pin(async move {
        tokio::select! {
            biased;
            ended = life => ended.told(),
            Ok(problem) = impatience => Begun::Answered(RunOutcome::Refused(problem)),
        }
    })
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("store", &self.shared.store).finish_non_exhaustive()
    }
}

/// Builds an [`Engine`].
#[derive(Debug)]
pub struct Builder {
    store: Arc<dyn Store>,
    namespace: String,
    limits: Limits,
    secret: Option<Secret>,
    issuing: IssuerConfig,
    observer: Option<Arc<dyn Observer>>,
    clock: Arc<dyn Clock>,
}

impl Builder {
    /// Sets the namespace. Services that share a store need one each.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Sets the limits.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets the secret. Unset: the first process writes one into the store, and all others read it
    /// from there.
    pub fn secret(mut self, secret: Secret) -> Self {
        self.secret = Some(secret);
        self
    }

    /// Sets the configuration of issued keys.
    pub fn issuing(mut self, issuing: IssuerConfig) -> Self {
        self.issuing = issuing;
        self
    }

    /// Sets the observer, which is notified of events.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Sets the clock of claim holders.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Builds the engine.
    pub fn build(self) -> Engine {
        // A bound over the semaphore's own maximum would be none anyway.
        let executions = Arc::new(Semaphore::new(self.limits.executions.min(Semaphore::MAX_PERMITS)));
        // A store in this process's memory responds as fast as a cache would.
        let caches = self.limits.cache > 0 && !self.store.info().in_process;
        Engine {
            shared: Arc::new(Shared {
                cache: caches.then(|| Cache::new(self.limits.cache)),
                store: self.store,
                clock: self.clock,
                limits: self.limits,
                namespace: self.namespace,
                secret: self.secret,
                issuing: self.issuing,
                observer: self.observer,
                opened: OnceCell::new(),
                is_foreign: AtomicBool::new(false),
                is_sweeping: AtomicBool::new(false),
                waiters: Arc::default(),
                callers: Callers::default(),
                executions,
                full_logged: AtomicU64::new(0),
                running: AtomicUsize::new(0),
                idle: Notify::new(),
                draining: AtomicBool::new(false),
                abort: watch::Sender::new(false),
                mount: OnceLock::new(),
            }),
        }
    }
}

/// Permit for an execution, one of up to [`Limits::executions`]. Dropping it releases the permit.
#[derive(Debug)]
pub struct ExecutionPermit(#[allow(dead_code, reason = "held, and dropped")] OwnedSemaphorePermit);

/// State that all requests share.
pub(crate) struct Shared {
    store: Arc<dyn Store>,
    cache: Option<Cache>,
    pub(crate) clock: Arc<dyn Clock>,
    limits: Limits,
    namespace: String,
    secret: Option<Secret>,
    issuing: IssuerConfig,
    observer: Option<Arc<dyn Observer>>,
    opened: OnceCell<StoreSession>,
    /// True once the store belongs to another secret.
    is_foreign: AtomicBool,
    /// True while a task of some runtime sweeps.
    is_sweeping: AtomicBool,
    waiters: Arc<Waiters>,
    callers: Callers,
    executions: Arc<Semaphore>,
    /// When the message that no permit was free may be logged again, in seconds of the clock.
    full_logged: AtomicU64,
    running: AtomicUsize,
    idle: Notify,
    draining: AtomicBool,
    abort: watch::Sender<bool>,
    mount: OnceLock<String>,
}

/// Guard of work that the drain waits for.
pub(crate) struct Running(Arc<Shared>);

impl Running {
    fn begin(shared: &Arc<Shared>) -> Self {
        shared.running.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(shared))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

/// Least time between two log messages about the bound on executions, in seconds.
const FULL_LOGGED_SECONDS: u64 = 10;

impl Shared {
    pub(crate) fn begin_execution(&self) -> Option<ExecutionPermit> {
        if let Ok(permit) = Arc::clone(&self.executions).try_acquire_owned() {
            return Some(ExecutionPermit(permit));
        }
        let now = self.clock.now().as_secs();
        let due = self.full_logged.load(Ordering::Relaxed);
        let next = now + FULL_LOGGED_SECONDS;
        if now >= due && self.full_logged.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            tracing::warn!(
                executions = self.limits.executions,
                "overloaded: as many requests execute as may; raise limits.executions, or find out why they take long"
            );
        }
        None
    }

    fn observe<T>(&self, policy: &Policy, answer: &RunOutcome<T>, id: Option<&RecordId>) {
        let Some(observer) = &self.observer else { return };
        let (outcome, prevented) = match answer {
            RunOutcome::Own(_, outcome) => (*outcome, false),
            RunOutcome::Replay(_) => (Outcome::Replayed, true),
            RunOutcome::Released(_) => (Outcome::Released, true),
            RunOutcome::Refused(problem) => {
                let prevented = matches!(
                    problem.code(),
                    Code::InFlight | Code::OutcomeUnknown | Code::AnswerNotKept | Code::KeyExpired | Code::KeyReused
                );
                (problem.outcome(), prevented)
            }
        };
        observer.answered(&policy.route, outcome, id);
        if prevented {
            observer.duplicate_prevented(&policy.route);
        }
    }

    pub(crate) fn problem(&self, code: Code, id: &RecordId) -> Problem {
        Problem::new(code, id.instance()).endpoints(self.mount.get().map(String::as_str))
    }

    fn not_kept(&self, id: &RecordId, head: &Head) -> Problem {
        self.problem(Code::AnswerNotKept, id).first(head.status.as_u16(), head.location.clone())
    }

    fn store_refusal(&self, id: Option<&RecordId>, error: &Error) -> Problem {
        let instance = id.map_or_else(|| "urn:onceward:store".to_owned(), RecordId::instance);
        tracing::warn!(%instance, error = %chain(error), "the store failed");
        let code = if error.is_unreadable() { Code::RecordUnreadable } else { Code::StoreUnavailable };
        let problem = Problem::new(code, instance).endpoints(self.mount.get().map(String::as_str));
        if code == Code::StoreUnavailable { problem.retry_after(1) } else { problem }
    }

    /// Inserts, unless this process has the record in its cache.
    pub(crate) async fn insert(&self, id: &RecordId, record: &Record) -> Result<Option<StoredRecord>, Error> {
        if let Some(found) = self.cached(id) {
            return Ok(Some(found));
        }
        let found = self.timed("insert", self.store.insert(id, record)).await?;
        self.note(id, found.as_ref());
        Ok(found)
    }

    pub(crate) async fn compare_and_swap(&self, id: &RecordId, over: Version, record: &Record) -> Result<Cas, Error> {
        let replaced = self.timed("replace", self.store.compare_and_swap(id, over, record)).await?;
        match (&self.cache, &replaced) {
            (Some(cache), Cas::Swapped) => cache.note(id, record, Duration::ZERO, || self.clock.now()),
            (_, Cas::Conflict(found)) => self.note(id, found.as_ref()),
            (None, Cas::Swapped) => {}
        }
        Ok(replaced)
    }

    /// Returns the stored record, from the store or from the cache.
    async fn get(&self, id: &RecordId) -> Result<Option<StoredRecord>, Error> {
        if let Some(found) = self.cached(id) {
            return Ok(Some(found));
        }
        let found = self.timed("get", self.store.get(id)).await?;
        self.note(id, found.as_ref());
        Ok(found)
    }

    /// Returns the keys of the hashes, once the store is open.
    pub(crate) fn keys(&self) -> Option<&HashKeys> {
        self.opened.get().map(|opened| &opened.keys)
    }

    async fn remove(&self, id: &RecordId, over: Version) -> Result<bool, Error> {
        let removed = self.timed("remove", self.store.remove(id, over)).await?;
        if let Some(cache) = &self.cache {
            cache.forget(id);
        }
        Ok(removed)
    }

    fn cached(&self, id: &RecordId) -> Option<StoredRecord> {
        let cache = self.cache.as_ref()?;
        cache.get(id, self.clock.now())
    }

    fn note(&self, id: &RecordId, found: Option<&StoredRecord>) {
        match (&self.cache, found) {
            (Some(cache), Some(found)) => cache.note(id, &found.record, found.age, || self.clock.now()),
            (Some(cache), None) => cache.forget(id),
            (None, _) => {}
        }
    }

    async fn get_or_insert_meta(&self, name: &str, value: &[u8]) -> Result<bytes::Bytes, Error> {
        self.timed("meta", self.store.get_or_insert_meta(name, value)).await
    }

    /// Runs a store operation with its timeout. No timer is created for a store that responds at
    /// once.
    async fn timed<T: Send + 'static>(&self, op: &'static str, mut asked: StoreFuture<'_, T>) -> Result<T, Error> {
        let sent = self.observed_now();
        if let Some(answer) = poll_immediate(&mut asked).await {
            self.observe_store(op, sent, answer.is_ok());
            return answer;
        }
        self.wait_for_store(op, sent, asked).await
    }

    fn wait_for_store<'a, T: Send + 'static>(
        &'a self,
        op: &'static str,
        sent: Option<Duration>,
        mut asked: StoreFuture<'a, T>,
    ) -> StoreFuture<'a, T> {
        let until = sent.unwrap_or_else(|| self.clock.now()).saturating_add(self.limits.store_timeout);
        StoreFuture::new(async move {
            let answer = tokio::select! {
                biased;
                answer = &mut asked => answer,
                () = self.clock.sleep_until(until) => Err(Error::unavailable("the store did not answer in time")),
            };
            self.observe_store(op, sent, answer.is_ok());
            answer
        })
    }

    fn observe_store(&self, op: &'static str, sent: Option<Duration>, ok: bool) {
        if let (Some(observer), Some(sent)) = (&self.observer, sent) {
            observer.store(op, self.clock.now().saturating_sub(sent), ok);
        }
    }

    /// Returns the time, if there is an observer for durations.
    fn observed_now(&self) -> Option<Duration> {
        self.observer.as_ref().map(|_| self.clock.now())
    }
}

/// Resolves when the drain's timeout is over.
async fn wait_aborted(aborted: &mut watch::Receiver<bool>) {
    if aborted.wait_for(|aborted| *aborted).await.is_err() {
        // Without an engine nothing can be aborted any more.
        std::future::pending().await
    }
}

/// Future on the heap, made within a plain function. A future that is boxed within an `async fn`
/// takes up space in that function's own future anyway, and each request's future is as large as
/// the largest path through it.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

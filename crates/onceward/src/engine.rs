//! The loop of a keyed request: claim, renew, execute, keep; and what is said when any of it fails.
//!
//! Read it from the top: [`Engine::run`] is the whole life of a request. `decide` judges, the store keeps, and what stands
//! here is only the order of things and what becomes of each failure.

use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::poll_immediate;
use tokio::sync::{Notify, OnceCell, oneshot, watch};

use crate::claim::{Claim, Held};
use crate::clock::{Clock, SystemClock};
use crate::decide::{self, Late, Release, Standing, Winner};
use crate::fingerprint::{Fingerprint, Rules};
use crate::key::Key;
use crate::limits::Limits;
use crate::observe::{Observer, Silent};
use crate::policy::Policy;
use crate::principal::Principal;
use crate::problem::{Code, Problem};
use crate::record::{AttemptId, Found, Kept, Phase, Print, Record, Version};
use crate::reply::{Head, Reply};
use crate::secret::{HashKeys, KeyHash, RecordId, Secret};
use crate::store::{Applied, Census, Error, Pending, Replaced, Store};
use crate::waiters::{Ended, Waiters};
use crate::wire::Outcome;

/// What executes at most once: the request, and how to run it.
pub trait Operation: Send + Sized + 'static {
    /// The answer for the client that began it.
    type Answer: Send + 'static;

    /// The request's fingerprint, by the given rules.
    fn fingerprint(&self, rules: &Rules, keys: &HashKeys) -> Fingerprint;

    /// Executes. Runs in a task of its own, which no client's hang-up ends.
    fn execute(self, claim: Claim) -> impl Future<Output = Execution<Self::Answer>> + Send;
}

/// How an execution ended.
#[derive(Debug)]
pub struct Execution<T> {
    /// The answer for the client.
    pub answer: Result<T, Code>,
    /// What is kept of it.
    pub end: End,
}

/// What is kept of an execution.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// It executed, and this was its whole answer.
    Completed(Arc<Reply>),
    /// It executed, and its answer is not kept.
    NotKept(Head),
    /// It did not execute; those who waited for it get this answer.
    Released(Option<Arc<Reply>>),
    /// It may or may not have executed.
    Unknown,
}

/// What a request asks.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The key.
    pub key: Key,
    /// Who asks.
    pub principal: Principal,
    /// The route's policy.
    pub policy: Arc<Policy>,
    /// How long the client is ready to wait for another's answer, if it says.
    pub wait: Option<Duration>,
}

/// What a keyed request gets.
#[derive(Debug)]
pub enum Answer<T> {
    /// The answer of its own execution.
    Own(T, Outcome),
    /// The first answer again.
    Replay(Arc<Reply>),
    /// The answer of a released attempt that it waited for.
    Released(Arc<Reply>),
    /// A refusal.
    Refused(Problem),
}

/// What became of a key, for whoever asks without a request.
#[derive(Debug)]
pub enum Look {
    /// Nothing is known that binds.
    Free,
    /// An attempt is executing; ask again after so many seconds.
    InFlight(u64),
    /// The first answer.
    Replay(Arc<Reply>),
    /// A refusal says it.
    Refused(Problem),
}

/// The engine: one per process and store. Clones share it.
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
            observer: Arc::new(Silent),
            clock: Arc::new(SystemClock),
        }
    }

    /// Does `operation` once, or says what became of it.
    ///
    /// The claim is polled in the caller's task first; if the store answers at once, a replay or a refusal costs no task.
    /// From the moment on when a claim was sent, everything runs in a task of its own: the caller may go away.
    pub fn run<O: Operation>(&self, ask: Ask, operation: Box<O>) -> Boxed<'_, Answer<O::Answer>> {
        Box::pin(self.run_now(ask, operation))
    }

    async fn run_now<O: Operation>(&self, ask: Ask, operation: Box<O>) -> Answer<O::Answer> {
        let shared = &self.shared;
        let policy = Arc::clone(&ask.policy);
        let (id, answer) = match shared.open().await {
            Ok(opened) => {
                let asked = Asked::new(opened, &shared.namespace, ask, &*operation);
                let (id, wait) = (asked.id, asked.wait);
                let answer = match self.claim_and_execute(asked, operation).await {
                    Begun::Answered(answer) => answer,
                    Begun::Running(running) => shared.wait_or_refuse(running, wait).await,
                };
                (Some(id), answer)
            }
            Err(error) => (None, Answer::Refused(shared.store_refusal(None, &error))),
        };
        shared.observe(&policy, &answer, id.as_ref());
        answer
    }

    async fn claim_and_execute<O: Operation>(&self, asked: Asked, operation: Box<O>) -> Begun<O> {
        let running = Running::begin(&self.shared);
        let mut claiming = Arc::clone(&self.shared).claim(asked, operation);
        let receiver = match poll_immediate(&mut claiming).await {
            Some(Claimed::Not(begun)) => return begun,
            Some(Claimed::Held(held, operation)) => spawn_hold(held, operation, running),
            None => spawn_claim(claiming, running),
        };
        match receiver.await {
            Ok(begun) => begun,
            // The task was dropped with its runtime: whatever it did, nobody is left to say.
            Err(_) => std::future::pending().await,
        }
    }

    /// What became of a key: as a request would be told, without a request. Waits as long as `wait` says, at most
    /// [`Limits::wait_max`].
    ///
    /// # Errors
    ///
    /// A problem, where the store does not tell.
    pub async fn look(&self, key: &Key, principal: &Principal, wait: Option<Duration>) -> Result<Look, Problem> {
        let shared = &self.shared;
        let opened = shared.open().await.map_err(|error| shared.store_refusal(None, &error))?;
        let id = opened.keys.record_id(&shared.namespace, principal, key);
        let until = shared.clock.now() + wait.unwrap_or_default().min(shared.limits.wait_max);
        loop {
            let found = shared.get(&id).await.map_err(|error| shared.store_refusal(Some(&id), &error))?;
            let Some(found) = found else { return Ok(Look::Free) };
            return Ok(match decide::standing(&found) {
                Standing::Free => Look::Free,
                Standing::InFlight { age, left } => {
                    let joined = || shared.waiters.join(id, found.record.attempt, shared.limits.waiters_per_key);
                    if shared.clock.now() < until
                        && let Some(mut waiting) = joined()
                    {
                        let pause = (shared.clock.now() + poll_pause()).min(until);
                        tokio::select! {
                            _ = waiting.ended() => {}
                            () = shared.clock.sleep_until(pause) => {}
                        }
                        continue;
                    }
                    Look::InFlight(shared.retry_after(&found.record, age, left))
                }
                Standing::Lost => Look::Refused(shared.problem(Code::OutcomeUnknown, &id)),
                Standing::Completed(Kept::Whole(reply)) => Look::Replay(Arc::clone(reply)),
                Standing::Completed(Kept::Head(head)) => Look::Refused(shared.not_kept(&id, head)),
                Standing::Expired(executed) => Look::Refused(shared.problem(Code::KeyExpired, &id).executed(executed)),
            });
        }
    }

    /// Opens the store: reads or creates the secret, and checks it. Done by the first request otherwise.
    ///
    /// # Errors
    ///
    /// The store's, and where it belongs to another secret.
    pub async fn start(&self) -> Result<(), Error> {
        self.shared.open().await.map(drop)
    }

    /// Writes, reads back and replays a synthetic key, so that a store that never replays is noticed before it matters.
    ///
    /// # Errors
    ///
    /// Says what the store did not do.
    pub async fn self_test(&self) -> Result<(), Error> {
        self.shared.open().await?;
        self.shared.self_test().await
    }

    /// From now on no new claims: replays and refusals go on.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::SeqCst);
    }

    /// Whether [`Engine::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::SeqCst)
    }

    /// Ends when nothing is executing, detached or not, and nothing is left to be written down.
    pub async fn drained(&self) {
        loop {
            let ended = self.shared.idle.notified();
            if self.in_flight() == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Writes whatever still executes as unknown, at once. Await [`Engine::drained`] after it.
    pub fn give_up(&self) {
        self.shared.give_up.send_replace(true);
    }

    /// How many claims are being made, executing, or being written down in this process.
    pub fn in_flight(&self) -> usize {
        self.shared.running.load(Ordering::SeqCst)
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.shared.store
    }

    /// Counts the store's records.
    ///
    /// # Errors
    ///
    /// The store's.
    pub async fn census(&self) -> Result<Census, Error> {
        self.shared.timed("census", self.shared.store.census()).await
    }

    /// The limits.
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// Something that the drain waits for, until it is dropped.
    pub(crate) fn running(&self) -> Running {
        Running::begin(&self.shared)
    }

    /// Ends when the drain's limit is over.
    pub(crate) async fn given_up(&self) {
        over(&mut self.shared.give_up.subscribe()).await;
    }

    pub(crate) fn observer(&self) -> &dyn Observer {
        self.shared.observer.as_ref()
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.shared.clock
    }

    /// A refusal before a record was looked at.
    pub(crate) fn refusal(&self, code: Code) -> Problem {
        let instance = format!("urn:onceward:{}", crate::secret::hex(&AttemptId::random().0[..12]));
        Problem::new(code, instance).endpoints(self.shared.mount.get().map(String::as_str))
    }

    /// Says where the public paths are, so that refusals link to them. The first word counts.
    pub(crate) fn mounted_at(&self, mount: &str) {
        let _ = self.shared.mount.set(mount.trim_end_matches('/').to_owned());
    }

    pub(crate) fn mount(&self) -> Option<&str> {
        self.shared.mount.get().map(String::as_str)
    }

    /// Looks once for what is due, and does it. Returns how many records were looked at. The engine does so itself every
    /// second; tests that move a clock need not wait for it.
    ///
    /// # Errors
    ///
    /// The store's.
    pub async fn sweep(&self) -> Result<usize, Error> {
        self.shared.sweep().await
    }
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
    observer: Arc<dyn Observer>,
    clock: Arc<dyn Clock>,
}

impl Builder {
    /// Services that share a store have a namespace each.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// The limits.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The secret. Unset: the first process puts one into the store, and all others read it there.
    pub fn secret(mut self, secret: Secret) -> Self {
        self.secret = Some(secret);
        self
    }

    /// Who is told what happens.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = observer;
        self
    }

    /// The holder's clock.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The engine.
    pub fn build(self) -> Engine {
        Engine {
            shared: Arc::new(Shared {
                store: self.store,
                clock: self.clock,
                limits: self.limits,
                namespace: self.namespace,
                secret: self.secret,
                observer: self.observer,
                opened: OnceCell::new(),
                waiters: Arc::default(),
                running: AtomicUsize::new(0),
                idle: Notify::new(),
                draining: AtomicBool::new(false),
                give_up: watch::Sender::new(false),
                mount: OnceLock::new(),
            }),
        }
    }
}

/// What all requests share.
pub(crate) struct Shared {
    store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
    limits: Limits,
    namespace: String,
    secret: Option<Secret>,
    observer: Arc<dyn Observer>,
    opened: OnceCell<Opened>,
    waiters: Arc<Waiters>,
    running: AtomicUsize,
    idle: Notify,
    draining: AtomicBool,
    give_up: watch::Sender<bool>,
    mount: OnceLock<String>,
}

/// What was read from the store when it was opened.
struct Opened {
    keys: HashKeys,
    /// A random value that the store keeps: another one means that it lost its memory.
    identity: [u8; 16],
}

/// Something that the drain waits for.
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

/// A request whose key was looked up in the hashes.
struct Asked {
    id: RecordId,
    key_hash: KeyHash,
    print: Print,
    policy: Arc<Policy>,
    wait: Duration,
}

impl Asked {
    fn new<O: Operation>(opened: &Opened, namespace: &str, ask: Ask, operation: &O) -> Self {
        let keys = &opened.keys;
        let rules = Arc::clone(&ask.policy.fingerprint);
        Self {
            id: keys.record_id(namespace, &ask.principal, &ask.key),
            key_hash: keys.key_hash(&ask.key),
            print: Print { fingerprint: operation.fingerprint(&rules, keys), rules },
            wait: ask.wait.unwrap_or(ask.policy.wait),
            policy: ask.policy,
        }
    }

    /// The request's fingerprint by the rules of a record that was found.
    fn fingerprint_for<O: Operation>(&self, found: &Record, operation: &O, shared: &Shared) -> Fingerprint {
        match found.print() {
            Some(print) if print.rules != self.print.rules => match shared.opened.get() {
                Some(opened) => operation.fingerprint(&print.rules, &opened.keys),
                None => self.print.fingerprint,
            },
            _ => self.print.fingerprint,
        }
    }
}

enum Claimed<O: Operation> {
    Held(Arc<Held>, Box<O>),
    Not(Begun<O>),
}

enum Begun<O: Operation> {
    Answered(Answer<O::Answer>),
    /// Another attempt is executing.
    Running(Box<Other<O>>),
}

/// Another attempt, and the request that met it.
struct Other<O> {
    asked: Asked,
    operation: Box<O>,
    found: Found,
    age: Duration,
    left: Duration,
}

/// Executes in a task of its own. Boxed, for tokio moves a task's future nine times before it runs.
fn spawn_hold<O: Operation>(held: Arc<Held>, operation: Box<O>, running: Running) -> oneshot::Receiver<Begun<O>> {
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(Box::pin(hold(held, operation, sender, running)));
    receiver
}

/// Goes on with a claim that was sent, whoever still waits for it, and executes if it is won.
fn spawn_claim<O: Operation>(claiming: Boxed<'static, Claimed<O>>, running: Running) -> oneshot::Receiver<Begun<O>> {
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(Box::pin(async move {
        match claiming.await {
            Claimed::Not(begun) => drop(sender.send(begun)),
            Claimed::Held(held, operation) => hold(held, operation, sender, running).await,
        }
    }));
    receiver
}

impl Shared {
    async fn open(self: &Arc<Self>) -> Result<&Opened, Error> {
        if let Some(opened) = self.opened.get() {
            return Ok(opened);
        }
        self.open_first().await
    }

    fn open_first<'a>(self: &'a Arc<Self>) -> Boxed<'a, Result<&'a Opened, Error>> {
        Box::pin(self.opened.get_or_try_init(|| self.open_now()))
    }

    async fn open_now(self: &Arc<Self>) -> Result<Opened, Error> {
        let secret = match &self.secret {
            Some(secret) => secret.clone(),
            None => {
                let fresh: [u8; 32] = rand::random();
                let kept = self.meta("secret", &fresh).await?;
                let bytes = kept.as_ref().try_into().map_err(|_| Error::unreadable("the store's secret is damaged"))?;
                Secret::new(bytes)
            }
        };
        let keys = HashKeys::new(&secret);
        if self.meta("secret-check", &keys.check_value()).await? != keys.check_value().as_slice() {
            return Err(Error::refused(
                "the store belongs to another secret; set secret_file to the one that it was made with",
            ));
        }
        let identity = self.identity().await?;
        let weak = Arc::downgrade(self);
        let clock = Arc::clone(&self.clock);
        tokio::spawn(async move {
            loop {
                clock.sleep_until(clock.now() + Duration::from_secs(1)).await;
                let Some(shared) = weak.upgrade() else { return };
                if let Err(error) = shared.sweep_all().await {
                    tracing::warn!(%error, "the sweep failed, and is tried again");
                }
            }
        });
        Ok(Opened { keys, identity })
    }

    /// The store's identity, made by whoever asks first.
    async fn identity(&self) -> Result<[u8; 16], Error> {
        let kept = self.meta("identity", &AttemptId::random().0).await?;
        kept.as_ref().try_into().map_err(|_| Error::unreadable("the store's identity is damaged"))
    }

    /// Claims the key: one insert, and a replace where something that no longer binds is in its place.
    fn claim<O: Operation>(self: Arc<Self>, asked: Asked, operation: Box<O>) -> Boxed<'static, Claimed<O>> {
        Box::pin(self.claim_now(asked, operation))
    }

    async fn claim_now<O: Operation>(self: Arc<Self>, asked: Asked, operation: Box<O>) -> Claimed<O> {
        let attempt = AttemptId::random();
        let began = self.clock.wall();
        let record = Record {
            key_hash: asked.key_hash,
            attempt,
            phase: Phase::InFlight { print: asked.print.clone(), lease: asked.policy.lease, began },
        };
        let mut over = None;
        // Each turn that goes on saw another record than the one before: only a storm of claims and releases takes many.
        for _ in 0..16 {
            let sent_at = self.clock.now();
            let draining = self.draining.load(Ordering::SeqCst);
            let written = match over {
                _ if draining => self.get(&asked.id).await,
                None => self.insert(&asked.id, &record).await,
                Some(version) => self.replace(&asked.id, version, &record).await.map(|replaced| match replaced {
                    Replaced::Yes => None,
                    Replaced::No(Some(found)) => Some(found),
                    // Removed in between: the next turn inserts.
                    Replaced::No(None) => Some(absent(&record)),
                }),
            };
            let found = match written {
                Ok(None) if draining => return refused(self.problem(Code::Draining, &asked.id).retry_after(1)),
                Ok(None) => return self.held(asked, operation, attempt, began, over, sent_at),
                // The claim was taken, and its answer lost: by the attempt it is recognised as ours.
                Ok(Some(found)) if found.record.attempt == attempt && !is_absent(&found) => {
                    return self.held(asked, operation, attempt, began, over, sent_at);
                }
                Ok(Some(found)) => found,
                Err(error) => {
                    if error.applied() == Applied::Unknown && !draining {
                        self.release_later(&asked, attempt, over);
                    }
                    return refused(self.store_refusal(Some(&asked.id), &error));
                }
            };
            if is_absent(&found) {
                over = None;
                continue;
            }
            let fingerprint = asked.fingerprint_for(&found.record, &*operation, &self);
            return match decide::claim(&found, &fingerprint, asked.policy.guarantee) {
                decide::Claim::Execute if draining => refused(self.problem(Code::Draining, &asked.id).retry_after(1)),
                decide::Claim::Execute => {
                    over = Some(found.record.version());
                    continue;
                }
                decide::Claim::InFlight { age, left } => {
                    Claimed::Not(Begun::Running(Box::new(Other { asked, operation, found, age, left })))
                }
                judged => Claimed::Not(Begun::Answered(self.told(&asked.id, judged))),
            };
        }
        refused(self.problem(Code::StoreUnavailable, &asked.id).retry_after(1))
    }

    fn held<O: Operation>(
        self: Arc<Self>,
        asked: Asked,
        operation: Box<O>,
        attempt: AttemptId,
        began: Duration,
        over: Option<Version>,
        sent_at: Duration,
    ) -> Claimed<O> {
        let Asked { id, key_hash, print, policy, .. } = asked;
        Claimed::Held(Arc::new(Held::new(self, id, key_hash, attempt, print, policy, began, over, sent_at)), operation)
    }

    /// What a request is told by what was found, where it neither executes nor waits.
    fn told<T>(&self, id: &RecordId, judged: decide::Claim<'_>) -> Answer<T> {
        match judged {
            decide::Claim::Replay(Kept::Whole(reply)) => Answer::Replay(Arc::clone(reply)),
            decide::Claim::Replay(Kept::Head(head)) => Answer::Refused(self.not_kept(id, head)),
            decide::Claim::Mismatch => Answer::Refused(self.problem(Code::KeyReused, id)),
            decide::Claim::Unknown => Answer::Refused(self.problem(Code::OutcomeUnknown, id)),
            decide::Claim::Expired(executed) => Answer::Refused(self.problem(Code::KeyExpired, id).executed(executed)),
            // Free meanwhile, in another process: the client may claim it, this request was told to wait.
            decide::Claim::Execute | decide::Claim::InFlight { .. } => {
                Answer::Refused(self.problem(Code::InFlight, id).retry_after(1))
            }
        }
    }

    /// Waits for another attempt's answer as long as was asked, else says that it runs.
    fn wait_or_refuse<O: Operation>(&self, other: Box<Other<O>>, wait: Duration) -> Boxed<'_, Answer<O::Answer>> {
        Box::pin(self.wait_for(other, wait))
    }

    async fn wait_for<O: Operation>(&self, other: Box<Other<O>>, wait: Duration) -> Answer<O::Answer> {
        let Other { asked, operation, mut found, mut age, mut left } = *other;
        let id = asked.id;
        let wait = wait.min(self.limits.wait_max);
        let until = self.clock.now() + wait;
        let mut waiting = match wait.is_zero() {
            true => None,
            false => self.waiters.join(id, found.record.attempt, self.limits.waiters_per_key),
        };
        while let Some(place) = &mut waiting {
            // Whoever joined looks again: the attempt may have ended before.
            match self.get(&id).await {
                Ok(Some(now)) => {
                    let fingerprint = asked.fingerprint_for(&now.record, &*operation, self);
                    match decide::claim(&now, &fingerprint, asked.policy.guarantee) {
                        decide::Claim::InFlight { age: sign, left: rest } => (age, left) = (sign, rest),
                        // Released by this process: the answer that it was released with is on its way to us.
                        decide::Claim::Execute if now.record.attempt == found.record.attempt => {
                            if let Some(Ended::Released(Some(reply))) = poll_immediate(place.ended()).await {
                                return Answer::Released(reply);
                            }
                            let told = self.clock.sleep_until(self.clock.now() + Duration::from_millis(50));
                            tokio::select! {
                                ended = place.ended() => if let Ended::Released(Some(reply)) = ended {
                                    return Answer::Released(reply);
                                },
                                () = told => {}
                            }
                            return self.told(&id, decide::Claim::Execute);
                        }
                        judged => return self.told(&id, judged),
                    }
                    if now.record.attempt != found.record.attempt {
                        waiting = self.waiters.join(id, now.record.attempt, self.limits.waiters_per_key);
                        found = now;
                        continue;
                    }
                    found = now;
                }
                Ok(None) => return self.told(&id, decide::Claim::Execute),
                Err(error) => return Answer::Refused(self.store_refusal(Some(&id), &error)),
            }
            let now = self.clock.now();
            if now >= until {
                break;
            }
            tokio::select! {
                ended = place.ended() => match ended {
                    Ended::Released(Some(reply)) => return Answer::Released(reply),
                    // Its place is gone with the attempt; what it left is in the store.
                    Ended::Released(None) | Ended::Look => {
                        waiting = self.waiters.join(id, found.record.attempt, self.limits.waiters_per_key);
                    }
                },
                () = self.clock.sleep_until((now + poll_pause()).min(until)) => {}
            }
        }
        let seconds = self.retry_after(&found.record, age, left);
        Answer::Refused(self.problem(Code::InFlight, &id).retry_after(seconds))
    }

    /// The attempt's age by its claimer's clock, at least 1 s, at most what is left of the lease.
    fn retry_after(&self, record: &Record, age: Duration, left: Duration) -> u64 {
        let age = match &record.phase {
            Phase::InFlight { began, .. } => self.clock.wall().saturating_sub(*began),
            _ => age,
        };
        age.as_secs().min(left.as_secs()).max(1)
    }

    /// Releases, in the background and until the store answers, an attempt whose claim may have been taken or may still be.
    fn release_later(self: &Arc<Self>, asked: &Asked, attempt: AttemptId, over: Option<Version>) {
        let running = Running::begin(self);
        let shared = Arc::clone(self);
        let released = Record { key_hash: asked.key_hash, attempt, phase: self.released() };
        let id = asked.id;
        tokio::spawn(async move {
            let _running = running;
            shared.retry_until(|| shared.release(&id, &released, over)).await;
        });
    }

    fn released(&self) -> Phase {
        Phase::Released { keep: self.limits.released_keep() }
    }

    async fn release(&self, id: &RecordId, released: &Record, over: Option<Version>) -> Result<Wrote, Error> {
        let mut found = self.get(id).await?;
        for _ in 0..16 {
            found = match decide::release(found.as_ref(), released.attempt, over) {
                Release::Done => return Ok(Wrote::Here { audited: false }),
                Release::Insert => match self.insert(id, released).await? {
                    None => return Ok(Wrote::Here { audited: false }),
                    found => found,
                },
                Release::Write(version) => match self.replace(id, version, released).await? {
                    Replaced::Yes => return Ok(Wrote::Here { audited: false }),
                    Replaced::No(found) => found,
                },
            };
        }
        Err(Error::unavailable("the record changed too often while it was being released"))
    }

    /// Tries until it succeeds, the store refuses for good, or the drain's limit is over.
    pub(crate) async fn retry_until<T, F: Future<Output = Result<T, Error>>>(
        &self,
        mut attempt: impl FnMut() -> F,
    ) -> Option<T> {
        let mut given_up = self.give_up.subscribe();
        let mut pause = Duration::from_millis(20);
        loop {
            match attempt().await {
                Ok(done) => return Some(done),
                Err(error) => {
                    tracing::warn!(%error, "the end of an attempt could not be written down, and is tried again")
                }
            }
            tokio::select! {
                () = over(&mut given_up) => return attempt().await.ok(),
                () = self.clock.sleep_until(self.clock.now() + pause) => pause = (pause * 2).min(Duration::from_secs(2)),
            }
        }
    }

    /// Writes how an attempt ended until it succeeds, or until nobody can wait for it any more.
    fn keep_writing<'a>(&'a self, held: &'a Held, phase: &'a Phase) -> Boxed<'a, Option<Wrote>> {
        Box::pin(self.retry_until(|| self.write_end(held, phase)))
    }

    /// Writes how an attempt ended. One replace if nobody touched the record since.
    async fn write_end(&self, held: &Held, phase: &Phase) -> Result<Wrote, Error> {
        let record = held.record(phase.clone());
        match self.replace(&held.id, held.in_flight(), &record).await? {
            Replaced::Yes => Ok(Wrote::Here { audited: false }),
            Replaced::No(found) => self.write_end_over(held, &record, found).await,
        }
    }

    /// Writes how an attempt ended where somebody touched its record since the claim.
    fn write_end_over<'a>(
        &'a self,
        held: &'a Held,
        record: &'a Record,
        found: Option<Found>,
    ) -> Boxed<'a, Result<Wrote, Error>> {
        Box::pin(self.write_end_after(held, record, found))
    }

    async fn write_end_after(&self, held: &Held, record: &Record, mut found: Option<Found>) -> Result<Wrote, Error> {
        let phase = &record.phase;
        for _ in 0..16 {
            let late = match phase {
                Phase::Released { .. } => match decide::release(found.as_ref(), held.attempt, held.over) {
                    Release::Write(version) => Late::Write { over: version, audited: false },
                    Release::Insert => Late::Gone,
                    Release::Done => match found.as_ref().filter(|found| found.record.attempt != held.attempt) {
                        Some(_) => decide::complete(found.as_ref(), held.attempt, &held.print.fingerprint),
                        None => return Ok(Wrote::Here { audited: false }),
                    },
                },
                Phase::Unknown { .. } => decide::interrupt(found.as_ref(), held.attempt, &held.print.fingerprint),
                _ => decide::complete(found.as_ref(), held.attempt, &held.print.fingerprint),
            };
            match late {
                Late::Write { over, audited } => match self.replace(&held.id, over, record).await? {
                    Replaced::Yes => return Ok(Wrote::Here { audited }),
                    Replaced::No(now) => found = now,
                },
                Late::Kept(kept) => {
                    return Ok(match &kept.phase {
                        Phase::Completed { kept, .. } => Wrote::Kept(kept.clone()),
                        _ => Wrote::Here { audited: false },
                    });
                }
                Late::Overtaken(winner) => {
                    return Ok(match winner {
                        Winner::Answer(kept) => Wrote::Overtaken(Some(kept.clone())),
                        Winner::Running => Wrote::Running,
                        Winner::None => Wrote::Overtaken(None),
                    });
                }
                Late::Gone => {
                    let forgetful = self.opened.get().map(|opened| opened.identity) != Some(self.identity().await?);
                    // A release leaves its record in any case, so that a late word finds it.
                    if !forgetful && !matches!(phase, Phase::Released { .. }) {
                        return Ok(Wrote::Overtaken(None));
                    }
                    match self.insert(&held.id, record).await? {
                        None => return Ok(Wrote::Here { audited: forgetful }),
                        now => found = now,
                    }
                }
            }
        }
        Err(Error::unavailable("the record changed too often while its end was being written"))
    }

    async fn sweep_all(&self) -> Result<(), Error> {
        // A batch that was full is followed by the next at once; one that was not has met all there was.
        while self.sweep().await? == SWEEP_BATCH {
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn sweep(&self) -> Result<usize, Error> {
        let due = self.timed("due", self.store.due(SWEEP_BATCH)).await?;
        let mut left = 0;
        let work = due.iter().map(async |(id, found)| {
            let over = found.record.version();
            match decide::sweep(found) {
                decide::Sweep::Leave => Ok(false),
                decide::Sweep::Write(phase) => {
                    let unknown = matches!(phase, Phase::Unknown { .. });
                    let record = Record { phase, ..found.record.clone() };
                    let replaced = self.replace(id, over, &record).await?;
                    if unknown && replaced == Replaced::Yes {
                        tracing::warn!(instance = %id.instance(), "a holder was lost; nobody knows whether it executed");
                    }
                    Ok(true)
                }
                decide::Sweep::Forget => self.timed("remove", self.store.remove(id, over)).await.map(|_| true),
            }
        });
        // Together, so that a store which groups its writers makes one commit of them.
        for done in futures_util::future::join_all(work).await {
            left += usize::from(!done?);
        }
        // Those left alone are due and stay so: counting them would make a full batch of them go round for ever.
        Ok(due.len() - left)
    }

    async fn self_test(&self) -> Result<(), Error> {
        let id = RecordId(*blake3::hash(&AttemptId::random().0).as_bytes());
        let attempt = AttemptId::random();
        let print = Print { fingerprint: Fingerprint([7; 32]), rules: Arc::default() };
        let keep = Duration::from_secs(60);
        let claim = Record {
            key_hash: KeyHash([0; 32]),
            attempt,
            phase: Phase::InFlight { print: print.clone(), lease: keep, began: Duration::ZERO },
        };
        let reply = Reply {
            status: http::StatusCode::CREATED,
            headers: vec![(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"))],
            body: bytes::Bytes::from_static(b"once"),
        };
        let kept = Kept::Whole(Arc::new(reply));
        let phase = Phase::Completed { print, kept: kept.clone(), retention: keep, tombstone: Duration::ZERO };
        let done = Record { phase, ..claim.clone() };
        let failed = |what: &str| Err(Error::refused(format!("the store's self-test failed: {what}")));

        if self.insert(&id, &claim).await?.is_some() {
            return failed("a key that nobody used is taken");
        }
        match self.insert(&id, &claim).await? {
            Some(found) if found.record == claim => {}
            _ => return failed("a claim was not found again, so that a second request would have executed"),
        }
        if self.replace(&id, claim.version(), &done).await? != Replaced::Yes {
            return failed("an answer could not be kept");
        }
        match self.get(&id).await? {
            Some(found) if matches!(decide::standing(&found), Standing::Completed(found) if *found == kept) => {}
            _ => return failed("an answer that was kept is not replayed"),
        }
        match self.timed("remove", self.store.remove(&id, done.version())).await? {
            true => Ok(()),
            false => failed("a record could not be removed"),
        }
    }

    fn observe<T>(&self, policy: &Policy, answer: &Answer<T>, id: Option<&RecordId>) {
        let outcome = match answer {
            Answer::Own(_, outcome) => *outcome,
            Answer::Replay(_) => Outcome::Replayed,
            Answer::Released(_) => Outcome::Released,
            Answer::Refused(problem) => problem.outcome(),
        };
        self.observer.answered(&policy.route, outcome, id);
        let prevented = match answer {
            Answer::Replay(_) | Answer::Released(_) => true,
            Answer::Refused(problem) => matches!(
                problem.code(),
                Code::InFlight | Code::OutcomeUnknown | Code::AnswerNotKept | Code::KeyExpired | Code::KeyReused
            ),
            Answer::Own(..) => false,
        };
        if prevented {
            self.observer.prevented(&policy.route);
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

    async fn insert(&self, id: &RecordId, record: &Record) -> Result<Option<Found>, Error> {
        self.timed("insert", self.store.insert(id, record)).await
    }

    pub(crate) async fn replace(&self, id: &RecordId, over: Version, record: &Record) -> Result<Replaced, Error> {
        self.timed("replace", self.store.replace(id, over, record)).await
    }

    async fn get(&self, id: &RecordId) -> Result<Option<Found>, Error> {
        self.timed("get", self.store.get(id)).await
    }

    async fn meta(&self, name: &str, value: &[u8]) -> Result<bytes::Bytes, Error> {
        self.timed("meta", self.store.meta(name, value)).await
    }

    /// Asks the store, no longer than it may take. No timer is made for a store that answers at once.
    async fn timed<T>(&self, op: &'static str, mut asked: Pending<'_, T>) -> Result<T, Error> {
        let sent = self.clock.now();
        let answer = match poll_immediate(&mut asked).await {
            Some(answer) => answer,
            None => {
                tokio::select! {
                    biased;
                    answer = &mut asked => answer,
                    () = self.clock.sleep_until(sent + self.limits.store_timeout) => {
                        Err(Error::unavailable("the store did not answer in time"))
                    }
                }
            }
        };
        self.observer.store(op, self.clock.now().saturating_sub(sent), answer.is_ok());
        answer
    }
}

/// Ends when the drain's limit is over.
async fn over(given_up: &mut watch::Receiver<bool>) {
    if given_up.wait_for(|given_up| *given_up).await.is_err() {
        // Without an engine nobody can give up any more.
        std::future::pending().await
    }
}

/// A future on the heap, made within a plain function: one that is boxed within an `async fn` takes its place in that one's
/// future all the same, and each request's is as large as the largest path through it.
pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How many records a sweep looks at together.
const SWEEP_BATCH: usize = 256;

/// A waiter looks into the store this often too: the attempt may end in another process. Jittered, so that many who wait do
/// not ask at once.
fn poll_pause() -> Duration {
    Duration::from_millis(rand::random_range(50..=250))
}

fn refused<O: Operation>(problem: Problem) -> Claimed<O> {
    Claimed::Not(Begun::Answered(Answer::Refused(problem)))
}

/// Stands for nothing at all, where a replace met an absent record.
fn absent(record: &Record) -> Found {
    Found {
        record: Record { phase: Phase::Released { keep: Duration::ZERO }, ..record.clone() },
        age: Duration::MAX,
        holder_gone: true,
    }
}

fn is_absent(found: &Found) -> bool {
    found.age == Duration::MAX && found.holder_gone && matches!(found.record.phase, Phase::Released { .. })
}

/// What became of the word of an attempt that ended.
enum Wrote {
    /// It is written.
    Here {
        /// The attempt had been given up, or the store forgot it.
        audited: bool,
    },
    /// This attempt's end was already there: that answer counts.
    Kept(Kept),
    /// Another attempt has the key, with this answer.
    Overtaken(Option<Kept>),
    /// Another attempt has the key, and is executing.
    Running,
}

/// How watching over an execution ended.
enum Watched<T> {
    Ended(Execution<T>),
    Panicked,
    /// Nobody listens any longer.
    GivenUp,
}

impl<T> From<std::thread::Result<Execution<T>>> for Watched<T> {
    fn from(ended: std::thread::Result<Execution<T>>) -> Self {
        match ended {
            Ok(execution) => Self::Ended(execution),
            Err(_) => Self::Panicked,
        }
    }
}

/// Holds a claim: executes, renews, and keeps how it ended. Runs in a task of its own.
async fn hold<O: Operation>(held: Arc<Held>, operation: Box<O>, sender: oneshot::Sender<Begun<O>>, running: Running) {
    let shared = Arc::clone(&held.shared);
    let started = shared.clock.now();
    let mut client = Client { sender: Some(sender) };
    let mut work = execute(operation, Claim { held: Arc::clone(&held) });
    let watched = watch(&shared, &held, &mut work, &mut client, started).await;
    drop(work);
    shared.observer.executed(&held.policy.route, shared.clock.now().saturating_sub(started));
    finish(&shared, &held, watched, client).await;
    drop(running);
}

/// The operation's own future. A panic in it is an outcome.
fn execute<O: Operation>(operation: Box<O>, claim: Claim) -> Work<O::Answer> {
    Box::pin(AssertUnwindSafe((*operation).execute(claim)).catch_unwind())
}

type Work<T> = Boxed<'static, std::thread::Result<Execution<T>>>;

/// The client that began the attempt, as long as it listens.
struct Client<O: Operation> {
    sender: Option<oneshot::Sender<Begun<O>>>,
}

impl<O: Operation> Client<O> {
    fn tell(&mut self, answer: Answer<O::Answer>) {
        if let Some(sender) = self.sender.take() {
            // An error only says that the client went away.
            let _ = sender.send(Begun::Answered(answer));
        }
    }
}

async fn watch<O: Operation>(
    shared: &Arc<Shared>,
    held: &Arc<Held>,
    work: &mut Work<O::Answer>,
    client: &mut Client<O>,
    started: Duration,
) -> Watched<O::Answer> {
    // Most executions end before any of what watching takes is needed.
    match poll_immediate(&mut *work).await {
        Some(done) => Watched::from(done),
        None => watch_on(shared, held, work, client, started).await,
    }
}

fn watch_on<'a, O: Operation>(
    shared: &'a Arc<Shared>,
    held: &'a Arc<Held>,
    work: &'a mut Work<O::Answer>,
    client: &'a mut Client<O>,
    started: Duration,
) -> Boxed<'a, Watched<O::Answer>> {
    Box::pin(watch_pending(shared, held, work, client, started))
}

async fn watch_pending<O: Operation>(
    shared: &Arc<Shared>,
    held: &Arc<Held>,
    work: &mut Work<O::Answer>,
    client: &mut Client<O>,
    started: Duration,
) -> Watched<O::Answer> {
    let third = held.policy.lease / 3;
    let listen_until = started + shared.limits.capture_timeout;
    let answer_until = started + shared.limits.upstream_timeout;
    let mut given_up = shared.give_up.subscribe();
    let mut renew_at = held.confirmed() + third;
    let mut renewal = None;
    loop {
        let mut until = listen_until;
        if client.sender.is_some() {
            until = until.min(answer_until);
        }
        if renewal.is_none() {
            until = until.min(renew_at);
        }
        tokio::select! {
            biased;
            done = &mut *work => return Watched::from(done),
            () = over(&mut given_up) => return Watched::GivenUp,
            alive = async { match renewal.as_mut() { Some(renewal) => renewal.await, None => std::future::pending().await } } => {
                renewal = None;
                renew_at = match alive {
                    true => held.confirmed() + third,
                    // An overtaken holder has nothing to renew; a store that failed is asked again soon.
                    false if held.was_overtaken() => Duration::MAX,
                    false => shared.clock.now() + third / 4,
                };
            }
            () = shared.clock.sleep_until(until) => {
                let now = shared.clock.now();
                if now >= listen_until {
                    return Watched::GivenUp;
                }
                if now >= answer_until && client.sender.is_some() {
                    let left = held.policy.lease.as_secs();
                    let age = now.saturating_sub(started).as_secs();
                    let problem = shared.problem(Code::UpstreamTimeout, &held.id).retry_after(age.min(left).max(1));
                    client.tell(Answer::Refused(problem));
                }
                if now >= renew_at && renewal.is_none() {
                    let held = Arc::clone(held);
                    renewal = Some(Box::pin(async move { held.renew().await }));
                }
            }
        }
    }
}

/// Keeps how the attempt ended, then tells the client: never the other way round.
async fn finish<O: Operation>(
    shared: &Arc<Shared>,
    held: &Arc<Held>,
    watched: Watched<O::Answer>,
    mut client: Client<O>,
) {
    let Execution { answer, end } = match watched {
        Watched::Ended(execution) => execution,
        Watched::Panicked => Execution { answer: Err(Code::HandlerPanicked), end: End::Unknown },
        Watched::GivenUp if held.was_sent() => Execution { answer: Err(Code::UpstreamLost), end: End::Unknown },
        Watched::GivenUp => Execution { answer: Err(Code::UpstreamUnreachable), end: End::Released(None) },
    };
    let policy = &held.policy;
    let print = held.print.clone();
    let completed = |kept| Phase::Completed {
        print: held.print.clone(),
        kept,
        retention: policy.retention,
        tombstone: policy.tombstone,
    };
    let (phase, outcome) = match &end {
        End::Completed(reply) => (completed(Kept::Whole(Arc::clone(reply))), Outcome::Stored),
        End::NotKept(head) => (completed(Kept::Head(head.clone())), Outcome::NotStored),
        End::Released(_) => (shared.released(), Outcome::Released),
        End::Unknown => (Phase::Unknown { print }, Outcome::Unknown),
    };
    match shared.write_end(held, &phase).await {
        Ok(wrote) => tell_end(shared, held, &wrote, answer, &end, outcome, &mut client),
        Err(error) => {
            tracing::warn!(instance = %held.id.instance(), error = %chain(&error), "the end of an attempt is not confirmed as stored");
            client.tell(own(shared, held, answer, Outcome::NotStored));
            match shared.keep_writing(held, &phase).await {
                Some(wrote) => audit(shared, held, &wrote, &end),
                None => return,
            }
        }
    }
    shared.waiters.tell(held.id, held.attempt, || match end {
        End::Released(reply) => Ended::Released(reply),
        _ => Ended::Look,
    });
}

/// Tells the client how its attempt ended: its own answer, or the winner's.
fn tell_end<O: Operation>(
    shared: &Shared,
    held: &Held,
    wrote: &Wrote,
    answer: Result<O::Answer, Code>,
    end: &End,
    outcome: Outcome,
    client: &mut Client<O>,
) {
    audit(shared, held, wrote, end);
    client.tell(match (wrote, end) {
        (Wrote::Here { .. }, _) => own(shared, held, answer, outcome),
        (Wrote::Kept(Kept::Whole(kept)), End::Completed(reply)) if kept == reply => own(shared, held, answer, outcome),
        (Wrote::Kept(Kept::Head(kept)), End::NotKept(head)) if kept == head => own(shared, held, answer, outcome),
        (Wrote::Kept(kept) | Wrote::Overtaken(Some(kept)), _) => match kept {
            Kept::Whole(reply) => Answer::Replay(Arc::clone(reply)),
            Kept::Head(head) => Answer::Refused(shared.not_kept(&held.id, head)),
        },
        (Wrote::Running, _) => Answer::Refused(shared.problem(Code::InFlight, &held.id).retry_after(1)),
        (Wrote::Overtaken(None), _) => own(shared, held, answer, Outcome::NotStored),
    });
}

/// Says aloud what must not happen unnoticed.
fn audit(shared: &Shared, held: &Held, wrote: &Wrote, end: &End) {
    match wrote {
        Wrote::Here { audited: true } => {
            tracing::warn!(target: "onceward::audit", instance = held.id.instance(), event = "late_completion",
                "an attempt that was given up as released, or that the store forgot, has ended after all");
        }
        Wrote::Overtaken(_) | Wrote::Running if matches!(end, End::Completed(_) | End::NotKept(_)) => {
            shared.observer.second_execution(&held.policy.route);
            tracing::error!(target: "onceward::audit", instance = held.id.instance(), event = "second_execution",
                "an attempt that was overtaken has executed all the same");
        }
        _ => {}
    }
}

fn own<T>(shared: &Shared, held: &Held, answer: Result<T, Code>, outcome: Outcome) -> Answer<T> {
    match answer {
        Ok(answer) => Answer::Own(answer, outcome),
        Err(code) => Answer::Refused(shared.problem(code, &held.id).with_outcome(outcome)),
    }
}

/// An error with all that lies beneath it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line.push_str(": ");
        line.push_str(&error.to_string());
        source = error.source();
    }
    line
}

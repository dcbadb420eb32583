//! The holder's handle: what an executing attempt may ask and declare.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::HeaderValue;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::decide::{self, Renew};
use crate::engine::{AttemptEnd, Boxed, ExecutionPermit, Shared};
use crate::fault;
use crate::fingerprint::{Fingerprint, Parts};
use crate::policy::{Disposition, Policy};
use crate::principal::Principal;
use crate::problem::Problem;
use crate::record::{AttemptId, FingerprintWithRules, Phase, PhaseKind, Record, Version};
use crate::secret::{KeyHash, RecordId, hex};
use crate::store::{Cas, Error};

/// The right to execute, held by one attempt. It stands in the extensions of each keyed request that executes.
#[derive(Clone)]
pub struct Claim {
    pub(crate) held: Arc<Attempt>,
}

/// Another attempt overtook this one, or nobody can tell: nothing may be sent any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SupersededError;

impl fmt::Display for SupersededError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the claim could not be renewed before the first byte; nothing may be sent")
    }
}

impl std::error::Error for SupersededError {}

impl Claim {
    /// This attempt.
    pub fn attempt(&self) -> AttemptId {
        self.held.attempt
    }

    /// Whether an earlier attempt with this key is known: one that was released, or, on an `at-least-once` route, one that
    /// was lost and may have done part of the work.
    pub fn earlier_attempt(&self) -> bool {
        self.held.over().is_some()
    }

    /// Declares how this attempt ends, whatever its answer's status says: [`Disposition::Released`] (it did nothing, the key is
    /// free again) or [`Disposition::NotKept`] (it executed, but its answer must not be stored), or [`Disposition::Unknown`].
    pub fn declare(&self, fate: Disposition) {
        let code = match fate {
            Disposition::NotSent | Disposition::Released => 1,
            Disposition::NotKept => 2,
            Disposition::Unknown => 3,
        };
        self.held.declared.store(code, Ordering::Relaxed);
    }

    /// Says that the first byte is about to go to the upstream, and returns once it may: a claim of which two thirds are
    /// over is renewed before. A forwarding service awaits it right before it writes; for a handler the layer does.
    ///
    /// # Errors
    ///
    /// [`SupersededError`]: nothing may be sent; the attempt ends as [`Disposition::NotSent`].
    pub async fn mark_sending(&self) -> Result<(), SupersededError> {
        let held = &self.held;
        // An overtaken holder's renewal fails, so the first look is the only one that it needs.
        if held.was_overtaken() || (held.is_past_two_thirds() && !held.renew_boxed().await) {
            return Err(SupersededError);
        }
        fault::reach("send-before");
        held.sent.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Takes [`Claim::mark_sending`] back: it was not written after all, and surely never will be. A forwarding service says so
    /// where the connection that it had taken turns out to be closed, before it makes another.
    pub fn mark_unsent(&self) {
        self.held.sent.store(false, Ordering::Relaxed);
    }

    /// The value of `Onceward-Claim`: opaque, and unguessable.
    pub fn header_value(&self) -> HeaderValue {
        let text = format!("{}.{}", hex(&self.held.id.0), hex(&self.held.attempt.0));
        // Hexadecimal and a dot are always a header's value.
        HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    /// What names the operation to support.
    pub fn instance(&self) -> String {
        self.held.id.instance()
    }

    /// Returns the fingerprint that a request would have by the rules of this attempt, and whether that is its own.
    pub(crate) fn fingerprint(&self, request: &Parts<'_>) -> Option<(Fingerprint, bool)> {
        let FingerprintWithRules { fingerprint, rules, .. } = &self.held.print;
        let other = rules.fingerprint(self.held.shared.keys()?, request);
        Some((other, other == *fingerprint))
    }

    /// Says that the streamed rest of the answer was cut, until the store took it.
    pub(crate) async fn mark_truncated(&self) {
        let held = &self.held;
        // First: whoever still writes down that there was an answer writes from now on that nobody knows.
        held.cut.store(true, Ordering::SeqCst);
        held.shared.retry_until(|| held.mark_truncated()).await;
    }

    /// Notes that the response has begun: from now on its client is not sent away by `upstream_timeout`.
    pub(crate) fn response_began(&self) {
        self.held.response_began.store(true, Ordering::Relaxed);
    }

    /// Postpones the end of the attempt: its response is handed on now, and its record stays in flight until the returned
    /// handle says how it ended. A handle that is dropped says [`AttemptEnd::Unknown`].
    pub(crate) fn end_later(&self) -> LaterEnd {
        let (end, receiver) = oneshot::channel();
        let (written, is_written) = oneshot::channel();
        *self.held.later_end.lock() = Some((receiver, written));
        LaterEnd { end, is_written }
    }

    pub(crate) fn declared(&self) -> Option<Disposition> {
        match self.held.declared.load(Ordering::Relaxed) {
            1 => Some(Disposition::Released),
            2 => Some(Disposition::NotKept),
            3 => Some(Disposition::Unknown),
            _ => None,
        }
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim")
            .field("attempt", &self.held.attempt)
            .field("earlier_attempt", &self.earlier_attempt())
            .finish_non_exhaustive()
    }
}

/// Says how an attempt ended whose response was handed on before its end.
pub(crate) struct LaterEnd {
    end: oneshot::Sender<AttemptEnd>,
    is_written: oneshot::Receiver<()>,
}

impl LaterEnd {
    /// Says how it ended. The returned future resolves once that is stored.
    pub(crate) fn send(self, end: AttemptEnd) -> oneshot::Receiver<()> {
        // Nobody listens where the drain's limit is over: the end is written as unknown there.
        let _ = self.end.send(end);
        self.is_written
    }
}

/// What is known of an attempt, from when its claim is asked for until it is written how it ended.
pub(crate) struct Attempt {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: RecordId,
    pub(crate) principal: Principal,
    pub(crate) key_hash: KeyHash,
    pub(crate) attempt: AttemptId,
    pub(crate) print: FingerprintWithRules,
    pub(crate) policy: Arc<Policy>,
    /// When the attempt began, by the wall clock: a hint.
    pub(crate) began: Duration,
    /// What the claim replaced, if it was more than an insert.
    over: OnceLock<Version>,
    /// When the last sign of life was *sent*, in microseconds of the holder's clock.
    confirmed: AtomicU64,
    sent: AtomicBool,
    overtaken: AtomicBool,
    /// The answer that was handed on as it came broke off.
    cut: AtomicBool,
    response_began: AtomicBool,
    declared: AtomicU8,
    /// Where the end of the attempt comes from if its response was handed on before, and whom to tell that it is stored.
    later_end: Mutex<Option<(oneshot::Receiver<AttemptEnd>, oneshot::Sender<()>)>>,
    /// The place of the execution. It is free again when nobody holds the claim any more: neither the engine nor the task
    /// that reads a response which was handed on.
    place: Mutex<Option<ExecutionPermit>>,
    /// One renewal at a time: the loop's and the one before the first byte may meet.
    renewing: tokio::sync::Mutex<()>,
    /// What the client is told whose patience ends before the execution.
    pub(crate) impatience: TimeoutResponse,
    /// Whether this is the record of a redirected request, and not of the key's first one.
    pub(crate) is_redirected: bool,
}

/// The word to a client whose patience ends: it may be spoken before anybody listens.
#[derive(Default)]
pub(crate) struct TimeoutResponse(Mutex<Option<Word>>);

enum Word {
    Spoken(Box<Problem>),
    Awaited(oneshot::Sender<Box<Problem>>),
}

impl TimeoutResponse {
    pub(crate) fn tell(&self, problem: Problem) {
        let mut word = self.0.lock();
        match word.take() {
            // An error only says that the client went away.
            Some(Word::Awaited(sender)) => drop(sender.send(Box::new(problem))),
            _ => *word = Some(Word::Spoken(Box::new(problem))),
        }
    }

    pub(crate) fn listen(&self) -> oneshot::Receiver<Box<Problem>> {
        let (sender, receiver) = oneshot::channel();
        let mut word = self.0.lock();
        match word.take() {
            Some(Word::Spoken(problem)) => drop(sender.send(problem)),
            _ => *word = Some(Word::Awaited(sender)),
        }
        receiver
    }
}

impl Attempt {
    pub(crate) fn new(
        shared: Arc<Shared>,
        id: RecordId,
        principal: Principal,
        key_hash: KeyHash,
        print: FingerprintWithRules,
        policy: Arc<Policy>,
    ) -> Arc<Self> {
        Arc::new(Self::begin(shared, id, principal, key_hash, print, policy))
    }

    /// The attempt of the same request at the record that a redirect has led to.
    pub(crate) fn redirected(&self, id: RecordId) -> Arc<Self> {
        let (shared, policy) = (Arc::clone(&self.shared), Arc::clone(&self.policy));
        let attempt = Self::begin(shared, id, self.principal, self.key_hash, self.print.clone(), policy);
        Arc::new(Self { is_redirected: true, ..attempt })
    }

    fn begin(
        shared: Arc<Shared>,
        id: RecordId,
        principal: Principal,
        key_hash: KeyHash,
        print: FingerprintWithRules,
        policy: Arc<Policy>,
    ) -> Self {
        let began = shared.clock.wall();
        Self {
            shared,
            id,
            principal,
            key_hash,
            attempt: AttemptId::random(),
            print,
            policy,
            began,
            over: OnceLock::new(),
            confirmed: AtomicU64::new(0),
            sent: AtomicBool::new(false),
            overtaken: AtomicBool::new(false),
            cut: AtomicBool::new(false),
            response_began: AtomicBool::new(false),
            later_end: Mutex::default(),
            place: Mutex::default(),
            declared: AtomicU8::new(0),
            renewing: tokio::sync::Mutex::new(()),
            impatience: TimeoutResponse::default(),
            is_redirected: false,
        }
    }

    /// The claim was won: by a write that was sent then, over what was there.
    pub(crate) fn on_acquired(&self, sent_at: Duration, over: Option<Version>) {
        self.confirmed.store(micros(sent_at), Ordering::Relaxed);
        if let Some(version) = over {
            // A claim is won once.
            let _ = self.over.set(version);
        }
    }

    /// What the claim replaced, if it was more than an insert.
    pub(crate) fn over(&self) -> Option<Version> {
        self.over.get().copied()
    }

    /// The record of this attempt in a phase.
    pub(crate) fn record(&self, phase: Phase) -> Record {
        Record { key_hash: self.key_hash, attempt: self.attempt, phase }
    }

    /// The record of this attempt while it executes.
    pub(crate) fn record_in_flight(&self) -> Record {
        self.record(Phase::InFlight { print: self.print.clone(), lease: self.policy.lease, began: self.began })
    }

    /// Where the record stands if nobody touched it.
    pub(crate) fn in_flight(&self) -> Version {
        Version { attempt: self.attempt, stage: PhaseKind::InFlight }
    }

    pub(crate) fn confirmed(&self) -> Duration {
        Duration::from_micros(self.confirmed.load(Ordering::Relaxed))
    }

    /// Whether the first byte may have been sent.
    pub(crate) fn was_sent(&self) -> bool {
        self.sent.load(Ordering::Relaxed)
    }

    /// Whether its answer broke off after it had begun to go to the client.
    pub(crate) fn was_truncated(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }

    /// The record of this attempt where nobody knows whether it executed.
    pub(crate) fn record_unknown(&self) -> Record {
        self.record(Phase::Unknown { print: self.print.clone() })
    }

    /// Takes a place among the executions. Returns false if none is free.
    pub(crate) fn take_place(&self) -> bool {
        let place = self.shared.begin_execution();
        let is_taken = place.is_some();
        *self.place.lock() = place;
        is_taken
    }

    pub(crate) fn leave_place(&self) {
        self.place.lock().take();
    }

    pub(crate) fn has_response_begun(&self) -> bool {
        self.response_began.load(Ordering::Relaxed)
    }

    /// Takes the channel of [`Claim::end_later`], if the end was postponed.
    pub(crate) fn take_later_end(&self) -> Option<(oneshot::Receiver<AttemptEnd>, oneshot::Sender<()>)> {
        self.later_end.lock().take()
    }

    pub(crate) fn was_overtaken(&self) -> bool {
        self.overtaken.load(Ordering::Relaxed)
    }

    /// Whether an end of this attempt, kept by a write whose answer was lost, can be past its retention and its tombstone by now:
    /// it was not there before the last sign of life.
    pub(crate) fn may_have_ended(&self) -> bool {
        let known = self.policy.retention.saturating_add(self.policy.tombstone);
        self.shared.clock.now().saturating_sub(self.confirmed()) >= known
    }

    fn is_past_two_thirds(&self) -> bool {
        self.shared.clock.now().saturating_sub(self.confirmed()) > self.policy.lease / 3 * 2
    }

    /// [`Attempt::renew`], where it is rare: not in each request's own future.
    fn renew_boxed(&self) -> Boxed<'_, bool> {
        Box::pin(self.renew())
    }

    /// Gives a sign of life. Returns whether the store took it.
    pub(crate) async fn renew(&self) -> bool {
        let _one = self.renewing.lock().await;
        let sent_at = self.shared.clock.now();
        let record = self.record_in_flight();
        let mut over = self.in_flight();
        // Given up as unknown meanwhile, it is claimed back from there; forgotten by the store, it is claimed anew.
        for _ in 0..3 {
            let found = match self.shared.compare_and_swap(&self.id, over, &record).await {
                Ok(Cas::Swapped) => return self.is_alive(sent_at),
                Ok(Cas::Conflict(found)) => found,
                Err(error) => return self.is_not_renewed(&error),
            };
            match decide::renew(found.as_ref(), self.attempt) {
                Renew::Write(version) => over = version,
                Renew::Insert => match self.shared.insert(&self.id, &record).await {
                    Ok(None) => {
                        tracing::warn!(target: "onceward::audit", instance = %self.id.instance(), event = "claimed_anew",
                            "the store forgot a claim whose holder lives");
                        return self.is_alive(sent_at);
                    }
                    // The next turn looks whose it is.
                    Ok(Some(_)) => {}
                    Err(error) => return self.is_not_renewed(&error),
                },
                Renew::Lost => break,
            }
        }
        self.overtaken.store(true, Ordering::Relaxed);
        false
    }

    fn is_alive(&self, sent_at: Duration) -> bool {
        self.confirmed.store(micros(sent_at), Ordering::Relaxed);
        true
    }

    fn is_not_renewed(&self, error: &Error) -> bool {
        tracing::warn!(instance = %self.id.instance(), %error, "a claim could not be renewed");
        false
    }

    /// Says that the streamed rest of the answer was cut, so that nobody believes it was whole.
    async fn mark_truncated(&self) -> Result<(), Error> {
        let unknown = self.record_unknown();
        let mut over = Version { attempt: self.attempt, stage: PhaseKind::Completed };
        // The word that there is an answer may come in between, once.
        for _ in 0..4 {
            match self.shared.compare_and_swap(&self.id, over, &unknown).await? {
                Cas::Swapped => break,
                Cas::Conflict(found) => match decide::truncated(found.as_ref(), self.attempt) {
                    Some(version) => over = version,
                    None => break,
                },
            }
        }
        Ok(())
    }
}

/// The record and the attempt that a value of `Onceward-Claim` names.
pub(crate) fn parse_header(value: &HeaderValue) -> Option<(RecordId, AttemptId)> {
    let (id, attempt) = value.to_str().ok()?.split_once('.')?;
    Some((RecordId(unhex(id)?), AttemptId(unhex(attempt)?)))
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        let digits = text.get(2 * at..2 * at + 2)?;
        // A sign is no digit, though `from_str_radix` takes it.
        *byte = u8::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))?;
    }
    Some(bytes)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

//! Handle of the claim holder: queries and declarations of an executing attempt.

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

/// The right to execute, held by one attempt. The extensions of each keyed request that executes
/// contain it.
#[derive(Clone)]
pub struct Claim {
    pub(crate) held: Arc<Attempt>,
}

/// Another attempt superseded this one, or ownership is unknown: nothing more may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SupersededError;

impl fmt::Display for SupersededError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the claim could not be renewed before the first byte; nothing may be sent")
    }
}

impl std::error::Error for SupersededError {}

impl Claim {
    /// Returns the id of this attempt.
    pub fn attempt(&self) -> AttemptId {
        self.held.attempt
    }

    /// Returns true if an earlier attempt with this key is known: one that was released, or, on an
    /// `at-least-once` route, one that was lost and may have done part of the work.
    pub fn earlier_attempt(&self) -> bool {
        self.held.over().is_some()
    }

    /// Declares how this attempt ends, overriding the status of its response:
    /// [`Disposition::Released`] (it did nothing, and the key is free again),
    /// [`Disposition::NotKept`] (it executed, but its response must not be stored), or
    /// [`Disposition::Unknown`].
    pub fn declare(&self, fate: Disposition) {
        let code = match fate {
            Disposition::NotSent | Disposition::Released => 1,
            Disposition::NotKept => 2,
            Disposition::Unknown => 3,
        };
        self.held.declared.store(code, Ordering::Relaxed);
    }

    /// Marks that the first byte is about to be sent upstream, and returns once it may be. A claim
    /// that has used two thirds of its lease is renewed first. A forwarding service awaits this
    /// right before it writes; for a handler the layer does.
    ///
    /// # Errors
    ///
    /// [`SupersededError`]: nothing may be sent; the attempt ends as [`Disposition::NotSent`].
    pub async fn mark_sending(&self) -> Result<(), SupersededError> {
        let held = &self.held;
        // The renewal of a superseded holder fails, so this one check at the start is enough.
        if held.was_overtaken() || (held.is_past_two_thirds() && !held.renew_boxed().await) {
            return Err(SupersededError);
        }
        fault::reach("send-before");
        held.sent.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Reverts [`Claim::mark_sending`]: the request was not written, and surely never will be. A
    /// forwarding service calls this if the connection that it had taken turns out to be closed,
    /// before it opens another.
    pub fn mark_unsent(&self) {
        self.held.sent.store(false, Ordering::Relaxed);
    }

    /// Returns the value of `Onceward-Claim`: opaque and unguessable.
    pub fn header_value(&self) -> HeaderValue {
        let text = format!("{}.{}", hex(&self.held.id.0), hex(&self.held.attempt.0));
        // Hexadecimal digits and a dot are always a valid header value.
        HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    /// Returns the name of the operation, for support requests.
    pub fn instance(&self) -> String {
        self.held.id.instance()
    }

    /// Returns the fingerprint that a request would have by the rules of this attempt, and true if
    /// it equals this attempt's own.
    pub(crate) fn fingerprint(&self, request: &Parts<'_>) -> Option<(Fingerprint, bool)> {
        let FingerprintWithRules { fingerprint, rules, .. } = &self.held.print;
        let other = rules.fingerprint(self.held.shared.keys()?, request);
        Some((other, other == *fingerprint))
    }

    /// Marks the streamed rest of the response as truncated, and retries until the store has
    /// written it.
    pub(crate) async fn mark_truncated(&self) {
        let held = &self.held;
        // Set first: any concurrent write that records a response then records an unknown outcome
        // instead.
        held.cut.store(true, Ordering::SeqCst);
        held.shared.retry_until(|| held.mark_truncated()).await;
    }

    /// Marks that the response has begun: `upstream_timeout` no longer applies to its client.
    pub(crate) fn response_began(&self) {
        self.held.response_began.store(true, Ordering::Relaxed);
    }

    /// Postpones the end of the attempt: its response is passed on now, and its record stays in
    /// flight until the returned handle reports the end. Dropping the handle reports
    /// [`AttemptEnd::Unknown`].
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

/// Reports the end of an attempt whose response was passed on before that end.
pub(crate) struct LaterEnd {
    end: oneshot::Sender<AttemptEnd>,
    is_written: oneshot::Receiver<()>,
}

impl LaterEnd {
    /// Reports the end. The returned future resolves once it is stored.
    pub(crate) fn send(self, end: AttemptEnd) -> oneshot::Receiver<()> {
        // After the drain timeout there is no receiver: the end is then written as unknown.
        let _ = self.end.send(end);
        self.is_written
    }
}

/// State of an attempt, from the request for its claim until its end is written.
pub(crate) struct Attempt {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: RecordId,
    pub(crate) principal: Principal,
    pub(crate) key_hash: KeyHash,
    pub(crate) attempt: AttemptId,
    pub(crate) print: FingerprintWithRules,
    pub(crate) policy: Arc<Policy>,
    /// Start of the attempt, by the wall clock: a hint.
    pub(crate) began: Duration,
    /// The version that the claim replaced, unless the claim was an insert.
    over: OnceLock<Version>,
    /// When the last confirmed renewal was *sent*, in microseconds of the holder's clock.
    confirmed: AtomicU64,
    sent: AtomicBool,
    overtaken: AtomicBool,
    /// The response was truncated while it was being streamed.
    cut: AtomicBool,
    response_began: AtomicBool,
    declared: AtomicU8,
    /// Receiver of the attempt's end if its response was passed on before, and the sender that
    /// confirms that the end is stored.
    later_end: Mutex<Option<(oneshot::Receiver<AttemptEnd>, oneshot::Sender<()>)>>,
    /// Permit of the execution. It is released when nobody holds the claim any more: neither the
    /// engine nor the task that reads a response which was passed on.
    place: Mutex<Option<ExecutionPermit>>,
    /// Serializes renewals: the renewal loop and the renewal before the first byte may be
    /// concurrent.
    renewing: tokio::sync::Mutex<()>,
    /// Response to a client whose timeout ends before the execution does.
    pub(crate) impatience: TimeoutResponse,
    /// True if this is the record of a redirected request, not that of the key's first request.
    pub(crate) is_redirected: bool,
}

/// Response to a client that has timed out. It may be sent before the receiver subscribes.
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
            // An error only means that the client has disconnected.
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

    /// Returns the attempt of the same request at the record of a redirect's target.
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

    /// Records that the claim was acquired, by a write sent at `sent_at` that replaced the version
    /// `over`.
    pub(crate) fn on_acquired(&self, sent_at: Duration, over: Option<Version>) {
        self.confirmed.store(micros(sent_at), Ordering::Relaxed);
        if let Some(version) = over {
            // A claim is acquired once.
            let _ = self.over.set(version);
        }
    }

    /// Returns the version that the claim replaced, unless the claim was an insert.
    pub(crate) fn over(&self) -> Option<Version> {
        self.over.get().copied()
    }

    /// Returns the record of this attempt in a phase.
    pub(crate) fn record(&self, phase: Phase) -> Record {
        Record { key_hash: self.key_hash, attempt: self.attempt, phase }
    }

    /// Returns the record of this attempt while it executes.
    pub(crate) fn record_in_flight(&self) -> Record {
        self.record(Phase::InFlight { print: self.print.clone(), lease: self.policy.lease, began: self.began })
    }

    /// Returns the version that the record has unless another write has replaced it.
    pub(crate) fn in_flight(&self) -> Version {
        Version { attempt: self.attempt, stage: PhaseKind::InFlight }
    }

    pub(crate) fn confirmed(&self) -> Duration {
        Duration::from_micros(self.confirmed.load(Ordering::Relaxed))
    }

    /// Returns true if the first byte may have been sent.
    pub(crate) fn was_sent(&self) -> bool {
        self.sent.load(Ordering::Relaxed)
    }

    /// Returns true if its response was truncated after streaming to the client had begun.
    pub(crate) fn was_truncated(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }

    /// Returns the record of this attempt for an unknown outcome.
    pub(crate) fn record_unknown(&self) -> Record {
        self.record(Phase::Unknown { print: self.print.clone() })
    }

    /// Acquires an execution permit. Returns false if none is free.
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

    /// Takes the channels of [`Claim::end_later`], if the end was postponed.
    pub(crate) fn take_later_end(&self) -> Option<(oneshot::Receiver<AttemptEnd>, oneshot::Sender<()>)> {
        self.later_end.lock().take()
    }

    pub(crate) fn was_overtaken(&self) -> bool {
        self.overtaken.load(Ordering::Relaxed)
    }

    /// Returns true if a completion of this attempt, written by a request whose response was lost,
    /// could already have passed its retention and tombstone. The completion cannot be older than
    /// the last confirmed renewal.
    pub(crate) fn may_have_ended(&self) -> bool {
        let known = self.policy.retention.saturating_add(self.policy.tombstone);
        self.shared.clock.now().saturating_sub(self.confirmed()) >= known
    }

    fn is_past_two_thirds(&self) -> bool {
        self.shared.clock.now().saturating_sub(self.confirmed()) > self.policy.lease / 3 * 2
    }

    /// Boxes [`Attempt::renew`] for rare callers, so that not every request's future contains it.
    fn renew_boxed(&self) -> Boxed<'_, bool> {
        Box::pin(self.renew())
    }

    /// Renews the claim. Returns true if the store accepted the renewal.
    pub(crate) async fn renew(&self) -> bool {
        let _one = self.renewing.lock().await;
        let sent_at = self.shared.clock.now();
        let record = self.record_in_flight();
        let mut over = self.in_flight();
        // If the record was meanwhile marked unknown, the claim is restored from there; if the
        // store lost it, the claim is inserted again.
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
                    // The next iteration checks which attempt owns it.
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

    /// Marks the streamed rest of the response as truncated, so that nobody takes it for complete.
    async fn mark_truncated(&self) -> Result<(), Error> {
        let unknown = self.record_unknown();
        let mut over = Version { attempt: self.attempt, stage: PhaseKind::Completed };
        // The write that records a response may come in between, once.
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

/// Parses the record id and the attempt id from a value of `Onceward-Claim`.
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
        // A plus sign is not a digit, but `from_str_radix` accepts it.
        *byte = u8::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))?;
    }
    Some(bytes)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

//! Acquires a key: claims it in the store, or decides the outcome by the stored record.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::Instrument;

use super::execute::execute_claimed;
use super::{Boxed, Error, KeyedRequest, Operation, RunOutcome, Running, Shared};
use crate::claim::Attempt;
use crate::decide;
use crate::fault;
use crate::fingerprint::Fingerprint;
use crate::problem::Code;
use crate::record::{Record, Retained, StoredRecord};
use crate::reply::StoredResponse;
use crate::secret::{HashKeys, RecordId};
use crate::store::{Applied, Cas};

/// Result of an attempt to acquire a key.
enum Acquire<T> {
    Acquired,
    Decided(RunOutcome<T>),
    /// Another attempt is executing.
    InFlight(Box<Met>),
    /// The request follows a redirect; carries the id of its own record.
    Redirected(RecordId),
}

/// Record of another attempt that is in flight.
struct Met {
    found: StoredRecord,
    age: Duration,
    left: Duration,
}

pub(super) enum Begun<O: Operation> {
    Answered(RunOutcome<O::Response>),
    /// Another attempt is executing.
    Running(Box<Other<O>>),
    /// The request follows a redirect, and has a record of its own.
    Redirected(Box<Redirected<O>>),
}

/// Request that follows a redirect, and its record.
pub(super) struct Redirected<O> {
    pub(super) id: RecordId,
    pub(super) operation: Box<O>,
}

/// Upper bound on the redirects that one key follows.
const REDIRECTS_MAX: usize = 5;

/// Another attempt in flight, and the request that found it.
pub(super) struct Other<O> {
    pub(super) asked: Arc<Attempt>,
    pub(super) operation: Box<O>,
    pub(super) found: StoredRecord,
    pub(super) age: Duration,
    pub(super) left: Duration,
}

/// Result of a request in the engine: its client's outcome, and the work that is left after it.
pub(super) struct Ended<O: Operation> {
    pub(super) begun: Begun<O>,
    pub(super) rest: Option<Boxed<'static, ()>>,
}

impl<O: Operation> Ended<O> {
    /// Returns the client's outcome, and spawns a task for the work that is left.
    pub(super) fn told(self) -> Begun<O> {
        if let Some(rest) = self.rest {
            tokio::spawn(rest.in_current_span());
        }
        self.begun
    }
}

impl<O: Operation> From<Begun<O>> for Ended<O> {
    fn from(begun: Begun<O>) -> Self {
        Self { begun, rest: None }
    }
}

/// Runs a request in the engine: claims the key, and executes if the claim is acquired. Made in a
/// plain function: see [`Boxed`].
pub(super) fn live<O: Operation>(held: Arc<Attempt>, mut operation: Box<O>) -> Boxed<'static, Ended<O>> {
    let running = Running::begin(&held.shared);
    Box::pin(async move {
        // The permit is held from before the claim until all of its work has ended; see
        // `Attempt::place`.
        let is_full = !held.take_place();
        match claim(&held, &mut *operation, is_full).await {
            Acquire::Acquired => {}
            Acquire::Decided(answer) => {
                held.leave_place();
                return Begun::Answered(answer).into();
            }
            Acquire::InFlight(met) => {
                // A request that waits for another's execution needs no permit.
                held.leave_place();
                let Met { found, age, left } = *met;
                return Begun::Running(Box::new(Other { asked: held, operation, found, age, left })).into();
            }
            Acquire::Redirected(id) => return Begun::Redirected(Box::new(Redirected { id, operation })).into(),
        }
        execute_claimed(&held, operation, running).await
    })
}

/// Claims the key, and counts it as one of the new keys that its caller may send.
async fn claim<O: Operation>(held: &Arc<Attempt>, operation: &mut O, is_full: bool) -> Acquire<O::Response> {
    let too_many = held.shared.take_new_key(held).err();
    let claimed = claim_unless(held, operation, is_full, too_many).await;
    if too_many.is_none() && !matches!(claimed, Acquire::Acquired) {
        held.shared.give_new_key_back(held);
    }
    claimed
}

/// Claims the key: one insert, and a compare-and-swap if a record that no longer applies is in its
/// place. A caller over its rate of new keys may still read, so that replays are never refused.
/// `too_many`: the seconds after which it may send a new key.
async fn claim_unless<O: Operation>(
    held: &Arc<Attempt>,
    operation: &mut O,
    is_full: bool,
    too_many: Option<u64>,
) -> Acquire<O::Response> {
    let shared = &held.shared;
    let record = held.record_in_flight();
    let refused = |problem| Acquire::Decided(RunOutcome::refused(problem));
    let mut over = None;
    // Each further iteration found another record than the one before: only a burst of claims and
    // releases needs many.
    for _ in 0..16 {
        fault::reach("claim-before");
        let sent_at = shared.clock.now();
        // New claims are rejected; replays go on.
        let closed = match () {
            () if shared.draining.load(Ordering::SeqCst) => Some((Code::Draining, 1)),
            () if is_full => Some((Code::Overloaded, 1)),
            () => too_many.map(|seconds| (Code::TooManyKeys, seconds)),
        };
        let refused_now = || closed.map(|(code, seconds)| shared.problem(code, &held.id).retry_after(seconds));
        let written = match over {
            _ if closed.is_some() => shared.get(&held.id).await,
            None => shared.insert(&held.id, &record).await,
            Some(version) => match shared.compare_and_swap(&held.id, version, &record).await {
                Ok(Cas::Swapped) => Ok(None),
                Ok(Cas::Conflict(Some(found))) => Ok(Some(found)),
                // Removed in between: the next iteration inserts.
                Ok(Cas::Conflict(None)) => {
                    over = None;
                    continue;
                }
                Err(error) => Err(error),
            },
        };
        let found = match written {
            Ok(None) => {
                if let Some(problem) = refused_now() {
                    return refused(problem);
                }
                fault::reach("claim-after");
                held.on_acquired(sent_at, over);
                return Acquire::Acquired;
            }
            // The claim was stored, and its response lost: its attempt id identifies it as ours.
            Ok(Some(found)) if found.record.attempt == held.attempt => {
                held.on_acquired(sent_at, over);
                return Acquire::Acquired;
            }
            Ok(Some(found)) => found,
            Err(error) => {
                if error.applied() == Applied::Unknown && closed.is_none() {
                    Shared::release_later(held, over);
                }
                return refused(shared.store_refusal(Some(&held.id), &error));
            }
        };
        let fingerprint = held.fingerprint_for(&found.record, operation);
        return match decide::claim(&found, &fingerprint, held.policy.guarantee) {
            decide::ClaimDecision::InFlight { .. } if fault::planted("second-execution") => {
                over = Some(found.record.version());
                continue;
            }
            decide::ClaimDecision::Unknown if fault::planted("claim-ttl") => {
                over = Some(found.record.version());
                continue;
            }
            decide::ClaimDecision::Execute => match refused_now() {
                Some(problem) => refused(problem),
                None => {
                    over = Some(found.record.version());
                    continue;
                }
            },
            decide::ClaimDecision::InFlight { age, left } => Acquire::InFlight(Box::new(Met { found, age, left })),
            decide::ClaimDecision::Mismatch if decide::redirect(&found).is_some() && !held.is_redirected => {
                match redirected(held, &found, operation).await {
                    Ok(Some(id)) => Acquire::Redirected(id),
                    Ok(None) => Acquire::Decided(held.mismatch(&found.record, operation)),
                    Err(error) => refused(shared.store_refusal(Some(&held.id), &error)),
                }
            }
            decide::ClaimDecision::Mismatch => Acquire::Decided(held.mismatch(&found.record, operation)),
            judged => Acquire::Decided(shared.told(&held.id, judged)),
        };
    }
    refused(shared.problem(Code::StoreUnavailable, &held.id).retry_after(1))
}

/// Finds the record of a request that followed redirects, the first of which was found under the
/// key. Each target has its own record, so that a chain executes once and can be retried as a
/// whole. Boxed, since it is rare.
fn redirected<'a, O: Operation>(
    held: &'a Attempt,
    found: &'a StoredRecord,
    operation: &'a mut O,
) -> Boxed<'a, Result<Option<RecordId>, Error>> {
    Box::pin(async move {
        let Some(keys) = held.shared.keys() else { return Ok(None) };
        let mut found = found.clone();
        for _ in 0..REDIRECTS_MAX {
            let Some(target) = decide::redirect(&found) else { return Ok(None) };
            let id = keys.redirect_id(&held.id, &target);
            if held.fingerprint_for(&found.record, &*operation) == target {
                return Ok(Some(id));
            }
            match held.shared.get(&id).await? {
                Some(next) => found = next,
                None => return Ok(None),
            }
        }
        Ok(None)
    })
}

/// Says how one id can be the key of several requests.
const SCOPE_HINT: &str = " Where one id is meant for several routes, paths or hosts, as that of a webhook's delivery, the operator sets scope = [\"route\"], [\"path\"] or [\"host\"] in [policy].";

impl Attempt {
    /// Creates the attempt of a request: computes its record id, its key hash and its fingerprint.
    pub(super) fn asking<O: Operation>(
        shared: Arc<Shared>,
        keys: &HashKeys,
        ask: &KeyedRequest,
        operation: &O,
    ) -> Arc<Self> {
        let rules = &ask.policy.fingerprint;
        let id = keys.record_id_in(&shared.namespace, &ask.principal, &ask.space, &ask.key);
        let print = operation.print(rules, keys);
        Self::new(shared, id, ask.principal, keys.key_hash(&ask.key), print, Arc::clone(&ask.policy))
    }

    /// Refuses a request that differs from the record's, and describes the difference.
    pub(super) fn mismatch<O: Operation, T>(&self, found: &Record, operation: &O) -> RunOutcome<T> {
        let problem = self.shared.problem(Code::KeyReused, &self.id);
        let keys = self.shared.opened.get().map(|opened| &opened.keys);
        let difference = found.print().zip(keys).and_then(|(print, keys)| operation.difference(print, keys));
        RunOutcome::refused(match difference {
            Some(names) => {
                // The id of a webhook's delivery comes to several routes.
                let is_elsewhere = names.contains("path") || names.contains("host");
                let scope = if is_elsewhere { SCOPE_HINT } else { "" };
                problem.detail(format!(
                    "This key came with another request before. What differs: {names}. Retry with the very same request, or make a new key for a new action.{scope}"
                ))
            }
            None => problem,
        })
    }

    /// Returns the request's fingerprint by the rules of a stored record.
    pub(super) fn fingerprint_for<O: Operation>(&self, found: &Record, operation: &O) -> Fingerprint {
        match found.print() {
            Some(print) if fault::planted("mismatch-passes") => print.fingerprint,
            Some(print) if print.rules != self.print.rules => match self.shared.opened.get() {
                Some(opened) => operation.fingerprint(&print.rules, &opened.keys),
                None => self.print.fingerprint,
            },
            _ => self.print.fingerprint,
        }
    }
}

impl Shared {
    /// Returns the outcome of a request that neither executes nor waits, by the decision on the
    /// stored record.
    pub(super) fn told<T>(&self, id: &RecordId, judged: decide::ClaimDecision<'_>) -> RunOutcome<T> {
        match judged {
            decide::ClaimDecision::Replay(Retained::Response(reply)) if fault::planted("replay-altered") => {
                RunOutcome::Replay(Arc::new(StoredResponse { status: http::StatusCode::OK, ..reply.as_ref().clone() }))
            }
            decide::ClaimDecision::Replay(Retained::Response(reply)) => RunOutcome::Replay(Arc::clone(reply)),
            decide::ClaimDecision::Replay(Retained::HeadOnly(head)) => RunOutcome::refused(self.not_kept(id, head)),
            decide::ClaimDecision::Mismatch => RunOutcome::refused(self.problem(Code::KeyReused, id)),
            decide::ClaimDecision::Unknown if fault::planted("in-flight-for-ever") => {
                RunOutcome::refused(self.problem(Code::InFlight, id).retry_after(1))
            }
            decide::ClaimDecision::Unknown => RunOutcome::refused(self.problem(Code::OutcomeUnknown, id)),
            decide::ClaimDecision::Expired(executed) => {
                RunOutcome::refused(self.problem(Code::KeyExpired, id).executed(executed))
            }
            // Freed meanwhile in another process: this request waits no longer, and its client may
            // retry to claim the key.
            decide::ClaimDecision::Execute | decide::ClaimDecision::InFlight { .. } => {
                RunOutcome::refused(self.problem(Code::InFlight, id).retry_after(1))
            }
        }
    }
}

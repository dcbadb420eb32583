//! Claiming a key: what a request asks of the store, and what it is told by what was found.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::holding::hold;
use super::{Answer, Ask, Boxed, Operation, Running, Shared};
use crate::claim::Held;
use crate::decide;
use crate::fault;
use crate::fingerprint::Fingerprint;
use crate::problem::Code;
use crate::record::{Found, Kept, Print, Record};
use crate::reply::Reply;
use crate::secret::{HashKeys, RecordId};
use crate::store::{Applied, Replaced};

/// What became of asking for a claim.
enum Claimed<T> {
    Won,
    Told(Answer<T>),
    /// Another attempt is executing.
    Running(Box<Met>),
}

/// Another attempt's record, as it was met.
struct Met {
    found: Found,
    age: Duration,
    left: Duration,
}

pub(super) enum Begun<O: Operation> {
    Answered(Answer<O::Answer>),
    /// Another attempt is executing.
    Running(Box<Other<O>>),
}

/// Another attempt, and the request that met it.
pub(super) struct Other<O> {
    pub(super) asked: Arc<Held>,
    pub(super) operation: Box<O>,
    pub(super) found: Found,
    pub(super) age: Duration,
    pub(super) left: Duration,
}

/// How the life of a request ended: what its client is told, and what is left to do after that.
pub(super) struct Ended<O: Operation> {
    pub(super) begun: Begun<O>,
    pub(super) rest: Option<Boxed<'static, ()>>,
}

impl<O: Operation> Ended<O> {
    /// What the client is told; whatever is left to do goes on in a task.
    pub(super) fn told(self) -> Begun<O> {
        if let Some(rest) = self.rest {
            tokio::spawn(rest);
        }
        self.begun
    }
}

impl<O: Operation> From<Begun<O>> for Ended<O> {
    fn from(begun: Begun<O>) -> Self {
        Self { begun, rest: None }
    }
}

/// The life of a request in the engine: claims the key, and executes where the claim is won. Made in a plain function: see
/// [`Boxed`].
pub(super) fn live<O: Operation>(held: Arc<Held>, mut operation: Box<O>) -> Boxed<'static, Ended<O>> {
    let running = Running::begin(&held.shared);
    Box::pin(async move {
        let _running = running;
        // From before the claim to the end of all that belongs to it; see `Held::place`.
        let is_full = !held.take_place();
        match claim(&held, &mut *operation, is_full).await {
            Claimed::Won => {}
            Claimed::Told(answer) => {
                held.leave_place();
                return Begun::Answered(answer).into();
            }
            Claimed::Running(met) => {
                // Whoever waits for another's execution has none.
                held.leave_place();
                let Met { found, age, left } = *met;
                return Begun::Running(Box::new(Other { asked: held, operation, found, age, left })).into();
            }
        }
        hold(&held, operation).await
    })
}

/// Claims the key: one insert, and a replace where something that no longer binds is in its place.
async fn claim<O: Operation>(held: &Arc<Held>, operation: &mut O, is_full: bool) -> Claimed<O::Answer> {
    let shared = &held.shared;
    let record = held.record_in_flight();
    let refused = |problem| Claimed::Told(Answer::refused(problem));
    let mut over = None;
    // Each turn that goes on saw another record than the one before: only a storm of claims and releases takes many.
    for _ in 0..16 {
        fault::reach("claim-before");
        let sent_at = shared.clock.now();
        // No claims are taken, and replays go on.
        let closed = match () {
            () if shared.draining.load(Ordering::SeqCst) => Some(Code::Draining),
            () if is_full => Some(Code::Overloaded),
            () => None,
        };
        let written = match over {
            _ if closed.is_some() => shared.get(&held.id).await,
            None => shared.insert(&held.id, &record).await,
            Some(version) => match shared.replace(&held.id, version, &record).await {
                Ok(Replaced::Yes) => Ok(None),
                Ok(Replaced::No(Some(found))) => Ok(Some(found)),
                // Removed in between: the next turn inserts.
                Ok(Replaced::No(None)) => {
                    over = None;
                    continue;
                }
                Err(error) => Err(error),
            },
        };
        let found = match written {
            Ok(None) if let Some(code) = closed => return refused(shared.problem(code, &held.id).retry_after(1)),
            Ok(None) => {
                fault::reach("claim-after");
                held.won(sent_at, over);
                return Claimed::Won;
            }
            // The claim was taken, and its answer lost: by the attempt it is recognised as ours.
            Ok(Some(found)) if found.record.attempt == held.attempt => {
                held.won(sent_at, over);
                return Claimed::Won;
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
            decide::Claim::Execute if let Some(code) = closed => refused(shared.problem(code, &held.id).retry_after(1)),
            decide::Claim::InFlight { .. } if fault::planted("second-execution") => {
                over = Some(found.record.version());
                continue;
            }
            decide::Claim::Unknown if fault::planted("claim-ttl") => {
                over = Some(found.record.version());
                continue;
            }
            decide::Claim::Execute => {
                over = Some(found.record.version());
                continue;
            }
            decide::Claim::InFlight { age, left } => Claimed::Running(Box::new(Met { found, age, left })),
            judged => Claimed::Told(shared.told(&held.id, judged)),
        };
    }
    refused(shared.problem(Code::StoreUnavailable, &held.id).retry_after(1))
}

impl Held {
    /// The attempt of a request whose key was looked up in the hashes.
    pub(super) fn asking<O: Operation>(shared: Arc<Shared>, keys: &HashKeys, ask: &Ask, operation: &O) -> Arc<Self> {
        let rules = Arc::clone(&ask.policy.fingerprint);
        let id = keys.record_id(&shared.namespace, &ask.principal, &ask.key);
        let print = Print { fingerprint: operation.fingerprint(&rules, keys), rules };
        Self::new(shared, id, keys.key_hash(&ask.key), print, Arc::clone(&ask.policy))
    }

    /// The request's fingerprint by the rules of a record that was found.
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
    /// What a request is told by what was found, where it neither executes nor waits.
    pub(super) fn told<T>(&self, id: &RecordId, judged: decide::Claim<'_>) -> Answer<T> {
        match judged {
            decide::Claim::Replay(Kept::Whole(reply)) if fault::planted("replay-altered") => {
                Answer::Replay(Arc::new(Reply { status: http::StatusCode::OK, ..reply.as_ref().clone() }))
            }
            decide::Claim::Replay(Kept::Whole(reply)) => Answer::Replay(Arc::clone(reply)),
            decide::Claim::Replay(Kept::Head(head)) => Answer::refused(self.not_kept(id, head)),
            decide::Claim::Mismatch => Answer::refused(self.problem(Code::KeyReused, id)),
            decide::Claim::Unknown if fault::planted("in-flight-for-ever") => {
                Answer::refused(self.problem(Code::InFlight, id).retry_after(1))
            }
            decide::Claim::Unknown => Answer::refused(self.problem(Code::OutcomeUnknown, id)),
            decide::Claim::Expired(executed) => Answer::refused(self.problem(Code::KeyExpired, id).executed(executed)),
            // Free meanwhile, in another process: the client may claim it, this request was told to wait.
            decide::Claim::Execute | decide::Claim::InFlight { .. } => {
                Answer::refused(self.problem(Code::InFlight, id).retry_after(1))
            }
        }
    }
}

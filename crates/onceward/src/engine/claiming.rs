//! Claiming a key: what a request asks of the store, and what it is told by what was found.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::holding::hold;
use super::{Answer, Ask, Boxed, Error, Operation, Running, Shared};
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
    /// The request follows a redirect, and this is its own record.
    Redirected(RecordId),
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
    /// The request follows a redirect, and has a record of its own.
    Redirected(Box<Redirected<O>>),
}

/// A request that follows a redirect, and its record.
pub(super) struct Redirected<O> {
    pub(super) id: RecordId,
    pub(super) operation: Box<O>,
}

/// Upper bound on the redirects that one key follows.
const REDIRECTS_MAX: usize = 5;

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
        match claim(&held, &mut *operation).await {
            Claimed::Won => {}
            Claimed::Told(answer) => return Begun::Answered(answer).into(),
            Claimed::Running(met) => {
                let Met { found, age, left } = *met;
                return Begun::Running(Box::new(Other { asked: held, operation, found, age, left })).into();
            }
            Claimed::Redirected(id) => return Begun::Redirected(Box::new(Redirected { id, operation })).into(),
        }
        hold(&held, operation).await
    })
}

/// Claims the key: one insert, and a replace where something that no longer binds is in its place.
async fn claim<O: Operation>(held: &Arc<Held>, operation: &mut O) -> Claimed<O::Answer> {
    let shared = &held.shared;
    let record = held.record_in_flight();
    let refused = |problem| Claimed::Told(Answer::refused(problem));
    let mut over = None;
    // Each turn that goes on saw another record than the one before: only a storm of claims and releases takes many.
    for _ in 0..16 {
        fault::reach("claim-before");
        let sent_at = shared.clock.now();
        let draining = shared.draining.load(Ordering::SeqCst);
        let written = match over {
            _ if draining => shared.get(&held.id).await,
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
            Ok(None) if draining => return refused(shared.problem(Code::Draining, &held.id).retry_after(1)),
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
                if error.applied() == Applied::Unknown && !draining {
                    Shared::release_later(held, over);
                }
                return refused(shared.store_refusal(Some(&held.id), &error));
            }
        };
        let fingerprint = held.fingerprint_for(&found.record, operation);
        return match decide::claim(&found, &fingerprint, held.policy.guarantee) {
            decide::Claim::Execute if draining => refused(shared.problem(Code::Draining, &held.id).retry_after(1)),
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
            decide::Claim::Mismatch if decide::redirect(&found).is_some() && !held.is_redirected => {
                match redirected(held, &found, operation).await {
                    Ok(Some(id)) => Claimed::Redirected(id),
                    Ok(None) => Claimed::Told(shared.told(&held.id, decide::Claim::Mismatch)),
                    Err(error) => refused(shared.store_refusal(Some(&held.id), &error)),
                }
            }
            judged => Claimed::Told(shared.told(&held.id, judged)),
        };
    }
    refused(shared.problem(Code::StoreUnavailable, &held.id).retry_after(1))
}

/// Finds the record of a request that followed redirects, the first of which was found under the key. Each target has a record
/// of its own, so that a chain executes once and can be retried as a whole. Boxed, for it is rare.
fn redirected<'a, O: Operation>(
    held: &'a Held,
    found: &'a Found,
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

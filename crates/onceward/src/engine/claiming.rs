//! Claiming a key: what a request asks of the store, and what it is told by what was found.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;

use super::holding::hold;
use super::opening::Opened;
use super::{Answer, Ask, Boxed, Operation, Running, Shared};
use crate::claim::Held;
use crate::decide;
use crate::fingerprint::Fingerprint;
use crate::policy::Policy;
use crate::problem::{Code, Problem};
use crate::record::{AttemptId, Found, Kept, Phase, Print, Record, Version};
use crate::secret::{KeyHash, RecordId};
use crate::store::{Applied, Replaced};

/// A request whose key was looked up in the hashes.
pub(super) struct Asked {
    pub(super) id: RecordId,
    pub(super) key_hash: KeyHash,
    pub(super) print: Print,
    pub(super) policy: Arc<Policy>,
    pub(super) wait: Duration,
}

impl Asked {
    pub(super) fn new<O: Operation>(opened: &Opened, namespace: &str, ask: Ask, operation: &O) -> Self {
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
    pub(super) fn fingerprint_for<O: Operation>(&self, found: &Record, operation: &O, shared: &Shared) -> Fingerprint {
        match found.print() {
            Some(print) if print.rules != self.print.rules => match shared.opened.get() {
                Some(opened) => operation.fingerprint(&print.rules, &opened.keys),
                None => self.print.fingerprint,
            },
            _ => self.print.fingerprint,
        }
    }
}

pub(super) enum Claimed<O: Operation> {
    Held(Arc<Held>, Box<O>),
    Not(Begun<O>),
}

pub(super) enum Begun<O: Operation> {
    Answered(Answer<O::Answer>),
    /// Another attempt is executing.
    Running(Box<Other<O>>),
}

/// Another attempt, and the request that met it.
pub(super) struct Other<O> {
    pub(super) asked: Asked,
    pub(super) operation: Box<O>,
    pub(super) found: Found,
    pub(super) age: Duration,
    pub(super) left: Duration,
}

/// Executes in a task of its own. Boxed, for tokio moves a task's future nine times before it runs.
pub(super) fn spawn_hold<O: Operation>(
    held: Arc<Held>,
    operation: Box<O>,
    running: Running,
) -> oneshot::Receiver<Begun<O>> {
    let (sender, receiver) = oneshot::channel();
    let shared = Arc::clone(&held.shared);
    shared.runners.run(Box::pin(hold(held, operation, sender, running)));
    receiver
}

/// Goes on with a claim that was sent, whoever still waits for it, and executes if it is won.
pub(super) fn spawn_claim<O: Operation>(
    claiming: Boxed<'static, Claimed<O>>,
    running: Running,
) -> oneshot::Receiver<Begun<O>> {
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
    /// Claims the key: one insert, and a replace where something that no longer binds is in its place.
    pub(super) fn claim<O: Operation>(self: Arc<Self>, asked: Asked, operation: Box<O>) -> Boxed<'static, Claimed<O>> {
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
                None => self.insert_at(sent_at, &asked.id, &record).await,
                Some(version) => match self.replace(&asked.id, version, &record).await {
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
                Ok(None) if draining => return refused(self.problem(Code::Draining, &asked.id).retry_after(1)),
                Ok(None) => return self.held(asked, operation, attempt, began, over, sent_at),
                // The claim was taken, and its answer lost: by the attempt it is recognised as ours.
                Ok(Some(found)) if found.record.attempt == attempt => {
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
    pub(super) fn told<T>(&self, id: &RecordId, judged: decide::Claim<'_>) -> Answer<T> {
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
}

fn refused<O: Operation>(problem: Problem) -> Claimed<O> {
    Claimed::Not(Begun::Answered(Answer::Refused(problem)))
}

//! Executes a claimed request: runs the operation, renews the claim, and stores the end.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::poll_immediate;
use tokio::sync::oneshot;
use tracing::Instrument;

use super::acquire::{Begun, Ended};
use super::finalize::FinalizeOutcome;
use super::{AttemptEnd, Boxed, Execution, Operation, RunOutcome, Running, Shared, wait_aborted};
use crate::claim::{Attempt, Claim};
use crate::decide;
use crate::fault;
use crate::policy::Policy;
use crate::problem::{Code, Executed};
use crate::record::{Phase, Record, Retained};
use crate::store::{Cas, Error, chain};
use crate::waiters;
use crate::wire::Outcome;

/// End of a watched execution.
enum ExecutionEnd<T> {
    Finished(Execution<T>),
    Panicked,
    /// The timeout for the response is over, or the drain was aborted.
    Abandoned,
}

impl<T> From<std::thread::Result<Execution<T>>> for ExecutionEnd<T> {
    fn from(ended: std::thread::Result<Execution<T>>) -> Self {
        match ended {
            Ok(execution) => Self::Finished(execution),
            Err(_) => Self::Panicked,
        }
    }
}

/// Executes a claimed request: runs the operation, renews the claim, and stores the end.
pub(super) async fn execute_claimed<O: Operation>(
    held: &Arc<Attempt>,
    operation: Box<O>,
    running: Running,
) -> Ended<O> {
    let shared = &held.shared;
    let started = shared.observed_now();
    let mut running = Some(running);
    let survives = operation.survives_timeout();
    let watched = {
        let mut work = pin!(execute(operation, Claim { held: Arc::clone(held) }));
        // Most executions end before the watch needs any of its state.
        match poll_immediate(work.as_mut()).await {
            Some(done) => ExecutionEnd::from(done),
            None => watch::<O>(held, work, survives.then_some(&mut running)).await,
        }
    };
    if let (Some(observer), Some(started)) = (&shared.observer, started) {
        observer.executed(&held.policy.route, shared.clock.now().saturating_sub(started));
    }
    if let Some((end, written)) = held.take_later_end()
        && let ExecutionEnd::Finished(Execution { answer, .. }) = watched
    {
        let told = own(shared, held, answer, Outcome::NotStored);
        return Ended { begun: Begun::Answered(told), rest: Some(hold_on(held, end, written)) };
    }
    let ending = FinalState::of(held, watched);
    if fault::planted("lost-completion") {
        return Begun::Answered(ending.told(held, &FinalizeOutcome::Here { audited: false })).into();
    }
    fault::reach("keep-before");
    // One compare-and-swap, unless another write has changed the record since the claim.
    match shared.compare_and_swap(&held.id, held.in_flight(), &ending.record).await {
        Ok(Cas::Swapped) => {
            fault::reach("keep-after");
            Begun::Answered(ending.told(held, &FinalizeOutcome::Here { audited: false })).into()
        }
        other => finish(held, ending, other).await,
    }
}

/// Returns the operation's own future. A panic in it is an outcome.
fn execute<O: Operation>(operation: Box<O>, claim: Claim) -> impl Work<O> {
    AssertUnwindSafe(operation.execute(claim)).catch_unwind()
}

trait Work<O: Operation>: Future<Output = std::thread::Result<Execution<O::Response>>> + Send {}

impl<O: Operation, F> Work<O> for F where F: Future<Output = std::thread::Result<Execution<O::Response>>> + Send {}

/// Watches an execution: renews its claim, and sends a response to a client whose timeout ends.
/// `running`: the guard of an execution that must not be dropped before its end.
fn watch<'a, O: Operation>(
    held: &'a Arc<Attempt>,
    work: Pin<&'a mut impl Work<O>>,
    running: Option<&'a mut Option<Running>>,
) -> Boxed<'a, ExecutionEnd<O::Response>> {
    // The client's timeout starts here: what came before was one poll.
    Box::pin(watch_from(held.shared.clock.now(), held, work, running))
}

async fn watch_from<O: Operation>(
    started: Duration,
    held: &Arc<Attempt>,
    mut work: Pin<&mut impl Work<O>>,
    running: Option<&mut Option<Running>>,
) -> ExecutionEnd<O::Response> {
    let shared = &held.shared;
    let third = held.policy.lease / 3;
    let listen_until = started.saturating_add(shared.limits.capture_timeout);
    let answer_until = started.saturating_add(held.policy.upstream_timeout.unwrap_or(shared.limits.upstream_timeout));
    let mut aborted = shared.abort.subscribe();
    let mut renew_at = held.confirmed().saturating_add(third);
    let mut renewal = None;
    let mut patient = true;
    loop {
        let mut until = listen_until;
        if patient {
            until = until.min(answer_until);
        }
        if renewal.is_none() {
            until = until.min(renew_at);
        }
        tokio::select! {
            biased;
            done = work.as_mut() => return ExecutionEnd::from(done),
            () = wait_aborted(&mut aborted) => match running {
                Some(running) if held.was_sent() => return abandoned(held, work, running).await,
                _ => return ExecutionEnd::Abandoned,
            },
            alive = async { match renewal.as_mut() { Some(renewal) => renewal.await, None => std::future::pending().await } } => {
                renewal = None;
                renew_at = match alive {
                    true => held.confirmed().saturating_add(third),
                    // A superseded holder has nothing to renew; a store that failed is retried
                    // soon.
                    false if held.was_overtaken() => Duration::MAX,
                    false => shared.clock.now().saturating_add(third / 4),
                };
            }
            () = shared.clock.sleep_until(until) => {
                let now = shared.clock.now();
                if now >= listen_until {
                    match running {
                        Some(running) if held.was_sent() => return abandoned(held, work, running).await,
                        _ => return ExecutionEnd::Abandoned,
                    }
                }
                if now >= answer_until && patient {
                    patient = false;
                    // A response that began in time is awaited to its end.
                    if held.has_response_begun() {
                        continue;
                    }
                    let left = held.policy.lease.saturating_sub(now.saturating_sub(held.confirmed())).as_secs();
                    let age = now.saturating_sub(started).as_secs();
                    let problem = shared.problem(Code::UpstreamTimeout, &held.id).retry_after(age.min(left).max(1));
                    held.impatience.tell(problem);
                }
                if now >= renew_at && renewal.is_none() {
                    let held = Arc::clone(held);
                    renewal = Some(Box::pin(async move { held.renew().await }));
                }
            }
        }
    }
}

/// Holds the claim of a response that was passed on before its end: renews it, and stores the end.
fn hold_on(
    held: &Arc<Attempt>,
    end: oneshot::Receiver<AttemptEnd>,
    written: oneshot::Sender<()>,
) -> Boxed<'static, ()> {
    let running = Running::begin(&held.shared);
    let held = Arc::clone(held);
    Box::pin(async move {
        let _running = running;
        let end = renew_until(&held, end).await.unwrap_or(AttemptEnd::Unknown);
        let ending = FinalState::of(&held, ExecutionEnd::Finished(Execution { answer: Ok(()), end }));
        retry_finalize(&held, ending.record, ending.end).await;
        // An error only means that nobody waits for it.
        let _ = written.send(());
    })
}

/// Renews a claim until its end arrives. `None`: its sender was dropped, or the drain's timeout is
/// over.
async fn renew_until(held: &Arc<Attempt>, mut end: oneshot::Receiver<AttemptEnd>) -> Option<AttemptEnd> {
    let clock = &held.shared.clock;
    let third = held.policy.lease / 3;
    let mut aborted = held.shared.abort.subscribe();
    let mut renew_at = held.confirmed().saturating_add(third);
    loop {
        tokio::select! {
            biased;
            end = &mut end => return end.ok(),
            () = wait_aborted(&mut aborted) => return None,
            () = clock.sleep_until(renew_at) => {}
        }
        let renewal = held.renew();
        let is_renewed = tokio::select! {
            biased;
            end = &mut end => return end.ok(),
            () = wait_aborted(&mut aborted) => return None,
            is_renewed = renewal => is_renewed,
        };
        renew_at = match is_renewed {
            true => held.confirmed().saturating_add(third),
            // A superseded holder has nothing to renew; a store that failed is retried soon.
            false if held.was_overtaken() => Duration::MAX,
            false => clock.now().saturating_add(third / 4),
        };
    }
}

/// Lets an execution that took too long run on: a handler that is dropped half way has done part of
/// its work. Its key is unknown from now on, and its claim is not renewed. The response that it
/// returns in the end is stored anyway. A graceful shutdown waits for it until
/// [`Engine::abort`](super::Engine::abort), and no longer.
async fn abandoned<O: Operation>(
    held: &Arc<Attempt>,
    mut work: Pin<&mut impl Work<O>>,
    running: &mut Option<Running>,
) -> ExecutionEnd<O::Response> {
    tracing::warn!(instance = %held.id.instance(), "a handler runs for longer than capture_timeout; its key is unknown until it ends");
    tokio::spawn(write_unknown(Arc::clone(held)).in_current_span());
    let mut aborted = held.shared.abort.subscribe();
    tokio::select! {
        biased;
        done = work.as_mut() => return ExecutionEnd::from(done),
        () = wait_aborted(&mut aborted) => *running = None,
    }
    ExecutionEnd::from(work.await)
}

/// Writes an attempt as unknown while its execution goes on, and notifies its client and the
/// waiters.
fn write_unknown(held: Arc<Attempt>) -> Boxed<'static, ()> {
    let running = Running::begin(&held.shared);
    Box::pin(async move {
        let _running = running;
        let shared = &held.shared;
        let outcome = match shared.retry_finalize(&held, &held.record_unknown()).await {
            Some(FinalizeOutcome::Here { .. }) => Outcome::Unknown,
            // It has ended meanwhile, or another attempt has the key: its own end provides its
            // client's response.
            Some(_) => return,
            None => Outcome::NotStored,
        };
        tell_waiters(&held, AttemptEnd::Unknown);
        held.impatience.tell(shared.problem(Code::UpstreamLost, &held.id).with_outcome(outcome));
    })
}

/// Final state of an attempt, and its client's response.
struct FinalState<T> {
    record: Record,
    answer: Result<T, Code>,
    end: AttemptEnd,
    outcome: Outcome,
}

impl<T> FinalState<T> {
    fn of(held: &Attempt, watched: ExecutionEnd<T>) -> Self {
        let Execution { answer, end } = match watched {
            ExecutionEnd::Finished(execution) => execution,
            ExecutionEnd::Panicked => Execution { answer: Err(Code::HandlerPanicked), end: AttemptEnd::Unknown },
            ExecutionEnd::Abandoned if held.was_sent() && !fault::planted("drain-forgets") => {
                Execution { answer: Err(Code::UpstreamLost), end: AttemptEnd::Unknown }
            }
            ExecutionEnd::Abandoned => {
                Execution { answer: Err(Code::UpstreamUnreachable), end: AttemptEnd::Released(None) }
            }
        };
        let end = match end {
            // This attempt did nothing, but the one before it may have, so the key is not free.
            AttemptEnd::Released(_) if decide::follows_unknown(held.over()) => AttemptEnd::Unknown,
            end => end,
        };
        let Policy { retention, tombstone, .. } = *held.policy;
        let print = || held.print.clone();
        let completed = |kept| Phase::Completed { print: print(), kept, retention, tombstone };
        let (phase, outcome) = match &end {
            // The redirect may be followed while it is stored, and must be known for as long as the
            // request that was executed then.
            AttemptEnd::Completed(reply) if reply.redirect.is_some() => {
                let (kept, tombstone) = (Retained::Response(Arc::clone(reply)), tombstone.saturating_add(retention));
                (Phase::Completed { print: print(), kept, retention, tombstone }, Outcome::Stored)
            }
            AttemptEnd::Completed(reply) => (completed(Retained::Response(Arc::clone(reply))), Outcome::Stored),
            AttemptEnd::NotKept(head) => (completed(Retained::HeadOnly(head.clone())), Outcome::NotStored),
            AttemptEnd::Released(_) => (held.shared.released(), Outcome::Released),
            AttemptEnd::Unknown if fault::planted("unknown-released") => (held.shared.released(), Outcome::Unknown),
            AttemptEnd::Unknown => (Phase::Unknown { print: print() }, Outcome::Unknown),
        };
        Self { record: held.record(phase), answer, end, outcome }
    }

    /// Returns the client's outcome, once the end is stored: its own response, or the winner's.
    /// Notifies the waiters.
    fn told(self, held: &Attempt, wrote: &FinalizeOutcome) -> RunOutcome<T> {
        let Self { answer, end, outcome, .. } = self;
        let shared = &held.shared;
        audit(shared, held, wrote, &end);
        let told = match (wrote, &end) {
            (FinalizeOutcome::Here { .. }, _) => own(shared, held, answer, outcome),
            (FinalizeOutcome::Kept(Retained::Response(kept)), AttemptEnd::Completed(reply)) if kept == reply => {
                own(shared, held, answer, outcome)
            }
            (FinalizeOutcome::Kept(Retained::HeadOnly(kept)), AttemptEnd::NotKept(head)) if kept == head => {
                own(shared, held, answer, outcome)
            }
            (FinalizeOutcome::Kept(kept) | FinalizeOutcome::Superseded(Some(kept)), _) => match kept {
                Retained::Response(reply) => RunOutcome::Replay(Arc::clone(reply)),
                Retained::HeadOnly(head) => RunOutcome::refused(shared.not_kept(&held.id, head)),
            },
            (FinalizeOutcome::Running, _) => {
                RunOutcome::refused(shared.problem(Code::InFlight, &held.id).retry_after(1))
            }
            (FinalizeOutcome::Superseded(None), _) => own(shared, held, answer, Outcome::NotStored),
        };
        tell_waiters(held, end);
        told
    }
}

fn tell_waiters(held: &Attempt, end: AttemptEnd) {
    held.shared.waiters.tell(held.id, held.attempt, || match end {
        AttemptEnd::Released(reply) => waiters::Ended::Released(reply),
        _ => waiters::Ended::CheckStore,
    });
}

/// Stores the end of an attempt after the first write failed: another write has changed the record,
/// or the store failed.
fn finish<'a, O: Operation>(
    held: &'a Arc<Attempt>,
    ending: FinalState<O::Response>,
    written: Result<Cas, Error>,
) -> Boxed<'a, Ended<O>> {
    Box::pin(async move {
        let shared = &held.shared;
        let error = match shared.written(held, &ending.record, written).await {
            Ok(wrote) => return Begun::Answered(ending.told(held, &wrote)).into(),
            Err(error) => error,
        };
        tracing::warn!(instance = %held.id.instance(), error = %chain(&error), "the end of an attempt is not confirmed as stored");
        let FinalState { record, answer, end, outcome } = ending;
        let outcome = if fault::planted("unkept-called-stored") { outcome } else { Outcome::NotStored };
        let told = own(shared, held, answer, outcome);
        Ended { begun: Begun::Answered(told), rest: Some(retry_finalize(held, record, end)) }
    })
}

/// Retries to store the end of an attempt, after its client was informed that it may not be stored.
fn retry_finalize(held: &Arc<Attempt>, record: Record, end: AttemptEnd) -> Boxed<'static, ()> {
    let running = Running::begin(&held.shared);
    let held = Arc::clone(held);
    Box::pin(async move {
        let _running = running;
        let shared = &held.shared;
        if let Some(wrote) = shared.retry_finalize(&held, &record).await {
            audit(shared, &held, &wrote, &end);
            tell_waiters(&held, end);
        }
    })
}

/// Logs events that must not happen unnoticed, for the audit log.
fn audit(shared: &Shared, held: &Attempt, wrote: &FinalizeOutcome, end: &AttemptEnd) {
    match wrote {
        FinalizeOutcome::Here { audited: true } => {
            tracing::warn!(target: "onceward::audit", instance = held.id.instance(), event = "late_completion",
                "an attempt that was given up as released, or that the store forgot, has ended after all");
        }
        FinalizeOutcome::Superseded(_) | FinalizeOutcome::Running
            if matches!(end, AttemptEnd::Completed(_) | AttemptEnd::NotKept(_)) =>
        {
            if let Some(observer) = &shared.observer {
                observer.second_execution(&held.policy.route);
            }
            tracing::error!(target: "onceward::audit", instance = held.id.instance(), event = "second_execution",
                "an attempt that was overtaken has executed all the same");
        }
        _ => {}
    }
}

fn own<T>(shared: &Shared, held: &Attempt, answer: Result<T, Code>, outcome: Outcome) -> RunOutcome<T> {
    match answer {
        Ok(answer) => RunOutcome::Own(answer, outcome),
        Err(code) => {
            let problem = shared.problem(code, &held.id).with_outcome(outcome);
            RunOutcome::refused(match code.row().executed {
                Executed::No if decide::follows_unknown(held.over()) => problem.executed(Executed::Unknown),
                _ => problem,
            })
        }
    }
}

//! Holding a claim: executing, renewing, and keeping how it ended.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::poll_immediate;
use tokio::sync::oneshot;
use tracing::Instrument;

use super::claiming::{Begun, Ended};
use super::writing::Wrote;
use super::{Answer, Boxed, End, Execution, Operation, Running, Shared, over};
use crate::claim::{Claim, Held};
use crate::decide;
use crate::fault;
use crate::policy::Policy;
use crate::problem::{Code, Executed};
use crate::record::{Kept, Phase, Record};
use crate::store::{Error, Replaced, chain};
use crate::waiters;
use crate::wire::Outcome;

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

/// Holds a claim: executes, renews, and keeps how it ended.
pub(super) async fn hold<O: Operation>(held: &Arc<Held>, operation: Box<O>, running: Running) -> Ended<O> {
    let shared = &held.shared;
    let started = shared.observed_now();
    let mut running = Some(running);
    let survives = operation.survives_timeout();
    let watched = {
        let mut work = pin!(execute(operation, Claim { held: Arc::clone(held) }));
        // Most executions end before any of what watching takes is needed.
        match poll_immediate(work.as_mut()).await {
            Some(done) => Watched::from(done),
            None => watch::<O>(held, work, survives.then_some(&mut running)).await,
        }
    };
    if let (Some(observer), Some(started)) = (&shared.observer, started) {
        observer.executed(&held.policy.route, shared.clock.now().saturating_sub(started));
    }
    if let Some((end, written)) = held.take_later_end()
        && let Watched::Ended(Execution { answer, .. }) = watched
    {
        let told = own(shared, held, answer, Outcome::NotStored);
        return Ended { begun: Begun::Answered(told), rest: Some(hold_on(held, end, written)) };
    }
    let ending = Ending::of(held, watched);
    if fault::planted("lost-completion") {
        return Begun::Answered(ending.told(held, &Wrote::Here { audited: false })).into();
    }
    fault::reach("keep-before");
    // One replace, if nobody touched the record since the claim.
    match shared.replace(&held.id, held.in_flight(), &ending.record).await {
        Ok(Replaced::Yes) => {
            fault::reach("keep-after");
            Begun::Answered(ending.told(held, &Wrote::Here { audited: false })).into()
        }
        other => finish(held, ending, other).await,
    }
}

/// The operation's own future. A panic in it is an outcome.
fn execute<O: Operation>(operation: Box<O>, claim: Claim) -> impl Work<O> {
    AssertUnwindSafe(operation.execute(claim)).catch_unwind()
}

trait Work<O: Operation>: Future<Output = std::thread::Result<Execution<O::Answer>>> + Send {}

impl<O: Operation, F> Work<O> for F where F: Future<Output = std::thread::Result<Execution<O::Answer>>> + Send {}

/// Watches over an execution: renews its claim, and tells a client whose patience ends. `running`: the guard of an execution that
/// is not to be dropped before its end.
fn watch<'a, O: Operation>(
    held: &'a Arc<Held>,
    work: Pin<&'a mut impl Work<O>>,
    running: Option<&'a mut Option<Running>>,
) -> Boxed<'a, Watched<O::Answer>> {
    // Its patience counts from here: what came before was one poll.
    Box::pin(watch_from(held.shared.clock.now(), held, work, running))
}

async fn watch_from<O: Operation>(
    started: Duration,
    held: &Arc<Held>,
    mut work: Pin<&mut impl Work<O>>,
    running: Option<&mut Option<Running>>,
) -> Watched<O::Answer> {
    let shared = &held.shared;
    let third = held.policy.lease / 3;
    let listen_until = started.saturating_add(shared.limits.capture_timeout);
    let answer_until = started.saturating_add(held.policy.upstream_timeout.unwrap_or(shared.limits.upstream_timeout));
    let mut given_up = shared.give_up.subscribe();
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
            done = work.as_mut() => return Watched::from(done),
            () = over(&mut given_up) => match running {
                Some(running) if held.was_sent() => return abandoned(held, work, running).await,
                _ => return Watched::GivenUp,
            },
            alive = async { match renewal.as_mut() { Some(renewal) => renewal.await, None => std::future::pending().await } } => {
                renewal = None;
                renew_at = match alive {
                    true => held.confirmed().saturating_add(third),
                    // An overtaken holder has nothing to renew; a store that failed is asked again soon.
                    false if held.was_overtaken() => Duration::MAX,
                    false => shared.clock.now().saturating_add(third / 4),
                };
            }
            () = shared.clock.sleep_until(until) => {
                let now = shared.clock.now();
                if now >= listen_until {
                    match running {
                        Some(running) if held.was_sent() => return abandoned(held, work, running).await,
                        _ => return Watched::GivenUp,
                    }
                }
                if now >= answer_until && patient {
                    patient = false;
                    // What began in time is waited for to its end.
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

/// Holds the claim of a response that was handed on before its end: renews, and keeps how it ended.
fn hold_on(held: &Arc<Held>, end: oneshot::Receiver<End>, written: oneshot::Sender<()>) -> Boxed<'static, ()> {
    let running = Running::begin(&held.shared);
    let held = Arc::clone(held);
    Box::pin(async move {
        let _running = running;
        let end = renew_until(&held, end).await.unwrap_or(End::Unknown);
        let ending = Ending::of(&held, Watched::Ended(Execution { answer: Ok(()), end }));
        keep_writing(&held, ending.record, ending.end).await;
        // An error only says that nobody waits for it.
        let _ = written.send(());
    })
}

/// Renews a claim until its end comes. `None`: nobody will say it, or the drain's limit is over.
async fn renew_until(held: &Arc<Held>, mut end: oneshot::Receiver<End>) -> Option<End> {
    let clock = &held.shared.clock;
    let third = held.policy.lease / 3;
    let mut given_up = held.shared.give_up.subscribe();
    let mut renew_at = held.confirmed().saturating_add(third);
    loop {
        tokio::select! {
            biased;
            end = &mut end => return end.ok(),
            () = over(&mut given_up) => return None,
            () = clock.sleep_until(renew_at) => {}
        }
        let renewal = held.renew();
        let is_renewed = tokio::select! {
            biased;
            end = &mut end => return end.ok(),
            () = over(&mut given_up) => return None,
            is_renewed = renewal => is_renewed,
        };
        renew_at = match is_renewed {
            true => held.confirmed().saturating_add(third),
            // A superseded holder has nothing to renew; a store that failed is asked again soon.
            false if held.was_overtaken() => Duration::MAX,
            false => clock.now().saturating_add(third / 4),
        };
    }
}

/// Lets an execution run on that took too long: a handler that is dropped half way has done part of its work. Its key is unknown
/// from now on, and its claim is not renewed. What it returns in the end is stored all the same. A graceful shutdown waits for it
/// until [`Engine::give_up`](super::Engine::give_up), and no longer.
async fn abandoned<O: Operation>(
    held: &Arc<Held>,
    mut work: Pin<&mut impl Work<O>>,
    running: &mut Option<Running>,
) -> Watched<O::Answer> {
    tracing::warn!(instance = %held.id.instance(), "a handler runs for longer than capture_timeout; its key is unknown until it ends");
    tokio::spawn(write_unknown(Arc::clone(held)).in_current_span());
    let mut given_up = held.shared.give_up.subscribe();
    tokio::select! {
        biased;
        done = work.as_mut() => return Watched::from(done),
        () = over(&mut given_up) => *running = None,
    }
    Watched::from(work.await)
}

/// Writes an attempt as unknown while its execution goes on, and tells its client and those who wait.
fn write_unknown(held: Arc<Held>) -> Boxed<'static, ()> {
    let running = Running::begin(&held.shared);
    Box::pin(async move {
        let _running = running;
        let shared = &held.shared;
        let outcome = match shared.keep_writing(&held, &held.record_unknown()).await {
            Some(Wrote::Here { .. }) => Outcome::Unknown,
            // It has ended meanwhile, or another attempt has the key: its own end tells its client.
            Some(_) => return,
            None => Outcome::NotStored,
        };
        tell_waiters(&held, End::Unknown);
        held.impatience.tell(shared.problem(Code::UpstreamLost, &held.id).with_outcome(outcome));
    })
}

/// How an attempt ended, and what its client gets.
struct Ending<T> {
    record: Record,
    answer: Result<T, Code>,
    end: End,
    outcome: Outcome,
}

impl<T> Ending<T> {
    fn of(held: &Held, watched: Watched<T>) -> Self {
        let Execution { answer, end } = match watched {
            Watched::Ended(execution) => execution,
            Watched::Panicked => Execution { answer: Err(Code::HandlerPanicked), end: End::Unknown },
            Watched::GivenUp if held.was_sent() && !fault::planted("drain-forgets") => {
                Execution { answer: Err(Code::UpstreamLost), end: End::Unknown }
            }
            Watched::GivenUp => Execution { answer: Err(Code::UpstreamUnreachable), end: End::Released(None) },
        };
        let end = match end {
            // This attempt did nothing; the one before it may have, so that the key is not free.
            End::Released(_) if decide::follows_unknown(held.over()) => End::Unknown,
            end => end,
        };
        let Policy { retention, tombstone, .. } = *held.policy;
        let print = || held.print.clone();
        let completed = |kept| Phase::Completed { print: print(), kept, retention, tombstone };
        let (phase, outcome) = match &end {
            // It may be followed for as long as it is kept, and must be known for as long as what was executed then.
            End::Completed(reply) if reply.redirect.is_some() => {
                let (kept, tombstone) = (Kept::Whole(Arc::clone(reply)), tombstone.saturating_add(retention));
                (Phase::Completed { print: print(), kept, retention, tombstone }, Outcome::Stored)
            }
            End::Completed(reply) => (completed(Kept::Whole(Arc::clone(reply))), Outcome::Stored),
            End::NotKept(head) => (completed(Kept::Head(head.clone())), Outcome::NotStored),
            End::Released(_) => (held.shared.released(), Outcome::Released),
            End::Unknown if fault::planted("unknown-released") => (held.shared.released(), Outcome::Unknown),
            End::Unknown => (Phase::Unknown { print: print() }, Outcome::Unknown),
        };
        Self { record: held.record(phase), answer, end, outcome }
    }

    /// What the client is told, once the end is kept: its own answer, or the winner's. Those who waited are told here.
    fn told(self, held: &Held, wrote: &Wrote) -> Answer<T> {
        let Self { answer, end, outcome, .. } = self;
        let shared = &held.shared;
        audit(shared, held, wrote, &end);
        let told = match (wrote, &end) {
            (Wrote::Here { .. }, _) => own(shared, held, answer, outcome),
            (Wrote::Kept(Kept::Whole(kept)), End::Completed(reply)) if kept == reply => {
                own(shared, held, answer, outcome)
            }
            (Wrote::Kept(Kept::Head(kept)), End::NotKept(head)) if kept == head => own(shared, held, answer, outcome),
            (Wrote::Kept(kept) | Wrote::Overtaken(Some(kept)), _) => match kept {
                Kept::Whole(reply) => Answer::Replay(Arc::clone(reply)),
                Kept::Head(head) => Answer::refused(shared.not_kept(&held.id, head)),
            },
            (Wrote::Running, _) => Answer::refused(shared.problem(Code::InFlight, &held.id).retry_after(1)),
            (Wrote::Overtaken(None), _) => own(shared, held, answer, Outcome::NotStored),
        };
        tell_waiters(held, end);
        told
    }
}

fn tell_waiters(held: &Held, end: End) {
    held.shared.waiters.tell(held.id, held.attempt, || match end {
        End::Released(reply) => waiters::Ended::Released(reply),
        _ => waiters::Ended::Look,
    });
}

/// Keeps how the attempt ended where the first write did not do: somebody touched the record since, or the store failed.
fn finish<'a, O: Operation>(
    held: &'a Arc<Held>,
    ending: Ending<O::Answer>,
    written: Result<Replaced, Error>,
) -> Boxed<'a, Ended<O>> {
    Box::pin(async move {
        let shared = &held.shared;
        let error = match shared.written(held, &ending.record, written).await {
            Ok(wrote) => return Begun::Answered(ending.told(held, &wrote)).into(),
            Err(error) => error,
        };
        tracing::warn!(instance = %held.id.instance(), error = %chain(&error), "the end of an attempt is not confirmed as stored");
        let Ending { record, answer, end, outcome } = ending;
        let outcome = if fault::planted("unkept-called-stored") { outcome } else { Outcome::NotStored };
        let told = own(shared, held, answer, outcome);
        Ended { begun: Begun::Answered(told), rest: Some(keep_writing(held, record, end)) }
    })
}

/// Goes on keeping how an attempt ended, after its client was told that it may not be.
fn keep_writing(held: &Arc<Held>, record: Record, end: End) -> Boxed<'static, ()> {
    let running = Running::begin(&held.shared);
    let held = Arc::clone(held);
    Box::pin(async move {
        let _running = running;
        let shared = &held.shared;
        if let Some(wrote) = shared.keep_writing(&held, &record).await {
            audit(shared, &held, &wrote, &end);
            tell_waiters(&held, end);
        }
    })
}

/// Says aloud what must not happen unnoticed.
fn audit(shared: &Shared, held: &Held, wrote: &Wrote, end: &End) {
    match wrote {
        Wrote::Here { audited: true } => {
            tracing::warn!(target: "onceward::audit", instance = held.id.instance(), event = "late_completion",
                "an attempt that was given up as released, or that the store forgot, has ended after all");
        }
        Wrote::Overtaken(_) | Wrote::Running if matches!(end, End::Completed(_) | End::NotKept(_)) => {
            if let Some(observer) = &shared.observer {
                observer.second_execution(&held.policy.route);
            }
            tracing::error!(target: "onceward::audit", instance = held.id.instance(), event = "second_execution",
                "an attempt that was overtaken has executed all the same");
        }
        _ => {}
    }
}

fn own<T>(shared: &Shared, held: &Held, answer: Result<T, Code>, outcome: Outcome) -> Answer<T> {
    match answer {
        Ok(answer) => Answer::Own(answer, outcome),
        Err(code) => {
            let problem = shared.problem(code, &held.id).with_outcome(outcome);
            Answer::refused(match code.row().executed {
                Executed::No if decide::follows_unknown(held.over()) => problem.executed(Executed::Unknown),
                _ => problem,
            })
        }
    }
}

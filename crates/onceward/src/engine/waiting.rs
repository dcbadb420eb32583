//! Waits for the response of another attempt.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::poll_immediate;

use super::acquire::Other;
use super::{Boxed, Engine, KeyStatus, Operation, RunOutcome, Shared};
use crate::decide::{self, EffectiveState};
use crate::key::Key;
use crate::principal::{KeySpace, Principal};
use crate::problem::{Code, Problem};
use crate::record::{Phase, Record, Retained};
use crate::secret::RecordId;
use crate::waiters::{Ended, Event, Waiting};

impl Engine {
    /// Returns the status of a key, as a request with it would get it, without a request. Waits for
    /// up to `wait`, at most [`Limits::wait_max`](crate::limits::Limits::wait_max).
    ///
    /// # Errors
    ///
    /// A problem, if the store fails.
    pub async fn lookup(
        &self,
        key: &Key,
        principal: &Principal,
        space: &KeySpace,
        wait: Option<Duration>,
    ) -> Result<KeyStatus, Problem> {
        let shared = &self.shared;
        let opened = shared.open().await.map_err(|error| shared.store_refusal(None, &error))?;
        let id = opened.keys.record_id_in(&shared.namespace, principal, space, key);
        let until = shared.clock.now().saturating_add(wait.unwrap_or_default().min(shared.limits.wait_max));
        let mut looked = Arc::new(shared.get(&id).await);
        loop {
            let found = looked.as_ref().as_ref().map_err(|error| shared.store_refusal(Some(&id), error))?;
            let Some(found) = found else { return Ok(KeyStatus::Free) };
            return Ok(match decide::effective_state(found) {
                EffectiveState::Free => KeyStatus::Free,
                EffectiveState::InFlight { age, left } => {
                    let joined = || shared.waiters.join(id, found.record.attempt, shared.limits.waiters_per_key);
                    if shared.clock.now() < until
                        && let Some(mut waiting) = joined()
                    {
                        looked = match shared.hear(&id, &mut waiting, poll_pause(), until).await {
                            Some(Event::Looked(looked)) => looked,
                            Some(Event::Ended(_)) | None => Arc::new(shared.get(&id).await),
                        };
                        continue;
                    }
                    KeyStatus::InFlight(shared.retry_after(&found.record, age, left))
                }
                EffectiveState::Lost => KeyStatus::Refused(shared.problem(Code::OutcomeUnknown, &id)),
                EffectiveState::Completed(Retained::Response(reply)) => KeyStatus::Replay(Arc::clone(reply)),
                EffectiveState::Completed(Retained::HeadOnly(head)) => KeyStatus::Refused(shared.not_kept(&id, head)),
                EffectiveState::Expired(executed) => {
                    KeyStatus::Refused(shared.problem(Code::KeyExpired, &id).executed(executed))
                }
            });
        }
    }
}

impl Shared {
    /// Waits for another attempt's response for up to `wait`, then responds that it is in flight.
    pub(super) fn wait_or_refuse<O: Operation>(
        &self,
        other: Box<Other<O>>,
        wait: Duration,
    ) -> Boxed<'_, RunOutcome<O::Response>> {
        Box::pin(self.wait_for(other, wait))
    }

    async fn wait_for<O: Operation>(&self, other: Box<Other<O>>, wait: Duration) -> RunOutcome<O::Response> {
        let Other { asked, operation, mut found, mut age, mut left } = *other;
        let id = asked.id;
        let wait = wait.min(self.limits.wait_max);
        let until = self.clock.now().saturating_add(wait);
        let mut waiting = match wait.is_zero() {
            true => None,
            false => self.waiters.join(id, found.record.attempt, self.limits.waiters_per_key),
        };
        // A new waiter reads the store at once: the attempt may have ended before it subscribed.
        let mut pause = Duration::ZERO;
        while let Some(place) = &mut waiting {
            let looked = match self.hear(&id, place, pause, until).await {
                Some(Event::Looked(looked)) => looked,
                Some(Event::Ended(Ended::Released(Some(reply)))) => return RunOutcome::Released(reply),
                // The waiter group ended with the attempt; its result is in the store.
                Some(Event::Ended(Ended::Released(None) | Ended::CheckStore)) => {
                    waiting = self.waiters.join(id, found.record.attempt, self.limits.waiters_per_key);
                    pause = Duration::ZERO;
                    continue;
                }
                None => break,
            };
            match looked.as_ref() {
                Ok(Some(now)) => {
                    let fingerprint = asked.fingerprint_for(&now.record, &*operation);
                    match decide::claim(now, &fingerprint, asked.policy.guarantee) {
                        decide::ClaimDecision::InFlight { age: sign, left: rest } => (age, left) = (sign, rest),
                        // Released by this process: its response is about to be delivered to the
                        // waiters.
                        decide::ClaimDecision::Execute if now.record.attempt == found.record.attempt => {
                            if let Some(Ended::Released(Some(reply))) = poll_immediate(place.ended()).await {
                                return RunOutcome::Released(reply);
                            }
                            let told =
                                self.clock.sleep_until(self.clock.now().saturating_add(Duration::from_millis(50)));
                            tokio::select! {
                                ended = place.ended() => if let Ended::Released(Some(reply)) = ended {
                                    return RunOutcome::Released(reply);
                                },
                                () = told => {}
                            }
                            return self.told(&id, decide::ClaimDecision::Execute);
                        }
                        decide::ClaimDecision::Mismatch => return asked.mismatch(&now.record, &*operation),
                        judged => return self.told(&id, judged),
                    }
                    if now.record.attempt != found.record.attempt {
                        waiting = self.waiters.join(id, now.record.attempt, self.limits.waiters_per_key);
                        found = now.clone();
                    }
                }
                Ok(None) => return self.told(&id, decide::ClaimDecision::Execute),
                Err(error) => return RunOutcome::refused(self.store_refusal(Some(&id), error)),
            }
            if self.clock.now() >= until {
                break;
            }
            pause = poll_pause();
        }
        let seconds = self.retry_after(&found.record, age, left);
        RunOutcome::refused(self.problem(Code::InFlight, &id).retry_after(seconds))
    }

    /// Returns the waiter's next event: the end of the attempt in this process, or the result of a
    /// read of the store that one waiter does for all. `None`: the timeout is over.
    async fn hear(&self, id: &RecordId, place: &mut Waiting, pause: Duration, until: Duration) -> Option<Event> {
        let turn = place.turn();
        let look = async {
            // A waiter that is dropped during its turn leaves the turn to another.
            let mine = tokio::select! {
                biased;
                mine = turn.lock() => mine,
                () = self.clock.sleep_until(until) => return None,
            };
            if !pause.is_zero() {
                self.clock.sleep_until(self.clock.now().saturating_add(pause).min(until)).await;
            }
            Some((mine, Arc::new(self.get(id).await)))
        };
        let (mine, looked) = tokio::select! {
            biased;
            news = place.news() => return Some(news),
            looked = look => looked?,
        };
        place.tell(&looked);
        drop(mine);
        Some(Event::Looked(looked))
    }

    /// Returns the attempt's age by its claimer's clock, at least 1 s, and at most the rest of the
    /// lease.
    fn retry_after(&self, record: &Record, age: Duration, left: Duration) -> u64 {
        let age = match &record.phase {
            Phase::InFlight { began, .. } => self.clock.wall().saturating_sub(*began),
            _ => age,
        };
        age.as_secs().min(left.as_secs()).max(1)
    }
}

/// Returns the interval at which one waiter reads the store for all, since the attempt may end in
/// another process. Jittered, so that many processes do not read at once.
fn poll_pause() -> Duration {
    Duration::from_millis(rand::random_range(50..=250))
}

//! Writes the end of an attempt, with retries.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::{Running, Shared, wait_aborted};
use crate::claim::Attempt;
use crate::decide::{self, FinalizeDecision, Release, SupersededBy};
use crate::fault;
use crate::record::{Phase, Record, Retained, StoredRecord, Version};
use crate::secret::RecordId;
use crate::store::{Cas, Error};

impl Shared {
    /// Releases an attempt whose claim may have been stored or may still be. Runs in the
    /// background, and retries until the store responds.
    pub(super) fn release_later(held: &Arc<Attempt>, over: Option<Version>) {
        let running = Running::begin(&held.shared);
        let held = Arc::clone(held);
        tokio::spawn(async move {
            let _running = running;
            if decide::follows_unknown(over) {
                held.shared.retry_finalize(&held, &held.record_unknown()).await;
                return;
            }
            let released = held.record(held.shared.released());
            held.shared.retry_until(|| held.shared.release(&held.id, &released, over)).await;
        });
    }

    pub(super) fn released(&self) -> Phase {
        Phase::Released { keep: self.limits.released_keep() }
    }

    async fn release(&self, id: &RecordId, released: &Record, over: Option<Version>) -> Result<FinalizeOutcome, Error> {
        let mut found = self.get(id).await?;
        for _ in 0..16 {
            found = match decide::release(found.as_ref(), released.attempt, over) {
                Release::Done => return Ok(FinalizeOutcome::Here { audited: false }),
                Release::Insert => match self.insert(id, released).await? {
                    None => return Ok(FinalizeOutcome::Here { audited: false }),
                    found => found,
                },
                Release::Write(version) => match self.compare_and_swap(id, version, released).await? {
                    Cas::Swapped => return Ok(FinalizeOutcome::Here { audited: false }),
                    Cas::Conflict(found) => found,
                },
            };
        }
        Err(Error::unavailable("the record changed too often while it was being released"))
    }

    /// Retries until `attempt` succeeds, or the drain's timeout is over.
    pub(crate) async fn retry_until<T, F: Future<Output = Result<T, Error>>>(
        &self,
        mut attempt: impl FnMut() -> F,
    ) -> Option<T> {
        let mut aborted = self.abort.subscribe();
        let mut pause = Duration::from_millis(20);
        loop {
            match attempt().await {
                Ok(done) => return Some(done),
                Err(error) => {
                    tracing::warn!(%error, "the end of an attempt could not be written down, and is tried again")
                }
            }
            tokio::select! {
                () = wait_aborted(&mut aborted) => return attempt().await.ok(),
                () = self.clock.sleep_until(self.clock.now().saturating_add(pause)) => pause = (pause * 2).min(Duration::from_secs(2)),
            }
        }
    }

    /// Writes the end of an attempt, and retries until it succeeds or the drain's timeout is over.
    pub(super) async fn retry_finalize(&self, held: &Attempt, record: &Record) -> Option<FinalizeOutcome> {
        self.retry_until(async || {
            let written = self.compare_and_swap(&held.id, held.in_flight(), record).await;
            self.written(held, record, written).await
        })
        .await
    }

    /// Handles the result of the first write of an attempt's end, `record`.
    pub(super) async fn written(
        &self,
        held: &Attempt,
        record: &Record,
        written: Result<Cas, Error>,
    ) -> Result<FinalizeOutcome, Error> {
        match written? {
            Cas::Swapped => Ok(FinalizeOutcome::Here { audited: false }),
            // Another write has changed the record since the claim.
            Cas::Conflict(found) => self.write_end_after(held, record, found).await,
        }
    }

    async fn write_end_after(
        &self,
        held: &Attempt,
        record: &Record,
        mut found: Option<StoredRecord>,
    ) -> Result<FinalizeOutcome, Error> {
        let unknown = held.record_unknown();
        for _ in 0..16 {
            // A response that was truncated meanwhile does not count as one.
            let record = if held.was_truncated() { &unknown } else { record };
            let phase = &record.phase;
            let late = match phase {
                _ if is_overwritten(phase, held, found.as_ref()) => FinalizeDecision::Write {
                    over: found.as_ref().map_or(held.in_flight(), |found| found.record.version()),
                    audited: false,
                },
                Phase::Released { .. } => match decide::release(found.as_ref(), held.attempt, held.over()) {
                    Release::Write(version) => FinalizeDecision::Write { over: version, audited: false },
                    Release::Insert => FinalizeDecision::Missing,
                    Release::Done => match found.as_ref().filter(|found| found.record.attempt != held.attempt) {
                        Some(_) => decide::complete(found.as_ref(), held.attempt, &held.print.fingerprint),
                        None => return Ok(FinalizeOutcome::Here { audited: false }),
                    },
                },
                Phase::Unknown { .. } => decide::unknown(found.as_ref(), held.attempt, &held.print.fingerprint),
                _ => decide::complete(found.as_ref(), held.attempt, &held.print.fingerprint),
            };
            match late {
                FinalizeDecision::Write { over, audited } => match self.compare_and_swap(&held.id, over, record).await?
                {
                    Cas::Swapped => return Ok(FinalizeOutcome::Here { audited }),
                    Cas::Conflict(now) => found = now,
                },
                FinalizeDecision::AlreadyRecorded(kept) => {
                    return Ok(match &kept.phase {
                        Phase::Completed { kept, .. } => FinalizeOutcome::Kept(kept.clone()),
                        _ => FinalizeOutcome::Here { audited: false },
                    });
                }
                FinalizeDecision::Superseded(winner) => {
                    return Ok(match winner {
                        SupersededBy::Response(kept) => FinalizeOutcome::Superseded(Some(kept.clone())),
                        SupersededBy::Running => FinalizeOutcome::Running,
                        SupersededBy::None => FinalizeOutcome::Superseded(None),
                    });
                }
                FinalizeDecision::Missing => {
                    // A release inserts its record in any case, so that a late write of the claim
                    // finds it.
                    let releases = matches!(phase, Phase::Released { .. });
                    // A claim is removed only by its own completion. If it is missing, the store
                    // has lost data, detected or not: in a failover or a power loss. Unless the end
                    // is inserted, the next retry would execute again.
                    if !releases && held.may_have_ended() {
                        return Ok(FinalizeOutcome::Superseded(None));
                    }
                    match self.insert(&held.id, record).await? {
                        None => return Ok(FinalizeOutcome::Here { audited: !releases }),
                        now => found = now,
                    }
                }
            }
        }
        Err(Error::unavailable("the record changed too often while its end was being written"))
    }
}

/// Planted bug: the end of an attempt overwrites another attempt's record.
fn is_overwritten(phase: &Phase, held: &Attempt, found: Option<&StoredRecord>) -> bool {
    let bug = if matches!(phase, Phase::Released { .. }) { "release-uncompared" } else { "completion-uncompared" };
    fault::planted(bug) && found.is_some_and(|found| found.record.attempt != held.attempt)
}

/// Outcome of the finalization of an attempt.
pub(super) enum FinalizeOutcome {
    /// The end is written.
    Here {
        /// The attempt had been recorded as released, or the store lost its claim.
        audited: bool,
    },
    /// The end of this attempt was already stored: that response applies.
    Kept(Retained),
    /// Another attempt has the key; carries its retained response, if any.
    Superseded(Option<Retained>),
    /// Another attempt has the key, and is executing.
    Running,
}

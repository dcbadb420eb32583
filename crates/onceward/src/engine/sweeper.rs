//! Background work without a request: the sweep and the self-test.

use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use crate::decide::{self, EffectiveState};
use crate::fault;
use crate::fingerprint::Fingerprint;
use crate::record::{AttemptId, FingerprintWithRules, Phase, Record, Retained};
use crate::reply::StoredResponse;
use crate::secret::{KeyHash, RecordId};
use crate::store::{Cas, Error};

/// Number of records that a sweep processes together.
const SWEEP_BATCH: usize = 256;

/// Digest of the self-test's key, which no key has: a digest is never all zeros.
const SELF_TEST: KeyHash = KeyHash([0; 32]);

impl Shared {
    pub(super) async fn sweep_all(&self) -> Result<(), Error> {
        // After a full batch the next follows at once; a partial batch contained everything that
        // was due.
        while self.sweep().await? == SWEEP_BATCH {
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    pub(super) async fn sweep(&self) -> Result<usize, Error> {
        let due = self.timed("due", self.store.due(SWEEP_BATCH)).await?;
        let mut left = 0;
        if !due.is_empty() {
            fault::reach("sweep");
        }
        let work = due.iter().map(async |(id, found)| {
            let over = found.record.version();
            match decide::sweep(found) {
                decide::Sweep::Leave => Ok(false),
                // No client sent it, so its outcome matters to nobody.
                decide::Sweep::Write(_) if found.record.key_hash == SELF_TEST => self.remove(id, over).await.map(|_| true),
                decide::Sweep::Write(Phase::Unknown { .. }) if fault::planted("sweep-forgets") => {
                    self.remove(id, over).await.map(|_| true)
                }
                decide::Sweep::Write(phase) => {
                    let unknown = matches!(phase, Phase::Unknown { .. });
                    let record = Record { phase, ..(*found.record).clone() };
                    let replaced = self.compare_and_swap(id, over, &record).await?;
                    if unknown && replaced == Cas::Swapped {
                        tracing::warn!(instance = %id.instance(), "a holder was lost; nobody knows whether it executed");
                    }
                    Ok(true)
                }
                decide::Sweep::Forget => self.remove(id, over).await.map(|_| true),
            }
        });
        // Concurrently, so that a store that batches writes commits them together.
        for done in futures_util::future::join_all(work).await {
            left += usize::from(!done?);
        }
        // Records that were left unchanged stay due. If they were counted, a full batch of them
        // would repeat endlessly.
        Ok(due.len() - left)
    }

    pub(super) async fn self_test(&self) -> Result<(), Error> {
        let id = RecordId(*blake3::hash(&AttemptId::random().0).as_bytes());
        let attempt = AttemptId::random();
        let print = FingerprintWithRules::new(Fingerprint([7; 32]), Arc::default());
        let keep = Duration::from_secs(60);
        // If the test is interrupted, the sweep of any process removes the record.
        let phase = Phase::InFlight { print: print.clone(), lease: keep, began: Duration::ZERO };
        let claim = Record { key_hash: SELF_TEST, attempt, phase };
        let reply = StoredResponse {
            status: http::StatusCode::CREATED,
            headers: vec![(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"))],
            body: bytes::Bytes::from_static(b"once"),
            redirect: None,
        };
        let kept = Retained::Response(Arc::new(reply));
        let phase = Phase::Completed { print, kept: kept.clone(), retention: keep, tombstone: Duration::ZERO };
        let done = Record { phase, ..claim.clone() };
        let failed = |what: &str| Err(Error::refused(format!("the store's self-test failed: {what}")));

        if self.insert(&id, &claim).await?.is_some() {
            return failed("a key that nobody used is taken");
        }
        match self.insert(&id, &claim).await? {
            Some(found) if *found.record == claim => {}
            _ => return failed("a claim was not found again, so that a second request would have executed"),
        }
        if self.compare_and_swap(&id, claim.version(), &done).await? != Cas::Swapped {
            return failed("an answer could not be kept");
        }
        // Reads the store itself, not the cache of this process.
        match self.timed("get", self.store.get(&id)).await? {
            Some(found) if matches!(decide::effective_state(&found), EffectiveState::Completed(found) if *found == kept) =>
                {}
            _ => return failed("an answer that was kept is not replayed"),
        }
        match self.remove(&id, done.version()).await? {
            true => Ok(()),
            false => failed("a record could not be removed"),
        }
    }
}

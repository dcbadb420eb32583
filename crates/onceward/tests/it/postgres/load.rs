//! Load of concurrent claims and completions until the server is gone, and what was confirmed by
//! then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use onceward::record::{AttemptId, Record};
use onceward::store::{Cas, PostgresStore, Store};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::records::{claim, completed, id};
use crate::support::waiting::PATIENCE;

const LANES: usize = 16;

/// Load that claims and completes keys in parallel tasks, each until its first failure.
pub(super) struct Load {
    over: Arc<AtomicBool>,
    completed: watch::Receiver<usize>,
    lanes: JoinSet<Vec<(usize, Record)>>,
}

impl Load {
    /// Starts the load; its keys begin at `from`.
    pub(super) fn start(store: &Arc<PostgresStore>, from: usize) -> Self {
        let (over, (count, counted)) = (Arc::new(AtomicBool::new(false)), watch::channel(0));
        let mut lanes = JoinSet::new();
        for lane in from..from + LANES {
            let (store, over, count) = (Arc::clone(store), Arc::clone(&over), count.clone());
            lanes.spawn(async move {
                let mut kept = Vec::new();
                for n in (lane..).step_by(LANES) {
                    if over.load(Ordering::SeqCst) {
                        break;
                    }
                    let claim = claim(AttemptId::random());
                    let claimed = timeout(Duration::from_secs(1), store.insert(&id(n), &claim)).await;
                    let Ok(Ok(None)) = claimed else { break };
                    kept.push((n, claim.clone()));
                    let end = completed(claim.attempt);
                    let ended =
                        timeout(Duration::from_secs(1), store.compare_and_swap(&id(n), claim.version(), &end)).await;
                    let Ok(Ok(Cas::Swapped)) = ended else { break };
                    kept.last_mut().unwrap().1 = end;
                    count.send_modify(|count| *count += 1);
                }
                kept
            });
        }
        Self { over, completed: counted, lanes }
    }

    /// Waits until this many keys are completed.
    pub(super) async fn until(&self, completed: usize) {
        let mut count = self.completed.clone();
        let enough = timeout(PATIENCE, count.wait_for(|count| *count >= completed)).await;
        assert!(enough.is_ok_and(|it| it.is_ok()), "there is hardly any load");
    }

    /// Stops the load, and returns each key with its last confirmed record.
    pub(super) async fn end(self) -> Vec<(usize, Record)> {
        self.over.store(true, Ordering::SeqCst);
        self.lanes.join_all().await.concat()
    }
}

/// Checks that all confirmed keys are present.
pub(super) async fn assert_kept(store: &PostgresStore, kept: &[(usize, Record)]) {
    for (n, last) in kept {
        let found =
            store.get(&id(*n)).await.unwrap().unwrap_or_else(|| panic!("key {n} was confirmed, and is forgotten"));
        // The response to its completion may have been lost, the completion itself was not.
        assert!(*found.record == *last || *found.record == completed(last.attempt), "key {n}: {found:?}");
    }
}

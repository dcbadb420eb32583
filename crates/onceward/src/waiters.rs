//! Who waits in this process for an attempt to end.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::record::AttemptId;
use crate::reply::Reply;
use crate::secret::RecordId;

/// How an attempt ended, for those who waited. All but a released answer is in the store.
#[derive(Clone, Debug)]
pub(crate) enum Ended {
    /// Released, with this answer: whoever waited gets it, and does not execute.
    Released(Option<Arc<Reply>>),
    /// Something else: the store tells.
    Look,
}

type Slot = (RecordId, AttemptId);

#[derive(Debug, Default)]
pub(crate) struct Waiters {
    slots: Mutex<HashMap<Slot, watch::Sender<Option<Ended>>>>,
    /// How many slots there are, so that an attempt for which nobody waits takes no lock at its end.
    count: AtomicUsize,
}

impl Waiters {
    /// Begins to wait, unless `max` do already. Whoever begins must look into the store afterwards: the attempt may have
    /// ended in between.
    pub(crate) fn join(self: &Arc<Self>, id: RecordId, attempt: AttemptId, max: usize) -> Option<Waiting> {
        let mut slots = self.slots.lock();
        let slot = (id, attempt);
        let sender = slots.entry(slot).or_insert_with(|| watch::Sender::new(None));
        let waiting = (sender.receiver_count() < max).then(|| Waiting {
            ended: sender.subscribe(),
            slot,
            waiters: Arc::clone(self),
        });
        if waiting.is_none() && sender.receiver_count() == 0 {
            slots.remove(&slot);
        }
        self.count.store(slots.len(), Ordering::SeqCst);
        waiting
    }

    /// Tells all who wait that the attempt ended. To be called after its end is in the store.
    pub(crate) fn tell(&self, id: RecordId, attempt: AttemptId, ended: impl FnOnce() -> Ended) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut slots = self.slots.lock();
        if let Some(sender) = slots.remove(&(id, attempt)) {
            sender.send_replace(Some(ended()));
        }
        self.count.store(slots.len(), Ordering::SeqCst);
    }
}

/// A place among those who wait; given up when dropped.
#[derive(Debug)]
pub(crate) struct Waiting {
    ended: watch::Receiver<Option<Ended>>,
    slot: Slot,
    waiters: Arc<Waiters>,
}

impl Waiting {
    /// Ends when the attempt did, in this process. Pending for ever where it runs in another.
    pub(crate) async fn ended(&mut self) -> Ended {
        let ended = self.ended.wait_for(Option::is_some).await.map(|ended| ended.clone());
        match ended {
            Ok(ended) => ended.unwrap_or(Ended::Look),
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut slots = self.waiters.slots.lock();
        // This receiver still counts.
        if slots.get(&self.slot).is_some_and(|sender| sender.receiver_count() <= 1) {
            slots.remove(&self.slot);
        }
        self.waiters.count.store(slots.len(), Ordering::SeqCst);
    }
}

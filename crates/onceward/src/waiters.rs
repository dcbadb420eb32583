//! Who waits in this process for an attempt to end.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::record::{AttemptId, StoredRecord};
use crate::reply::StoredResponse;
use crate::secret::RecordId;
use crate::store::Error;

/// How an attempt ended, for those who waited. All but a released answer is in the store.
#[derive(Clone, Debug)]
pub(crate) enum Ended {
    /// Released, with this answer: whoever waited gets it, and does not execute.
    Released(Option<Arc<StoredResponse>>),
    /// Something else: the store tells.
    CheckStore,
}

/// What a look into the store showed.
pub(crate) type Looked = Arc<Result<Option<StoredRecord>, Error>>;

/// What all who wait for an attempt hear.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// It ended, in this process.
    Ended(Ended),
    /// One of those who wait has looked.
    Looked(Looked),
}

type Slot = (RecordId, AttemptId);

/// Where those are who wait for one attempt.
#[derive(Debug)]
struct WaiterGroup {
    news: watch::Sender<Option<Event>>,
    turn: PollPermit,
}

/// Whoever holds it looks into the store, for all.
pub(crate) type PollPermit = Arc<tokio::sync::Mutex<()>>;

#[derive(Debug, Default)]
pub(crate) struct Waiters {
    slots: Mutex<HashMap<Slot, WaiterGroup>>,
    /// How many slots there are, so that an attempt for which nobody waits takes no lock at its end.
    count: AtomicUsize,
}

impl Waiters {
    /// Begins to wait, unless `max` do already. Whoever begins must look into the store afterwards: the attempt may have
    /// ended in between.
    pub(crate) fn join(self: &Arc<Self>, id: RecordId, attempt: AttemptId, max: usize) -> Option<Waiting> {
        let mut slots = self.slots.lock();
        let slot = (id, attempt);
        let bench =
            slots.entry(slot).or_insert_with(|| WaiterGroup { news: watch::Sender::new(None), turn: Arc::default() });
        let waiting = (bench.news.receiver_count() < max).then(|| Waiting {
            news: bench.news.subscribe(),
            turn: Arc::clone(&bench.turn),
            slot,
            waiters: Arc::clone(self),
        });
        if waiting.is_none() && bench.news.receiver_count() == 0 {
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
        if let Some(bench) = slots.remove(&(id, attempt)) {
            bench.news.send_replace(Some(Event::Ended(ended())));
        }
        self.count.store(slots.len(), Ordering::SeqCst);
    }
}

/// A place among those who wait; given up when dropped.
#[derive(Debug)]
pub(crate) struct Waiting {
    news: watch::Receiver<Option<Event>>,
    turn: PollPermit,
    slot: Slot,
    waiters: Arc<Waiters>,
}

impl Waiting {
    /// Ends when the attempt did, in this process. Pending for ever where it runs in another.
    pub(crate) async fn ended(&mut self) -> Ended {
        let heard = self.news.wait_for(|news| matches!(news, Some(Event::Ended(_)))).await.map(|news| news.clone());
        match heard {
            Ok(Some(Event::Ended(ended))) => ended,
            _ => std::future::pending().await,
        }
    }

    /// What is heard next.
    pub(crate) async fn news(&mut self) -> Event {
        loop {
            if self.news.changed().await.is_err() {
                std::future::pending().await
            }
            if let Some(news) = self.news.borrow_and_update().clone() {
                return news;
            }
        }
    }

    /// The turn to look, to be held while looking.
    pub(crate) fn turn(&self) -> PollPermit {
        Arc::clone(&self.turn)
    }

    /// Tells the others what a look showed.
    pub(crate) fn tell(&mut self, looked: &Looked) {
        let slots = self.waiters.slots.lock();
        if let Some(bench) = slots.get(&self.slot) {
            bench.news.send_replace(Some(Event::Looked(Arc::clone(looked))));
            // That much is known here.
            self.news.mark_unchanged();
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut slots = self.waiters.slots.lock();
        // This receiver still counts.
        if slots.get(&self.slot).is_some_and(|bench| bench.news.receiver_count() <= 1) {
            slots.remove(&self.slot);
        }
        self.waiters.count.store(slots.len(), Ordering::SeqCst);
    }
}

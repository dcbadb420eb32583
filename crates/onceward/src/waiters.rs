//! Waiters in this process for the end of an attempt.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::record::{AttemptId, StoredRecord};
use crate::reply::StoredResponse;
use crate::secret::RecordId;
use crate::store::Error;

/// End of an attempt, as its waiters get it. Everything but a released response is in the store.
#[derive(Clone, Debug)]
pub(crate) enum Ended {
    /// Released, with this response: waiters get it, and do not execute.
    Released(Option<Arc<StoredResponse>>),
    /// Any other end: the waiters read it from the store.
    CheckStore,
}

/// Result of a read from the store.
pub(crate) type Looked = Arc<Result<Option<StoredRecord>, Error>>;

/// Event that all waiters of an attempt get.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// The attempt ended, in this process.
    Ended(Ended),
    /// A waiter has read the store.
    Looked(Looked),
}

type Slot = (RecordId, AttemptId);

/// The waiters of one attempt.
#[derive(Debug)]
struct WaiterGroup {
    news: watch::Sender<Option<Event>>,
    turn: PollPermit,
}

/// Permit to read the store: the waiter that holds it reads for all.
pub(crate) type PollPermit = Arc<tokio::sync::Mutex<()>>;

#[derive(Debug, Default)]
pub(crate) struct Waiters {
    slots: Mutex<HashMap<Slot, WaiterGroup>>,
    /// Number of slots, so that an attempt without waiters takes no lock at its end.
    count: AtomicUsize,
}

impl Waiters {
    /// Subscribes a waiter, unless `max` are waiting already. The caller must read the store
    /// afterwards: the attempt may have ended in between.
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

    /// Notifies all waiters that the attempt ended. Must be called after its end is in the store.
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

/// Subscription of a waiter, cancelled when dropped.
#[derive(Debug)]
pub(crate) struct Waiting {
    news: watch::Receiver<Option<Event>>,
    turn: PollPermit,
    slot: Slot,
    waiters: Arc<Waiters>,
}

impl Waiting {
    /// Resolves when the attempt has ended in this process. Pending for ever if it runs in another.
    pub(crate) async fn ended(&mut self) -> Ended {
        let heard = self.news.wait_for(|news| matches!(news, Some(Event::Ended(_)))).await.map(|news| news.clone());
        match heard {
            Ok(Some(Event::Ended(ended))) => ended,
            _ => std::future::pending().await,
        }
    }

    /// Returns the next event.
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

    /// Returns the permit to read the store, to be held during the read.
    pub(crate) fn turn(&self) -> PollPermit {
        Arc::clone(&self.turn)
    }

    /// Notifies the other waiters of the result of a read.
    pub(crate) fn tell(&mut self, looked: &Looked) {
        let slots = self.waiters.slots.lock();
        if let Some(bench) = slots.get(&self.slot) {
            bench.news.send_replace(Some(Event::Looked(Arc::clone(looked))));
            // This waiter knows its own result.
            self.news.mark_unchanged();
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut slots = self.waiters.slots.lock();
        // The count still includes this receiver.
        if slots.get(&self.slot).is_some_and(|bench| bench.news.receiver_count() <= 1) {
            slots.remove(&self.slot);
        }
        self.waiters.count.store(slots.len(), Ordering::SeqCst);
    }
}

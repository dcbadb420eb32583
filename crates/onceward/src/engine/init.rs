//! Opens the store: reads its secret and its identity, and starts the sweeper, which also detects
//! data loss.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::{Boxed, Shared};
use crate::record::AttemptId;
use crate::secret::{HashKeys, Secret};
use crate::store::Error;

/// State that was read from the store when it was opened.
pub(super) struct StoreSession {
    pub(super) keys: HashKeys,
    /// The secret, if the store holds it for all processes.
    shared: Option<Secret>,
    /// Random value in the store. A different one means that the store has lost data since.
    identity: Mutex<[u8; 16]>,
}

/// Running sweeper. Dropped with its runtime, it records that no sweeper runs any more.
struct Sweeper(Weak<Shared>);

impl Drop for Sweeper {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.is_sweeping.store(false, Ordering::Relaxed);
        }
    }
}

impl Shared {
    pub(super) async fn open(self: &Arc<Self>) -> Result<&StoreSession, Error> {
        match self.opened.get() {
            Some(_) if self.is_foreign.load(Ordering::Relaxed) => Err(secret_mismatch()),
            Some(opened) => {
                self.ensure_sweeper();
                Ok(opened)
            }
            None => self.open_first().await,
        }
    }

    fn open_first<'a>(self: &'a Arc<Self>) -> Boxed<'a, Result<&'a StoreSession, Error>> {
        Box::pin(self.opened.get_or_try_init(|| self.open_now()))
    }

    async fn open_now(self: &Arc<Self>) -> Result<StoreSession, Error> {
        let (secret, shared) = match &self.secret {
            Some(secret) => (secret.clone(), None),
            None => {
                let fresh: [u8; 32] = rand::random();
                let kept = self.get_or_insert_meta("secret", &fresh).await?;
                let bytes = kept.as_ref().try_into().map_err(|_| Error::unreadable("the store's secret is damaged"))?;
                let secret = Secret::new(bytes);
                (secret.clone(), Some(secret))
            }
        };
        let keys = HashKeys::new(&secret);
        if self.get_or_insert_meta("secret-check", &keys.check_value()).await? != keys.check_value().as_slice() {
            return Err(secret_mismatch());
        }
        let identity = Mutex::new(self.identity().await?);
        self.ensure_sweeper();
        Ok(StoreSession { keys, shared, identity })
    }

    /// Starts the sweeper unless it runs. It ends with the runtime that it was started on, which
    /// need not be the last one: the next request starts it again, on its own runtime.
    fn ensure_sweeper(self: &Arc<Self>) {
        if self.is_sweeping.load(Ordering::Relaxed) || self.is_sweeping.swap(true, Ordering::Relaxed) {
            return;
        }
        let sweeper = Sweeper(Arc::downgrade(self));
        // A store in this process's memory loses its data only together with the process.
        let may_forget = !self.store.info().in_process;
        let clock = Arc::clone(&self.clock);
        tokio::spawn(async move {
            loop {
                clock.sleep_until(clock.now().saturating_add(Duration::from_secs(1))).await;
                let Some(shared) = sweeper.0.upgrade() else { return };
                if may_forget && let Err(error) = shared.detect_data_loss().await {
                    tracing::debug!(%error, "the store does not say whether it lost its memory");
                }
                if let Err(error) = shared.sweep_all().await {
                    tracing::warn!(%error, "the sweep failed, and is tried again");
                }
            }
        });
    }

    /// Detects whether the store lost its data (its identity changed). If so, writes the shared
    /// secret back: otherwise the next process to start would generate a new secret, compute other
    /// record ids, and execute duplicates.
    pub(super) async fn detect_data_loss(&self) -> Result<(), Error> {
        let Some(opened) = self.opened.get() else { return Ok(()) };
        let found = self.identity().await?;
        if *opened.identity.lock() == found {
            return Ok(());
        }
        let gives_back = match &opened.shared {
            Some(secret) => self.get_or_insert_meta("secret", secret.bytes()).await? == secret.bytes().as_slice(),
            None => true,
        };
        // If another secret was generated meanwhile, its check value must not be replaced by ours:
        // no process could start any more.
        let check = opened.keys.check_value();
        let is_foreign = !gives_back || self.get_or_insert_meta("secret-check", &check).await? != check.as_slice();
        self.is_foreign.store(is_foreign, Ordering::Relaxed);
        let mut identity = opened.identity.lock();
        // Concurrent calls may detect the same loss: log it once.
        if *identity != found {
            *identity = found;
            tracing::error!(is_foreign, "the store lost its memory; retries of what it knew may execute again");
        }
        Ok(())
    }

    /// Returns the store's identity. The first caller creates it.
    async fn identity(&self) -> Result<[u8; 16], Error> {
        let kept = self.get_or_insert_meta("identity", &AttemptId::random().0).await?;
        kept.as_ref().try_into().map_err(|_| Error::unreadable("the store's identity is damaged"))
    }
}

fn secret_mismatch() -> Error {
    Error::refused(
        "the store belongs to another secret; set secret_file to the one that it was made with, or start this process anew",
    )
}

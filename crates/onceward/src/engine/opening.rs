//! Opening the store: its secret, its identity, and the sweep that goes on from then.

use std::sync::Arc;
use std::time::Duration;

use super::{Boxed, Shared};
use crate::record::AttemptId;
use crate::secret::{HashKeys, Secret};
use crate::store::Error;

/// What was read from the store when it was opened.
pub(super) struct Opened {
    pub(super) keys: HashKeys,
    /// A random value that the store keeps: another one means that it lost its memory.
    pub(super) identity: [u8; 16],
}

impl Shared {
    pub(super) async fn open(self: &Arc<Self>) -> Result<&Opened, Error> {
        if let Some(opened) = self.opened.get() {
            return Ok(opened);
        }
        self.open_first().await
    }

    fn open_first<'a>(self: &'a Arc<Self>) -> Boxed<'a, Result<&'a Opened, Error>> {
        Box::pin(self.opened.get_or_try_init(|| self.open_now()))
    }

    async fn open_now(self: &Arc<Self>) -> Result<Opened, Error> {
        let secret = match &self.secret {
            Some(secret) => secret.clone(),
            None => {
                let fresh: [u8; 32] = rand::random();
                let kept = self.meta("secret", &fresh).await?;
                let bytes = kept.as_ref().try_into().map_err(|_| Error::unreadable("the store's secret is damaged"))?;
                Secret::new(bytes)
            }
        };
        let keys = HashKeys::new(&secret);
        if self.meta("secret-check", &keys.check_value()).await? != keys.check_value().as_slice() {
            return Err(Error::refused(
                "the store belongs to another secret; set secret_file to the one that it was made with",
            ));
        }
        let identity = self.identity().await?;
        let weak = Arc::downgrade(self);
        let clock = Arc::clone(&self.clock);
        tokio::spawn(async move {
            loop {
                clock.sleep_until(clock.now() + Duration::from_secs(1)).await;
                let Some(shared) = weak.upgrade() else { return };
                if let Err(error) = shared.sweep_all().await {
                    tracing::warn!(%error, "the sweep failed, and is tried again");
                }
            }
        });
        Ok(Opened { keys, identity })
    }

    /// The store's identity, made by whoever asks first.
    pub(super) async fn identity(&self) -> Result<[u8; 16], Error> {
        let kept = self.meta("identity", &AttemptId::random().0).await?;
        kept.as_ref().try_into().map_err(|_| Error::unreadable("the store's identity is damaged"))
    }
}

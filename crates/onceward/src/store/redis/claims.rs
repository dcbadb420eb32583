//! The list of claims, for the sweep: without it, nobody would find a claim whose holder is gone and whose key nobody asks for.
//!
//! It is a hint: a record alone says what is so, and every look at a record judges it. So it need not stand in the record's
//! slot, where a cluster would want one list for each of 16,384 slots; it is one sorted set, by the moment of the next look.
//! A claim is listed as soon as it is won, claims that are won at once together; what ended is struck out with the next that
//! is listed. So a request costs at most one more command, nobody waits for it, and under load many share one. What a gateway
//! that dies had not listed yet is judged when somebody asks for that key. What ended elsewhere the sweep strikes out when its
//! moment comes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::link::Link;
use super::scripts::Scripts;
use crate::secret::RecordId;
use crate::store::Error;

/// Where the list stands.
pub(super) const KEY: &str = "onceward:claims";

/// How many go into one command.
const BATCH: usize = 500;

/// What is to be written to the list.
#[derive(Default)]
pub(super) struct Claims {
    waiting: Mutex<Waiting>,
    came: Notify,
}

#[derive(Default)]
struct Waiting {
    /// To be looked at after so long.
    listed: HashMap<RecordId, Duration>,
    ended: Vec<RecordId>,
}

impl Claims {
    /// A claim was won, or may have been; it is looked at when its lease is over.
    pub(super) fn list(&self, id: RecordId, lease: Duration) {
        self.waiting.lock().listed.insert(id, lease);
        self.came.notify_one();
    }

    /// A claim has ended. If it is not listed yet, it never will be.
    pub(super) fn ended(&self, id: RecordId) {
        let mut waiting = self.waiting.lock();
        if waiting.listed.remove(&id).is_none() {
            waiting.ended.push(id);
            if waiting.ended.len() >= BATCH {
                self.came.notify_one();
            }
        }
    }

    /// Writes what is waiting now; what comes meanwhile is for the next time.
    pub(super) async fn flush(&self, link: &Link, scripts: &Scripts) -> Result<(), Error> {
        loop {
            let (listed, ended) = {
                let mut waiting = self.waiting.lock();
                let ids: Vec<RecordId> = waiting.listed.keys().take(BATCH).copied().collect();
                let listed: Vec<_> = ids.iter().filter_map(|id| waiting.listed.remove_entry(id)).collect();
                let most = waiting.ended.len().min(BATCH);
                (listed, waiting.ended.drain(..most).collect::<Vec<_>>())
            };
            if listed.is_empty() && ended.is_empty() {
                return Ok(());
            }
            let is_last = listed.len() < BATCH && ended.len() < BATCH;
            if let Err(error) = write(link, scripts, &listed, &ended).await {
                // Once more with the next, unless so many wait that the store is better off without.
                let mut waiting = self.waiting.lock();
                if waiting.listed.len() + waiting.ended.len() < 100 * BATCH {
                    for (id, lease) in listed {
                        waiting.listed.entry(id).or_insert(lease);
                    }
                    waiting.ended.extend(ended);
                }
                return Err(error);
            }
            if is_last {
                return Ok(());
            }
        }
    }
}

/// Lists some, and strikes out others.
pub(super) async fn write(
    link: &Link,
    scripts: &Scripts,
    listed: &[(RecordId, Duration)],
    ended: &[RecordId],
) -> Result<(), Error> {
    let count = listed.len().to_string();
    let moments: Vec<String> = listed.iter().map(|(_, after)| after.as_millis().to_string()).collect();
    let mut arguments: Vec<&[u8]> = vec![count.as_bytes()];
    for ((id, _), moment) in listed.iter().zip(&moments) {
        arguments.extend([id.0.as_slice(), moment.as_bytes()]);
    }
    arguments.extend(ended.iter().map(|id| id.0.as_slice()));
    link.run(&scripts.list, &[KEY], &arguments).await.map(drop)
}

/// Lists what is waiting, as it comes.
///
/// Without a pause in between: under load most claims would end within it and never be listed, but those that a dying gateway
/// leaves are just those, and nobody would count them as unknown.
pub(super) async fn write_as_they_come(claims: Arc<Claims>, link: Arc<Link>, scripts: Arc<Scripts>) {
    loop {
        claims.came.notified().await;
        if let Err(error) = claims.flush(&link, &scripts).await {
            tracing::debug!(%error, "claims could not be listed, and are with the next");
        }
    }
}

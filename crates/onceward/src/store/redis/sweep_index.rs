//! Sorted sets that tell the sweep which records to check.
//!
//! Without them, a claim whose owner is lost and whose key nobody retries would never be found.
//! The same holds for an inline response whose retention has ended.
//!
//! ```text
//! onceward:began    claims acquired together; score: when the first of their leases expires
//! onceward:claims   claims that outlived their lease, one by one; score: when to check again
//! onceward:ends     records with inline responses; score: when the last of them expires
//! ```
//!
//! The sets are hints: every check reads the record, which alone is authoritative.
//! So they need not be in the records' slots; a cluster would otherwise need one set for each of
//! 16,384 slots.
//! Most claims complete within one lease, so entries are not removed on completion.
//! Instead each batch is checked once its lease has expired.
//! Claims still in flight then move to `claims`, records with inline responses to `ends`.
//! A request costs at most one more command, no caller waits for it, and under load many requests
//! share one.
//! Claims that a gateway had not tracked when it died are checked when their key is used again.

use std::time::Duration;

use parking_lot::Mutex;
use redis::{Cmd, FromRedisValue};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::connection::ConnectionManager;
use super::scripts::{Code, Scripts};
use super::url::Kind;
use super::value::{RecordHeader, record_key};
use crate::secret::RecordId;
use crate::store::Error;

/// Key of the set of claims that were acquired together.
pub(super) const BEGAN: &str = "onceward:began";

/// Key of the set of claims that outlived their first lease.
pub(super) const CLAIMS: &str = "onceward:claims";

/// Key of the set of records with inline responses.
pub(super) const ENDS: &str = "onceward:ends";

/// Upper bound on ids in one member of a set.
const IDS_PER_MEMBER: usize = 256;

/// Number of records one script reads. In a cluster it is one, since each may be on another node.
const RECORDS_PER_SCRIPT: usize = 64;

/// Number of recent claims sampled to estimate how many are in flight.
const SAMPLE_SIZE: usize = 256;

/// Number of members taken from a set at once.
const MEMBERS_PER_TAKE: usize = 16;

/// Time after which taken members become visible again if their taker has died.
const TAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// Upper bound on the time of one run. The next run continues.
const RUN_MAX: Duration = Duration::from_millis(500);

/// Delay before a response that should have expired, and has not, is checked again.
const RECHECK_AFTER: Duration = Duration::from_secs(60);

/// Upper bound on entries waiting to be written. Above it, entries that could not be written are
/// dropped.
const PENDING_MAX: usize = 100_000;

/// Entries to be written to the set of recent claims.
#[derive(Default)]
pub(super) struct SweepIndex {
    /// Ids and the delay until their check.
    pending: Mutex<Vec<(RecordId, Duration)>>,
    added: Notify,
}

impl SweepIndex {
    /// Tracks a claim that was, or may have been, acquired. It is checked once its lease has
    /// expired.
    pub(super) fn track(&self, id: RecordId, lease: Duration) {
        self.pending.lock().push((id, lease));
        self.added.notify_one();
    }

    /// Writes the pending entries. Entries added meanwhile, and those that could not be written,
    /// are written next time.
    pub(super) async fn flush(&self, connections: &ConnectionManager) -> Result<(), Error> {
        let mut guard = FlushGuard { of: self, entries: std::mem::take(&mut *self.pending.lock()) };
        // Claims are grouped by lease, so that each group is checked on time.
        guard.entries.sort_unstable_by_key(|(_, lease)| *lease);
        let groups = guard.entries.chunk_by(|a, b| a.1 == b.1).flat_map(|groups| groups.chunks(IDS_PER_MEMBER));
        let members = groups.map(|group| (pack_ids(group.iter().map(|(id, _)| id)), group[0].1)).collect();
        add(connections, BEGAN, members).await?;
        guard.entries.clear();
        Ok(())
    }

    /// Evicts expired responses, writes the pending entries, and checks the claims whose first
    /// lease has expired.
    ///
    /// In this order, since the first step frees memory on a full server, which the others need.
    pub(super) async fn run_once(&self, connections: &ConnectionManager, scripts: &Scripts) -> Result<(), Error> {
        let until = Instant::now() + RUN_MAX;
        while Instant::now() < until && evict_expired(connections, scripts).await? {}
        self.flush(connections).await?;
        while Instant::now() < until && check_expired_leases(connections, scripts).await? {}
        Ok(())
    }

    /// Writes pending entries as they are added.
    ///
    /// There is no pause in between: claims from the pause would be lost with a gateway that dies,
    /// and never be found unknown.
    pub(super) async fn flush_continuously(&self, connections: &ConnectionManager) {
        loop {
            self.added.notified().await;
            if let Err(error) = self.flush(connections).await {
                tracing::debug!(%error, "Redis sweep index not updated; the entries are retried with the next");
            }
        }
    }
}

/// Entries being written. If the write fails or is cancelled, they go back to the pending ones.
struct FlushGuard<'l> {
    of: &'l SweepIndex,
    entries: Vec<(RecordId, Duration)>,
}

impl Drop for FlushGuard<'_> {
    fn drop(&mut self) {
        let mut pending = self.of.pending.lock();
        if pending.len() + self.entries.len() < PENDING_MAX {
            pending.append(&mut self.entries);
        }
    }
}

/// Moves members whose lease has expired to the set they belong to. Returns true if there were any.
async fn check_expired_leases(connections: &ConnectionManager, scripts: &Scripts) -> Result<bool, Error> {
    let taken = take(connections, scripts, BEGAN).await?;
    let (mut running, mut ending) = (Vec::new(), Vec::new());
    let ids = unpack_ids(&taken);
    let now = connections.now_ms().unwrap_or_default();
    for (id, head) in ids.iter().zip(heads(connections, scripts, &ids).await?) {
        match head {
            RecordHeader::InFlight => running.push((*id, Duration::ZERO)),
            RecordHeader::Inline(ends) => ending.push((*id, Duration::from_millis(ends.saturating_sub(now)))),
            RecordHeader::External | RecordHeader::Other => {}
        }
    }
    reschedule(connections, &running).await?;
    schedule_expiry(connections, ending).await?;
    remove(connections, BEGAN, &taken).await?;
    Ok(!taken.is_empty())
}

/// Removes expired responses from their records. Returns true if there were any.
async fn evict_expired(connections: &ConnectionManager, scripts: &Scripts) -> Result<bool, Error> {
    let taken = take(connections, scripts, ENDS).await?;
    let ids = unpack_ids(&taken);
    let later: Vec<Vec<usize>> = run_over(connections, &scripts.shrink, &ids).await?;
    let places = ids.chunks(records_per_script(connections)).zip(later).flat_map(|(ids, later)| {
        later.into_iter().filter_map(|place| Some((*ids.get(place.checked_sub(1)?)?, RECHECK_AFTER)))
    });
    schedule_expiry(connections, places.collect()).await?;
    remove(connections, ENDS, &taken).await?;
    Ok(!taken.is_empty())
}

/// Schedules the eviction of inline responses, each after its delay.
pub(super) async fn schedule_expiry(
    connections: &ConnectionManager,
    mut ending: Vec<(RecordId, Duration)>,
) -> Result<(), Error> {
    ending.sort_unstable_by_key(|(_, after)| *after);
    // Responses that expire within the same minute share a member; none waits for one that expires
    // days later.
    let minute = |(_, after): &(RecordId, Duration)| after.as_secs() / 60;
    let groups = ending.chunk_by(|a, b| minute(a) == minute(b)).flat_map(|groups| groups.chunks(IDS_PER_MEMBER));
    let members = groups.map(|group| {
        let last = group.last().map_or(Duration::ZERO, |(_, after)| *after);
        (pack_ids(group.iter().map(|(id, _)| id)), last)
    });
    add(connections, ENDS, members.collect()).await
}

/// Schedules the next check of claims, each after its delay.
pub(super) async fn reschedule(connections: &ConnectionManager, claims: &[(RecordId, Duration)]) -> Result<(), Error> {
    add(connections, CLAIMS, claims.iter().map(|(id, after)| (id.0.to_vec(), *after)).collect()).await
}

/// Removes claims that have ended.
pub(super) async fn untrack(connections: &ConnectionManager, claims: &[RecordId]) -> Result<(), Error> {
    remove(connections, CLAIMS, &claims.iter().map(|id| id.0.to_vec()).collect::<Vec<_>>()).await
}

/// Estimates how many claims are in flight: those that outlived a lease, plus a sample of the
/// recent ones.
pub(super) async fn in_flight(connections: &ConnectionManager, scripts: &Scripts) -> Result<u64, Error> {
    let count = async |key: &str| -> Result<u64, Error> {
        number(connections.execute_plain(redis::cmd("ZCARD").arg(key)).await?)
    };
    let (old, members) = (count(CLAIMS).await?, count(BEGAN).await?);
    let sample: Vec<Vec<u8>> =
        list(connections.execute_plain(redis::cmd("ZRANDMEMBER").arg(BEGAN).arg(SAMPLE_SIZE)).await?)?;
    let ids = unpack_ids(&sample);
    let all = members * ids.len() as u64 / (sample.len() as u64).max(1);
    let ids = &ids[..ids.len().min(SAMPLE_SIZE)];
    let running =
        heads(connections, scripts, ids).await?.iter().filter(|head| **head == RecordHeader::InFlight).count() as u64;
    Ok(old + (running * all).div_ceil((ids.len() as u64).max(1)))
}

/// Returns up to `limit` ids that outlived their lease and are due for a check, after skipping
/// `skip`.
pub(super) async fn due(
    connections: &ConnectionManager,
    scripts: &Scripts,
    skip: usize,
    limit: usize,
) -> Result<Vec<RecordId>, Error> {
    let (skip_arg, limit_arg) = (skip.to_string(), limit.to_string());
    let ids: Vec<Vec<u8>> =
        list(connections.run(&scripts.due, &[CLAIMS.as_bytes()], &[skip_arg.as_bytes(), limit_arg.as_bytes()]).await?)?;
    Ok(unpack_ids(&ids))
}

async fn take(connections: &ConnectionManager, scripts: &Scripts, key: &str) -> Result<Vec<Vec<u8>>, Error> {
    let (most, postpone) = (MEMBERS_PER_TAKE.to_string(), TAKE_TIMEOUT.as_millis().to_string());
    list(connections.run(&scripts.take, &[key.as_bytes()], &[most.as_bytes(), postpone.as_bytes()]).await?)
}

async fn heads(
    connections: &ConnectionManager,
    scripts: &Scripts,
    ids: &[RecordId],
) -> Result<Vec<RecordHeader>, Error> {
    let heads: Vec<Vec<Vec<u8>>> = run_over(connections, &scripts.heads, ids).await?;
    Ok(heads.iter().flatten().map(|head| RecordHeader::of(head)).collect())
}

/// Runs a script over records, as many per call as allowed. Returns the result of each call.
async fn run_over<T: FromRedisValue>(
    connections: &ConnectionManager,
    code: &Code,
    ids: &[RecordId],
) -> Result<Vec<T>, Error> {
    let each = ids.chunks(records_per_script(connections)).map(async |ids| {
        let keys: Vec<_> = ids.iter().map(record_key).collect();
        let keys: Vec<&[u8]> = keys.iter().map(<[u8; _]>::as_slice).collect();
        list(connections.run(code, &keys, &[]).await?)
    });
    futures_util::future::try_join_all(each).await
}

fn records_per_script(connections: &ConnectionManager) -> usize {
    if connections.options.kind == Kind::Cluster { 1 } else { RECORDS_PER_SCRIPT }
}

/// Adds members to a set, each due for a check after its delay.
async fn add(connections: &ConnectionManager, key: &str, members: Vec<(Vec<u8>, Duration)>) -> Result<(), Error> {
    let now = connections.now_ms().unwrap_or_default();
    for some in members.chunks(IDS_PER_MEMBER) {
        let mut add = Cmd::with_capacity(
            2 + 2 * some.len(),
            some.iter().map(|(member, _)| member.len() + 16).sum::<usize>() + 32,
        );
        add.arg("ZADD").arg(key);
        for (member, after) in some {
            add.arg(now.saturating_add(u64::try_from(after.as_millis()).unwrap_or(u64::MAX))).arg(member);
        }
        connections.execute_plain(&add).await?;
    }
    Ok(())
}

async fn remove(connections: &ConnectionManager, key: &str, members: &[Vec<u8>]) -> Result<(), Error> {
    for some in members.chunks(IDS_PER_MEMBER) {
        connections.execute_plain(redis::cmd("ZREM").arg(key).arg(some)).await?;
    }
    Ok(())
}

fn pack_ids<'i>(ids: impl Iterator<Item = &'i RecordId>) -> Vec<u8> {
    ids.flat_map(|id| id.0).collect()
}

fn unpack_ids(members: &[Vec<u8>]) -> Vec<RecordId> {
    members.iter().flat_map(|member| member.as_chunks::<32>().0).map(|id| RecordId(*id)).collect()
}

fn list<T: FromRedisValue>(value: redis::Value) -> Result<T, Error> {
    redis::from_redis_value(value)
        .map_err(|error| Error::unavailable("the Redis server returned no list").with_source(error))
}

fn number(value: redis::Value) -> Result<u64, Error> {
    redis::from_redis_value(value)
        .map_err(|error| Error::unavailable("the Redis server returned no count").with_source(error))
}

//! The lists of the sweep: without them, nobody would find a claim whose holder is gone and whose key nobody asks for, nor an
//! answer within a record whose time is over.
//!
//! ```text
//! onceward:began    claims that were won together, by the moment at which the first lease among them is over
//! onceward:claims   claims that outlived that moment, one by one, by the moment of the next look
//! onceward:ends     records with an answer within, many together, by the moment at which the last of their times is over
//! ```
//!
//! They are hints: a record alone says what is so, and every look at a record judges it. So they need not stand in the records'
//! slots, where a cluster would want a list for each of 16,384 of them. Nearly all claims end within their lease; so none is
//! struck out when it ends, but all that were won together are looked at together afterwards: those that still run go to one
//! list, those that have an answer within to the other. A request costs at most one more command, nobody waits for it, and
//! under load many share one. What a gateway that dies had not listed yet is judged when somebody asks for that key.

use std::time::Duration;

use parking_lot::Mutex;
use redis::{Cmd, FromRedisValue};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::link::Link;
use super::scripts::{Code, Scripts};
use super::url::Kind;
use super::value::{Head, record_key};
use crate::secret::RecordId;
use crate::store::Error;

/// Claims that were won together.
pub(super) const BEGAN: &str = "onceward:began";

/// Claims that outlived their first lease.
pub(super) const CLAIMS: &str = "onceward:claims";

/// Records with an answer within.
const ENDS: &str = "onceward:ends";

/// How many ids go into one member of a list.
const TOGETHER: usize = 256;

/// How many records of a server one script looks at; in a cluster, where each may be elsewhere, one.
const LOOKED_AT: usize = 64;

/// How many of those that began within a lease are looked at, to tell how many are in flight.
const SAMPLED: usize = 256;

/// How many members are taken from a list at once.
const TAKEN: usize = 16;

/// Whoever takes members and dies leaves them to others after so long.
const TAKEN_FOR: Duration = Duration::from_secs(3);

/// How long one turn goes on. What is left waits for the next.
const TURN_MAX: Duration = Duration::from_millis(500);

/// An answer that should have ended and has not is looked at again after so long.
const LATER: Duration = Duration::from_secs(60);

/// So many wait at most, should the server not take them: the store is better off without more.
const WAITING_MAX: usize = 100_000;

/// What is to be written to the list of what began.
#[derive(Default)]
pub(super) struct Lists {
    /// To be looked at after so long.
    waiting: Mutex<Vec<(RecordId, Duration)>>,
    came: Notify,
}

impl Lists {
    /// A claim was won, or may have been; it is looked at when its lease is over.
    pub(super) fn began(&self, id: RecordId, lease: Duration) {
        self.waiting.lock().push((id, lease));
        self.came.notify_one();
    }

    /// Writes what is waiting now; what comes meanwhile is for the next time, and so is what could not be written.
    pub(super) async fn flush(&self, link: &Link) -> Result<(), Error> {
        let mut unwritten = Unwritten { of: self, listed: std::mem::take(&mut *self.waiting.lock()) };
        // Leases are mostly alike; those that are not go apart, so that each is looked at in time.
        unwritten.listed.sort_unstable_by_key(|(_, lease)| *lease);
        let alike = unwritten.listed.chunk_by(|a, b| a.1 == b.1).flat_map(|alike| alike.chunks(TOGETHER));
        let members = alike.map(|together| (joined(together.iter().map(|(id, _)| id)), together[0].1)).collect();
        add(link, BEGAN, members).await?;
        unwritten.listed.clear();
        Ok(())
    }

    /// Takes answers out whose time is over, lists what is waiting, and looks at what began a lease ago.
    ///
    /// In this order: the first makes room in a server that is full, and the others want some.
    pub(super) async fn turn(&self, link: &Link, scripts: &Scripts) -> Result<(), Error> {
        let until = Instant::now() + TURN_MAX;
        while Instant::now() < until && at_the_end(link, scripts).await? {}
        self.flush(link).await?;
        while Instant::now() < until && after_a_lease(link, scripts).await? {}
        Ok(())
    }

    /// Lists what is waiting, as it comes.
    ///
    /// Without a pause in between: claims that a dying gateway leaves would be just those of the pause, and nobody would count
    /// them as unknown.
    pub(super) async fn write_as_they_come(&self, link: &Link) {
        loop {
            self.came.notified().await;
            if let Err(error) = self.flush(link).await {
                tracing::debug!(%error, "claims could not be listed, and are with the next");
            }
        }
    }
}

/// What was taken to be written. Whoever fails at that, or is dropped meanwhile, leaves it to the next.
struct Unwritten<'l> {
    of: &'l Lists,
    listed: Vec<(RecordId, Duration)>,
}

impl Drop for Unwritten<'_> {
    fn drop(&mut self) {
        let mut waiting = self.of.waiting.lock();
        if waiting.len() + self.listed.len() < WAITING_MAX {
            waiting.append(&mut self.listed);
        }
    }
}

/// What began together and is over by now goes to the list that it belongs to. Returns whether there was something.
async fn after_a_lease(link: &Link, scripts: &Scripts) -> Result<bool, Error> {
    let taken = take(link, scripts, BEGAN).await?;
    let (mut running, mut ending) = (Vec::new(), Vec::new());
    let ids = parted(&taken);
    let now = link.now_ms().unwrap_or_default();
    for (id, head) in ids.iter().zip(heads(link, scripts, &ids).await?) {
        match head {
            Head::InFlight => running.push((*id, Duration::ZERO)),
            Head::Within(ends) => ending.push((*id, Duration::from_millis(ends.saturating_sub(now)))),
            Head::Beside | Head::Other => {}
        }
    }
    look_again(link, &running).await?;
    end_later(link, ending).await?;
    remove(link, BEGAN, &taken).await?;
    Ok(!taken.is_empty())
}

/// Takes answers out of their records whose time is over. Returns whether there was something.
async fn at_the_end(link: &Link, scripts: &Scripts) -> Result<bool, Error> {
    let taken = take(link, scripts, ENDS).await?;
    let ids = parted(&taken);
    let later: Vec<Vec<usize>> = over(link, &scripts.shrink, &ids).await?;
    let places = ids
        .chunks(looked_at(link))
        .zip(later)
        .flat_map(|(ids, later)| later.into_iter().filter_map(|place| Some((*ids.get(place.checked_sub(1)?)?, LATER))));
    end_later(link, places.collect()).await?;
    remove(link, ENDS, &taken).await?;
    Ok(!taken.is_empty())
}

/// Answers within their records are taken out after so long.
pub(super) async fn end_later(link: &Link, mut ending: Vec<(RecordId, Duration)>) -> Result<(), Error> {
    ending.sort_unstable_by_key(|(_, after)| *after);
    // Those that end within a minute go together; none waits for one that ends days later.
    let minute = |(_, after): &(RecordId, Duration)| after.as_secs() / 60;
    let alike = ending.chunk_by(|a, b| minute(a) == minute(b)).flat_map(|alike| alike.chunks(TOGETHER));
    let members = alike.map(|together| {
        let last = together.last().map_or(Duration::ZERO, |(_, after)| *after);
        (joined(together.iter().map(|(id, _)| id)), last)
    });
    add(link, ENDS, members.collect()).await
}

/// Claims are looked at again after so long.
pub(super) async fn look_again(link: &Link, claims: &[(RecordId, Duration)]) -> Result<(), Error> {
    add(link, CLAIMS, claims.iter().map(|(id, after)| (id.0.to_vec(), *after)).collect()).await
}

/// Claims have ended.
pub(super) async fn strike_out(link: &Link, claims: &[RecordId]) -> Result<(), Error> {
    remove(link, CLAIMS, &claims.iter().map(|id| id.0.to_vec()).collect::<Vec<_>>()).await
}

/// About how many claims are in flight: those that outlived a lease, and of those that began within one as many as a sample says.
pub(super) async fn in_flight(link: &Link, scripts: &Scripts) -> Result<u64, Error> {
    let count = async |key: &str| -> Result<u64, Error> { number(link.ask_plain(redis::cmd("ZCARD").arg(key)).await?) };
    let (old, members) = (count(CLAIMS).await?, count(BEGAN).await?);
    let sample: Vec<Vec<u8>> = list(link.ask_plain(redis::cmd("ZRANDMEMBER").arg(BEGAN).arg(SAMPLED)).await?)?;
    let ids = parted(&sample);
    let all = members * ids.len() as u64 / (sample.len() as u64).max(1);
    let ids = &ids[..ids.len().min(SAMPLED)];
    let running = heads(link, scripts, ids).await?.iter().filter(|head| **head == Head::InFlight).count() as u64;
    Ok(old + (running * all).div_ceil((ids.len() as u64).max(1)))
}

/// The ids that outlived their lease and are to be looked at: so many, after so many that are passed over.
pub(super) async fn due(
    link: &Link,
    scripts: &Scripts,
    passed_over: usize,
    limit: usize,
) -> Result<Vec<RecordId>, Error> {
    let (skip, want) = (passed_over.to_string(), limit.to_string());
    let ids: Vec<Vec<u8>> =
        list(link.run(&scripts.due, &[CLAIMS.as_bytes()], &[skip.as_bytes(), want.as_bytes()]).await?)?;
    Ok(parted(&ids))
}

async fn take(link: &Link, scripts: &Scripts, key: &str) -> Result<Vec<Vec<u8>>, Error> {
    let (most, put_off) = (TAKEN.to_string(), TAKEN_FOR.as_millis().to_string());
    list(link.run(&scripts.take, &[key.as_bytes()], &[most.as_bytes(), put_off.as_bytes()]).await?)
}

async fn heads(link: &Link, scripts: &Scripts, ids: &[RecordId]) -> Result<Vec<Head>, Error> {
    let heads: Vec<Vec<Vec<u8>>> = over(link, &scripts.heads, ids).await?;
    Ok(heads.iter().flatten().map(|head| Head::of(head)).collect())
}

/// Runs a script over records, as many at once as one may; returns what each said.
async fn over<T: FromRedisValue>(link: &Link, code: &Code, ids: &[RecordId]) -> Result<Vec<T>, Error> {
    let each = ids.chunks(looked_at(link)).map(async |ids| {
        let keys: Vec<_> = ids.iter().map(record_key).collect();
        let keys: Vec<&[u8]> = keys.iter().map(<[u8; _]>::as_slice).collect();
        list(link.run(code, &keys, &[]).await?)
    });
    futures_util::future::try_join_all(each).await
}

fn looked_at(link: &Link) -> usize {
    if link.options.kind == Kind::Cluster { 1 } else { LOOKED_AT }
}

/// Adds members to a list, each to be looked at after so long.
async fn add(link: &Link, key: &str, members: Vec<(Vec<u8>, Duration)>) -> Result<(), Error> {
    let now = link.now_ms().unwrap_or_default();
    for some in members.chunks(TOGETHER) {
        let mut add = Cmd::with_capacity(
            2 + 2 * some.len(),
            some.iter().map(|(member, _)| member.len() + 16).sum::<usize>() + 32,
        );
        add.arg("ZADD").arg(key);
        for (member, after) in some {
            add.arg(now.saturating_add(u64::try_from(after.as_millis()).unwrap_or(u64::MAX))).arg(member);
        }
        link.ask_plain(&add).await?;
    }
    Ok(())
}

async fn remove(link: &Link, key: &str, members: &[Vec<u8>]) -> Result<(), Error> {
    for some in members.chunks(TOGETHER) {
        link.ask_plain(redis::cmd("ZREM").arg(key).arg(some)).await?;
    }
    Ok(())
}

fn joined<'i>(ids: impl Iterator<Item = &'i RecordId>) -> Vec<u8> {
    ids.flat_map(|id| id.0).collect()
}

fn parted(members: &[Vec<u8>]) -> Vec<RecordId> {
    members.iter().flat_map(|member| member.as_chunks::<32>().0).map(|id| RecordId(*id)).collect()
}

fn list<T: FromRedisValue>(value: redis::Value) -> Result<T, Error> {
    redis::from_redis_value(value).map_err(|error| Error::unavailable("no list came").because(error))
}

fn number(value: redis::Value) -> Result<u64, Error> {
    redis::from_redis_value(value).map_err(|error| Error::unavailable("no count came").because(error))
}

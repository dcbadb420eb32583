//! A few connections, each made when it is needed and made anew when it is of no use.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_postgres::Client;

use super::connect::Connect;
use super::failure::{self, Next};
use super::statements::Statements;
use crate::store::Error;

/// Whoever waits longer than this and goes away leaves word that the connection may hang.
pub(super) const HANGING: Duration = Duration::from_secs(1);

/// After a connection failed, so long nobody tries again, and all are told why.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Lanes {
    connect: Arc<Connect>,
    lanes: Box<[Lane]>,
    /// Whether they carry keys, and so what is prepared for them.
    carry_keys: bool,
}

/// One connection, made when it is needed.
#[derive(Debug, Default)]
struct Lane {
    line: parking_lot::Mutex<Option<Arc<Line>>>,
    /// Held by whoever makes the connection; with when that failed, and why.
    making: Mutex<Option<(Instant, String)>>,
}

/// A connection that stands.
pub(super) struct Line {
    pub(super) client: Client,
    pub(super) statements: Statements,
    timeline: u64,
    hangs: AtomicBool,
    connect: Arc<Connect>,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").field("timeline", &self.timeline).finish_non_exhaustive()
    }
}

impl Lanes {
    pub(super) fn new(connect: Arc<Connect>, count: usize) -> Self {
        Self { connect, lanes: (0..count).map(|_| Lane::default()).collect(), carry_keys: true }
    }

    /// One, for what takes its time. Nothing is prepared there: that would wait where the table is locked.
    pub(super) fn slow(connect: Arc<Connect>) -> Self {
        Self { carry_keys: false, ..Self::new(connect, 1) }
    }

    pub(super) fn count(&self) -> usize {
        self.lanes.len()
    }

    /// The connection at this place, which is made if it does not stand.
    pub(super) async fn line(&self, place: usize) -> Result<Arc<Line>, Error> {
        let lane = &self.lanes[place];
        if let Some(line) = self.standing(lane) {
            return Ok(line);
        }
        let mut making = lane.making.lock().await;
        match self.standing(lane) {
            Some(line) => Ok(line),
            None => self.make(lane, &mut making).await,
        }
    }

    fn standing(&self, lane: &Lane) -> Option<Arc<Line>> {
        let mut line = lane.line.lock();
        let is_of_use = |line: &Arc<Line>| {
            !line.client.is_closed() && !line.hangs.load(Ordering::Relaxed) && !self.connect.is_behind(line.timeline)
        };
        if line.as_ref().is_some_and(|line| !is_of_use(line)) {
            *line = None;
        }
        line.clone()
    }

    async fn make(
        &self,
        lane: &Lane,
        failed: &mut MutexGuard<'_, Option<(Instant, String)>>,
    ) -> Result<Arc<Line>, Error> {
        if let Some((at, why)) = failed.as_ref().filter(|(at, _)| at.elapsed() < PAUSE) {
            let _ = at;
            return Err(Error::unavailable(why.clone()));
        }
        let made = async {
            let connected = self.connect.connect().await?;
            let statements = self.connect.prepare(&connected, self.carry_keys).await?;
            let (client, timeline) = (connected.client, connected.timeline);
            let connect = Arc::clone(&self.connect);
            Ok(Arc::new(Line { client, statements, timeline, hangs: AtomicBool::new(false), connect }))
        };
        let made = made.await;
        match &made {
            Ok(line) => {
                **failed = None;
                *lane.line.lock() = Some(Arc::clone(line));
            }
            Err(error) => **failed = Some((Instant::now(), crate::store::chain(error))),
        }
        // Nothing was sent yet, and another host may take it the next time: a caller may count on neither.
        made
    }
}

impl Line {
    /// No more statements go this way.
    pub(super) fn give_up(&self) {
        self.hangs.store(true, Ordering::Relaxed);
    }

    /// What became of a statement: what it told, or what to do and why.
    pub(super) fn judged<T>(&self, ran: Result<T, tokio_postgres::Error>) -> Result<T, (Next, Error)> {
        ran.map_err(|error| (self.next(&error), failure::error("PostgreSQL failed", error)))
    }

    /// What to do about a failed statement.
    pub(super) fn next(&self, error: &tokio_postgres::Error) -> Next {
        let next = self.connect.next(error);
        if next == Next::Reconnect {
            self.give_up();
        }
        next
    }

    /// Notes how long whoever asks is ready to wait.
    pub(super) fn watch(&self) -> Watch<'_> {
        Watch { line: self, since: Instant::now(), answered: false }
    }
}

/// Dropped without an answer after a while, it says that the connection may hang: the next ones take a new one.
pub(super) struct Watch<'l> {
    line: &'l Line,
    since: Instant,
    answered: bool,
}

impl Watch<'_> {
    pub(super) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if !self.answered && self.since.elapsed() > HANGING {
            self.line.give_up();
        }
    }
}

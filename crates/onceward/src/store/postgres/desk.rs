//! Where a question about a key is asked, and by which connection it is taken: what waits at the same time goes together.
//!
//! Nothing waits for more to come: a connection that is free takes all that waits, so alone a question costs what it did, and
//! under load the next ones gather while the last ones are written.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tokio_postgres::Row;

use super::ask::{Ask, Group, Question, Told};
use super::failure::{self, Next};
use super::lanes::{HANGING, Lanes, Line};
use super::many;
use super::queue::Queue;
use crate::secret::RecordId;
use crate::store::Error;

/// So many connections work as long as none is slow: the fewer, the more goes together.
const FEW: usize = 2;

/// Whoever is not answered by then is slow: another connection takes what waits.
const SLOW: Duration = Duration::from_millis(20);

/// How often it is looked whether somebody still waits for an answer that does not come.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) struct Desk {
    lanes: Lanes,
    queue: Mutex<Queue>,
}

impl Desk {
    pub(super) fn new(lanes: Lanes) -> Arc<Self> {
        let few = std::env::var("PG_FEW").ok().and_then(|v| v.parse().ok()).unwrap_or(FEW);
        let queue = Queue::new(lanes.count(), few);
        Arc::new(Self { lanes, queue: Mutex::new(queue) })
    }

    /// Asks once.
    pub(super) async fn ask(self: &Arc<Self>, id: &RecordId, question: Question, is_alone: bool) -> Told {
        let (ask, told) = Ask::new(*id, question, is_alone);
        self.queue.lock().put(ask);
        self.hire();
        told.await.unwrap_or_else(|_| Err((Next::Reconnect, Error::unavailable("whoever asked PostgreSQL was ended"))))
    }

    /// Lets one more connection work, if that is of use.
    fn hire(self: &Arc<Self>) {
        let hired = self.queue.lock().hire();
        if let Some(post) = hired {
            tokio::spawn(Worker { desk: Arc::clone(self), post, quick: true, stands: false, is_here: true }.work());
        }
    }
}

/// Whoever works at a connection, as long as something waits.
struct Worker {
    desk: Arc<Desk>,
    post: usize,
    quick: bool,
    stands: bool,
    /// Another may have the place: what was sent is not answered, and this one waits for it alone.
    is_here: bool,
}

impl Worker {
    async fn work(mut self) {
        let desk = Arc::clone(&self.desk);
        while self.is_here && self.goes_on() {
            let nothing = Running::none(&desk);
            let line = self.awaited(None, &nothing, desk.lanes.line(self.post)).await;
            match line {
                Some(Ok(line)) => {
                    self.is(self.quick, true);
                    let asks = desk.queue.lock().take();
                    let running = Running { desk: &desk, asks, is_left: AtomicBool::new(false) };
                    self.run(&line, running).await;
                }
                Some(Err(error)) => self.is_refused(&error),
                None => {}
            }
        }
    }

    async fn run(&mut self, line: &Line, mut running: Running<'_>) {
        let alone = running.asks.len() < 2 || running.asks[0].question.group() == Group::Others;
        if alone {
            let each = join_all(running.asks.iter().map(async |ask| {
                let ran = many::send_one(&line.statements, &line.client, ask).await;
                running.answer(ask, line.judged(ran));
            }));
            self.awaited(Some(line), &running, each).await;
            return;
        }
        running.asks.sort_unstable_by_key(|ask| ask.id.0);
        let ran = {
            let sent = many::send_many(&line.statements, &line.client, &running.asks);
            self.awaited(Some(line), &running, sent).await
        };
        match ran {
            // Nobody waits for it any more.
            None => {}
            Some(Ok(rows)) => running.deal(rows),
            Some(Err(error)) => running.failed(line, error),
        }
    }

    /// Waits for what a connection does, lets others work meanwhile where it takes its time, and leaves it where it seems to
    /// hang; nothing where nobody waits for it any more.
    async fn awaited<T>(
        &mut self,
        line: Option<&Line>,
        running: &Running<'_>,
        doing: impl Future<Output = T>,
    ) -> Option<T> {
        let mut doing = pin!(doing);
        if let Ok(done) = timeout(SLOW, &mut doing).await {
            return Some(done);
        }
        let since = Instant::now();
        self.is(false, self.stands);
        loop {
            if let Ok(done) = timeout(LOOK_AGAIN, &mut doing).await {
                self.is(true, self.stands);
                return Some(done);
            }
            let Some(line) = line else { continue };
            if self.is_here && since.elapsed() > HANGING && running.asks.iter().any(Ask::is_given_up) {
                line.give_up();
                running.leave();
                self.leave(true);
            }
            if !self.is_here && running.asks.iter().all(|ask| ask.is_given_up() || ask.is_answered()) {
                return None;
            }
        }
    }

    fn goes_on(&mut self) -> bool {
        let mut queue = self.desk.queue.lock();
        if !queue.is_waited_for() {
            queue.leaves(self.post, self.stands);
            self.is_here = false;
        }
        self.is_here
    }

    fn is(&mut self, quick: bool, stands: bool) {
        if self.is_here && (quick, stands) != (self.quick, self.stands) {
            (self.quick, self.stands) = (quick, stands);
            self.desk.queue.lock().goes(self.post, quick, stands);
            if !quick {
                self.desk.hire();
            }
        }
    }

    /// There is no connection. Those that there are take what waits; where there are none, all hear why.
    fn is_refused(&mut self, error: &Error) {
        self.leave(false);
        let failed = {
            let mut queue = self.desk.queue.lock();
            if queue.is_served() { Vec::new() } else { queue.take_all() }
        };
        let why = crate::store::chain(error);
        for ask in failed {
            // Nothing was sent, this time: whoever claims need not take back what cannot be there.
            ask.answer(Err((Next::Reconnect, Error::refused("no connection to PostgreSQL").because(why.clone()))));
        }
    }

    fn leave(&mut self, stood: bool) {
        if std::mem::take(&mut self.is_here) {
            self.desk.queue.lock().leaves(self.post, stood);
            if stood {
                self.desk.hire();
            }
        }
    }
}

/// Whoever stops in the middle, with its runtime, leaves its place to another.
impl Drop for Worker {
    fn drop(&mut self) {
        if self.is_here {
            self.desk.queue.lock().leaves(self.post, self.stands);
        }
    }
}

/// What a connection carries.
struct Running<'d> {
    desk: &'d Arc<Desk>,
    asks: Vec<Ask>,
    /// Their keys are free again, though they were not answered.
    is_left: AtomicBool,
}

impl<'d> Running<'d> {
    fn none(desk: &'d Arc<Desk>) -> Self {
        Self { desk, asks: Vec::new(), is_left: AtomicBool::new(false) }
    }

    /// Answers one; the next one about its key may run.
    fn answer(&self, ask: &Ask, told: Told) {
        if !self.is_left.load(Ordering::Relaxed) {
            self.desk.queue.lock().finish(&ask.id);
        }
        ask.answer(told);
    }

    /// Each hears what its row tells. An end that met something else hears what that is when it asks by itself.
    fn deal(mut self, rows: Vec<Row>) {
        let rows = many::dealt(&self.asks, rows);
        let (mut told, mut again) = (Vec::new(), Vec::new());
        for (ask, row) in std::mem::take(&mut self.asks).into_iter().zip(rows) {
            match row {
                None if ask.question.group() == Group::Completions => again.push(ask),
                row => told.push((ask, Ok(row))),
            }
        }
        self.end(told, again);
    }

    /// What was surely not applied is done again one by one, so that no row fails its neighbours.
    fn failed(mut self, line: &Line, error: tokio_postgres::Error) {
        let next = line.next(&error);
        let asks = std::mem::take(&mut self.asks);
        if next != Next::Reconnect {
            return self.end(Vec::new(), asks);
        }
        let error = Arc::new(error);
        let told = |ask| (ask, Err((next, failure::shared("PostgreSQL failed", &error))));
        self.end(asks.into_iter().map(told).collect(), Vec::new());
    }

    fn end(&self, told: Vec<(Ask, Told)>, mut again: Vec<Ask>) {
        again.iter_mut().for_each(|ask| ask.is_alone = true);
        if self.is_left.load(Ordering::Relaxed) {
            // Others may have asked about these keys since: it is whoever asks that begins anew.
            for ask in again {
                ask.answer(Err((Next::Again, Error::refused("PostgreSQL took too long"))));
            }
        } else {
            let mut queue = self.desk.queue.lock();
            told.iter().for_each(|(ask, _)| queue.finish(&ask.id));
            queue.put_back(again);
        }
        for (ask, told) in told {
            ask.answer(told);
        }
    }

    /// Whatever else is asked about these keys need not wait for this.
    fn leave(&self) {
        if !self.is_left.swap(true, Ordering::Relaxed) {
            let mut queue = self.desk.queue.lock();
            self.asks.iter().filter(|ask| !ask.is_answered()).for_each(|ask| queue.finish(&ask.id));
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

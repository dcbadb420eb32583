//! Whoever works at one connection, as long as something waits.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use super::desk::Desk;
use super::failure::Next;
use super::lanes::{HANGING, Line};
use super::many;
use super::running::Running;
use crate::store::Error;

/// What is not done by then is slow: another connection takes what waits.
const SLOW: Duration = Duration::from_millis(20);

/// How often it is looked whether somebody still waits for an answer that does not come, and what waits for too long.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// So often it is looked at least in the time that a question may wait: whoever asked waits for little more than that.
const LOOKS: u32 = 20;

pub(super) struct Worker {
    desk: Arc<Desk>,
    /// Which connection of the desk's.
    place: usize,
    /// Others have its place now: the connection seems to hang, and is waited for on behalf of whoever was sent over it alone.
    has_left: bool,
    is_quick: bool,
    stands: bool,
}

impl Worker {
    pub(super) fn new(desk: Arc<Desk>, place: usize) -> Self {
        Self { desk, place, has_left: false, is_quick: true, stands: false }
    }

    pub(super) async fn work(mut self) {
        let desk = Arc::clone(&self.desk);
        while self.goes_on() {
            match self.line().await {
                Ok(line) => {
                    let asks = desk.queue().take();
                    self.send(&line, Running::new(&desk, asks)).await;
                }
                Err(error) => self.is_refused(&error),
            }
        }
    }

    /// The connection. It is made before anything is taken: others may be sooner.
    async fn line(&mut self) -> Result<Arc<Line>, Error> {
        let desk = Arc::clone(&self.desk);
        let mut line = pin!(desk.lanes.line(self.place));
        let mut pause = SLOW;
        let line = loop {
            if let Ok(line) = timeout(pause, &mut line).await {
                break line;
            }
            self.is(false, self.stands);
            desk.refuse_what_is_late();
            pause = self.look_again();
        };
        self.is(true, line.is_ok());
        line
    }

    async fn send(&mut self, line: &Line, mut running: Running<'_>) {
        if !running.is_one_statement() {
            let each = join_all(running.asks().iter().map(async |ask| {
                let ran = many::send_one(&line.statements, &line.client, ask).await;
                running.answer(ask, line.judged(ran));
            }));
            self.awaited(line, &running, each).await;
            return;
        }
        running.sort();
        let sent = many::send_many(&line.statements, &line.client, running.asks());
        match self.awaited(line, &running, sent).await {
            // Nobody waits for it any more.
            None => {}
            Some(Ok(rows)) => running.deal(rows),
            Some(Err(error)) => running.failed(line.next(&error), error),
        }
    }

    /// Waits for what was sent, and lets others work meanwhile where it takes its time. A connection that seems to hang is
    /// left, for a new one; what was sent over it may be answered all the same. Nothing where nobody waits for that any more.
    async fn awaited<T>(&mut self, line: &Line, running: &Running<'_>, sent: impl Future<Output = T>) -> Option<T> {
        let mut sent = pin!(sent);
        if let Ok(done) = timeout(SLOW, &mut sent).await {
            return Some(done);
        }
        self.is(false, true);
        let since = Instant::now();
        loop {
            if let Ok(done) = timeout(self.look_again(), &mut sent).await {
                self.is(true, true);
                return Some(done);
            }
            self.desk.refuse_what_is_late();
            if since.elapsed() > HANGING && running.is_given_up_by_one() {
                line.give_up();
                running.leave();
                self.leave(true);
            }
            if self.has_left && running.is_given_up_by_all() {
                return None;
            }
        }
    }

    fn look_again(&self) -> Duration {
        LOOK_AGAIN.min(self.desk.patience / LOOKS)
    }

    fn goes_on(&mut self) -> bool {
        let mut queue = self.desk.queue();
        if !self.has_left && !queue.is_waited_for() {
            queue.leaves(self.place, self.stands);
            self.has_left = true;
        }
        !self.has_left
    }

    fn is(&mut self, is_quick: bool, stands: bool) {
        if self.has_left || (is_quick, stands) == (self.is_quick, self.stands) {
            return;
        }
        (self.is_quick, self.stands) = (is_quick, stands);
        self.desk.queue().goes(self.place, is_quick, stands);
        if !is_quick {
            self.desk.hire();
        }
    }

    /// There is no connection. Those that there are take what waits; where there are none, all hear why.
    fn is_refused(&mut self, error: &Error) {
        self.leave(false);
        let refused = {
            let mut queue = self.desk.queue();
            if queue.is_served() { Vec::new() } else { queue.take_all() }
        };
        let why = crate::store::chain(error);
        for ask in refused {
            // Nothing was sent, this time: whoever claims need not take back what cannot be there.
            let error = Error::refused("no connection to PostgreSQL").because(why.clone());
            ask.answer(Err((Next::Reconnect, error)));
        }
    }

    fn leave(&mut self, stood: bool) {
        if !std::mem::replace(&mut self.has_left, true) {
            self.desk.queue().leaves(self.place, stood);
            if stood {
                self.desk.hire();
            }
        }
    }
}

/// One that is ended in the middle, with its runtime, leaves its place too.
impl Drop for Worker {
    fn drop(&mut self) {
        if !self.has_left {
            self.desk.queue().leaves(self.place, self.stands);
        }
    }
}

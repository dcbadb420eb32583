//! What one connection carries at the moment.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio_postgres::Row;

use super::ask::{Ask, Group, Told};
use super::desk::Desk;
use super::failure::{self, Next};
use super::many;
use crate::store::Error;

/// Questions that were sent together. Until they are answered, whatever else is asked about their keys waits.
pub(super) struct Running<'d> {
    desk: &'d Desk,
    asks: Vec<Ask>,
    /// Nothing waits for them any more, though they were not answered.
    is_left: AtomicBool,
}

impl<'d> Running<'d> {
    pub(super) fn new(desk: &'d Desk, asks: Vec<Ask>) -> Self {
        Self { desk, asks, is_left: AtomicBool::new(false) }
    }

    pub(super) fn asks(&self) -> &[Ask] {
        &self.asks
    }

    /// Whether they are many rows of one statement.
    pub(super) fn is_one_statement(&self) -> bool {
        self.asks.len() > 1 && self.asks[0].question.group() != Group::Looks
    }

    /// In the order of their ids: so are their locks, and two statements of many rows do not wait for each other.
    pub(super) fn sort(&mut self) {
        self.asks.sort_unstable_by_key(|ask| ask.id.0);
    }

    pub(super) fn is_given_up_by_one(&self) -> bool {
        self.asks.iter().any(Ask::is_given_up)
    }

    pub(super) fn is_given_up_by_all(&self) -> bool {
        self.asks.iter().all(|ask| ask.is_given_up() || ask.is_answered())
    }

    /// Answers one.
    pub(super) fn answer(&self, ask: &Ask, told: Told) {
        if !self.is_left.load(Ordering::Relaxed) {
            self.desk.queue().finish(&ask.id);
        }
        ask.answer(told);
    }

    /// Each hears what its row tells. What was to be written over and met something else hears what that is when it is sent by
    /// itself.
    pub(super) fn deal(mut self, rows: Vec<Row>) {
        let rows = many::dealt(&self.asks, rows);
        let (mut told, mut again) = (Vec::new(), Vec::new());
        for (ask, row) in std::mem::take(&mut self.asks).into_iter().zip(rows) {
            match row {
                None if ask.question.writes_over() => again.push(ask),
                row => told.push((ask, Ok(row))),
            }
        }
        self.end(told, again);
    }

    /// What was surely not applied is sent again one by one, so that no row fails its neighbours.
    pub(super) fn failed(mut self, next: Next, error: tokio_postgres::Error) {
        let asks = std::mem::take(&mut self.asks);
        if next != Next::Reconnect {
            return self.end(Vec::new(), asks);
        }
        let error = failure::error("PostgreSQL failed", error);
        let told = |ask| (ask, Err((next, error.clone())));
        self.end(asks.into_iter().map(told).collect(), Vec::new());
    }

    fn end(&self, told: Vec<(Ask, Told)>, mut again: Vec<Ask>) {
        if self.is_left.load(Ordering::Relaxed) {
            // Others may have asked about these keys since: whoever asks begins anew.
            for ask in again {
                ask.answer(Err((Next::Again, Error::refused("PostgreSQL took too long"))));
            }
        } else {
            again.iter_mut().for_each(|ask| ask.is_alone = true);
            let mut queue = self.desk.queue();
            told.iter().for_each(|(ask, _)| queue.finish(&ask.id));
            queue.put_back(again);
        }
        for (ask, told) in told {
            ask.answer(told);
        }
    }

    /// Whatever else is asked about these keys need not wait for this.
    pub(super) fn leave(&self) {
        if !self.is_left.swap(true, Ordering::Relaxed) {
            let mut queue = self.desk.queue();
            self.asks.iter().filter(|ask| !ask.is_answered()).for_each(|ask| queue.finish(&ask.id));
        }
    }
}

/// One that is ended in the middle holds up nobody.
impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

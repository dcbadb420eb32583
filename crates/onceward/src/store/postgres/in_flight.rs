//! Batch in flight on one connection.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio_postgres::Row;

use super::batch::Batcher;
use super::batch_sql;
use super::failure::{self, Reaction};
use super::job::{Group, Job, JobResult};
use crate::store::Error;

/// Jobs that were sent together. Until they end, further jobs for their keys are chained.
pub(super) struct InFlightBatch<'d> {
    batcher: &'d Batcher,
    jobs: Vec<Job>,
    /// True if chained jobs no longer wait for these, although they have no result.
    keys_unblocked: AtomicBool,
}

impl<'d> InFlightBatch<'d> {
    pub(super) fn new(batcher: &'d Batcher, jobs: Vec<Job>) -> Self {
        Self { batcher, jobs, keys_unblocked: AtomicBool::new(false) }
    }

    pub(super) fn jobs(&self) -> &[Job] {
        &self.jobs
    }

    /// Returns true if they are rows of one statement.
    pub(super) fn is_one_statement(&self) -> bool {
        self.jobs.len() > 1 && self.jobs[0].operation.group() != Group::Reads
    }

    /// Sorts by id. Locks are then taken in that order, so two batches cannot deadlock.
    pub(super) fn sort(&mut self) {
        self.jobs.sort_unstable_by_key(|job| job.id.0);
    }

    pub(super) fn any_cancelled(&self) -> bool {
        self.jobs.iter().any(Job::is_cancelled)
    }

    pub(super) fn all_cancelled(&self) -> bool {
        self.jobs.iter().all(|job| job.is_cancelled() || job.is_done())
    }

    /// Sends the result of one job.
    pub(super) fn respond(&self, job: &Job, result: JobResult) {
        if !self.keys_unblocked.load(Ordering::Relaxed) {
            self.batcher.queue().finish(&job.id);
        }
        job.respond(result);
    }

    /// Sends each caller its row.
    ///
    /// An update that returned no row had a version conflict.
    /// It is queued again alone, so that its own statement returns the current record.
    pub(super) fn dispatch_results(mut self, rows: Vec<Row>) {
        let rows = batch_sql::match_rows(&self.jobs, rows);
        let (mut results, mut again) = (Vec::new(), Vec::new());
        for (job, row) in std::mem::take(&mut self.jobs).into_iter().zip(rows) {
            match row {
                None if job.operation.modifies() => again.push(job),
                row => results.push((job, Ok(row))),
            }
        }
        self.end(results, again);
    }

    /// Handles a failed statement. Jobs that were certainly not applied are retried alone, so none
    /// fails its neighbours.
    pub(super) fn failed(mut self, next: Reaction, error: tokio_postgres::Error) {
        let jobs = std::mem::take(&mut self.jobs);
        if next != Reaction::Reconnect {
            return self.end(Vec::new(), jobs);
        }
        let error = failure::error("PostgreSQL failed", error);
        let result = |job| (job, Err((next, error.clone())));
        self.end(jobs.into_iter().map(result).collect(), Vec::new());
    }

    fn end(&self, results: Vec<(Job, JobResult)>, mut again: Vec<Job>) {
        if self.keys_unblocked.load(Ordering::Relaxed) {
            // Other jobs for these keys may have run meanwhile, so the callers start over.
            for job in again {
                job.respond(Err((Reaction::Retry, Error::refused("PostgreSQL did not respond before the timeout"))));
            }
        } else {
            again.iter_mut().for_each(|job| job.unbatched = true);
            let mut queue = self.batcher.queue();
            results.iter().for_each(|(job, _)| queue.finish(&job.id));
            queue.put_back(again);
        }
        for (job, result) in results {
            job.respond(result);
        }
    }

    /// Lets jobs for these keys run without waiting for this batch.
    pub(super) fn unblock_keys(&self) {
        if !self.keys_unblocked.swap(true, Ordering::Relaxed) {
            let mut queue = self.batcher.queue();
            self.jobs.iter().filter(|job| !job.is_done()).for_each(|job| queue.finish(&job.id));
        }
    }
}

/// Unblocks the keys also if the task is cancelled.
impl Drop for InFlightBatch<'_> {
    fn drop(&mut self) {
        self.unblock_keys();
    }
}

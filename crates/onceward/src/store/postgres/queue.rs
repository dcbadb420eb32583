//! Queue of jobs, and the state of the connections. No I/O.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

use super::job::{Group, Job};
use crate::secret::RecordId;

/// Number of workers while none is slow: the fewer, the larger the batches.
///
/// Two, so that one is written to while the other's rows are synced.
const TARGET_WORKERS: usize = 2;

/// Upper bound on rows per statement.
const ROWS_MAX: usize = 64;

/// Upper bound on pipelined single-row statements.
const STATEMENTS_MAX: usize = 16;

/// Upper bound on bytes of records per batch, not counting the first.
const BYTES_MAX: usize = 256 << 10;

/// Upper bound on queued jobs that are examined for a batch.
const SCAN_MAX: usize = 4 * ROWS_MAX;

/// Queue of jobs in their order, and the state of the connections.
///
/// At most one operation per key is queued or running; further ones are chained behind it.
/// Updates and deletes go before inserts and reads, so that a burst of duplicates cannot delay the
/// claim holder.
/// Each of the two groups keeps its order, whichever connection carries it.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: VecDeque<Job>,
    keys: HashMap<RecordId, VecDeque<Job>>,
    connections: Box<[ConnState]>,
}

/// State of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnState {
    /// No worker uses it; `connected` tells whether it was open when the last one did.
    Idle { connected: bool },
    /// A worker uses it.
    Busy { slow: bool, connected: bool },
}

impl Queue {
    pub(super) fn new(connections: usize) -> Self {
        let connections = vec![ConnState::Idle { connected: false }; connections].into();
        Self { waiting: VecDeque::new(), keys: HashMap::new(), connections }
    }

    /// Queues a job, or chains it behind the others of its key.
    pub(super) fn put(&mut self, job: Job) {
        match self.keys.entry(job.id) {
            Entry::Occupied(mut before) => {
                let before = before.get_mut();
                let slot = match job.operation.modifies() {
                    true => before.partition_point(|before| before.operation.modifies()),
                    false => before.len(),
                };
                before.insert(slot, job);
            }
            Entry::Vacant(key) => {
                key.insert(VecDeque::new());
                self.waiting.push_back(job);
            }
        }
    }

    /// Puts jobs that ran and were not applied back to the front.
    pub(super) fn put_back(&mut self, jobs: Vec<Job>) {
        jobs.into_iter().rev().for_each(|job| self.waiting.push_front(job));
    }

    /// Ends a job: the next one of its key may run.
    pub(super) fn finish(&mut self, id: &RecordId) {
        if let Entry::Occupied(mut behind) = self.keys.entry(*id) {
            match behind.get_mut().pop_front() {
                Some(next) => self.waiting.push_back(next),
                None => drop(behind.remove()),
            }
        }
    }

    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes the first job and all that can be batched with it. Jobs whose caller was dropped are
    /// skipped.
    pub(super) fn take(&mut self) -> Vec<Job> {
        let (mut taken, mut left) = (Vec::new(), VecDeque::new());
        let mut bytes = 0;
        let mut most = ROWS_MAX;
        while taken.len() < most && left.len() < SCAN_MAX {
            let Some(job) = self.waiting.pop_front() else { break };
            if job.is_cancelled() {
                self.finish(&job.id);
                continue;
            }
            let fits = taken
                .first()
                .is_none_or(|first: &Job| first.can_batch_with(&job) && bytes + job.operation.bytes() <= BYTES_MAX);
            if fits {
                if job.operation.group() == Group::Reads {
                    most = STATEMENTS_MAX;
                }
                bytes += job.operation.bytes();
                taken.push(job);
            } else {
                left.push_back(job);
            }
        }
        left.into_iter().rev().for_each(|job| self.waiting.push_front(job));
        taken
    }

    /// Takes the jobs whose deadline has passed.
    pub(super) fn take_overdue(&mut self, now: Instant) -> Vec<Job> {
        let is_overdue = |job: &Job| job.until <= now;
        let mut overdue = Vec::new();
        for behind in self.keys.values_mut().filter(|behind| behind.iter().any(is_overdue)) {
            let (gone, left): (VecDeque<_>, VecDeque<_>) = behind.drain(..).partition(is_overdue);
            *behind = left;
            overdue.extend(gone);
        }
        if self.waiting.iter().any(is_overdue) {
            for job in std::mem::take(&mut self.waiting) {
                match is_overdue(&job) {
                    true => {
                        self.finish(&job.id);
                        overdue.push(job);
                    }
                    false => self.waiting.push_back(job),
                }
            }
        }
        overdue
    }

    /// Takes all queued jobs.
    pub(super) fn take_all(&mut self) -> Vec<Job> {
        let mut all = Vec::new();
        while let Some(job) = self.waiting.pop_front() {
            self.finish(&job.id);
            all.push(job);
        }
        all
    }

    /// Returns the slot for another worker if one is needed; connected slots come first.
    pub(super) fn next_slot(&mut self) -> Option<usize> {
        let quick = self.connections.iter().filter(|slot| matches!(slot, ConnState::Busy { slow: false, .. })).count();
        if self.waiting.is_empty() || (quick >= TARGET_WORKERS && self.waiting.len() < quick * ROWS_MAX) {
            return None;
        }
        let free = |connected| self.connections.iter().position(|slot| *slot == ConnState::Idle { connected });
        let slot = free(true).or_else(|| free(false))?;
        self.connections[slot] = ConnState::Busy { slow: false, connected: false };
        Some(slot)
    }

    /// Sets the state of a connection that a worker uses.
    pub(super) fn set_state(&mut self, slot: usize, slow: bool, connected: bool) {
        self.connections[slot] = ConnState::Busy { slow, connected };
    }

    /// Releases the slot of a worker.
    pub(super) fn release(&mut self, slot: usize, connected: bool) {
        self.connections[slot] = ConnState::Idle { connected };
    }

    /// Returns true if a connected worker will take the queued jobs.
    pub(super) fn has_connected_worker(&self) -> bool {
        self.connections.iter().any(|slot| matches!(slot, ConnState::Busy { connected: true, .. }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::sync::oneshot;

    use super::super::job::{ExpectedVersion, JobResult, Operation, Write};
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Number of a key, operation, and whether it is sent alone.
    type Asked = (u8, Operation, bool);

    fn write(bytes: usize) -> Write {
        Write { attempt: [0; 16], stage: 1, record: Bytes::from(vec![0; bytes]), due: None }
    }

    fn queue(asked: Vec<Asked>) -> (Queue, Vec<oneshot::Receiver<JobResult>>) {
        let mut queue = Queue::new(3);
        let waiting = asked.into_iter().map(|(key, operation, unbatched)| {
            let (job, told) = Job::new(RecordId([key; 32]), operation, unbatched, Instant::now() + HOUR);
            queue.put(job);
            told
        });
        let waiting = waiting.collect();
        (queue, waiting)
    }

    /// Takes batches until the queue is empty, finishing each before the next.
    fn taken(mut queue: Queue) -> Vec<Vec<u8>> {
        let mut taken = Vec::new();
        while queue.has_waiting() {
            let jobs = queue.take();
            jobs.iter().for_each(|job| queue.finish(&job.id));
            taken.push(jobs.iter().map(|job| job.id.0[0]).collect());
        }
        assert!(queue.keys.is_empty());
        taken
    }

    #[test]
    fn similar_jobs_are_batched_and_keys_keep_their_order() {
        let (insert, end, get) = (Operation::Insert(write(9)), Operation::Complete(write(9)), Operation::Get);
        let large = Operation::Insert(write(BYTES_MAX));
        for (rule, asked, want) in [
            ("alike", vec![(1, insert.clone(), false), (2, insert.clone(), false)], vec![vec![1, 2]]),
            (
                "of two kinds, the first first",
                vec![(1, insert.clone(), false), (2, end.clone(), false), (3, insert.clone(), false)],
                vec![vec![1, 3], vec![2]],
            ),
            ("by itself", vec![(1, insert.clone(), false), (2, insert.clone(), true)], vec![vec![1], vec![2]]),
            (
                "a key once",
                vec![
                    (1, insert.clone(), false),
                    (1, insert.clone(), false),
                    (1, end, false),
                    (2, insert.clone(), false),
                ],
                vec![vec![1, 2], vec![1], vec![1]],
            ),
            ("no more bytes", vec![(1, insert.clone(), false), (2, large.clone(), false)], vec![vec![1], vec![2]]),
            ("one that is large", vec![(1, large, false), (2, insert, false)], vec![vec![1], vec![2]]),
            ("reads", vec![(1, get.clone(), false), (2, get, false)], vec![vec![1, 2]]),
        ] {
            let (queue, _waiting) = queue(asked);
            assert_eq!(taken(queue), want, "{rule}");
        }
    }

    #[test]
    fn updates_of_a_key_go_before_its_claims_and_reads() {
        let (mut queue, _waiting) = queue((0..100).map(|_| (1, Operation::Insert(write(9)), false)).collect());
        let over = ExpectedVersion { attempt: [0; 16], stage: 1 };
        let mut told = Vec::new();
        for operation in
            [Operation::Get, Operation::Replace(over, write(9)), Operation::Complete(write(9)), Operation::Remove(over)]
        {
            let (job, its) = Job::new(RecordId([1; 32]), operation, false, Instant::now() + HOUR);
            queue.put(job);
            told.push(its);
        }
        let mut order = String::new();
        while queue.has_waiting() {
            for job in queue.take() {
                order.push(match job.operation {
                    Operation::Insert(_) => 'i',
                    Operation::Get => 'g',
                    Operation::Replace(..) => 'r',
                    Operation::Complete(_) => 'c',
                    Operation::Remove(_) => 'x',
                });
                queue.finish(&job.id);
            }
        }
        // The first insert is already running.
        assert_eq!(order, format!("ircx{}g", "i".repeat(99)));
    }

    #[test]
    fn statement_size_is_bounded() {
        let all = (0..200).map(|key| (key, Operation::Insert(write(9)), false)).collect();
        let (queue, _waiting) = queue(all);
        assert_eq!(taken(queue).iter().map(Vec::len).collect::<Vec<_>>(), [64, 64, 64, 8]);
    }

    #[test]
    fn cancelled_job_is_skipped_and_delays_nothing() {
        let insert = Operation::Insert(write(9));
        let (mut queue, waiting) = queue(vec![(1, insert.clone(), false), (2, insert.clone(), false)]);
        drop(waiting);
        let (job, _told) = Job::new(RecordId([1; 32]), insert, false, Instant::now() + HOUR);
        queue.put(job);
        assert_eq!(taken(queue), [[1]]);
    }

    #[test]
    fn overdue_job_is_removed_wherever_it_waits() {
        let now = Instant::now();
        let mut queue = Queue::new(3);
        let mut waiting = Vec::new();
        for (key, timeout) in [(1, 9), (1, 1), (1, 9), (2, 1), (2, 9), (3, 1), (4, 9)] {
            let (job, told) = Job::new(RecordId([key; 32]), Operation::Get, false, now + HOUR * timeout);
            queue.put(job);
            waiting.push(told);
        }
        assert!(queue.take_overdue(now).is_empty());
        let overdue = queue.take_overdue(now + HOUR * 5);
        let mut overdue: Vec<_> = overdue.iter().map(|job| job.id.0[0]).collect();
        overdue.sort_unstable();
        assert_eq!(overdue, [1, 2, 3]);
        // A job that was chained behind an overdue one still runs.
        assert_eq!(taken(queue), [vec![1, 2, 4], vec![1]]);
    }

    #[test]
    fn more_workers_run_only_while_one_is_slow() {
        let (mut queue, _waiting) = queue(vec![(1, Operation::Get, false)]);
        assert_eq!([queue.next_slot(), queue.next_slot(), queue.next_slot()], [Some(0), Some(1), None]);
        queue.set_state(0, true, true);
        assert_eq!([queue.next_slot(), queue.next_slot()], [Some(2), None]);
        queue.release(1, true);
        assert_eq!(queue.next_slot(), Some(1));
        drop(queue.take());
        queue.release(1, true);
        assert_eq!(queue.next_slot(), None, "nothing waits");
    }
}

//! Batches concurrent compare-and-swap writes into one script.
//!
//! Entering a script costs a server as much as the work for one key.
//! So while a few scripts are in flight, further writes gather. A single write does not wait.
//! In a cluster each key may be on another node, so there each write is sent alone.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use redis::{Cmd, Value};
use tokio::sync::oneshot;

use super::connection::{ConnectionManager, RedisReply};
use super::scripts::Scripts;
use super::url::Kind;
use super::value::{EncodedRecord, KEY_BYTES, VERSION_BYTES, may_have_response, record_key, response_key_of};
use crate::record::Version;
use crate::secret::RecordId;
use crate::store::Error;

/// Number of scripts in flight while the queue fits into one: the fewer, the larger the batches.
///
/// Two, so that one is on the wire while the other runs.
const TARGET_IN_FLIGHT: usize = 2;

/// Upper bound on records per script.
const RECORDS_MAX: usize = 64;

/// Upper bound on bytes of records per script, not counting the first.
const BYTES_MAX: usize = 256 << 10;

/// Compare-and-swap write of one record.
pub(super) struct Put {
    key: [u8; KEY_BYTES],
    /// Expected version; `None` if no record must exist.
    over: Option<[u8; VERSION_BYTES]>,
    sent: EncodedRecord,
}

impl Put {
    pub(super) fn new(id: &RecordId, over: Option<Version>, sent: EncodedRecord) -> Self {
        Self { key: record_key(id), over: over.map(super::value::version), sent }
    }

    /// Returns true if it writes or removes an external response, or expects that there is none.
    fn affects_response(&self) -> bool {
        let over = self.over.and_then(|over| over.last().copied());
        !self.sent.response.is_empty() || over.is_some_and(may_have_response)
    }
}

/// Queued write and the channel for its result.
struct Job {
    put: Put,
    tx: oneshot::Sender<Result<Value, Error>>,
}

/// Queue of writes, and the workers that send them.
pub(super) struct Batcher {
    connections: Arc<ConnectionManager>,
    scripts: Arc<Scripts>,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Number of workers, each with one script in flight.
    active_workers: usize,
}

impl Batcher {
    pub(super) fn new(connections: Arc<ConnectionManager>, scripts: Arc<Scripts>) -> Arc<Self> {
        Arc::new(Self { connections, scripts, queue: Mutex::default() })
    }

    /// Writes, and returns the result from the script. A caller that is dropped before the write is
    /// sent cancels it.
    pub(super) async fn put(self: &Arc<Self>, put: Put) -> Result<Value, Error> {
        if self.connections.options.kind == Kind::Cluster || !put.sent.response.is_empty() {
            // Boxed, since it is rare and would enlarge the future of every write.
            return Box::pin(self.write_one(&put, false)).await;
        }
        let (tx, rx) = oneshot::channel();
        if self.queue.lock().enqueue(Job { put, tx }) {
            tokio::spawn(Worker { of: Arc::clone(self), finished: false }.work());
        }
        rx.await.unwrap_or_else(|_| Err(Error::unavailable("the task that sends writes to Redis was cancelled")))
    }

    /// Writes one record, and retries while the server is not ready. If `maybe_applied` is set, an
    /// earlier attempt may have been applied.
    async fn write_one(&self, put: &Put, maybe_applied: bool) -> Result<Value, Error> {
        let puts = std::slice::from_ref(put);
        let value = self.connections.execute_again(&self.by_hash(puts), || self.by_text(puts), maybe_applied).await?;
        Ok(each(value, 1).pop().unwrap_or(Value::Nil))
    }

    async fn write_batch(self: &Arc<Self>, jobs: Vec<Job>) {
        let (puts, txs): (Vec<_>, Vec<_>) = jobs.into_iter().map(|job| (job.put, job.tx)).unzip();
        match self.connections.execute_if_writable(&self.by_hash(&puts), || self.by_text(&puts)).await {
            Ok(RedisReply::Value(value)) => {
                for (tx, value) in txs.into_iter().zip(each(value, puts.len())) {
                    let _ = tx.send(Ok(value));
                }
            }
            // The server applied none of them, but may accept some: a delete frees memory. So each
            // is retried alone.
            Ok(RedisReply::ReadOnly { maybe_applied }) => {
                for (put, tx) in puts.into_iter().zip(txs) {
                    let batcher = Arc::clone(self);
                    tokio::spawn(async move { tx.send(batcher.write_one(&put, maybe_applied).await) });
                }
            }
            Err(error) => {
                for tx in txs {
                    let _ = tx.send(Err(error.clone()));
                }
            }
        }
    }

    fn by_hash(&self, puts: &[Put]) -> Cmd {
        command("EVALSHA", &self.scripts.put.hash, puts)
    }

    fn by_text(&self, puts: &[Put]) -> Cmd {
        command("EVAL", self.scripts.put.text, puts)
    }
}

impl Queue {
    /// Queues a write. Returns true if another worker should be spawned.
    fn enqueue(&mut self, job: Job) -> bool {
        self.jobs.push_back(job);
        let should_spawn_worker =
            self.active_workers < TARGET_IN_FLIGHT || self.jobs.len() >= self.active_workers * RECORDS_MAX;
        self.active_workers += usize::from(should_spawn_worker);
        should_spawn_worker
    }

    /// Takes the next batch. Writes whose caller has gone are skipped.
    fn take(&mut self) -> Vec<Job> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < RECORDS_MAX
            && let Some(next) = self
                .jobs
                .pop_front_if(|next| next.is_cancelled() || taken.is_empty() || bytes + next.bytes() <= BYTES_MAX)
        {
            if !next.is_cancelled() {
                bytes += next.bytes();
                taken.push(next);
            }
        }
        taken
    }
}

impl Job {
    fn is_cancelled(&self) -> bool {
        self.tx.is_closed()
    }

    fn bytes(&self) -> usize {
        self.put.sent.record.len()
    }
}

/// Task that sends batches until the queue is empty.
struct Worker {
    of: Arc<Batcher>,
    finished: bool,
}

impl Worker {
    async fn work(mut self) {
        loop {
            // Let other ready tasks queue their writes first.
            tokio::task::yield_now().await;
            let jobs = {
                let mut queue = self.of.queue.lock();
                let jobs = queue.take();
                if jobs.is_empty() {
                    queue.active_workers -= 1;
                    self.finished = true;
                    return;
                }
                jobs
            };
            self.of.write_batch(jobs).await;
        }
    }
}

/// Releases the worker's slot also if its task is cancelled.
impl Drop for Worker {
    fn drop(&mut self) {
        if !self.finished {
            self.of.queue.lock().active_workers -= 1;
        }
    }
}

/// Builds the command for a batch; see `PUT` for its arguments.
fn command(name: &str, code: &str, puts: &[Put]) -> Cmd {
    let bytes = |put: &Put| KEY_BYTES + VERSION_BYTES + put.sent.record.len() + put.sent.response.len() + 40;
    let size = name.len() + code.len() + 20 + puts.iter().map(bytes).sum::<usize>();
    let mut command = Cmd::with_capacity(6 + 4 * puts.len(), size);
    // Only a single write names it, as a cluster requires. The keys of a batch are all on one
    // server.
    let names_response = matches!(puts, [put] if put.affects_response());
    command.arg(name).arg(code).arg(puts.len() + usize::from(names_response));
    for put in puts {
        command.arg(put.key.as_slice());
    }
    if names_response {
        command.arg(response_key_of(&puts[0].key).as_slice());
    }
    for Put { over, sent, .. } in puts {
        let over = over.as_ref().map_or(&[][..], <[u8; _]>::as_slice);
        command.arg(over).arg(&sent.record).arg(sent.record_ms);
    }
    if let [Put { sent, .. }] = puts
        && !sent.response.is_empty()
    {
        command.arg(&sent.response).arg(sent.response_ms);
    }
    command
}

/// Splits a script result into one per record.
fn each(value: Value, count: usize) -> Vec<Value> {
    match value {
        Value::Int(1) => vec![Value::Int(1); count],
        Value::Array(each) if each.len() == count => each,
        // Any other result applies to each record.
        other => vec![other; count],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    type ResultReceiver = oneshot::Receiver<Result<Value, Error>>;

    fn job(bytes: usize) -> (Job, ResultReceiver) {
        let (tx, rx) = oneshot::channel();
        let sent = EncodedRecord { record: vec![0; bytes], record_ms: 1, response: Vec::new(), response_ms: 0 };
        (Job { put: Put::new(&RecordId([0; 32]), None, sent), tx }, rx)
    }

    #[tokio::test]
    async fn cancelled_worker_releases_its_slot() {
        let connections =
            ConnectionManager::new(super::super::Options::parse("redis://127.0.0.1:1").unwrap(), Arc::new(SystemClock));
        let batcher = Batcher::new(Arc::new(connections), Arc::default());
        assert!(batcher.queue.lock().enqueue(job(9).0));
        let worker = tokio::spawn(Worker { of: Arc::clone(&batcher), finished: false }.work());
        worker.abort();
        assert!(worker.await.unwrap_err().is_cancelled());
        assert_eq!(batcher.queue.lock().active_workers, 0);
    }

    #[test]
    fn workers_are_spawned_only_while_the_queue_exceeds_a_batch() {
        let mut queue = Queue::default();
        let spawned: Vec<usize> = (1..=400).filter(|_| queue.enqueue(job(9).0)).collect();
        // The third when two scripts are full, the fourth when three are, and so on.
        assert_eq!(spawned, [1, 2, 128, 192, 256, 320, 384]);
    }

    #[test]
    fn batch_is_bounded_and_skips_cancelled_writes() {
        let taken = |sizes: &[usize], left: &[usize]| {
            let mut queue = Queue::default();
            let receivers = sizes.iter().enumerate().filter_map(|(at, bytes)| {
                let (job, rx) = job(*bytes);
                queue.enqueue(job);
                (!left.contains(&at)).then_some(rx)
            });
            let _receivers: Vec<ResultReceiver> = receivers.collect();
            let taken = std::iter::repeat_with(|| queue.take().len()).take_while(|count| *count > 0);
            taken.collect::<Vec<_>>()
        };
        assert_eq!(taken(&[9; 150], &[]), [64, 64, 22]);
        assert_eq!(taken(&[9; 70], &[0, 3, 69]), [64, 3]);
        assert_eq!(taken(&[9, 9], &[0, 1]), [0; 0]);
        let large = BYTES_MAX + 1;
        assert_eq!(taken(&[large, 9, large, large], &[]), [1, 1, 1, 1]);
        assert_eq!(taken(&[large, 9, large, 9], &[0, 2]), [2]);
    }
}

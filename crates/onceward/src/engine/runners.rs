//! Tasks that execute, each one operation at a time, and are used again.
//!
//! An operation that has to wait goes on in a task, so that no client's hang-up ends it. But a task that is made and dropped for each
//! request costs more than all else that a new key does besides its hashes: its memory is aligned to cache lines, which
//! glibc's allocator serves by its slow path.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::runtime::{Handle, Id};
use tokio::sync::mpsc;

use super::Boxed;

/// How many tasks may be idle; more end when they have nothing to do.
const IDLE_MAX: usize = 256;

type Job = Boxed<'static, ()>;

/// The way to an idle task. It stands in the list while the task is idle, and travels with the job, so that a task whose
/// engine is gone ends.
#[derive(Clone)]
struct Idle {
    runtime: Id,
    jobs: mpsc::Sender<(Job, Idle)>,
}

#[derive(Default)]
pub(super) struct Runners {
    idle: Mutex<Vec<Idle>>,
}

impl Runners {
    /// Has a task of this runtime run the job to its end.
    pub(super) fn run(self: &Arc<Self>, mut job: Job) {
        let runtime = Handle::current().id();
        // A task of another runtime may never be polled again, so it is not asked.
        while let Some(idle) = self.take(runtime) {
            match idle.jobs.try_send((job, idle.clone())) {
                Ok(()) => return,
                // It went down with a runtime whose id this one has now.
                Err(refused) => job = refused.into_inner().0,
            }
        }
        let (jobs, next) = mpsc::channel(1);
        tokio::spawn(run(Arc::downgrade(self), Idle { runtime, jobs }, job, next));
    }

    fn take(&self, runtime: Id) -> Option<Idle> {
        let mut idle = self.idle.lock();
        let at = idle.iter().rposition(|idle| idle.runtime == runtime)?;
        Some(idle.swap_remove(at))
    }
}

async fn run(runners: Weak<Runners>, mut idle: Idle, mut job: Job, mut next: mpsc::Receiver<(Job, Idle)>) {
    loop {
        job.await;
        {
            let Some(runners) = runners.upgrade() else { return };
            let mut list = runners.idle.lock();
            if list.len() >= IDLE_MAX {
                return;
            }
            list.push(idle);
        }
        match next.recv().await {
            Some((its, way)) => (job, idle) = (its, way),
            None => return,
        }
    }
}

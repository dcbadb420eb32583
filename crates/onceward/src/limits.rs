//! Everything has a limit.

use std::time::Duration;

/// How much, how many, how long. [`Default`] gives the documented defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// The largest body of a keyed request, in bytes; a larger one is refused, never passed unprotected.
    pub request_body: usize,
    /// The largest body of an answer that is kept, in bytes; larger ones stream through.
    pub response_body: usize,
    /// How many bytes of answers this process remembers of what it completed or read in the last ten seconds, so that they
    /// are replayed without asking the store. Zero: none.
    pub cache: usize,
    /// How many duplicates may wait for one running request; one more gets 409 at once.
    pub waiters_per_key: usize,
    /// The longest that a duplicate waits, whatever it prefers.
    pub wait_max: Duration,
    /// Upper bound on requests that execute at the same time in this process. One more is refused with `overloaded`, and
    /// claims nothing. Waiting duplicates and replays do not count.
    pub executions: usize,
    /// How long the store may take for one operation.
    pub store_timeout: Duration,
    /// What the client waits for an answer.
    pub upstream_timeout: Duration,
    /// How long an answer is listened for, to be kept, after the client was sent away.
    pub capture_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_body: 1 << 20,
            response_body: 4 << 20,
            cache: 64 << 20,
            waiters_per_key: 100,
            wait_max: Duration::from_secs(30),
            executions: 4096,
            store_timeout: Duration::from_secs(2),
            upstream_timeout: Duration::from_secs(60),
            capture_timeout: Duration::from_secs(600),
        }
    }
}

impl Limits {
    /// Sets the largest body of a keyed request, in bytes.
    pub fn request_body(mut self, bytes: usize) -> Self {
        self.request_body = bytes;
        self
    }

    /// Sets the largest body of a response that is stored, in bytes.
    pub fn response_body(mut self, bytes: usize) -> Self {
        self.response_body = bytes;
        self
    }

    /// Sets how many bytes of responses this process caches. Zero: none.
    pub fn cache(mut self, bytes: usize) -> Self {
        self.cache = bytes;
        self
    }

    /// Sets how many duplicates may wait for one running request.
    pub fn waiters_per_key(mut self, waiters: usize) -> Self {
        self.waiters_per_key = waiters;
        self
    }

    /// Sets the longest time that a duplicate waits.
    pub fn wait_max(mut self, wait: Duration) -> Self {
        self.wait_max = wait;
        self
    }

    /// Sets how long the store may take for one operation.
    pub fn store_timeout(mut self, timeout: Duration) -> Self {
        self.store_timeout = timeout;
        self
    }

    /// Sets how long the client waits for a response.
    pub fn upstream_timeout(mut self, timeout: Duration) -> Self {
        self.upstream_timeout = timeout;
        self
    }

    /// Sets how long a response is awaited after the client was sent away. A handler runs on after it; its key is unknown then.
    pub fn capture_timeout(mut self, timeout: Duration) -> Self {
        self.capture_timeout = timeout;
        self
    }

    /// How long the small record of a released attempt stays, so that its late word finds it.
    pub fn released_keep(&self) -> Duration {
        self.capture_timeout.saturating_add(Duration::from_secs(3600))
    }
}

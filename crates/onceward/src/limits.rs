//! Limits of the engine and the layer.

use std::time::Duration;

/// Sizes, counts and timeouts. [`Default`] gives the documented defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Largest body of a keyed request, in bytes. A larger one is refused, never passed
    /// unprotected.
    pub request_body: usize,
    /// Largest body of a response that is stored, in bytes. Larger ones are streamed through.
    pub response_body: usize,
    /// Bytes of responses that this process caches: those that it completed or read in the last ten
    /// seconds, which it replays without reading the store. Zero: none.
    pub cache: usize,
    /// Upper bound on duplicates that wait for one running request. One more gets 409 at once.
    pub waiters_per_key: usize,
    /// Upper bound on the time that a duplicate waits, regardless of its preference.
    pub wait_max: Duration,
    /// Upper bound on requests that execute concurrently in this process. One more is refused with
    /// `overloaded`, and claims nothing. Waiting duplicates and replays do not count.
    pub executions: usize,
    /// Timeout of one store operation.
    pub store_timeout: Duration,
    /// Time that the client of an executing request waits for the response to begin. For a handler
    /// in the layer, this is the time until it returns its response.
    pub upstream_timeout: Duration,
    /// Time for which a response is still awaited, to be stored, after its client has timed out.
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

    /// Sets the bytes of responses that this process caches. Zero: none.
    pub fn cache(mut self, bytes: usize) -> Self {
        self.cache = bytes;
        self
    }

    /// Sets the upper bound on duplicates that wait for one running request.
    pub fn waiters_per_key(mut self, waiters: usize) -> Self {
        self.waiters_per_key = waiters;
        self
    }

    /// Sets the longest time that a duplicate waits.
    pub fn wait_max(mut self, wait: Duration) -> Self {
        self.wait_max = wait;
        self
    }

    /// Sets the timeout of one store operation.
    pub fn store_timeout(mut self, timeout: Duration) -> Self {
        self.store_timeout = timeout;
        self
    }

    /// Sets the time that the client waits for a response.
    pub fn upstream_timeout(mut self, timeout: Duration) -> Self {
        self.upstream_timeout = timeout;
        self
    }

    /// Sets the time for which a response is still awaited after its client has timed out. A
    /// handler runs on after it; its key is then unknown.
    pub fn capture_timeout(mut self, timeout: Duration) -> Self {
        self.capture_timeout = timeout;
        self
    }

    /// Returns the time for which the small record of a released attempt stays, so that a late
    /// write of that attempt finds it.
    pub fn released_keep(&self) -> Duration {
        self.capture_timeout.saturating_add(Duration::from_secs(3600))
    }
}

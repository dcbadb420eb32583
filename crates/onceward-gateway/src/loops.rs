//! Loop detection: finds requests that return to the gateway that sent them, because its upstream
//! is itself, by name or through another gateway.
//!
//! Each forwarded request carries a line `Onceward-Hops: PROCESS-TARGET-NONCE`. `Via` cannot
//! distinguish a loop from two gateways in a row, or from a service that calls another one through
//! this gateway and copies its headers. Therefore a request is a loop if this process already sent
//! it for the same method and target, or sent it several times. The nonce is unguessable: only a
//! receiver of the request can send it back.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use parking_lot::Mutex;

/// Header that lists the gateways that sent a request, oldest first.
pub(crate) const ONCEWARD_HOPS: HeaderName = HeaderName::from_static("onceward-hops");

/// Upper bound on passes of one request through one process with changed targets, as when a proxy
/// behind it rewrites them.
const PASSES_MAX: usize = 3;
/// Upper bound on lines of other gateways that are forwarded.
const HOPS_MAX: usize = 16;
/// Upper bound on returned requests that their sender has not seen yet.
const RETURNED_MAX: usize = 4096;

/// State of the requests that this process sent.
#[derive(Debug)]
pub(crate) struct Loops {
    process: u64,
    targets: RandomState,
    nonces: RandomState,
    sent: AtomicU64,
    returned: Mutex<VecDeque<u64>>,
}

impl Loops {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            process: RandomState::new().hash_one(0),
            targets: RandomState::new(),
            nonces: RandomState::new(),
            sent: AtomicU64::new(0),
            returned: Mutex::default(),
        })
    }

    /// Creates the mark of a request that is about to be forwarded.
    pub(crate) fn mark<B>(self: &Arc<Self>, request: &Request<B>) -> Mark {
        let nonce = self.nonces.hash_one(self.sent.fetch_add(1, Ordering::Relaxed));
        Mark { loops: Arc::clone(self), target: self.target(request.method(), request.uri()), nonce }
    }

    /// Returns `true` if this process already sent a request, and records that it returned.
    pub(crate) fn has_come_back<B>(&self, request: &Request<B>) -> bool {
        if !request.headers().contains_key(ONCEWARD_HOPS) {
            return false;
        }
        let target = self.target(request.method(), request.uri());
        let own = hops(request.headers()).filter(|hop| hop.process == self.process).collect::<Vec<_>>();
        let is_loop = own.len() >= PASSES_MAX || own.iter().any(|hop| hop.target == target);
        if is_loop {
            let mut returned = self.returned.lock();
            for hop in own {
                if returned.len() >= RETURNED_MAX {
                    returned.pop_front();
                }
                returned.push_back(hop.nonce);
            }
        }
        is_loop
    }

    fn target(&self, method: &Method, uri: &Uri) -> u64 {
        self.targets.hash_one((method.as_str(), uri.path(), uri.query()))
    }
}

/// Mark in the extensions of a forwarded request.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    loops: Arc<Loops>,
    target: u64,
    nonce: u64,
}

impl Mark {
    /// Writes the lines of all previous gateways, and the line of this one.
    pub(crate) fn write(&self, clients: &HeaderMap, headers: &mut HeaderMap) {
        let before: Vec<Hop> = hops(clients).collect();
        for hop in &before[before.len().saturating_sub(HOPS_MAX)..] {
            headers.append(ONCEWARD_HOPS, hop.value());
        }
        let own = Hop { process: self.loops.process, target: self.target, nonce: self.nonce };
        headers.append(ONCEWARD_HOPS, own.value());
    }

    /// Returns `true` if this request returned, so that no service received it.
    pub(crate) fn has_come_back(&self) -> bool {
        let mut returned = self.loops.returned.lock();
        let at = returned.iter().position(|nonce| *nonce == self.nonce);
        at.map(|at| returned.remove(at)).is_some()
    }
}

/// Marks the response to a request that returned, so that its outcome header says that it was
/// rejected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Looped;

struct Hop {
    process: u64,
    target: u64,
    nonce: u64,
}

impl Hop {
    fn value(&self) -> HeaderValue {
        let text = format!("{:016x}-{:016x}-{:016x}", self.process, self.target, self.nonce);
        HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
    }
}

/// Returns the well-formed hops of a request.
fn hops(headers: &HeaderMap) -> impl Iterator<Item = Hop> {
    headers
        .get_all(ONCEWARD_HOPS)
        .into_iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter_map(|hop| {
            let mut numbers = hop.trim().split('-').map(|digits| match digits.len() {
                16 if digits.bytes().all(|digit| digit.is_ascii_hexdigit()) => u64::from_str_radix(digits, 16).ok(),
                _ => None,
            });
            let hop = Hop { process: numbers.next()??, target: numbers.next()??, nonce: numbers.next()?? };
            numbers.next().is_none().then_some(hop)
        })
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::Loops;

    fn onward(request: &Request<()>, loops: &std::sync::Arc<Loops>) -> (super::Mark, Request<()>) {
        let mark = loops.mark(request);
        let mut next = Request::new(());
        *next.method_mut() = request.method().clone();
        *next.uri_mut() = request.uri().clone();
        mark.write(request.headers(), next.headers_mut());
        (mark, next)
    }

    #[test]
    fn request_that_comes_back_is_a_loop() {
        let (ours, other) = (Loops::new(), Loops::new());
        let request = Request::post("/orders?x").body(()).unwrap();
        assert!(!ours.has_come_back(&request));
        let (mark, next) = onward(&request, &ours);
        assert!(!mark.has_come_back());
        let (_, last) = onward(&next, &other);
        assert!(!other.has_come_back(&next) && ours.has_come_back(&last));
        assert!(mark.has_come_back() && !mark.has_come_back(), "it is noticed once");
    }

    #[test]
    fn request_of_a_service_that_copies_headers_is_no_loop() {
        let ours = Loops::new();
        let (mark, next) = onward(&Request::post("/orders").body(()).unwrap(), &ours);
        let mut call = Request::post("/payments").body(()).unwrap();
        call.headers_mut().clone_from(next.headers());
        assert!(!ours.has_come_back(&call) && !mark.has_come_back());
        // A proxy that rewrites targets creates another target in each round.
        let (_, mut third) = onward(&call, &ours);
        *third.uri_mut() = "/other".parse().unwrap();
        assert!(!ours.has_come_back(&third));
        let (_, mut fourth) = onward(&third, &ours);
        *fourth.uri_mut() = "/another".parse().unwrap();
        assert!(ours.has_come_back(&fourth));
    }

    #[test]
    fn hops_that_are_forged_are_dropped() {
        let ours = Loops::new();
        let mut request = Request::get("/").body(()).unwrap();
        for line in [
            "x",
            "",
            "1-2-3",
            "0123456789abcdef-0123456789abcdef",
            "0123456789abcdef-0123456789abcdef-+123456789abcdef",
        ] {
            request.headers_mut().append(super::ONCEWARD_HOPS, line.parse().unwrap());
        }
        assert!(!ours.has_come_back(&request));
        let (_, next) = onward(&request, &ours);
        assert_eq!(next.headers().get_all(super::ONCEWARD_HOPS).iter().count(), 1);
    }
}

//! Load: clients that call, retry, reuse keys for other requests, and disconnect, with the steps of
//! the upstream.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{Call, Leaves};
use crate::gateway::Address;
use crate::history::{Last, Of, Recorder};
use crate::moments::Moments;
use crate::tally::Tally;

/// Number of concurrent clients.
const CLIENTS: u64 = 6;
/// Number of recent keys that are used again.
const RECENT: usize = 24;
/// Timeout to settle a last call: a lease, five seconds, and a margin for a busy machine.
const SETTLED_MAX: Duration = Duration::from_secs(30);

/// Steps for the upstream: percentage, name and steps.
const STEPS: [(u64, &str, &str); 14] = [
    (44, "answers", "effect answer=201"),
    (8, "is slow before the effect", "wait=250 effect answer=201"),
    (8, "is slow after the effect", "effect wait=250 answer=201"),
    (3, "is slower than the client's patience", "effect wait=2600 answer=201"),
    (5, "resets before the effect", "reset"),
    (5, "resets after the effect", "effect reset"),
    (3, "is slow, then resets", "effect wait=400 reset"),
    (5, "cuts its answer", "effect cut"),
    (4, "says 500 after the effect", "effect answer=500"),
    (3, "says 503 after the effect", "effect answer=503"),
    (2, "says 502 before the effect", "answer=502"),
    (5, "says 429", "answer=429"),
    (2, "is slow, then says 429", "wait=400 answer=429"),
    (3, "answers more than is kept", "effect big"),
];

/// Addresses of the gateways.
pub(crate) type Addresses = Vec<Arc<Mutex<Option<Address>>>>;

/// State that the clients share.
pub(crate) struct Load {
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) addresses: Addresses,
    pub(crate) tally: Arc<Tally>,
    pub(crate) ending: AtomicBool,
    keys: Mutex<Keys>,
}

#[derive(Default)]
struct Keys {
    all: Vec<Call>,
    recent: VecDeque<Call>,
}

impl Load {
    pub(crate) fn new(recorder: Arc<Recorder>, addresses: Addresses, tally: Arc<Tally>) -> Self {
        Self { recorder, addresses, tally, ending: AtomicBool::new(false), keys: Mutex::default() }
    }

    /// Calls until it is stopped.
    pub(crate) fn run(self: &Arc<Self>, seed: u64) -> Vec<thread::JoinHandle<()>> {
        let clients = (0..CLIENTS).map(|client| {
            let load = Arc::clone(self);
            thread::spawn(move || load.client(Moments::of(seed ^ (client + 1) << 32)))
        });
        clients.collect()
    }

    fn client(&self, mut moments: Moments) {
        while !self.ending.load(Ordering::SeqCst) {
            let call = self.next(&mut moments);
            match self.address(&mut moments) {
                Some(address) => drop(call.send(address, &self.recorder)),
                // The gateway is being restarted.
                None => thread::sleep(Duration::from_millis(5)),
            }
            thread::sleep(moments.between(0, 40));
        }
    }

    fn address(&self, moments: &mut Moments) -> Option<Address> {
        let at = moments.below(self.addresses.len() as u64) as usize;
        *self.addresses[at].lock().expect("nobody panics while it is held")
    }

    /// Returns the next call, with a new key or a used one, and sometimes with a wrong body.
    fn next(&self, moments: &mut Moments) -> Call {
        let mut call = self.key(moments);
        let mut at = moments.below(100);
        for (share, name, steps) in STEPS {
            if at < share {
                self.tally.add(&format!("upstream: {name}"));
                call.steps = steps.to_owned();
                break;
            }
            at -= share;
        }
        call.wait = moments.percent(20).then_some(1);
        if moments.percent(3) {
            self.tally.add("client: another body with the key");
            call.body = format!("{{\"another\":{}}}", moments.below(3));
        }
        call.leaves = match moments.below(100) {
            0 => Some(Leaves::MidBody),
            1..=5 => Some(Leaves::After(moments.between(0, 60))),
            _ => None,
        };
        match call.leaves {
            Some(Leaves::MidBody) => self.tally.add("client: hangs up within its request"),
            Some(Leaves::After(_)) => self.tally.add("client: hangs up before its answer"),
            None => {}
        }
        call
    }

    fn key(&self, moments: &mut Moments) -> Call {
        let mut keys = self.keys.lock().expect("nobody panics while it is held");
        if !keys.recent.is_empty() && moments.percent(60) {
            let at = moments.below(keys.recent.len() as u64) as usize;
            return keys.recent[at].clone();
        }
        // Sometimes another principal uses the same key too.
        let key = match keys.all.last() {
            Some(last) if last.of.principal == "alice" && moments.percent(15) => last.of.key.clone(),
            _ => format!("key-{}", keys.all.len()),
        };
        let is_others = keys.all.last().is_some_and(|last| last.of.key == key);
        let principal = if is_others || moments.percent(20) { "bob" } else { "alice" };
        let again = if is_others { keys.all[keys.all.len() - 1].of.again } else { moments.percent(15) };
        let of = Of { principal: principal.to_owned(), again, ..Call::new(&key).of };
        let call = Call { of, body: format!("{{\"order\":{}}}", keys.all.len() % 7), ..Call::new(&key) };
        keys.all.push(call.clone());
        keys.recent.push_back(call.clone());
        if keys.recent.len() > RECENT {
            keys.recent.pop_front();
        }
        call
    }

    /// Makes the last calls after the recovery: retries each key until it is settled, and uses new
    /// keys.
    pub(crate) fn last_calls(self: &Arc<Self>) {
        let all = Arc::new(Mutex::new(std::mem::take(&mut self.keys.lock().expect("nobody panics").all)));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (load, all) = (Arc::clone(self), Arc::clone(&all));
                thread::spawn(move || {
                    let mut moments = Moments::of(client);
                    for at in 0..5 {
                        let key = format!("fresh-{client}-{at}");
                        let fresh = Call { last: Some(Last::Fresh), ..Call::new(&key) };
                        for _ in 0..2 {
                            load.address(&mut moments).and_then(|address| fresh.send(address, &load.recorder));
                        }
                    }
                    loop {
                        let Some(call) = all.lock().expect("nobody panics while it is held").pop() else { return };
                        load.settle(&Call { last: Some(Last::Settled), ..call }, &mut moments);
                    }
                })
            })
            .collect();
        clients.into_iter().for_each(|client| drop(client.join()));
    }

    fn settle(&self, call: &Call, moments: &mut Moments) {
        let until = Instant::now() + SETTLED_MAX;
        while Instant::now() < until {
            let Some(address) = self.address(moments) else { return };
            match call.send(address, &self.recorder) {
                Some(answer) if !matches!(answer.outcome.as_str(), "in-flight" | "rejected") => return,
                _ => thread::sleep(Duration::from_millis(200)),
            }
        }
    }
}

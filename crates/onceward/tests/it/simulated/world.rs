//! Three gateways, a store, a service, and their faults.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use onceward::claim::Claim;
use onceward::clock::Clock;
use onceward::engine::{AttemptEnd, Engine, Execution as Ended, KeyedRequest, Operation, RunOutcome};
use onceward::fingerprint::{Fingerprint, Rules};
use onceward::key::Key;
use onceward::limits::Limits;
use onceward::policy::Policy;
use onceward::principal::KeySpace;
use onceward::problem::Code;
use onceward::reply::StoredResponse;
use onceward::secret::{HashKeys, RecordId, Secret};
use onceward::store::MemoryStore;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use turmoil::Sim;
use turmoil::net::{TcpListener, TcpStream, UdpSocket};

use super::check::{self, Answered, Call, Execution, Seen};
use super::network::{PORT, Remote, serve};

const KEYS: u8 = 40;
/// Number of younger keys after which a key is no longer used.
const KEYS_AT_ONCE: u8 = 4;
const GATEWAYS: [&str; 3] = ["gateway-0", "gateway-1", "gateway-2"];
const CLIENTS_PER_GATEWAY: u64 = 3;

pub(super) const LEASE: Duration = Duration::from_secs(3);
const STORE_TIMEOUT: Duration = Duration::from_millis(500);
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);
const CAPTURE_TIMEOUT: Duration = Duration::from_secs(4);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// End of the faults and the load.
const TROUBLE: Duration = Duration::from_secs(20);
/// Time by which every dead process has been dead for a lease plus 5 s, and every wait for a
/// response has ended.
const QUIET: Duration = Duration::from_secs(20 + 3 + 5 + 4);
const END: Duration = Duration::from_secs(90);

const TICK: Duration = Duration::from_millis(10);

/// Bug planted in the store, which must be detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plant {
    Nothing,
    ClaimsExpire,
    ReplacesBlindly,
    LosesCompletions,
    MixesUpKeys,
    ClockStands,
}

impl Plant {
    pub(super) fn id(self, mut id: RecordId) -> RecordId {
        if self == Self::MixesUpKeys {
            id.0[0] &= 0xfc;
            id.0[1..].fill(0);
        }
        id
    }
}

/// Records written by all processes and read by none.
pub(super) type Shared = Arc<Mutex<History>>;

#[derive(Debug, Default)]
pub(super) struct History {
    calls: Vec<Call>,
    executions: Vec<Execution>,
    /// Keys of which a gateway has sent a first byte.
    sent: BTreeSet<u8>,
    /// Keys that each gateway handled since its start.
    asked: [BTreeSet<u8>; GATEWAYS.len()],
    /// Keys handled by a gateway that died, so that nobody can report that nothing was sent.
    doubtful: BTreeSet<u8>,
    pub(super) seen: Seen,
}

/// Finished run.
pub(super) struct World(History);

impl World {
    pub(super) fn run(seed: u64, plant: Plant) -> Self {
        let shared = Shared::default();
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .enable_random_order()
            .tick_duration(TICK)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(40))
            .simulation_duration(END)
            .udp_capacity(4096)
            .build();
        store(&mut sim, plant);
        service(&mut sim, seed, &shared);
        for (at, name) in GATEWAYS.into_iter().enumerate() {
            let boots = AtomicU64::new(0);
            let shared = shared.clone();
            sim.host(name, move || {
                let boot = boots.fetch_add(1, Ordering::Relaxed);
                gateway(at, mix(seed, at as u64, boot), shared.clone())
            });
        }
        sim.client("judge", judge(seed, shared.clone()));
        trouble(&mut sim, seed, &shared);
        sim.run().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        drop(sim);
        let mut history = std::mem::take(&mut *shared.lock());
        history.seen.executed = history.executions.len();
        let History { calls, seen, .. } = &mut history;
        calls.iter().for_each(|call| seen.count(call));
        Self(history)
    }

    pub(super) fn violations(&self) -> Vec<String> {
        let History { calls, executions, sent, doubtful, .. } = &self.0;
        let unsent = |key| !sent.contains(&key) && !doubtful.contains(&key);
        (0..KEYS).flat_map(|key| check::violations(key, executions, calls, unsent(key))).collect()
    }

    pub(super) fn seen(&self) -> Seen {
        self.0.seen
    }

    /// Returns everything recorded, for comparison.
    pub(super) fn told(&self) -> (&[Call], &[Execution], Seen) {
        (&self.0.calls, &self.0.executions, self.0.seen)
    }
}

fn mix(seed: u64, a: u64, b: u64) -> u64 {
    seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(a << 32 | b)
}

/// Starts the store; its data outlive its process, like a disk.
fn store(sim: &mut Sim<'_>, plant: Plant) {
    let clock = SimClock { ahead: Duration::ZERO, rate: if plant == Plant::ClockStands { 0.0 } else { 1.0 } };
    let memory = Arc::new(MemoryStore::with_clock(64 << 20, Arc::new(clock)));
    sim.host("store", move || {
        let memory = memory.clone();
        async move {
            let socket = UdpSocket::bind(("0.0.0.0", PORT)).await?;
            let mut datagram = vec![0; 64 << 10];
            loop {
                let (len, from) = socket.recv_from(&mut datagram).await?;
                let answer = serve(&*memory, plant, Bytes::copy_from_slice(&datagram[..len])).await;
                // An unreadable datagram has no response.
                if let Ok(answer) = answer {
                    socket.send_to(&answer, from).await?;
                }
            }
        }
    });
}

/// Starts the service, which records each execution before it responds. It declines some requests,
/// delays some, and resets some connections before or after.
fn service(sim: &mut Sim<'_>, seed: u64, shared: &Shared) {
    let random = Arc::new(Mutex::new(StdRng::seed_from_u64(mix(seed, 99, 0))));
    let shared = shared.clone();
    sim.host("service", move || {
        let (random, shared) = (random.clone(), shared.clone());
        async move {
            let listener = TcpListener::bind(("0.0.0.0", 80)).await?;
            loop {
                let (mut stream, _) = listener.accept().await?;
                let (random, shared) = (random.clone(), shared.clone());
                tokio::spawn(async move {
                    let mut ask = [0; 2];
                    if stream.read_exact(&mut ask).await.is_err() {
                        return;
                    }
                    let (fate, slow, before) = {
                        let mut random = random.lock();
                        match now() < TROUBLE {
                            true => (random.random_range(0..20), random.random_range(1..3000), random.random_bool(0.5)),
                            false => (5, 0, false),
                        }
                    };
                    let slow = Duration::from_millis(if slow > 2000 { slow } else { slow / 20 });
                    if before {
                        // waits: the service works, in simulated time
                        tokio::time::sleep(slow).await;
                    }
                    // A connection that is reset after an execution yields no response, and neither
                    // does one without.
                    let nonce = match fate {
                        0 => return,
                        1..=3 => 0,
                        _ => {
                            let mut history = shared.lock();
                            let nonce = history.executions.len() as u64 + 1;
                            history.executions.push(Execution { key: ask[0], print: ask[1], nonce });
                            nonce
                        }
                    };
                    if !before {
                        // waits: the service works, in simulated time
                        tokio::time::sleep(slow).await;
                    }
                    if fate != 4 {
                        // The caller may be gone.
                        let _ = stream.write_all(&nonce.to_be_bytes()).await;
                    }
                });
            }
        }
    });
}

/// Starts an engine and its clients.
async fn gateway(at: usize, seed: u64, shared: Shared) -> turmoil::Result {
    let mut random = StdRng::seed_from_u64(seed);
    let engine = engine(&mut random, &shared).await?;
    let clients =
        (0..CLIENTS_PER_GATEWAY).map(|_| client(at, StdRng::from_rng(&mut random), engine.clone(), shared.clone()));
    for client in clients.map(tokio::spawn).collect::<Vec<_>>() {
        client.await?;
    }
    // Requests in flight complete even if their caller is gone.
    std::future::pending().await
}

async fn engine(random: &mut StdRng, shared: &Shared) -> turmoil::Result<Engine> {
    // Each gateway's clock has its own offset and rate.
    let ahead = Duration::from_secs(random.random_range(0..1_000_000));
    let clock = SimClock { ahead, rate: random.random_range(0.9..1.1) };
    let mut limits = Limits::default();
    limits.store_timeout = STORE_TIMEOUT;
    limits.upstream_timeout = UPSTREAM_TIMEOUT;
    limits.capture_timeout = CAPTURE_TIMEOUT;
    let store = Remote::connect(random.random(), shared.clone()).await?;
    let builder = Engine::builder(Arc::new(store)).secret(Secret::new([7; 32])).limits(limits);
    Ok(builder.clock(Arc::new(clock)).build())
}

async fn client(at: usize, mut random: StdRng, engine: Engine, shared: Shared) {
    while now() < TROUBLE {
        let youngest = (now().as_millis() * u128::from(KEYS) / TROUBLE.as_millis()) as u8;
        let key = youngest.saturating_sub(random.random_range(0..KEYS_AT_ONCE));
        let print = u8::from(random.random_bool(0.1));
        let patience = Duration::from_millis(random.random_range(50..8000));
        shared.lock().asked[at].insert(key);
        let call = call(&engine, key, print, &shared);
        match tokio::time::timeout(patience, call).await {
            Ok(call) => shared.lock().calls.push(call),
            Err(_) => shared.lock().seen.hung_up += 1,
        }
        // waits: clients pause, in simulated time
        tokio::time::sleep(Duration::from_millis(random.random_range(0..800))).await;
    }
}

/// Calls each key after recovery.
async fn judge(seed: u64, shared: Shared) -> turmoil::Result {
    // waits: until every dead process has been dead for long enough, in simulated time
    tokio::time::sleep(QUIET).await;
    let engine = engine(&mut StdRng::seed_from_u64(seed), &shared).await?;
    for key in 0..KEYS {
        let executed = shared.lock().executions.iter().find(|execution| execution.key == key).map(|first| first.print);
        let own = executed.unwrap_or_default();
        for print in [own, own, 1 - own] {
            let call = call(&engine, key, print, &shared).await;
            shared.lock().calls.push(Call { is_last: true, ..call });
        }
    }
    Ok(())
}

async fn call(engine: &Engine, key: u8, print: u8, shared: &Shared) -> Call {
    let from = now();
    let policy = Arc::new({
        let mut policy = Policy::default();
        policy.lease = LEASE;
        policy
    });
    let ask = KeyedRequest {
        key: Key::parse(format!("simulated-{key}").as_bytes()).expect("a key"),
        principal: policy.identify(&HeaderMap::new()).expect("nobody"),
        space: KeySpace::default(),
        policy,
        wait: None,
    };
    let nonce = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("a nonce"));
    let answered = match engine.run(&ask, Box::new(Order { key, print, shared: shared.clone() })).await {
        RunOutcome::Own(0, _) => Answered::Declined,
        RunOutcome::Own(nonce, outcome) => Answered::Own(nonce, outcome),
        RunOutcome::Replay(reply) => Answered::Replay(nonce(&reply.body)),
        RunOutcome::Released(_) => Answered::Declined,
        RunOutcome::Refused(problem) => Answered::Refused(problem.code()),
    };
    Call { key, print, from, to: now(), answered, is_last: false }
}

struct Order {
    key: u8,
    print: u8,
    shared: Shared,
}

impl Operation for Order {
    type Response = u64;

    fn fingerprint(&self, _: &Rules, _: &HashKeys) -> Fingerprint {
        Fingerprint([self.print; 32])
    }

    async fn execute(self: Box<Self>, claim: Claim) -> Ended<u64> {
        let unsent = || Ended { answer: Err(Code::UpstreamUnreachable), end: AttemptEnd::Released(None) };
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(("service", 80))).await;
        let Ok(Ok(mut stream)) = connected else { return unsent() };
        if claim.mark_sending().await.is_err() {
            return unsent();
        }
        if now() < QUIET {
            self.shared.lock().sent.insert(self.key);
        }
        let mut nonce = [0; 8];
        let sent = stream.write_all(&[self.key, self.print]).await;
        match sent.is_ok() && stream.read_exact(&mut nonce).await.is_ok() {
            false => Ended { answer: Err(Code::UpstreamLost), end: AttemptEnd::Unknown },
            true if nonce == [0; 8] => Ended { answer: Ok(0), end: AttemptEnd::Released(None) },
            true => {
                let reply =
                    StoredResponse::keep(StatusCode::CREATED, &HeaderMap::new(), Bytes::copy_from_slice(&nonce));
                Ended { answer: Ok(u64::from_be_bytes(nonce)), end: AttemptEnd::Completed(Arc::new(reply)) }
            }
        }
    }
}

/// Injects partitions, delays and kills until [`TROUBLE`] is over, then recovers all.
fn trouble(sim: &mut Sim<'_>, seed: u64, shared: &Shared) {
    let mut random = StdRng::seed_from_u64(mix(seed, 77, 0));
    let mut next = Duration::ZERO;
    let mut mend_at = [None; GATEWAYS.len()];
    while sim.elapsed() < TROUBLE {
        let now = sim.elapsed();
        for (at, gateway) in GATEWAYS.into_iter().enumerate() {
            if mend_at[at].is_some_and(|mend_at| mend_at <= now) {
                mend_at[at] = None;
                mend(sim, gateway);
            }
        }
        if next <= now {
            next = now + Duration::from_millis(random.random_range(50..1500));
            let at = random.random_range(0..GATEWAYS.len());
            mend_at[at] = Some(now + Duration::from_millis(random.random_range(20..4000)));
            let gateway = GATEWAYS[at];
            match random.random_range(0..8) {
                0 => sim.partition(gateway, "store"),
                1 => sim.partition_oneway(gateway, "store"),
                2 => sim.partition_oneway("store", gateway),
                3 | 4 => sim.hold(gateway, "store"),
                5 => sim.partition_oneway("service", gateway),
                6 => sim.partition(gateway, "service"),
                _ => {
                    sim.crash(gateway);
                    let mut history = shared.lock();
                    history.seen.crashed += 1;
                    let asked = std::mem::take(&mut history.asked[at]);
                    history.doubtful.extend(asked);
                }
            }
        }
        sim.step().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    GATEWAYS.into_iter().for_each(|gateway| mend(sim, gateway));
}

fn mend(sim: &mut Sim<'_>, gateway: &str) {
    for other in ["store", "service"] {
        sim.release(gateway, other);
        sim.repair(gateway, other);
    }
    if !sim.is_host_running(gateway) {
        sim.bounce(gateway);
    }
}

/// Returns the simulated time, within a simulated process.
fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

/// Clock of a gateway: it is ahead of the simulated time, and has its own rate.
#[derive(Debug)]
struct SimClock {
    ahead: Duration,
    rate: f64,
}

impl Clock for SimClock {
    fn now(&self) -> Duration {
        self.ahead + now().mul_f64(self.rate)
    }

    fn wall(&self) -> Duration {
        self.now()
    }

    fn sleep_until(&self, until: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        // waits: this is the clock's own sleep, in simulated time
        Box::pin(tokio::time::sleep(until.saturating_sub(self.now()).div_f64(self.rate)))
    }
}

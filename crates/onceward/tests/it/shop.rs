//! A shop behind the layer, on a real socket; a client that writes and reads the bytes itself; and a store that fails when
//! it is told to.

use std::collections::HashMap;
use std::future::{Future, pending};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::OriginalUri;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Router};
use bytes::Bytes;
use onceward::claim::Claim;
use onceward::clock::{Clock, ManualClock, SystemClock};
use onceward::layer::IdempotencyLayer;
use onceward::limits::Limits;
use onceward::observe::Observer;
use onceward::policy::Policy;
use onceward::principal::PrincipalRule;
use onceward::record::{Record, StoredRecord, Version};
use onceward::secret::{RecordId, Secret};
use onceward::store::{Cas, Error, MemoryStore, Store, StoreFuture, StoreInfo, StoreStats};
use onceward::wire::Outcome;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

/// Longer than anything takes that happens at all.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for what must happen.
#[track_caller]
pub(crate) fn soon<T>(what: &str, happens: impl Future<Output = T>) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(PATIENCE, happens).await {
            Ok(done) => done,
            Err(_) => panic!("{what} did not happen, {caller}"),
        }
    }
}

/// Waits until a condition holds.
#[track_caller]
pub(crate) fn until(what: &str, holds: impl Fn() -> bool) -> impl Future<Output = ()> {
    soon(what, async move {
        while !holds() {
            tokio::task::yield_now().await;
        }
    })
}

/// What the shop is asked to make.
pub(crate) struct Run {
    /// How many runs there were, with this one.
    pub(crate) n: usize,
    /// Its claim, if it has one.
    pub(crate) claim: Option<Claim>,
    /// The request's body.
    pub(crate) body: Bytes,
}

/// Counts the runs, and lets out those whose turn it is.
#[derive(Clone)]
pub(crate) struct TestHandler {
    runs: Arc<AtomicUsize>,
    done: Arc<AtomicUsize>,
    door: watch::Sender<Range<usize>>,
}

impl TestHandler {
    /// How many began.
    pub(crate) fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }

    /// How many ended.
    pub(crate) fn done(&self) -> usize {
        self.done.load(Ordering::SeqCst)
    }

    pub(crate) fn shut(&self) {
        self.let_out(0..0);
    }

    pub(crate) fn open(&self) {
        self.let_out(0..usize::MAX);
    }

    /// From now on these runs may end, and no others.
    pub(crate) fn let_out(&self, runs: Range<usize>) {
        self.door.send_replace(runs);
    }

    pub(crate) async fn began(&self, runs: usize) {
        until("the run", || self.runs() >= runs).await;
    }

    async fn enter(&self) -> usize {
        let n = self.runs.fetch_add(1, Ordering::SeqCst) + 1;
        self.door.subscribe().wait_for(|out| out.contains(&n)).await.expect("the kitchen has its own sender");
        n
    }
}

impl Default for TestHandler {
    fn default() -> Self {
        Self { runs: Arc::default(), done: Arc::default(), door: watch::Sender::new(0..usize::MAX) }
    }
}

/// What the engine told whoever counts.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) second_executions: AtomicUsize,
    pub(crate) prevented: AtomicUsize,
    pub(crate) answered: Mutex<Vec<Outcome>>,
}

impl Observer for Counts {
    fn answered(&self, _: &str, outcome: Outcome, _: Option<&RecordId>) {
        self.answered.lock().expect("no panic").push(outcome);
    }

    fn duplicate_prevented(&self, _: &str) {
        self.prevented.fetch_add(1, Ordering::SeqCst);
    }

    fn executed(&self, _: &str, _: Duration) {}

    fn second_execution(&self, _: &str) {
        self.second_executions.fetch_add(1, Ordering::SeqCst);
    }

    fn store(&self, _: &'static str, _: Duration, _: bool) {}
}

/// How a shop is set up.
pub(crate) struct Setup {
    pub(crate) policy: Policy,
    pub(crate) limits: Limits,
    pub(crate) mounted: bool,
    pub(crate) namespace: &'static str,
    /// A store that others use too.
    pub(crate) store: Option<Arc<Faulty>>,
    pub(crate) remote: bool,
    pub(crate) secret: Option<Secret>,
    pub(crate) clock: ManualClock,
    pub(crate) manual: bool,
}

impl Default for Setup {
    /// Over the machine's own clock.
    fn default() -> Self {
        let mut policy = Policy::default();
        policy.principal = PrincipalRule::Parts(Vec::new());
        Self {
            policy,
            limits: Limits::default(),
            mounted: true,
            namespace: "default",
            store: None,
            remote: false,
            secret: None,
            clock: ManualClock::default(),
            manual: false,
        }
    }
}

impl Setup {
    /// Over a clock that stands still until it is moved: the store's and the engine's.
    pub(crate) fn manual() -> Self {
        Self { manual: true, ..Self::default() }
    }

    /// The store is not in this process, as far as the engine knows.
    pub(crate) fn remote(mut self) -> Self {
        self.remote = true;
        self
    }

    pub(crate) fn secret(mut self, secret: Secret) -> Self {
        self.secret = Some(secret);
        self
    }

    pub(crate) fn policy(mut self, change: impl FnOnce(&mut Policy)) -> Self {
        change(&mut self.policy);
        self
    }

    pub(crate) fn limits(mut self, change: impl FnOnce(&mut Limits)) -> Self {
        change(&mut self.limits);
        self
    }

    pub(crate) async fn open(self, respond: impl Fn(Run) -> Response + Clone + Send + Sync + 'static) -> Shop {
        let clock: Arc<dyn Clock> = match self.manual {
            true => Arc::new(self.clock.clone()),
            false => Arc::new(SystemClock),
        };
        let store = self.store.unwrap_or_else(|| Arc::new(Faulty::new(Arc::clone(&clock), self.remote)));
        let counts = Arc::new(Counts::default());
        let mut builder = IdempotencyLayer::builder(Arc::clone(&store) as Arc<dyn Store>);
        if let Some(secret) = self.secret {
            builder = builder.secret(secret);
        }
        let layer = builder
            .limits(self.limits)
            .namespace(self.namespace)
            .clock(clock)
            .observer(Arc::clone(&counts) as Arc<dyn Observer>)
            .uri(|head| head.extensions.get::<OriginalUri>().map_or(&head.uri, |original| &original.0))
            .build()
            .with_policy(self.policy);
        let kitchen = TestHandler::default();
        let handler = {
            let kitchen = kitchen.clone();
            move |claim: Option<Extension<Claim>>, body: Bytes| {
                let claim = claim.map(|Extension(claim)| claim);
                let (kitchen, respond) = (kitchen.clone(), respond.clone());
                async move {
                    let n = kitchen.enter().await;
                    let response = respond(Run { n, claim, body });
                    kitchen.done.fetch_add(1, Ordering::SeqCst);
                    response
                }
            }
        };
        let all = post(handler.clone()).put(handler.clone()).patch(handler);
        let orders = Router::new().route("/orders", all.clone()).route("/teas", all).route_layer(layer.clone());
        let mut app = orders.clone().nest("/shops/{shop}", orders);
        if self.mounted {
            app = app.nest_service("/.idempotency", layer.endpoints());
        }
        Shop { address: serve(app).await, layer, store, kitchen, counts, clock: self.clock }
    }
}

pub(crate) async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

pub(crate) struct Shop {
    pub(crate) address: SocketAddr,
    pub(crate) layer: IdempotencyLayer,
    pub(crate) store: Arc<Faulty>,
    pub(crate) kitchen: TestHandler,
    pub(crate) counts: Arc<Counts>,
    pub(crate) clock: ManualClock,
}

/// An order that was made, and in which run.
pub(crate) fn made(run: Run) -> Response {
    let headers = [("location", format!("/orders/{}", run.n))];
    (StatusCode::CREATED, headers, format!("made {}", run.n)).into_response()
}

impl Shop {
    /// Sends an order, and reads the whole answer.
    pub(crate) async fn order(&self, key: &str, body: &str) -> Got {
        self.send(&order(key, body, &[])).await
    }

    pub(crate) async fn send(&self, request: &[u8]) -> Got {
        soon("an answer", async { self.begin(request).await.answer().await }).await
    }

    /// Sends, and reads nothing yet.
    pub(crate) async fn begin(&self, request: &[u8]) -> Sent {
        let mut stream = TcpStream::connect(self.address).await.expect("a listening shop");
        stream.write_all(request).await.expect("an open connection");
        Sent { stream }
    }

    /// Sends from a task of its own.
    pub(crate) fn sending(&self, request: Vec<u8>) -> tokio::task::JoinHandle<Got> {
        let address = self.address;
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.expect("a listening shop");
            stream.write_all(&request).await.expect("an open connection");
            soon("an answer", Sent { stream }.answer()).await
        })
    }

    /// Asks what became of a key.
    pub(crate) async fn operation(&self, key: &str, headers: &[(&str, &str)]) -> Got {
        self.send(&request("GET", "/.idempotency/operation", &with_key(key, headers), "")).await
    }

    pub(crate) async fn stats(&self) -> StoreStats {
        self.store.memory().stats().await.expect("the memory store answers")
    }

    /// Waits until nothing executes, and nothing is left to be written down.
    pub(crate) async fn settled(&self) {
        soon("the end of all attempts", self.layer.engine().drained()).await;
    }
}

fn with_key<'a>(key: &'a str, headers: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [("idempotency-key", key)].iter().chain(headers).copied().collect()
}

/// A request that closes its connection.
pub(crate) fn request(method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut text = format!("{method} {target} HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
    text.into_bytes()
}

/// An order.
pub(crate) fn order(key: &str, body: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    request("POST", "/orders", &with_key(key, headers), body)
}

/// A request that was sent, and whose answer is to come.
pub(crate) struct Sent {
    pub(crate) stream: TcpStream,
}

impl Sent {
    /// Reads until the connection ends.
    pub(crate) async fn answer(mut self) -> Got {
        let mut bytes = Vec::new();
        // A reset after the last byte is no less an end.
        let _ = self.stream.read_to_end(&mut bytes).await;
        Got::parse(&bytes).0
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Got {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
    /// Whether all of its body came.
    pub(crate) whole: bool,
}

impl Got {
    /// Reads one answer, and returns how many bytes it took.
    pub(crate) fn parse(bytes: &[u8]) -> (Self, usize) {
        let head =
            find(bytes, b"\r\n\r\n").unwrap_or_else(|| panic!("no head in {:?}", String::from_utf8_lossy(bytes)));
        let mut lines = bytes[..head].split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let first = String::from_utf8_lossy(lines.next().expect("a status line")).into_owned();
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let headers: Vec<(String, Vec<u8>)> = lines
            .map(|line| {
                let colon = find(line, b": ").expect("a header line");
                (String::from_utf8_lossy(&line[..colon]).to_ascii_lowercase(), line[colon + 2..].to_vec())
            })
            .collect();
        let mut got = Self { status, headers, body: Vec::new(), whole: true };
        let rest = &bytes[head + 4..];
        let taken = if got.header("transfer-encoding") == Some("chunked") {
            got.take_chunks(rest)
        } else {
            let length = got.header("content-length").map_or(0, |length| length.parse().expect("a length"));
            got.whole = rest.len() >= length;
            got.body = rest[..length.min(rest.len())].to_vec();
            got.body.len()
        };
        (got, head + 4 + taken)
    }

    fn take_chunks(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        self.whole = false;
        while let Some(line) = find(&bytes[at..], b"\r\n") {
            let size = std::str::from_utf8(&bytes[at..at + line]).expect("a chunk's size");
            let size = usize::from_str_radix(size, 16).expect("a chunk's size");
            at += line + 2;
            if bytes.len() < at + size + 2 {
                self.body.extend_from_slice(&bytes[at..bytes.len().min(at + size)]);
                return bytes.len();
            }
            self.body.extend_from_slice(&bytes[at..at + size]);
            at += size + 2;
            if size == 0 {
                self.whole = true;
                return at;
            }
        }
        bytes.len()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let value = &self.headers.iter().find(|header| header.0 == name)?.1;
        Some(std::str::from_utf8(value).expect("text"))
    }

    pub(crate) fn outcome(&self) -> Option<&str> {
        self.header("idempotency-outcome")
    }

    /// Status, outcome and body at once.
    pub(crate) fn told(&self) -> (u16, &str, &str) {
        (self.status, self.outcome().unwrap_or("-"), std::str::from_utf8(&self.body).expect("text"))
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// Checks that it is a refusal by this code.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: &str, outcome: &str) {
        let said = (self.status, self.json()["code"].clone(), self.outcome());
        assert_eq!(said, (status, code.into(), Some(outcome)), "{}", self.json());
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        assert_eq!(self.header("cache-control"), Some("no-store"));
        assert!(self.header("idempotency-replayed").is_none());
    }

    /// Checks that it is the answer of a first execution.
    #[track_caller]
    pub(crate) fn stored(&self, status: u16, body: &str) {
        assert_eq!(self.told(), (status, "stored", body));
        assert!(self.whole && self.header("idempotency-replayed").is_none(), "{self:?}");
    }

    /// Checks that it is that answer again.
    #[track_caller]
    pub(crate) fn replayed(&self, status: u16, body: &str) {
        assert_eq!(self.told(), (status, "replayed", body));
        assert!(self.whole, "{self:?}");
        assert_eq!(self.header("idempotency-replayed"), Some("true"));
        assert_eq!(self.header("cache-control"), Some("no-store"));
    }
}

pub(crate) fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// What goes wrong with an operation of the store.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// It is not applied, and says so.
    Refuses,
    /// It is not applied, and nobody is told whether.
    Fails,
    /// It is applied, and its answer is lost.
    LosesAnswer,
    /// It is not applied, and never answers.
    Hangs,
    /// It is applied, and never answers.
    HangsAfter,
    /// What is there cannot be read.
    Unreadable,
    /// It is applied and answers as soon as the store is healed.
    Waits,
}

/// The memory store, with faults on demand.
pub(crate) struct Faulty {
    memory: Mutex<Arc<MemoryStore>>,
    remote: bool,
    clock: Arc<dyn Clock>,
    faults: Mutex<HashMap<&'static str, (Fault, usize)>>,
    calls: Mutex<HashMap<&'static str, usize>>,
    healed: Notify,
}

impl Faulty {
    pub(crate) fn new(clock: Arc<dyn Clock>, remote: bool) -> Self {
        let memory = Arc::new(MemoryStore::with_clock(256 << 20, Arc::clone(&clock)));
        Self {
            memory: Mutex::new(memory),
            remote,
            clock,
            faults: Mutex::default(),
            calls: Mutex::default(),
            healed: Notify::new(),
        }
    }

    /// The store beneath, without faults and uncounted.
    pub(crate) fn memory(&self) -> Arc<MemoryStore> {
        Arc::clone(&self.memory.lock().expect("no panic"))
    }

    /// Loses all it knew, as a server does that is started again.
    pub(crate) fn forget_everything(&self) {
        *self.memory.lock().expect("no panic") = Arc::new(MemoryStore::with_clock(256 << 20, Arc::clone(&self.clock)));
    }

    /// The next `times` calls of `op` fail so.
    pub(crate) fn fail(&self, op: &'static str, fault: Fault, times: usize) {
        self.faults.lock().expect("no panic").insert(op, (fault, times));
    }

    pub(crate) fn heal(&self) {
        self.faults.lock().expect("no panic").clear();
        self.healed.notify_waiters();
    }

    pub(crate) fn calls(&self, op: &str) -> usize {
        self.calls.lock().expect("no panic").get(op).copied().unwrap_or_default()
    }

    pub(crate) fn all_calls(&self) -> usize {
        self.calls.lock().expect("no panic").values().sum()
    }

    fn next_fault(&self, op: &'static str) -> Option<Fault> {
        *self.calls.lock().expect("no panic").entry(op).or_default() += 1;
        let mut faults = self.faults.lock().expect("no panic");
        let (fault, left) = faults.get_mut(op)?;
        *left = left.checked_sub(1)?;
        Some(*fault)
    }

    fn asked<'a, T: Send + 'a>(
        &'a self,
        op: &'static str,
        ask: impl FnOnce(Arc<MemoryStore>) -> StoreFuture<'a, T> + Send + 'a,
    ) -> StoreFuture<'a, T> {
        let healed = self.healed.notified();
        let (memory, fault) = (self.memory(), self.next_fault(op));
        StoreFuture::new(async move {
            match fault {
                None => ask(memory).await,
                Some(Fault::Refuses) => Err(Error::refused("the test refuses")),
                Some(Fault::Unreadable) => Err(Error::unreadable("the test damaged it")),
                Some(Fault::Fails) => Err(Error::unavailable("the test lets it fail")),
                Some(Fault::Hangs) => pending().await,
                Some(Fault::Waits) => {
                    healed.await;
                    ask(memory).await
                }
                Some(Fault::LosesAnswer) => {
                    ask(memory).await?;
                    Err(Error::unavailable("the test lost the answer"))
                }
                Some(Fault::HangsAfter) => {
                    ask(memory).await?;
                    pending().await
                }
            }
        })
    }
}

impl std::fmt::Debug for Faulty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Faulty")
    }
}

impl Store for Faulty {
    fn insert<'a>(&'a self, id: &'a RecordId, record: &'a Record) -> StoreFuture<'a, Option<StoredRecord>> {
        self.asked("insert", move |memory| StoreFuture::new(async move { memory.insert(id, record).await }))
    }

    fn compare_and_swap<'a>(&'a self, id: &'a RecordId, over: Version, record: &'a Record) -> StoreFuture<'a, Cas> {
        self.asked("replace", move |memory| {
            StoreFuture::new(async move { memory.compare_and_swap(id, over, record).await })
        })
    }

    fn get<'a>(&'a self, id: &'a RecordId) -> StoreFuture<'a, Option<StoredRecord>> {
        self.asked("get", move |memory| StoreFuture::new(async move { memory.get(id).await }))
    }

    fn remove<'a>(&'a self, id: &'a RecordId, over: Version) -> StoreFuture<'a, bool> {
        self.asked("remove", move |memory| StoreFuture::new(async move { memory.remove(id, over).await }))
    }

    fn due<'a>(&'a self, limit: usize) -> StoreFuture<'a, Vec<(RecordId, StoredRecord)>> {
        self.asked("due", move |memory| StoreFuture::new(async move { memory.due(limit).await }))
    }

    fn get_or_insert_meta<'a>(&'a self, name: &'a str, value: &'a [u8]) -> StoreFuture<'a, Bytes> {
        self.asked("meta", move |memory| StoreFuture::new(async move { memory.get_or_insert_meta(name, value).await }))
    }

    fn stats(&self) -> StoreFuture<'_, StoreStats> {
        self.asked("census", |memory| StoreFuture::new(async move { memory.stats().await }))
    }

    fn info(&self) -> StoreInfo {
        let mut facts = self.memory().info();
        facts.in_process = !self.remote;
        facts
    }
}

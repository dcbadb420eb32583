//! Store protocol of the simulation: a datagram per request and per response, either of which may
//! be lost.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use onceward::codec;
use onceward::record::{AttemptId, PhaseKind, Record, StoredRecord, Version};
use onceward::secret::RecordId;
use onceward::store::{Cas, Error, Store, StoreFuture, StoreInfo, StoreStats};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::oneshot;
use turmoil::net::UdpSocket;

use super::world::{Plant, Shared};

pub(super) const PORT: u16 = 700;
const DATAGRAM_BYTES_MAX: usize = 64 << 10;
const STAGES: [PhaseKind; 5] =
    [PhaseKind::InFlight, PhaseKind::Completed, PhaseKind::Released, PhaseKind::Unknown, PhaseKind::Tombstone];

/// Probability that the driver sends an operation twice, as drivers do that retry after a
/// reconnect.
const REPEATED: f64 = 0.05;

/// Store behind the simulated network.
pub(super) struct Remote {
    socket: Arc<UdpSocket>,
    waiting: Arc<Mutex<HashMap<u64, oneshot::Sender<Bytes>>>>,
    next: AtomicU64,
    random: Mutex<StdRng>,
    shared: Shared,
}

impl Remote {
    /// Connects, within a simulated process.
    pub(super) async fn connect(seed: u64, shared: Shared) -> io::Result<Self> {
        let socket = Arc::new(UdpSocket::bind("0.0.0.0:0").await?);
        let waiting: Arc<Mutex<HashMap<u64, oneshot::Sender<Bytes>>>> = Arc::default();
        tokio::spawn({
            let (socket, waiting, shared) = (socket.clone(), waiting.clone(), shared.clone());
            async move {
                let mut datagram = vec![0; DATAGRAM_BYTES_MAX];
                while let Ok((len, _)) = socket.recv_from(&mut datagram).await {
                    let mut answer = Bytes::copy_from_slice(&datagram[..len]);
                    let waiter = waiting.lock().remove(&answer.get_u64());
                    // The caller may have been dropped, or had a response already.
                    if waiter.is_none_or(|waiter| waiter.send(answer).is_err()) {
                        shared.lock().seen.late += 1;
                    }
                }
            }
        });
        let random = Mutex::new(StdRng::seed_from_u64(seed));
        Ok(Self { socket, waiting, next: AtomicU64::new(0), random, shared })
    }

    async fn ask(&self, op: u8, put: impl FnOnce(&mut BytesMut)) -> Result<Bytes, Error> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut datagram = BytesMut::new();
        datagram.put_u64(number);
        datagram.put_u8(op);
        put(&mut datagram);
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().insert(number, answer);
        let times = if self.random.lock().random_bool(REPEATED) { 2 } else { 1 };
        self.shared.lock().seen.repeated += times - 1;
        for _ in 0..times {
            let sent = self.socket.send_to(&datagram, ("store", PORT)).await;
            sent.map_err(|error| Error::unavailable("the store cannot be reached").with_source(error))?;
        }
        answered.await.map_err(|_| Error::unavailable("the network is gone"))
    }
}

/// Handles a datagram in the store's process. Returns the response.
pub(super) async fn serve(store: &dyn Store, plant: Plant, mut datagram: Bytes) -> Result<Bytes, Error> {
    let mut answer = BytesMut::new();
    answer.put_u64(datagram.get_u64());
    match datagram.get_u8() {
        b'i' => {
            let asked = get_id(&mut datagram);
            let (id, record) = (plant.id(asked), codec::decode(&asked, &datagram)?);
            if plant == Plant::ClaimsExpire
                && let Some(found) = store.get(&id).await?
                && matches!(found.record.version().stage, PhaseKind::InFlight | PhaseKind::Unknown)
                && found.age >= super::world::LEASE
            {
                store.remove(&id, found.record.version()).await?;
            }
            put_found(&mut answer, &asked, store.insert(&id, &record).await?);
        }
        b'r' => {
            let (asked, mut over) = (get_id(&mut datagram), get_version(&mut datagram));
            let (id, record) = (plant.id(asked), codec::decode(&asked, &datagram)?);
            if plant == Plant::ReplacesBlindly
                && let Some(found) = store.get(&id).await?
            {
                over = found.record.version();
            }
            let replaced = match plant == Plant::LosesCompletions && record.version().stage == PhaseKind::Completed {
                true => Cas::Swapped,
                false => store.compare_and_swap(&id, over, &record).await?,
            };
            match replaced {
                Cas::Swapped => answer.put_u8(2),
                Cas::Conflict(found) => put_found(&mut answer, &asked, found),
            }
        }
        b'g' => {
            let asked = get_id(&mut datagram);
            put_found(&mut answer, &asked, store.get(&plant.id(asked)).await?);
        }
        b'x' => {
            let id = plant.id(get_id(&mut datagram));
            answer.put_u8(u8::from(store.remove(&id, get_version(&mut datagram)).await?));
        }
        b'd' => {
            let limit = datagram.get_u64() as usize;
            for (id, found) in store.due(limit).await? {
                answer.put_slice(&id.0);
                put_found(&mut answer, &id, Some(found));
            }
        }
        _ => {
            let len = usize::from(datagram.get_u8());
            let name = String::from_utf8(datagram.split_to(len).to_vec()).expect("a name");
            answer.put_slice(&store.get_or_insert_meta(&name, &datagram).await?);
        }
    }
    Ok(answer.freeze())
}

fn get_id(bytes: &mut Bytes) -> RecordId {
    let mut id = [0; 32];
    bytes.copy_to_slice(&mut id);
    RecordId(id)
}

fn put_version(bytes: &mut BytesMut, version: Version) {
    bytes.put_slice(&version.attempt.0);
    bytes.put_u8(STAGES.iter().position(|stage| *stage == version.stage).expect("all are listed") as u8);
}

fn get_version(bytes: &mut Bytes) -> Version {
    let mut attempt = [0; 16];
    bytes.copy_to_slice(&mut attempt);
    Version { attempt: AttemptId(attempt), stage: STAGES[usize::from(bytes.get_u8())] }
}

fn put_found(bytes: &mut BytesMut, id: &RecordId, found: Option<StoredRecord>) {
    let Some(found) = found else { return bytes.put_u8(0) };
    let record = codec::encode(id, &found.record);
    bytes.put_u8(1);
    bytes.put_u64(found.age.as_nanos() as u64);
    bytes.put_u32(record.len() as u32);
    bytes.put_slice(&record);
}

fn get_found(bytes: &mut Bytes, id: &RecordId) -> Result<Option<StoredRecord>, Error> {
    match bytes.get_u8() {
        1 => {
            let age = Duration::from_nanos(bytes.get_u64());
            let len = bytes.get_u32() as usize;
            let record = codec::decode(id, &bytes.split_to(len))?;
            Ok(Some(StoredRecord { record: Box::new(record), age, owner_lost: false }))
        }
        _ => Ok(None),
    }
}

impl Store for Remote {
    fn insert<'a>(&'a self, id: &'a RecordId, record: &'a Record) -> StoreFuture<'a, Option<StoredRecord>> {
        StoreFuture::new(async move {
            let mut answer = self
                .ask(b'i', |ask| {
                    ask.put_slice(&id.0);
                    ask.put_slice(&codec::encode(id, record));
                })
                .await?;
            get_found(&mut answer, id)
        })
    }

    fn compare_and_swap<'a>(&'a self, id: &'a RecordId, over: Version, record: &'a Record) -> StoreFuture<'a, Cas> {
        StoreFuture::new(async move {
            let mut answer = self
                .ask(b'r', |ask| {
                    ask.put_slice(&id.0);
                    put_version(ask, over);
                    ask.put_slice(&codec::encode(id, record));
                })
                .await?;
            match answer.first() {
                Some(2) => Ok(Cas::Swapped),
                _ => Ok(Cas::Conflict(get_found(&mut answer, id)?)),
            }
        })
    }

    fn get<'a>(&'a self, id: &'a RecordId) -> StoreFuture<'a, Option<StoredRecord>> {
        StoreFuture::new(async move {
            let mut answer = self.ask(b'g', |ask| ask.put_slice(&id.0)).await?;
            get_found(&mut answer, id)
        })
    }

    fn remove<'a>(&'a self, id: &'a RecordId, over: Version) -> StoreFuture<'a, bool> {
        StoreFuture::new(async move {
            let mut answer = self
                .ask(b'x', |ask| {
                    ask.put_slice(&id.0);
                    put_version(ask, over);
                })
                .await?;
            Ok(answer.get_u8() == 1)
        })
    }

    fn due<'a>(&'a self, limit: usize) -> StoreFuture<'a, Vec<(RecordId, StoredRecord)>> {
        StoreFuture::new(async move {
            let mut answer = self.ask(b'd', |ask| ask.put_u64(limit as u64)).await?;
            let mut due = Vec::new();
            while answer.has_remaining() {
                let id = get_id(&mut answer);
                due.extend(get_found(&mut answer, &id)?.map(|found| (id, found)));
            }
            Ok(due)
        })
    }

    fn get_or_insert_meta<'a>(&'a self, name: &'a str, value: &'a [u8]) -> StoreFuture<'a, Bytes> {
        StoreFuture::new(self.ask(b'm', |ask| {
            ask.put_u8(name.len() as u8);
            ask.put_slice(name.as_bytes());
            ask.put_slice(value);
        }))
    }

    fn stats(&self) -> StoreFuture<'_, StoreStats> {
        StoreFuture::new(async { Err(Error::refused("nobody counts in this simulation")) })
    }

    fn info(&self) -> StoreInfo {
        StoreInfo::new("simulated", true, true, "it exists in a simulation")
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remote")
    }
}

//! Writes that compare: what waits at the same time goes to the server in one script.
//!
//! To enter a script costs a server as much as what it then does for one key. So while few scripts are under way, the next writes
//! gather; alone, a write waits for nobody. In a cluster, where each key may be elsewhere, each goes by itself.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use redis::{Cmd, Value};
use tokio::sync::oneshot;

use super::link::{Link, Told};
use super::scripts::Scripts;
use super::url::Kind;
use super::value::{KEY_BYTES, Sent, VERSION_BYTES, answer_of, has_had_answer, record_key};
use crate::record::Version;
use crate::secret::RecordId;
use crate::store::Error;

/// So many scripts are under way, as long as what waits fits into one: the fewer, the more goes together. Two, so that one
/// is on its way while the other runs.
const FEW: usize = 2;

/// How many records one script writes at most.
const RECORDS_MAX: usize = 64;

/// How many bytes of records one script writes at most, beside the first.
const BYTES_MAX: usize = 256 << 10;

/// A write that happens if what is there is what its sender believes.
pub(super) struct Put {
    key: [u8; KEY_BYTES],
    /// Nothing, where nothing may be there.
    over: Option<[u8; VERSION_BYTES]>,
    sent: Sent,
}

impl Put {
    pub(super) fn new(id: &RecordId, over: Option<Version>, sent: Sent) -> Self {
        Self { key: record_key(id), over: over.map(super::value::version), sent }
    }

    /// Whether it writes an answer beside its record, or removes one, or believes that there is none any more.
    fn concerns_answer(&self) -> bool {
        let over = self.over.and_then(|over| over.last().copied());
        !self.sent.answer.is_empty() || over.is_some_and(has_had_answer)
    }
}

/// Who waits for what became of a write.
struct Asked {
    put: Put,
    teller: oneshot::Sender<Result<Value, Error>>,
}

/// Where writes wait.
pub(super) struct Together {
    link: Arc<Link>,
    scripts: Arc<Scripts>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    asked: VecDeque<Asked>,
    /// How many work, each with a script under way.
    working: usize,
}

impl Together {
    pub(super) fn new(link: Arc<Link>, scripts: Arc<Scripts>) -> Arc<Self> {
        Arc::new(Self { link, scripts, waiting: Mutex::default() })
    }

    /// Writes, and returns what the script says of it. Whoever stops waiting before it was sent has not asked.
    pub(super) async fn put(self: &Arc<Self>, put: Put) -> Result<Value, Error> {
        if self.link.options.kind == Kind::Cluster || !put.sent.answer.is_empty() {
            // In a box, for it is rare, and what is here is a part of each write's future.
            return Box::pin(self.alone(&put, false)).await;
        }
        let (teller, told) = oneshot::channel();
        if self.waiting.lock().hires(Asked { put, teller }) {
            tokio::spawn(Worker { of: Arc::clone(self), has_left: false }.work());
        }
        told.await.unwrap_or_else(|_| Err(Error::unavailable("whoever was to write it was ended")))
    }

    /// Writes one, and tries again where the server is not ready. If it is `open`, it may have been written before.
    async fn alone(&self, put: &Put, open: bool) -> Result<Value, Error> {
        let puts = std::slice::from_ref(put);
        let value = self.link.ask_again(&self.by_hash(puts), || self.by_text(puts), open).await?;
        Ok(each(value, 1).pop().unwrap_or(Value::Nil))
    }

    async fn many(self: &Arc<Self>, asked: Vec<Asked>) {
        let (puts, tellers): (Vec<_>, Vec<_>) = asked.into_iter().map(|asked| (asked.put, asked.teller)).unzip();
        match self.link.ask_if_it_writes(&self.by_hash(&puts), || self.by_text(&puts)).await {
            Ok(Told::Value(value)) => {
                for (teller, value) in tellers.into_iter().zip(each(value, puts.len())) {
                    let _ = teller.send(Ok(value));
                }
            }
            // It wrote none of them, and some it may take: what makes room, for one. So each goes by itself.
            Ok(Told::TakesNoWrites { open }) => {
                for (put, teller) in puts.into_iter().zip(tellers) {
                    let together = Arc::clone(self);
                    tokio::spawn(async move { teller.send(together.alone(&put, open).await) });
                }
            }
            Err(error) => {
                for teller in tellers {
                    let _ = teller.send(Err(error.clone()));
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

impl Waiting {
    /// Returns whether one more is to work.
    fn hires(&mut self, asked: Asked) -> bool {
        self.asked.push_back(asked);
        let hires = self.working < FEW || self.asked.len() >= self.working * RECORDS_MAX;
        self.working += usize::from(hires);
        hires
    }

    /// Takes what goes together. What nobody waits for any more need not be sent.
    fn take(&mut self) -> Vec<Asked> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while taken.len() < RECORDS_MAX
            && let Some(next) = self
                .asked
                .pop_front_if(|next| next.is_given_up() || taken.is_empty() || bytes + next.bytes() <= BYTES_MAX)
        {
            if !next.is_given_up() {
                bytes += next.bytes();
                taken.push(next);
            }
        }
        taken
    }
}

impl Asked {
    fn is_given_up(&self) -> bool {
        self.teller.is_closed()
    }

    fn bytes(&self) -> usize {
        self.put.sent.record.len()
    }
}

/// Writes as long as something waits.
struct Worker {
    of: Arc<Together>,
    has_left: bool,
}

impl Worker {
    async fn work(mut self) {
        loop {
            // Whoever is ready to run at this moment may want to write as well.
            tokio::task::yield_now().await;
            let asked = {
                let mut waiting = self.of.waiting.lock();
                let asked = waiting.take();
                if asked.is_empty() {
                    waiting.working -= 1;
                    self.has_left = true;
                    return;
                }
                asked
            };
            self.of.many(asked).await;
        }
    }
}

/// Whoever is ended in the middle holds nobody's place.
impl Drop for Worker {
    fn drop(&mut self) {
        if !self.has_left {
            self.of.waiting.lock().working -= 1;
        }
    }
}

/// The script's arguments: see there.
fn command(name: &str, code: &str, puts: &[Put]) -> Cmd {
    let bytes = |put: &Put| KEY_BYTES + VERSION_BYTES + put.sent.record.len() + put.sent.answer.len() + 40;
    let size = name.len() + code.len() + 20 + puts.iter().map(bytes).sum::<usize>();
    let mut command = Cmd::with_capacity(6 + 4 * puts.len(), size);
    // Alone, for only so is it in a cluster. Of many, all that is theirs is on the one server.
    let names_answer = matches!(puts, [put] if put.concerns_answer());
    command.arg(name).arg(code).arg(puts.len() + usize::from(names_answer));
    for put in puts {
        command.arg(put.key.as_slice());
    }
    if names_answer {
        command.arg(answer_of(&puts[0].key).as_slice());
    }
    for Put { over, sent, .. } in puts {
        let over = over.as_ref().map_or(&[][..], <[u8; _]>::as_slice);
        command.arg(over).arg(&sent.record).arg(sent.record_ms);
    }
    if let [Put { sent, .. }] = puts
        && !sent.answer.is_empty()
    {
        command.arg(&sent.answer).arg(sent.answer_ms);
    }
    command
}

/// What a script said of each: that it wrote all, or of each in turn.
fn each(value: Value, count: usize) -> Vec<Value> {
    match value {
        Value::Int(1) => vec![Value::Int(1); count],
        Value::Array(each) if each.len() == count => each,
        // That is what each hears.
        other => vec![other; count],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    type Told = oneshot::Receiver<Result<Value, Error>>;

    fn asked(bytes: usize) -> (Asked, Told) {
        let (teller, told) = oneshot::channel();
        let sent = Sent { record: vec![0; bytes], record_ms: 1, answer: Vec::new(), answer_ms: 0 };
        (Asked { put: Put::new(&RecordId([0; 32]), None, sent), teller }, told)
    }

    #[tokio::test]
    async fn whoever_is_ended_in_the_middle_holds_nobodys_place() {
        let link = Link::new(super::super::Options::parse("redis://127.0.0.1:1").unwrap(), Arc::new(SystemClock));
        let together = Together::new(Arc::new(link), Arc::default());
        assert!(together.waiting.lock().hires(asked(9).0));
        let worker = tokio::spawn(Worker { of: Arc::clone(&together), has_left: false }.work());
        worker.abort();
        assert!(worker.await.unwrap_err().is_cancelled());
        assert_eq!(together.waiting.lock().working, 0);
    }

    #[test]
    fn few_work_and_more_where_what_waits_does_not_fit() {
        let mut waiting = Waiting::default();
        let hires: Vec<usize> = (1..=400).filter(|_| waiting.hires(asked(9).0)).collect();
        // The third when two scripts are full, the fourth when three are, and so on.
        assert_eq!(hires, [1, 2, 128, 192, 256, 320, 384]);
    }

    #[test]
    fn a_script_is_bounded_and_what_nobody_waits_for_is_not_in_it() {
        let taken = |sizes: &[usize], left: &[usize]| {
            let mut waiting = Waiting::default();
            let told = sizes.iter().enumerate().filter_map(|(at, bytes)| {
                let (asked, told) = asked(*bytes);
                waiting.hires(asked);
                (!left.contains(&at)).then_some(told)
            });
            let _told: Vec<Told> = told.collect();
            let taken = std::iter::repeat_with(|| waiting.take().len()).take_while(|count| *count > 0);
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

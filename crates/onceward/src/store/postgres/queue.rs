//! Who waits for a connection, and which connections work. No I/O.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

use super::ask::{Ask, Group};
use crate::secret::RecordId;

/// So many connections work as long as none takes its time: the fewer, the more goes together. Two, so that one is written to
/// while the other's rows are synced.
const FEW: usize = 2;

/// How many rows one statement has at most.
const ROWS_MAX: usize = 64;

/// How many statements of one row go behind one another at most.
const STATEMENTS_MAX: usize = 16;

/// How many bytes of records go at once at most, beside the first.
const BYTES_MAX: usize = 256 << 10;

/// How many of those that wait are looked at for what goes together.
const LOOKED_AT_MAX: usize = 4 * ROWS_MAX;

/// What waits, in its order, and the connections.
///
/// Of one key at most one question waits or runs here; the next ones stand behind it: first those that write over its record or
/// remove it, for they are the word of whoever holds it, and a storm of duplicates is not to keep that waiting; then inserts and
/// looks. Each of the two happens in the order in which it was asked, whichever connection carries it.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: VecDeque<Ask>,
    keys: HashMap<RecordId, VecDeque<Ask>>,
    places: Box<[Place]>,
}

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nobody works there. Whether it stood when somebody did.
    Free { stood: bool },
    /// Somebody does; is it quick, and does it stand?
    Works { quick: bool, stands: bool },
}

impl Queue {
    pub(super) fn new(connections: usize) -> Self {
        let places = vec![Place::Free { stood: false }; connections].into();
        Self { waiting: VecDeque::new(), keys: HashMap::new(), places }
    }

    /// Puts a question at the end, or where it belongs among those of its key.
    pub(super) fn put(&mut self, ask: Ask) {
        match self.keys.entry(ask.id) {
            Entry::Occupied(mut before) => {
                let before = before.get_mut();
                let place = match ask.question.writes_over() {
                    true => before.partition_point(|before| before.question.writes_over()),
                    false => before.len(),
                };
                before.insert(place, ask);
            }
            Entry::Vacant(key) => {
                key.insert(VecDeque::new());
                self.waiting.push_back(ask);
            }
        }
    }

    /// Puts what ran and was not applied in front again.
    pub(super) fn put_back(&mut self, asks: Vec<Ask>) {
        asks.into_iter().rev().for_each(|ask| self.waiting.push_front(ask));
    }

    /// A question is answered, or will not be: the next one about its key may run.
    pub(super) fn finish(&mut self, id: &RecordId) {
        if let Entry::Occupied(mut behind) = self.keys.entry(*id) {
            match behind.get_mut().pop_front() {
                Some(next) => self.waiting.push_back(next),
                None => drop(behind.remove()),
            }
        }
    }

    pub(super) fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes the first, and what goes with it. What nobody waits for any more need not be sent.
    pub(super) fn take(&mut self) -> Vec<Ask> {
        let (mut taken, mut left) = (Vec::new(), VecDeque::new());
        let mut bytes = 0;
        let mut most = ROWS_MAX;
        while taken.len() < most && left.len() < LOOKED_AT_MAX {
            let Some(ask) = self.waiting.pop_front() else { break };
            if ask.is_given_up() {
                self.finish(&ask.id);
                continue;
            }
            let fits = taken
                .first()
                .is_none_or(|first: &Ask| first.goes_with(&ask) && bytes + ask.question.bytes() <= BYTES_MAX);
            if fits {
                if ask.question.group() == Group::Looks {
                    most = STATEMENTS_MAX;
                }
                bytes += ask.question.bytes();
                taken.push(ask);
            } else {
                left.push_back(ask);
            }
        }
        left.into_iter().rev().for_each(|ask| self.waiting.push_front(ask));
        taken
    }

    /// Takes what has waited for as long as it may.
    pub(super) fn take_late(&mut self, now: Instant) -> Vec<Ask> {
        let is_late = |ask: &Ask| ask.until <= now;
        let mut late = Vec::new();
        for behind in self.keys.values_mut().filter(|behind| behind.iter().any(is_late)) {
            let (gone, left): (VecDeque<_>, VecDeque<_>) = behind.drain(..).partition(is_late);
            *behind = left;
            late.extend(gone);
        }
        if self.waiting.iter().any(is_late) {
            for ask in std::mem::take(&mut self.waiting) {
                match is_late(&ask) {
                    true => {
                        self.finish(&ask.id);
                        late.push(ask);
                    }
                    false => self.waiting.push_back(ask),
                }
            }
        }
        late
    }

    /// Takes all that waits.
    pub(super) fn take_all(&mut self) -> Vec<Ask> {
        let mut all = Vec::new();
        while let Some(ask) = self.waiting.pop_front() {
            self.finish(&ask.id);
            all.push(ask);
        }
        all
    }

    /// Which connection is to work besides those that do, if one is: one that stood comes first.
    pub(super) fn hire(&mut self) -> Option<usize> {
        let quick = self.places.iter().filter(|place| matches!(place, Place::Works { quick: true, .. })).count();
        if self.waiting.is_empty() || (quick >= FEW && self.waiting.len() < quick * ROWS_MAX) {
            return None;
        }
        let free = |stood| self.places.iter().position(|place| *place == Place::Free { stood });
        let place = free(true).or_else(|| free(false))?;
        self.places[place] = Place::Works { quick: true, stands: false };
        Some(place)
    }

    /// How a connection that works does.
    pub(super) fn goes(&mut self, place: usize, quick: bool, stands: bool) {
        self.places[place] = Place::Works { quick, stands };
    }

    /// Nobody works there any more.
    pub(super) fn leaves(&mut self, place: usize, stood: bool) {
        self.places[place] = Place::Free { stood };
    }

    /// Whether a connection that stands will take what waits.
    pub(super) fn is_served(&self) -> bool {
        self.places.iter().any(|place| matches!(place, Place::Works { stands: true, .. }))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::sync::oneshot;

    use super::super::ask::{Over, Question, Told, Write};
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// A key's number, what is asked, and whether by itself.
    type Asked = (u8, Question, bool);

    fn write(bytes: usize) -> Write {
        Write { attempt: [0; 16], stage: 1, record: Bytes::from(vec![0; bytes]), due: None }
    }

    fn queue(asked: Vec<Asked>) -> (Queue, Vec<oneshot::Receiver<Told>>) {
        let mut queue = Queue::new(3);
        let waiting = asked.into_iter().map(|(key, question, is_alone)| {
            let (ask, told) = Ask::new(RecordId([key; 32]), question, is_alone, Instant::now() + HOUR);
            queue.put(ask);
            told
        });
        let waiting = waiting.collect();
        (queue, waiting)
    }

    /// What is taken time after time, each time answered before the next.
    fn taken(mut queue: Queue) -> Vec<Vec<u8>> {
        let mut taken = Vec::new();
        while queue.is_waited_for() {
            let asks = queue.take();
            asks.iter().for_each(|ask| queue.finish(&ask.id));
            taken.push(asks.iter().map(|ask| ask.id.0[0]).collect());
        }
        assert!(queue.keys.is_empty());
        taken
    }

    #[test]
    fn what_is_alike_goes_together_and_each_key_in_its_order() {
        let (insert, end, get) = (Question::Insert(write(9)), Question::Complete(write(9)), Question::Get);
        let large = Question::Insert(write(BYTES_MAX));
        for (rule, asked, want) in [
            ("alike", vec![(1, insert.clone(), false), (2, insert.clone(), false)], vec![vec![1, 2]]),
            (
                "of two kinds, the first first",
                vec![(1, insert.clone(), false), (2, end.clone(), false), (3, insert.clone(), false)],
                vec![vec![1, 3], vec![2]],
            ),
            ("by itself", vec![(1, insert.clone(), false), (2, insert.clone(), true)], vec![vec![1], vec![2]]),
            (
                "a key once",
                vec![
                    (1, insert.clone(), false),
                    (1, insert.clone(), false),
                    (1, end, false),
                    (2, insert.clone(), false),
                ],
                vec![vec![1, 2], vec![1], vec![1]],
            ),
            ("no more bytes", vec![(1, insert.clone(), false), (2, large.clone(), false)], vec![vec![1], vec![2]]),
            ("one that is large", vec![(1, large, false), (2, insert, false)], vec![vec![1], vec![2]]),
            ("looks", vec![(1, get.clone(), false), (2, get, false)], vec![vec![1, 2]]),
        ] {
            let (queue, _waiting) = queue(asked);
            assert_eq!(taken(queue), want, "{rule}");
        }
    }

    #[test]
    fn of_one_key_what_its_holder_says_goes_before_claims_and_looks() {
        let (mut queue, _waiting) = queue((0..100).map(|_| (1, Question::Insert(write(9)), false)).collect());
        let over = Over { attempt: [0; 16], stage: 1 };
        let mut told = Vec::new();
        for question in
            [Question::Get, Question::Replace(over, write(9)), Question::Complete(write(9)), Question::Remove(over)]
        {
            let (ask, its) = Ask::new(RecordId([1; 32]), question, false, Instant::now() + HOUR);
            queue.put(ask);
            told.push(its);
        }
        let mut order = String::new();
        while queue.is_waited_for() {
            for ask in queue.take() {
                order.push(match ask.question {
                    Question::Insert(_) => 'i',
                    Question::Get => 'g',
                    Question::Replace(..) => 'r',
                    Question::Complete(_) => 'c',
                    Question::Remove(_) => 'x',
                });
                queue.finish(&ask.id);
            }
        }
        // What was first is on its way.
        assert_eq!(order, format!("ircx{}g", "i".repeat(99)));
    }

    #[test]
    fn a_statement_is_bounded() {
        let all = (0..200).map(|key| (key, Question::Insert(write(9)), false)).collect();
        let (queue, _waiting) = queue(all);
        assert_eq!(taken(queue).iter().map(Vec::len).collect::<Vec<_>>(), [64, 64, 64, 8]);
    }

    #[test]
    fn what_was_given_up_is_not_taken_and_holds_up_nothing() {
        let insert = Question::Insert(write(9));
        let (mut queue, waiting) = queue(vec![(1, insert.clone(), false), (2, insert.clone(), false)]);
        drop(waiting);
        let (ask, _told) = Ask::new(RecordId([1; 32]), insert, false, Instant::now() + HOUR);
        queue.put(ask);
        assert_eq!(taken(queue), [[1]]);
    }

    #[test]
    fn what_has_waited_too_long_is_taken_out_wherever_it_waits() {
        let now = Instant::now();
        let mut queue = Queue::new(3);
        let mut waiting = Vec::new();
        for (key, patience) in [(1, 9), (1, 1), (1, 9), (2, 1), (2, 9), (3, 1), (4, 9)] {
            let (ask, told) = Ask::new(RecordId([key; 32]), Question::Get, false, now + HOUR * patience);
            queue.put(ask);
            waiting.push(told);
        }
        assert!(queue.take_late(now).is_empty());
        let late = queue.take_late(now + HOUR * 5);
        let mut late: Vec<_> = late.iter().map(|ask| ask.id.0[0]).collect();
        late.sort_unstable();
        assert_eq!(late, [1, 2, 3]);
        // What waited behind one of them goes on.
        assert_eq!(taken(queue), [vec![1, 2, 4], vec![1]]);
    }

    #[test]
    fn few_connections_work_and_more_where_one_is_slow() {
        let (mut queue, _waiting) = queue(vec![(1, Question::Get, false)]);
        assert_eq!([queue.hire(), queue.hire(), queue.hire()], [Some(0), Some(1), None]);
        queue.goes(0, false, true);
        assert_eq!([queue.hire(), queue.hire()], [Some(2), None]);
        queue.leaves(1, true);
        assert_eq!(queue.hire(), Some(1));
        drop(queue.take());
        queue.leaves(1, true);
        assert_eq!(queue.hire(), None, "nothing waits");
    }
}

//! The suite that every store passes: one named test a rule of the [contract](crate::store::Store).
//!
//! # Example
//!
//! One line a store makes a module of tests, one for each rule. The expression makes an empty store for each:
//!
//! ```
//! use std::sync::Arc;
//!
//! use onceward::clock::ManualClock;
//! use onceward::conformance::Subject;
//! use onceward::store::MemoryStore;
//!
//! onceward::store_conformance!(memory, || async {
//!     let clock = ManualClock::default();
//!     let store = MemoryStore::with_clock(256 << 20, Arc::new(clock.clone()));
//!     Subject::new(Arc::new(store), clock)
//! });
//! // → memory::racing_inserts_have_one_winner, memory::a_stale_holder_cannot_complete, …
//! # fn main() {}
//! ```
//!
//! It needs `tokio` with its macros and its threads among the `dev-dependencies`.
//!
//! # Example: a store that cannot be told the time, and many processes
//!
//! A store whose time is a server's says how to move it, and how exact its ages are. A second client of the same data
//! shows that what one writes the other sees:
//!
//! ```
//! # use std::{sync::Arc, time::Duration};
//! # use onceward::{clock::ManualClock, conformance::Subject, store::{MemoryStore, Store}};
//! # fn connect() -> Arc<dyn Store> { Arc::new(MemoryStore::new(1 << 20)) }
//! # async fn set_server_time_forward(by: Duration) {}
//! let subject = Subject::moved_by(connect(), Duration::from_millis(500), |by| Box::pin(set_server_time_forward(by)))
//!     .with_other(connect());
//! ```

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderName, HeaderValue};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::clock::ManualClock;
use crate::fingerprint::{Fingerprint, Kind, Rules};
use crate::record::{AttemptId, Executed, Found, Kept, Phase, Print, Record, Stage, Version};
use crate::reply::{Head, Reply};
use crate::secret::{KeyHash, RecordId};
use crate::store::{Census, Pending, Replaced, Store};

/// Makes a module `$name` with one test for each rule. `$subject` is called for each, and gives a future of a [`Subject`].
#[macro_export]
macro_rules! store_conformance {
    ($name:ident, $subject:expr) => {
        mod $name {
            #[allow(unused_imports, reason = "the subject is written where the module stands")]
            use super::*;

            $crate::store_conformance! { @rules ($subject)
                nothing_is_found_before_the_first_insert
                an_insert_is_found
                an_insert_over_what_is_there_changes_nothing
                racing_inserts_have_one_winner
                ids_that_are_alike_do_not_meet
                a_replace_compares_the_attempt
                a_replace_compares_the_stage
                a_replace_of_nothing_says_so
                racing_replaces_have_one_winner
                a_stale_holder_cannot_complete
                a_stale_holder_cannot_renew
                a_stale_holder_cannot_release
                a_version_that_came_back_is_another
                a_completed_record_stays_what_it_is
                a_remove_compares_the_version
                a_removed_record_is_gone
                due_lists_what_is_due_and_nothing_else
                due_lists_the_oldest_first
                due_is_bounded_and_changes_nothing
                an_unknown_is_never_due
                a_renewed_claim_is_due_later
                what_was_replaced_is_not_due_as_what_it_was
                ages_advance
                a_write_restarts_its_age_and_no_other
                a_refused_write_leaves_the_age
                nothing_expires_by_itself
                a_named_value_is_inserted_once
                racing_named_values_agree
                named_values_are_kept_apart
                each_phase_comes_back_as_it_was_written
                bodies_come_back_byte_for_byte
                headers_come_back_in_order
                a_large_answer_comes_back_whole
                a_read_sees_every_write_before_it
                one_history_under_load
                a_dropped_future_leaves_the_store_usable
                the_census_counts
                two_clients_agree
                the_facts_are_told
            }
        }
    };
    (@rules ($subject:expr) $($rule:ident)*) => {
        $(
            #[::tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $rule() {
                $crate::conformance::$rule(($subject)().await).await;
            }
        )*
    };
}

/// A store to be tested: empty, and used by nobody else.
pub struct Subject {
    store: Arc<dyn Store>,
    other: Arc<dyn Store>,
    advance: Box<Advance>,
    slack: Duration,
    ends_by_itself: bool,
    _kept: Vec<Box<dyn Any + Send + Sync>>,
}

type Advance = dyn Fn(Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync;

impl Subject {
    /// A store whose ages are told by `clock`.
    pub fn new(store: Arc<dyn Store>, clock: ManualClock) -> Self {
        Self::moved_by(store, Duration::ZERO, move |by| {
            clock.advance(by);
            Box::pin(std::future::ready(()))
        })
    }

    /// A store whose time is moved by `advance`, and whose ages are within `slack` of what was moved.
    pub fn moved_by(
        store: Arc<dyn Store>,
        slack: Duration,
        advance: impl Fn(Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            other: store.clone(),
            store,
            advance: Box::new(advance),
            slack,
            ends_by_itself: false,
            _kept: Vec::new(),
        }
    }

    /// With a second client of the same data, as another process has one.
    pub fn with_other(mut self, other: Arc<dyn Store>) -> Self {
        self.other = other;
        self
    }

    /// Over a server that ends by itself what is past its time: an answer becomes a tombstone, and a tombstone or what was
    /// released goes, without a sweep.
    pub fn ending_by_itself(mut self) -> Self {
        self.ends_by_itself = true;
        self
    }

    /// A record that is due at its time: completed, where it waits for the sweep.
    fn due_at_its_time(&self, attempt: AttemptId) -> Record {
        if self.ends_by_itself { in_flight(attempt) } else { completed(attempt) }
    }

    /// With something that must live as long as the store, such as its folder.
    pub fn keeping(mut self, kept: impl Any + Send + Sync) -> Self {
        self._kept.push(Box::new(kept));
        self
    }

    async fn advance(&self, by: Duration) {
        (self.advance)(by).await;
    }

    #[track_caller]
    fn assert_age(&self, found: &Found, want: Duration) {
        let [least, most] = [want.saturating_sub(self.slack), want + self.slack];
        assert!((least..=most).contains(&found.age), "the age is {:?}, and {want:?} passed", found.age);
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").field("store", &self.store).finish_non_exhaustive()
    }
}

/// What is not there is not found, not replaced, not removed, not due.
pub async fn nothing_is_found_before_the_first_insert(subject: Subject) {
    let store = &subject.store;
    let record = in_flight(attempt(1));
    assert_eq!(get(store, 1).await, None);
    assert!(!store.remove(&id(1), record.version()).await.unwrap());
    assert_eq!(store.due(100).await.unwrap(), []);
    assert_eq!(count(store.census().await.unwrap()), [0; 5]);
}

/// An insert says that nothing was there, and is found from then on.
pub async fn an_insert_is_found(subject: Subject) {
    let store = &subject.store;
    let record = in_flight(attempt(1));
    assert_eq!(insert(store, 1, &record).await, None);
    let found = store.get(&id(1)).await.unwrap().expect("it was inserted");
    assert_eq!(*found.record, record);
    assert!(!found.holder_gone, "its holder is this process");
    subject.assert_age(&found, Duration::ZERO);
}

/// The second insert gets what the first wrote, whatever stage that is in.
pub async fn an_insert_over_what_is_there_changes_nothing(subject: Subject) {
    let store = &subject.store;
    for (n, there) in each_phase(attempt(1)).into_iter().enumerate() {
        insert(store, n, &there).await;
        assert_eq!(insert(store, n, &in_flight(attempt(2))).await, Some(there.clone()));
        assert_eq!(get(store, n).await, Some(there));
    }
}

/// Of many that insert at once, one is told that nothing was there, and the others what it wrote.
pub async fn racing_inserts_have_one_winner(subject: Subject) {
    for round in 0..20 {
        let mut racers = JoinSet::new();
        for racer in 0..16 {
            let store = if racer % 2 == 0 { subject.store.clone() } else { subject.other.clone() };
            racers.spawn(async move {
                let record = in_flight(attempt(racer));
                (record.attempt, insert(&store, round, &record).await)
            });
        }
        let outcomes = racers.join_all().await;
        let winners: Vec<_> = outcomes.iter().filter(|(_, found)| found.is_none()).collect();
        assert_eq!(winners.len(), 1, "round {round}");
        let winner = winners[0].0;
        for (_, found) in outcomes {
            assert!(found.is_none_or(|found| found.attempt == winner), "a loser was shown another than the winner");
        }
        assert_eq!(get(&subject.store, round).await.unwrap().attempt, winner);
    }
}

/// An id counts to its last bit, and an empty one is as good as another.
pub async fn ids_that_are_alike_do_not_meet(subject: Subject) {
    let store = &subject.store;
    let mut ids = vec![RecordId([0; 32]), RecordId([0xff; 32])];
    for bit in [0, 1, 7, 8, 100, 254, 255] {
        let mut id = [0; 32];
        id[bit / 8] = 1 << (bit % 8);
        ids.push(RecordId(id));
    }
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(store.insert(id, &in_flight(attempt(n))).await.unwrap(), None);
    }
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(store.get(id).await.unwrap().unwrap().record.attempt, attempt(n));
    }
}

/// Another attempt's version is not replaced; what is there is told.
pub async fn a_replace_compares_the_attempt(subject: Subject) {
    let store = &subject.store;
    let there = in_flight(attempt(1));
    insert(store, 1, &there).await;
    let other = Version { attempt: attempt(2), stage: Stage::InFlight };
    assert_eq!(replace(store, 1, other, &completed(attempt(2))).await, Err(Some(there.clone())));
    assert_eq!(get(store, 1).await, Some(there.clone()));
    assert_eq!(replace(store, 1, there.version(), &completed(attempt(1))).await, Ok(()));
    assert_eq!(get(store, 1).await, Some(completed(attempt(1))));
}

/// The attempt alone is not enough.
pub async fn a_replace_compares_the_stage(subject: Subject) {
    let store = &subject.store;
    for (n, there) in each_phase(attempt(1)).into_iter().enumerate() {
        insert(store, n, &there).await;
        let stages = [Stage::InFlight, Stage::Completed, Stage::Released, Stage::Unknown, Stage::Tombstone];
        for stage in stages.into_iter().filter(|stage| *stage != there.phase.stage()) {
            let over = Version { attempt: there.attempt, stage };
            assert_eq!(replace(store, n, over, &in_flight(attempt(2))).await, Err(Some(there.clone())), "{stage:?}");
        }
        assert_eq!(get(store, n).await, Some(there.clone()));
        assert_eq!(replace(store, n, there.version(), &in_flight(attempt(2))).await, Ok(()));
    }
}

/// Where nothing is, nothing is replaced, and nothing appears.
pub async fn a_replace_of_nothing_says_so(subject: Subject) {
    let store = &subject.store;
    let record = in_flight(attempt(1));
    assert_eq!(replace(store, 1, record.version(), &record).await, Err(None));
    assert_eq!(get(store, 1).await, None);
}

/// Of many that replace the same version at once, one succeeds, and the others are shown what it wrote.
pub async fn racing_replaces_have_one_winner(subject: Subject) {
    for round in 0..20 {
        let there = in_flight(attempt(1000));
        insert(&subject.store, round, &there).await;
        let mut racers = JoinSet::new();
        for racer in 0..16 {
            let store = if racer % 2 == 0 { subject.store.clone() } else { subject.other.clone() };
            let over = there.version();
            racers.spawn(async move { (racer, replace(&store, round, over, &in_flight(attempt(racer))).await) });
        }
        let outcomes = racers.join_all().await;
        let winners: Vec<_> = outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).map(|(racer, _)| *racer).collect();
        assert_eq!(winners.len(), 1, "round {round}");
        let winner = in_flight(attempt(winners[0]));
        for (_, outcome) in outcomes {
            assert!(outcome.is_ok() || outcome == Err(Some(winner.clone())), "a loser was shown {outcome:?}");
        }
        assert_eq!(get(&subject.store, round).await, Some(winner));
    }
}

/// Who was overtaken does not complete over who overtook.
pub async fn a_stale_holder_cannot_complete(subject: Subject) {
    stale_holder_cannot(&subject, completed(attempt(1))).await;
}

/// Who was overtaken does not renew.
pub async fn a_stale_holder_cannot_renew(subject: Subject) {
    stale_holder_cannot(&subject, in_flight(attempt(1))).await;
}

/// Who was overtaken does not release, and does not remove.
pub async fn a_stale_holder_cannot_release(subject: Subject) {
    stale_holder_cannot(&subject, released(attempt(1))).await;
}

async fn stale_holder_cannot(subject: &Subject, write: Record) {
    let store = &subject.store;
    let stale = in_flight(attempt(1));
    insert(store, 1, &stale).await;
    // Overtaken, and overtaken again, then ended in each of the ways that an attempt ends.
    let mut there = stale.clone();
    for (n, next) in
        [in_flight(attempt(2)), in_flight(attempt(3))].into_iter().chain(each_phase(attempt(4))).enumerate()
    {
        replace(store, 1, there.version(), &next).await.unwrap();
        assert_eq!(replace(&subject.other, 1, stale.version(), &write).await, Err(Some(next.clone())), "step {n}");
        assert!(!subject.other.remove(&id(1), stale.version()).await.unwrap(), "step {n}");
        assert_eq!(get(store, 1).await, Some(next.clone()));
        there = next;
    }
}

/// A key that is free again is not the free key that somebody saw before.
pub async fn a_version_that_came_back_is_another(subject: Subject) {
    let store = &subject.store;
    insert(store, 1, &in_flight(attempt(1))).await;
    replace(store, 1, in_flight(attempt(1)).version(), &released(attempt(1))).await.unwrap();
    let seen = released(attempt(1)).version();
    replace(store, 1, seen, &in_flight(attempt(2))).await.unwrap();
    replace(store, 1, in_flight(attempt(2)).version(), &released(attempt(2))).await.unwrap();
    assert_eq!(replace(store, 1, seen, &in_flight(attempt(3))).await, Err(Some(released(attempt(2)))));
    // The same once it was removed, and was inserted by another.
    assert!(store.remove(&id(1), released(attempt(2)).version()).await.unwrap());
    insert(store, 1, &released(attempt(4))).await;
    assert_eq!(replace(store, 1, seen, &in_flight(attempt(5))).await, Err(Some(released(attempt(4)))));
    assert!(!store.remove(&id(1), released(attempt(2)).version()).await.unwrap());
}

/// An answer that is kept is neither overwritten by another attempt nor by its own, unless that says that it replaces it.
pub async fn a_completed_record_stays_what_it_is(subject: Subject) {
    let store = &subject.store;
    let kept = completed(attempt(1));
    insert(store, 1, &kept).await;
    for over in [in_flight(attempt(1)), in_flight(attempt(2)), completed(attempt(2)), unknown(attempt(1))] {
        let mut other = completed(over.attempt);
        if let Phase::Completed { kept, .. } = &mut other.phase {
            *kept = Kept::Head(Head { status: StatusCode::ACCEPTED, location: None });
        }
        assert_eq!(replace(store, 1, over.version(), &other).await, Err(Some(kept.clone())));
    }
    assert_eq!(insert(store, 1, &in_flight(attempt(3))).await, Some(kept.clone()));
    assert_eq!(get(store, 1).await, Some(kept.clone()));
    assert_eq!(replace(store, 1, kept.version(), &tombstone(attempt(1))).await, Ok(()));
}

/// A remove takes the version that it names, and no other.
pub async fn a_remove_compares_the_version(subject: Subject) {
    let store = &subject.store;
    for (n, there) in each_phase(attempt(1)).into_iter().enumerate() {
        insert(store, n, &there).await;
        let others = each_phase(attempt(2)).into_iter().chain(each_phase(attempt(1)));
        for other in others.filter(|other| other.version() != there.version()) {
            assert!(!store.remove(&id(n), other.version()).await.unwrap(), "{:?}", other.version());
        }
        assert_eq!(get(store, n).await, Some(there.clone()));
        assert!(store.remove(&id(n), there.version()).await.unwrap());
        assert!(!store.remove(&id(n), there.version()).await.unwrap(), "it was removed twice");
    }
}

/// What was removed is as if it had never been; its id is free.
pub async fn a_removed_record_is_gone(subject: Subject) {
    let store = &subject.store;
    let first = subject.due_at_its_time(attempt(1));
    insert(store, 1, &first).await;
    insert(store, 2, &first).await;
    assert!(store.remove(&id(1), first.version()).await.unwrap());
    assert_eq!(get(store, 1).await, None);
    assert_eq!(get(store, 2).await, Some(first.clone()), "another was removed too");
    subject.advance(DAY * 2).await;
    assert_eq!(due(store, 100).await, [2]);
    assert_eq!(replace(store, 1, first.version(), &first).await, Err(None));
    assert_eq!(insert(store, 1, &in_flight(attempt(2))).await, None);
    assert_eq!(get(store, 1).await, Some(in_flight(attempt(2))));
}

/// Not before its time, from then on, and nothing else.
pub async fn due_lists_what_is_due_and_nothing_else(subject: Subject) {
    let store = &subject.store;
    // Each is due after as many hours as its number.
    for n in 1..=4 {
        let phase = if subject.ends_by_itself { 0 } else { [0, 1, 3, 5][n - 1] };
        let mut record = each_phase(attempt(n))[phase].clone();
        set_due(&mut record, HOUR * n as u32);
        insert(store, n, &record).await;
    }
    // To the moment, where the store's time is ours.
    let before = if subject.slack.is_zero() { Duration::from_millis(1) } else { subject.slack * 2 };
    let mut passed = Duration::ZERO;
    for n in 1..=4 {
        let moment = HOUR * n as u32;
        subject.advance(moment - before - passed).await;
        assert_eq!(due(store, 100).await, (1..n).collect::<Vec<_>>(), "before hour {n}");
        subject.advance(before + subject.slack).await;
        assert_eq!(due(store, 100).await, (1..=n).collect::<Vec<_>>(), "at hour {n}");
        passed = moment + subject.slack;
    }
    for (id, found) in store.due(100).await.unwrap() {
        assert_eq!(Some(&found.record), store.get(&id).await.unwrap().map(|found| found.record).as_ref());
        subject.assert_age(&found, passed);
        assert!(found.age >= found.record.due().unwrap(), "it is not due by its own age");
    }
}

/// By when they were due, not by when they were written.
pub async fn due_lists_the_oldest_first(subject: Subject) {
    let store = &subject.store;
    let hours = [7, 3, 9, 1, 8, 2, 6, 4, 5];
    for (n, hours) in hours.into_iter().enumerate() {
        let mut record = if n % 2 == 0 { in_flight(attempt(n)) } else { subject.due_at_its_time(attempt(n)) };
        set_due(&mut record, HOUR * hours);
        insert(store, hours as usize, &record).await;
        subject.advance(Duration::from_secs(60)).await;
    }
    subject.advance(DAY).await;
    assert_eq!(due(store, 100).await, (1..=9).collect::<Vec<_>>());
    assert_eq!(due(store, 4).await, [1, 2, 3, 4]);
}

/// At most as many as were asked for, and looking is not taking.
pub async fn due_is_bounded_and_changes_nothing(subject: Subject) {
    let store = &subject.store;
    for n in 0..10 {
        insert(store, n, &in_flight(attempt(n))).await;
    }
    subject.advance(DAY).await;
    assert_eq!(due(store, 0).await, [0; 0]);
    let first = due(store, 3).await;
    assert_eq!(first.len(), 3);
    assert_eq!(due(store, 3).await, first, "a look changed what is due");
    let mut all = due(store, 1000).await;
    all.sort_unstable();
    assert_eq!(all, (0..10).collect::<Vec<_>>());
    // What is done about those makes room for the others.
    for n in &first {
        assert!(store.remove(&id(*n), in_flight(attempt(*n)).version()).await.unwrap());
    }
    let next = due(store, 1000).await;
    assert_eq!(next.len(), 7);
    assert!(next.iter().all(|n| !first.contains(n)));
}

/// Nobody but its late answer or a person settles it.
pub async fn an_unknown_is_never_due(subject: Subject) {
    let store = &subject.store;
    insert(store, 1, &in_flight(attempt(1))).await;
    replace(store, 1, in_flight(attempt(1)).version(), &unknown(attempt(1))).await.unwrap();
    insert(store, 2, &unknown(attempt(2))).await;
    subject.advance(DAY * 3650).await;
    assert_eq!(due(store, 100).await, [0; 0]);
    assert_eq!(get(store, 1).await, Some(unknown(attempt(1))));
    assert_eq!(get(store, 2).await, Some(unknown(attempt(2))));
}

/// A sign of life begins the lease anew.
pub async fn a_renewed_claim_is_due_later(subject: Subject) {
    let store = &subject.store;
    let claim = in_flight(attempt(1));
    insert(store, 1, &claim).await;
    for _ in 0..3 {
        subject.advance(LEASE / 2).await;
        replace(store, 1, claim.version(), &claim).await.unwrap();
    }
    subject.advance(LEASE * 3 / 4).await;
    assert_eq!(due(store, 100).await, [0; 0]);
    subject.advance(LEASE / 2).await;
    assert_eq!(due(store, 100).await, [1]);
}

/// The time of the last write counts, and that of the one before is forgotten.
pub async fn what_was_replaced_is_not_due_as_what_it_was(subject: Subject) {
    let store = &subject.store;
    insert(store, 1, &in_flight(attempt(1))).await;
    insert(store, 2, &in_flight(attempt(2))).await;
    replace(store, 1, in_flight(attempt(1)).version(), &completed(attempt(1))).await.unwrap();
    subject.advance(LEASE * 2).await;
    assert_eq!(due(store, 100).await, [2]);
    replace(store, 2, in_flight(attempt(2)).version(), &unknown(attempt(2))).await.unwrap();
    assert_eq!(due(store, 100).await, [0; 0]);
    subject.advance(DAY * 2).await;
    if subject.ends_by_itself {
        assert_eq!(due(store, 100).await, [0; 0]);
        let left = get(store, 1).await.expect("its tombstone is not over");
        assert_eq!(left.version(), Version { attempt: attempt(1), stage: Stage::Tombstone });
        return;
    }
    assert_eq!(due(store, 100).await, [1]);
}

/// An age is the time since the last write, by the store's clock.
pub async fn ages_advance(subject: Subject) {
    let store = &subject.store;
    insert(store, 1, &in_flight(attempt(1))).await;
    let mut passed = Duration::ZERO;
    for by in [Duration::from_secs(1), Duration::from_secs(59), HOUR, DAY * 40] {
        subject.advance(by).await;
        passed += by;
        let found = store.get(&id(1)).await.unwrap().unwrap();
        subject.assert_age(&found, passed);
        let found = store.insert(&id(1), &in_flight(attempt(2))).await.unwrap().unwrap();
        subject.assert_age(&found, passed);
    }
}

/// A write makes its own record young, and leaves the others as old as they are.
pub async fn a_write_restarts_its_age_and_no_other(subject: Subject) {
    let store = &subject.store;
    let claim = in_flight(attempt(1));
    for n in 0..3 {
        insert(store, n, &claim).await;
    }
    subject.advance(HOUR).await;
    replace(store, 1, claim.version(), &claim).await.unwrap();
    subject.advance(HOUR).await;
    for (n, want) in [(0, HOUR * 2), (1, HOUR), (2, HOUR * 2)] {
        subject.assert_age(&store.get(&id(n)).await.unwrap().unwrap(), want);
    }
}

/// What was not written is not younger.
pub async fn a_refused_write_leaves_the_age(subject: Subject) {
    let store = &subject.store;
    insert(store, 1, &in_flight(attempt(1))).await;
    subject.advance(HOUR).await;
    insert(store, 1, &in_flight(attempt(2))).await;
    let other = in_flight(attempt(2)).version();
    match store.replace(&id(1), other, &completed(attempt(2))).await.unwrap() {
        Replaced::No(Some(found)) => subject.assert_age(&found, HOUR),
        outcome => panic!("it is there, at another version: {outcome:?}"),
    }
    assert!(!store.remove(&id(1), other).await.unwrap());
    subject.assert_age(&store.get(&id(1)).await.unwrap().unwrap(), HOUR);
}

/// However long nobody looks: a claim and an unknown stay, and so does what is past its time until it is removed.
pub async fn nothing_expires_by_itself(subject: Subject) {
    let store = &subject.store;
    let records = each_phase(attempt(1));
    for (n, record) in records.iter().enumerate() {
        insert(store, n, record).await;
    }
    subject.advance(DAY * 3650).await;
    let listed = due(store, 100).await;
    for (n, record) in records.iter().enumerate() {
        let stays = matches!(record.phase, Phase::InFlight { .. } | Phase::Unknown { .. });
        if subject.ends_by_itself && !stays {
            assert_eq!(get(store, n).await, None);
            assert!(!listed.contains(&n));
            continue;
        }
        assert_eq!(get(store, n).await.as_ref(), Some(record));
        assert_eq!(insert(store, n, &in_flight(attempt(2))).await.as_ref(), Some(record));
        assert_eq!(listed.contains(&n), record.due().is_some());
    }
}

/// The first stays.
pub async fn a_named_value_is_inserted_once(subject: Subject) {
    let store = &subject.store;
    let secret = Bytes::from((0..=255).collect::<Vec<u8>>());
    assert_eq!(store.meta("secret", &secret).await.unwrap(), secret);
    assert_eq!(store.meta("secret", b"another").await.unwrap(), secret);
    assert_eq!(subject.other.meta("secret", b"").await.unwrap(), secret);
}

/// Many that begin at once end up with the same value.
pub async fn racing_named_values_agree(subject: Subject) {
    for round in 0..20 {
        let mut racers = JoinSet::new();
        for racer in 0..16_u8 {
            let store = if racer % 2 == 0 { subject.store.clone() } else { subject.other.clone() };
            racers.spawn(async move { store.meta(&format!("secret {round}"), &[racer; 32]).await.unwrap() });
        }
        let values: HashSet<_> = racers.join_all().await.into_iter().collect();
        assert_eq!(values.len(), 1, "round {round}: {values:?}");
        let value = values.into_iter().next().unwrap();
        assert_eq!(subject.store.meta(&format!("secret {round}"), b"late").await.unwrap(), value);
    }
}

/// Each name has its own; an empty value is one too.
pub async fn named_values_are_kept_apart(subject: Subject) {
    let store = &subject.store;
    let names = ["a", "ab", "b", "a b", "é", "schema"];
    for name in names {
        assert_eq!(store.meta(name, name.as_bytes()).await.unwrap(), name);
    }
    assert_eq!(store.meta("empty", b"").await.unwrap(), "");
    assert_eq!(store.meta("empty", b"late").await.unwrap(), "");
    for name in names {
        assert_eq!(store.meta(name, b"late").await.unwrap(), name);
    }
    assert_eq!(store.census().await.unwrap().completed, 0, "a named value is not a record");
    assert_eq!(due(store, 100).await, [0; 0]);
}

/// Every field of every phase, by an insert and by a replace.
pub async fn each_phase_comes_back_as_it_was_written(subject: Subject) {
    let store = &subject.store;
    for (n, record) in each_phase(AttemptId([0x9c; 16])).into_iter().enumerate() {
        insert(store, 2 * n, &record).await;
        assert_eq!(get(store, 2 * n).await.as_ref(), Some(&record));
        insert(store, 2 * n + 1, &in_flight(attempt(1))).await;
        replace(store, 2 * n + 1, in_flight(attempt(1)).version(), &record).await.unwrap();
        assert_eq!(get(&subject.other, 2 * n + 1).await.as_ref(), Some(&record));
    }
}

/// An empty one, one of each byte, one that looks like text and is not.
pub async fn bodies_come_back_byte_for_byte(subject: Subject) {
    let store = &subject.store;
    let bodies = [Bytes::new(), (0..=255).collect(), Bytes::from_static(b"\r\n\0\xff\xfe\xc3"), vec![0; 5000].into()];
    for (n, body) in bodies.into_iter().enumerate() {
        let record = answered(attempt(n), Reply { body, ..reply() });
        insert(store, n, &record).await;
        assert_eq!(get(store, n).await, Some(record));
    }
}

/// Duplicates, their order, an empty value and bytes beyond ASCII.
pub async fn headers_come_back_in_order(subject: Subject) {
    let store = &subject.store;
    let headers = [
        ("x-b", &b"2"[..]),
        ("x-a", b"1"),
        ("x-b", b"1"),
        ("x-a", b"1"),
        ("x-empty", b""),
        ("x-beyond", b"caf\xe9 \x80\xff"),
        ("x-b", b"3"),
    ];
    let headers = headers.map(|(name, value)| {
        (HeaderName::from_static(name), HeaderValue::from_bytes(value).expect("a value of the suite"))
    });
    let record = answered(attempt(1), Reply { headers: headers.to_vec(), ..reply() });
    insert(store, 1, &record).await;
    let read = get(store, 1).await;
    assert_eq!(read, Some(record));
}

/// As large as an answer may be, with headers on top.
pub async fn a_large_answer_comes_back_whole(subject: Subject) {
    let store = &subject.store;
    // No two of its pages are alike.
    let body: Vec<u8> = (0..(4_u32 << 20) / 4).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    let header = (HeaderName::from_static("x-long"), HeaderValue::from_str(&"h".repeat(60_000)).expect("it is ASCII"));
    let record = answered(attempt(1), Reply { body: body.into(), headers: vec![header; 4], ..reply() });
    insert(store, 1, &in_flight(attempt(1))).await;
    replace(store, 1, in_flight(attempt(1)).version(), &record).await.unwrap();
    // Not by `assert_eq`, which would print it.
    assert!(get(store, 1).await.as_ref() == Some(&record), "it came back as another");
    assert!(insert(store, 1, &in_flight(attempt(2))).await.as_ref() == Some(&record), "it came back as another");
}

/// Whoever has been told of a write finds it, on whatever thread, and so does everybody whom it tells.
pub async fn a_read_sees_every_write_before_it(subject: Subject) {
    let mut tasks = JoinSet::new();
    for task in 0..16 {
        let [mine, theirs] = [subject.store.clone(), subject.other.clone()];
        tasks.spawn(async move {
            let mut there = in_flight(attempt(task));
            insert(&mine, task, &there).await;
            for n in 1..20 {
                assert_eq!(get(&mine, task).await, Some(there.clone()));
                assert_eq!(get(&theirs, task).await, Some(there.clone()));
                let next = in_flight(attempt(1000 * n + task));
                replace(&mine, task, there.version(), &next).await.unwrap();
                there = next;
            }
            assert!(theirs.remove(&id(task), there.version()).await.unwrap());
            assert_eq!(get(&mine, task).await, None);
        });
    }
    tasks.join_all().await;
}

/// Many tasks insert, replace, remove and read a few ids. What they saw must be one history of each: every version is
/// written once and ended at most once, none is read after its end was told, and one is left at the end.
pub async fn one_history_under_load(subject: Subject) {
    const IDS: usize = 4;
    let ticks = Arc::new(AtomicU64::new(0));
    let seen: Arc<Mutex<Vec<(usize, Seen)>>> = Arc::default();
    let mut tasks = JoinSet::new();
    for task in 0..16 {
        let store = if task % 2 == 0 { subject.store.clone() } else { subject.other.clone() };
        let (ticks, seen) = (ticks.clone(), seen.clone());
        tasks.spawn(async move {
            let tick = || ticks.fetch_add(1, Ordering::SeqCst);
            for step in 0..40 {
                let key = (task + step) % IDS;
                let new = attempt(100 + task * 1000 + step);
                let from = tick();
                let found = get(&store, key).await;
                let version = found.as_ref().map(Record::version);
                seen.lock().push((key, Seen::Read { from, version }));
                let from = tick();
                let (wrote, ended) = match (found, step % 5) {
                    (None, _) => {
                        (insert(&store, key, &in_flight(new)).await.is_none().then(|| in_flight(new).version()), None)
                    }
                    (Some(there), 0) => {
                        let removed = store.remove(&id(key), there.version()).await.unwrap();
                        (None, removed.then(|| there.version()))
                    }
                    (Some(there), n) => {
                        let next = if n % 2 == 0 { in_flight(new) } else { completed(new) };
                        match replace(&store, key, there.version(), &next).await {
                            Ok(()) => (Some(next.version()), Some(there.version())),
                            Err(_) => (None, None),
                        }
                    }
                };
                seen.lock().push((key, Seen::Write { from, to: tick(), wrote, ended }));
            }
        });
    }
    tasks.join_all().await;
    let seen = std::mem::take(&mut *seen.lock());
    for key in 0..IDS {
        let last = get(&subject.store, key).await.map(|record| record.version());
        check_history(seen.iter().filter(|(of, _)| *of == key).map(|(_, seen)| seen), last);
    }
}

enum Seen {
    Read { from: u64, version: Option<Version> },
    Write { from: u64, to: u64, wrote: Option<Version>, ended: Option<Version> },
}

fn check_history<'a>(history: impl Iterator<Item = &'a Seen> + Clone, last: Option<Version>) {
    let (mut begun, mut ended) = (HashMap::new(), HashMap::new());
    // How many writes began where nothing was, and ended where nothing is.
    let (mut inserts, mut removes) = (0, 0);
    for seen in history.clone() {
        let Seen::Write { from, to, wrote, ended: over } = seen else { continue };
        if let Some(version) = wrote {
            assert!(begun.insert(*version, *from).is_none(), "{version:?} was written twice");
        }
        if let Some(version) = over {
            assert!(ended.insert(*version, *to).is_none(), "{version:?} was ended twice");
        }
        inserts += i32::from(wrote.is_some() && over.is_none());
        removes += i32::from(wrote.is_none() && over.is_some());
    }
    assert!(begun.len() > 10, "hardly anything was written, so nothing is shown");
    for seen in history {
        let Seen::Read { from, version: Some(version) } = seen else { continue };
        assert!(begun.contains_key(version), "{version:?} was read, and nobody wrote it");
        assert!(ended.get(version).is_none_or(|to| to > from), "{version:?} was read after its end was told");
    }
    assert_eq!(inserts - removes, i32::from(last.is_some()), "not one history");
    let left: Vec<_> = begun.keys().filter(|version| !ended.contains_key(version)).collect();
    assert_eq!(left, last.iter().collect::<Vec<_>>(), "not what is left");
}

/// Whether or not what was given up took effect, it took effect whole, and others go on.
pub async fn a_dropped_future_leaves_the_store_usable(subject: Subject) {
    let store = &subject.store;
    for n in 0..50 {
        let there = in_flight(attempt(n));
        poll_and_drop(store.insert(&id(n), &there));
        let found = insert(store, n, &in_flight(attempt(1000 + n))).await;
        let there = found.unwrap_or_else(|| in_flight(attempt(1000 + n)));
        assert!([attempt(n), attempt(1000 + n)].contains(&there.attempt));
        poll_and_drop(store.replace(&id(n), there.version(), &completed(there.attempt)));
        let outcome = replace(store, n, there.version(), &released(there.attempt)).await;
        let there = match outcome {
            Ok(()) => released(there.attempt),
            Err(found) => found.expect("nobody removed it"),
        };
        assert!([Stage::Completed, Stage::Released].contains(&there.phase.stage()));
        poll_and_drop(store.due(10));
        poll_and_drop(store.census());
        poll_and_drop(store.meta("name", b"value"));
        poll_and_drop(store.get(&id(n)));
        poll_and_drop(store.remove(&id(n), there.version()));
        store.remove(&id(n), there.version()).await.unwrap();
        assert_eq!(get(store, n).await, None);
    }
    assert_eq!(store.meta("name", b"value").await.unwrap(), "value");
    let census = store.census().await.unwrap();
    assert_eq!((census.in_flight, census.completed, census.released), (0, 0, 0));
}

fn poll_and_drop<T>(mut asked: Pending<'_, T>) {
    let _: Poll<_> = Pin::new(&mut asked).poll(&mut Context::from_waker(Waker::noop()));
}

/// After each write, as many of each stage as there are.
pub async fn the_census_counts(subject: Subject) {
    let store = &subject.store;
    // One of each, and a second completed one: the head alone was kept.
    for (n, record) in each_phase(attempt(1)).iter().enumerate() {
        insert(store, n, record).await;
        insert(store, n, &in_flight(attempt(2))).await;
    }
    let census = store.census().await.unwrap();
    assert_eq!(count(census), [1, 2, 1, 1, 1]);
    assert!(census.bytes > 0);
    replace(store, 0, in_flight(attempt(2)).version(), &completed(attempt(2))).await.unwrap_err();
    assert_eq!(count(store.census().await.unwrap()), [1, 2, 1, 1, 1]);
    let large = answered(attempt(1), Reply { body: vec![7; 100_000].into(), ..reply() });
    replace(store, 0, in_flight(attempt(1)).version(), &large).await.unwrap();
    let larger = store.census().await.unwrap();
    assert_eq!(count(larger), [0, 3, 1, 1, 1]);
    assert!(larger.bytes >= census.bytes + 90_000, "{} after {}", larger.bytes, census.bytes);
    assert!(store.remove(&id(0), large.version()).await.unwrap());
    for (n, record) in each_phase(attempt(1)).iter().enumerate().skip(1) {
        assert!(store.remove(&id(n), record.version()).await.unwrap());
    }
    let empty = store.census().await.unwrap();
    assert_eq!(count(empty), [0; 5]);
    assert!(empty.bytes < census.bytes);
}

/// What one writes the other sees, and neither overrules the other.
pub async fn two_clients_agree(subject: Subject) {
    let [one, other] = [&subject.store, &subject.other];
    let claim = in_flight(attempt(1));
    assert_eq!(insert(one, 1, &claim).await, None);
    assert_eq!(insert(other, 1, &in_flight(attempt(2))).await, Some(claim.clone()));
    assert_eq!(replace(other, 1, claim.version(), &in_flight(attempt(3))).await, Ok(()));
    assert_eq!(replace(one, 1, claim.version(), &completed(attempt(1))).await, Err(Some(in_flight(attempt(3)))));
    subject.advance(LEASE * 2).await;
    assert_eq!(due(one, 100).await, [1]);
    assert_eq!(due(other, 100).await, [1]);
    assert_eq!(one.census().await.unwrap().in_flight, other.census().await.unwrap().in_flight);
    assert!(one.remove(&id(1), in_flight(attempt(3)).version()).await.unwrap());
    assert_eq!(get(other, 1).await, None);
    assert_eq!(one.meta("name", b"one").await.unwrap(), other.meta("name", b"other").await.unwrap());
}

/// It says what it is, and no more than can be.
pub async fn the_facts_are_told(subject: Subject) {
    let facts = subject.store.facts();
    assert!(!facts.kind.is_empty() && !facts.promise.is_empty());
    assert!(facts.survives_kill || !facts.survives_power_loss, "what survives a power loss survives a kill");
}

const LEASE: Duration = Duration::from_secs(900);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

fn id(n: usize) -> RecordId {
    // Hashed, as ids are, and with the number in it.
    let mut id = *blake3::hash(&n.to_le_bytes()).as_bytes();
    id[..8].copy_from_slice(&(n as u64).to_le_bytes());
    RecordId(id)
}

fn attempt(n: usize) -> AttemptId {
    let mut attempt = [0xa7; 16];
    attempt[..8].copy_from_slice(&(n as u64).to_le_bytes());
    AttemptId(attempt)
}

async fn insert(store: &Arc<dyn Store>, n: usize, record: &Record) -> Option<Record> {
    store.insert(&id(n), record).await.unwrap().map(|found| *found.record)
}

async fn get(store: &Arc<dyn Store>, n: usize) -> Option<Record> {
    store.get(&id(n)).await.unwrap().map(|found| *found.record)
}

/// `Err`: what is there instead.
async fn replace(store: &Arc<dyn Store>, n: usize, over: Version, record: &Record) -> Result<(), Option<Record>> {
    match store.replace(&id(n), over, record).await.unwrap() {
        Replaced::Yes => Ok(()),
        Replaced::No(found) => Err(found.map(|found| *found.record)),
    }
}

async fn due(store: &Arc<dyn Store>, limit: usize) -> Vec<usize> {
    let number = |id: RecordId| id.0.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes) as usize);
    store.due(limit).await.unwrap().into_iter().map(|(id, _)| number(id)).collect()
}

fn count(census: Census) -> [u64; 5] {
    [census.in_flight, census.completed, census.released, census.unknown, census.tombstones]
}

fn record(attempt: AttemptId, phase: Phase) -> Record {
    Record { key_hash: KeyHash([0xfe; 32]), attempt, phase }
}

fn print() -> Print {
    let headers = vec![HeaderName::from_static("x-tenant"), HeaderName::from_static("accept")];
    Print { fingerprint: Fingerprint([0x81; 32]), rules: Arc::new(Rules { kind: Kind::Exact, headers }) }
}

fn reply() -> Reply {
    let header = (HeaderName::from_static("location"), HeaderValue::from_static("/orders/1"));
    Reply {
        status: StatusCode::CREATED,
        headers: vec![header],
        body: Bytes::from_static(b"{\"order\":1}"),
        redirect: None,
    }
}

fn in_flight(attempt: AttemptId) -> Record {
    let began = Duration::from_millis(1_700_000_000_123);
    record(attempt, Phase::InFlight { print: print(), lease: LEASE, began })
}

fn answered(attempt: AttemptId, reply: Reply) -> Record {
    let kept = Kept::Whole(Arc::new(reply));
    record(attempt, Phase::Completed { print: print(), kept, retention: DAY, tombstone: DAY * 30 })
}

fn completed(attempt: AttemptId) -> Record {
    answered(attempt, reply())
}

fn released(attempt: AttemptId) -> Record {
    record(attempt, Phase::Released { keep: HOUR })
}

fn unknown(attempt: AttemptId) -> Record {
    record(attempt, Phase::Unknown { print: print() })
}

fn tombstone(attempt: AttemptId) -> Record {
    record(attempt, Phase::Tombstone { print: print(), executed: Executed::Unknown, keep: DAY * 30 })
}

/// One of each phase, and one of which the head alone was kept; the claim is the first.
fn each_phase(attempt: AttemptId) -> [Record; 6] {
    let head = Head { status: StatusCode::OK, location: Some("/files/é".to_owned()) };
    let kept = Kept::Head(head);
    [
        in_flight(attempt),
        completed(attempt),
        record(attempt, Phase::Completed { print: print(), kept, retention: DAY, tombstone: DAY * 30 }),
        released(attempt),
        unknown(attempt),
        tombstone(attempt),
    ]
}

fn set_due(record: &mut Record, after: Duration) {
    match &mut record.phase {
        Phase::InFlight { lease, .. } => *lease = after,
        Phase::Completed { retention, .. } => *retention = after,
        Phase::Released { keep } | Phase::Tombstone { keep, .. } => *keep = after,
        Phase::Unknown { .. } => {}
    }
}

#[cfg(test)]
mod tests {
    /// A rule that the macro does not name runs against no store.
    #[test]
    fn each_rule_is_in_the_macro() {
        let source = include_str!("conformance.rs");
        let list = source.split("@rules ($subject)").nth(1).and_then(|rest| rest.split('}').next()).unwrap();
        let mut listed: Vec<_> = list.split_whitespace().collect();
        let rules = source.lines().filter_map(|line| line.strip_prefix("pub async fn "));
        let mut rules: Vec<_> = rules.filter_map(|line| line.strip_suffix("(subject: Subject) {")).collect();
        listed.sort_unstable();
        rules.sort_unstable();
        assert!(rules.len() > 30);
        assert_eq!(listed, rules);
    }
}

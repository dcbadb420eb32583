//! Conformance suite for stores: one named test per rule of the [contract](crate::store::Store).
//!
//! # Example
//!
//! One line per store creates a module of tests, one for each rule. The expression creates an empty
//! store for each test:
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
//! // → memory::concurrent_inserts_have_one_winner, memory::stale_holder_cannot_complete, …
//! # fn main() {}
//! ```
//!
//! The suite needs `tokio` with the features `macros` and `rt-multi-thread` among the
//! `dev-dependencies`.
//!
//! # Example: a store with a server's clock, and several processes
//!
//! If a server measures the ages, the subject says how to move its time, and how exact ages are. A
//! second client of the same data shows that clients see each other's writes:
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
use crate::record::{
    AttemptId, Executed, FingerprintWithRules, Phase, PhaseKind, Record, Retained, StoredRecord, Version,
};
use crate::reply::{Head, StoredResponse};
use crate::secret::{KeyHash, RecordId};
use crate::store::{Cas, Store, StoreFuture, StoreStats};

/// Creates a module `$name` with one test per rule. `$subject` is called for each, and returns a
/// future of a [`Subject`].
#[macro_export]
macro_rules! store_conformance {
    ($name:ident, $subject:expr) => {
        mod $name {
            #[allow(unused_imports, reason = "the subject is written where the module stands")]
            use super::*;

            $crate::store_conformance! { @rules ($subject)
                empty_store_finds_nothing
                inserted_record_is_found
                insert_of_existing_id_changes_nothing
                concurrent_inserts_have_one_winner
                similar_ids_do_not_collide
                compare_and_swap_compares_the_attempt
                compare_and_swap_compares_the_phase
                compare_and_swap_of_absent_record_conflicts
                concurrent_swaps_have_one_winner
                stale_holder_cannot_complete
                stale_holder_cannot_renew
                stale_holder_cannot_release
                reinserted_record_has_another_version
                completed_record_is_immutable
                remove_compares_the_version
                removed_record_is_absent
                due_returns_only_due_records
                due_returns_oldest_first
                due_respects_limit_and_changes_nothing
                unknown_record_is_never_due
                renewed_claim_is_due_later
                replaced_record_is_not_due_by_its_old_phase
                age_advances_with_the_clock
                write_resets_only_its_own_age
                rejected_write_keeps_the_age
                records_do_not_expire_without_remove
                named_value_is_inserted_once
                concurrent_named_values_agree
                named_values_are_independent
                every_phase_round_trips
                bodies_round_trip_byte_for_byte
                headers_round_trip_in_order
                large_response_round_trips
                read_after_write_is_consistent
                concurrent_operations_are_linearizable
                dropped_future_leaves_store_usable
                stats_count_records_by_phase
                two_clients_see_the_same_data
                info_is_consistent
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

/// Store under test: empty, and used by nobody else.
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
    /// Creates a subject whose ages are measured by `clock`.
    pub fn new(store: Arc<dyn Store>, clock: ManualClock) -> Self {
        Self::moved_by(store, Duration::ZERO, move |by| {
            clock.advance(by);
            Box::pin(std::future::ready(()))
        })
    }

    /// Creates a subject whose time is moved by `advance`, and whose ages are exact to within
    /// `slack`.
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

    /// Adds a second client of the same data, as another process would be.
    pub fn with_other(mut self, other: Arc<dyn Store>) -> Self {
        self.other = other;
        self
    }

    /// Declares a backend with native TTLs: expired responses become tombstones, and expired
    /// tombstones and released records vanish, without a sweep.
    pub fn ending_by_itself(mut self) -> Self {
        self.ends_by_itself = true;
        self
    }

    /// Returns a record that the store must return from `due`: completed, if expiry is left to the
    /// sweep.
    fn due_at_its_time(&self, attempt: AttemptId) -> Record {
        if self.ends_by_itself { in_flight(attempt) } else { completed(attempt) }
    }

    /// Keeps something alive as long as the store, such as its directory.
    pub fn keeping(mut self, kept: impl Any + Send + Sync) -> Self {
        self._kept.push(Box::new(kept));
        self
    }

    async fn advance(&self, by: Duration) {
        (self.advance)(by).await;
    }

    #[track_caller]
    fn assert_age(&self, found: &StoredRecord, want: Duration) {
        let [least, most] = [want.saturating_sub(self.slack), want + self.slack];
        assert!((least..=most).contains(&found.age), "the age is {:?}, and {want:?} passed", found.age);
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").field("store", &self.store).finish_non_exhaustive()
    }
}

/// Checks that an absent record is not found, replaced, removed or due.
pub async fn empty_store_finds_nothing(subject: Subject) {
    let store = &subject.store;
    let record = in_flight(attempt(1));
    assert_eq!(get(store, 1).await, None);
    assert!(!store.remove(&id(1), record.version()).await.unwrap());
    assert_eq!(store.due(100).await.unwrap(), []);
    assert_eq!(count(store.stats().await.unwrap()), [0; 5]);
}

/// Checks that an insert reports that no record existed, and that the record is found afterwards.
pub async fn inserted_record_is_found(subject: Subject) {
    let store = &subject.store;
    let record = in_flight(attempt(1));
    assert_eq!(insert(store, 1, &record).await, None);
    let found = store.get(&id(1)).await.unwrap().expect("it was inserted");
    assert_eq!(*found.record, record);
    assert!(!found.owner_lost, "its holder is this process");
    subject.assert_age(&found, Duration::ZERO);
}

/// Checks that a second insert returns the existing record, whatever its phase.
pub async fn insert_of_existing_id_changes_nothing(subject: Subject) {
    let store = &subject.store;
    for (n, there) in each_phase(attempt(1)).into_iter().enumerate() {
        insert(store, n, &there).await;
        assert_eq!(insert(store, n, &in_flight(attempt(2))).await, Some(there.clone()));
        assert_eq!(get(store, n).await, Some(there));
    }
}

/// Checks that exactly one of many concurrent inserts wins, and that the others get its record.
pub async fn concurrent_inserts_have_one_winner(subject: Subject) {
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

/// Checks that ids are compared to their last bit.
pub async fn similar_ids_do_not_collide(subject: Subject) {
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

/// Checks that a compare-and-swap with another attempt's version changes nothing and returns the
/// current record.
pub async fn compare_and_swap_compares_the_attempt(subject: Subject) {
    let store = &subject.store;
    let there = in_flight(attempt(1));
    insert(store, 1, &there).await;
    let other = Version { attempt: attempt(2), stage: PhaseKind::InFlight };
    assert_eq!(replace(store, 1, other, &completed(attempt(2))).await, Err(Some(there.clone())));
    assert_eq!(get(store, 1).await, Some(there.clone()));
    assert_eq!(replace(store, 1, there.version(), &completed(attempt(1))).await, Ok(()));
    assert_eq!(get(store, 1).await, Some(completed(attempt(1))));
}

/// Checks that a matching attempt with another phase is not replaced.
pub async fn compare_and_swap_compares_the_phase(subject: Subject) {
    let store = &subject.store;
    for (n, there) in each_phase(attempt(1)).into_iter().enumerate() {
        insert(store, n, &there).await;
        let stages =
            [PhaseKind::InFlight, PhaseKind::Completed, PhaseKind::Released, PhaseKind::Unknown, PhaseKind::Tombstone];
        for stage in stages.into_iter().filter(|stage| *stage != there.phase.stage()) {
            let over = Version { attempt: there.attempt, stage };
            assert_eq!(replace(store, n, over, &in_flight(attempt(2))).await, Err(Some(there.clone())), "{stage:?}");
        }
        assert_eq!(get(store, n).await, Some(there.clone()));
        assert_eq!(replace(store, n, there.version(), &in_flight(attempt(2))).await, Ok(()));
    }
}

/// Checks that a compare-and-swap of an absent record inserts nothing.
pub async fn compare_and_swap_of_absent_record_conflicts(subject: Subject) {
    let store = &subject.store;
    let record = in_flight(attempt(1));
    assert_eq!(replace(store, 1, record.version(), &record).await, Err(None));
    assert_eq!(get(store, 1).await, None);
}

/// Checks that exactly one of many concurrent swaps of a version wins, and that the others get its
/// record.
pub async fn concurrent_swaps_have_one_winner(subject: Subject) {
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

/// Checks that a superseded holder cannot complete.
pub async fn stale_holder_cannot_complete(subject: Subject) {
    stale_holder_cannot(&subject, completed(attempt(1))).await;
}

/// Checks that a superseded holder cannot renew.
pub async fn stale_holder_cannot_renew(subject: Subject) {
    stale_holder_cannot(&subject, in_flight(attempt(1))).await;
}

/// Checks that a superseded holder can neither release nor remove.
pub async fn stale_holder_cannot_release(subject: Subject) {
    stale_holder_cannot(&subject, released(attempt(1))).await;
}

async fn stale_holder_cannot(subject: &Subject, write: Record) {
    let store = &subject.store;
    let stale = in_flight(attempt(1));
    insert(store, 1, &stale).await;
    // Superseded twice, then ended in every way in which an attempt can end.
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

/// Checks that a key that was released and claimed again has another version.
pub async fn reinserted_record_has_another_version(subject: Subject) {
    let store = &subject.store;
    insert(store, 1, &in_flight(attempt(1))).await;
    replace(store, 1, in_flight(attempt(1)).version(), &released(attempt(1))).await.unwrap();
    let seen = released(attempt(1)).version();
    replace(store, 1, seen, &in_flight(attempt(2))).await.unwrap();
    replace(store, 1, in_flight(attempt(2)).version(), &released(attempt(2))).await.unwrap();
    assert_eq!(replace(store, 1, seen, &in_flight(attempt(3))).await, Err(Some(released(attempt(2)))));
    // The same for a key that was removed and inserted by another attempt.
    assert!(store.remove(&id(1), released(attempt(2)).version()).await.unwrap());
    insert(store, 1, &released(attempt(4))).await;
    assert_eq!(replace(store, 1, seen, &in_flight(attempt(5))).await, Err(Some(released(attempt(4)))));
    assert!(!store.remove(&id(1), released(attempt(2)).version()).await.unwrap());
}

/// Checks that a completed record is overwritten only by a swap that names its version.
pub async fn completed_record_is_immutable(subject: Subject) {
    let store = &subject.store;
    let kept = completed(attempt(1));
    insert(store, 1, &kept).await;
    for over in [in_flight(attempt(1)), in_flight(attempt(2)), completed(attempt(2)), unknown(attempt(1))] {
        let mut other = completed(over.attempt);
        if let Phase::Completed { kept, .. } = &mut other.phase {
            *kept = Retained::HeadOnly(Head { status: StatusCode::ACCEPTED, location: None });
        }
        assert_eq!(replace(store, 1, over.version(), &other).await, Err(Some(kept.clone())));
    }
    assert_eq!(insert(store, 1, &in_flight(attempt(3))).await, Some(kept.clone()));
    assert_eq!(get(store, 1).await, Some(kept.clone()));
    assert_eq!(replace(store, 1, kept.version(), &tombstone(attempt(1))).await, Ok(()));
}

/// Checks that a remove with another version changes nothing.
pub async fn remove_compares_the_version(subject: Subject) {
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

/// Checks that a removed record is absent and that its id can be claimed again.
pub async fn removed_record_is_absent(subject: Subject) {
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

/// Checks that `due` returns a record exactly from its due time on.
pub async fn due_returns_only_due_records(subject: Subject) {
    let store = &subject.store;
    // Record n is due after n hours.
    for n in 1..=4 {
        let phase = if subject.ends_by_itself { 0 } else { [0, 1, 3, 5][n - 1] };
        let mut record = each_phase(attempt(n))[phase].clone();
        set_due(&mut record, HOUR * n as u32);
        insert(store, n, &record).await;
    }
    // To the nanosecond, if the suite controls the store's clock.
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

/// Checks that `due` sorts by due time, not by write time.
pub async fn due_returns_oldest_first(subject: Subject) {
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

/// Checks that `due` returns at most `limit` records and changes none.
pub async fn due_respects_limit_and_changes_nothing(subject: Subject) {
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
    // Handling them makes room for the others.
    for n in &first {
        assert!(store.remove(&id(*n), in_flight(attempt(*n)).version()).await.unwrap());
    }
    let next = due(store, 1000).await;
    assert_eq!(next.len(), 7);
    assert!(next.iter().all(|n| !first.contains(n)));
}

/// Checks that an unknown record stays until it is resolved.
pub async fn unknown_record_is_never_due(subject: Subject) {
    let store = &subject.store;
    insert(store, 1, &in_flight(attempt(1))).await;
    replace(store, 1, in_flight(attempt(1)).version(), &unknown(attempt(1))).await.unwrap();
    insert(store, 2, &unknown(attempt(2))).await;
    subject.advance(DAY * 3650).await;
    assert_eq!(due(store, 100).await, [0; 0]);
    assert_eq!(get(store, 1).await, Some(unknown(attempt(1))));
    assert_eq!(get(store, 2).await, Some(unknown(attempt(2))));
}

/// Checks that a renewal restarts the lease.
pub async fn renewed_claim_is_due_later(subject: Subject) {
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

/// Checks that only the last write determines when a record is due.
pub async fn replaced_record_is_not_due_by_its_old_phase(subject: Subject) {
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
        assert_eq!(left.version(), Version { attempt: attempt(1), stage: PhaseKind::Tombstone });
        return;
    }
    assert_eq!(due(store, 100).await, [1]);
}

/// Checks that the age is the time since the last write, by the store's clock.
pub async fn age_advances_with_the_clock(subject: Subject) {
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

/// Checks that a write resets the age of its own record only.
pub async fn write_resets_only_its_own_age(subject: Subject) {
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

/// Checks that a rejected write does not change the age.
pub async fn rejected_write_keeps_the_age(subject: Subject) {
    let store = &subject.store;
    insert(store, 1, &in_flight(attempt(1))).await;
    subject.advance(HOUR).await;
    insert(store, 1, &in_flight(attempt(2))).await;
    let other = in_flight(attempt(2)).version();
    match store.compare_and_swap(&id(1), other, &completed(attempt(2))).await.unwrap() {
        Cas::Conflict(Some(found)) => subject.assert_age(&found, HOUR),
        outcome => panic!("it is there, at another version: {outcome:?}"),
    }
    assert!(!store.remove(&id(1), other).await.unwrap());
    subject.assert_age(&store.get(&id(1)).await.unwrap().unwrap(), HOUR);
}

/// Checks that claims, unknown records and overdue records stay until they are removed, however
/// long nobody reads them.
pub async fn records_do_not_expire_without_remove(subject: Subject) {
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

/// Checks that the first value stays.
pub async fn named_value_is_inserted_once(subject: Subject) {
    let store = &subject.store;
    let secret = Bytes::from((0..=255).collect::<Vec<u8>>());
    assert_eq!(store.get_or_insert_meta("secret", &secret).await.unwrap(), secret);
    assert_eq!(store.get_or_insert_meta("secret", b"another").await.unwrap(), secret);
    assert_eq!(subject.other.get_or_insert_meta("secret", b"").await.unwrap(), secret);
}

/// Checks that concurrent callers get the same value.
pub async fn concurrent_named_values_agree(subject: Subject) {
    for round in 0..20 {
        let mut racers = JoinSet::new();
        for racer in 0..16_u8 {
            let store = if racer % 2 == 0 { subject.store.clone() } else { subject.other.clone() };
            racers.spawn(
                async move { store.get_or_insert_meta(&format!("secret {round}"), &[racer; 32]).await.unwrap() },
            );
        }
        let values: HashSet<_> = racers.join_all().await.into_iter().collect();
        assert_eq!(values.len(), 1, "round {round}: {values:?}");
        let value = values.into_iter().next().unwrap();
        assert_eq!(subject.store.get_or_insert_meta(&format!("secret {round}"), b"late").await.unwrap(), value);
    }
}

/// Checks that each name has its own value, which may be empty.
pub async fn named_values_are_independent(subject: Subject) {
    let store = &subject.store;
    let names = ["a", "ab", "b", "a b", "é", "schema"];
    for name in names {
        assert_eq!(store.get_or_insert_meta(name, name.as_bytes()).await.unwrap(), name);
    }
    assert_eq!(store.get_or_insert_meta("empty", b"").await.unwrap(), "");
    assert_eq!(store.get_or_insert_meta("empty", b"late").await.unwrap(), "");
    for name in names {
        assert_eq!(store.get_or_insert_meta(name, b"late").await.unwrap(), name);
    }
    assert_eq!(store.stats().await.unwrap().completed, 0, "a named value is not a record");
    assert_eq!(due(store, 100).await, [0; 0]);
}

/// Checks that every field of every phase survives an insert and a swap.
pub async fn every_phase_round_trips(subject: Subject) {
    let store = &subject.store;
    for (n, record) in each_phase(AttemptId([0x9c; 16])).into_iter().enumerate() {
        insert(store, 2 * n, &record).await;
        assert_eq!(get(store, 2 * n).await.as_ref(), Some(&record));
        insert(store, 2 * n + 1, &in_flight(attempt(1))).await;
        replace(store, 2 * n + 1, in_flight(attempt(1)).version(), &record).await.unwrap();
        assert_eq!(get(&subject.other, 2 * n + 1).await.as_ref(), Some(&record));
    }
}

/// Checks empty bodies, bodies with every byte, and bodies that look like text and are not.
pub async fn bodies_round_trip_byte_for_byte(subject: Subject) {
    let store = &subject.store;
    let bodies = [Bytes::new(), (0..=255).collect(), Bytes::from_static(b"\r\n\0\xff\xfe\xc3"), vec![0; 5000].into()];
    for (n, body) in bodies.into_iter().enumerate() {
        let record = answered(attempt(n), StoredResponse { body, ..reply() });
        insert(store, n, &record).await;
        assert_eq!(get(store, n).await, Some(record));
    }
}

/// Checks duplicate headers, their order, empty values and non-ASCII bytes.
pub async fn headers_round_trip_in_order(subject: Subject) {
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
    let record = answered(attempt(1), StoredResponse { headers: headers.to_vec(), ..reply() });
    insert(store, 1, &record).await;
    let read = get(store, 1).await;
    assert_eq!(read, Some(record));
}

/// Checks the largest response, with large headers.
pub async fn large_response_round_trips(subject: Subject) {
    let store = &subject.store;
    // No two of its pages are alike.
    let body: Vec<u8> = (0..(4_u32 << 20) / 4).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    let header = (HeaderName::from_static("x-long"), HeaderValue::from_str(&"h".repeat(60_000)).expect("it is ASCII"));
    let record = answered(attempt(1), StoredResponse { body: body.into(), headers: vec![header; 4], ..reply() });
    insert(store, 1, &in_flight(attempt(1))).await;
    replace(store, 1, in_flight(attempt(1)).version(), &record).await.unwrap();
    // Not by `assert_eq`, which would print the body.
    assert!(get(store, 1).await.as_ref() == Some(&record), "it came back as another");
    assert!(insert(store, 1, &in_flight(attempt(2))).await.as_ref() == Some(&record), "it came back as another");
}

/// Checks that a caller sees every write that returned before its read began, on any thread.
pub async fn read_after_write_is_consistent(subject: Subject) {
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

/// Checks that concurrent operations on a few ids are linearizable: every version is written once
/// and ended at most once, none is read after its end was returned, and one is left at the end.
pub async fn concurrent_operations_are_linearizable(subject: Subject) {
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
    // Numbers of writes that began without a record, and that ended without one.
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
        assert!(ended.get(version).is_none_or(|to| to > from), "{version:?} was read after its end was returned");
    }
    assert_eq!(inserts - removes, i32::from(last.is_some()), "not one history");
    let left: Vec<_> = begun.keys().filter(|version| !ended.contains_key(version)).collect();
    assert_eq!(left, last.iter().collect::<Vec<_>>(), "not what is left");
}

/// Checks that a dropped operation is applied completely or not at all, and blocks no other.
pub async fn dropped_future_leaves_store_usable(subject: Subject) {
    let store = &subject.store;
    for n in 0..50 {
        let there = in_flight(attempt(n));
        poll_and_drop(store.insert(&id(n), &there));
        let found = insert(store, n, &in_flight(attempt(1000 + n))).await;
        let there = found.unwrap_or_else(|| in_flight(attempt(1000 + n)));
        assert!([attempt(n), attempt(1000 + n)].contains(&there.attempt));
        poll_and_drop(store.compare_and_swap(&id(n), there.version(), &completed(there.attempt)));
        let outcome = replace(store, n, there.version(), &released(there.attempt)).await;
        let there = match outcome {
            Ok(()) => released(there.attempt),
            Err(found) => found.expect("nobody removed it"),
        };
        assert!([PhaseKind::Completed, PhaseKind::Released].contains(&there.phase.stage()));
        poll_and_drop(store.due(10));
        poll_and_drop(store.stats());
        poll_and_drop(store.get_or_insert_meta("name", b"value"));
        poll_and_drop(store.get(&id(n)));
        poll_and_drop(store.remove(&id(n), there.version()));
        store.remove(&id(n), there.version()).await.unwrap();
        assert_eq!(get(store, n).await, None);
    }
    assert_eq!(store.get_or_insert_meta("name", b"value").await.unwrap(), "value");
    let census = store.stats().await.unwrap();
    assert_eq!((census.in_flight, census.completed, census.released), (0, 0, 0));
}

fn poll_and_drop<T>(mut asked: StoreFuture<'_, T>) {
    let _: Poll<_> = Pin::new(&mut asked).poll(&mut Context::from_waker(Waker::noop()));
}

/// Checks that the numbers of records by phase are exact after each write.
pub async fn stats_count_records_by_phase(subject: Subject) {
    let store = &subject.store;
    // One of each phase, and a second completed one that stores only the head.
    for (n, record) in each_phase(attempt(1)).iter().enumerate() {
        insert(store, n, record).await;
        insert(store, n, &in_flight(attempt(2))).await;
    }
    let census = store.stats().await.unwrap();
    assert_eq!(count(census), [1, 2, 1, 1, 1]);
    assert!(census.bytes > 0);
    replace(store, 0, in_flight(attempt(2)).version(), &completed(attempt(2))).await.unwrap_err();
    assert_eq!(count(store.stats().await.unwrap()), [1, 2, 1, 1, 1]);
    let large = answered(attempt(1), StoredResponse { body: vec![7; 100_000].into(), ..reply() });
    replace(store, 0, in_flight(attempt(1)).version(), &large).await.unwrap();
    let larger = store.stats().await.unwrap();
    assert_eq!(count(larger), [0, 3, 1, 1, 1]);
    assert!(larger.bytes >= census.bytes + 90_000, "{} after {}", larger.bytes, census.bytes);
    assert!(store.remove(&id(0), large.version()).await.unwrap());
    for (n, record) in each_phase(attempt(1)).iter().enumerate().skip(1) {
        assert!(store.remove(&id(n), record.version()).await.unwrap());
    }
    let empty = store.stats().await.unwrap();
    assert_eq!(count(empty), [0; 5]);
    assert!(empty.bytes < census.bytes);
}

/// Checks that two clients see each other's writes and do not overrule each other.
pub async fn two_clients_see_the_same_data(subject: Subject) {
    let [one, other] = [&subject.store, &subject.other];
    let claim = in_flight(attempt(1));
    assert_eq!(insert(one, 1, &claim).await, None);
    assert_eq!(insert(other, 1, &in_flight(attempt(2))).await, Some(claim.clone()));
    assert_eq!(replace(other, 1, claim.version(), &in_flight(attempt(3))).await, Ok(()));
    assert_eq!(replace(one, 1, claim.version(), &completed(attempt(1))).await, Err(Some(in_flight(attempt(3)))));
    subject.advance(LEASE * 2).await;
    assert_eq!(due(one, 100).await, [1]);
    assert_eq!(due(other, 100).await, [1]);
    assert_eq!(one.stats().await.unwrap().in_flight, other.stats().await.unwrap().in_flight);
    assert!(one.remove(&id(1), in_flight(attempt(3)).version()).await.unwrap());
    assert_eq!(get(other, 1).await, None);
    assert_eq!(
        one.get_or_insert_meta("name", b"one").await.unwrap(),
        other.get_or_insert_meta("name", b"other").await.unwrap()
    );
}

/// Checks that the description of the store is consistent.
pub async fn info_is_consistent(subject: Subject) {
    let facts = subject.store.info();
    assert!(!facts.kind.is_empty() && !facts.durability.is_empty());
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

/// Swaps, and returns the current record if there was a conflict.
async fn replace(store: &Arc<dyn Store>, n: usize, over: Version, record: &Record) -> Result<(), Option<Record>> {
    match store.compare_and_swap(&id(n), over, record).await.unwrap() {
        Cas::Swapped => Ok(()),
        Cas::Conflict(found) => Err(found.map(|found| *found.record)),
    }
}

async fn due(store: &Arc<dyn Store>, limit: usize) -> Vec<usize> {
    let number = |id: RecordId| id.0.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes) as usize);
    store.due(limit).await.unwrap().into_iter().map(|(id, _)| number(id)).collect()
}

fn count(census: StoreStats) -> [u64; 5] {
    [census.in_flight, census.completed, census.released, census.unknown, census.tombstones]
}

fn record(attempt: AttemptId, phase: Phase) -> Record {
    Record { key_hash: KeyHash([0xfe; 32]), attempt, phase }
}

fn print() -> FingerprintWithRules {
    let headers = vec![HeaderName::from_static("x-tenant"), HeaderName::from_static("accept")];
    FingerprintWithRules::new(
        Fingerprint([0x81; 32]),
        Arc::new(Rules { kind: Kind::Exact, headers, ..Rules::default() }),
    )
}

fn reply() -> StoredResponse {
    let header = (HeaderName::from_static("location"), HeaderValue::from_static("/orders/1"));
    StoredResponse {
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

fn answered(attempt: AttemptId, reply: StoredResponse) -> Record {
    let kept = Retained::Response(Arc::new(reply));
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

/// Returns one record per phase, and one completed record that stores only the head; the claim is
/// first.
fn each_phase(attempt: AttemptId) -> [Record; 6] {
    let head = Head { status: StatusCode::OK, location: Some("/files/é".to_owned()) };
    let kept = Retained::HeadOnly(head);
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
    /// A rule that is missing in the macro would run against no store.
    #[test]
    fn every_rule_is_in_the_macro() {
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

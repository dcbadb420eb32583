//! What this process completed or read is told again without the store, for ten seconds, by the same rule.

use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use onceward::policy::Policy;
use onceward::principal::{PrincipalPart, PrincipalRule};

use crate::shop::{Fault, Run, Setup, made, order};

const BELIEVED: Duration = Duration::from_secs(10);
const MOMENT: Duration = Duration::from_millis(1);

#[tokio::test]
async fn a_replay_of_what_was_completed_here_asks_the_store_after_ten_seconds_alone() {
    let shop = Setup::manual().remote().open(made).await;
    shop.order("order-7", "tea").await.stored(201, "made 1");
    let asked = shop.store.all_calls();
    shop.clock.advance(BELIEVED - MOMENT);
    for _ in 0..5 {
        shop.order("order-7", "tea").await.replayed(201, "made 1");
        shop.operation("order-7", &[]).await.replayed(201, "made 1");
    }
    assert_eq!((shop.store.calls("insert"), shop.store.calls("get")), (1, 0));
    assert!(shop.store.all_calls() >= asked);
    shop.clock.advance(MOMENT);
    shop.order("order-7", "tea").await.replayed(201, "made 1");
    assert_eq!(shop.store.calls("insert"), 2, "it was believed for longer");
    // And what was read is believed as what was completed is.
    shop.order("order-7", "tea").await.replayed(201, "made 1");
    assert_eq!((shop.store.calls("insert"), shop.kitchen.runs()), (2, 1));
}

#[tokio::test]
async fn a_mismatch_is_refused_from_the_cache_as_from_the_store() {
    let shop = Setup::manual().remote().open(made).await;
    shop.order("order-7", "tea").await.stored(201, "made 1");
    let inserts = shop.store.calls("insert");
    let cached = shop.order("order-7", "rum").await;
    cached.refused(422, "key_reused", "mismatch");
    assert_eq!(shop.store.calls("insert"), inserts, "it asked the store");
    shop.clock.advance(BELIEVED);
    let read = shop.order("order-7", "rum").await;
    assert_eq!(shop.store.calls("insert"), inserts + 1);
    let said = |got: &crate::shop::Got| (got.status, got.body.clone());
    assert_eq!(said(&cached), said(&read));
    // Neither has become another's, nor was executed.
    shop.order("order-7", "tea").await.replayed(201, "made 1");
    assert_eq!(shop.kitchen.runs(), 1);
}

#[tokio::test]
async fn another_principal_does_not_meet_what_is_remembered() {
    let parts = PrincipalRule::Parts(vec![PrincipalPart::Authorization]);
    let shop = Setup::manual().remote().policy(|policy| policy.principal = parts).open(made).await;
    let ask = |who| order("order-7", "tea", &[("authorization", who)]);
    shop.send(&ask("ann")).await.stored(201, "made 1");
    shop.send(&ask("bob")).await.stored(201, "made 2");
    shop.send(&ask("ann")).await.replayed(201, "made 1");
    shop.send(&ask("bob")).await.replayed(201, "made 2");
    assert_eq!((shop.store.calls("insert"), shop.kitchen.runs()), (2, 2));
}

#[tokio::test]
async fn what_is_remembered_ends_with_its_retention() {
    let change = |policy: &mut Policy| policy.retention = Duration::from_secs(3);
    let shop = Setup::manual().remote().policy(change).open(made).await;
    shop.order("order-7", "tea").await.stored(201, "made 1");
    shop.clock.advance(Duration::from_secs(3) - MOMENT);
    shop.order("order-7", "tea").await.replayed(201, "made 1");
    assert_eq!(shop.store.calls("insert"), 1);
    shop.clock.advance(MOMENT);
    shop.order("order-7", "tea").await.refused(409, "key_expired", "expired");
    assert_eq!(shop.kitchen.runs(), 1);
}

#[tokio::test]
async fn what_was_read_late_in_its_retention_is_not_remembered_for_longer() {
    let change = |policy: &mut Policy| policy.retention = Duration::from_secs(15);
    let shop = Setup::manual().remote().policy(change).open(made).await;
    shop.order("order-7", "tea").await.stored(201, "made 1");
    shop.clock.advance(Duration::from_secs(12));
    shop.order("order-7", "tea").await.replayed(201, "made 1");
    shop.clock.advance(Duration::from_secs(3));
    shop.order("order-7", "tea").await.refused(409, "key_expired", "expired");
}

#[tokio::test]
async fn a_key_that_became_free_is_not_told_by_what_was_remembered_of_it() {
    let change = |policy: &mut Policy| (policy.retention, policy.tombstone) = (MOMENT, MOMENT);
    let shop = Setup::manual().remote().policy(change).open(made).await;
    shop.order("order-7", "tea").await.stored(201, "made 1");
    shop.clock.advance(2 * MOMENT);
    shop.kitchen.shut();
    let running = shop.sending(order("order-7", "rum", &[]));
    shop.kitchen.began(2).await;
    shop.order("order-7", "rum").await.refused(409, "in_flight", "in-flight");
    shop.order("order-7", "tea").await.refused(422, "key_reused", "mismatch");
    shop.kitchen.open();
    running.await.expect("an answer").stored(201, "made 2");
    shop.order("order-7", "rum").await.replayed(201, "made 2");
}

#[tokio::test]
async fn only_what_cannot_change_is_remembered() {
    let answer = |run: Run| -> Response {
        match run.n {
            1 => (StatusCode::TOO_MANY_REQUESTS, "later").into_response(),
            2 => (StatusCode::BAD_GATEWAY, "lost").into_response(),
            _ => made(run),
        }
    };
    let shop = Setup::manual().remote().open(answer).await;
    assert_eq!(shop.order("order-7", "tea").await.told(), (429, "released", "later"));
    assert_eq!(shop.order("order-7", "tea").await.told(), (502, "unknown", "lost"));
    for asked in 3..6 {
        shop.order("order-7", "tea").await.refused(409, "outcome_unknown", "unknown");
        assert_eq!(shop.store.calls("insert"), asked, "the store was not asked");
    }
}

#[tokio::test]
async fn without_its_store_it_goes_on_replaying_what_it_remembers_and_takes_nothing_new() {
    let shop = Setup::manual().remote().open(made).await;
    shop.order("order-7", "tea").await.stored(201, "made 1");
    for op in ["insert", "get", "replace"] {
        shop.store.fail(op, Fault::Refuses, usize::MAX);
    }
    shop.order("order-7", "tea").await.replayed(201, "made 1");
    shop.order("order-8", "tea").await.refused(503, "store_unavailable", "rejected");
    shop.clock.advance(BELIEVED);
    shop.order("order-7", "tea").await.refused(503, "store_unavailable", "rejected");
    assert_eq!(shop.kitchen.runs(), 1);
}

#[tokio::test]
async fn it_is_bounded_by_bytes_and_can_be_turned_off() {
    let large = |run: Run| (StatusCode::CREATED, format!("{} {}", run.n, "x".repeat(10_000))).into_response();
    const KEYS: usize = 200;
    for (bytes, most) in [(0, 0), (400_000, 40), (64 << 20, KEYS)] {
        let shop = Setup::manual().remote().limits(|limits| limits.cache = bytes).open(large).await;
        for n in 0..KEYS {
            assert_eq!(shop.order(&format!("order-{n}"), "tea").await.outcome(), Some("stored"));
        }
        for n in 0..KEYS {
            assert_eq!(shop.order(&format!("order-{n}"), "tea").await.outcome(), Some("replayed"));
        }
        let remembered = KEYS - (shop.store.calls("insert") - KEYS);
        // What is read anew takes the place of what was there, so that fewer may be met than there is room for.
        assert!(remembered <= most, "{bytes} bytes held {remembered} answers of 10 kB");
        assert_eq!(bytes == 64 << 20, remembered == KEYS, "{bytes} bytes held {remembered}");
    }
}

#[tokio::test]
async fn a_store_in_this_process_is_asked_each_time() {
    let shop = Setup::manual().open(made).await;
    shop.order("order-7", "tea").await.stored(201, "made 1");
    shop.order("order-7", "tea").await.replayed(201, "made 1");
    assert_eq!(shop.store.calls("insert"), 2);
}

#[tokio::test]
async fn the_self_test_asks_the_store_and_no_memory_of_it() {
    let shop = Setup::default().remote().open(made).await;
    shop.store.fail("get", Fault::Refuses, 1);
    assert!(shop.layer.engine().self_test().await.is_err(), "a store that does not replay was not noticed");
    shop.layer.engine().self_test().await.expect("a store that does");
}

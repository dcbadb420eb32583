//! A store that loses its memory, and what its processes must agree on all the same.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use onceward::record::Stage;
use onceward::store::Store;

use crate::shop::{Fault, Setup, made, order, soon, until};

const LEASE: Duration = Duration::from_secs(15);

/// A shop whose clock is moved by hand, over a store elsewhere, of which it remembers nothing.
fn far_from_its_store() -> Setup {
    Setup::manual().remote().limits(|limits| limits.cache = 0)
}

#[tokio::test]
async fn a_store_that_forgot_twice_is_forgetful_of_what_was_claimed_before_alone() {
    let shop = far_from_its_store().open(made).await;
    let second_executions = || shop.counts.second_executions.load(Ordering::SeqCst);
    for round in 1..=2 {
        let (lost, forgotten) = (format!("lost-{round}"), format!("forgotten-{round}"));
        shop.kitchen.shut();
        let first = shop.sending(order(&lost, "tea", &[]));
        shop.kitchen.began(round * 2 - 1).await;
        shop.store.forget_everything();
        shop.kitchen.open();
        first.await.expect("an answer").stored(201, &format!("made {}", round * 2 - 1));
        shop.order(&lost, "tea").await.replayed(201, &format!("made {}", round * 2 - 1));
        assert_eq!(second_executions(), round - 1);

        // Claimed since; its record goes by an operator's hand, and that is no loss of the store's memory.
        shop.kitchen.shut();
        let second = shop.sending(order(&forgotten, "tea", &[]));
        shop.kitchen.began(round * 2).await;
        shop.store.fail("replace", Fault::Fails, usize::MAX);
        let before = shop.store.calls("replace");
        shop.clock.advance(LEASE);
        until("a sign of life that fails", || shop.store.calls("replace") > before).await;
        let due = shop.store.memory().due(10).await.expect("the memory store answers");
        let claim =
            due.iter().find(|(_, found)| found.record.phase.stage() == Stage::InFlight).expect("a claim is due");
        assert!(
            shop.store.memory().remove(&claim.0, claim.1.record.version()).await.expect("the memory store answers")
        );
        shop.store.heal();
        shop.kitchen.open();
        let told = format!("made {}", round * 2);
        assert_eq!(second.await.expect("an answer").told(), (201, "not-stored", told.as_str()));
        assert_eq!(second_executions(), round);
    }
}

#[tokio::test]
async fn a_store_that_forgot_gets_its_secret_back_before_another_is_made_up() {
    let first = far_from_its_store().open(made).await;
    first.order("order-7", "tea").await.stored(201, "made 1");
    first.store.forget_everything();
    let asked = first.store.calls("meta");
    first.clock.advance(Duration::from_secs(1));
    // The identity, the secret, its check value.
    until("a look at the store", || first.store.calls("meta") >= asked + 3).await;
    first.order("order-8", "tea").await.stored(201, "made 2");
    let second = Setup { store: Some(Arc::clone(&first.store)), ..Setup::default() }.open(made).await;
    second.order("order-8", "tea").await.replayed(201, "made 2");
    assert_eq!(second.kitchen.runs(), 0, "its keys never meet those of the first");
}

#[tokio::test]
async fn whoever_finds_another_secret_in_the_store_takes_no_more_claims() {
    let first = far_from_its_store().open(made).await;
    first.order("order-7", "tea").await.stored(201, "made 1");
    first.store.forget_everything();
    let second = Setup { store: Some(Arc::clone(&first.store)), ..Setup::default() }.open(made).await;
    second.order("order-8", "tea").await.stored(201, "made 1");
    let asked = first.store.calls("meta");
    first.clock.advance(Duration::from_secs(1));
    until("a look at the store", || first.store.calls("meta") >= asked + 3).await;
    let is_refused = async || first.order("order-8", "tea").await.told().0 == 503;
    soon("a refusal", async { while !is_refused().await {} }).await;
    assert!(first.layer.engine().self_test().await.is_err(), "it says that it is ready");
    second.order("order-8", "tea").await.replayed(201, "made 1");
}

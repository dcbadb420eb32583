//! A store that loses its memory, and what its processes must agree on all the same.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::shop::{Setup, made, order, soon, until};

/// A shop whose clock is moved by hand, over a store elsewhere, of which it remembers nothing.
fn far_from_its_store() -> Setup {
    Setup::manual().remote().limits(|limits| limits.cache = 0)
}

#[tokio::test]
async fn a_store_that_forgets_all_again_and_again_keeps_what_was_running() {
    let shop = far_from_its_store().open(made).await;
    for round in 1..=2 {
        let key = format!("lost-{round}");
        shop.kitchen.shut();
        let first = shop.sending(order(&key, "tea", &[]));
        shop.kitchen.began(round).await;
        shop.store.forget_everything();
        shop.kitchen.open();
        first.await.expect("an answer").stored(201, &format!("made {round}"));
        shop.order(&key, "tea").await.replayed(201, &format!("made {round}"));
    }
    assert_eq!(shop.counts.second_executions.load(Ordering::SeqCst), 0);
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

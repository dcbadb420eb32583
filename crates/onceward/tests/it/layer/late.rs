//! Clients that leave, answers that come late, holders that are overtaken, and the end of a process.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::IntoResponse;
use onceward::policy::{Disposition, Guarantee};
use onceward::record::PhaseKind;
use onceward::store::Store;

use crate::shop::{Fault, Got, Run, Setup, Shop, made, order, soon, until};

const LEASE: Duration = Duration::from_secs(15);

#[tokio::test]
async fn attempt_after_a_lost_one_never_frees_the_key() {
    for fate in [Disposition::Released, Disposition::NotSent] {
        let setup = Setup::default().policy(|policy| policy.guarantee = Guarantee::AtLeastOnce);
        let shop = setup
            .open(move |run: Run| {
                let claim = run.claim.expect("a keyed request has one");
                match run.n {
                    1 => claim.declare(Disposition::Unknown),
                    2 => claim.declare(fate),
                    3 => panic!("the handler panics"),
                    4 => return StatusCode::TOO_MANY_REQUESTS.into_response(),
                    _ => {}
                }
                "made".into_response()
            })
            .await;
        for _ in 0..2 {
            assert_eq!(shop.order("order-7", "tea").await.outcome(), Some("unknown"), "{fate:?}");
            assert_eq!((shop.stats().await.unknown, shop.stats().await.released), (1, 0), "{fate:?}");
            shop.order("order-7", "rum").await.refused(422, "key_reused", "mismatch");
        }
        shop.order("order-7", "tea").await.refused(500, "handler_panicked", "unknown");
        assert_eq!(shop.order("order-7", "tea").await.told(), (429, "unknown", ""), "{fate:?}");
        shop.order("order-7", "tea").await.stored(200, "made");
    }
}

/// One whose claim over a lost attempt was taken without a word, and given back.
#[tokio::test]
async fn claim_over_a_lost_attempt_is_given_back_as_unknown() {
    let setup = Setup::default().policy(|policy| policy.guarantee = Guarantee::AtLeastOnce);
    let shop = setup
        .open(|run: Run| {
            if run.n == 1 {
                run.claim.expect("a keyed request has one").declare(Disposition::Unknown);
            }
            "made".into_response()
        })
        .await;
    assert_eq!(shop.order("order-7", "tea").await.outcome(), Some("unknown"));
    shop.store.fail("replace", Fault::LosesAnswer, 1);
    shop.order("order-7", "tea").await.refused(503, "store_unavailable", "rejected");
    shop.settled().await;
    assert_eq!((shop.stats().await.unknown, shop.stats().await.released), (1, 0));
    shop.order("order-7", "rum").await.refused(422, "key_reused", "mismatch");
    shop.order("order-7", "tea").await.stored(200, "made");
}

#[tokio::test]
async fn a_client_that_leaves_cancels_nothing() {
    let shop = Setup::default().open(made).await;
    shop.kitchen.shut();
    drop(shop.begin(&order("order-7", "tea", &[])).await);
    shop.kitchen.began(1).await;
    assert_eq!(shop.layer.engine().in_flight(), 1, "what was begun is waited for");
    shop.kitchen.open();
    shop.settled().await;
    assert_eq!(shop.kitchen.done(), 1);
    shop.order("order-7", "tea").await.replayed(201, "made 1");
    assert_eq!(shop.kitchen.runs(), 1);
}

/// A shop whose store has taken a claim, and has not said so yet.
async fn claim_on_its_way() -> (Shop, tokio::task::JoinHandle<Got>) {
    let setup = Setup::manual().limits(|limits| limits.store_timeout = Duration::from_secs(3600));
    let shop = setup.open(made).await;
    shop.layer.engine().start().await.expect("the store answers");
    shop.store.fail("insert", Fault::Waits, 1);
    let first = shop.sending(order("order-7", "tea", &[]));
    until("the claim", || shop.store.calls("insert") == 1).await;
    (shop, first)
}

#[tokio::test]
async fn a_client_that_leaves_while_its_claim_is_being_taken_cancels_nothing() {
    let (shop, first) = claim_on_its_way().await;
    first.abort();
    assert!(first.await.is_err_and(|error| error.is_cancelled()), "the client is gone, and its connection with it");
    shop.store.heal();
    shop.settled().await;
    assert_eq!(shop.kitchen.done(), 1, "the claim was sent, so what it is for is done");
    shop.order("order-7", "tea").await.replayed(201, "made 1");
    assert_eq!(shop.kitchen.runs(), 1);
}

#[tokio::test]
async fn a_holder_past_two_thirds_of_its_lease_sends_nothing_without_a_sign_of_life() {
    let (shop, first) = claim_on_its_way().await;
    shop.clock.advance(Duration::from_secs(11));
    shop.store.heal();
    shop.store.fail("replace", Fault::Fails, 1);
    let got = first.await.expect("an answer");
    got.refused(502, "upstream_unreachable", "released");
    assert_eq!((got.json()["executed"].as_str(), got.json()["retry"].as_str()), (Some("no"), Some("same-key")));
    assert_eq!((shop.kitchen.runs(), shop.stats().await.released), (0, 1));
    shop.order("order-7", "tea").await.stored(201, "made 1");

    // One that the store takes is enough, and so is a lease that is fresh.
    for (seconds, failures) in [(11, 0), (10, 1)] {
        let (shop, first) = claim_on_its_way().await;
        shop.clock.advance(Duration::from_secs(seconds));
        shop.store.heal();
        shop.store.fail("replace", Fault::Fails, failures);
        let got = first.await.expect("an answer");
        assert_eq!((got.status, shop.kitchen.runs()), (201, 1), "after {seconds} s");
    }
}

/// The lease counts from when the claim was sent: a store that was slow to say yes has said it of the past.
#[tokio::test]
async fn a_holder_that_was_overtaken_before_the_first_byte_sends_nothing() {
    let setup = Setup::manual()
        .limits(|limits| limits.store_timeout = Duration::from_secs(3600))
        .policy(|policy| policy.guarantee = Guarantee::AtLeastOnce);
    let shop = setup.open(made).await;
    shop.layer.engine().start().await.expect("the store answers");
    shop.order("other", "tea").await.stored(201, "made 1");
    // Two claims of one key wait in the store; the one that is taken second meets the first one's lease, long over.
    shop.store.fail("insert", Fault::Waits, 1);
    let first = shop.sending(order("order-7", "tea", &[]));
    until("the claim", || shop.store.calls("insert") == 2).await;
    shop.order("order-7", "tea").await.stored(201, "made 2");
    shop.clock.advance(LEASE);
    shop.store.heal();
    first.await.expect("an answer").replayed(201, "made 2");
    assert_eq!(shop.kitchen.runs(), 2);
}

#[tokio::test]
async fn when_a_holder_dies_its_key_leaves_in_flight_within_the_lease_and_five_seconds() {
    for guarantee in [Guarantee::AtMostOnce, Guarantee::AtLeastOnce] {
        let living = Setup::manual().policy(|policy| policy.guarantee = guarantee).open(made).await;
        // Another process over the same store, as far as the store can tell: a runtime that ends with all its tasks.
        let process =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let mut setup = Setup::manual();
        (setup.store, setup.clock) = (Some(Arc::clone(&living.store)), living.clock.clone());
        let began = process.spawn(async {
            let dying = setup.open(made).await;
            dying.kitchen.shut();
            drop(dying.sending(order("order-7", "tea", &[])));
            dying.kitchen.began(1).await;
        });
        began.await.expect("no panic");
        process.shutdown_background();
        living.layer.engine().start().await.expect("the store answers");
        living.order("order-7", "tea").await.refused(409, "in_flight", "in-flight");
        let mut waited = 0;
        while living.stats().await.unknown == 0 {
            waited += 1;
            assert!(waited <= 20, "the lease and five seconds are over");
            let looks = living.store.calls("due");
            living.clock.advance(Duration::from_secs(1));
            until("a sweep", || living.store.calls("due") > looks).await;
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        }
        assert!(waited >= 15, "its lease is believed: {waited}");
        match guarantee {
            Guarantee::AtLeastOnce => living.order("order-7", "tea").await.stored(201, "made 1"),
            _ => living.order("order-7", "tea").await.refused(409, "outcome_unknown", "unknown"),
        }
    }
}

#[tokio::test]
async fn a_long_execution_keeps_its_lease() {
    let shop = Setup::manual().open(made).await;
    shop.kitchen.shut();
    let first = shop.sending(order("order-7", "tea", &[]));
    shop.kitchen.began(1).await;
    // Each advance is less than the lease, and all of them are six of it.
    for renewals in 1..=18 {
        shop.clock.advance(LEASE / 3);
        until("a sign of life", || shop.store.calls("replace") >= renewals).await;
        shop.order("order-7", "tea").await.refused(409, "in_flight", "in-flight");
        shop.layer.engine().sweep().await.expect("the store answers");
    }
    // The clients' patience is 60 s, and is over.
    first.await.expect("an answer").refused(504, "upstream_timeout", "in-flight");
    shop.kitchen.open();
    shop.settled().await;
    shop.order("order-7", "tea").await.replayed(201, "made 1");
    assert_eq!((shop.kitchen.runs(), shop.stats().await.unknown), (1, 0));
}

#[tokio::test]
async fn an_answer_that_comes_after_its_client_was_sent_away_is_kept() {
    let shop = Setup::manual().open(made).await;
    shop.kitchen.shut();
    let first = shop.sending(order("order-7", "tea", &[]));
    shop.kitchen.began(1).await;
    shop.clock.advance(Duration::from_millis(59_999));
    until("a sign of life", || shop.store.calls("replace") >= 1).await;
    assert!(!first.is_finished(), "nobody is sent away before the time");
    shop.clock.advance(Duration::from_millis(1));
    let got = first.await.expect("an answer");
    got.refused(504, "upstream_timeout", "in-flight");
    let seconds: u64 = got.header("retry-after").expect("when to ask again").parse().expect("a number");
    assert!(
        (1..=15).contains(&seconds) && got.json()["retry"] == "wait",
        "at most what is left of the lease: {seconds}"
    );
    shop.order("order-7", "tea").await.refused(409, "in_flight", "in-flight");
    shop.kitchen.open();
    shop.settled().await;
    shop.order("order-7", "tea").await.replayed(201, "made 1");
    assert_eq!(shop.kitchen.runs(), 1);
}

#[tokio::test]
async fn key_of_a_handler_past_capture_timeout_is_unknown() {
    let shop = Setup::manual().open(made).await;
    shop.kitchen.shut();
    let first = shop.sending(order("order-7", "tea", &[]));
    shop.kitchen.began(1).await;
    shop.clock.advance(Duration::from_secs(600));
    soon("the unknown record", async {
        while shop.stats().await.unknown == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(matches!(first.await.expect("an answer").status, 502 | 504));
    shop.order("order-7", "tea").await.refused(409, "outcome_unknown", "unknown");
    assert_eq!(shop.kitchen.runs(), 1);
}

/// A shop where the first order's holder has lost its lease, because the store took no sign of life, and still executes.
async fn lost_holder(
    guarantee: Guarantee,
    respond: impl Fn(Run) -> axum::response::Response + Clone + Send + Sync + 'static,
) -> (Shop, tokio::task::JoinHandle<Got>) {
    let shop = Setup::manual().policy(|policy| policy.guarantee = guarantee).open(respond).await;
    shop.kitchen.shut();
    let first = shop.sending(order("order-7", "tea", &[]));
    shop.kitchen.began(1).await;
    shop.store.fail("replace", Fault::Fails, usize::MAX);
    shop.clock.advance(LEASE);
    until("a sign of life that fails", || shop.store.calls("replace") >= 1).await;
    shop.store.heal();
    (shop, first)
}

#[tokio::test]
async fn a_lost_holder_that_nobody_overtook_completes_even_an_unknown() {
    let (shop, first) = lost_holder(Guarantee::AtMostOnce, made).await;
    shop.order("order-7", "tea").await.refused(409, "outcome_unknown", "unknown");
    shop.layer.engine().sweep().await.expect("the store answers");
    assert_eq!(shop.stats().await.unknown, 1, "it is written down for the operators");
    shop.kitchen.open();
    first.await.expect("an answer").stored(201, "made 1");
    shop.order("order-7", "tea").await.replayed(201, "made 1");
    let second = shop.counts.second_executions.load(Ordering::SeqCst);
    assert_eq!((shop.kitchen.runs(), shop.stats().await.unknown, second), (1, 0, 0));
}

#[tokio::test]
async fn a_holder_whose_lease_was_lost_claims_it_back_by_its_next_sign_of_life() {
    let (shop, first) = lost_holder(Guarantee::AtMostOnce, made).await;
    shop.layer.engine().sweep().await.expect("the store answers");
    assert_eq!(shop.stats().await.unknown, 1);
    shop.clock.advance(LEASE / 3);
    until("the renewal", || shop.store.calls("replace") >= 4).await;
    shop.order("order-7", "tea").await.refused(409, "in_flight", "in-flight");
    shop.kitchen.open();
    first.await.expect("an answer").stored(201, "made 1");
}

#[tokio::test]
async fn an_overtaken_holder_gets_the_winners_answer() {
    let (shop, first) = lost_holder(Guarantee::AtLeastOnce, made).await;
    shop.kitchen.let_out(2..3);
    shop.order("order-7", "tea").await.stored(201, "made 2");
    shop.kitchen.open();
    first.await.expect("an answer").replayed(201, "made 2");
    shop.order("order-7", "tea").await.replayed(201, "made 2");
    assert_eq!((shop.kitchen.runs(), shop.counts.second_executions.load(Ordering::SeqCst)), (2, 1));
}

#[tokio::test]
async fn an_overtaken_holder_is_told_while_the_winner_runs() {
    let (shop, first) = lost_holder(Guarantee::AtLeastOnce, made).await;
    let second = shop.sending(order("order-7", "tea", &[]));
    shop.kitchen.began(2).await;
    shop.kitchen.let_out(1..2);
    first.await.expect("an answer").refused(409, "in_flight", "in-flight");
    shop.order("order-7", "tea").await.refused(409, "in_flight", "in-flight");
    shop.kitchen.open();
    second.await.expect("an answer").stored(201, "made 2");
    shop.order("order-7", "tea").await.replayed(201, "made 2");
}

#[tokio::test]
async fn an_overtaken_holder_gets_its_own_answer_where_the_winner_has_none() {
    for (name, status) in [
        // No status releases an attempt that follows one which may have executed.
        ("the winner was declined", StatusCode::TOO_MANY_REQUESTS),
        ("nobody knows of the winner", StatusCode::BAD_GATEWAY),
    ] {
        let (shop, first) = lost_holder(Guarantee::AtLeastOnce, move |run: Run| match run.n {
            2 => status.into_response(),
            _ => made(run),
        })
        .await;
        shop.kitchen.let_out(2..3);
        assert_eq!(shop.order("order-7", "tea").await.status, status.as_u16(), "{name}");
        shop.kitchen.open();
        let got = first.await.expect("an answer");
        assert_eq!(got.told(), (201, "not-stored", "made 1"), "{name}");
        let census = shop.stats().await;
        assert_eq!((census.unknown, census.completed), (1, 0), "{name}: the word of the overtaken is refused");
        assert_eq!(shop.counts.second_executions.load(Ordering::SeqCst), 1, "{name}");
    }
}

#[tokio::test]
async fn an_overtaken_holder_that_did_nothing_releases_nothing() {
    let (shop, first) = lost_holder(Guarantee::AtLeastOnce, |run: Run| match run.n {
        1 => StatusCode::TOO_MANY_REQUESTS.into_response(),
        _ => made(run),
    })
    .await;
    shop.kitchen.let_out(2..3);
    shop.order("order-7", "tea").await.stored(201, "made 2");
    shop.kitchen.open();
    first.await.expect("an answer").replayed(201, "made 2");
    let census = shop.stats().await;
    assert_eq!((census.completed, census.released), (1, 0));
    assert_eq!(shop.counts.second_executions.load(Ordering::SeqCst), 0);
}

/// A store forgets a part of what it knew, as after a failover, and nothing tells of it but that the claim is not there.
async fn forget_the_claim(shop: &Shop) {
    let memory = shop.store.memory();
    let due = memory.due(10).await.expect("the memory store answers");
    let claim =
        due.iter().find(|(_, found)| found.record.phase.stage() == PhaseKind::InFlight).expect("a claim is due");
    assert!(memory.remove(&claim.0, claim.1.record.version()).await.expect("the memory store answers"));
}

#[tokio::test]
async fn what_a_store_forgot_alone_is_kept_by_its_late_word() {
    let (shop, first) = lost_holder(Guarantee::AtMostOnce, made).await;
    forget_the_claim(&shop).await;
    shop.kitchen.open();
    first.await.expect("an answer").stored(201, "made 1");
    shop.order("order-7", "tea").await.replayed(201, "made 1");
    assert_eq!((shop.kitchen.runs(), shop.counts.second_executions.load(Ordering::SeqCst)), (1, 0));
}

#[tokio::test]
async fn a_late_word_about_what_a_store_forgot_finds_whoever_came_in_between() {
    let (shop, first) = lost_holder(Guarantee::AtMostOnce, made).await;
    forget_the_claim(&shop).await;
    shop.kitchen.let_out(2..3);
    shop.order("order-7", "tea").await.stored(201, "made 2");
    shop.kitchen.open();
    first.await.expect("an answer").replayed(201, "made 2");
    assert_eq!((shop.kitchen.runs(), shop.counts.second_executions.load(Ordering::SeqCst)), (2, 1));
}

#[tokio::test]
async fn a_late_word_is_refused_where_its_own_earlier_one_may_have_ended() {
    let shop = Setup::manual()
        .policy(|policy| (policy.retention, policy.tombstone) = (LEASE, Duration::ZERO))
        .open(made)
        .await;
    // It is kept, but nobody is told so until its time is over.
    shop.store.fail("replace", Fault::HangsAfter, 1);
    let first = shop.sending(order("order-7", "tea", &[]));
    soon("the answer in the store", async {
        while shop.stats().await.completed == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    shop.store.fail("replace", Fault::Fails, usize::MAX);
    soon("the store's time", async {
        while !first.is_finished() {
            shop.clock.advance(Duration::from_millis(100));
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(first.await.expect("an answer").told(), (201, "not-stored", "made 1"));
    shop.clock.advance(LEASE);
    while shop.layer.engine().sweep().await.expect("the store answers") > 0 {}
    assert_eq!(shop.stats().await.bytes, 0);
    shop.store.heal();
    soon("the word", async {
        while shop.layer.engine().in_flight() > 0 {
            shop.clock.advance(Duration::from_secs(2));
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(shop.counts.second_executions.load(Ordering::SeqCst), 1, "what had ended came back");
    shop.order("order-7", "tea").await.stored(201, "made 2");
}

#[tokio::test]
async fn a_claim_that_a_store_forgot_is_made_anew_by_a_sign_of_life() {
    let (shop, first) = lost_holder(Guarantee::AtMostOnce, made).await;
    forget_the_claim(&shop).await;
    let asked = shop.store.calls("insert");
    shop.clock.advance(LEASE / 3);
    until("the claim made anew", || shop.store.calls("insert") > asked).await;
    soon("the claim", async {
        while shop.stats().await.in_flight == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    shop.order("order-7", "tea").await.refused(409, "in_flight", "in-flight");
    shop.kitchen.open();
    first.await.expect("an answer").stored(201, "made 1");
    shop.order("order-7", "tea").await.replayed(201, "made 1");
    assert_eq!(shop.kitchen.runs(), 1);
}

#[tokio::test]
async fn a_draining_process_takes_no_new_key_and_finishes_the_others() {
    let shop = Setup::default().open(made).await;
    shop.order("old", "tea").await.stored(201, "made 1");
    shop.kitchen.shut();
    let running = shop.sending(order("running", "tea", &[]));
    shop.kitchen.began(2).await;
    let engine = shop.layer.engine();
    engine.drain();
    assert!(engine.is_draining());
    let got = shop.order("new", "tea").await;
    got.refused(503, "draining", "rejected");
    assert_eq!((got.header("retry-after"), got.json()["retry"].as_str()), (Some("1"), Some("same-key")));
    shop.order("old", "tea").await.replayed(201, "made 1");
    shop.order("old", "rum").await.refused(422, "key_reused", "mismatch");
    shop.order("running", "tea").await.refused(409, "in_flight", "in-flight");
    shop.order("running", "rum").await.refused(422, "key_reused", "mismatch");
    assert_eq!((shop.kitchen.runs(), engine.in_flight()), (2, 1));
    shop.kitchen.open();
    running.await.expect("an answer").stored(201, "made 2");
    shop.settled().await;
    shop.order("running", "tea").await.replayed(201, "made 2");
    assert_eq!(shop.operation("new", &[]).await.status, 404, "the new one left nothing");
}

#[tokio::test]
async fn what_still_runs_at_the_end_of_the_drain_is_unknown_at_once() {
    let shop = Setup::default().open(made).await;
    shop.kitchen.shut();
    let running = shop.sending(order("order-7", "tea", &[]));
    shop.kitchen.began(1).await;
    shop.layer.engine().drain();
    shop.layer.engine().abort();
    shop.settled().await;
    assert_eq!(shop.stats().await.unknown, 1);
    running.await.expect("an answer").refused(502, "upstream_lost", "unknown");
    shop.order("order-7", "tea").await.refused(409, "outcome_unknown", "unknown");
    assert_eq!((shop.kitchen.runs(), shop.kitchen.done()), (1, 0));
}

#[tokio::test]
async fn in_flight_says_when_to_ask_again() {
    let shop = Setup::manual().open(made).await;
    shop.kitchen.shut();
    let first = shop.sending(order("order-7", "tea", &[]));
    shop.kitchen.began(1).await;
    let ask = async || {
        let got = shop.order("order-7", "tea").await;
        got.refused(409, "in_flight", "in-flight");
        assert_eq!((got.json()["executed"].as_str(), got.json()["retry"].as_str()), (Some("unknown"), Some("wait")));
        got.header("retry-after").expect("a number of seconds").to_owned()
    };
    assert_eq!(ask().await, "1", "at least a second");
    shop.clock.advance(Duration::from_secs(4));
    assert_eq!(ask().await, "4", "as long as it has run");
    for (advance, renewals) in [(1, 1), (5, 2), (5, 3), (5, 4)] {
        shop.clock.advance(Duration::from_secs(advance));
        until("a sign of life", || shop.store.calls("replace") >= renewals).await;
    }
    assert_eq!(ask().await, "15", "at most what is left of the lease");
    shop.kitchen.open();
    first.await.expect("an answer").stored(201, "made 1");
}

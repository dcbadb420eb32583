//! Keys that no header bears, by the library alone.

use std::time::Duration;

use onceward::policy::{AcceptedKeys, MissingKey, Policy};
use onceward::principal::{PrincipalPart, PrincipalRule};

use crate::shop::{Got, Setup, Shop, made, request};

async fn issue(shop: &Shop, user: &str) -> Got {
    shop.send(&request("POST", "/.idempotency/keys?path=/orders", &[("x-user", user)], "")).await
}

fn sent(key: &str, user: &str) -> Vec<u8> {
    request("POST", "/orders", &[("idempotency-key", key), ("x-user", user)], "tea")
}

fn user() -> PrincipalRule {
    PrincipalRule::Parts(vec![PrincipalPart::Header("x-user".parse().expect("a name"))])
}

#[tokio::test]
async fn a_layer_that_issues_keys_takes_no_others() {
    let policy = |policy: &mut Policy| {
        policy.keys = AcceptedKeys::Issued;
        policy.missing = MissingKey::Reject;
        policy.principal = user();
    };
    let shop = Setup::default().policy(policy).open(made).await;
    let got = issue(&shop, "ann").await;
    assert_eq!(got.status, 201);
    let key = got.json()["key"].as_str().expect("a key").to_owned();
    shop.send(&sent(&key, "ann")).await.stored(201, "made 1");
    shop.send(&sent(&key, "ann")).await.replayed(201, "made 1");
    assert_eq!(shop.send(&sent(&key, "bob")).await.json()["code"], "key_foreign");
    assert_eq!(shop.send(&sent("order-7", "ann")).await.json()["code"], "key_forged");
    assert_eq!(shop.kitchen.runs(), 1);
}

#[tokio::test]
async fn a_layer_makes_and_derives_keys() {
    let generate = |policy: &mut Policy| policy.missing = MissingKey::Generate;
    let shop = Setup::default().policy(generate).open(made).await;
    let got = shop.send(&request("POST", "/orders", &[], "tea")).await;
    let key = got.header("idempotency-key").expect("the made key").to_owned();
    shop.send(&request("POST", "/orders", &[("idempotency-key", &key)], "tea")).await.replayed(201, "made 1");

    let derive = |policy: &mut Policy| {
        policy.missing = MissingKey::Derive { window: Duration::from_secs(60) };
        policy.principal = user();
    };
    let shop = Setup::default().policy(derive).open(made).await;
    let of = |user: &'static str| request("POST", "/orders", &[("x-user", user)], "tea");
    shop.send(&of("ann")).await.stored(201, "made 1");
    shop.send(&of("ann")).await.replayed(201, "made 1");
    shop.send(&of("bob")).await.stored(201, "made 2");
    // The anonymous are many.
    for n in [3, 4] {
        let got = shop.send(&request("POST", "/orders", &[], "tea")).await;
        assert_eq!((got.status, got.header("idempotency-outcome")), (201, None));
        assert_eq!(shop.kitchen.runs(), n);
    }
}

#[tokio::test]
async fn a_derived_key_counts_for_its_window_and_no_longer() {
    let shop = Setup::manual()
        .policy(|policy| {
            policy.missing = MissingKey::Derive { window: Duration::from_secs(60) };
            policy.principal = user();
        })
        .open(made)
        .await;
    let of_ann = request("POST", "/orders", &[("x-user", "ann")], "tea");
    shop.send(&of_ann).await.stored(201, "made 1");
    shop.clock.advance(Duration::from_millis(59_999));
    shop.send(&of_ann).await.replayed(201, "made 1");
    shop.clock.advance(Duration::from_millis(1));
    shop.send(&of_ann).await.stored(201, "made 2");
}

#[tokio::test]
async fn an_issued_key_counts_until_its_second_and_no_longer() {
    let shop = Setup::manual()
        .policy(|policy| {
            policy.keys = AcceptedKeys::Issued;
            policy.principal = user();
        })
        .open(made)
        .await;
    let key = issue(&shop, "ann").await.json()["key"].as_str().expect("a key").to_owned();
    shop.clock.advance(Duration::from_secs(24 * 3600 - 1));
    shop.send(&sent(&key, "ann")).await.stored(201, "made 1");
    shop.clock.advance(Duration::from_secs(1));
    assert_eq!(shop.send(&sent(&key, "ann")).await.json()["code"], "issued_key_expired");
    // What it did is still told.
    shop.operation(&key, &[("x-user", "ann")]).await.replayed(201, "made 1");
    assert_eq!(shop.kitchen.runs(), 1);
}

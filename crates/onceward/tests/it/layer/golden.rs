//! Records of the first construction of fingerprints: what was stored before an upgrade is honoured
//! after it.

use std::time::Duration;

use bytes::Bytes;
use onceward::codec::decode;
use onceward::key::Key;
use onceward::policy::Policy;
use onceward::principal::{Principal, PrincipalRule};
use onceward::secret::{HashKeys, Secret};
use onceward::store::Store;

use crate::hex::unhex;
use crate::shop::{Setup, Shop, made, order};

/// Key, and the record's bytes as version 0.1 wrote them under the secret `[9; 32]`: computed by
/// another program. They never change.
const RECORDS: [(&str, &str); 7] = [
    (
        "in-flight",
        "0271a7600e062ff07508011210333333333333333333333333333333331a20a41dd272834d8da23d46696ec39c7c798b1a6cc6c3b49092ad208fb55e83a74722240a20633bb507d2acacab13cdc92b7239314e891faabd18780b21b1f0d85b8ff2f855100128987560fbd095ffbc31",
    ),
    (
        "completed",
        "028d66b7bf0102515008021210333333333333333333333333333333331a2045ada1bfbd238656c2895f66a1a7c0c2d0bf896eb630e776a5d0537b2c653f2922240a20633bb507d2acacab13cdc92b7239314e891faabd18780b21b1f0d85b8ff2f85510013080b89929388090fbd309522208c90112150a086c6f636174696f6e12092f6f72646572732f311a066d6164652031",
    ),
    (
        "head",
        "02e605b3d4cd4c2db008021210333333333333333333333333333333331a2031b7981b121eda49315928d297c0186be6ef5ae6193fee9645168b8d69238a0322240a20633bb507d2acacab13cdc92b7239314e891faabd18780b21b1f0d85b8ff2f85510013080b89929388090fbd3095a0e08c90112092f6f72646572732f31",
    ),
    (
        "form",
        "02c7f7ac3c79b3a5f208021210333333333333333333333333333333331a20b235e193b5bb10b3fa97aa3518cfe1a79aa769cbe185242ff046f9952b659da722260a206f940db513262884468c70661231cfdccb0838200c7e0c2c5d8d64731a97cf7f100118023080b89929388090fbd309522208c90112150a086c6f636174696f6e12092f6f72646572732f311a066d6164652031",
    ),
    (
        "released",
        "0264048a49e54ef64708031210333333333333333333333333333333331a20211a1a36ab214a520cd00fa35a4727476be21966b940dd337a4c2665e4ce637f40c0ac8002",
    ),
    (
        "unknown",
        "029fe5a773e9750cc408041210333333333333333333333333333333331a201b3fad87a13c7a68ef3ada62dc957216f88b71a6c1a5d6997cf3443697568d7122240a20633bb507d2acacab13cdc92b7239314e891faabd18780b21b1f0d85b8ff2f8551001",
    ),
    (
        "tombstone",
        "02d7e456a3056f4acb08051210333333333333333333333333333333331a20251cd11eb22a562e8c9ea5aad7ea78fa9934d1cc380468be4e5eb7cd694a6e0222240a20633bb507d2acacab13cdc92b7239314e891faabd18780b21b1f0d85b8ff2f85510014080b899294801",
    ),
];

const FORM: &str = "multipart/form-data; boundary=";

/// A shop over a store that holds [`RECORDS`].
async fn upgraded() -> Shop {
    let secret = Secret::new([9; 32]);
    let anonymous = |policy: &mut Policy| policy.principal = PrincipalRule::Unset;
    let shop = Setup::manual().secret(secret.clone()).policy(anonymous).open(made).await;
    let keys = HashKeys::new(&secret);
    for (key, bytes) in RECORDS {
        let id = keys.record_id("default", &Principal::Anonymous, &Key::parse(key.as_bytes()).expect("a key"));
        let record = decode(&id, &Bytes::from(unhex(bytes))).expect("readable");
        assert_eq!(shop.store.memory().insert(&id, &record).await.expect("the memory store takes it"), None);
    }
    shop
}

fn form(boundary: &str, item: &str) -> String {
    format!("--{boundary}\r\nContent-Disposition: form-data; name=\"item\"\r\n\r\n{item}\r\n--{boundary}--\r\n")
}

#[tokio::test]
async fn record_of_version_1_in_each_phase_is_honoured() {
    let shop = upgraded().await;
    let replay = shop.order("completed", "tea").await;
    replay.replayed(201, "made 1");
    assert_eq!(replay.header("location"), Some("/orders/1"));
    shop.order("head", "tea").await.refused(409, "answer_not_kept", "not-stored");
    shop.order("in-flight", "tea").await.refused(409, "in_flight", "in-flight");
    shop.order("unknown", "tea").await.refused(409, "outcome_unknown", "unknown");
    shop.order("tombstone", "tea").await.refused(409, "key_expired", "expired");
    // By the rules of its record, whatever this process would make a new one by.
    let again = order("form", &form("other", "tea"), &[("content-type", &format!("{FORM}other"))]);
    shop.send(&again).await.replayed(201, "made 1");
    assert_eq!(shop.kitchen.runs(), 0);
    shop.order("released", "tea").await.stored(201, "made 1");

    // A holder that was killed before the upgrade.
    shop.clock.advance(Duration::from_secs(15));
    shop.order("in-flight", "tea").await.refused(409, "outcome_unknown", "unknown");
    assert_eq!(shop.kitchen.runs(), 1);
}

#[tokio::test]
async fn record_of_version_1_refuses_another_request_in_each_phase() {
    let shop = upgraded().await;
    for key in ["completed", "head", "in-flight", "unknown", "tombstone"] {
        shop.order(key, "coffee").await.refused(422, "key_reused", "mismatch");
    }
    let other = order("form", &form("other", "coffee"), &[("content-type", &format!("{FORM}other"))]);
    shop.send(&other).await.refused(422, "key_reused", "mismatch");
    assert_eq!(shop.kitchen.runs(), 0);
}

//! Golden values of hashes and names that are stored or sent. A rename in the code must not change
//! them.

use http::HeaderMap;
use onceward::key::Key;
use onceward::principal::{Credentials, Principal, PrincipalRule};
use onceward::secret::{HashKeys, RecordId, Secret};

use crate::hex::hex;

fn hash_keys() -> HashKeys {
    HashKeys::new(&Secret::new([7; 32]))
}

fn key() -> Key {
    Key::parse(b"golden-key-1").expect("a valid key")
}

#[test]
fn record_ids_do_not_change() {
    let mut headers = HeaderMap::new();
    headers.insert("x-user", "golden".parse().expect("a valid header value"));
    let rule = PrincipalRule::Parts(vec!["header:x-user".parse().expect("a valid part")]);
    let named = rule.identify(&headers, &Credentials::default()).expect("an identified caller");
    let id = |principal: &Principal| hex(&hash_keys().record_id("golden", principal, &key()).0);
    assert_eq!(id(&Principal::Anonymous), "4bfe2ff89227b15d4b17b32361fd4db8a1833af320fe361f49c329e13c538924");
    assert_eq!(id(&named), "b9aecb9c5b49d659671e2cc3a5677dfe7df68675d790c09b3be9f2376a4cc55e");
}

#[test]
fn key_hashes_do_not_change() {
    assert_eq!(
        hex(&hash_keys().key_hash(&key()).0),
        "81b910f07358a4c7a11f47a4541f6acd7167792ee0debea62824ad52cad9c8cd"
    );
}

#[test]
fn check_values_do_not_change() {
    assert_eq!(hex(&hash_keys().check_value()), "93d1207696c340ea7c12f7ef287ca81e90551c1dd0df05c1c31b79d2394d1f29");
}

#[test]
fn instance_names_do_not_change() {
    assert_eq!(RecordId([0x1f; 32]).instance(), format!("urn:onceward:{}", "1f".repeat(12)));
}

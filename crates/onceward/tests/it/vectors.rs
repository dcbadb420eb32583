//! `wire/cases.json`, which every implementation runs; and an RFC 9651 parser by other hands as an oracle.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri};
use onceward::fingerprint::{FIRST_VERSION, Hosts, Kind, Members, Parts, Pointer, Rules, VERSION};
use onceward::key::{Key, ParseKeyError};
use onceward::secret::{HashKeys, Secret};
use onceward::wire::IDEMPOTENCY_KEY;
use proptest::prelude::*;
use serde_json::Value;
use sfv::Parser;

use crate::hex::{hex, unhex};

pub(crate) fn cases(part: &str) -> Vec<Value> {
    let cases: Value = serde_json::from_str(include_str!("../../../../wire/cases.json")).expect("JSON");
    let cases = cases[part].as_array().expect("a list").clone();
    let names: BTreeSet<&str> = cases.iter().map(|case| text(case, "name")).collect();
    assert_eq!(names.len(), cases.len(), "each case of {part} has a name of its own");
    cases
}

fn text<'a>(case: &'a Value, field: &str) -> &'a str {
    case[field].as_str().unwrap_or_else(|| panic!("{field} is missing in {case}"))
}

fn bytes_of(case: &Value, as_text: &str, as_hex: &str) -> Vec<u8> {
    match (case[as_text].as_str(), case[as_hex].as_str()) {
        (Some(text), None) => text.as_bytes().to_vec(),
        (None, Some(hex)) => unhex(hex),
        _ => panic!("either {as_text} or {as_hex} in {case}"),
    }
}

/// The key, or the kind of the error and the byte that it names.
type Read = Result<String, (&'static str, Option<u64>)>;

fn read(parsed: Result<Key, ParseKeyError>) -> Read {
    parsed.map(|key| key.as_str().to_owned()).map_err(|invalid| match invalid {
        ParseKeyError::Empty => ("empty", None),
        ParseKeyError::TooLong => ("too_long", None),
        ParseKeyError::Byte { at } => ("byte", Some(at as u64)),
        ParseKeyError::Quote => ("quote", None),
        ParseKeyError::Parameters => ("parameters", None),
        ParseKeyError::Repeated => ("repeated", None),
        ParseKeyError::Connection => ("connection", None),
        _ => ("another", None),
    })
}

#[test]
fn each_key_is_read_as_the_vectors_say() {
    let cases = cases("keys");
    let (mut valid, mut kinds, mut parsed_alone) = (0, BTreeSet::new(), 0);
    for case in &cases {
        let name = text(case, "name");
        let (want, error) = (case["key"].as_str(), case["error"].as_str());
        assert!(want.is_some() != error.is_some(), "{name}: either a key or an error");
        valid += usize::from(want.is_some());
        kinds.extend(error);
        let matches = |read: Read, how: &str| match (&read, want, error) {
            (Ok(key), Some(want), _) => assert_eq!(key, want, "{name}, {how}"),
            (Err((kind, at)), _, Some(want)) => assert_eq!((*kind, *at), (want, case["at"].as_u64()), "{name}, {how}"),
            _ => panic!("{name}, {how}: {read:?}"),
        };
        let lines: Vec<Vec<u8>> = match case["lines"].as_array() {
            Some(lines) => lines.iter().map(|line| line.as_str().expect("text").as_bytes().to_vec()).collect(),
            None => vec![bytes_of(case, "value", "hex")],
        };
        let mut headers = HeaderMap::new();
        let mut sendable = true;
        for line in &lines {
            match HeaderValue::from_bytes(line) {
                Ok(line) => drop(headers.append(IDEMPOTENCY_KEY, line)),
                Err(_) => sendable = false,
            }
        }
        if let Some(names) = case["connection"].as_str() {
            headers.append(CONNECTION, names.parse().expect("a value"));
        }
        if sendable {
            let found = Key::of(&headers, &IDEMPOTENCY_KEY).map(|key| key.expect("the header is there"));
            matches(read(found), "as a header");
        }
        if lines.len() == 1 && !matches!(error, Some("connection")) {
            matches(read(Key::parse(&lines[0])), "parsed");
            parsed_alone += 1;
        }
    }
    assert!(cases.len() >= 45 && valid >= 20 && parsed_alone >= 40, "{} cases, {valid} valid", cases.len());
    let all = ["byte", "connection", "empty", "parameters", "quote", "repeated", "too_long"];
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), all, "each kind of error has its case");
}

#[test]
fn no_key_header_is_no_key() {
    let mut headers = HeaderMap::new();
    headers.insert(CONNECTION, HeaderValue::from_static("idempotency-key"));
    assert_eq!(Key::of(&headers, &IDEMPOTENCY_KEY), Ok(None));
}

#[test]
fn a_key_is_never_shown() {
    let key = Key::parse(b"secret-order-7").expect("a key");
    assert_eq!(format!("{key:?}"), "Key(14 bytes)");
    for bad in [b"secret\xff".as_slice(), b"\"secret", b"\"secret\"secret", b"sec ret", &[b's'; 256]] {
        let invalid = Key::parse(bad).expect_err("no key");
        assert!(!format!("{invalid} {invalid:?}").contains("secr"), "{invalid}");
    }
}

#[test]
fn each_fingerprint_is_what_the_vectors_say() {
    assert_fingerprints("fingerprints", FIRST_VERSION, Kind::Exact);
}

#[test]
fn each_form_has_the_fingerprint_that_the_vectors_say() {
    assert_fingerprints("forms", FIRST_VERSION, Kind::Form);
}

#[test]
fn fingerprint_of_the_second_construction_is_what_the_vectors_say() {
    assert_fingerprints("fingerprints_2", VERSION, Kind::Auto);
}

#[test]
fn form_of_the_second_construction_has_the_fingerprint_that_the_vectors_say() {
    assert_fingerprints("forms_2", VERSION, Kind::Form);
}

#[test]
fn json_has_the_fingerprint_that_the_vectors_say() {
    assert_fingerprints("json", VERSION, Kind::Json);
}

fn assert_fingerprints(part: &str, version: u8, kind: Kind) {
    let cases = cases(part);
    let mut groups: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for case in &cases {
        let name = text(case, "name");
        let keys = HashKeys::new(&Secret::new(unhex(text(case, "secret")).try_into().expect("32 bytes")));
        let mut headers = HeaderMap::new();
        for line in case["headers"].as_array().expect("a list") {
            let header: HeaderName = line[0].as_str().expect("a name").parse().expect("a name");
            headers.append(header, line[1].as_str().expect("a value").parse().expect("a value"));
        }
        if let Some(host) = case["host"].as_str() {
            headers.insert(HOST, host.parse().expect("a value"));
        }
        let target = text(case, "target");
        let uri: Uri = match case["authority"].as_str() {
            Some(authority) => format!("http://{authority}{target}"),
            None => target.to_owned(),
        }
        .parse()
        .expect("a target");
        let names = case["rules"]["headers"].as_array().expect("a list");
        let pointers = |field: &str| -> Vec<Pointer> {
            let texts = case["rules"][field].as_array().map_or(&[][..], Vec::as_slice);
            texts.iter().map(|text| text.as_str().expect("text").parse().expect("a pointer")).collect()
        };
        let rules = Rules {
            version,
            kind,
            hosts: if case["rules"]["hosts"] == "same" { Hosts::Same } else { Hosts::Distinct },
            members: match (pointers("ignore"), pointers("only")) {
                (ignore, only) if only.is_empty() && ignore.is_empty() => Members::All,
                (ignore, only) if only.is_empty() => Members::Except(ignore),
                (_, only) => Members::Only(only),
            },
            headers: names.iter().map(|name| name.as_str().expect("a name").parse().expect("a name")).collect(),
        };
        let method = Method::from_bytes(text(case, "method").as_bytes()).expect("a method");
        let body = Bytes::from(bytes_of(case, "body", "body_hex"));
        let print = rules.fingerprint(&keys, &Parts { method: &method, uri: &uri, headers: &headers, body: &body });
        assert_eq!(hex(&print.0), text(case, "digest"), "{name}");
        groups.entry(text(case, "group")).or_default().insert(hex(&print.0));
    }
    assert!(cases.len() >= 24, "{} cases", cases.len());
    assert!(groups.values().all(|digests| digests.len() == 1), "those of one group are equal");
    let all: BTreeSet<&String> = groups.values().flatten().collect();
    assert_eq!(all.len(), groups.len(), "no two groups share a digest");
    assert!(groups.len() >= 20 && cases.len() > groups.len() + 4, "{} groups", groups.len());
}

/// What an RFC 9651 parser makes of a value that is one string without parameters, and our own limits on top.
fn by_rfc(value: &str) -> Option<String> {
    let item = Parser::new(value).parse::<sfv::Item>().ok()?;
    let string = item.bare_item.as_string()?.as_str().to_owned();
    let ours = item.params.is_empty() && (1..=255).contains(&string.len()) && !string.contains(' ');
    ours.then_some(string)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_quoted_value_is_a_key_exactly_if_it_is_one_string_by_the_rfc(
        inside in "([a-c!~]|\\\\\"|\\\\\\\\|\"|\\\\|[ ,;=]|\u{7f}|é){0,9}", closed in prop::bool::weighted(0.9),
    ) {
        let value = format!("\"{inside}{}", if closed { "\"" } else { "" });
        prop_assert_eq!(Key::parse(value.as_bytes()).ok().map(|key| key.as_str().to_owned()), by_rfc(&value), "{}", value);
    }

    #[test]
    fn each_key_comes_back_from_its_quoted_form(key in "[!-~]{1,255}") {
        let string = sfv::StringRef::from_str(&key).expect("visible ASCII");
        let value = sfv::ItemSerializer::new().bare_item(string).finish();
        let read = Key::parse(value.as_bytes());
        prop_assert_eq!(read.map(|key| key.as_str().to_owned()), Ok(key));
    }

    #[test]
    fn no_bytes_make_the_parser_panic_or_pass_what_is_no_key(value in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(key) = Key::parse(&value) {
            prop_assert!((1..=255).contains(&key.as_str().len()));
            prop_assert!(key.as_str().bytes().all(|byte| (0x21..=0x7e).contains(&byte)));
        }
    }
}

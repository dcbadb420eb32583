//! Who is asking: keys of different principals never meet, and nobody is taken for somebody else.

use std::collections::BTreeSet;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use onceward::key::Key;
use onceward::principal::{Part, Principal, Rule, Unknown};
use onceward::record::AttemptId;
use onceward::secret::{HashKeys, Secret};

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(name.parse::<HeaderName>().expect("a name"), HeaderValue::from_str(value).expect("a value"));
    }
    headers
}

fn rule(parts: &[&str]) -> Rule {
    Rule::Parts(parts.iter().map(|part| part.parse().expect("a part")).collect())
}

#[derive(Debug, PartialEq)]
enum Want {
    Anonymous,
    Named,
    Refused,
}

#[test]
fn who_is_asking() {
    use Want::{Anonymous, Named, Refused};
    for (name, rule, lines, want) in [
        ("unset, no credential", Rule::Unset, vec![], Anonymous),
        ("unset, other headers", Rule::Unset, vec![("x-user", "7")], Anonymous),
        ("unset, a token", Rule::Unset, vec![("authorization", "Bearer 1")], Refused),
        ("unset, a cookie", Rule::Unset, vec![("cookie", "session=1")], Refused),
        ("unset, an empty token is one all the same", Rule::Unset, vec![("authorization", "")], Refused),
        ("the token", rule(&["authorization"]), vec![("authorization", "Bearer 1")], Named),
        ("the token is absent", rule(&["authorization"]), vec![], Anonymous),
        ("the token is absent, a cookie is there", rule(&["authorization"]), vec![("cookie", "a=1")], Refused),
        ("the token is empty", rule(&["authorization"]), vec![("authorization", "")], Refused),
        ("a header", rule(&["header:x-user"]), vec![("x-user", "7"), ("authorization", "Bearer 1")], Named),
        ("the header is absent, a token is there", rule(&["header:x-user"]), vec![("authorization", "b")], Refused),
        (
            "the header is empty, a token is there",
            rule(&["header:x-user"]),
            { vec![("x-user", ""), ("authorization", "b")] },
            Refused,
        ),
        ("a cookie", rule(&["cookie:session"]), vec![("cookie", "a=1; session=2")], Named),
        ("another cookie", rule(&["cookie:session"]), vec![("cookie", "a=1; session2=2")], Refused),
        ("an empty cookie", rule(&["cookie:session"]), vec![("cookie", "session=")], Refused),
        ("a cookie's name counts to the letter", rule(&["cookie:session"]), vec![("cookie", "Session=1")], Refused),
        ("one of two parts", rule(&["header:x-a", "header:x-b"]), vec![("x-b", "1")], Named),
        ("none of two parts", rule(&["header:x-a", "header:x-b"]), vec![], Anonymous),
        ("all callers are one", rule(&[]), vec![], Named),
        ("all callers are one, whatever they bear", rule(&[]), vec![("authorization", "b"), ("cookie", "c=1")], Named),
    ] {
        let got = match rule.identify(&headers(&lines)) {
            Ok(Principal::Anonymous) => Anonymous,
            Ok(Principal::Named(_)) => Named,
            Err(Unknown) => Refused,
        };
        assert_eq!(got, want, "{name}");
    }
}

#[test]
fn the_same_caller_is_the_same_principal() {
    for (name, rule, one, other) in [
        (
            "another header does not matter",
            rule(&["authorization"]),
            { vec![("authorization", "Bearer 1")] },
            vec![("authorization", "Bearer 1"), ("cookie", "session=9"), ("user-agent", "x")],
        ),
        (
            "another cookie does not matter",
            rule(&["cookie:session"]),
            { vec![("cookie", "session=1")] },
            vec![("cookie", "theme=dark; session=1;other=2")],
        ),
        (
            "nor which line it stands in",
            rule(&["cookie:session"]),
            { vec![("cookie", "a=1; session=1")] },
            vec![("cookie", "a=1"), ("cookie", "session=1")],
        ),
        (
            "an empty part counts as absent",
            rule(&["header:x-a", "header:x-b"]),
            { vec![("x-a", ""), ("x-b", "1")] },
            vec![("x-b", "1")],
        ),
        ("all callers are one", rule(&[]), vec![("authorization", "1")], vec![("authorization", "2")]),
    ] {
        let identify = |lines: &[(&str, &str)]| rule.identify(&headers(lines)).expect("known");
        assert_eq!(identify(&one), identify(&other), "{name}");
        assert_ne!(identify(&one), Principal::Anonymous, "{name}");
    }
}

#[test]
fn different_callers_never_meet() {
    const TWO: &[&str] = &["header:x-a", "header:x-b"];
    type Caller = (&'static [&'static str], Vec<(&'static str, &'static str)>);
    let cases: Vec<Caller> = vec![
        (&["authorization"], vec![("authorization", "Bearer 1")]),
        (&["authorization"], vec![("authorization", "Bearer 2")]),
        (&["authorization"], vec![("authorization", "bearer 1")]),
        (&["authorization"], vec![("authorization", "Bearer 1"), ("authorization", "Bearer 2")]),
        (&["authorization"], vec![("authorization", "Bearer 1Bearer 2")]),
        (&["header:x-a"], vec![("x-a", "Bearer 1")]),
        (&["cookie:x-a"], vec![("cookie", "x-a=Bearer 1")]),
        (TWO, vec![("x-a", "1"), ("x-b", "2")]),
        (TWO, vec![("x-a", "2"), ("x-b", "1")]),
        (TWO, vec![("x-a", "12")]),
        (TWO, vec![("x-b", "12")]),
        (TWO, vec![("x-a", "1"), ("x-a", "2")]),
        (TWO, vec![("x-a", "1"), ("x-a", "2"), ("x-b", "2")]),
        // Which of two cookies the service believes is not known here: neither stands in for the other.
        (&["cookie:s"], vec![("cookie", "s=1; s=2")]),
        (&["cookie:s"], vec![("cookie", "s=2; s=1")]),
        (&["cookie:s"], vec![("cookie", "s=1")]),
        (&["cookie:s"], vec![("cookie", "s=2")]),
        (&["cookie:s"], vec![("cookie", "s=1=2")]),
        (&[], vec![]),
        (&["authorization"], vec![]),
    ];
    let keys = HashKeys::new(&Secret::new([7; 32]));
    let key = Key::parse(b"order-7").expect("a key");
    let mut ids = BTreeSet::new();
    for (parts, lines) in &cases {
        let principal = rule(parts).identify(&headers(lines)).expect("known");
        assert!(ids.insert(keys.record_id("default", &principal, &key)), "{parts:?} {lines:?}");
    }
    assert_eq!(ids.len(), cases.len());
}

#[test]
fn namespaces_keys_and_secrets_never_meet() {
    let named = rule(&["authorization"]).identify(&headers(&[("authorization", "1")])).expect("known");
    let mut ids = BTreeSet::new();
    let mut hashes = BTreeSet::new();
    for secret in [[7; 32], [8; 32]] {
        let keys = HashKeys::new(&Secret::new(secret));
        assert_eq!(format!("{keys:?} {:?}", Secret::new(secret)), "HashKeys(..) Secret(..)");
        for text in ["a", "b", "ab"] {
            let key = Key::parse(text.as_bytes()).expect("a key");
            hashes.insert(keys.key_hash(&key));
            for namespace in ["", "a", "ab"] {
                for principal in [Principal::Anonymous, named] {
                    ids.insert(keys.record_id(namespace, &principal, &key));
                }
            }
        }
        hashes.insert(onceward::secret::KeyHash(keys.check_value()));
    }
    assert_eq!((ids.len(), hashes.len()), (2 * 3 * 3 * 2, 2 * 4));
}

#[test]
fn an_attempt_is_never_used_twice() {
    let attempts: BTreeSet<AttemptId> = (0..10_000).map(|_| AttemptId::random()).collect();
    assert_eq!(attempts.len(), 10_000);
}

#[test]
fn parts_are_written_as_they_are_read() {
    for part in ["authorization", "header:x-user", "cookie:session"] {
        assert_eq!(part.parse::<Part>().expect(part).to_string(), part);
    }
    assert_eq!("header:X-User".parse::<Part>().expect("any letters").to_string(), "header:x-user");
    assert_eq!("cookie:Session".parse::<Part>().expect("its letters").to_string(), "cookie:Session");
    for bad in
        ["", "Authorization", "header", "header:", "header:x user", "cookie:", "cookie:a=b", "cookie:a b", "jwt:sub"]
    {
        let error = bad.parse::<Part>().expect_err(bad);
        assert!(
            error.to_string().contains(&format!("{bad:?}")) && error.to_string().contains("header:NAME"),
            "{error}"
        );
    }
}

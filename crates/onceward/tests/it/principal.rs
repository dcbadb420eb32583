//! Who is asking: keys of different principals never meet, and nobody is taken for somebody else.

use std::collections::BTreeSet;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use onceward::key::Key;
use onceward::policy::Policy;
use onceward::principal::{
    CREDENTIAL_HEADERS, Caller, Principal, PrincipalPart, PrincipalRule, RequestView, UnidentifiedCallerError,
    VerifiedToken,
};
use onceward::problem::Code;
use onceward::record::AttemptId;
use onceward::secret::{HashKeys, Secret};

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(name.parse::<HeaderName>().expect("a name"), HeaderValue::from_str(value).expect("a value"));
    }
    headers
}

fn rule(parts: &[&str]) -> PrincipalRule {
    PrincipalRule::Parts(parts.iter().map(|part| part.parse().expect("a part")).collect())
}

fn identify(rule: &PrincipalRule, headers: &HeaderMap) -> Result<Principal, UnidentifiedCallerError> {
    rule.identify(headers, &Policy::default().credentials)
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
        ("unset, no credential", PrincipalRule::Unset, vec![], Anonymous),
        ("unset, other headers", PrincipalRule::Unset, vec![("x-request-id", "7")], Anonymous),
        ("unset, a token", PrincipalRule::Unset, vec![("authorization", "Bearer 1")], Refused),
        ("unset, a cookie", PrincipalRule::Unset, vec![("cookie", "session=1")], Refused),
        ("unset, an empty token is one all the same", PrincipalRule::Unset, vec![("authorization", "")], Refused),
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
        ("another cookie", rule(&["cookie:session"]), vec![("cookie", "a=1; session2=2")], Anonymous),
        ("an empty cookie", rule(&["cookie:session"]), vec![("cookie", "session=")], Anonymous),
        ("a cookie's name counts to the letter", rule(&["cookie:session"]), vec![("cookie", "Session=1")], Anonymous),
        ("one of two parts", rule(&["header:x-a", "header:x-b"]), vec![("x-b", "1")], Named),
        ("none of two parts", rule(&["header:x-a", "header:x-b"]), vec![], Anonymous),
        ("all callers are one", rule(&[]), vec![], Named),
        ("all callers are one, whatever they bear", rule(&[]), vec![("authorization", "b"), ("cookie", "c=1")], Named),
    ] {
        let got = match identify(&rule, &headers(&lines)) {
            Ok(Principal::Anonymous) => Anonymous,
            Ok(Principal::Named(_)) => Named,
            Err(_) => Refused,
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
        let identify = |lines: &[(&str, &str)]| identify(&rule, &headers(lines)).expect("known");
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
        (&["authorization"], vec![("authorization", "1")]),
        (&["authorization"], vec![("authorization", "Bearer 1Bearer 2")]),
        (&["header:x-a"], vec![("x-a", "Bearer 1")]),
        (&["cookie:x-a"], vec![("cookie", "x-a=Bearer 1")]),
        (TWO, vec![("x-a", "1"), ("x-b", "2")]),
        (TWO, vec![("x-a", "2"), ("x-b", "1")]),
        (TWO, vec![("x-a", "12")]),
        (TWO, vec![("x-b", "12")]),
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
        let principal = identify(&rule(parts), &headers(lines)).expect("known");
        assert!(ids.insert(keys.record_id("default", &principal, &key)), "{parts:?} {lines:?}");
    }
    assert_eq!(ids.len(), cases.len());
}

#[test]
fn namespaces_keys_and_secrets_never_meet() {
    let named = identify(&rule(&["authorization"]), &headers(&[("authorization", "1")])).expect("known");
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
    for part in ["authorization", "header:x-user", "cookie:session", "jwt:sub"] {
        assert_eq!(part.parse::<PrincipalPart>().expect(part).to_string(), part);
    }
    assert_eq!("header:X-User".parse::<PrincipalPart>().expect("any letters").to_string(), "header:x-user");
    assert_eq!("cookie:Session".parse::<PrincipalPart>().expect("its letters").to_string(), "cookie:Session");
    for bad in
        ["", "Authorization", "header", "header:", "header:x user", "cookie:", "cookie:a=b", "cookie:a b", "jwt:"]
    {
        let error = bad.parse::<PrincipalPart>().expect_err(bad);
        assert!(
            error.to_string().contains(&format!("{bad:?}")) && error.to_string().contains("header:NAME"),
            "{error}"
        );
    }
}

#[test]
fn canonical_bytes_of_usual_spellings_never_change() {
    // Each digest is what the ids of stored records were made from. A change here forgets every key.
    for (parts, lines, digest) in [
        (&[][..], vec![], "a7f91ced0533c12cd59706f2dc38c2a8c39c007ae89ab6492698778c8684c483"),
        (
            &["authorization"],
            vec![("authorization", "Bearer abc.def")],
            "1414752ba7fc0654d8b084d5c6ca06a0bf2ffed7f5e68baf1e7fd504d4bba729",
        ),
        (
            &["authorization"],
            vec![("authorization", "Basic dXNlcjpwdw==")],
            "f0e9c97e25a786f614c09c9824f03258094f3b7d0fad6f1d85fde2c657c7ad6e",
        ),
        (
            &["authorization"],
            vec![("authorization", "ApiKey 7")],
            "c447c5b7282ac14bb6951514a3c31c36609993fe752df79df8f4f9063722ec36",
        ),
        (
            &["authorization"],
            vec![("authorization", "k-1234")],
            "5a70ae2ed6b0e854f1295e574f8be16ae6c13032a9efccfd889284c71f27cd6a",
        ),
        (
            &["authorization"],
            vec![("authorization", "Token abc")],
            "1b69df74cad295c126b54332f7fda87087088d8490cfc65e4ff14806223d34c0",
        ),
        (
            &["header:x-api-key"],
            vec![("x-api-key", "k1")],
            "846d3274da17e3e88c6c57c647d3045bb9ef8266275a4a58b821b4be523c95e4",
        ),
        (
            &["cookie:session"],
            vec![("cookie", "theme=dark; session=s1")],
            "8cffaa66518ecdbc6e23ef5d317d1a4f5debfcdcf9d05622486682c9aacd5163",
        ),
        (
            &["cookie:session"],
            vec![("cookie", "session=s1; session=s2")],
            "dafe564fe1cdbd465286532ae2b4796447c6105f161252e343ec9ac283a2dc76",
        ),
        (
            &["cookie:session", "header:x-user"],
            vec![("cookie", "session=s1"), ("x-user", "7")],
            "06a0ed9a0462165b7eb49bac2e3f19096c23bb433aa0a3b467bbf5198802be3c",
        ),
        (
            &["header:x-a", "header:x-b"],
            vec![("x-b", "1")],
            "eb734d006af1cef229e82ae24c570db9e855634290514651111216322cee1fea",
        ),
    ] {
        let principal = identify(&rule(parts), &headers(&lines)).expect("known");
        let Principal::Named(found) = principal else { panic!("{parts:?} {lines:?}: nobody") };
        assert_eq!(hex(&found.0), digest, "{parts:?} {lines:?}");
    }
    let keys = HashKeys::new(&Secret::new([7; 32]));
    let key = Key::parse(b"order-7").expect("a key");
    let bearer = identify(&rule(&["authorization"]), &headers(&[("authorization", "Bearer abc.def")])).expect("known");
    for (principal, id) in [
        (Principal::Anonymous, "c15340a4da457750101d3f45d6a05d343edd44fadbc451fa98b739a88a96d61e"),
        (bearer, "4ad21052cfddd5fa2532a1aa62001f216e616e0c708e13d64e40fd8286f0190a"),
    ] {
        assert_eq!(hex(&keys.record_id("default", &principal, &key).0), id);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Names that say nothing of the caller, and that a pattern for credentials would find.
const HARMLESS: [&str; 22] = [
    "x-csrf-token",
    "x-xsrf-token",
    "csrf-token",
    "x-request-id",
    "x-correlation-id",
    "x-recaptcha-token",
    "x-captcha-token",
    "x-requested-with",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
    "x-device-id",
    "x-client-version",
    "x-idempotency-key",
    "stripe-signature",
    "stripe-version",
    "webhook-id",
    "x-hub-signature-256",
    "x-github-delivery",
    "traceparent",
    "user-agent",
];

#[test]
fn credential_header_without_a_rule_for_it_is_refused_and_harmless_ones_pass() {
    let rules = [PrincipalRule::Unset, rule(&["authorization"]), rule(&["cookie:session"]), rule(&["header:x-named"])];
    for rule in &rules {
        for name in CREDENTIAL_HEADERS {
            for spelled in [name.to_owned(), name.replace('-', "_")] {
                let error = identify(rule, &headers(&[(&spelled, "a-secret-value")])).expect_err(&spelled);
                assert_eq!(error.code(), Code::PrincipalUnknown, "{rule} {spelled}");
                let detail = error.detail();
                assert!(detail.contains(&spelled) && detail.contains("principal = ["), "{detail}");
                assert!(!detail.contains("a-secret-value"), "{detail}");
            }
        }
        for name in HARMLESS {
            assert_eq!(identify(rule, &headers(&[(name, "1")])), Ok(Principal::Anonymous), "{rule} {name}");
        }
    }
    let mut sorted = CREDENTIAL_HEADERS;
    sorted.sort_unstable();
    assert_eq!(sorted, CREDENTIAL_HEADERS, "they are looked up by their order");
    // Each of them is what the rule names it by.
    for name in CREDENTIAL_HEADERS {
        let named = rule(&[&format!("header:{name}")]);
        assert!(matches!(identify(&named, &headers(&[(name, "1")])), Ok(Principal::Named(_))), "{name}");
    }
}

#[test]
fn refusal_names_what_was_found_and_the_line_to_write() {
    for (rule, lines, found, line) in [
        (PrincipalRule::Unset, vec![("x-api-key", "k")], "x-api-key", "principal = [\"header:x-api-key\"]"),
        (
            PrincipalRule::Unset,
            vec![("authorization", "Bearer k")],
            "Authorization (Bearer)",
            "principal = [\"authorization\"]",
        ),
        (
            PrincipalRule::Unset,
            vec![("authorization", "Bearer eyJh.eyJz.c2ln")],
            "Authorization",
            "principal = [\"jwt:sub\"]",
        ),
        (
            PrincipalRule::Unset,
            vec![("cookie", "_ga=1; sessionid=2")],
            "sessionid",
            "principal = [\"cookie:sessionid\"]",
        ),
        (PrincipalRule::Unset, vec![("cookie", "_ga=1")], "_ga", "ignore_cookies = true"),
        (
            rule(&["authorization"]),
            vec![("api-key", "k")],
            "api-key",
            "principal = [\"authorization\", \"header:api-key\"]",
        ),
        (
            rule(&["header:x-a"]),
            vec![("authorization", "AWS4-HMAC-SHA256 Credential=a")],
            "AWS4-HMAC-SHA256",
            "header:NAME",
        ),
    ] {
        let error = identify(&rule, &headers(&lines)).expect_err(found);
        let detail = error.detail();
        assert!(detail.contains(found) && detail.contains(line), "{detail}");
    }
}

#[test]
fn cookies_that_no_rule_names_are_ignored_only_where_that_is_said() {
    let lines = headers(&[("cookie", "_ga=1")]);
    let mut policy = Policy::default();
    for parts in [&["cookie:session"][..], &["authorization", "cookie:session"]] {
        assert_eq!(identify(&rule(parts), &lines), Ok(Principal::Anonymous), "{parts:?}");
    }
    policy.principal = rule(&["header:x-user"]);
    assert!(policy.identify(&lines).is_err());
    let credentials = onceward::principal::Credentials { ignore_cookies: true, ..Default::default() };
    policy.credentials = credentials.into();
    assert_eq!(policy.identify(&lines), Ok(Principal::Anonymous));
    assert!(policy.identify(&headers(&[("authorization", "Bearer 1")])).is_err());
}

#[test]
fn same_credential_in_other_bytes_is_one_principal() {
    let bearer = headers(&[("authorization", "Bearer x")]);
    for rule in [rule(&["authorization"]), rule(&["header:authorization"])] {
        let first = identify(&rule, &bearer);
        for lines in [
            &[("authorization", "bearer x")][..],
            &[("authorization", "BEARER x")],
            &[("authorization", "Bearer  x")],
            &[("authorization", "Bearer x"), ("authorization", "Bearer x")],
            &[("authorization", "Bearer x"), ("authorization", "bearer   x"), ("authorization", "")],
        ] {
            assert_eq!(identify(&rule, &headers(lines)), first, "{lines:?}");
        }
        assert_ne!(identify(&rule, &headers(&[("authorization", "Bearer X")])), first, "a token's letters count");
    }
    let twice = headers(&[("x-user", "7"), ("x-user", "7")]);
    let by_user = rule(&["header:x-user"]);
    assert_eq!(identify(&by_user, &twice), identify(&by_user, &headers(&[("x-user", "7")])));
    let by_cookie = rule(&["cookie:s"]);
    let once = identify(&by_cookie, &headers(&[("cookie", "s=1")]));
    assert_eq!(identify(&by_cookie, &headers(&[("cookie", "s=1; a=2"), ("cookie", "s=1")])), once);
    assert_eq!(identify(&by_cookie, &headers(&[("cookie", "s=1; s=1")])), once);
}

#[test]
fn differing_lines_of_a_part_are_ambiguous() {
    for (parts, lines) in [
        (&["authorization"][..], &[("authorization", "Bearer a"), ("authorization", "Bearer b")][..]),
        (&["authorization"], &[("authorization", "Bearer a"), ("authorization", "Basic YQ==")]),
        (&["header:x-user"], &[("x-user", "7"), ("x-user", "8")]),
        (&["cookie:s"], &[("cookie", "s=1"), ("cookie", "s=2")]),
        (&["header:x-user", "authorization"], &[("authorization", "a"), ("x-user", "7"), ("x-user", "8")]),
    ] {
        let error = identify(&rule(parts), &headers(lines)).expect_err("ambiguous");
        assert_eq!(error.code(), Code::CredentialsAmbiguous, "{parts:?} {lines:?}");
    }
}

#[test]
fn order_of_parts_does_not_matter() {
    let lines = headers(&[("authorization", "Bearer x"), ("cookie", "s=1"), ("x-user", "7")]);
    let one = identify(&rule(&["authorization", "cookie:s", "header:x-user"]), &lines);
    assert_eq!(identify(&rule(&["header:x-user", "authorization", "cookie:s"]), &lines), one);
    assert_eq!(identify(&rule(&["cookie:s", "cookie:s", "header:x-user", "authorization"]), &lines), one);
    assert_eq!(rule(&["header:x-user", "authorization"]).to_string(), "[\"authorization\", \"header:x-user\"]");
}

#[test]
fn scheme_that_signs_each_request_is_refused_under_authorization() {
    for value in [
        "AWS4-HMAC-SHA256 Credential=AKIA/20260101/eu-central-1/s3/aws4_request, SignedHeaders=host, Signature=0a",
        "OAuth oauth_consumer_key=\"k\", oauth_nonce=\"n\", oauth_signature=\"s\"",
        "Digest username=\"u\", nonce=\"n\", response=\"r\"",
        "Hawk id=\"1\", ts=\"2\", nonce=\"3\", mac=\"4\"",
        "Signature keyId=\"k\", signature=\"s\"",
        "Negotiate YII=",
        "NTLM TlRM",
        "HMAC key:c2ln",
    ] {
        for rule in [rule(&["authorization"]), rule(&["header:authorization"])] {
            let error = identify(&rule, &headers(&[("authorization", value)])).expect_err(value);
            assert_eq!(error.code(), Code::PrincipalUnknown);
            assert!(error.detail().contains("header:NAME"), "{error}");
            assert!(!error.detail().contains("AKIA"), "{error}");
        }
        // Where another part names the caller, nothing else is looked at.
        let by_user = rule(&["header:x-user"]);
        assert!(identify(&by_user, &headers(&[("authorization", value), ("x-user", "7")])).is_ok(), "{value}");
    }
}

#[test]
fn established_caller_and_verified_claim_name_the_principal() {
    let none = HeaderMap::new();
    let with = |extensions: &http::Extensions, rule: &PrincipalRule| {
        rule.identify(RequestView { headers: &none, extensions }, &Policy::default().credentials)
    };
    let mut ann = http::Extensions::new();
    ann.insert(Caller::new("ann"));
    let mut bob = http::Extensions::new();
    bob.insert(Caller::new("bob"));
    for rule in [PrincipalRule::Unset, rule(&["authorization"])] {
        assert!(matches!(with(&ann, &rule), Ok(Principal::Named(_))));
        assert_ne!(with(&ann, &rule), with(&bob, &rule));
    }

    let by_subject = rule(&["jwt:sub"]);
    let token = |claims: serde_json::Value| {
        let mut extensions = http::Extensions::new();
        let claims = claims.as_object().expect("claims").clone();
        extensions.insert(VerifiedToken::Valid(claims.into()));
        with(&extensions, &by_subject)
    };
    let first = token(serde_json::json!({ "iss": "a", "sub": "7", "exp": 1 }));
    assert_eq!(token(serde_json::json!({ "iss": "a", "sub": "7", "exp": 2, "jti": "x" })), first, "a renewed token");
    for other in [
        serde_json::json!({ "iss": "a", "sub": "8" }),
        serde_json::json!({ "iss": "b", "sub": "7" }),
        serde_json::json!({ "iss": "a", "sub": 7 }),
        serde_json::json!({ "sub": "7" }),
    ] {
        assert_ne!(token(other.clone()), first, "{other}");
    }
    let mut invalid = http::Extensions::new();
    invalid.insert(VerifiedToken::Invalid("it has expired (exp)".into()));
    assert_eq!(with(&invalid, &by_subject).expect_err("invalid").code(), Code::TokenInvalid);
}

#[test]
fn scope_separates_key_spaces_by_what_it_names() {
    use onceward::principal::{Scope, ScopePart};
    let keys = HashKeys::new(&Secret::new([7; 32]));
    let key = Key::parse(b"order-7").expect("a key");
    let id = |scope: &[ScopePart], route: &str, method: &str, path: &str, host: &str| {
        let scope: Scope = scope.iter().copied().collect();
        let space = scope.of(
            route,
            &method.parse().expect("a method"),
            &path.parse().expect("a path"),
            &headers(&[("host", host)]),
        );
        keys.record_id_in("default", &Principal::Anonymous, &space, &key)
    };
    let all = [
        ("r", "POST", "/a", "a"),
        ("s", "POST", "/a", "a"),
        ("r", "PATCH", "/a", "a"),
        ("r", "POST", "/b", "a"),
        ("r", "POST", "/a", "b"),
    ];
    for (scope, other) in
        [(ScopePart::Route, all[1]), (ScopePart::Method, all[2]), (ScopePart::Path, all[3]), (ScopePart::Host, all[4])]
    {
        let of = |(route, method, path, host): (&str, &str, &str, &str)| id(&[scope], route, method, path, host);
        for each in &all {
            assert_eq!(of(*each) == of(all[0]), *each != other, "{scope:?} {each:?}");
        }
        assert_ne!(of(all[0]), keys.record_id("default", &Principal::Anonymous, &key));
    }
    assert_eq!(id(&[], "r", "POST", "/a", "a"), keys.record_id("default", &Principal::Anonymous, &key));
    assert_eq!(
        id(&[ScopePart::Host], "r", "POST", "/a", "Shop.example:443"),
        id(&[ScopePart::Host], "r", "POST", "/a", "shop.example")
    );
}

//! `docs/statuses.md` and the vectors: what a response says of an execution, by its status and its headers.

use std::collections::BTreeSet;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use onceward::policy::{Disposition, JsonPointer, Policy, StatusSet};

use crate::vectors::cases;

const DOCS: &str = include_str!("../../../../docs/statuses.md");

fn end(policy: &Policy, status: u16, headers: &[(&str, &str)]) -> &'static str {
    let pairs = headers.iter().map(|(name, value)| {
        (name.parse::<HeaderName>().expect("a header"), HeaderValue::from_str(value).expect("a value"))
    });
    let headers: HeaderMap = pairs.collect();
    match policy.disposition(StatusCode::from_u16(status).expect("a status"), &headers) {
        Some(Disposition::Released) => "released",
        Some(Disposition::Unknown) => "unknown",
        Some(Disposition::NotKept) => "not-stored",
        None => "completed",
        Some(other) => panic!("{other:?}"),
    }
}

/// The rows of the table: status, header, end.
fn rows() -> Vec<(u16, &'static str, &'static str)> {
    let cells = |line: &'static str| line.split('|').map(|cell| cell.trim().trim_matches('`')).collect::<Vec<_>>();
    let row = |line: &'static str| match cells(line)[..] {
        ["", status, with, end, _, _, ""] => status.parse().ok().map(|status| (status, with, end)),
        _ => None,
    };
    DOCS.lines().filter_map(row).collect()
}

#[test]
fn each_status_of_the_docs_ends_as_its_row_says() {
    let policy = Policy::default();
    let rows = rows();
    assert!(rows.len() > 50, "{rows:?}");
    for (status, with, want) in &rows {
        let header = [(*with, "1")];
        let headers = if with.is_empty() { &[][..] } else { &header };
        assert_eq!(end(&policy, *status, headers), *want, "{status} {with}");
    }
    // What no row names is completed, and each status that is not has its row.
    let named: BTreeSet<u16> = rows.iter().filter(|(_, with, _)| with.is_empty()).map(|(status, ..)| *status).collect();
    for status in (200..600).filter(|status| !named.contains(status)) {
        assert_eq!(end(&policy, status, &[]), "completed", "{status}");
    }
}

#[test]
fn each_response_ends_as_the_vectors_say() {
    let policy = Policy::default();
    let cases = cases("statuses");
    for case in &cases {
        let headers = case["headers"].as_array().cloned().unwrap_or_default();
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|pair| (pair[0].as_str().expect("text"), pair[1].as_str().expect("text"))).collect();
        let status = u16::try_from(case["status"].as_u64().expect("a status")).expect("a status");
        assert_eq!(end(&policy, status, &headers), case["end"], "{}", case["name"]);
    }
    let ends: BTreeSet<&str> = cases.iter().map(|case| case["end"].as_str().expect("text")).collect();
    assert_eq!(ends.into_iter().collect::<Vec<_>>(), ["completed", "not-stored", "released", "unknown"]);
}

#[test]
fn unknown_on_outweighs_retry_after_and_release_on_outweighs_unknown_on() {
    let mut policy = Policy::default();
    policy.unknown_on = "409, 503".parse().expect("statuses");
    assert_eq!(end(&policy, 409, &[("retry-after", "1")]), "unknown");
    assert_eq!(end(&policy, 410, &[("retry-after", "1")]), "released");
    policy.release_on = "503+retry-after, 500-501+x-not-begun".parse().expect("statuses");
    assert_eq!(end(&policy, 503, &[("retry-after", "1")]), "released");
    assert_eq!(end(&policy, 503, &[]), "unknown");
    assert_eq!(end(&policy, 501, &[("x-not-begun", "")]), "released");
    assert_eq!(end(&policy, 501, &[]), "completed");
    assert_eq!(end(&policy, 503, &[("retry-after", "1"), ("idempotency-outcome", "stored")]), "completed");
}

#[test]
fn status_set_is_shown_as_it_is_written() {
    for text in ["408, 502-504, 503+retry-after", "400-499+x-retry", ""] {
        let set: StatusSet = text.parse().expect("statuses");
        assert_eq!(set.to_string(), text);
    }
    assert_eq!("520-527".parse::<StatusSet>().expect("statuses").without(523).to_string(), "520-522, 524-527");
    assert_eq!("503".parse::<StatusSet>().expect("statuses").without(503).to_string(), "");
    for (text, why) in [
        ("503+", "names no header"),
        ("503+retry after", "names no header"),
        ("+retry-after", "200 to 599"),
        ("99", "200 to 599"),
        ("503-502+retry-after", "lower status first"),
    ] {
        let error = text.parse::<StatusSet>().expect_err(text);
        assert!(error.contains(why), "{text}: {error}");
    }
}

#[test]
fn json_pointer_is_read_as_rfc_6901_says() {
    let is_set = |pointer: &str, body: &str| pointer.parse::<JsonPointer>().expect(pointer).is_set_in(body.as_bytes());
    assert!(is_set("/errors/0", "{\"errors\":[{}]}") && is_set("/a~1b/m~0n", "{\"a/b\":{\"m~n\":0}}"));
    assert!(is_set("/error", "{\"error\":\"\"}") && is_set("/error", "{\"error\":0}"));
    for body in ["{\"error\":null}", "{\"error\":false}", "{}", "[]", "", "error", "{\"error\":1"] {
        assert!(!is_set("/error", body), "{body}");
    }
    for text in ["", "/", "error", "#/error", "/a~2", "/a~"] {
        let error = text.parse::<JsonPointer>().expect_err(text);
        assert!(error.contains("JSON Pointer"), "{error}");
    }
}

#[test]
fn method_differs_in_case_only_from_a_protected_one() {
    let policy = Policy::default();
    for (method, differs) in
        [("patch", true), ("Post", true), ("PATCH", false), ("put", false), ("posts", false), ("get", false)]
    {
        assert_eq!(policy.differs_in_case(&method.parse::<Method>().expect("a method")), differs, "{method}");
    }
}

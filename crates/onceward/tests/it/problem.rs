//! Refusals: the table of the contract, written out again here, so that no row changes by itself.

use std::collections::BTreeSet;

use http::StatusCode;
use http::header::HeaderMap;
use onceward::problem::Executed::{self, No, Unknown, Yes};
use onceward::problem::Retry::{self, NewKey, SameKey, Stop, Wait};
use onceward::problem::{Code, Problem};
use onceward::wire::Outcome;
use serde_json::{Value, json};

type Row = (Code, u16, &'static str, &'static str, Executed, Retry);

/// What is promised on the wire.
#[rustfmt::skip]
const TABLE: &[Row] = &[
    (Code::KeyMissing,          400, "key_missing",          "rejected",   No,      NewKey),
    (Code::KeyInvalid,          400, "key_invalid",          "rejected",   No,      NewKey),
    (Code::MethodCase,          400, "method_case",          "rejected",   No,      NewKey),
    (Code::KeysDiffer,          400, "keys_differ",          "rejected",   No,      NewKey),
    (Code::FormUnreadable,      400, "form_unreadable",      "rejected",   No,      NewKey),
    (Code::JsonUnreadable,      400, "json_unreadable",      "rejected",   No,      NewKey),
    (Code::RequestIncomplete,   400, "request_incomplete",   "rejected",   Unknown, SameKey),
    (Code::TargetInvalid,       400, "target_invalid",       "rejected",   No,      NewKey),
    (Code::HostInvalid,         400, "host_invalid",         "rejected",   No,      NewKey),
    (Code::CredentialsAmbiguous, 400, "credentials_ambiguous", "rejected",  No,      NewKey),
    (Code::KeyForged,           400, "key_forged",           "rejected",   Unknown, Stop),
    (Code::TokenInvalid,        401, "token_invalid",        "rejected",   No,      Stop),
    (Code::PrincipalUnknown,    403, "principal_unknown",    "rejected",   Unknown, Stop),
    (Code::KeyForeign,          403, "key_foreign",          "rejected",   Unknown, Stop),
    (Code::OperationUnknown,    404, "operation_unknown",    "released",   Unknown, SameKey),
    (Code::InFlight,            409, "in_flight",            "in-flight",  Unknown, Wait),
    (Code::OutcomeUnknown,      409, "outcome_unknown",      "unknown",    Unknown, Stop),
    (Code::AnswerNotKept,       409, "answer_not_kept",      "not-stored", Yes,     Stop),
    (Code::KeyExpired,          409, "key_expired",          "expired",    Yes,     Stop),
    (Code::IssuedKeyExpired,    409, "issued_key_expired",   "expired",    Unknown, Stop),
    (Code::RequestTooLarge,     413, "request_too_large",    "rejected",   Unknown, Stop),
    (Code::KeyReused,           422, "key_reused",           "mismatch",   Unknown, Stop),
    (Code::TooManyKeys,         429, "too_many_keys",        "rejected",   No,      SameKey),
    (Code::HeadersTooLarge,     431, "headers_too_large",    "rejected",   No,      NewKey),
    (Code::HandlerPanicked,     500, "handler_panicked",     "unknown",    Unknown, SameKey),
    (Code::RecordUnreadable,    500, "record_unreadable",    "rejected",   Unknown, Stop),
    (Code::UpstreamUnreachable, 502, "upstream_unreachable", "released",   No,      SameKey),
    (Code::UpstreamLost,        502, "upstream_lost",        "unknown",    Unknown, SameKey),
    (Code::StoreUnavailable,    503, "store_unavailable",    "rejected",   Unknown, SameKey),
    (Code::Draining,            503, "draining",             "rejected",   Unknown, SameKey),
    (Code::Overloaded,          503, "overloaded",           "rejected",   Unknown, SameKey),
    (Code::UpstreamTimeout,     504, "upstream_timeout",     "in-flight",  Unknown, Wait),
    (Code::LoopDetected,        508, "loop_detected",        "rejected",   No,      Stop),
];

fn answer(problem: Problem) -> (StatusCode, HeaderMap, Value) {
    let (head, body) = problem.into_response().into_parts();
    (head.status, head.headers, serde_json::from_slice(&body).expect("JSON"))
}

#[test]
fn http_contract_lists_each_code_as_it_is() {
    let contract = include_str!("../../../../docs/http.md");
    for &code in Code::ALL {
        let row = code.row();
        let name = format!("`{}`", row.code);
        let mut listed = contract.lines().map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
        let cells = listed
            .find(|cells| cells.len() == 7 && cells[2].contains(&name))
            .unwrap_or_else(|| panic!("docs/http.md has no row for {name}"));
        let executed = cells[4].split([',', ' ']).next();
        assert_eq!(
            (cells[1], cells[3], executed, cells[5]),
            (row.status.as_str(), row.outcome.as_str(), Some(row.executed.as_str()), row.retry.as_str()),
            "{name}"
        );
    }
}

#[test]
fn each_code_is_the_row_that_was_promised() {
    for &(code, status, word, outcome, executed, retry) in TABLE {
        let row = code.row();
        assert_eq!(
            (row.status.as_u16(), row.code, row.outcome.as_str(), row.executed, row.retry),
            (status, word, outcome, executed, retry)
        );
    }
    assert_eq!(
        Code::ALL.to_vec(),
        TABLE.iter().map(|row| row.0).collect::<Vec<_>>(),
        "no code is without a row, and in this order"
    );
    let words: BTreeSet<&str> = TABLE.iter().map(|row| row.2).collect();
    assert_eq!(words.len(), TABLE.len(), "no two codes share a word");
}

#[test]
fn each_code_says_itself_and_the_mend() {
    for &(code, status, word, outcome, executed, retry) in TABLE {
        let (head, headers, body) = answer(Problem::new(code, "urn:onceward:1f").endpoints(Some("/.idempotency")));
        let kind = format!("/.idempotency/policy#{word}");
        let row = code.row();
        let want = json!({
            "type": kind, "title": row.title, "status": status, "detail": row.detail, "code": word,
            "instance": "urn:onceward:1f", "executed": executed.as_str(), "retry": retry.as_str(),
        });
        assert_eq!((head.as_u16(), &body), (status, &want));
        assert_eq!(headers["content-type"], "application/problem+json", "{word}");
        assert_eq!(headers["cache-control"], "no-store", "{word}");
        assert_eq!(headers["idempotency-outcome"], outcome, "{word}");
        assert_eq!(headers["link"], format!("<{kind}>; rel=\"describedby\"").as_str(), "{word}");
        let challenges = usize::from(code == Code::TokenInvalid);
        assert_eq!(headers.len(), 4 + challenges, "{word}: {headers:?}");
        assert!(row.title.len() > 10 && row.detail.len() > row.title.len(), "{word} is said in words");
    }
}

#[test]
fn the_words_of_the_contract() {
    assert_eq!([Yes, No, Unknown].map(Executed::as_str), ["yes", "no", "unknown"]);
    assert_eq!([SameKey, Wait, NewKey, Stop].map(Retry::as_str), ["same-key", "wait", "new-key", "stop"]);
    let outcomes =
        ["stored", "replayed", "released", "not-stored", "in-flight", "mismatch", "unknown", "expired", "rejected"];
    assert_eq!(Outcome::ALL.map(Outcome::as_str), outcomes);
    assert_eq!(Outcome::ALL.map(Outcome::value), outcomes);
}

#[test]
fn without_public_paths_there_is_nothing_to_link_to() {
    for problem in [Problem::new(Code::InFlight, "i"), Problem::new(Code::InFlight, "i").endpoints(None)] {
        let (_, headers, body) = answer(problem);
        assert_eq!(body["type"], "about:blank");
        assert!(!headers.contains_key("link"), "{headers:?}");
    }
    let (_, headers, body) = answer(Problem::new(Code::InFlight, "i").endpoints(Some("/once")));
    assert_eq!(body["type"], "/once/policy#in_flight");
    assert_eq!(headers["link"], "</once/policy#in_flight>; rel=\"describedby\"");
}

#[test]
fn a_request_without_a_key_is_told_nothing_of_keys() {
    let (status, headers, body) = answer(Problem::new(Code::UpstreamUnreachable, "i").without_key());
    assert_eq!(status, 502);
    assert!(!headers.contains_key("idempotency-outcome"), "{headers:?}");
    assert!(body.get("executed").is_none() && body.get("retry").is_none(), "{body}");
    assert_eq!(body["code"], "upstream_unreachable");
}

#[test]
fn what_is_known_more_exactly_is_said() {
    let problem = Problem::new(Code::AnswerNotKept, "i").first(201, Some("/orders/7".to_owned()));
    let (_, _, body) = answer(problem);
    assert_eq!((&body["first_status"], &body["first_location"]), (&json!(201), &json!("/orders/7")));

    let (_, _, body) = answer(Problem::new(Code::AnswerNotKept, "i").first(204, None));
    assert_eq!((body["first_status"].as_u64(), body.get("first_location")), (Some(204), None));

    let (_, headers, body) = answer(Problem::new(Code::InFlight, "i").retry_after(7));
    assert_eq!(headers["retry-after"], "7");
    assert_eq!((body.get("first_status"), body.get("first_location")), (None, None));

    let problem = Problem::new(Code::KeyExpired, "i").executed(Unknown).detail("A \"quoted\" detail.");
    assert_eq!(problem.code(), Code::KeyExpired);
    let (_, _, body) = answer(problem);
    assert_eq!((&body["executed"], &body["detail"]), (&json!("unknown"), &json!("A \"quoted\" detail.")));

    let problem = Problem::new(Code::UpstreamLost, "i").with_outcome(Outcome::NotStored);
    assert_eq!(problem.outcome(), Outcome::NotStored);
    assert_eq!(answer(problem).1["idempotency-outcome"], "not-stored");
}

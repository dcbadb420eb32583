//! `wire/cases.json`: what the TypeScript client decides too.

use std::collections::BTreeSet;
use std::time::Duration;

use http::HeaderMap;
use onceward::problem::{Executed, Retry};
use onceward::wire::Outcome;
use onceward_client::decide::{Action, After, Answered, Failure, Given, Heard, Kind, Reason, backoff, decide};
use onceward_client::retry_after;
use serde_json::Value;

fn cases(part: &str) -> Vec<Value> {
    let cases: Value = serde_json::from_str(include_str!("../../../../wire/cases.json")).expect("JSON");
    cases[part].as_array().expect("a list").clone()
}

fn ms(value: &Value) -> Option<Duration> {
    value.as_u64().map(Duration::from_millis)
}

fn executed(word: &str) -> Executed {
    match word {
        "yes" => Executed::Yes,
        "no" => Executed::No,
        "unknown" => Executed::Unknown,
        word => panic!("{word}"),
    }
}

fn heard(case: &Value) -> Option<Heard> {
    let heard = &case["heard"];
    if let Some(failure) = heard["failure"].as_str() {
        return Some(Heard::Failed(match failure {
            "network" => Failure::Network,
            "timeout" => Failure::Timeout,
            "unsent" => Failure::Unsent,
            // A future that is dropped hears nothing.
            "aborted" => return None,
            failure => panic!("{failure}"),
        }));
    }
    let outcome = heard["outcome"].as_str().and_then(|word| match word {
        "reconciled" => Some(Outcome::Replayed),
        word => Outcome::ALL.into_iter().find(|outcome| outcome.as_str() == word),
    });
    Some(Heard::Answered(Answered {
        status: heard["status"].as_u64().and_then(|status| status.try_into().ok()).expect("a status"),
        outcome,
        code: heard["code"].as_str().map(str::to_owned),
        executed: heard["executed"].as_str().map(executed),
        retry: heard["retry"].as_str().map(|word| {
            let all = [Retry::SameKey, Retry::Wait, Retry::NewKey, Retry::Stop];
            all.into_iter().find(|retry| retry.as_str() == word).expect("a known word")
        }),
        retry_after: ms(&heard["retry_after_ms"]),
    }))
}

fn given(case: &Value) -> Given {
    let given = &case["given"];
    Given {
        asked: given["asked"].as_bool().unwrap_or(false),
        honoured: match given.get("honoured") {
            None => Some(true),
            Some(known) => known.as_bool(),
        },
        doubt: given["doubt"].as_bool().unwrap_or(false),
        left: ms(&given["left_ms"]).unwrap_or(Duration::from_secs(60)),
    }
}

fn action(then: &Value) -> Action {
    let after = || match &then["after"] {
        Value::String(word) if word == "backoff" => After::Backoff,
        after => After::Time(ms(after).expect("milliseconds")),
    };
    match then["do"].as_str().expect("a word") {
        "return" => Action::Return,
        "check" => Action::Check,
        "resend" => Action::Resend(after()),
        "ask" => Action::Ask(after()),
        "throw" => Action::Fail(match then["error"].as_str().expect("a class") {
            "AnswerNotKeptError" => Kind::AnswerNotKept,
            "InFlightError" => Kind::InFlight,
            "KeyExpiredError" => Kind::KeyExpired,
            "KeyRefusedError" => Kind::KeyRefused,
            "KeyReusedError" => Kind::KeyReused,
            "NotSentError" => Kind::NotSent,
            "OutcomeUnknownError" => Kind::OutcomeUnknown,
            class => panic!("{class}"),
        }),
        word => panic!("{word}"),
    }
}

fn reason(word: &str) -> Reason {
    match word {
        "answer" => Reason::Answer,
        "plain" => Reason::Plain,
        "not-executed" => Reason::NotExecuted,
        "busy" => Reason::Busy,
        "in-flight" => Reason::InFlight,
        "answer-lost" => Reason::AnswerLost,
        "unsent" => Reason::Unsent,
        "kept" => Reason::Kept,
        "free" => Reason::Free,
        "unknown" => Reason::Unknown,
        "not-kept" => Reason::NotKept,
        "mismatch" => Reason::Mismatch,
        "expired" => Reason::Expired,
        "refused" => Reason::Refused,
        "not-honoured" => Reason::NotHonoured,
        "not-known-to-be-honoured" => Reason::NotKnownToBeHonoured,
        "deadline" => Reason::Deadline,
        word => panic!("{word}"),
    }
}

#[test]
fn each_decision_is_what_the_vectors_say() {
    let cases = cases("decisions");
    let mut reasons = BTreeSet::new();
    let mut ran = 0;
    for case in &cases {
        let name = case["name"].as_str().expect("a name");
        let Some(heard) = heard(case) else { continue };
        let decision = decide(given(case), &heard);
        let then = &case["then"];
        let because = then["because"].as_str().expect("a reason");
        assert_eq!(decision.action, action(then), "{name}");
        assert_eq!(decision.keeps_key, then["key"] == "keep", "{name}");
        assert_eq!(decision.executed, executed(then["executed"].as_str().expect("a word")), "{name}");
        assert_eq!(decision.because, reason(because), "{name}");
        reasons.insert(because.to_owned());
        ran += 1;
    }
    assert!(ran >= 80 && ran + 1 >= cases.len(), "{ran} of {}", cases.len());
    assert_eq!(reasons.len(), 17, "each reason has its case: {reasons:?}");
}

#[test]
fn each_backoff_is_what_the_vectors_say() {
    for case in cases("backoff") {
        let sends = case["sends"].as_u64().and_then(|sends| sends.try_into().ok()).expect("a count");
        let random = case["random"].as_f64().expect("a number");
        assert_eq!(backoff(sends, random), ms(&case["ms"]).expect("milliseconds"), "{}", case["name"]);
    }
}

/// Seconds since 1970 of "1994-11-15T08:12:31Z".
fn time(text: &str) -> std::time::SystemTime {
    let number = |from: usize, to: usize| text[from..to].parse::<u64>().expect("digits");
    let month =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"][number(5, 7) as usize - 1];
    // The day of the week has to be right: it is looked for.
    let dates = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"].map(|day| {
        let date = format!("{day}, {} {month} {} {} GMT", &text[8..10], &text[..4], &text[11..19]);
        httpdate::parse_http_date(&date).ok()
    });
    dates.into_iter().flatten().next().expect("a date")
}

#[test]
fn each_retry_after_is_what_the_vectors_say() {
    let cases = cases("retry_after");
    assert!(cases.len() >= 15);
    for case in cases {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", case["value"].as_str().expect("text").parse().expect("a value"));
        if let Some(date) = case["date"].as_str() {
            headers.insert("date", date.parse().expect("a value"));
        }
        let now = time(case["now"].as_str().expect("a time"));
        assert_eq!(retry_after(&headers, now), ms(&case["ms"]), "{}", case["name"]);
    }
}

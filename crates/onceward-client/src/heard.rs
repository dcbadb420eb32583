//! Reads the parts of a response that a decision depends on, from the headers and, for a problem,
//! from the body.

use std::time::{Duration, SystemTime};

use http::header::{CONTENT_TYPE, DATE, HeaderMap, RETRY_AFTER};
use onceward::problem::{Executed, Retry};
use onceward::wire::{IDEMPOTENCY_OUTCOME, Outcome};
use reqwest::{Response, ResponseBuilderExt};
use serde::Deserialize;

use crate::decide::{Answered, Failure};
use crate::redirects::Hops;

/// Upper bound on the bytes of a response that is buffered before it is returned, so that a
/// truncated one is requested again. Larger responses, and those without a length, are returned as
/// they are received.
pub const ANSWER_BYTES_MAX: u64 = 1 << 20;

#[derive(Default, Deserialize)]
struct Problem {
    code: Option<String>,
    executed: Option<String>,
    retry: Option<String>,
}

/// Reads a response as far as the decision needs it.
pub(crate) async fn read(response: Response, now: SystemTime) -> Result<(Response, Answered), Failure> {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    // The response of `GET operation` to an anonymous caller is JSON too.
    let is_problem =
        kind.eq_ignore_ascii_case("application/problem+json") || kind.eq_ignore_ascii_case("application/json");
    let mut answered = Answered {
        status: response.status().as_u16(),
        outcome: outcome(response.headers()),
        retry_after: retry_after(response.headers(), now),
        ..Answered::default()
    };
    if response.content_length().is_none_or(|length| length > ANSWER_BYTES_MAX) {
        return Ok((response, answered));
    }
    let (response, body) = whole(response).await?;
    let problem = match is_problem && (answered.outcome.is_some() || answered.status >= 400) {
        true => serde_json::from_slice::<Problem>(&body).unwrap_or_default(),
        false => Problem::default(),
    };
    let is_ours = problem.retry.is_some() || matches!(answered.status, 200 | 202);
    if is_ours {
        answered.executed = problem.executed.as_deref().and_then(executed);
    }
    answered.retry = problem.retry.as_deref().and_then(retry);
    answered.code = problem.code.filter(|_| answered.retry.is_some());
    Ok((response, answered))
}

async fn whole(mut response: Response) -> Result<(Response, bytes::Bytes), Failure> {
    let mut head = http::Response::builder().status(response.status()).version(response.version());
    head = head.url(response.url().clone());
    if let Some(headers) = head.headers_mut() {
        *headers = response.headers().clone();
    }
    if let Some(extensions) = head.extensions_mut() {
        extensions.extend(std::mem::take(response.extensions_mut()));
    }
    let body = response.bytes().await.map_err(|error| failure(&error, None))?;
    let response = head.body(body.clone()).map_err(|_| Failure::Network)?;
    Ok((response.into(), body))
}

/// Classifies an error. A connect error proves that nothing was sent only if the client's redirects
/// are known: otherwise it may be of a later hop, after the request executed.
pub(crate) fn failure(error: &reqwest::Error, hops: Option<&Hops>) -> Failure {
    match error {
        error if error.is_connect() && hops.is_some_and(|hops| !hops.answered()) => Failure::Unsent,
        error if error.is_timeout() => Failure::Timeout,
        _ => Failure::Network,
    }
}

fn outcome(headers: &HeaderMap) -> Option<Outcome> {
    match headers.get(IDEMPOTENCY_OUTCOME)?.as_bytes() {
        // `reconciled` means a response that was determined later, so it counts as a replay.
        b"reconciled" => Some(Outcome::Replayed),
        _ => Outcome::of(headers),
    }
}

fn executed(word: &str) -> Option<Executed> {
    [Executed::Yes, Executed::No, Executed::Unknown].into_iter().find(|executed| executed.as_str() == word)
}

fn retry(word: &str) -> Option<Retry> {
    [Retry::SameKey, Retry::Wait, Retry::NewKey, Retry::Stop].into_iter().find(|retry| retry.as_str() == word)
}

/// Parses `Retry-After` in both of its forms. A date is measured from the response's own `Date`,
/// because the local clock may be wrong.
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return value.parse().ok().map(Duration::from_secs);
    }
    let until = httpdate::parse_http_date(value).ok()?;
    let date = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    Some(until.duration_since(date.unwrap_or(now)).unwrap_or_default())
}

//! Three requests that demonstrate the gateway. The check sends the same requests that are printed
//! for a person to paste.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response};
use http_body_util::Full;
use onceward::wire::Outcome;
use orders::Orders;

use super::ask::ask;
use super::show::say;

const PATH: &str = "/orders";
const KEY: &str = "Idempotency-Key";
const JSON: &str = "application/json";

/// Three requests with one key, and their expected responses.
pub(super) struct Script {
    gateway: SocketAddr,
    key: String,
    lines: [Line; 3],
}

struct Line {
    what: &'static str,
    body: &'static str,
    status: u16,
    outcome: Outcome,
}

impl Script {
    /// Creates a script with its own key: a retained directory has records of the keys of earlier
    /// demos.
    pub(super) fn new(gateway: SocketAddr) -> Self {
        let tea = r#"{"item": "tea", "qty": 2}"#;
        let other = r#"{"item": "tea", "qty": 3}"#;
        let key = format!("demo-{:08x}", RandomState::new().hash_one(0) >> 32);
        let lines = [
            Line { what: "a first answer", body: tea, status: 201, outcome: Outcome::Stored },
            Line { what: "its replay", body: tea, status: 201, outcome: Outcome::Replayed },
            Line { what: "a refusal", body: other, status: 422, outcome: Outcome::Mismatch },
        ];
        Self { gateway, key, lines }
    }

    /// Returns what each line shows, and the line.
    pub(super) fn curl_lines(&self) -> impl Iterator<Item = (String, String)> + '_ {
        self.lines.iter().map(|line| {
            let (gateway, key) = (self.gateway, &self.key);
            let curl = format!(
                "curl -i -w '\\n' http://{gateway}{PATH} -H '{KEY}: {key}' -H 'Content-Type: {JSON}' -d '{}'",
                line.body
            );
            (format!("{}: {} {}", line.what, line.status, line.outcome.as_str()), curl)
        })
    }

    /// Sends the requests, and prints the responses. Returns `true` if all were as expected.
    pub(super) async fn check(&self, orders: &Orders) -> bool {
        let before = orders.count().await;
        let mut wrong = Vec::new();
        let mut first = None;
        for line in &self.lines {
            match self.play(line).await {
                Ok(answer) => {
                    let (status, outcome) = (answer.status().as_u16(), Outcome::of(answer.headers()));
                    let outcome_shown = outcome.map_or("none", Outcome::as_str);
                    let body = String::from_utf8_lossy(answer.body()).replace(['\n', '\r'], " ");
                    say(&format!("{:<15} {status} {outcome_shown:<9} {body}", line.what));
                    let (wanted, wanted_outcome) = (line.status, line.outcome);
                    if (status, outcome) != (wanted, Some(wanted_outcome)) {
                        wrong.push(format!("{} is {wanted} {}", line.what, wanted_outcome.as_str()));
                    }
                    let first = first.get_or_insert_with(|| answer.body().clone());
                    if outcome == Some(Outcome::Replayed) && first != answer.body() {
                        wrong.push(format!("{} is the first answer, byte for byte", line.what));
                    }
                }
                Err(what) => {
                    say(&format!("{:<15} {what}", line.what));
                    wrong.push(format!("{} is an answer", line.what));
                }
            }
        }
        match (before, orders.count().await) {
            (Ok(before), Ok(after)) => {
                say(&format!("{:<15} {after} in the database, {before} before", "orders"));
                if after != before + 1 {
                    wrong.push("three requests make one order".into());
                }
            }
            (Err(error), _) | (_, Err(error)) => wrong.push(crate::chain(&error)),
        }
        match wrong.as_slice() {
            [] => say("ok: three requests, one order"),
            wrong => say(&format!("FAILED. Promised was: {}", wrong.join("; "))),
        }
        wrong.is_empty()
    }

    async fn play(&self, line: &Line) -> Result<Response<Bytes>, String> {
        let mut request = Request::new(Full::from(line.body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = http::Uri::from_static(PATH);
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        headers.insert(KEY, HeaderValue::try_from(&self.key).map_err(|error| error.to_string())?);
        ask(self.gateway, request).await
    }
}

//! Sends until it is settled, with one key throughout.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use http::{Extensions, HeaderName, HeaderValue, Method};
use onceward::problem::Executed;
use onceward::wire::{ENDPOINTS, IDEMPOTENCY_KEY, PREFER};
use parking_lot::Mutex;
use reqwest::{Request, Response, Url};
use reqwest_middleware::{Middleware, Next, Result};
use tokio::time::{Instant, sleep};

use crate::Error;
use crate::decide::{Action, After, Answered, Decision, Failure, Given, Heard, Kind, Reason, backoff, decide};
use crate::heard;
use crate::intent::{Digest, Intent, Keyed};
use crate::journal::{Journal, Resumed};

const FIRST_SENT: HeaderName = HeaderName::from_static("idempotency-first-sent");

/// Keys every POST and PATCH. See the [crate's docs](crate) for examples.
#[derive(Clone, Debug)]
pub struct Idempotent {
    deadline: Duration,
    endpoints: String,
    honoured: bool,
    journal: Option<Journal>,
    /// Whether keys are honoured at an origin, as far as that is known.
    known: Arc<Mutex<HashMap<String, bool>>>,
}

/// Of so many origins it is remembered whether keys are honoured there.
const ORIGINS_MAX: usize = 1024;

impl Default for Idempotent {
    /// Sixty seconds in all, and the public paths where a gateway has them.
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(60),
            endpoints: ENDPOINTS.to_owned(),
            honoured: false,
            journal: None,
            known: Arc::default(),
        }
    }
}

impl Idempotent {
    /// How long it is tried in all, from the first send on. A single attempt's patience is the client's own timeout.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Where servers have their public paths, if not under `/.idempotency`.
    pub fn endpoints(mut self, mount: impl Into<String>) -> Self {
        self.endpoints = mount.into().trim_end_matches('/').to_owned();
        self
    }

    /// All servers that this client speaks to honour keys, so that it need not be found out before a request is sent again.
    pub fn honoured(mut self) -> Self {
        self.honoured = true;
        self
    }

    /// Writes each request down before it is sent.
    pub fn journal(mut self, journal: &Journal) -> Self {
        self.journal = Some(journal.clone());
        self
    }

    fn is_honoured(&self, url: &Url) -> Option<bool> {
        if self.honoured { Some(true) } else { self.known.lock().get(&origin(url)).copied() }
    }

    fn learn(&self, url: &Url, honoured: bool) {
        let mut known = self.known.lock();
        if known.len() >= ORIGINS_MAX {
            known.clear();
        }
        known.insert(origin(url), honoured);
    }
}

fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

#[async_trait]
impl Middleware for Idempotent {
    async fn handle(&self, request: Request, extensions: &mut Extensions, next: Next<'_>) -> Result<Response> {
        if ![Method::POST, Method::PATCH].contains(request.method()) {
            return next.run(request, extensions).await;
        }
        let digest = Digest::of(&request);
        let intent = extensions.get::<Intent>().map(|Intent(words)| words.clone());
        let resumed = extensions.get::<Resumed>().cloned();
        let opened = self.journal.as_ref().and_then(|journal| journal.open_intent(intent.as_deref()?, digest));
        let keyed = resumed
            .map(|Resumed(keyed)| keyed)
            .or_else(|| Keyed::before(extensions, digest))
            .or(opened)
            .unwrap_or_else(|| Keyed::new(&request, digest, now()));
        if let Some(journal) = &self.journal {
            journal.write(&request, &keyed, intent).await.map_err(reqwest_middleware::Error::middleware)?;
        }
        let mut attempt = Attempt { settings: self, request: dressed(request, &keyed), keyed, sends: 0 };
        let result = attempt.settle(extensions, &next).await;
        attempt.keyed.remember(extensions);
        let (ended, result) = match result {
            Ok(ended) => ended,
            // What could not be built was not sent, now or earlier.
            Err(error) => (Ended { keeps_key: attempt.keyed.doubt, executed: Executed::No }, Err(error)),
        };
        if let (Some(journal), true) = (&self.journal, ended.is_definite()) {
            journal.forget(&attempt.keyed.key).await.map_err(reqwest_middleware::Error::middleware)?;
        }
        result
    }
}

/// How it ended, as far as the key goes.
struct Ended {
    keeps_key: bool,
    executed: Executed,
}

impl Ended {
    /// Nothing is open any more: it was executed, or certainly not.
    fn is_definite(&self) -> bool {
        !self.keeps_key || self.executed == Executed::No
    }
}

/// A request on its way, however often it is sent.
struct Attempt<'m> {
    settings: &'m Idempotent,
    request: Request,
    keyed: Keyed,
    sends: u32,
}

/// What came of one send: what counts of it, and the thing itself.
type Came = (Heard, std::result::Result<Response, Option<anyhow::Error>>);

impl Attempt<'_> {
    async fn settle(&mut self, extensions: &mut Extensions, next: &Next<'_>) -> Result<(Ended, Result<Response>)> {
        let until = Instant::now() + self.settings.deadline;
        let url = self.request.url().clone();
        // Whoever resumes after a crash, or is sent by a middleware outside that already tried, sends again.
        if self.keyed.doubt && self.settings.is_honoured(&url).is_none() {
            self.check(until, extensions, next).await;
        }
        if self.keyed.doubt && self.settings.is_honoured(&url) != Some(true) {
            let because = match self.settings.is_honoured(&url) {
                Some(_) => Reason::NotHonoured,
                None => Reason::Deadline,
            };
            let error = Error::new(Kind::OutcomeUnknown, Executed::Unknown, because);
            let ended = Ended { keeps_key: true, executed: Executed::Unknown };
            return Ok((ended, Err(reqwest_middleware::Error::middleware(error))));
        }
        let mut asked = false;
        loop {
            let sent = match asked {
                false => self.request.try_clone(),
                true => Some(self.question("operation")),
            };
            // A body that is streamed cannot be sent twice.
            let is_last = sent.is_none();
            let request = match sent {
                Some(request) => request,
                None => std::mem::replace(&mut self.request, Request::new(Method::GET, url.clone())),
            };
            if !asked {
                self.sends += 1;
            }
            let (heard, came) = self.send(request, extensions, next).await?;
            if let Heard::Answered(Answered { outcome: Some(_), .. }) = heard {
                self.settings.learn(&url, true);
            }
            let decision = loop {
                let decision = decide(self.given(asked, until), &heard);
                // Past its time it says something else by itself.
                if decision.action != Action::Check {
                    break decision;
                }
                self.check(until, extensions, next).await;
            };
            self.keyed.doubt = decision.executed != Executed::No;
            let Decision { keeps_key, executed, because, .. } = decision;
            let ended = Ended { keeps_key, executed };
            let fail = |kind: Kind, source| {
                let code = match &heard {
                    Heard::Answered(answered) => answered.code.clone(),
                    Heard::Failed(_) => None,
                };
                reqwest_middleware::Error::middleware(Error::new(kind, executed, because).code(code).because_of(source))
            };
            let after = match (decision.action, came) {
                (Action::Return, Ok(response)) => return Ok((ended, Ok(response))),
                (Action::Fail(kind), came) => return Ok((ended, Err(fail(kind, came.err().flatten())))),
                (Action::Resend(_) | Action::Ask(_), came) if is_last => {
                    let kind = if executed == Executed::No { Kind::NotSent } else { Kind::OutcomeUnknown };
                    return Ok((ended, came.map_err(|source| fail(kind, source))));
                }
                (Action::Resend(after), _) => {
                    asked = false;
                    after
                }
                (Action::Ask(after), _) => {
                    asked = true;
                    after
                }
                // Only an answer is handed over, and a check was made.
                (Action::Return | Action::Check, came) => {
                    return Ok((ended, came.map_err(|source| fail(Kind::OutcomeUnknown, source))));
                }
            };
            sleep(match after {
                After::Time(time) => time,
                After::Backoff => backoff(self.sends, rand::random()).min(until - Instant::now()),
            })
            .await;
        }
    }

    fn given(&self, asked: bool, until: Instant) -> Given {
        Given {
            asked,
            honoured: self.settings.is_honoured(self.request.url()),
            doubt: self.keyed.doubt,
            left: until.saturating_duration_since(Instant::now()),
        }
    }

    async fn send(&self, request: Request, extensions: &mut Extensions, next: &Next<'_>) -> Result<Came> {
        let response = match next.clone().run(request, extensions).await {
            Ok(response) => response,
            // What could not be built was never sent, and will not be.
            Err(reqwest_middleware::Error::Reqwest(error)) if error.is_builder() => return Err(error.into()),
            Err(reqwest_middleware::Error::Reqwest(error)) => {
                return Ok((Heard::Failed(heard::failure(&error)), Err(Some(error.into()))));
            }
            // A middleware inside gave up; what it had sent by then, nobody knows.
            Err(reqwest_middleware::Error::Middleware(error)) => {
                return Ok((Heard::Failed(Failure::Network), Err(Some(error))));
            }
        };
        Ok(match heard::read(response, now()).await {
            Ok((response, answered)) => (Heard::Answered(answered), Ok(response)),
            Err(failure) => (Heard::Failed(failure), Err(None)),
        })
    }

    /// Finds out whether keys are honoured at the origin: asks until somebody answers, or the time is over.
    async fn check(&self, until: Instant, extensions: &mut Extensions, next: &Next<'_>) {
        let mut asks = 0;
        while Instant::now() < until {
            if let Some(honoured) = self.ask_policy(extensions, next).await {
                self.settings.learn(self.request.url(), honoured);
                return;
            }
            asks += 1;
            sleep(backoff(asks, rand::random()).min(until - Instant::now())).await;
        }
    }

    /// `None`: nobody could be asked. A server that answers, and has no policy to show, does not honour keys.
    async fn ask_policy(&self, extensions: &mut Extensions, next: &Next<'_>) -> Option<bool> {
        let response = next.clone().run(self.question("policy"), extensions).await.ok()?;
        if response.status().is_server_error() {
            return None;
        }
        let is_ok = response.status().is_success();
        let policy: serde_json::Value = serde_json::from_slice(&response.bytes().await.ok()?).unwrap_or_default();
        let header = policy["header"].as_str().unwrap_or_default();
        Some(is_ok && header.eq_ignore_ascii_case(IDEMPOTENCY_KEY.as_str()))
    }

    /// A GET of one of the server's own paths, by whoever sent the request.
    fn question(&self, name: &str) -> Request {
        let mut url = self.request.url().clone();
        url.set_path(&format!("{}/{name}", self.settings.endpoints));
        url.set_query(None);
        let mut question = Request::new(Method::GET, url);
        *question.timeout_mut() = self.request.timeout().copied();
        for (name, value) in self.request.headers() {
            if !name.as_str().starts_with("content-") && *name != http::header::TRANSFER_ENCODING {
                question.headers_mut().append(name.clone(), value.clone());
            }
        }
        question
    }
}

/// The request as it is sent each time.
fn dressed(mut request: Request, keyed: &Keyed) -> Request {
    let headers = request.headers_mut();
    if let Some(key) = keyed.header() {
        headers.insert(IDEMPOTENCY_KEY, key);
    }
    if let Ok(date) = HeaderValue::from_str(&keyed.first_sent) {
        headers.insert(FIRST_SENT, date);
    }
    if !headers.contains_key(PREFER) {
        headers.insert(PREFER, HeaderValue::from_static("wait=10"));
    }
    request
}

#[allow(clippy::disallowed_methods, reason = "the date that a request bears is the wall clock's")]
fn now() -> SystemTime {
    SystemTime::now()
}

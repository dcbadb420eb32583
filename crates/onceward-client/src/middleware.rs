//! Sends a request until its outcome is definite, with the same key each time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use http::{Extensions, HeaderName, HeaderValue, Method};
use onceward::problem::Executed;
use onceward::wire::{ENDPOINTS, IDEMPOTENCY_KEY, IDEMPOTENCY_OUTCOME, Outcome, PREFER};
use parking_lot::Mutex;
use reqwest::redirect::Policy;
use reqwest::{Request, Response, Url};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Middleware, Next, Result};
use tokio::time::{Instant, sleep, timeout};

use crate::Error;
use crate::decide::{Action, After, Answered, Decision, Failure, Given, Heard, Kind, Reason, backoff, decide};
use crate::heard;
use crate::intent::{Digest, Intent, Keyed};
use crate::intents::Intents;
use crate::journal::{Journal, JournalError, Resumed};
use crate::redirects::{Hops, recording};

const FIRST_SENT: HeaderName = HeaderName::from_static("idempotency-first-sent");

/// Adds a key to every POST and PATCH. See the [crate's docs](crate) for examples.
#[derive(Clone, Debug)]
pub struct Idempotent {
    deadline: Duration,
    endpoints: String,
    honoured: bool,
    records_redirects: bool,
    journal: Option<Journal>,
    intents: Intents,
    /// Key support by origin, as far as it is known.
    known: Arc<Mutex<HashMap<String, bool>>>,
}

/// Timeout of the final lookup of an outcome, after the deadline.
const LAST_LOOK_UP: Duration = Duration::from_secs(3);

/// Upper bound on origins whose key support is cached.
const ORIGINS_MAX: usize = 1024;

impl Default for Idempotent {
    /// Returns a middleware with a total deadline of 60 seconds, and the default path of the public
    /// endpoints.
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(60),
            endpoints: ENDPOINTS.to_owned(),
            honoured: false,
            records_redirects: false,
            journal: None,
            intents: Intents::default(),
            known: Arc::default(),
        }
    }
}

impl Idempotent {
    /// Builds a client that records its redirects, with this middleware only. A connect error of
    /// that client proves that nothing was sent. Give it a `connect_timeout` and a `read_timeout`;
    /// the deadline bounds each attempt in any case.
    ///
    /// # Errors
    ///
    /// Those of [`reqwest::ClientBuilder::build`].
    pub fn build(self, client: reqwest::ClientBuilder) -> reqwest::Result<ClientWithMiddleware> {
        let client = client.redirect(recording(Policy::default())).build()?;
        Ok(ClientBuilder::new(client).with(self.records_redirects()).build())
    }

    /// Declares that the client records its redirects ([`recording`]) or follows none, and that no
    /// middleware inside of this one retries requests. Without it, a connect error is an unknown
    /// outcome: it may be of a page that the executed request was redirected to.
    pub fn records_redirects(mut self) -> Self {
        self.records_redirects = true;
        self
    }

    /// Sets the upper bound on the time from the first send to the end, over all attempts,
    /// including one that hangs. Zero means a single attempt, bounded only by the client's own
    /// timeouts.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets the path prefix of the servers' public endpoints, if it is not `/.idempotency`.
    pub fn endpoints(mut self, mount: impl Into<String>) -> Self {
        self.endpoints = mount.into().trim_end_matches('/').to_owned();
        self
    }

    /// Declares that all servers of this client support keys, so that this need not be checked
    /// before a retry.
    pub fn honoured(mut self) -> Self {
        self.honoured = true;
        self
    }

    /// Writes each request to a journal before it is sent.
    pub fn journal(mut self, journal: &Journal) -> Self {
        self.journal = Some(journal.clone());
        self.intents = journal.intents().clone();
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
    async fn handle(&self, mut request: Request, extensions: &mut Extensions, next: Next<'_>) -> Result<Response> {
        // Methods are case-sensitive, but some servers execute `patch` anyway.
        for method in [Method::POST, Method::PATCH] {
            if request.method().as_str().eq_ignore_ascii_case(method.as_str()) {
                *request.method_mut() = method;
            }
        }
        if ![Method::POST, Method::PATCH].contains(request.method()) {
            return next.run(request, extensions).await;
        }
        let digest = Digest::of(&request);
        let intent = extensions.get::<Intent>().cloned();
        let new = || Keyed::new(&request, digest, now());
        let earlier = extensions
            .get::<Resumed>()
            .map(|Resumed(keyed)| keyed.clone())
            .or_else(|| Keyed::earlier(extensions, digest));
        let keyed = match (earlier, &intent) {
            (Some(keyed), _) => keyed,
            (None, Some(intent)) => Keyed { digest, ..self.intents.begin(&intent.name, new) },
            (None, None) => new(),
        };
        if let Some(journal) = &self.journal {
            let name = intent.as_ref().map(|intent| intent.name.clone());
            if let Err(error) = journal.write(&request, &keyed, name).await {
                if let Some(intent) = intent.filter(|_| !keyed.maybe_executed) {
                    self.intents.release(&intent.name, &keyed.key);
                }
                return Err(reqwest_middleware::Error::middleware(error));
            }
        }
        let mut attempt = Attempt { settings: self, request: dressed(request, &keyed), keyed, sends: 0 };
        let result = attempt.settle(extensions, &next).await;
        attempt.keyed.remember(extensions);
        let (ended, result) = match result {
            Ok(ended) => ended,
            // A request that could not be built was not sent now. An earlier send may have
            // executed.
            Err(error) => {
                let maybe_executed = attempt.keyed.maybe_executed;
                let executed = if maybe_executed { Executed::Unknown } else { Executed::No };
                (Ended { keeps_key: maybe_executed, executed }, Err(error))
            }
        };
        self.end(intent.as_ref(), &attempt.keyed, &ended).await.map_err(reqwest_middleware::Error::middleware)?;
        result
    }
}

impl Idempotent {
    /// Records the state of the key.
    async fn end(
        &self,
        intent: Option<&Intent>,
        keyed: &Keyed,
        ended: &Ended,
    ) -> std::result::Result<(), JournalError> {
        if !ended.is_definite() {
            return Ok(());
        }
        let stays = intent.filter(|intent| ended.executed != Executed::No && !intent.repeatable);
        match (&self.journal, stays) {
            (Some(journal), Some(intent)) => journal.end(&intent.name, keyed).await?,
            (Some(journal), None) => journal.forget(&keyed.key).await?,
            (None, _) => {}
        }
        match (intent, stays) {
            (_, Some(intent)) => self.intents.end(&intent.name, &keyed.key),
            (Some(intent), None) => self.intents.release(&intent.name, &keyed.key),
            (None, None) => {}
        }
        Ok(())
    }
}

/// Effect of the end of a request on its key.
struct Ended {
    keeps_key: bool,
    executed: Executed,
}

impl Ended {
    /// Returns `true` if the outcome is definite: the request was executed, or certainly not.
    fn is_definite(&self) -> bool {
        !self.keeps_key || self.executed == Executed::No
    }
}

/// Request in progress, over all of its sends.
struct Attempt<'m> {
    settings: &'m Idempotent,
    request: Request,
    keyed: Keyed,
    sends: u32,
}

/// Result of one send: the observation, the response or error itself, and the redirects.
type Came = (Heard, std::result::Result<Response, Option<anyhow::Error>>, Hops);

impl Attempt<'_> {
    async fn settle(&mut self, extensions: &mut Extensions, next: &Next<'_>) -> Result<(Ended, Result<Response>)> {
        let until = Instant::now() + self.settings.deadline;
        let url = self.request.url().clone();
        // A resume after a crash, or a send by a retrying middleware outside, is a retry.
        if self.keyed.maybe_executed && self.settings.is_honoured(&url).is_none() {
            self.check(until, extensions, next).await;
        }
        if self.keyed.maybe_executed && self.settings.is_honoured(&url) != Some(true) {
            let because = match self.settings.is_honoured(&url) {
                Some(_) => Reason::NotHonoured,
                None => Reason::Deadline,
            };
            let error = Error::new(Kind::OutcomeUnknown, Executed::Unknown, because);
            let ended = Ended { keeps_key: true, executed: Executed::Unknown };
            return Ok((ended, Err(reqwest_middleware::Error::middleware(error))));
        }
        let mut asked = false;
        // A streamed body cannot be sent twice: after the first send, the outcome can only be
        // looked up.
        let mut is_sendable = true;
        loop {
            let sent = match asked {
                false => self.request.try_clone(),
                true => Some(self.question("operation")),
            };
            let request = match sent {
                Some(request) => request,
                None => {
                    is_sendable = false;
                    let question = self.question("operation");
                    std::mem::replace(&mut self.request, question)
                }
            };
            if !asked {
                self.sends += 1;
            }
            let (heard, came, hops) = self.send(request, until, extensions, next).await?;
            if let Heard::Answered(Answered { outcome: Some(_), .. }) = heard {
                self.settings.learn(&url, true);
            }
            let mut decision = loop {
                let decision = decide(self.given(asked, until), &heard);
                // Past the deadline it decides otherwise by itself.
                if decision.action != Action::Check {
                    break decision;
                }
                self.check(until, extensions, next).await;
            };
            if is_of_another_url(&url, &came) && decision.action == Action::Return {
                decision = match self.settings.records_redirects && hops.answered() {
                    // A redirect was the response to the request itself.
                    true => Decision { keeps_key: false, executed: Executed::Yes, ..decision },
                    false => Decision { keeps_key: true, executed: Executed::Unknown, ..decision },
                };
            }
            self.keyed.maybe_executed = decision.executed != Executed::No;
            let Decision { keeps_key, executed, because, .. } = decision;
            let ended = Ended { keeps_key, executed };
            let fail = |kind: Kind, source, first| {
                let code = match &heard {
                    Heard::Answered(answered) => answered.code.clone(),
                    Heard::Failed(_) => None,
                };
                let error = Error::new(kind, executed, because).code(code).because_of(source).first(first);
                reqwest_middleware::Error::middleware(error)
            };
            let after = match (decision.action, came) {
                (Action::Return, Ok(response)) => return Ok((ended, Ok(response))),
                (Action::Fail(kind), came) => {
                    let first = match kind {
                        // The deadline may have expired while this machine slept or was offline.
                        Kind::OutcomeUnknown if because == Reason::Deadline => {
                            match self.look_up(extensions, next).await {
                                Some((heard, response)) if is_executed(&heard) => {
                                    return Ok((Ended { keeps_key: false, executed: Executed::Yes }, Ok(response)));
                                }
                                _ => None,
                            }
                        }
                        Kind::KeyReused => self.look_up(extensions, next).await.map(|(_, first)| first.status()),
                        _ => None,
                    };
                    return Ok((ended, Err(fail(kind, came.err().flatten(), first))));
                }
                // A body that cannot be sent again: its outcome is looked up where keys are
                // supported.
                (Action::Resend(after), came) if !is_sendable => {
                    let was_executed = asked && executed == Executed::Yes;
                    if asked || executed == Executed::No || self.settings.is_honoured(&url) != Some(true) {
                        let kind = match executed {
                            Executed::No => Kind::NotSent,
                            Executed::Yes if was_executed => Kind::AnswerNotKept,
                            _ => Kind::OutcomeUnknown,
                        };
                        return Ok((ended, came.map_err(|source| fail(kind, source, None))));
                    }
                    asked = true;
                    after
                }
                (Action::Resend(after), _) => {
                    asked = false;
                    after
                }
                (Action::Ask(after), _) => {
                    asked = true;
                    after
                }
                // Only a response is returned, and the check was made above.
                (Action::Return | Action::Check, came) => {
                    return Ok((ended, came.map_err(|source| fail(Kind::OutcomeUnknown, source, None))));
                }
            };
            sleep(match after {
                After::Time(time) => time,
                After::Backoff => {
                    backoff(self.sends, rand::random()).min(until.saturating_duration_since(Instant::now()))
                }
            })
            .await;
        }
    }

    fn given(&self, asked: bool, until: Instant) -> Given {
        Given {
            asked,
            honoured: self.settings.is_honoured(self.request.url()),
            doubt: self.keyed.maybe_executed,
            left: until.saturating_duration_since(Instant::now()),
        }
    }

    /// Sends the request once. The deadline bounds the time, unless it is zero.
    async fn send(
        &self,
        request: Request,
        until: Instant,
        extensions: &mut Extensions,
        next: &Next<'_>,
    ) -> Result<Came> {
        if self.settings.deadline.is_zero() {
            return self.send_unbounded(request, extensions, next).await;
        }
        let left = until.saturating_duration_since(Instant::now());
        match timeout(left, self.send_unbounded(request, extensions, next)).await {
            Ok(came) => came,
            Err(_) => Ok((Heard::Failed(Failure::Timeout), Err(None), Hops::default())),
        }
    }

    async fn send_unbounded(&self, request: Request, extensions: &mut Extensions, next: &Next<'_>) -> Result<Came> {
        let hops = Hops::default();
        let is_web = matches!(request.url().scheme(), "http" | "https");
        let response = match hops.record(next.clone().run(request, extensions)).await {
            Ok(response) => response,
            // A request that cannot be built was never sent, and will not be. The target of a
            // redirect proves nothing.
            Err(reqwest_middleware::Error::Reqwest(error))
                if error.is_builder() && (!is_web || self.settings.records_redirects && !hops.answered()) =>
            {
                return Err(error.into());
            }
            Err(reqwest_middleware::Error::Reqwest(error)) => {
                let failure = heard::failure(&error, self.settings.records_redirects.then_some(&hops));
                return Ok((Heard::Failed(failure), Err(Some(error.into())), hops));
            }
            // A middleware inside failed. Whether it had sent the request is unknown.
            Err(reqwest_middleware::Error::Middleware(error)) => {
                return Ok((Heard::Failed(Failure::Network), Err(Some(error)), hops));
            }
        };
        Ok(match heard::read(response, now()).await {
            Ok((response, answered)) => (Heard::Answered(answered), Ok(response), hops),
            Err(failure) => (Heard::Failed(failure), Err(None), hops),
        })
    }

    /// Looks up the outcome of the key once more, for up to a few seconds.
    async fn look_up(&self, extensions: &mut Extensions, next: &Next<'_>) -> Option<(Heard, Response)> {
        if self.settings.deadline.is_zero() || self.settings.is_honoured(self.request.url()) != Some(true) {
            return None;
        }
        let question = self.question("operation");
        let (heard, came, _) =
            timeout(LAST_LOOK_UP, self.send_unbounded(question, extensions, next)).await.ok()?.ok()?;
        Some((heard, came.ok()?))
    }

    /// Checks whether the origin supports keys. Retries until it gets a response, or the time is
    /// over.
    async fn check(&self, until: Instant, extensions: &mut Extensions, next: &Next<'_>) {
        let mut asks = 0;
        while Instant::now() < until {
            let asked = timeout(until - Instant::now(), self.ask_policy(extensions, next)).await;
            if let Some(honoured) = asked.unwrap_or_default() {
                self.settings.learn(self.request.url(), honoured);
                return;
            }
            asks += 1;
            sleep(backoff(asks, rand::random()).min(until.saturating_duration_since(Instant::now()))).await;
        }
    }

    /// Returns `None` if no server responded. A server that responds without a policy does not
    /// support keys.
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

    /// Builds a GET of one of the server's endpoints, with the credentials of the request.
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

/// Returns `true` for a failure response from another URL than the request's own, without an outcome of
/// the key: the client followed a redirect, so the request itself may have executed. A fragment is not
/// sent, and does not count.
fn is_of_another_url<E>(url: &Url, came: &std::result::Result<Response, E>) -> bool {
    came.as_ref().is_ok_and(|response| {
        let is_failure = response.status().is_client_error() || response.status().is_server_error();
        let without_fragment = |url: &Url| {
            let mut url = url.clone();
            url.set_fragment(None);
            url
        };
        is_failure
            && without_fragment(response.url()) != without_fragment(url)
            && !response.headers().contains_key(IDEMPOTENCY_OUTCOME)
    })
}

/// Returns `true` for the stored response of an executed operation.
fn is_executed(heard: &Heard) -> bool {
    matches!(heard, Heard::Answered(Answered { outcome: Some(Outcome::Replayed), .. }))
}

/// Returns the request with its key, as each attempt sends it.
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

//! The forwarder: a service that passes a request to the upstream, and knows whether a byte of it was sent.
//!
//! Nothing once written is ever sent again. What failed before the first byte is `NotSent`; after it, nobody can tell
//! whether the upstream executed it, and it is `Unknown`. The line between the two is drawn in [`exchange`], under one
//! lock, so that no write slips through after it was called unsent.

mod body;
mod connect;
mod exchange;
mod framing;
mod headers;
mod pool;
mod tunnel;

use std::convert::Infallible;
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::ORIGIN;
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, request};
use http_body::Body;
use onceward::claim::Claim;
use onceward::engine::{Engine, ExecutionPermit};
use onceward::fault;
use onceward::policy::{Disposition, EndsWithConnection};
use onceward::problem::{Code, Problem};
use onceward::wire::Outcome;
use tokio::time::{Instant, timeout_at};
use tower_service::Service;

use crate::config::{Config, Host, Upstream};
use crate::loops::{Looped, Mark};
use body::{Received, Sent};
use connect::Connector;
use framing::Framing;
use headers::Hop;
use pool::{Connection, Pool};

pub(crate) use body::Answer;
pub(crate) use connect::Tcp;

type BoxError = Box<dyn StdError + Send + Sync>;

/// Marks an answer to a page of a browser as the upstream's own, and no word of the gateway.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FromUpstream;

/// Marks a request that the gateway makes itself, whose response is marked [`FromUpstream`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Own;

/// What names a request in logs and in the problems of requests without a key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestId(pub(crate) u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Forwards requests to the upstream.
pub(crate) struct Forwarder<B> {
    shared: Arc<Shared<B>>,
}

struct Shared<B> {
    pool: Arc<Pool<B>>,
    connector: Connector,
    authority: HeaderValue,
    host: Host,
    /// How long a request without a key waits for the head of its response. The engine sees to keyed requests.
    unkeyed_timeout: Duration,
    /// The upstream speaks TLS, so that the end of a connection is authenticated.
    is_tls: bool,
    endpoints: String,
    engine: Engine,
}

impl<B> Forwarder<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    /// A forwarder to the upstream of the settings.
    ///
    /// # Errors
    ///
    /// One line, where TLS is asked for and cannot be had.
    pub(crate) fn new(config: &Config, engine: Engine, idle_max: usize) -> Result<Self, String> {
        let Upstream { authority, tls, .. } = &config.upstream;
        let shared = Shared {
            pool: Pool::new(config.upstream_idle, config.upstream_max_age, idle_max),
            connector: Connector::new(&config.upstream)?.with_head_limits(config.header_lines, config.header_size),
            authority: authority.clone(),
            host: config.host,
            unkeyed_timeout: config.unkeyed_timeout,
            is_tls: *tls,
            endpoints: config.endpoints.clone(),
            engine,
        };
        Ok(Self { shared: Arc::new(shared) })
    }
}

impl<B> Clone for Forwarder<B> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<B> fmt::Debug for Forwarder<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwarder").field("connector", &self.shared.connector).finish_non_exhaustive()
    }
}

impl<B> Service<Request<B>> for Forwarder<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { Ok(shared.forward(request).await) })
    }
}

/// Why there is no answer.
enum Failure {
    /// No byte of the request was written, and none will be.
    NotSent(BoxError),
    /// At least one byte was written.
    Lost(BoxError),
    /// It was written, and no answer began in time.
    TimedOut,
}

impl<B> Shared<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    async fn forward(&self, request: Request<B>) -> Response<Answer> {
        let (mut parts, body) = request.into_parts();
        let claim = parts.extensions.remove::<Claim>();
        // A keyed request has its place since before its claim.
        let permit = match &claim {
            Some(_) => None,
            None => match self.engine.begin_execution() {
                Some(permit) => Some(permit),
                None => return self.overloaded(&parts),
            },
        };
        // An upgraded connection has no answer that could be kept, so a keyed request stays a request.
        let upgrade = if claim.is_none() { tunnel::asked_for(&mut parts) } else { None };
        let hop = Hop {
            claim: claim.as_ref().map(Claim::header_value),
            upgrade: upgrade.as_ref().map(|upgrade| &upgrade.protocol),
            upstream: &self.authority,
            host: self.host,
        };
        let had_body = !body.is_end_stream();
        let mut onward = Request::new(Sent::new(body, claim.is_none()));
        *onward.method_mut() = parts.method.clone();
        *onward.uri_mut() = parts.uri.path_and_query().cloned().map(Uri::from).unwrap_or_default();
        *onward.version_mut() = Version::HTTP_11;
        *onward.headers_mut() = headers::to_upstream(&parts, &hop);

        let sent = self.send(onward, claim.as_ref()).await;
        if parts.extensions.get::<Mark>().is_some_and(Mark::has_come_back) {
            return self.looped(&parts, claim.as_ref());
        }
        match sent {
            Ok((response, _)) if response.status() == StatusCode::SWITCHING_PROTOCOLS && upgrade.is_none() => {
                self.failed(&parts, claim.as_ref(), Failure::Lost("it switched protocols without being asked".into()))
            }
            Ok((response, connection)) => match upgrade {
                Some(upgrade) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                    tunnel::open(upgrade, response, connection, permit)
                }
                _ => {
                    let framing = match Framing::of(&parts.method, response.status(), response.headers()) {
                        Ok(framing) => framing,
                        Err(why) => return self.failed(&parts, claim.as_ref(), Failure::Lost(why.into())),
                    };
                    // An upstream that declines a request may have left its body unread.
                    if !framing.is_reusable || had_body && !response.status().is_success() {
                        connection.exchange.spoil();
                    }
                    // Another gateway says that the request came back to it.
                    let is_loop = response.status() == StatusCode::LOOP_DETECTED
                        && Outcome::of(response.headers()) == Some(Outcome::Rejected);
                    let mut answer = self.answer(response, connection, &framing, permit);
                    if is_loop {
                        answer.extensions_mut().insert(Disposition::Released);
                    }
                    if parts.headers.contains_key(ORIGIN) || parts.extensions.get::<Own>().is_some() {
                        answer.extensions_mut().insert(FromUpstream);
                    }
                    answer
                }
            },
            Err(failure) => self.failed(&parts, claim.as_ref(), failure),
        }
    }

    /// Sends a request on a connection that was used before, or else on a new one. It is tried twice only where the first
    /// connection gave it back untouched.
    async fn send(
        &self,
        mut request: Request<Sent<B>>,
        claim: Option<&Claim>,
    ) -> Result<(Response<hyper::body::Incoming>, Connection<B>), Failure> {
        let mut idle = self.pool.take();
        loop {
            // It may have been about to be sent on a connection that was closed meanwhile.
            if let Some(claim) = claim {
                claim.mark_unsent();
            }
            let is_fresh = idle.is_none();
            let mut connection = match idle.take() {
                Some(connection) => connection,
                None => self.connector.connect().await.map_err(|error| Failure::NotSent(error.into()))?,
            };
            if let Some(claim) = claim {
                // Nothing may be sent for a claim that may be lost by now.
                claim
                    .mark_sending()
                    .await
                    .map_err(|_| Failure::NotSent("the claim was overtaken before it was sent".into()))?;
            }
            // It may have been closed while the claim was renewed.
            if !is_fresh && !connection.is_quiet() {
                continue;
            }
            request.body_mut().follow(&connection.exchange);
            connection.exchange.arm();
            let exchange = Arc::clone(&connection.exchange);
            hyper::ext::on_informational(&mut request, move |interim| {
                // Its body, where one follows, would be taken for the next response.
                if framing::claims_body(interim.headers()) {
                    exchange.spoil();
                }
            });
            let sent = connection.sender.try_send_request(request);
            let result = match claim {
                Some(_) => sent.await,
                None => match self.in_time(sent, &connection).await {
                    Some(result) => result,
                    None if connection.exchange.seal() => return Err(Failure::NotSent("it takes no bytes".into())),
                    None => return Err(Failure::TimedOut),
                },
            };
            let mut error = match result {
                Ok(response) => return Ok((response, connection)),
                Err(error) => error,
            };
            let is_unsent = connection.exchange.seal() || fault::planted("lost-called-unsent");
            match error.take_message() {
                Some(returned) if is_unsent && !is_fresh => request = returned,
                _ if is_unsent => return Err(Failure::NotSent(error.into_error().into())),
                _ => return Err(Failure::Lost(error.into_error().into())),
            }
        }
    }

    /// The time for an answer begins anew with each byte that the upstream takes: a long upload is not a slow answer.
    async fn in_time<F: Future>(&self, sent: F, connection: &Connection<B>) -> Option<F::Output> {
        let mut sent = pin!(sent);
        let started = Instant::now();
        loop {
            let until = connection.exchange.last_write().unwrap_or(started) + self.unkeyed_timeout;
            match timeout_at(until, &mut sent).await {
                Ok(output) => return Some(output),
                Err(_) if connection.exchange.last_write().unwrap_or(started) + self.unkeyed_timeout > until => {}
                Err(_) => return None,
            }
        }
    }

    fn answer(
        &self,
        response: Response<hyper::body::Incoming>,
        mut connection: Connection<B>,
        framing: &Framing,
        permit: Option<ExecutionPermit>,
    ) -> Response<Answer> {
        let (mut parts, body) = response.into_parts();
        connection.heed(&parts.headers);
        parts.headers = framing.applied_to(headers::to_client(&parts.headers, permit.is_none()));
        if framing.ends_with_connection && !self.is_tls {
            parts.extensions.insert(EndsWithConnection);
        }
        parts.version = Version::HTTP_11;
        let back = Arc::clone(&self.pool).back(connection);
        Response::from_parts(parts, Answer::Upstream { received: Received::new(body, back, permit) })
    }

    /// The response to a request without a key where as many execute as may.
    fn overloaded(&self, parts: &request::Parts) -> Response<Answer> {
        let problem = unkeyed_problem(Code::Overloaded, parts)
            .detail("As many requests are running as may at the same time, so this one was not executed. Send it again after Retry-After.");
        problem.retry_after(1).endpoints(Some(&self.endpoints)).into_response().map(Answer::own)
    }

    /// The response to a request that came back here instead of reaching a service.
    fn looped(&self, parts: &request::Parts, claim: Option<&Claim>) -> Response<Answer> {
        let problem = match claim {
            Some(claim) => Problem::new(Code::LoopDetected, claim.instance()),
            None => {
                let id = parts.extensions.get::<RequestId>().map_or_else(String::new, ToString::to_string);
                Problem::new(Code::LoopDetected, format!("urn:onceward:request:{id}")).without_key()
            }
        };
        let mut response = problem.endpoints(Some(&self.endpoints)).into_response().map(Answer::own);
        response.extensions_mut().insert(Disposition::NotSent);
        response.extensions_mut().insert(Looped);
        response
    }

    fn failed(&self, parts: &request::Parts, claim: Option<&Claim>, failure: Failure) -> Response<Answer> {
        let (code, fate, without_key) = match failure {
            Failure::NotSent(_) => (
                Code::UpstreamUnreachable,
                Disposition::NotSent,
                "No connection could be made, and nothing was sent. Send the request again.",
            ),
            Failure::Lost(_) => (
                Code::UpstreamLost,
                Disposition::Unknown,
                "The request was sent, and the connection broke before a whole answer came. It may have been executed.",
            ),
            Failure::TimedOut => (
                Code::UpstreamTimeout,
                Disposition::Unknown,
                "The request was sent, and no answer came in time. It may have been executed.",
            ),
        };
        let why = match failure {
            Failure::NotSent(error) | Failure::Lost(error) => crate::chain(&*error),
            Failure::TimedOut => "no answer in time".into(),
        };
        let problem = match claim {
            Some(claim) => Problem::new(code, claim.instance()),
            None => unkeyed_problem(code, parts).detail(without_key),
        };
        tracing::warn!(code = code.row().code, method = %parts.method, why, "the upstream gave no answer");
        let mut response = problem.endpoints(Some(&self.endpoints)).into_response_for(&parts.headers).map(Answer::own);
        response.extensions_mut().insert(fate);
        response
    }
}

/// A problem of a request without a key.
fn unkeyed_problem(code: Code, parts: &request::Parts) -> Problem {
    let id = parts.extensions.get::<RequestId>().map_or_else(String::new, ToString::to_string);
    Problem::new(code, format!("urn:onceward:request:{id}")).without_key()
}

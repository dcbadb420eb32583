//! Upgrades of requests without a key to WebSocket: bytes pass both ways until one side ends.
//!
//! To nothing else. Through another protocol that carries requests, such as `h2c`, they would pass by all that is checked here.

use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Response, Version, request};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use onceward::engine::ExecutionPermit;
use onceward::wire;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::body::Answer;
use super::headers;
use super::pool::Connection;

/// An upgrade that a client asked for.
pub(crate) struct Upgrade {
    pub(crate) protocol: HeaderValue,
    client: OnUpgrade,
}

/// The upgrade that a request asks for.
pub(crate) fn asked_for(parts: &mut request::Parts) -> Option<Upgrade> {
    let is_named = wire::names_in(&parts.headers, &CONNECTION).any(|option| option.eq_ignore_ascii_case("upgrade"));
    let protocol = parts.headers.get(UPGRADE).filter(|_| is_named)?.clone();
    if !protocol.as_bytes().eq_ignore_ascii_case(b"websocket") {
        return None;
    }
    let client = parts.extensions.remove::<OnUpgrade>()?;
    Some(Upgrade { protocol, client })
}

/// How long one side of a tunnel may go on after the other one ended.
const AFTER_END: Duration = Duration::from_secs(10);

/// Passes bytes both ways until both sides ended, or one of them ended and the other one did not in time.
async fn join<C, U>(client: C, upstream: U) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Send,
    U: AsyncRead + AsyncWrite + Send,
{
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_upstream, mut to_upstream) = tokio::io::split(upstream);
    let mut up = pin!(async {
        tokio::io::copy(&mut from_client, &mut to_upstream).await?;
        to_upstream.shutdown().await
    });
    let mut down = pin!(async {
        tokio::io::copy(&mut from_upstream, &mut to_client).await?;
        to_client.shutdown().await
    });
    tokio::select! {
        ended = up.as_mut() => {
            ended?;
            timeout(AFTER_END, down).await.unwrap_or(Ok(()))
        }
        ended = down.as_mut() => {
            ended?;
            timeout(AFTER_END, up).await.unwrap_or(Ok(()))
        }
    }
}

/// Answers that the protocol is switched, and joins the two connections.
pub(crate) fn open<B: Send + 'static>(
    upgrade: Upgrade,
    mut response: Response<Incoming>,
    connection: Connection<B>,
    permit: Option<ExecutionPermit>,
) -> Response<Answer> {
    let upstream = hyper::upgrade::on(&mut response);
    let (mut parts, _) = response.into_parts();
    let protocol = parts.headers.get(UPGRADE).cloned().unwrap_or(upgrade.protocol);
    parts.headers = headers::to_client(&parts.headers, false);
    parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    parts.headers.insert(UPGRADE, protocol);
    parts.version = Version::HTTP_11;
    tokio::spawn(async move {
        let joined = async {
            let (client, upstream) = (TokioIo::new(upgrade.client.await?), TokioIo::new(upstream.await?));
            join(client, upstream).await?;
            Ok::<_, super::BoxError>(())
        };
        if let Err(error) = joined.await {
            tracing::debug!(error = crate::chain(&*error), "a tunnel broke");
        }
        drop((connection, permit));
    });
    Response::from_parts(parts, Answer::own(Bytes::new()))
}

//! Tunnels WebSocket upgrades of requests without a key: bytes are copied both ways until one side
//! ends.
//!
//! Upgrades to other protocols are ignored. One that carries requests, such as `h2c`, would let
//! them bypass every check of the gateway.

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

/// Upgrade that a client requested.
pub(crate) struct Upgrade {
    pub(crate) protocol: HeaderValue,
    client: OnUpgrade,
}

/// Returns the WebSocket upgrade that a request asks for.
pub(crate) fn asked_for(parts: &mut request::Parts) -> Option<Upgrade> {
    let is_named = wire::names_in(&parts.headers, &CONNECTION).any(|option| option.eq_ignore_ascii_case("upgrade"));
    let protocol = parts.headers.get(UPGRADE).filter(|_| is_named)?.clone();
    if !protocol.as_bytes().eq_ignore_ascii_case(b"websocket") {
        return None;
    }
    let client = parts.extensions.remove::<OnUpgrade>()?;
    Some(Upgrade { protocol, client })
}

/// Timeout of one side of a tunnel after the other side ended.
const AFTER_END: Duration = Duration::from_secs(10);

/// Copies bytes both ways until both sides have ended, or one has ended and the other one times
/// out.
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

/// Returns the 101 response, and tunnels bytes between the two connections.
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

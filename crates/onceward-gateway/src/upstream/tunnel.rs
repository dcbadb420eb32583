//! Upgrades of requests without a key to WebSocket: bytes pass both ways until one side ends.
//!
//! To nothing else. Through another protocol that carries requests, such as `h2c`, they would pass by all that is checked here.

use bytes::Bytes;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, Response, Version, request};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use onceward::wire;

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

/// Answers that the protocol is switched, and joins the two connections.
pub(crate) fn open<B: Send + 'static>(
    upgrade: Upgrade,
    mut response: Response<Incoming>,
    connection: Connection<B>,
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
            let (mut client, mut upstream) = (TokioIo::new(upgrade.client.await?), TokioIo::new(upstream.await?));
            tokio::io::copy_bidirectional(&mut client, &mut upstream).await?;
            Ok::<_, super::BoxError>(())
        };
        if let Err(error) = joined.await {
            tracing::debug!(error = crate::chain(&*error), "a tunnel broke");
        }
        drop(connection);
    });
    Response::from_parts(parts, Answer::own(Bytes::new()))
}

//! Patterns that people write by hand, over the same client of the same server.

use std::error::Error;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use redis::aio::MultiplexedConnection;
use redis::{Client, IntoConnectionInfo};
use serde::{Deserialize, Serialize};

const DAY_SECONDS: u64 = 86_400;
const ANSWER_MAX: usize = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Answer {
    status: u16,
    content_type: String,
    body: String,
}

pub(super) async fn connect(url: &str) -> Result<MultiplexedConnection, Box<dyn Error>> {
    let settings = redis::io::tcp::TcpSettings::default().set_nodelay(true);
    let client = Client::open(url.into_connection_info()?.set_tcp_settings(settings))?;
    Ok(client.get_multiplexed_async_connection().await?)
}

/// "Look the key up in Redis, else execute, then store the response." Not safe: a concurrent
/// duplicate that reads before the first one completes executes again.
pub(super) async fn look_then_store(
    State(mut redis): State<MultiplexedConnection>,
    request: Request,
    next: Next,
) -> Response {
    let Some(key) = key(&request) else { return next.run(request).await };
    let kept: Option<String> = match redis::cmd("GET").arg(&key).query_async(&mut redis).await {
        Ok(kept) => kept,
        Err(_) => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
    };
    if let Some(kept) = kept {
        return replay(&kept);
    }
    store(&mut redis, &key, next.run(request).await).await
}

/// Minimum that lets one of several concurrent duplicates through: a marker first. It compares no
/// fingerprints. A crash in between leaves the key to the next request after the marker expires.
pub(super) async fn claim_then_store(
    State(mut redis): State<MultiplexedConnection>,
    request: Request,
    next: Next,
) -> Response {
    const IN_FLIGHT: &str = "in flight";
    let Some(key) = key(&request) else { return next.run(request).await };
    let mut claim = redis::cmd("SET");
    claim.arg(&key).arg(IN_FLIGHT).arg("NX").arg("GET").arg("EX").arg(DAY_SECONDS);
    match claim.query_async::<Option<String>>(&mut redis).await {
        Ok(None) => store(&mut redis, &key, next.run(request).await).await,
        Ok(Some(kept)) if kept == IN_FLIGHT => StatusCode::CONFLICT.into_response(),
        Ok(Some(kept)) => replay(&kept),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

fn key(request: &Request) -> Option<String> {
    let key = request.headers().get("idempotency-key")?.to_str().ok()?;
    Some(format!("idempotency:{key}"))
}

fn replay(kept: &str) -> Response {
    let Ok(Answer { status, content_type, body }) = serde_json::from_str(kept) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let status = StatusCode::from_u16(status).unwrap_or_default();
    (status, [(header::CONTENT_TYPE, content_type)], body).into_response()
}

async fn store(redis: &mut MultiplexedConnection, key: &str, response: Response) -> Response {
    let (parts, body) = response.into_parts();
    let body: Bytes = to_bytes(body, ANSWER_MAX).await.unwrap_or_default();
    let answer = Answer {
        status: parts.status.as_u16(),
        content_type: text(parts.headers.get(header::CONTENT_TYPE)),
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    let answer = serde_json::to_string(&answer).unwrap_or_default();
    let mut set = redis::cmd("SET");
    set.arg(key).arg(answer).arg("EX").arg(DAY_SECONDS);
    match set.query_async::<()>(redis).await {
        Ok(()) => Response::from_parts(parts, Body::from(body)),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

fn text(value: Option<&HeaderValue>) -> String {
    value.and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

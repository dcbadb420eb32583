//! Fault proxy that drops responses: forwards a request to the gateway, reads the whole response,
//! and closes the connection without a byte of it.
//!
//! It is transparent: the gateway receives the `Host` that the page was loaded from. With another,
//! the same request sent later without the relay would have another fingerprint.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, CONNECTION, HOST, ORIGIN,
    TRANSFER_ENCODING,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use super::ask::ask;
use super::cut::Cut;

/// Upper bound on the bytes of a body. Larger than an order, and larger than the gateway accepts.
const BODY_BYTES_MAX: usize = 4 << 20;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Preflight = Response<Empty<Bytes>>;

/// Serves until the runtime ends.
pub(super) fn start(listener: TcpListener, gateway: SocketAddr) -> Result<(), String> {
    let listener = listener.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(listener));
    let listener = listener.map_err(|error| format!("the relay cannot listen: {error}"))?;
    tokio::spawn(async move {
        loop {
            let Ok((socket, _)) = listener.accept().await else {
                // Out of sockets: some are closed while others wait.
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let service = service_fn(move |request| pass_on(request, gateway));
            // Closed after the preflight: a browser that loses a reused connection retries the
            // request by itself.
            let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(socket), service);
            tokio::spawn(connection);
        }
    });
    Ok(())
}

/// Forwards a request, and returns an error whatever the response: hyper then closes the
/// connection.
async fn pass_on(request: Request<Incoming>, gateway: SocketAddr) -> Result<Preflight, Cut> {
    if request.method() == Method::OPTIONS {
        return Ok(preflight());
    }
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await.map_err(|_| Cut)?.to_bytes();
    let mut passed = Request::new(Full::new(body));
    *passed.method_mut() = parts.method;
    *passed.uri_mut() = parts.uri;
    *passed.headers_mut() = headers(&parts.headers, gateway);
    let answer = ask(gateway, passed).await;
    drop(answer);
    Err(Cut)
}

fn headers(from: &HeaderMap, gateway: SocketAddr) -> HeaderMap {
    let own = [HOST, CONNECTION, TRANSFER_ENCODING];
    let mut headers = HeaderMap::new();
    for (name, value) in from.iter().filter(|(name, _)| !own.contains(name)) {
        headers.append(name, value.clone());
    }
    let origin = from.get(ORIGIN).and_then(|origin| origin.to_str().ok()?.strip_prefix("http://"));
    let host = origin.map_or_else(|| gateway.to_string(), Into::into);
    if let Ok(host) = HeaderValue::try_from(host) {
        headers.insert(HOST, host);
    }
    headers
}

fn preflight() -> Preflight {
    let mut response = Response::new(Empty::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST"));
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("content-type, idempotency-key, prefer"));
    response
}

//! Sends one request on its own connection, and reads the whole response.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// Timeout that only a hang exceeds.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(10);

/// Sends a request and reads its response to the end.
pub(super) async fn ask(to: SocketAddr, mut request: Request<Full<Bytes>>) -> Result<Response<Bytes>, String> {
    if !request.headers().contains_key(HOST) {
        let host = HeaderValue::try_from(to.to_string()).map_err(|error| error.to_string())?;
        request.headers_mut().insert(HOST, host);
    }
    let answered = async {
        let socket = TcpStream::connect(to).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(socket)).await.map_err(|error| crate::chain(&error))?;
        // The task ends when the sender and the response body are dropped.
        tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(|error| crate::chain(&error))?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| crate::chain(&error))?.to_bytes();
        Ok(Response::from_parts(parts, body))
    };
    let answered = timeout(PATIENCE, answered).await;
    answered.unwrap_or_else(|_| Err("no answer came in time".into())).map_err(|what: String| format!("{to}: {what}"))
}

/// Retries until the response is 200.
pub(super) async fn until_ok(at: SocketAddr, path: &str) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = path.parse().map_err(|_| format!("{path:?} is no path"))?;
        let what = match ask(at, request).await {
            Ok(response) if response.status() == StatusCode::OK => return Ok(()),
            Ok(response) => {
                format!("{}: {}", response.status(), String::from_utf8_lossy(response.body()).trim())
            }
            Err(what) => what,
        };
        if begun.elapsed() > PATIENCE {
            return Err(format!("http://{at}{path} does not become ready: {what}"));
        }
        sleep(PAUSE).await;
    }
}

//! Fault proxy between the page and the gateway. It is transparent until a request header asks it
//! to inject a fault.
//!
//! The page is loaded through this proxy, so that its requests go to its own origin, as in a shop.
//! `Host` is forwarded unchanged: with another, the same request would have another fingerprint at
//! the gateway.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::{Mutex, RwLock, mpsc, oneshot};

use super::ask::ask;
use super::cut::Cut;

/// Request header that names the fault to inject. On every response, it says that this proxy is
/// present.
const TROUBLE: HeaderName = HeaderName::from_static("demo-network");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
/// Upper bound on the bytes of a body. Larger than an order, and larger than the gateway accepts.
const BODY_BYTES_MAX: usize = 4 << 20;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Delay that exceeds the timeout of an impatient client.
const SLOW: Duration = Duration::from_secs(3);

/// Fault that the page requests in the header.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Trouble {
    None,
    /// The response is read completely, and no byte of it is forwarded.
    Lose,
    /// The response is forwarded after [`SLOW`].
    Slow,
    /// The response is read completely, then the gateway is killed, once for all requests of this
    /// name, and the response is dropped.
    Kill(String),
}

impl Trouble {
    fn of(headers: &HeaderMap) -> Self {
        let asked = headers.get(TROUBLE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match asked.split_once(' ').unwrap_or((asked, "")) {
            ("lose", _) => Self::Lose,
            ("slow", _) => Self::Slow,
            ("kill", name) => Self::Kill(name.into()),
            _ => Self::None,
        }
    }
}

/// Kill request to the owner of the gateway process, who reports when it is gone.
pub(super) type Kill = oneshot::Sender<()>;

struct Network {
    gateway: SocketAddr,
    /// Held shared by each POST at the gateway, and exclusively by the task that kills it: a kill
    /// during an execution leaves an unknown outcome, which this page does not show.
    at_work: RwLock<()>,
    kills: mpsc::Sender<Kill>,
    killed_for: Mutex<Option<String>>,
}

/// Serves until the runtime ends.
pub(super) fn start(listener: TcpListener, gateway: SocketAddr, kills: mpsc::Sender<Kill>) -> Result<(), String> {
    let listener = listener.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(listener));
    let listener = listener.map_err(|error| format!("the network cannot listen: {error}"))?;
    let network = Arc::new(Network { gateway, at_work: RwLock::default(), kills, killed_for: Mutex::default() });
    tokio::spawn(async move {
        loop {
            let Ok((socket, _)) = listener.accept().await else {
                // Out of sockets: some are closed while others wait.
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let network = network.clone();
            let service = service_fn(move |request| {
                let network = network.clone();
                async move { network.pass(request).await }
            });
            // A browser that loses a reused connection retries the request by itself, and hides the
            // loss.
            let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(socket), service);
            tokio::spawn(connection);
        }
    });
    Ok(())
}

impl Network {
    /// Returns the gateway's response. An error closes the connection.
    async fn pass(self: Arc<Self>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Cut> {
        let trouble = Trouble::of(request.headers());
        let (mut parts, body) = request.into_parts();
        parts.headers = without(&parts.headers, &[CONNECTION, TRANSFER_ENCODING, KEEP_ALIVE, TROUBLE]);
        let is_post = parts.method == Method::POST;
        let body = Limited::new(body, BODY_BYTES_MAX).collect().await.map_err(|_| Cut)?.to_bytes();
        let passed = Request::from_parts(parts, Full::new(body));
        // Leaving the page closes its connection, but does not cancel requests in transit.
        let network = self.clone();
        let answer = tokio::spawn(async move {
            let at_work = if is_post { Some(network.at_work.read().await) } else { None };
            let answer = ask(network.gateway, passed).await;
            drop(at_work);
            if let Trouble::Kill(name) = &trouble {
                network.kill(name).await;
            }
            (answer, trouble)
        });
        let (answer, trouble) = answer.await.map_err(|_| Cut)?;
        let (mut parts, body) = answer.map_err(|_| Cut)?.into_parts();
        match trouble {
            Trouble::Lose | Trouble::Kill(_) => return Err(Cut),
            Trouble::Slow => tokio::time::sleep(SLOW).await,
            Trouble::None => {}
        }
        parts.headers = without(&parts.headers, &[CONNECTION, TRANSFER_ENCODING, KEEP_ALIVE, CONTENT_LENGTH]);
        parts.headers.insert(TROUBLE, HeaderValue::from_static("here"));
        Ok(Response::from_parts(parts, Full::new(body)))
    }

    async fn kill(&self, name: &str) {
        let mut killed_for = self.killed_for.lock().await;
        if killed_for.as_deref() == Some(name) {
            return;
        }
        let _alone = self.at_work.write().await;
        let (gone, when_gone) = oneshot::channel();
        if self.kills.send(gone).await.is_ok() {
            // An error means that the demo ends, and the gateway with it.
            let _ = when_gone.await;
        }
        *killed_for = Some(name.into());
    }
}

/// Removes hop-by-hop headers and those of this proxy. The others keep their order.
fn without(headers: &HeaderMap, own: &[HeaderName]) -> HeaderMap {
    let mut passed = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers.iter().filter(|(name, _)| !own.contains(name)) {
        passed.append(name, value.clone());
    }
    passed
}

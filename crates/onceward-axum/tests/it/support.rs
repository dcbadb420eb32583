//! A client that writes and reads the bytes itself, and a service on a free port.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use onceward::principal::PrincipalPart;
use onceward::store::MemoryStore;
use onceward_axum::{Builder, IdempotencyLayer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A layer for which all callers are one.
pub(crate) fn builder() -> Builder {
    let nobody: [PrincipalPart; 0] = [];
    IdempotencyLayer::builder(MemoryStore::default()).principal(nobody)
}

pub(crate) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

pub(crate) async fn serve(app: Router) -> SocketAddr {
    let (listener, address) = listen().await;
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

/// Counts the requests that a server has dropped or answered, as a layer outside of all others sees it.
pub(crate) fn counted(app: Router) -> (Router, Arc<AtomicUsize>) {
    let gone = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&gone);
    let count = middleware::from_fn(move |request: Request, next: Next| {
        let gone = Gone(Arc::clone(&count));
        async move {
            let response = next.run(request).await;
            drop(gone);
            response
        }
    });
    (app.layer(count), gone)
}

struct Gone(Arc<AtomicUsize>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Waits for what must happen, and fails where it does not.
#[track_caller]
pub(crate) fn soon<T>(what: &str, happens: impl Future<Output = T>) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(Duration::from_secs(30), happens).await {
            Ok(done) => done,
            Err(_) => panic!("{what} did not happen, {caller}"),
        }
    }
}

#[track_caller]
pub(crate) fn until(what: &str, holds: impl Fn() -> bool) -> impl Future<Output = ()> {
    soon(what, async move {
        while !holds() {
            tokio::task::yield_now().await;
        }
    })
}

/// A request with a key that closes its connection.
pub(crate) fn post(target: &str, key: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    request("POST", target, &[&[("idempotency-key", key)], headers].concat(), body)
}

pub(crate) fn request(method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut text = format!("{method} {target} HTTP/1.1\r\nhost: shop.example\r\nconnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
    text.into_bytes()
}

pub(crate) async fn begin(address: SocketAddr, request: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("a listening service");
    stream.write_all(request).await.expect("an open connection");
    stream
}

pub(crate) async fn send(address: SocketAddr, request: &[u8]) -> Got {
    let stream = begin(address, request).await;
    soon("a response", read(stream)).await
}

/// Reads until the connection ends.
pub(crate) async fn read(mut stream: TcpStream) -> Got {
    let mut bytes = Vec::new();
    // A reset after the last byte is no less an end.
    let _ = stream.read_to_end(&mut bytes).await;
    Got(String::from_utf8_lossy(&bytes).into_owned())
}

/// A response as it came.
#[derive(Clone, Debug)]
pub(crate) struct Got(pub(crate) String);

impl Got {
    pub(crate) fn status(&self) -> u16 {
        self.0.get(9..12).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no response: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let (head, _) = self.0.split_once("\r\n\r\n")?;
        head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    pub(crate) fn body(&self) -> &str {
        self.0.split_once("\r\n\r\n").map_or("", |(_, body)| body)
    }

    pub(crate) fn told(&self) -> (u16, &str, &str) {
        (self.status(), self.header("idempotency-outcome").unwrap_or("-"), self.body())
    }

    pub(crate) fn code(&self) -> String {
        let json: serde_json::Value = serde_json::from_str(self.body()).unwrap_or_else(|_| panic!("no JSON: {self:?}"));
        json["code"].as_str().unwrap_or_default().to_owned()
    }
}

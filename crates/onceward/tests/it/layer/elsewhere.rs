//! Claims that somebody else holds: a layer outside of this one, or another Onceward in front; and errors of what is inside.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::routing::post;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use onceward::claim::Claim;
use onceward::layer::IdempotencyLayer;
use onceward::layer::body::BoxError;
use onceward::policy::{Disposition, Policy};
use onceward::principal::{PrincipalPart, PrincipalRule};
use onceward::store::{MemoryStore, Store};
use onceward::wire::ONCEWARD_CLAIM;
use tower::load_shed::LoadShedLayer;
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};

use crate::shop::{Setup, made, order, request, serve, until};

/// A layer for which all callers are one.
fn layer(store: impl Store) -> IdempotencyLayer {
    IdempotencyLayer::builder(store).principal(PrincipalRule::Parts(Vec::new())).build()
}

async fn send(address: std::net::SocketAddr, bytes: &[u8]) -> crate::shop::Got {
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
    tokio::io::AsyncWriteExt::write_all(&mut stream, bytes).await.expect("open");
    crate::shop::soon("a response", crate::shop::Sent { stream }.answer()).await
}

#[tokio::test]
async fn layer_applied_twice_executes_once_and_replays() {
    let once = layer(MemoryStore::default());
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let handler = post(async move || format!("made {}", counted.fetch_add(1, Ordering::SeqCst) + 1));
    let app = Router::new().route("/orders", handler).route_layer(once.require_key()).layer(once);
    let address = serve(app).await;
    assert_eq!(send(address, &order("order-7", "tea", &[])).await.told(), (200, "stored", "made 1"));
    assert_eq!(send(address, &order("order-7", "tea", &[])).await.told(), (200, "replayed", "made 1"));
    send(address, &request("POST", "/orders", &[], "tea")).await.refused(400, "key_missing", "rejected");
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn subrequest_with_another_key_under_a_claim_is_claimed_by_itself() {
    let once = layer(MemoryStore::default());
    let part = Router::new().route("/part", post(async || "a part")).layer(once.clone());
    let whole = post(move |claim: axum::Extension<Claim>, request: Request| async move {
        let mut inner = Request::post("http://shop.example/part").header("idempotency-key", "part-7");
        inner.extensions_mut().expect("a request").insert(claim.0);
        drop(request);
        part.oneshot(inner.body(Body::empty()).expect("a request")).await
    });
    let address = serve(Router::new().route("/orders", whole).layer(once.clone())).await;
    send(address, &order("order-7", "tea", &[])).await.stored(200, "a part");
    assert_eq!(once.engine().stats().await.expect("the store answers").completed, 2);
}

/// A gateway in front: the same store, another process, as far as either knows.
fn gateway(store: Arc<dyn Store>, service: std::net::SocketAddr) -> Router {
    let forward = move |request: Request| async move {
        let claim = request.extensions().get::<Claim>().map(Claim::header_value);
        let (head, body) = request.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        let mut headers = vec![("idempotency-key".to_owned(), "order-7".to_owned())];
        if let Some(claim) = claim {
            headers.push(("onceward-claim".to_owned(), claim.to_str().expect("text").to_owned()));
        }
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let body = String::from_utf8(body.to_vec()).expect("text");
        let got = send(service, &request_to(&head.uri, &headers, &body)).await;
        let outcome = got.outcome().map(str::to_owned);
        (
            http::StatusCode::from_u16(got.status).expect("a status"),
            [("x-inner", outcome.unwrap_or_default())],
            got.body,
        )
            .into_response()
    };
    Router::new().route("/orders", post(forward)).layer(layer(store))
}

fn request_to(uri: &http::Uri, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    request("POST", uri.path(), headers, body)
}

#[tokio::test]
async fn service_behind_a_gateway_on_one_store_executes_under_its_claim() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let seen = Arc::new(AtomicUsize::new(0));
    let runs = Arc::clone(&seen);
    let handler = post(async move |headers: HeaderMap| {
        assert!(!headers.contains_key(ONCEWARD_CLAIM));
        format!("made {}", runs.fetch_add(1, Ordering::SeqCst) + 1)
    });
    // Its principal is another one, as a service's is behind a gateway that names the caller: the claim is what counts.
    let inner = IdempotencyLayer::builder(Arc::clone(&store)).principal(PrincipalPart::Authorization).build();
    let service = serve(Router::new().route("/orders", handler).layer(inner)).await;
    let front = serve(gateway(store, service)).await;
    let first = send(front, &order("order-7", "tea", &[])).await;
    assert_eq!(first.header("x-inner"), Some(""), "the service passed it on: {first:?}");
    first.stored(200, "made 1");
    send(front, &order("order-7", "tea", &[])).await.replayed(200, "made 1");
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn claim_header_that_names_no_running_attempt_is_ignored_and_removed() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let handler = post(async |headers: HeaderMap| format!("made, {}", headers.contains_key(ONCEWARD_CLAIM)));
    let address = serve(Router::new().route("/orders", handler).layer(layer(Arc::clone(&store)))).await;
    let forged = format!("{}.{}", "0".repeat(64), "0".repeat(32));
    for (key, claim) in [("a", forged.as_str()), ("b", "nothing"), ("c", "")] {
        let sent = order(key, "tea", &[("onceward-claim", claim)]);
        assert_eq!(send(address, &sent).await.told(), (200, "stored", "made, false"), "{claim}");
        assert_eq!(send(address, &sent).await.told(), (200, "replayed", "made, false"), "{claim}");
    }
}

#[tokio::test]
async fn claim_header_of_a_running_attempt_with_another_body_is_not_passed_on() {
    let shop = Setup::default().open(made).await;
    let store = Arc::clone(&shop.store) as Arc<dyn Store>;
    let address = serve(Router::new().route("/orders", post(async || "it ran")).layer(layer(store))).await;
    let claim = Arc::new(std::sync::Mutex::new(None));
    let told = Arc::clone(&claim);
    let holder = post(move |claim: axum::Extension<Claim>| async move {
        *told.lock().expect("no panic") = Some(claim.0.header_value());
        std::future::pending::<()>().await;
    });
    let holder = Router::new().route("/orders", holder).layer(layer(Arc::clone(&shop.store) as Arc<dyn Store>));
    let holder = serve(holder).await;
    let mut first = tokio::net::TcpStream::connect(holder).await.expect("it listens");
    tokio::io::AsyncWriteExt::write_all(&mut first, &order("order-7", "tea", &[])).await.expect("open");
    until("the claim", || claim.lock().expect("no panic").is_some()).await;
    let claim = claim.lock().expect("no panic").clone().expect("a claim");
    let claim = [("onceward-claim", claim.to_str().expect("text"))];
    send(address, &order("order-7", "rum", &claim)).await.refused(422, "key_reused", "mismatch");
    assert_eq!(send(address, &order("order-7", "tea", &claim)).await.told(), (200, "-", "it ran"));
    send(address, &order("order-7", "tea", &[])).await.refused(409, "in_flight", "in-flight");
}

fn keyed() -> http::Request<Full<Bytes>> {
    let request = http::Request::post("http://shop.example/orders").header("idempotency-key", "order-7");
    request.body(Full::new(Bytes::from_static(b"tea"))).expect("a request")
}

#[tokio::test]
async fn load_shed_below_the_layer_leaves_the_key_free() {
    let once = layer(MemoryStore::default());
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let open = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let ready = Arc::clone(&open);
    // Ready once it is open: until then `load_shed` refuses.
    let handler = service_fn(move |_: http::Request<onceward::layer::Body<Full<Bytes>>>| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Ok::<_, BoxError>(http::Response::new(Full::new(Bytes::from_static(b"made")))) }
    });
    let gate = Gate { inner: handler, open: ready };
    let service = ServiceBuilder::new().layer(once.clone()).layer(LoadShedLayer::new()).service(gate);
    let error = service.clone().oneshot(keyed()).await.expect_err("it is overloaded");
    assert!(error.is::<tower::load_shed::error::Overloaded>(), "{error}");
    assert_eq!(once.engine().stats().await.expect("the store answers").unknown, 0);
    open.store(true, Ordering::SeqCst);
    let response = service.oneshot(keyed()).await.expect("a response");
    assert_eq!(response.headers()["idempotency-outcome"], "stored");
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

/// A service that is not ready until it is opened.
#[derive(Clone)]
struct Gate<S> {
    inner: S,
    open: Arc<std::sync::atomic::AtomicBool>,
}

impl<S, R> tower::Service<R> for Gate<S>
where
    S: tower::Service<R>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), S::Error>> {
        match self.open.load(Ordering::SeqCst) {
            true => self.inner.poll_ready(context),
            false => std::task::Poll::Pending,
        }
    }

    fn call(&mut self, request: R) -> S::Future {
        self.inner.call(request)
    }
}

#[derive(Debug)]
struct CircuitOpen;

#[tokio::test]
async fn error_that_is_classified_as_not_sent_leaves_the_key_free_and_any_other_unknown() {
    for (fate, unknown) in
        [(Some(Disposition::NotSent), 0), (Some(Disposition::Released), 0), (Some(Disposition::Unknown), 1), (None, 1)]
    {
        let once = IdempotencyLayer::builder(MemoryStore::default())
            .principal(PrincipalRule::Parts(Vec::new()))
            .classify_error(move |_: &CircuitOpen| fate)
            .build();
        let service = once.layer(service_fn(|_: http::Request<onceward::layer::Body<Full<Bytes>>>| async {
            Err::<http::Response<Full<Bytes>>, _>(CircuitOpen)
        }));
        assert!(service.oneshot(keyed()).await.is_err());
        assert_eq!(once.engine().stats().await.expect("the store answers").unknown, unknown, "{fate:?}");
    }
}

#[tokio::test]
async fn policies_by_path_are_told_by_the_endpoints_and_hold_at_their_paths_alone() {
    let once = layer(MemoryStore::default())
        .require_key_for("/orders")
        .policy_for("/shops/{shop}/orders", Policy::default().methods([http::Method::PUT]));
    let all = post(async || "made").put(async || "made");
    let app = Router::new()
        .route("/orders", all.clone())
        .route("/teas", all.clone())
        .route("/shops/{shop}/orders", all)
        .nest_service("/.idempotency", once.endpoints());
    let address = serve(Router::new().fallback_service(tower::util::MapResponse::new(
        once.layer(tower::util::MapRequest::new(app, |request: http::Request<onceward::layer::Body<Body>>| {
            request.map(Body::new)
        })),
        |response: http::Response<onceward::layer::Body<Body>>| response.map(Body::new),
    )))
    .await;
    let key = [("idempotency-key", "order-7")];
    send(address, &request("POST", "/orders", &[], "tea")).await.refused(400, "key_missing", "rejected");
    assert_eq!(send(address, &request("POST", "/teas", &[], "tea")).await.told(), (200, "-", "made"));
    send(address, &request("PUT", "/shops/1/orders", &key, "tea")).await.stored(200, "made");
    assert_eq!(send(address, &request("POST", "/shops/1/orders", &key, "tea")).await.told(), (200, "-", "made"));
    assert_eq!(send(address, &request("PUT", "/teas", &key, "tea")).await.told(), (200, "-", "made"));
    let told = send(address, &request("GET", "/.idempotency/policy", &[], "")).await.json();
    let paths: Vec<_> = told["routes"].as_array().expect("a list").iter().map(|route| route["path"].as_str()).collect();
    assert_eq!(paths, [Some("/orders"), Some("/shops/{shop}/orders")]);
    // The public paths need no key, though the layer is around them.
    let whole = once.require_key();
    assert_eq!(send(address, &request("POST", "/.idempotency/keys?path=/orders", &[], "")).await.status, 201);
    drop(whole);
}

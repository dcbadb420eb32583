//! Stacks that must compile, and serve.

use axum::Router;
use axum::error_handling::HandleErrorLayer;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::routing::post;
use tower::util::{BoxCloneService, option_layer};
use tower::{BoxError, Layer, ServiceBuilder, ServiceExt};
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::trace::TraceLayer;

use crate::support::{builder, post as order, send, serve};

fn app() -> Router {
    Router::new().route("/orders", post(async || "placed"))
}

async fn runs_once(app: Router) {
    let address = serve(app).await;
    assert_eq!(send(address, &order("/orders", "order-7", &[], "tea")).await.told(), (200, "stored", "placed"));
    assert_eq!(send(address, &order("/orders", "order-7", &[], "tea")).await.told(), (200, "replayed", "placed"));
}

#[tokio::test]
async fn service_builder_with_trace_limit_and_from_fn_compiles() {
    let pass = middleware::from_fn(|request: Request, next: Next| next.run(request));
    let stack = ServiceBuilder::new()
        .layer(TraceLayer::new_for_http())
        .layer(RequestBodyLimitLayer::new(1 << 20))
        .layer(builder().build())
        .layer(TraceLayer::new_for_http())
        .layer(pass);
    runs_once(app().layer(stack)).await;
}

#[tokio::test]
async fn optional_layers_compile() {
    for once in [Some(builder().build()), None] {
        let is_there = once.is_some();
        let app = app().layer(ServiceBuilder::new().option_layer(once.clone())).layer(option_layer(once));
        match is_there {
            true => runs_once(app).await,
            false => {
                let address = serve(app).await;
                let got = send(address, &order("/orders", "order-7", &[], "tea")).await;
                assert_eq!(got.told(), (200, "-", "placed"));
            }
        }
    }
}

#[tokio::test]
async fn boxed_service_inside_and_outside_compiles() {
    let boxed = BoxCloneService::new(app());
    let once = builder().build();
    let service = BoxCloneService::new(once.layer(boxed));
    let request = || {
        let request = Request::post("http://shop.example/orders").header("idempotency-key", "order-7");
        request.body(axum::body::Body::from("tea")).expect("a request")
    };
    let mut outcomes = Vec::new();
    for _ in 0..2 {
        let response = service.clone().oneshot(request()).await.expect("infallible");
        outcomes.push(response.headers()["idempotency-outcome"].clone());
    }
    assert_eq!(outcomes, ["stored", "replayed"]);
}

#[tokio::test]
async fn fallible_layers_inside_compile_with_an_error_handler_outside() {
    let stack = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(async |_: BoxError| StatusCode::SERVICE_UNAVAILABLE))
        .layer(builder().build())
        .load_shed()
        .concurrency_limit(10);
    runs_once(app().layer(stack)).await;
}

#[tokio::test]
async fn layer_is_served_without_a_router_around_it() {
    let once = builder().build();
    let (listener, address) = crate::support::listen().await;
    let service = once.layer(app());
    tokio::spawn(async move { axum::serve(listener, service).await });
    assert_eq!(send(address, &order("/orders", "order-7", &[], "tea")).await.told(), (200, "stored", "placed"));
}

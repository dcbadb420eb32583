//! Pages of another origin.

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Method};
use axum::routing::post;
use tower_http::cors::CorsLayer;

use crate::support::{builder, post as order, request, send, serve};

const ORIGIN: [(&str, &str); 1] = [("origin", "https://shop.example")];

#[tokio::test]
async fn cors_outside_lets_pages_read_replays_and_refusals() {
    let cors = CorsLayer::new()
        .allow_origin(HeaderValue::from_static("https://shop.example"))
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(onceward_axum::cors::request_headers().chain([CONTENT_TYPE]).collect::<Vec<_>>())
        .expose_headers(onceward_axum::cors::exposed_headers().collect::<Vec<_>>());
    let app = builder().build().around(Router::new().route("/orders", post(async || "placed"))).layer(cors);
    let address = serve(app).await;
    let preflight = [ORIGIN[0], ("access-control-request-method", "POST")];
    let allowed = send(address, &request("OPTIONS", "/orders", &preflight, "")).await;
    let headers = allowed.header("access-control-allow-headers").expect("a list").to_ascii_lowercase();
    assert!(headers.contains("idempotency-key") && headers.contains("prefer"), "{headers}");
    for (body, status) in [("tea", 200), ("tea", 200), ("rum", 422)] {
        let got = send(address, &order("/orders", "order-7", &ORIGIN, body)).await;
        assert_eq!(got.status(), status);
        assert_eq!(got.header("access-control-allow-origin"), Some("https://shop.example"), "{got:?}");
        let exposed = got.header("access-control-expose-headers").expect("a list").to_ascii_lowercase();
        for name in ["idempotency-outcome", "idempotency-replayed", "retry-after"] {
            assert!(exposed.contains(name), "{name}: {exposed}");
        }
    }
}

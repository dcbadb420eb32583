//! What the layer costs: in process, on the memory store, an axum router called directly, about 300 bytes in and out.
//!
//! `cargo bench -p onceward` prints the time of each, then the ratios to the bare call of the same run.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use criterion::{Criterion, criterion_group, criterion_main};
use onceward::layer::IdempotencyLayer;
use onceward::store::MemoryStore;
use serde_json::{Value, json};
use tower::ServiceExt;

async fn place_order(Json(order): Json<Value>) -> (StatusCode, Json<Value>) {
    let answer =
        json!({ "id": 7, "item": order["item"], "qty": order["qty"], "note": order["note"], "state": "placed" });
    (StatusCode::CREATED, Json(answer))
}

fn request(key: Option<&str>) -> Request<Body> {
    const BODY: &str = concat!(
        r#"{"item":"espresso machine, stainless, with a steam wand","qty":1,"note":"#,
        r#""please ring twice; the bell of the second floor is the one that works, and the dog is friendly. "#,
        r#"Leave it with the neighbours on the left if nobody answers, they know about it and are at home all day.""#,
        r#","address":"12 Main Street"}"#
    );
    let mut request =
        Request::post("/orders").header("host", "shop.example").header("content-type", "application/json");
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    request.body(Body::from(BODY)).expect("a valid request")
}

async fn call(app: &Router, request: Request<Body>) -> usize {
    let response = app.clone().oneshot(request).await.expect("infallible");
    assert_eq!(response.status(), StatusCode::CREATED);
    to_bytes(response.into_body(), 1 << 20).await.expect("a whole body").len()
}

fn orders() -> Router {
    Router::new().route("/orders", post(place_order))
}

/// Without a state to come, as `axum::serve` makes it before its first request: else axum clones the route's layers and applies
/// them anew on each call, which no service that is served does.
fn bare() -> Router {
    orders().with_state(())
}

fn layered() -> Router {
    orders().route_layer(IdempotencyLayer::new(MemoryStore::new(8 << 30))).with_state(())
}

static KEYS: AtomicU64 = AtomicU64::new(0);

fn new_key() -> String {
    format!("0190f6c2-7e1a-7c3b-9d5e-{:012x}", KEYS.fetch_add(1, Ordering::Relaxed))
}

fn layer(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    // Before anything else: what follows keeps millions of answers, amidst which each allocation is slower, the bare call's too.
    ratios(&runtime);
    let mut group = criterion.benchmark_group("layer");
    group.measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_secs(1));
    let (plain, once) = (bare(), layered());

    group.bench_function("bare", |bench| {
        bench.to_async(&runtime).iter(async || black_box(call(&plain, request(None)).await));
    });
    group.bench_function("no key", |bench| {
        bench.to_async(&runtime).iter(async || black_box(call(&once, request(None)).await));
    });
    group.bench_function("new key", |bench| {
        bench.to_async(&runtime).iter(async || black_box(call(&once, request(Some(&new_key()))).await));
    });
    runtime.block_on(call(&once, request(Some("the-same"))));
    group.bench_function("replay", |bench| {
        bench.to_async(&runtime).iter(async || black_box(call(&once, request(Some("the-same"))).await));
    });
    group.finish();
}

/// The four in turns, many short rounds, each of which begins with another; each is divided by the bare calls of its own round,
/// and the median of that counts: a noisy machine disturbs all of a round alike.
fn ratios(runtime: &tokio::runtime::Runtime) {
    const ROUNDS: usize = 200;
    const CALLS: u32 = 1_000;
    let mut times: [Vec<f64>; 4] = Default::default();
    let mut ratios: [Vec<f64>; 4] = Default::default();
    for round in 0..ROUNDS {
        for case in (0..4).map(|turn| (turn + round) % 4) {
            // Its own each time, the bare one too: what is new lies elsewhere in memory than what was called for long, and what
            // thousands of kept answers do to the heap would slow the bare call too.
            let app = if case == 0 { bare() } else { layered() };
            runtime.block_on(call(&app, request((case == 3).then_some("the-same"))));
            // Making keys is the client's part.
            let keys: Vec<String> = (0..CALLS).map(|_| new_key()).collect();
            let began = Instant::now();
            runtime.block_on(async {
                for key in &keys {
                    let key = match case {
                        0 | 1 => None,
                        2 => Some(key.as_str()),
                        _ => Some("the-same"),
                    };
                    black_box(call(&app, request(key)).await);
                }
            });
            times[case].push(began.elapsed().as_secs_f64() * 1e6 / f64::from(CALLS));
        }
        for case in 0..4 {
            ratios[case].push(times[case][round] / times[0][round]);
        }
    }
    println!("| call | µs | × bare | at most | aim |\n|---|---|---|---|---|");
    for (case, (name, most, aim)) in
        [("bare", "", ""), ("no key", "1.1", "1.05"), ("new key", "2.2", "1.9"), ("replay", "1.25", "1.1")]
            .into_iter()
            .enumerate()
    {
        let (micros, ratio) = (median(&mut times[case]), median(&mut ratios[case]));
        println!("| {name} | {micros:.2} | {ratio:.2} | {most} | {aim} |");
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A claim with many live records beside it: a million at most twice a thousand.
fn records(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut group = criterion.benchmark_group("new key beside live records");
    group.measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_millis(500)).sample_size(20);
    for count in [1_000_u32, 1_000_000] {
        let once = layered();
        runtime.block_on(async {
            for _ in 0..count {
                call(&once, request(Some(&new_key()))).await;
            }
        });
        group.bench_function(count.to_string(), |bench| {
            bench.to_async(&runtime).iter(async || black_box(call(&once, request(Some(&new_key()))).await));
        });
    }
    group.finish();
}

criterion_group!(benches, layer, records);
criterion_main!(benches);

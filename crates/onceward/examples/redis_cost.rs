//! What a request costs in CPU time over Redis, service and server together, beside the pattern that people write by hand:
//! `SET NX` and, if it is taken, `GET`; afterwards `SET` with the answer. That one is not even safe.
//!
//! ```text
//! redis-server --port 7777 --save '' --appendonly yes &
//! cargo run --release -p onceward --features redis,layer --example redis_cost -- redis://127.0.0.1:7777 [REQUESTS [ROUNDS]]
//! ```
//!
//! An axum router is called directly by 64 callers, so that what HTTP itself costs flatters nobody. Alternating rounds, the
//! median of each, ratios in one run.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use onceward::layer::IdempotencyLayer;
use onceward::store::redis::{Options, RedisStore};
use redis::aio::MultiplexedConnection;
use redis::{Client, IntoConnectionInfo};
use tokio::task::JoinSet;
use tower::ServiceExt;

const CALLERS: u64 = 64;
const ANSWER: &str = r#"{"id":7,"item":"espresso machine, stainless, with a steam wand","qty":1,"state":"placed"}"#;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().ok_or("name the server: redis://127.0.0.1:7777")?;
    let requests: u64 = arguments.next().map_or(Ok(50_000), |it| it.parse())?;
    let rounds: usize = arguments.next().map_or(Ok(5), |it| it.parse())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure(&url, requests, rounds))
}

async fn measure(url: &str, requests: u64, rounds: usize) -> Result<(), Box<dyn Error>> {
    let settings = redis::io::tcp::TcpSettings::default().set_nodelay(true);
    let client = Client::open(url.into_connection_info()?.set_tcp_settings(settings))?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let store = RedisStore::connect(Options::parse(url)?).await?;
    let ours = Router::new()
        .route("/orders", post(async || (StatusCode::CREATED, ANSWER)))
        .route_layer(IdempotencyLayer::new(store));
    let theirs = Router::new().route("/orders", post(by_hand)).with_state(connection.clone());

    let cases = [("new keys", true), ("replays", false)];
    for (name, is_new) in cases {
        let mut costs: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
        for round in 0..=rounds {
            for (which, app) in [&theirs, &ours].into_iter().enumerate() {
                let before = cpu_seconds(&mut connection).await?;
                run(app, requests, is_new, which).await;
                let spent = (cpu_seconds(&mut connection).await? - before) * 1e6 / requests as f64;
                // The first warms up.
                if round > 0 {
                    costs[which].push(spent);
                }
            }
        }
        let [by_hand, layered] = costs.map(|mut costs| {
            costs.sort_by(f64::total_cmp);
            (costs[costs.len() / 2], costs[0], costs[costs.len() - 1])
        });
        println!(
            "{name}: by hand {:.1} µs ({:.1} to {:.1}), onceward {:.1} µs ({:.1} to {:.1}): {:.2} ×",
            by_hand.0,
            by_hand.1,
            by_hand.2,
            layered.0,
            layered.1,
            layered.2,
            layered.0 / by_hand.0
        );
    }
    Ok(())
}

static KEYS: AtomicU64 = AtomicU64::new(0);

async fn run(app: &Router, requests: u64, is_new: bool, which: usize) {
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let app = app.clone();
        callers.spawn(async move {
            for n in 0..requests / CALLERS {
                let key = match is_new {
                    true => format!("new-{which}-{:x}-{}", std::process::id(), KEYS.fetch_add(1, Ordering::Relaxed)),
                    false => format!("same-{which}-{caller}-{}", n % 50),
                };
                let request = Request::post("/orders").header("content-type", "application/json");
                let request = request.header("idempotency-key", key).body(Body::from(ANSWER)).expect("it is valid");
                let response = app.clone().oneshot(request).await.expect("infallible");
                assert_eq!(response.status(), StatusCode::CREATED);
                to_bytes(response.into_body(), 1 << 20).await.expect("a whole body");
            }
        });
    }
    callers.join_all().await;
}

/// As it stands in many a service.
async fn by_hand(State(mut redis): State<MultiplexedConnection>, headers: HeaderMap, _body: String) -> Response {
    let key = Arc::new(format!("idempotency:{}", headers["idempotency-key"].to_str().expect("it is ASCII")));
    let mut set = redis::cmd("SET");
    let taken: Option<String> = set
        .arg(key.as_str())
        .arg("processing")
        .arg("NX")
        .arg("EX")
        .arg(86_400)
        .query_async(&mut redis)
        .await
        .expect("it answers");
    if taken.is_none() {
        let answer: String = redis::cmd("GET").arg(key.as_str()).query_async(&mut redis).await.expect("it answers");
        return (StatusCode::CREATED, answer).into_response();
    }
    let mut set = redis::cmd("SET");
    set.arg(key.as_str()).arg(ANSWER).arg("EX").arg(86_400);
    set.query_async::<()>(&mut redis).await.expect("it answers");
    (StatusCode::CREATED, ANSWER).into_response()
}

/// Of this process and of the server.
async fn cpu_seconds(redis: &mut MultiplexedConnection) -> Result<f64, Box<dyn Error>> {
    let info: String = redis::cmd("INFO").arg("cpu").query_async(redis).await?;
    let number = |name: &str| -> f64 {
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|number| number.trim().parse().ok()).unwrap_or_default()
    };
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(number("used_cpu_user") + number("used_cpu_sys") + ticks / 100.0)
}

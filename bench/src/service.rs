//! Service under test: `POST /orders` plain, behind patterns written by hand, or behind the layer.

mod by_hand;

use std::error::Error;
use std::io::Read;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use axum::{Json, Router};
use onceward::layer::IdempotencyLayer;
use onceward::limits::Limits;
use onceward::policy::Policy;
use onceward::principal::PrincipalRule;
use onceward::store::redis::Options;
use onceward::store::{PostgresStore, RedisStore};
use serde_json::{Value, json};

/// Number of executed orders.
static EXECUTED: AtomicUsize = AtomicUsize::new(0);

/// Runs `service KIND [STORE [CACHE]]`, prints its address, and ends when its standard input is
/// closed.
pub(crate) fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let arguments: Vec<String> = arguments.collect();
    let run = || -> Result<(), Box<dyn Error>> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(serve(&arguments))
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench service: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let orders = Router::new().route("/orders", post(place_order));
    let orders = match *words {
        ["plain"] => orders,
        ["by-hand", url] => {
            orders.route_layer(from_fn_with_state(by_hand::connect(url).await?, by_hand::look_then_store))
        }
        ["minimum", url] => {
            orders.route_layer(from_fn_with_state(by_hand::connect(url).await?, by_hand::claim_then_store))
        }
        ["layer", url, cache] => orders.route_layer(layer(url, cache.parse()?, Policy::default()).await?),
        ["soon-forgotten", url] => {
            // The retention of a day, shortened to seconds.
            let mut policy = Policy::default();
            (policy.retention, policy.lease) = (Duration::from_secs(1), Duration::from_secs(1));
            orders.route_layer(layer(url, 0, policy).await?)
        }
        _ => return Err(format!("{words:?} is no service").into()),
    };
    let app = orders.route("/executed", get(async || EXECUTED.load(Ordering::SeqCst).to_string()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}

async fn layer(url: &str, cache: usize, mut policy: Policy) -> Result<IdempotencyLayer, Box<dyn Error>> {
    policy.principal = PrincipalRule::Parts(Vec::new());
    let mut limits = Limits::default();
    limits.cache = cache;
    let builder = match url.starts_with("postgres") {
        true => IdempotencyLayer::builder(std::sync::Arc::new(PostgresStore::open(url).await?)),
        false => IdempotencyLayer::builder(std::sync::Arc::new(RedisStore::connect(Options::parse(url)?).await?)),
    };
    Ok(builder.limits(limits).build().with_policy(policy))
}

/// Duration of an order in the test with a hundred concurrent duplicates.
const SLOW: Duration = Duration::from_millis(50);

async fn place_order(headers: HeaderMap, Json(order): Json<Value>) -> (StatusCode, Json<Value>) {
    EXECUTED.fetch_add(1, Ordering::SeqCst);
    if headers.contains_key("x-slow") {
        // waits: a slow order, as those are that clients retry
        tokio::time::sleep(SLOW).await;
    }
    let answer =
        json!({ "id": 7, "item": order["item"], "qty": order["qty"], "note": order["note"], "state": "placed" });
    (StatusCode::CREATED, Json(answer))
}

//! `onceward serve`: opens the store and the listeners, logs their addresses, serves, and shuts
//! down gracefully.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use onceward::layer::IdempotencyLayer;
use onceward::policy::Policy;
use onceward::secret::Secret;
#[cfg(feature = "redis")]
use onceward::store::RedisStore;
use onceward::store::{EmbeddedStore, MemoryStore, Store};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use crate::admin::Admin;
use crate::app::App;
use crate::authorize::Authorizer;
use crate::callers::Callers;
use crate::config::{Config, StoreUrl};
use crate::cors::Cors;
use crate::descriptors::{self, Budget};
use crate::jwt::Jwt;
use crate::logging;
use crate::metrics::Metrics;
use crate::server::{self, Bounds};
use crate::signals::Signals;
use crate::upstream::Forwarder;

/// Upper bound on idle connections for CORS preflights, which are rare.
const CORS_IDLE_MAX: usize = 4;

/// Timeout for responses to reach their clients after the drain limit.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Runs the gateway until it is stopped.
pub(crate) fn run(config: Config) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("threads cannot be started: {error}"))?;
    let result = runtime.block_on(serve(config));
    // Blocking threads that still run have nothing left to write.
    runtime.shutdown_timeout(LAST_WORDS);
    result
}

async fn serve(config: Config) -> Result<(), String> {
    let config = Arc::new(config);
    for (setting, value, origin) in &config.sources {
        tracing::info!("{setting} = {value} ({origin})");
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    // Signals are handled from here on, so that none is lost while the store opens.
    let mut signals = Signals::new().map_err(|error| format!("signals cannot be heard: {error}"))?;
    let (listener, listening) = bind(config.listen, "--listen").await?;
    let (admin_listener, admin_listening) = bind(config.admin.listen, "--admin").await?;

    tokio::spawn(logging::report_equal_lines());
    let open_files = descriptors::raise();
    let budget = Budget::of(open_files, config.limits.executions);
    let mut limits = config.limits.clone();
    limits.executions = budget.executions;
    tracing::info!(
        open_files,
        connections = budget.connections,
        executions = budget.executions,
        "open files are shared out"
    );
    if budget.executions < config.limits.executions {
        tracing::warn!(
            executions = budget.executions,
            "fewer requests may execute at the same time than limits.executions says: the process may open only {open_files} files; raise the hard limit (LimitNOFILE, ulimit -Hn)"
        );
    }
    let store = open_store(&config.store, config.limits.store_timeout).await?;
    let metrics = Arc::new(Metrics::new(policies(&config)));
    let mut builder = IdempotencyLayer::builder(store)
        .namespace(config.namespace.clone())
        .limits(limits)
        .issuing(config.issuing)
        .observer(Arc::clone(&metrics) as _)
        .forwarding();
    if let Some(path) = &config.secret_file {
        builder = builder.secret(read_secret(path)?);
    }
    let layer = builder.build();
    let engine = layer.engine().clone();
    engine.start().await.map_err(|error| format!("store: {}", crate::chain(&error)))?;
    engine.self_test().await.map_err(|error| format!("store: the self-test failed: {}", crate::chain(&error)))?;

    let mut faults = Vec::new();
    for change in
        engine.pin_rules(policies(&config), config.principal_generation).await.map_err(|error| error.to_string())?
    {
        tracing::error!("{change}");
        metrics.count_rule_change();
        faults.push(change);
    }
    let names_claims = policies(&config).any(|policy| policy.principal.names_a_claim());
    let jwt = match names_claims {
        true => Some(Arc::new(Jwt::open(&config.jwt, &config, &engine).await?)),
        false => None,
    };
    if let Some(jwt) = jwt.clone() {
        tokio::spawn(async move { jwt.refresh_forever().await });
    }
    let authorizer = Authorizer::new(Forwarder::new(&config, engine.clone(), CORS_IDLE_MAX)?, config.endpoints.clone());
    let callers = Callers::new(engine.clone(), jwt, authorizer, &config);
    let cors = Cors::new(Forwarder::new(&config, engine.clone(), CORS_IDLE_MAX)?, &config);
    let forwarder = Forwarder::new(&config, engine.clone(), budget.idle)?;
    let app = Arc::new(App::new(&layer, &forwarder, cors, callers, &config));
    let connections_max = budget.connections;
    let leaving = Arc::<AtomicBool>::default();
    let admin = Arc::new(Admin::new(
        engine.clone(),
        metrics,
        Arc::clone(&config),
        connections_max,
        Arc::clone(&leaving),
        faults,
    ));

    let head = server::HeadLimits { lines: config.header_lines, bytes: config.header_size };
    let (stop, stopping) = watch::channel(false);
    let bounds = Bounds { connections_max, head_timeout: server::HEAD_TIMEOUT, head };
    let accepting = tokio::spawn(server::accept(listener, bounds, stopping, move |request, peer| {
        Arc::clone(&app).call(request, peer)
    }));
    let (admin_stop, admin_stopping) = watch::channel(false);
    let answer = move |request, _| {
        let admin = Arc::clone(&admin);
        async move { admin.call(request).await }
    };
    let bounds =
        Bounds { connections_max: server::ADMIN_CONNECTIONS_MAX, head_timeout: server::ADMIN_HEAD_TIMEOUT, head };
    tokio::spawn(server::accept(admin_listener, bounds, admin_stopping, answer));
    tracing::info!(
        listen = %listening,
        admin = %admin_listening,
        upstream = %config.upstream,
        store = engine.store().info().kind,
        version = env!("CARGO_PKG_VERSION"),
        "listening on {listening}"
    );

    let told = signals.stop().await;
    let deadline = Instant::now() + config.drain;
    let in_flight = engine.in_flight();
    leaving.store(true, Ordering::Relaxed);
    let delay = if told.skips_delay() { Duration::ZERO } else { config.drain_delay };
    match delay.is_zero() {
        true => {
            engine.drain();
            tracing::info!(in_flight, "{told}: draining, for at most {:?}", config.drain);
        }
        false => tracing::info!(
            in_flight,
            "{told}: not ready, and draining in {delay:?}, for at most {:?} in all",
            config.drain
        ),
    }
    // A second signal stops the process at once.
    tokio::spawn(async move {
        let told = signals.stop().await;
        tracing::warn!("{told} again: stopped at once");
        logging::end();
        std::process::exit(1);
    });
    tokio::time::sleep(delay).await;
    engine.drain();
    // The listener stays open: replays and rejections continue, and requests that a load balancer
    // still sends get a response.
    if timeout_at(deadline, engine.drained()).await.is_err() {
        tracing::warn!(
            in_flight = engine.in_flight(),
            "the drain limit is over; what still runs is written as unknown"
        );
        engine.abort();
        let writing = config.limits.store_timeout * 2 + LAST_WORDS;
        if timeout(writing, engine.drained()).await.is_err() {
            tracing::error!(
                in_flight = engine.in_flight(),
                "the store does not take it; those keys are found lost at the next start"
            );
        }
    }
    stop.send_replace(true);
    // Completes when the listener and all connections have dropped it. A client that never ends its
    // request is bounded too.
    let closed = timeout_at(deadline.max(Instant::now() + LAST_WORDS), stop.closed()).await;
    if closed.is_err() {
        tracing::warn!("some connections were cut at the drain limit");
    }
    accepting.abort();
    drop(admin_stop);
    tracing::info!("stopped");
    Ok(())
}

/// Returns all policies: the default one first.
fn policies(config: &Config) -> impl Iterator<Item = &Policy> {
    std::iter::once(&config.policy).chain(config.routes.iter().map(|(_, policy)| policy))
}

async fn bind(address: SocketAddr, flag: &str) -> Result<(TcpListener, SocketAddr), String> {
    let bound = async {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok::<_, std::io::Error>((listener, address))
    };
    bound.await.map_err(|error| format!("cannot listen on {address}: {error}; free it, or take another with {flag}"))
}

#[cfg_attr(
    not(any(feature = "postgres", feature = "redis")),
    allow(unused_variables, reason = "only a server needs patience")
)]
async fn open_store(url: &StoreUrl, patience: Duration) -> Result<Arc<dyn Store>, String> {
    Ok(match url {
        StoreUrl::Memory { bytes_max } => Arc::new(MemoryStore::new(*bytes_max)),
        StoreUrl::Embedded { folder } => {
            let store = EmbeddedStore::open(folder)
                .map_err(|error| format!("store: {}: {}", folder.display(), crate::chain(&error)))?;
            Arc::new(store)
        }
        #[cfg(feature = "postgres")]
        StoreUrl::Postgres(url) => {
            let settings: onceward::store::postgres::Settings =
                url.0.parse().map_err(|error| format!("store: {error}"))?;
            // Slightly less, so that the store times out first and can report that a command was
            // never sent.
            let opened = onceward::store::PostgresStore::with(settings.timeout(patience * 9 / 10)).await;
            Arc::new(opened.map_err(|error| format!("store: {}", crate::chain(&error)))?)
        }
        #[cfg(feature = "redis")]
        StoreUrl::Redis { options } => {
            // Slightly less, so that the store times out first, reports the cause, and drops a
            // connection that hangs.
            let options = options.options.clone().timeout(patience * 9 / 10);
            let store = RedisStore::connect(options.clone())
                .await
                .map_err(|error| format!("store: {options}: {}", crate::chain(&error)))?;
            Arc::new(store)
        }
    })
}

/// Reads 32 bytes, raw or as hexadecimal digits. Errors describe the problem, and never contain a
/// part of the secret.
fn read_secret(path: &Path) -> Result<Secret, String> {
    let bytes = fs::read(path).map_err(|error| format!("secret_file: {} cannot be read: {error}", path.display()))?;
    let raw: Option<[u8; 32]> = bytes.as_slice().try_into().ok();
    let secret = raw.or_else(|| unhex(bytes.trim_ascii()));
    secret.map(Secret::new).ok_or_else(|| {
        let path = path.display();
        format!("secret_file: {path} has neither 32 bytes nor 64 hexadecimal digits; make it with `openssl rand -hex 32 > {path}`")
    })
}

fn unhex(digits: &[u8]) -> Option<[u8; 32]> {
    let mut secret = [0; 32];
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in secret.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
    }
    Some(secret)
}

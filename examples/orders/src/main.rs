//! Orders service as a program. `--help` lists its options.

use std::{error::Error, path::PathBuf, process::ExitCode, time::Duration};

use axum::serve::ListenerExt;
use clap::Parser;
use onceward::{policy::Policy, principal::PrincipalRule, store::EmbeddedStore};
use onceward_axum::IdempotencyLayer;
use orders::{Config, Orders};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

/// Upper bound on the time to finish and store an order after its client disconnected.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Orders service: POST /orders {"item": "tea", "qty": 2}, and a page at /.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Address to listen on.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:3000")]
    listen: String,
    /// SQLite file of the orders; created if it does not exist.
    #[arg(long, value_name = "PATH", default_value = "orders.db")]
    db: PathBuf,
    /// Make each retry of a POST take effect once: it needs an Idempotency-Key, and responses are
    /// stored in `<PATH>-keys`.
    #[arg(long)]
    layer: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orders: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<(), String> {
    let listener = listen(&args.listen).await?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let orders = Orders::open(&args.db).map_err(|error| chain(&error))?;
    let router = orders::router(orders, Config::default());
    let once = if args.layer { Some(once(&args).await?) } else { None };
    // Installed before the first request: from here on a signal starts a graceful shutdown, and no
    // longer kills.
    let (mut terminate, mut interrupt) = signal(SignalKind::terminate())
        .and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)))
        .map_err(|error| format!("cannot listen for signals: {error}"))?;
    println!("orders: listening on http://{address}, orders in {}", args.db.display());
    let shutdown = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    let served = match once {
        None => orders::serve(listener, router, shutdown).await,
        Some(once) => {
            // Without a delay, a response in two small writes does not wait for the acknowledgement
            // of the first.
            let listener = listener.tap_io(|connection| drop(connection.set_nodelay(true)));
            let app = once.around(router.nest_service("/.idempotency", once.endpoints()));
            onceward_axum::serve(listener, app, &once).drain_timeout(DRAIN_MAX).with_graceful_shutdown(shutdown).await
        }
    };
    served.map_err(|error| format!("serving ended: {error}"))
}

/// Creates the layer, on a store beside the database: rows and keys survive a restart together.
async fn once(args: &Args) -> Result<IdempotencyLayer, String> {
    let mut path = args.db.clone().into_os_string();
    path.push("-keys");
    let store = EmbeddedStore::open(path).map_err(|error| chain(&error))?;
    // Any client may order here, and the cookies of a browser for localhost identify no one: all
    // callers are one.
    let everybody = PrincipalRule::Parts(Vec::new());
    let once = IdempotencyLayer::builder(store).principal(everybody).build();
    let once = once.policy_for("/orders", Policy::default().require_key());
    once.start().await.map_err(|error| chain(&error))?;
    Ok(once)
}

async fn listen(address: &str) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            format!("{address} is taken by another program: choose another with --listen, such as 127.0.0.1:3001")
        }
        _ => format!("cannot listen on {address}: {error}; --listen takes an address such as 127.0.0.1:3000"),
    })
}

/// Formats an error and its causes in one line.
fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    line
}

//! `onceward demo`: runs the orders service, its page and the gateway, within a minute.
//!
//! The service and the gateway are separate processes, so that killing one is real. The network
//! proxy, through which the page is loaded, and the relay, which drops every response, run in the
//! demo's process.

mod ask;
mod cut;
mod family;
mod network;
mod part;
mod relay;
mod script;
mod show;

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use orders::Orders;
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use part::{Part, Recipe};
use script::Script;

pub(crate) use family::{OrdersArgs, end_with_parent, orders};

const GATEWAY_PORT: u16 = 8080;
const ADMIN_PORT: u16 = 8081;
const RELAY_PORT: u16 = 8082;
const NETWORK_PORT: u16 = 8083;
const ORDERS_PORT: u16 = 3000;
/// Upper bound on the ports tried after the preferred one.
const PORTS_TRIED_MAX: u16 = 200;
/// Upper bound on restarts of a part whose port was taken by another process before it could bind.
const STARTS_MAX: usize = 20;
const LOCK: &str = "demo.lock";

/// Show a demo: an orders service, its page, and the gateway before it
#[derive(Debug, Args)]
#[command(after_help = "\
The addresses are printed, the page's first. Ports that are taken give the next free ones.")]
pub(crate) struct Demo {
    /// Run the three printed curl lines, print the responses, and end: 0 if they were as expected,
    /// else 1
    #[arg(long)]
    check: bool,
    /// Store the orders, the keys and the logs in this directory, and continue with existing ones
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// Runs the demo until it is stopped, or its check has ended.
pub(crate) fn run(demo: &Demo) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("cannot start: {error}")),
    };
    match runtime.block_on(until_stopped(demo)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(what) => failed(&what),
    }
}

fn failed(what: &str) -> ExitCode {
    eprintln!("onceward: demo: {}", what.replace(['\n', '\r'], " "));
    ExitCode::FAILURE
}

/// Returns `true` if the check passed. However this ends, the processes are ended first, and then
/// the directory is removed.
async fn until_stopped(demo: &Demo) -> Result<bool, String> {
    let hear = |kind| signal(kind).map_err(|error| format!("cannot hear signals: {error}"));
    // Signals are handled before there is anything to clean up.
    let mut interrupt = hear(SignalKind::interrupt())?;
    let mut terminate = hear(SignalKind::terminate())?;
    let mut hang_up = hear(SignalKind::hangup())?;
    let folder = Folder::open(demo.keep.as_deref())?;
    tokio::select! {
        result = play(demo, &folder) => result,
        _ = interrupt.recv() => Ok(!demo.check),
        _ = terminate.recv() => Ok(!demo.check),
        _ = hang_up.recv() => Ok(!demo.check),
    }
}

async fn play(demo: &Demo, folder: &Folder) -> Result<bool, String> {
    let mut stage = Stage::start(folder.path(), !demo.check).await?;
    let script = Script::new(stage.gateway);
    if demo.check {
        let orders = Orders::open(folder.path().join(family::ORDERS_DB)).map_err(|error| crate::chain(&error))?;
        return Ok(script.check(&orders).await);
    }
    show::welcome(&stage, &script, folder);
    stage.keep_up().await
}

/// All parts of the running demo.
struct Stage {
    orders: SocketAddr,
    gateway: SocketAddr,
    admin: SocketAddr,
    relay: SocketAddr,
    /// Address of the page.
    network: SocketAddr,
    orders_part: Part,
    gateway_part: Part,
    /// Kill requests from the network proxy.
    kills: mpsc::Receiver<network::Kill>,
}

impl Stage {
    async fn start(folder: &Path, is_live: bool) -> Result<Self, String> {
        // All ports are bound at first, so that no part gets the port of another.
        let held = (free(GATEWAY_PORT)?, free(ADMIN_PORT)?);
        let relay_listener = free(RELAY_PORT)?;
        let relay = address(&relay_listener)?;
        let network_listener = free(NETWORK_PORT)?;
        let network = address(&network_listener)?;

        let (orders_part, ports) = start("orders service", folder, is_live, |folder| {
            let (listen, listener) = held_address(ORDERS_PORT)?;
            drop(listener);
            Ok((family::orders_args(folder, listen, relay, network), [listen; 2]))
        })
        .await?;
        let orders = ports[0];
        drop(held);
        let (gateway_part, [gateway, admin]) = start("gateway", folder, is_live, |folder| {
            let (gateway, first) = held_address(GATEWAY_PORT)?;
            let (admin, second) = held_address(ADMIN_PORT)?;
            drop((first, second));
            Ok((family::gateway_args(folder, gateway, admin, orders)?, [gateway, admin]))
        })
        .await?;
        relay::start(relay_listener, gateway)?;
        let (kill, kills) = mpsc::channel(1);
        network::start(network_listener, gateway, kill)?;
        let stage = Self { orders, gateway, admin, relay, network, orders_part, gateway_part, kills };
        // The gateway's store reported ready, and the service responds.
        ask::until_ok(admin, "/readyz").await?;
        ask::until_ok(orders, "/orders?limit=1").await?;
        Ok(stage)
    }

    /// Kills the gateway on request, and restarts each part that was killed. Ends only if a restart
    /// fails.
    async fn keep_up(&mut self) -> Result<bool, String> {
        loop {
            let part = tokio::select! {
                how = self.orders_part.ended() => { show::died(&self.orders_part, &how); &mut self.orders_part }
                how = self.gateway_part.ended() => { show::died(&self.gateway_part, &how); &mut self.gateway_part }
                Some(gone) = self.kills.recv() => {
                    let how = self.gateway_part.kill().await;
                    show::died(&self.gateway_part, &how);
                    // The sender of the request may have gone.
                    let _ = gone.send(());
                    &mut self.gateway_part
                }
            };
            part.restart().await?;
            show::back(part);
        }
    }
}

/// Starts a part on the ports that `plan` finds. Retries on other ports if another process took one
/// first.
async fn start(
    name: &'static str,
    folder: &Path,
    is_live: bool,
    plan: impl Fn(&Path) -> Result<(Vec<OsString>, [SocketAddr; 2]), String>,
) -> Result<(Part, [SocketAddr; 2]), String> {
    let mut tries = 1;
    loop {
        let (args, addresses) = plan(folder)?;
        let recipe = Recipe { name, args, log: folder.join(format!("{}.log", name.replace(' ', "-"))), is_live };
        match Part::start(recipe).await {
            Ok(part) => return Ok((part, addresses)),
            Err(what) if what.contains("cannot listen on") && tries < STARTS_MAX => tries += 1,
            Err(what) => return Err(what),
        }
    }
}

/// Binds a listener to this port of this machine, or to the next free one.
fn free(preferred: u16) -> Result<TcpListener, String> {
    let last = preferred + PORTS_TRIED_MAX;
    let bound = (preferred..=last).find_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok());
    bound.ok_or_else(|| format!("all ports from {preferred} to {last} are taken on 127.0.0.1: free one"))
}

fn address(listener: &TcpListener) -> Result<SocketAddr, String> {
    listener.local_addr().map_err(|error| error.to_string())
}

fn held_address(preferred: u16) -> Result<(SocketAddr, TcpListener), String> {
    let listener = free(preferred)?;
    Ok((address(&listener)?, listener))
}

/// Directory of the data.
enum Folder {
    /// Removed when dropped.
    Fresh(TempDir),
    /// Locked until dropped: a second demo there would overwrite the settings of the first one's
    /// gateway.
    Kept(PathBuf, #[expect(dead_code, reason = "it is held, not read")] File),
}

impl Folder {
    fn open(keep: Option<&Path>) -> Result<Self, String> {
        let Some(path) = keep else {
            let fresh = tempfile::Builder::new().prefix("onceward-demo-").tempdir();
            return fresh.map(Self::Fresh).map_err(|error| format!("no temporary folder can be made: {error}"));
        };
        let open = || {
            fs::create_dir_all(path)?;
            let folder = fs::canonicalize(path)?;
            let lock = File::options().create(true).append(true).open(folder.join(LOCK))?;
            Ok::<_, std::io::Error>((folder, lock))
        };
        let shown = path.display();
        let (folder, lock) =
            open().map_err(|error| format!("--keep: {shown} cannot be used: {error}; name a folder of your own"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self::Kept(folder, lock)),
            Err(_) => Err(format!("--keep: another demo uses {shown}: end it, or name another folder")),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Fresh(folder) => folder.path(),
            Self::Kept(path, _) => path,
        }
    }
}

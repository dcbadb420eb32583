//! Test cluster of a history: a directory, an upstream, gateways before it, and the log of events.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use onceward::fault;

use crate::check::{Rules, Seen};
use crate::client::Call;
use crate::gateway::{Address, Gateway};
use crate::history::{Answer, Recorder, What};
use crate::server::{Kind, Server};
use crate::upstream::Upstream;

/// Lease of a claim: the minimum that a gateway accepts.
pub const LEASE: Duration = Duration::from_secs(1);

/// Test cluster.
#[derive(Debug)]
pub struct Stage {
    /// Log of events.
    pub recorder: Arc<Recorder>,
    /// Upstream of the gateways.
    pub upstream: Upstream,
    /// Gateways before the upstream.
    pub gateways: Vec<Gateway>,
    /// Server of the shared store, if it belongs to this run.
    pub(crate) server: Option<Server>,
}

/// Configuration of a cluster.
#[derive(Debug)]
pub struct Set {
    /// Program that is run as a gateway, with `serve` as its first argument.
    pub program: PathBuf,
    /// Directory of all files. Exists, and is empty.
    pub folder: PathBuf,
    /// URL of the store. A directory in it is relative to [`folder`](Self::folder).
    pub store: String,
    /// Separates the keys of this cluster from those of others in the same store.
    pub namespace: String,
    /// Number of gateways that share the store.
    pub gateways: usize,
    /// Environment variables of every start.
    pub environment: Vec<(String, String)>,
    /// Server of its own, before which each gateway has its own proxy.
    pub(crate) server: Option<Server>,
}

impl Stage {
    /// Sets up a cluster, and starts only the upstream.
    ///
    /// # Errors
    ///
    /// Errors of the directory.
    pub fn set(set: Set) -> std::io::Result<Self> {
        let recorder = Arc::new(Recorder::begin());
        let upstream = Upstream::start(&set.folder.join("executions"), Arc::clone(&recorder))?;
        std::fs::write(set.folder.join("onceward.toml"), settings(&set, &upstream))?;
        let gateway = |at| {
            let mut environment = set.environment.clone();
            environment.extend(set.server.as_ref().map(|server| ("ONCEWARD_STORE".to_owned(), server.url(at))));
            Gateway::new(&set.program, &set.folder, environment, Arc::clone(&recorder))
        };
        let gateways = (0..set.gateways).map(gateway).collect();
        Ok(Self { recorder, upstream, gateways, server: set.server })
    }

    /// Returns a cluster with one gateway on an embedded store, already started. `bug` is planted
    /// in it.
    ///
    /// # Errors
    ///
    /// Errors of the directory and of the gateway.
    pub fn small(program: &Path, folder: &Path, bug: Option<&str>) -> Result<Self, String> {
        let set = Set {
            program: program.to_owned(),
            folder: folder.to_owned(),
            store: "embedded:store".to_owned(),
            namespace: "default".to_owned(),
            gateways: 1,
            environment: bug.map(|bug| (fault::PLANTED.to_owned(), bug.to_owned())).into_iter().collect(),
            server: None,
        };
        let mut stage = Self::set(set).map_err(|error| format!("{}: {error}", folder.display()))?;
        stage.gateways[0].start(&[])?;
        Ok(stage)
    }

    /// Returns a cluster with two gateways over a server of its own, already started. `bug` is
    /// planted in both.
    ///
    /// # Errors
    ///
    /// Errors of the directory and of the gateways.
    pub fn shared(program: &Path, folder: &Path, kind: Kind, bug: Option<&str>) -> Result<Self, String> {
        let set = Set {
            program: program.to_owned(),
            folder: folder.to_owned(),
            store: "memory:".to_owned(),
            namespace: "default".to_owned(),
            gateways: 2,
            environment: bug.map(|bug| (fault::PLANTED.to_owned(), bug.to_owned())).into_iter().collect(),
            server: Some(Server::start(kind, 2)),
        };
        let mut stage = Self::set(set).map_err(|error| format!("{}: {error}", folder.display()))?;
        stage.gateways.iter_mut().try_for_each(|gateway| gateway.start(&[]))?;
        Ok(stage)
    }

    /// Kills the store's server, and restarts it after a while.
    pub fn crash_the_store(&mut self, away: Duration) {
        if let Some(server) = &mut self.server {
            self.recorder.saw(What::StoreHurt);
            server.kill();
            std::thread::sleep(away);
            server.start_again();
            self.recorder.saw(What::StoreHealed);
        }
    }

    /// Returns the address of the first gateway.
    pub fn address(&self) -> Option<Address> {
        self.address_of(0)
    }

    fn address_of(&self, gateway: usize) -> Option<Address> {
        *self.gateways[gateway].address().lock().expect("nobody panics while it is held")
    }

    /// Sends a call to the first gateway.
    pub fn call(&self, call: &Call) -> Option<Answer> {
        self.call_to(0, call)
    }

    /// Sends a call to one of the gateways.
    pub fn call_to(&self, gateway: usize, call: &Call) -> Option<Answer> {
        call.send(self.address_of(gateway)?, &self.recorder)
    }
}

fn settings(set: &Set, upstream: &Upstream) -> String {
    format!(
        "upstream = \"http://{}\"\nstore = {:?}\nnamespace = {:?}\ndrain = \"2s\"\n\
         [limits]\nupstream_timeout = \"2s\"\ncapture_timeout = \"6s\"\nstore_timeout = \"600ms\"\nresponse_body = \"64KiB\"\n\
         [policy]\nlease = \"1s\"\nprincipal = [\"authorization\"]\n\
         [[route]]\npath = \"/again\"\nguarantee = \"at-least-once\"\n",
        upstream.address, set.store, set.namespace
    )
}

/// Returns the rules for histories of this cluster.
pub fn rules(least: Seen) -> Rules {
    Rules { lease: LEASE, grace: Duration::from_secs(3), least }
}

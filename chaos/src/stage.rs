//! What a history is played on: a folder, an upstream, gateways before it, and the log of all that was seen.

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

/// How long a claim is believed without a sign of life: the least that a gateway takes.
pub const LEASE: Duration = Duration::from_secs(1);

/// A stage.
#[derive(Debug)]
pub struct Stage {
    /// The log.
    pub recorder: Arc<Recorder>,
    /// The upstream.
    pub upstream: Upstream,
    /// The gateways before it.
    pub gateways: Vec<Gateway>,
    /// The server of the store that they share, where it is this run's own.
    pub(crate) server: Option<Server>,
}

/// How a stage is set.
#[derive(Debug)]
pub struct Set {
    /// What is run as a gateway, with `serve` as its first word.
    pub program: PathBuf,
    /// Where everything lies. Exists, and is empty.
    pub folder: PathBuf,
    /// The store's URL; a folder in it is relative to [`folder`](Self::folder).
    pub store: String,
    /// Parts this stage's keys from others' in the same store.
    pub namespace: String,
    /// How many gateways share the store.
    pub gateways: usize,
    /// Variables of every start.
    pub environment: Vec<(String, String)>,
    /// A server of its own, to which each gateway has a way of its own.
    pub(crate) server: Option<Server>,
}

impl Stage {
    /// Sets a stage; nothing is started but the upstream.
    ///
    /// # Errors
    ///
    /// The folder's.
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

    /// A stage with one gateway on an embedded store, which has started; `bug` is planted in it.
    ///
    /// # Errors
    ///
    /// The folder's, and the gateway's.
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

    /// A stage with two gateways over a server of its own, which have started; `bug` is planted in both.
    ///
    /// # Errors
    ///
    /// The folder's, and the gateways'.
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

    /// Kills the store's server and starts it again after a while.
    pub fn crash_the_store(&mut self, away: Duration) {
        if let Some(server) = &mut self.server {
            self.recorder.saw(What::StoreHurt);
            server.kill();
            std::thread::sleep(away);
            server.start_again();
            self.recorder.saw(What::StoreHealed);
        }
    }

    /// Where the first gateway listens.
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

/// What a history of this stage is checked against.
pub fn rules(least: Seen) -> Rules {
    Rules { lease: LEASE, grace: Duration::from_secs(3), least }
}

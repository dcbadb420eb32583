//! What a history is played on: a folder, an upstream, gateways before it, and the log of all that was seen.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::check::{Rules, Seen};
use crate::client::Call;
use crate::gateway::{Address, Gateway};
use crate::history::{Answer, Recorder};
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
}

/// How a stage is set.
#[derive(Clone, Debug)]
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
}

impl Stage {
    /// Sets a stage; nothing is started but the upstream.
    ///
    /// # Errors
    ///
    /// The folder's.
    pub fn set(set: &Set) -> std::io::Result<Self> {
        let recorder = Arc::new(Recorder::begin());
        let upstream = Upstream::start(&set.folder.join("executions"), Arc::clone(&recorder))?;
        std::fs::write(set.folder.join("onceward.toml"), settings(set, &upstream))?;
        let gateway = |_| Gateway::new(&set.program, &set.folder, set.environment.clone(), Arc::clone(&recorder));
        let gateways = (0..set.gateways).map(gateway).collect();
        Ok(Self { recorder, upstream, gateways })
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
            environment: bug.map(|bug| ("ONCEWARD_PLANTED".to_owned(), bug.to_owned())).into_iter().collect(),
        };
        let mut stage = Self::set(&set).map_err(|error| format!("{}: {error}", folder.display()))?;
        stage.gateways[0].start(&[])?;
        Ok(stage)
    }

    /// Where the first gateway listens.
    pub fn address(&self) -> Option<Address> {
        *self.gateways[0].address().lock().expect("nobody panics while it is held")
    }

    /// Sends a call to the first gateway.
    pub fn call(&self, call: &Call) -> Option<Answer> {
        call.send(self.address()?, &self.recorder)
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

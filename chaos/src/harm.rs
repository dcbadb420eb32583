//! Injects faults into a gateway or its store, one after another, and recovers from each.

mod store;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use onceward::fault::{self, POINTS};

use crate::client::{Call, Leaves};
use crate::gateway::Gateway;
use crate::moments::Moments;
use crate::stage::{LEASE, Stage};
use crate::tally::Tally;
use store::StoreHarm;

/// Timeout to reach a failpoint under this load.
const REACHED_MAX: Duration = Duration::from_secs(5);
/// Upper bound on attempts to reach a failpoint.
const TRIES: u32 = 3;

/// Fault to inject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Harm {
    Kill,
    /// Kills it again while it restarts.
    KillTwice,
    Stop,
    StopThreeLeases,
    /// Stops at this failpoint, for a while or for three leases.
    StopAt(&'static str),
    Drain,
    Clock,
    DiskFull,
    SyncFails,
    WriteFails,
    /// Aborts at this failpoint.
    Abort(&'static str),
    /// Fault of the store's server, or of the proxies before it.
    Store(StoreHarm),
}

/// Means of injecting faults.
#[derive(Debug)]
pub(crate) struct Tools {
    /// File that selects the journal's system calls that fail.
    pub(crate) faults: PathBuf,
    /// File with the wall clock's offset, if the clock is controlled.
    pub(crate) clock: Option<PathBuf>,
    /// Small disk that holds the store, if there is one.
    pub(crate) disk: Option<PathBuf>,
    /// The store is a directory of the gateway.
    pub(crate) is_embedded: bool,
    /// The store has a server that belongs to this run.
    pub(crate) has_server: bool,
}

impl Harm {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Kill => "killed (-9)".into(),
            Self::KillTwice => "killed, and killed again while it starts".into(),
            Self::Stop => "stopped for up to a second (SIGSTOP)".into(),
            Self::StopThreeLeases => "stopped for three leases while it runs".into(),
            Self::StopAt(point) => format!("stopped at {point}"),
            Self::Drain => "drained (SIGTERM) and started again".into(),
            Self::Clock => "wall clock shifted".into(),
            Self::DiskFull => "disk filled (a small tmpfs)".into(),
            Self::SyncFails => "fdatasync fails (EIO)".into(),
            Self::WriteFails => "write fails (ENOSPC)".into(),
            Self::Abort(point) => format!("aborted at {point}"),
            Self::Store(harm) => harm.name().into(),
        }
    }

    /// Returns all faults that the tools allow, once each, in the order of this seed.
    pub(crate) fn all(tools: &Tools, moments: &mut Moments) -> Vec<Self> {
        let in_the_store = ["commit-before", "commit-after", "compaction"];
        let mut all = vec![Self::Kill, Self::KillTwice, Self::Stop, Self::StopThreeLeases, Self::Drain];
        all.extend(["claim-after", "send-before"].map(Self::StopAt));
        let points = POINTS.into_iter().filter(|point| tools.is_embedded || !in_the_store.contains(point));
        all.extend(points.map(Self::Abort));
        if tools.is_embedded {
            all.extend([Self::SyncFails, Self::WriteFails]);
        }
        all.extend(tools.clock.iter().map(|_| Self::Clock));
        all.extend(tools.disk.iter().map(|_| Self::DiskFull));
        if tools.has_server {
            all.extend(StoreHarm::ALL.map(Self::Store));
        }
        moments.shuffle(&mut all);
        all
    }

    /// Injects the fault, recovers from it, and counts it if it took place.
    pub(crate) fn happen(
        self,
        stage: &mut Stage,
        tools: &Tools,
        moments: &mut Moments,
        tally: &Arc<Tally>,
    ) -> Result<(), String> {
        let at = moments.below(stage.gateways.len() as u64) as usize;
        if let Self::Store(harm) = self {
            harm.happen(stage, at, moments)?;
            tally.add(&format!("store: {}", self.name()));
            return Ok(());
        }
        let recorder = Arc::clone(&stage.recorder);
        let gateway = &mut stage.gateways[at];
        let name = format!("gateway: {}", self.name());
        match self {
            Self::Store(_) => {}
            Self::Kill => gateway.kill(),
            Self::KillTwice => {
                gateway.kill();
                gateway.start_and_kill_after(moments.between(5, 120))?;
            }
            Self::Stop | Self::StopThreeLeases => {
                gateway.signal("STOP");
                let long = self == Self::StopThreeLeases;
                thread::sleep(if long { LEASE * 3 } else { moments.between(50, 1000) });
                gateway.resume();
                tally.add(&name);
                return Ok(());
            }
            Self::Drain => {
                gateway.signal("TERM");
                if gateway.wait(Duration::from_secs(10)).is_none() {
                    return Err("a drain of 2 s was not over after 10 s".to_owned());
                }
            }
            Self::Clock => {
                let shift = ["+11h", "-11h", "-30d", "+7m", "-3s", "+0"][moments.below(6) as usize];
                let clock = tools.clock.as_deref().ok_or("the clock is not under our hand")?;
                fs::write(clock, shift).map_err(|error| error.to_string())?;
                // The library reads the file once a second.
                thread::sleep(moments.between(1100, 2200));
                // Also across a restart, because ages depend on the clock then.
                if moments.percent(50) {
                    gateway.kill();
                    gateway.start(&[])?;
                }
                tally.add(&name);
                return Ok(());
            }
            Self::DiskFull => {
                let filler = tools.disk.as_deref().ok_or("there is no small disk")?.join("filler");
                fill(&filler);
                thread::sleep(moments.between(300, 1200));
                fs::remove_file(&filler).map_err(|error| error.to_string())?;
                gateway.kill();
            }
            Self::SyncFails | Self::WriteFails => {
                let letter = if self == Self::SyncFails { "s" } else { "w" };
                fs::write(&tools.faults, letter).map_err(|error| error.to_string())?;
                thread::sleep(moments.between(300, 1200));
                fs::write(&tools.faults, "").map_err(|error| error.to_string())?;
                gateway.kill();
            }
            Self::StopAt(point) => {
                for _ in 0..TRIES {
                    gateway.kill();
                    gateway.start(&[(fault::FAILPOINT, format!("{point}@{} stop", 1 + moments.below(30)))])?;
                    if gateway.is_stopped(REACHED_MAX) {
                        thread::sleep(if moments.percent(50) { LEASE * 3 } else { moments.between(50, 900) });
                        gateway.resume();
                        tally.add(&name);
                        thread::sleep(moments.between(100, 500));
                        break;
                    }
                }
                gateway.kill();
                return gateway.start(&[]);
            }
            Self::Abort(point) => {
                for _ in 0..TRIES {
                    if point == "sweep" {
                        leave_a_claim(gateway, &recorder);
                    }
                    gateway.kill();
                    gateway.start(&[(fault::FAILPOINT, order(point, moments))])?;
                    if gateway.wait(REACHED_MAX).is_some() {
                        tally.add(&name);
                        return gateway.start(&[]);
                    }
                }
                tally.add(&format!("not reached: {point}"));
                gateway.kill();
                return gateway.start(&[]);
            }
        }
        tally.add(&name);
        gateway.start(&[])
    }
}

/// Returns the failpoint with the pass at which the gateway aborts.
fn order(point: &str, moments: &mut Moments) -> String {
    match point {
        // The gateway writes when it starts; faults there are injected by others.
        "commit-before" | "commit-after" => format!("{point}@{}", 15 + moments.below(40)),
        "sweep" => format!("{point}@1"),
        // Before a table is rewritten, or during it.
        "compaction" if moments.percent(70) => format!("{point}@{}+{}", 1 + moments.below(3), moments.below(25)),
        "compaction" => format!("{point}@{}", 1 + moments.below(3)),
        _ => format!("{point}@{}", 1 + moments.below(30)),
    }
}

/// Leaves work for the next sweep: an execution whose holder is about to be killed.
fn leave_a_claim(gateway: &Gateway, recorder: &crate::history::Recorder) {
    if let Some(address) = *gateway.address().lock().expect("nobody panics while it is held") {
        let key = format!("left-{}", address.start);
        let call = Call { leaves: Some(Leaves::After(Duration::from_millis(60))), ..Call::new(&key) };
        call.steps("effect wait=700 answer=201").send(address, recorder);
    }
}

/// Fills a disk completely.
fn fill(path: &Path) {
    let Ok(mut file) = fs::File::create(path) else { return };
    let mut piece = vec![0; 1 << 20];
    while !piece.is_empty() {
        // Shrinks the piece until not even a byte fits.
        if file.write_all(&piece).is_err() {
            piece.truncate(piece.len() / 2);
        }
    }
}

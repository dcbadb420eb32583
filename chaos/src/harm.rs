//! What is done to a gateway or to its store, one harm after another, each followed by whatever heals it.

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

/// How long a point may take to be reached under this load.
const REACHED_MAX: Duration = Duration::from_secs(5);
/// A point that was not reached is tried again so often.
const TRIES: u32 = 3;

/// One harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Harm {
    Kill,
    /// Once more while it starts again.
    KillTwice,
    Stop,
    StopThreeLeases,
    /// At this point, for a while or for three leases.
    StopAt(&'static str),
    Drain,
    Clock,
    DiskFull,
    SyncFails,
    WriteFails,
    /// It ends itself there.
    Abort(&'static str),
    /// To the server of the store, or to the ways to it.
    Store(StoreHarm),
}

/// What lies at hand for harm.
#[derive(Debug)]
pub(crate) struct Tools {
    /// Says which of the journal's system calls fail.
    pub(crate) faults: PathBuf,
    /// Says what time it is, where the clock is under our hand.
    pub(crate) clock: Option<PathBuf>,
    /// A small disk that holds the store, where there is one.
    pub(crate) disk: Option<PathBuf>,
    /// The store is a folder of the gateway's own.
    pub(crate) is_embedded: bool,
    /// The store has a server of this run's own.
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

    /// All that the tools allow, once each, in the order of this seed.
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

    /// Does it, heals it, and counts it if it came to pass.
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
                // The library looks at the file once a second.
                thread::sleep(moments.between(1100, 2200));
                // Over a restart too, since ages are told by it then.
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

/// At which turn the gateway ends itself.
fn order(point: &str, moments: &mut Moments) -> String {
    match point {
        // It writes by itself when it starts; what is hurt there is the business of others.
        "commit-before" | "commit-after" => format!("{point}@{}", 15 + moments.below(40)),
        "sweep" => format!("{point}@1"),
        // Before a table is written anew, or in the middle of it.
        "compaction" if moments.percent(70) => format!("{point}@{}+{}", 1 + moments.below(3), moments.below(25)),
        "compaction" => format!("{point}@{}", 1 + moments.below(3)),
        _ => format!("{point}@{}", 1 + moments.below(30)),
    }
}

/// Sees to it that the next sweep has something to do: an execution whose holder is about to die.
fn leave_a_claim(gateway: &Gateway, recorder: &crate::history::Recorder) {
    if let Some(address) = *gateway.address().lock().expect("nobody panics while it is held") {
        let key = format!("left-{}", address.start);
        let call = Call { leaves: Some(Leaves::After(Duration::from_millis(60))), ..Call::new(&key) };
        call.steps("effect wait=700 answer=201").send(address, recorder);
    }
}

/// Fills a disk to its last byte.
fn fill(path: &Path) {
    let Ok(mut file) = fs::File::create(path) else { return };
    let mut piece = vec![0; 1 << 20];
    while !piece.is_empty() {
        // Smaller and smaller, until not even a byte fits.
        if file.write_all(&piece).is_err() {
            piece.truncate(piece.len() / 2);
        }
    }
}

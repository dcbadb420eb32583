//! Injects faults into the server of a shared store, and into the proxies before it.

use std::thread;
use std::time::{Duration, Instant};

use crate::client::Call;
use crate::history::What;
use crate::moments::Moments;
use crate::server::{Fault, FaultProxy};
use crate::stage::{LEASE, Stage};

/// Timeout of retries until a gateway serves again: longer than the checker allows, so that the
/// checker decides.
const RECOVERS_MAX: Duration = Duration::from_secs(13);

/// Fault of a shared store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreHarm {
    Pause,
    PauseThreeLeases,
    Kill,
    KillAndLater,
    EndConnections,
    Cut,
    AnswersLost,
    Slow,
    Hangs,
    OneIsAway,
    OneHearsNothing,
    OneIsNotHeard,
}

impl StoreHarm {
    pub(super) const ALL: [Self; 12] = [
        Self::Pause,
        Self::PauseThreeLeases,
        Self::Kill,
        Self::KillAndLater,
        Self::EndConnections,
        Self::Cut,
        Self::AnswersLost,
        Self::Slow,
        Self::Hangs,
        Self::OneIsAway,
        Self::OneHearsNothing,
        Self::OneIsNotHeard,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Pause => "stopped for up to a second (SIGSTOP)",
            Self::PauseThreeLeases => "stopped for three leases",
            Self::Kill => "killed (-9) and started again at once",
            Self::KillAndLater => "killed (-9) and started again after two leases",
            Self::EndConnections => "ends each connection",
            Self::Cut => "each connection cut",
            Self::AnswersLost => "the next answer to each gateway lost",
            Self::Slow => "slow, each way",
            Self::Hangs => "hangs: connections stand and carry nothing",
            Self::OneIsAway => "cut off from one gateway",
            Self::OneHearsNothing => "one gateway does not hear it",
            Self::OneIsNotHeard => "does not hear one gateway",
        }
    }

    /// Injects the fault, recovers from it, and waits until each gateway serves again, or the
    /// timeout expires.
    pub(super) fn happen(self, stage: &mut Stage, at: usize, moments: &mut Moments) -> Result<(), String> {
        let server = stage.server.as_mut().ok_or("the store has no server of ours")?;
        stage.recorder.saw(What::StoreHurt);
        let away = moments.between(200, 2500);
        match self {
            Self::Pause | Self::PauseThreeLeases => {
                server.pause();
                thread::sleep(if self == Self::Pause { moments.between(50, 1000) } else { LEASE * 3 });
                server.go_on();
            }
            Self::Kill | Self::KillAndLater => {
                server.kill();
                if self == Self::KillAndLater {
                    thread::sleep(LEASE * 2);
                }
                server.start_again();
            }
            Self::EndConnections => {
                for _ in 0..3 {
                    server.end_connections();
                    thread::sleep(moments.between(0, 200));
                }
            }
            Self::Cut => {
                for _ in 0..3 {
                    server.ways.iter().for_each(FaultProxy::cut);
                    thread::sleep(moments.between(0, 200));
                }
            }
            Self::AnswersLost => {
                for _ in 0..5 {
                    server.all(Fault::NextAnswerLost);
                    thread::sleep(moments.between(20, 150));
                }
            }
            Self::Slow => {
                server.all(Fault::Slow(moments.between(20, 250)));
                thread::sleep(away);
            }
            Self::Hangs => {
                server.all(Fault::Hanging);
                thread::sleep(away);
            }
            Self::OneIsAway | Self::OneHearsNothing | Self::OneIsNotHeard => {
                server.ways[at].set(match self {
                    Self::OneIsAway => Fault::Down,
                    Self::OneHearsNothing => Fault::AnswersStuck,
                    _ => Fault::AsksStuck,
                });
                thread::sleep(away);
            }
        }
        server.all(Fault::None);
        stage.recorder.saw(What::StoreHealed);
        until_served(stage);
        Ok(())
    }
}

/// Calls each gateway until it serves, so that the next fault does not hide a gateway that never
/// recovers.
fn until_served(stage: &Stage) {
    let until = Instant::now() + RECOVERS_MAX;
    for gateway in &stage.gateways {
        while Instant::now() < until {
            let Some(address) = *gateway.address().lock().expect("nobody panics while it is held") else { break };
            // The number of events only grows, so no key is used twice.
            let key = format!("after-a-heal-{}", stage.recorder.count());
            match Call::new(&key).send(address, &stage.recorder) {
                Some(answer) if answer.code != "store_unavailable" => break,
                _ => thread::sleep(Duration::from_millis(100)),
            }
        }
    }
}

//! Signal handling: some signals shut the process down, and no other one ends it.

use std::fmt;
use std::io::{self, IsTerminal};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// Signals whose default action ends a process, and that have no meaning here: SIGUSR1, SIGUSR2,
/// SIGALRM, SIGVTALRM, SIGPROF, SIGXCPU, SIGXFSZ and SIGIO, then on Linux SIGSTKFLT, SIGPWR and the
/// real-time signals.
#[cfg(target_os = "linux")]
const UNUSED: [i32; 10] = [10, 12, 14, 26, 27, 24, 25, 29, 16, 30];
#[cfg(not(target_os = "linux"))]
const UNUSED: [i32; 6] = [30, 31, 14, 26, 27, 24];
#[cfg(target_os = "linux")]
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// Signal that shut the process down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Terminate,
    Interrupt,
    Quit,
    HangUp,
}

impl Told {
    /// Returns `true` if a person waits at a terminal, so that no load balancer needs time to
    /// notice.
    pub(crate) const fn skips_delay(self) -> bool {
        matches!(self, Self::Interrupt)
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Terminate => "SIGTERM",
            Self::Interrupt => "SIGINT",
            Self::Quit => "SIGQUIT",
            Self::HangUp => "SIGHUP",
        })
    }
}

/// Signals that the process handles.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hang_up: Signal,
    unused: mpsc::Receiver<i32>,
    has_terminal: bool,
}

impl Signals {
    /// Installs the signal handlers.
    pub(crate) fn new() -> io::Result<Self> {
        let (sender, unused) = mpsc::channel(1);
        let numbers = UNUSED.into_iter();
        #[cfg(target_os = "linux")]
        let numbers = numbers.chain(REAL_TIME);
        for number in numbers {
            // A signal that this system does not have is never sent.
            let Ok(mut signal) = signal(SignalKind::from_raw(number)) else { continue };
            let sender = sender.clone();
            tokio::spawn(async move {
                while signal.recv().await.is_some() {
                    // Several at once are reported once.
                    let _ = sender.try_send(number);
                }
            });
        }
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hang_up: signal(SignalKind::hangup())?,
            unused,
            has_terminal: io::stdin().is_terminal(),
        })
    }

    /// Waits for a signal that shuts the process down.
    pub(crate) async fn stop(&mut self) -> Told {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return Told::Terminate,
                _ = self.interrupt.recv() => return Told::Interrupt,
                _ = self.quit.recv() => return Told::Quit,
                _ = self.hang_up.recv() => {
                    // The terminal is gone, and nobody can stop the process from it any more.
                    if self.has_terminal {
                        return Told::HangUp;
                    }
                    tracing::warn!("SIGHUP: settings are not reloaded; restart the process to apply them");
                }
                Some(number) = self.unused.recv() => {
                    tracing::info!("signal {number} means nothing here; SIGTERM, SIGINT and SIGQUIT stop the process");
                }
            }
        }
    }
}

//! TCP proxy that injects network faults.
//!
//! It uses only the standard library and threads of its own, so that tests of any kind can share
//! it.

#![allow(dead_code, reason = "shared by tests that need different parts of it")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

/// Fault of the connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Bytes pass.
    #[default]
    None,
    /// Connections are reset, open and new ones.
    Down,
    /// Connections are accepted, and nothing passes in either direction until the fault is removed.
    Hanging,
    /// Each chunk is delayed by this time.
    Slow(Duration),
    /// Requests pass; responses are held until the fault is removed.
    AnswersStuck,
    /// Requests are held until the fault is removed; responses pass.
    AsksStuck,
    /// The next response is dropped and its connection reset, after the server has executed the
    /// request. Then bytes pass again.
    NextAnswerLost,
}

/// Proxy on a free port; it ends when dropped.
#[derive(Debug)]
pub(crate) struct FaultProxy {
    shared: Arc<Shared>,
    /// Address that clients connect to.
    pub(crate) address: SocketAddr,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    target: SocketAddr,
    fault: Fault,
    open: Vec<TcpStream>,
    lost: usize,
    passed: usize,
    ended: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Asks,
    Answers,
}

impl FaultProxy {
    /// Starts a proxy in front of a server, which need not be running yet.
    pub(crate) fn before(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = State { target, fault: Fault::None, open: Vec::new(), lost: 0, passed: 0, ended: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.lock().ended {
                    return;
                }
                let shared = Arc::clone(&accepting);
                thread::spawn(move || shared.carry(client));
            }
        });
        Self { shared, address }
    }

    /// Injects a fault from now on.
    pub(crate) fn set(&self, fault: Fault) {
        let mut state = self.shared.lock();
        state.fault = fault;
        if fault == Fault::Down {
            state.open.drain(..).for_each(|stream| reset(&stream));
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Removes the fault.
    pub(crate) fn heal(&self) {
        self.set(Fault::None);
    }

    /// Resets each open connection, once.
    pub(crate) fn cut(&self) {
        self.shared.lock().open.drain(..).for_each(|stream| reset(&stream));
    }

    /// Forwards to another server from now on, and resets open connections.
    pub(crate) fn lead_to(&self, target: SocketAddr) {
        self.shared.lock().target = target;
        self.cut();
    }

    /// Returns the number of dropped responses: a test that dropped none has shown nothing.
    pub(crate) fn lost(&self) -> usize {
        self.shared.lock().lost
    }

    /// Returns the number of chunks sent to the server.
    pub(crate) fn passed(&self) -> usize {
        self.shared.lock().passed
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.set(Fault::Down);
        // Wakes the listener so that it ends.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn carry(self: Arc<Self>, client: TcpStream) {
        let target = {
            let state = self.lock();
            if state.fault == Fault::Down {
                return reset(&client);
            }
            state.target
        };
        let Ok(server) = TcpStream::connect(target) else { return reset(&client) };
        let pairs = [(&client, &server, Way::Asks), (&server, &client, Way::Answers)];
        {
            let mut state = self.lock();
            // Ended connections need no reset.
            state.open.retain(|stream| stream.peer_addr().is_ok());
            state.open.extend([&client, &server].into_iter().filter_map(|stream| stream.try_clone().ok()));
        }
        for (from, to, way) in pairs {
            let _ = from.set_nodelay(true);
            let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { return };
            let shared = Arc::clone(&self);
            thread::spawn(move || shared.pump(from, to, way));
        }
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream, way: Way) {
        let mut piece = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut piece) {
            if !self.may_pass(way) {
                reset(&from);
                reset(&to);
                return;
            }
            if to.write_all(&piece[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    }

    /// Returns true if a chunk may pass; waits while it is held.
    fn may_pass(&self, way: Way) -> bool {
        let mut state = self.lock();
        loop {
            let is_stuck = match state.fault {
                Fault::Down => return false,
                Fault::Hanging => true,
                Fault::AnswersStuck => way == Way::Answers,
                Fault::AsksStuck => way == Way::Asks,
                Fault::NextAnswerLost if way == Way::Answers => {
                    state.fault = Fault::None;
                    state.lost += 1;
                    return false;
                }
                Fault::Slow(by) => {
                    drop(state);
                    // waits: being slow is the fault
                    thread::sleep(by);
                    return true;
                }
                Fault::None | Fault::NextAnswerLost => false,
            };
            if !is_stuck {
                state.passed += usize::from(way == Way::Asks);
                return true;
            }
            state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }
}

/// Shuts down both directions.
fn reset(stream: &TcpStream) {
    let _ = stream.shutdown(Shutdown::Both);
}

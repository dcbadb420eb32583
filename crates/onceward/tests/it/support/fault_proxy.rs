//! A TCP proxy before a real server, which breaks the way between on a test's word.
//!
//! With the standard library alone and threads of its own, so that tests of any kind can share it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

/// What becomes of the bytes that come by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    /// They pass.
    #[default]
    None,
    /// There is nothing: connections are reset, those that are open and those that come.
    Down,
    /// Connections are accepted, and nothing passes either way until it heals.
    Hanging,
    /// Each piece that passes takes so much longer.
    Slow(Duration),
    /// What the client says arrives; of the answers nothing comes back, until it heals.
    AnswersStuck,
    /// What the client says does not arrive until it heals; what the server says does.
    AsksStuck,
    /// The next answer is lost, its connection reset: the server has done what it was asked. Then all is as before.
    NextAnswerLost,
}

/// A proxy on a free port; it ends when dropped.
#[derive(Debug)]
pub(crate) struct FaultProxy {
    shared: Arc<Shared>,
    /// Where clients connect to.
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
    /// Before a server, which need not be there yet.
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

    /// From now on this happens.
    pub(crate) fn set(&self, fault: Fault) {
        let mut state = self.shared.lock();
        state.fault = fault;
        if fault == Fault::Down {
            state.open.drain(..).for_each(|stream| reset(&stream));
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// All passes again.
    pub(crate) fn heal(&self) {
        self.set(Fault::None);
    }

    /// Cuts each open connection, once.
    pub(crate) fn cut(&self) {
        self.shared.lock().open.drain(..).for_each(|stream| reset(&stream));
    }

    /// Leads elsewhere from now on, those who are connected too, once they connect again.
    pub(crate) fn lead_to(&self, target: SocketAddr) {
        self.shared.lock().target = target;
        self.cut();
    }

    /// How many answers were lost: a test that lost none has not seen what it is about.
    pub(crate) fn lost(&self) -> usize {
        self.shared.lock().lost
    }

    /// How many pieces went to the server.
    pub(crate) fn passed(&self) -> usize {
        self.shared.lock().passed
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.set(Fault::Down);
        // Wakes the listener, so that it sees that it is over.
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
            // What is over is no longer cut.
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

    /// Whether a piece goes on; waits as long as it is held up.
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

/// Closes both ways without a farewell.
fn reset(stream: &TcpStream) {
    let _ = stream.shutdown(Shutdown::Both);
}

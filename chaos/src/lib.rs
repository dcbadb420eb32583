//! Chaos tests: injects faults (kill, stop, drain, full disk, wrong clock) into real gateways,
//! while clients call and disconnect and the upstream misbehaves. All events are recorded, and an
//! independent checker verifies the log.
//!
//! ```text
//! history    what was seen, and in which order            check    the checker: pure, one pass, per key
//! upstream   executes, syncs, then does what it is told   client   calls, and logs before and after
//! gateway    a process of its own, started again          stage    one upstream, its gateways, one history
//! server     the server of a store that gateways share, and the ways to it
//! load       who calls what                               harm     what is done to gateways and stores, and what heals it
//! run        round after round; tally, report, cli        moments  random numbers of a seed
//! ```

pub mod check;
mod cli;
pub mod client;
pub mod gateway;
mod harm;
pub mod history;
mod http;
mod load;
mod moments;
mod report;
pub mod run;
pub mod server;
pub mod stage;
mod tally;
pub mod upstream;

pub use cli::main;

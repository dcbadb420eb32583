//! The protocol within small bounds, exhaustively; and broken variants of it, which must be caught.

use std::time::Instant;

use model::invariants::*;
use model::{Action, Bounds, Protocol, State, Variant};
use onceward::policy::Guarantee::{AtLeastOnce, AtMostOnce};
use stateright::{Checker, HasDiscoveries, Model, Path};

mod broken;
mod holds;
mod pictures;

/// Explores a protocol: all of it, or until `enough` is found. Says on standard output what it took.
fn explore(name: &str, protocol: &Protocol, enough: HasDiscoveries) -> impl Checker<Protocol> {
    let started = Instant::now();
    let checker = protocol.clone().checker().finish_when(enough).spawn_bfs().join();
    println!(
        "{name}: {} states, {} steps, at most {} deep, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        started.elapsed().as_secs_f64()
    );
    checker
}

/// A path as a person reads it: a step a line, then where it ends.
fn trace(path: &Path<State, Action>) -> String {
    let steps: String = path.clone().into_actions().iter().map(|action| format!("  {action:?}\n")).collect();
    format!("{steps}{:#?}", path.last_state())
}

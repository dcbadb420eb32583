//! Engine over a simulated network: several gateways, a store and a service, each a separate
//! process.
//!
//! They share nothing but messages, which are lost, held, repeated and late. Time is simulated, so
//! that an hour of it takes seconds.
//! A seed determines the whole run, so that its findings can be reproduced.

mod check;
mod network;
mod world;

use check::Seen;
use world::{Plant, World};

/// Returns the seeds: a tenth unless all repetitions are requested.
fn seeds() -> std::ops::Range<u64> {
    0..if std::env::var_os("ONCEWARD_LONG").is_some() { 400 } else { 40 }
}

#[test]
fn simulated_network_faults_keep_one_execution_and_one_response_per_key() {
    let mut seen = Seen::default();
    for seed in seeds() {
        let world = World::run(seed, Plant::Nothing);
        let violations = world.violations();
        assert!(violations.is_empty(), "seed {seed}:\n{}", violations.join("\n"));
        seen += world.seen();
    }
    println!("{seen:?}");
    // Events that did not occur were not tested.
    let least = seeds().end as usize / 4;
    let Seen { executed, stored, replayed, declined, not_stored, unknown, mismatched, in_flight, unavailable, .. } =
        seen;
    for (what, count) in [
        ("executed", executed),
        ("stored", stored),
        ("replayed", replayed),
        ("declined", declined),
        ("not stored", not_stored),
        ("unknown", unknown),
        ("mismatched", mismatched),
        ("in flight", in_flight),
        ("refused by the store", unavailable),
        ("hung up", seen.hung_up),
        ("crashed", seen.crashed),
        ("repeated by the driver", seen.repeated),
        ("arrived after its caller gave up", seen.late),
    ] {
        assert!(count >= least, "only {count} {what}: {seen:?}");
    }
}

#[test]
fn same_seed_repeats_the_same_run() {
    for seed in [1, 2] {
        let [first, second] = [World::run(seed, Plant::Nothing), World::run(seed, Plant::Nothing)];
        assert_eq!(first.told(), second.told(), "seed {seed}");
    }
}

/// Checks that the checker detects a planted bug of a store or a driver.
#[track_caller]
fn is_found(plant: Plant, as_what: &str) {
    for seed in 0..60 {
        let violations = World::run(seed, plant).violations();
        if violations.iter().any(|violation| violation.contains(as_what)) {
            return;
        }
    }
    panic!("no seed finds {plant:?}");
}

#[test]
fn store_that_expires_claims_is_detected() {
    is_found(Plant::ClaimsExpire, "executed 2 times");
}

#[test]
fn store_that_replaces_blindly_is_detected() {
    is_found(Plant::ReplacesBlindly, "executed 2 times");
}

#[test]
fn store_that_responds_before_writing_is_detected() {
    is_found(Plant::LosesCompletions, "was shown as kept");
}

#[test]
fn store_that_mixes_up_keys_is_detected() {
    is_found(Plant::MixesUpKeys, "another key");
}

#[test]
fn store_with_stopped_clock_is_detected() {
    is_found(Plant::ClockStands, "in flight");
}

//! The engine over a simulated network: several gateways, a store and a service, each a process of its own that shares
//! nothing with the others but messages, which are lost, held, repeated and late. Time is simulated, so that an hour of it
//! takes seconds; a seed decides all that happens, so that what it finds can be looked at again.

mod check;
mod network;
mod world;

use check::Seen;
use world::{Plant, World};

/// How many seeds: a tenth unless repetitions are asked for in full.
fn seeds() -> std::ops::Range<u64> {
    0..if std::env::var_os("ONCEWARD_LONG").is_some() { 400 } else { 40 }
}

#[test]
fn whatever_the_network_does_each_key_executes_once_and_has_one_answer() {
    let mut seen = Seen::default();
    for seed in seeds() {
        let world = World::run(seed, Plant::Nothing);
        let violations = world.violations();
        assert!(violations.is_empty(), "seed {seed}:\n{}", violations.join("\n"));
        seen += world.seen();
    }
    println!("{seen:?}");
    // What was not seen was not shown.
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
fn a_seed_decides_all_that_happens() {
    for seed in [1, 2] {
        let [first, second] = [World::run(seed, Plant::Nothing), World::run(seed, Plant::Nothing)];
        assert_eq!(first.told(), second.told(), "seed {seed}");
    }
}

/// Each of these is what a store or a driver might do wrong, and the checker finds it.
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
fn a_store_that_lets_claims_expire_is_found() {
    is_found(Plant::ClaimsExpire, "executed 2 times");
}

#[test]
fn a_store_that_replaces_whatever_is_there_is_found() {
    is_found(Plant::ReplacesBlindly, "executed 2 times");
}

#[test]
fn a_store_that_answers_before_it_writes_is_found() {
    is_found(Plant::LosesCompletions, "was shown as kept");
}

#[test]
fn a_store_that_mixes_up_keys_is_found() {
    is_found(Plant::MixesUpKeys, "another key");
}

#[test]
fn a_store_whose_clock_stands_still_is_found() {
    is_found(Plant::ClockStands, "in flight");
}

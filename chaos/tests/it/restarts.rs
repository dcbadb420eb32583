//! The server of a shared store dies and comes back, between two gateways.

use std::path::Path;
use std::time::Duration;

use chaos::check::{Seen, check};
use chaos::client::{Call, Leaves};
use chaos::server::Kind;
use chaos::stage::{LEASE, Stage, rules};

/// While the server was away nobody could give a sign of life: an age that counts that time would call a holder lost that is
/// well, and on an `at-least-once` route its request would execute beside it.
#[test]
fn a_holder_that_lives_is_not_lost_by_a_restart_of_the_store() {
    for kind in [Kind::Postgres, Kind::Redis] {
        for again in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let mut stage = Stage::shared(Path::new(env!("CARGO_BIN_EXE_chaos")), folder.path(), kind, None).unwrap();
            let mut call = Call::new("k").steps("effect wait=5500 answer=201");
            call.of.again = again;
            stage.call(&Call { leaves: Some(Leaves::After(Duration::from_millis(200))), ..call.clone() });
            stage.crash_the_store(LEASE * 2);
            let mut seen = Vec::new();
            let last = loop {
                match stage.call_to(1, &call) {
                    Some(answer) if matches!(answer.outcome.as_str(), "in-flight" | "rejected") => seen.push(answer),
                    last => break last,
                }
                // waits: the other gateway's execution is under way
                std::thread::sleep(Duration::from_millis(50));
            };
            assert!(seen.iter().any(|answer| answer.code == "in_flight"), "{kind:?}: it was never asked while it ran");
            assert_eq!(last.map(|answer| answer.outcome).as_deref(), Some("replayed"), "{kind:?}, again: {again}");
            let verdict = check(&stage.recorder.events(), &rules(Seen::default()));
            assert_eq!((verdict.breaches.len(), verdict.seen.executed), (0, 1), "{kind:?}: {:?}", verdict.breaches);
        }
    }
}

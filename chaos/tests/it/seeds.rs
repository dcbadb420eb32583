//! Seeds that once found something, and the smallest stories of them.

use std::path::Path;

use chaos::check::{Seen, check};
use chaos::client::Call;
use chaos::stage::{Stage, rules};

/// The end of an attempt that could not be written down is called `not-stored`, whatever its problem says: seed 1 found a
/// checker that knew no such answer.
#[test]
fn a_loss_that_cannot_be_written_down_is_not_stored() {
    let folder = tempfile::tempdir().unwrap();
    let library = chaos::run::build_shim(folder.path()).unwrap();
    let faults = folder.path().join("says");
    std::fs::write(&faults, "").unwrap();
    let stage_folder = tempfile::tempdir().unwrap();
    let mut stage = Stage::small(Path::new(env!("CARGO_BIN_EXE_chaos")), stage_folder.path(), None).unwrap();
    stage.gateways[0].kill();
    let variables = [("LD_PRELOAD", library.display().to_string()), ("FAULTS", faults.display().to_string())];
    stage.gateways[0].start(&variables).unwrap();
    let answer = std::thread::scope(|scope| {
        let stage = &stage;
        let call = scope.spawn(|| stage.call(&Call::new("k").steps("effect wait=500 reset")));
        while !stage.recorder.events().iter().any(|event| matches!(event.what, chaos::history::What::Executed { .. })) {
            std::thread::yield_now();
        }
        std::fs::write(&faults, "s").unwrap();
        call.join().unwrap()
    });
    let answer = answer.expect("the gateway lives");
    assert_eq!((answer.outcome.as_str(), answer.code.as_str()), ("not-stored", "upstream_lost"));
    let verdict = check(&stage.recorder.events(), &rules(Seen::default()));
    assert!(verdict.breaches.is_empty(), "{:#?}", verdict.breaches);
}

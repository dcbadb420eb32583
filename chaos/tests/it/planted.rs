//! Bugs that are planted in the gateway, each a line of the product under a feature: the checker finds each of them in a
//! history in which it finds nothing where the bug is not.

use std::path::Path;
use std::time::Duration;

use chaos::check::{Rule, Seen, check};
use chaos::client::{Call, Leaves};
use chaos::history::What;
use chaos::server::Kind;
use chaos::stage::{LEASE, Stage, rules};

/// How often a story is played: in some, who comes first at the moment of the bug is not for the story to say.
const PLAYS_MAX: usize = 4;

/// Plays the same with and without the bug.
#[track_caller]
fn finds(bug: &str, rule: Rule, play: fn(&mut Stage)) {
    finds_on(Stage::small, bug, rule, play);
}

/// The same over each store that gateways share.
#[track_caller]
fn finds_over_a_shared_store(bug: &str, rule: Rule, play: fn(&mut Stage)) {
    for kind in [Kind::Postgres, Kind::Redis] {
        finds_on(|program, folder, bug| Stage::shared(program, folder, kind, bug), bug, rule, play);
    }
}

#[track_caller]
fn finds_on(
    set: impl Fn(&Path, &Path, Option<&str>) -> Result<Stage, String>,
    bug: &str,
    rule: Rule,
    play: fn(&mut Stage),
) {
    let found = |bug: Option<&str>| {
        let folder = tempfile::tempdir().unwrap();
        let mut stage = set(Path::new(env!("CARGO_BIN_EXE_chaos")), folder.path(), bug).unwrap();
        play(&mut stage);
        let events = stage.recorder.events();
        let verdict = check(&events, &rules(Seen { calls: 2, ..Seen::default() }));
        let log = format!("{events:#?}\n{}", stage.gateways[0].log());
        (verdict, log)
    };
    let (sound, log) = found(None);
    assert!(sound.breaches.is_empty(), "without the bug: {:#?}\n{log}", sound.breaches);
    for play in 1..=PLAYS_MAX {
        let (verdict, log) = found(Some(bug));
        if verdict.breaks(rule) {
            return;
        }
        assert!(play < PLAYS_MAX, "{bug} breaks {rule:?}, and it found {:#?}\n{log}", verdict.breaches);
    }
}

/// Kills the gateway and starts it again.
fn restart(stage: &mut Stage) {
    stage.gateways[0].kill();
    stage.gateways[0].start(&[]).unwrap();
}

/// A call whose client has left before its answer, so that what follows meets it while it runs.
fn leaving(key: &str, steps: &str) -> Call {
    Call { leaves: Some(Leaves::After(Duration::from_millis(150))), ..Call::new(key) }.steps(steps)
}

fn again(call: Call) -> Call {
    let mut call = call;
    call.of.again = true;
    call
}

fn until_settled(stage: &Stage, call: &Call) {
    for _ in 0..100 {
        match stage.call(call) {
            Some(answer) if answer.outcome == "in-flight" => wait(Duration::from_millis(100)),
            _ => return,
        }
    }
}

fn until_served(stage: &Stage, gateway: usize, call: &Call) {
    for _ in 0..100 {
        match stage.call_to(gateway, call) {
            Some(answer) if answer.code != "store_unavailable" => return,
            _ => wait(Duration::from_millis(100)),
        }
    }
}

fn wait(time: Duration) {
    // waits: the story needs the time itself to pass: a lease, or another's work
    std::thread::sleep(time);
}

#[test]
fn a_second_execution_beside_the_first() {
    finds("second-execution", Rule::Once, |stage| {
        stage.call(&leaving("k", "effect wait=900 answer=201"));
        stage.call(&Call::new("k"));
    });
}

#[test]
fn a_second_execution_at_another_gateway() {
    finds_over_a_shared_store("second-execution", Rule::Once, |stage| {
        stage.call(&leaving("k", "effect wait=900 answer=201"));
        stage.call_to(1, &Call::new("k"));
    });
}

#[test]
fn a_completion_that_a_crash_of_the_store_loses() {
    finds_over_a_shared_store("lost-completion", Rule::Kept, |stage| {
        stage.call(&Call::new("k"));
        stage.crash_the_store(Duration::ZERO);
        for gateway in [1, 0] {
            until_served(stage, gateway, &Call::new("k"));
        }
    });
}

#[test]
fn the_answer_of_another_principal() {
    finds("foreign-answer", Rule::Own, |stage| {
        stage.call(&Call::new("k"));
        let mut bobs = Call::new("k");
        bobs.of.principal = "bob".to_owned();
        stage.call(&bobs);
    });
}

#[test]
fn the_answer_of_another_key() {
    finds("key-cut", Rule::Own, |stage| {
        stage.call(&Call::new("longer-than-eight-1"));
        stage.call(&Call::new("longer-than-eight-2"));
    });
}

#[test]
fn a_completion_that_is_lost() {
    finds("lost-completion", Rule::Kept, |stage| {
        stage.call(&Call::new("k"));
        restart(stage);
        stage.call(&Call::new("k"));
    });
}

#[test]
fn an_answer_called_stored_that_was_not() {
    finds("unkept-called-stored", Rule::Kept, |stage| {
        let (library, faults) = failing_disk();
        let variables = [("LD_PRELOAD", library), ("FAULTS", faults.clone())];
        stage.gateways[0].kill();
        stage.gateways[0].start(&variables).unwrap();
        std::thread::scope(|scope| {
            let stage = &*stage;
            scope.spawn(|| stage.call(&Call::new("k").steps("effect wait=400 answer=201")));
            wait(Duration::from_millis(200));
            std::fs::write(&faults, "s").unwrap();
        });
        std::fs::write(&faults, "").unwrap();
        restart(stage);
        stage.call(&Call::new("k"));
    });
}

#[test]
fn a_release_that_does_not_compare_the_attempt() {
    // The key that was freed executes again, and another answer is kept.
    finds("release-uncompared", Rule::Same, |stage| overtake(stage, "answer=429"));
}

#[test]
fn a_completion_that_does_not_compare_the_attempt() {
    finds("completion-uncompared", Rule::Same, |stage| overtake(stage, "effect answer=201"));
}

/// The first holders are stopped until their lease is over, and others, which run again, complete; then the first end as
/// `end` says, and all are asked for once more.
fn overtake(stage: &mut Stage, end: &str) {
    // More than one: what waits in the listener's queue comes before the holder's renewal or after it, as it happens.
    let keys = ["k1", "k2", "k3", "k4"];
    std::thread::scope(|scope| {
        for key in keys {
            let call = again(leaving(key, &format!("wait=4000 {end}")));
            let stage = &*stage;
            scope.spawn(move || stage.call(&call));
        }
    });
    stage.gateways[0].signal("STOP");
    wait(LEASE * 2);
    std::thread::scope(|scope| {
        let stage = &*stage;
        for key in keys.iter().cycle().take(12) {
            scope.spawn(|| stage.call(&again(Call::new(key))));
        }
        wait(Duration::from_millis(200));
        stage.gateways[0].resume();
    });
    let runs_are_over = |stage: &Stage| {
        let events = stage.recorder.events();
        let count = |is: fn(&What) -> bool| events.iter().filter(|event| is(&event.what)).count();
        count(|what| matches!(what, What::Arrived { .. })) == count(|what| matches!(what, What::Left { .. }))
    };
    while !runs_are_over(stage) {
        wait(Duration::from_millis(50));
    }
    // What the gateway makes of the last answer.
    wait(Duration::from_millis(300));
    for key in keys {
        until_settled(stage, &again(Call::new(key)));
    }
}

#[test]
fn a_claim_with_a_time_to_live() {
    finds("claim-ttl", Rule::Once, |stage| {
        stage.call(&leaving("k", "effect wait=900 answer=201"));
        restart(stage);
        stage.call(&Call::new("k"));
    });
}

#[test]
fn a_sweep_that_forgets_the_lost() {
    finds("sweep-forgets", Rule::Once, |stage| {
        stage.call(&leaving("k", "effect wait=900 answer=201"));
        restart(stage);
        wait(Duration::from_millis(2500));
        stage.call(&Call::new("k"));
    });
}

#[test]
fn a_mismatch_that_passes() {
    finds("mismatch-passes", Rule::Mismatch, |stage| {
        stage.call(&Call::new("k"));
        stage.call(&Call { body: "{\"item\":\"rum\"}".to_owned(), ..Call::new("k") });
    });
}

#[test]
fn a_partial_answer_that_is_kept() {
    finds("partial-kept", Rule::Same, |stage| {
        stage.call(&Call::new("k").steps("effect cut"));
        stage.call(&Call::new("k"));
    });
}

#[test]
fn an_unknown_that_is_released() {
    finds("unknown-released", Rule::Once, |stage| {
        stage.call(&Call::new("k").steps("effect cut"));
        stage.call(&Call::new("k"));
    });
}

#[test]
fn a_lost_request_that_is_called_unsent() {
    finds("lost-called-unsent", Rule::Honest, |stage| {
        stage.call(&Call::new("k").steps("effect reset"));
        stage.call(&Call::new("k"));
    });
}

#[test]
fn a_drain_that_forgets_what_runs() {
    finds("drain-forgets", Rule::Once, |stage| {
        stage.call(&leaving("k", "effect wait=5000 answer=201"));
        stage.gateways[0].signal("TERM");
        assert!(stage.gateways[0].wait(Duration::from_secs(15)).is_some(), "it does not end");
        stage.gateways[0].start(&[]).unwrap();
        stage.call(&Call::new("k"));
    });
}

#[test]
fn a_key_that_is_in_flight_for_ever() {
    finds("in-flight-for-ever", Rule::Stuck, |stage| {
        stage.call(&leaving("k", "effect wait=300 answer=201"));
        restart(stage);
        wait(LEASE + Duration::from_secs(6));
        stage.call(&Call::new("k"));
    });
}

#[test]
fn a_replay_that_is_altered() {
    finds("replay-altered", Rule::Same, |stage| {
        stage.call(&Call::new("k"));
        stage.call(&Call::new("k"));
    });
}

/// What makes a journal's system calls fail, and the file that says which.
fn failing_disk() -> (String, String) {
    let folder = tempfile::tempdir().unwrap().keep();
    let library = chaos::run::build_shim(&folder).unwrap();
    let faults = folder.join("faults");
    std::fs::write(&faults, "").unwrap();
    (library.display().to_string(), faults.display().to_string())
}

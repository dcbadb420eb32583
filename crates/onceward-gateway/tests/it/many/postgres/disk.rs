//! The one disk of the server is full: its tables first, then its log, without which it is no more.

use std::time::{Duration, Instant};

use super::Pair;
use crate::client::{assert_answer, assert_problem, assert_replay, order, outcome, poll};
use crate::machine::Machine;
use crate::postgres::Postgres;
use crate::support::Gateway;
use crate::upstream::Upstream;

/// New keys until one is refused without being executed; returns how many there were, and that one.
fn until_refused(upstream: &Upstream, gateway: &Gateway, name: &str) -> (usize, String) {
    let mut taken = 0;
    poll("a key that is refused", || {
        let key = format!("{name}-{taken}");
        let answer = order(&key).send(gateway);
        // It still found a place, in what was begun before.
        if answer.status == 201 {
            assert_eq!(upstream.count(&key), 1);
            taken += 1;
            return None;
        }
        assert_problem(&answer, "store_unavailable", &key);
        assert_eq!(upstream.count(&key), 0, "it was executed without a claim");
        Some((taken, key))
    })
}

#[test]
fn a_server_whose_disk_is_full_executes_nothing_twice_and_goes_on_once_there_is_room() {
    let machine = Machine::start(384);
    let mut server = Postgres::start_in(machine.disk(), 15, "");
    let url = server.database();
    let pair = Pair::by([&url, &url], "[limits]\ncache = \"0B\"\n[policy]\nlease = \"15s\"");
    let Pair { upstream, one, other } = &pair;
    let known = order("known").send(one);
    assert_answer(&known, 201, "stored");
    let running = order("running").step("hold running").spawn(one);
    upstream.held("running");

    machine.fill();
    let (in_tables, no_page) = until_refused(upstream, one, "no-page");
    assert_replay(&order("known").send(other), &known);
    assert_problem(&order("known").body("other").send(other), "key_reused", "known");
    // The next word needs a file of the log that is not there yet.
    server.end_of_its_log();
    let (in_log, no_log) = until_refused(upstream, one, "no-log");
    assert_eq!(in_log, 0, "it was not over with its log");
    poll("a server that is no more", || (!server.is_there()).then_some(()));
    upstream.release("running");
    let first = running.answer();
    assert_answer(&first, 201, "not-stored");
    assert_problem(&order("known").send(other), "store_unavailable", "known");

    machine.make_room();
    // As whatever looks after it would.
    server.start_again();
    let since = Instant::now();
    for gateway in pair.each() {
        poll("a green light", || (gateway.page("/readyz", "").0 == 200).then_some(()));
    }
    poll("the answer of what ran", || {
        let answer = order("running").send(other);
        (outcome(&answer) == "replayed").then(|| assert_replay(&answer, &first))
    });
    assert!(since.elapsed() < Duration::from_secs(10), "it recovered late: {:?}", since.elapsed());
    assert_replay(&order("known").send(other), &known);
    for key in [&no_page, &no_log] {
        assert_answer(&order(key).send(other), 201, "stored");
    }
    let taken = (0..in_tables).map(|n| format!("no-page-{n}"));
    for key in taken.clone() {
        poll("an answer that was taken while it filled", || {
            (outcome(&order(&key).send(other)) == "replayed").then_some(())
        });
    }
    for key in taken.chain(["known".into(), "running".into(), no_page, no_log]) {
        assert_eq!(upstream.count(&key), 1, "{key}");
    }
}

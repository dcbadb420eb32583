//! The store has no room left: what is new is refused, what is known is told, and what runs is told honestly.

use std::time::{Duration, Instant};

use super::{Pair, Server};
use crate::client::{assert_answer, assert_problem, assert_replay, order, outcome, poll};

over_each_server!(a_store_that_is_full_takes_no_new_key_and_forgets_none);

const KEY: &str = "full-key-0123456789";

fn a_store_that_is_full_takes_no_new_key_and_forgets_none<S: Server>() {
    let (server, url) = S::small();
    let pair = Pair::by([&url, &url], "[policy]\nlease = \"15s\"");
    let Pair { upstream, one, other } = &pair;
    let known = order(KEY).send(one);
    assert_answer(&known, 201, "stored");
    let ask = order("running-when-full").step("hold running");
    let running = ask.spawn(one);
    upstream.held("running");
    server.fill();
    let mut taken = 0;
    let refused = poll("a key that is refused", || {
        taken += 1;
        let key = format!("new-when-full-{taken}");
        let answer = order(&key).send(one);
        match outcome(&answer) {
            // It still found a place, in what was begun before.
            "stored" | "not-stored" => assert_eq!(upstream.count(&key), 1),
            _ => {
                assert_problem(&answer, "store_unavailable", &key);
                assert_eq!(upstream.count(&key), 0, "it was executed without a claim");
                return Some(key);
            }
        }
        None
    });
    assert_replay(&order(KEY).send(other), &known);
    assert_problem(&order(KEY).body("other").send(other), "key_reused", KEY);
    upstream.release("running");
    let first = running.answer();
    assert!(["stored", "not-stored"].contains(&outcome(&first)), "{first:?}");
    assert_answer(&first, 201, outcome(&first));

    server.make_room();
    let since = Instant::now();
    for (n, gateway) in pair.each().into_iter().enumerate() {
        poll("a green light", || (gateway.page("/readyz", "").0 == 200).then_some(()));
        let key = format!("new-after-that-{n}");
        poll("a new key", || (outcome(&order(&key).send(gateway)) == "stored").then_some(()));
    }
    poll("the answer of what ran", || {
        let answer = ask.send(other);
        (outcome(&answer) == "replayed").then(|| assert_replay(&answer, &first))
    });
    assert!(since.elapsed() < Duration::from_secs(10), "it recovered late: {:?}", since.elapsed());
    assert_answer(&order(&refused).send(other), 201, "stored");
    assert_replay(&order(KEY).send(one), &known);
    for key in [KEY, "running-when-full", &refused] {
        assert_eq!(upstream.count(key), 1, "{key}");
    }
    for n in 1..taken {
        let key = format!("new-when-full-{n}");
        poll("an answer that was taken while it filled", || {
            (outcome(&order(&key).send(one)) == "replayed").then_some(())
        });
        assert_eq!(upstream.count(&key), 1, "{key}");
    }
}

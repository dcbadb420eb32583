//! Many wait for one key: nobody else notices, and the store hardly.

use std::time::{Duration, Instant};

use super::{Pair, Server};
use crate::client::{assert_answer, assert_replay, order, outcome, poll};
use crate::support::Gateway;

over_each_server!(a_thousand_who_wait_for_one_key_slow_no_other_key, whoever_looks_for_all_who_wait_may_go_away);

const KEY: &str = "waited-key-0123456789";
const WAITERS: usize = 1000;

fn a_thousand_who_wait_for_one_key_slow_no_other_key<S: Server>() {
    let server = S::counting();
    let url = server.empty();
    let pair = Pair::by([&url, &url], "[limits]\nwaiters_per_key = 1000\nwait_max = \"120s\"");
    let mut running = order(KEY).step("hold running").begin(&pair.one);
    pair.upstream.held("running");
    // Not counted: what is done once, for the first ones.
    median_order(&pair, "warm");
    let without = median_order(&pair, "without");
    let idle = done_a_second(&server);

    let claims = claims(&pair);
    let ask = order(KEY).line("Prefer: wait=120");
    let mut waiting: Vec<_> = (0..WAITERS).map(|n| ask.begin(pair.each()[n % 2])).collect();
    poll("all who wait", || (self::claims(&pair) == claims + WAITERS).then_some(()));
    let busy = done_a_second(&server);
    let with = median_order(&pair, "with");

    pair.upstream.release("running");
    let first = running.answer(false);
    assert_answer(&first, 201, "stored");
    let since = Instant::now();
    for client in &mut waiting {
        assert_replay(&client.answer(false), &first);
    }
    let last = since.elapsed();
    assert_eq!(pair.upstream.count(KEY), 1);
    let without = without.max(median_order(&pair, "afterwards"));
    println!(
        "{}: an order takes {without:?} without {WAITERS} who wait, {with:?} with them; the store does {idle} a second \
         without, {busy} with them; the last one has the answer after {last:?}",
        std::any::type_name::<S>()
    );
    assert!(with < without * 3, "others are slowed down: {with:?} instead of {without:?}");
    // One of each gateway's looks for all of them, 4 to 20 times a second, and a look is up to 3 commands.
    assert!(busy < idle + 200, "the store does {busy} a second instead of {idle}");
}

fn whoever_looks_for_all_who_wait_may_go_away<S: Server>() {
    let pair = Pair::over::<S>("");
    let running = order(KEY).step("hold running").spawn(&pair.one);
    pair.upstream.held("running");
    let claims = claims(&pair);
    let mut waiting: Vec<_> = (1..=4)
        .map(|n| {
            let waiting = order(KEY).line("Prefer: wait=20").begin(&pair.other);
            poll("its claim", || (self::claims(&pair) == claims + n).then_some(()));
            waiting
        })
        .collect();
    // In the order in which they came, so that whoever has the turn is among them.
    let last = waiting.pop().unwrap();
    drop(waiting);
    pair.upstream.release("running");
    let (first, mut last) = (running.answer(), last);
    let since = Instant::now();
    assert_replay(&last.answer(false), &first);
    assert!(since.elapsed() < Duration::from_secs(5), "it was told late");
    assert_eq!(pair.upstream.count(KEY), 1);
}

/// What an order takes, of a new key, at one gateway and the other in turn.
fn median_order(pair: &Pair, name: &str) -> Duration {
    let mut took: Vec<_> = (0..100)
        .map(|n| {
            let ask = order(&format!("{name}-{n}"));
            let since = Instant::now();
            let answer = ask.send(pair.each()[n % 2]);
            let took = since.elapsed();
            assert_eq!(outcome(&answer), "stored");
            took
        })
        .collect();
    took.sort_unstable();
    took[took.len() / 2]
}

/// What the server does a second while nobody orders.
fn done_a_second<S: Server>(server: &S) -> u64 {
    let (since, before) = (Instant::now(), server.done());
    // waits: what is done in a while is what is measured
    std::thread::sleep(Duration::from_secs(3));
    let done = server.done() - before;
    (done as f64 / since.elapsed().as_secs_f64()) as u64
}

/// How many claims both gateways have asked for.
fn claims(pair: &Pair) -> usize {
    let of = |gateway: &Gateway| -> usize {
        let metrics = gateway.page("/metrics", "").1;
        let lines =
            metrics.lines().filter(|line| line.starts_with("onceward_store_seconds_count") && line.contains("insert"));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
    };
    pair.each().into_iter().map(of).sum()
}

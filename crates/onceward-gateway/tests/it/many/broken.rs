//! The way to the store breaks, or the store does: one gateway has it behind a proxy that breaks on a test's word, the other
//! has it at hand, and sees what became of the first one's keys.

use std::time::{Duration, Instant};

use super::{Pair, Server};
use crate::client::{Ask, assert_answer, assert_problem, assert_replay, order, outcome, poll};
use crate::fault_proxy::{Fault, FaultProxy};
use crate::support::{Answer, Gateway};

over_each_server!(
    a_claim_that_meets_a_fault_is_executed_once_after_it,
    an_answer_that_meets_a_fault_is_kept_after_it,
    a_gateway_that_is_cut_off_for_longer_than_its_lease_overrules_nobody,
    without_its_store_it_takes_nothing_and_afterwards_goes_on,
);

const KEY: &str = "broken-key-0123456789";
/// The promise: this long after all is well again, a gateway has found that out by itself.
const RECOVERY: Duration = Duration::from_secs(10);
/// The store's limit is short, so that a fault is noticed soon; the lease is long, so that it outlasts each fault.
const LIMITS: &str = "[limits]\nstore_timeout = \"1500ms\"\n[policy]\nlease = \"15s\"";

/// What a request may be told.
type Told = &'static [&'static str];

/// Each fault, what a request may be told whose claim meets it, and one whose answer does.
const FAULTS: [(&str, Fault, Told, Told); 7] = [
    ("down", Fault::Down, &["rejected"], &["not-stored"]),
    ("hanging", Fault::Hanging, &["rejected"], &["not-stored"]),
    ("slow", Fault::Slow(Duration::from_millis(20)), &["stored"], &["stored"]),
    ("too-slow", Fault::Slow(Duration::from_millis(1600)), &["rejected"], &["not-stored"]),
    // Partitioned one way: what is asked is done, and nobody hears of it.
    ("answers-stuck", Fault::AnswersStuck, &["rejected"], &["not-stored"]),
    // The other way: what is asked arrives when nobody waits for it any more.
    ("asks-stuck", Fault::AsksStuck, &["rejected"], &["not-stored"]),
    // Asked again, it finds its own claim, or its own answer. Whatever else was asked may have had that fault instead.
    ("answer-lost", Fault::NextAnswerLost, &["stored"], &["stored"]),
];

fn a_claim_that_meets_a_fault_is_executed_once_after_it<S: Server>() {
    let (pair, proxy) = behind_a_proxy::<S>(LIMITS);
    for (fault, what, told, _) in FAULTS {
        let key = format!("claim-{fault}");
        proxy.set(what);
        let first = order(&key).send(&pair.one);
        assert!(told.contains(&outcome(&first)), "{fault}: {first:?}");
        if outcome(&first) == "rejected" {
            assert_problem(&first, "store_unavailable", &key);
            assert_eq!(pair.upstream.count(&key), 0, "{fault}: it was executed without a claim");
        }
        let kept = recovered(&proxy, &pair.one, &order(&key));
        assert_ne!(outcome(&kept), if outcome(&first) == "stored" { "stored" } else { "replayed" }, "{fault}");
        assert_replay(&order(&key).send(&pair.other), &kept);
        assert_eq!(pair.upstream.count(&key), 1, "{fault}");
    }
    assert_eq!(proxy.lost(), 1);
}

fn an_answer_that_meets_a_fault_is_kept_after_it<S: Server>() {
    let (pair, proxy) = behind_a_proxy::<S>(LIMITS);
    for (fault, what, _, told) in FAULTS {
        let key = format!("answer-{fault}");
        let first = order(&key).step(format!("hold {fault}")).spawn(&pair.one);
        pair.upstream.held(fault);
        proxy.set(what);
        pair.upstream.release(fault);
        let first = first.answer();
        // Whatever became of it, its client has it, whole.
        assert!(told.contains(&outcome(&first)), "{fault}: {first:?}");
        assert_answer(&first, 201, outcome(&first));
        let meanwhile = order(&key).send(&pair.other);
        match outcome(&meanwhile) {
            "replayed" => assert_replay(&meanwhile, &first),
            _ => {
                assert_problem(&meanwhile, "in_flight", &key);
                assert_eq!(outcome(&first), "not-stored", "{fault}: it was said to be stored");
            }
        }
        assert_replay(&recovered(&proxy, &pair.other, &order(&key)), &first);
        assert_replay(&recovered(&proxy, &pair.one, &order(&key)), &first);
        assert_eq!(pair.upstream.count(&key), 1, "{fault}");
    }
    assert_eq!(proxy.lost(), 1);
}

fn a_gateway_that_is_cut_off_for_longer_than_its_lease_overrules_nobody<S: Server>() {
    const LEASE: Duration = Duration::from_secs(1);
    let settings = "[limits]\nstore_timeout = \"1500ms\"\n[policy]\nlease = \"1s\"\n\
                    [[route]]\npath = \"/again\"\nguarantee = \"at-least-once\"";
    let (pair, proxy) = behind_a_proxy::<S>(settings);
    for (fault, what, ..) in FAULTS.into_iter().filter(|(fault, ..)| ["down", "hanging", "asks-stuck"].contains(fault))
    {
        let [once, again] = ["/orders", "/again"].map(|path| format!("{}-{fault}", &path[1..])).map(|key| key);
        let held = |ask: Ask| ask.step(format!("hold {fault}")).spawn(&pair.one);
        let [ask_once, ask_again] = [order(&once), order(&again).to("POST /again")];
        let (first_once, first_again) = (held(ask_once.clone()), held(ask_again.clone()));
        poll("both at the upstream", || (pair.upstream.count(&once) + pair.upstream.count(&again) == 2).then_some(()));
        let since = Instant::now();
        proxy.set(what);
        assert_problem(&ask_once.send_until_settled(&pair.other), "outcome_unknown", &once);
        assert!(since.elapsed() < LEASE + Duration::from_secs(5), "{fault}: it left in flight late");
        let winner = ask_again.send_until_settled(&pair.other);
        assert_answer(&winner, 201, "stored");
        // It is well again before it hears how what it holds ended.
        recovered(&proxy, &pair.one, &order(&format!("well-{fault}")));
        pair.upstream.release(fault);
        let late = first_once.answer();
        assert_answer(&late, 201, "stored");
        assert_replay(&first_again.answer(), &winner);
        for gateway in pair.each() {
            assert_replay(&ask_once.send(gateway), &late);
            assert_replay(&ask_again.send(gateway), &winner);
        }
        assert_eq!((pair.upstream.count(&once), pair.upstream.count(&again)), (1, 2), "{fault}");
    }
}

fn without_its_store_it_takes_nothing_and_afterwards_goes_on<S: Server>() {
    let mut server = S::own();
    let url = server.empty();
    let pair = Pair::by([&url, &url], LIMITS);
    let Pair { upstream, one, other } = &pair;
    let first = order(KEY).send(one);
    assert_answer(&first, 201, "stored");
    let held = order("running-key").step("hold running").spawn(one);
    upstream.held("running");
    server.crash();
    assert_problem(&order("no-store-key").send(one), "store_unavailable", "no-store-key");
    poll("a red light", || (one.page("/readyz", "").0 == 503).then_some(()));
    // What was begun ends, and says that it is not confirmed as stored.
    upstream.release("running");
    assert_answer(&held.answer(), 201, "not-stored");
    server.back();
    let healed = Instant::now();
    for gateway in pair.each() {
        poll("a green light", || (gateway.page("/readyz", "").0 == 200).then_some(()));
    }
    poll("the answer that was kept late", || (outcome(&order("running-key").send(other)) == "replayed").then_some(()));
    assert!(healed.elapsed() < RECOVERY, "it recovered late: {:?}", healed.elapsed());
    assert_replay(&order(KEY).send(other), &first);
    assert_answer(&order("no-store-key").send(other), 201, "stored");
    for key in [KEY, "running-key", "no-store-key"] {
        assert_eq!(upstream.count(key), 1, "{key}");
    }
}

/// Two gateways, the first of which reaches the store by the proxy alone.
fn behind_a_proxy<S: Server>(settings: &str) -> (Pair, FaultProxy) {
    let server = S::common();
    let proxy = FaultProxy::before(server.place());
    let url = server.empty();
    let broken = url.replace(&server.place().to_string(), &proxy.address.to_string());
    (Pair::by([&broken, &url], settings), proxy)
}

/// Heals the way, and waits until a gateway is well and a request has its order; it may take as long as is promised.
fn recovered(proxy: &FaultProxy, gateway: &Gateway, ask: &Ask) -> Answer {
    proxy.heal();
    let healed = Instant::now();
    poll("a green light", || (gateway.page("/readyz", "").0 == 200).then_some(()));
    let answer = poll("an order", || {
        let answer = ask.send(gateway);
        // As long as nobody was sent anything, nothing is unknown.
        assert!(["stored", "replayed", "in-flight", "rejected"].contains(&outcome(&answer)), "{answer:?}");
        (answer.status == 201).then_some(answer)
    });
    assert!(healed.elapsed() < RECOVERY, "it recovered late: {:?}", healed.elapsed());
    answer
}

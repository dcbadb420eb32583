//! A master is lost, or cut off from its replica, and the replica takes over: what it had not received is forgotten.

use std::time::{Duration, Instant};

use super::super::pair::audited;
use super::Pair;
use crate::client::{assert_answer, assert_problem, assert_replay, order, outcome, poll};
use crate::fault_proxy::{Fault, FaultProxy};
use crate::redis::Redis;
use crate::support::Gateway;

/// How long a master takes writes that no replica confirms, where it is told to.
const LAG: Duration = Duration::from_secs(2);

/// What the servers keep on their disks: each write, each second's, now and then all of it, nothing.
const PERSISTENCE: [&str; 4] =
    ["--appendfsync always", "--appendfsync everysec", "--appendonly no --save '3600 1'", "--appendonly no"];

/// A master, a replica that hears it by a way of its own, and two gateways with a way to the master each.
struct Group {
    master: Redis,
    replica: Redis,
    replication: FaultProxy,
    ways: [FaultProxy; 2],
    pair: Pair,
}

impl Group {
    fn start(settings: &str, of_master: &str) -> Self {
        let master = Redis::start(&format!("{settings} {of_master}"));
        let replication = FaultProxy::before(master.address);
        let replica = Redis::start(&format!("{settings} --replicaof 127.0.0.1 {}", replication.address.port()));
        poll("a replica that follows", || {
            replica.cli(0, &["INFO", "replication"]).contains("master_link_status:up").then_some(())
        });
        // The master knows of it with its first word, which it may be told to wait for.
        poll("a master that is heard", || {
            master.cli(0, &["INFO", "replication"]).contains("state=online").then_some(())
        });
        let ways = [(); 2].map(|()| FaultProxy::before(master.address));
        let urls = [0, 1].map(|n: usize| format!("redis://{}/?accept=no-persistence", ways[n].address));
        let pair = Pair::by([&urls[0], &urls[1]], "[policy]\nlease = \"15s\"");
        Self { master, replica, replication, ways, pair }
    }

    /// Cuts the replica off, once it has all that was written so far.
    fn cut_off(&self) {
        self.master.await_replicas(1);
        self.replication.set(Fault::Hanging);
    }

    fn promote(&self) {
        self.replica.cli(0, &["REPLICAOF", "NO", "ONE"]);
    }

    fn both_lead_to_the_replica(&self) {
        (0..self.ways.len()).for_each(|way| self.leads_to_the_replica(way));
    }

    /// A gateway finds the replica in the master's place.
    fn leads_to_the_replica(&self, way: usize) {
        self.ways[way].lead_to(self.replica.address);
        let gateway = self.pair.each()[way];
        poll("a green light", || (gateway.page("/readyz", "").0 == 200).then_some(()));
    }
}

fn executed(group: &Group, key: &str, gateway: &Gateway) {
    assert_answer(&order(key).send(gateway), 201, "stored");
    assert!(group.pair.upstream.count(key) > 0);
}

#[test]
fn a_failover_forgets_what_the_replica_had_not_received_and_that_executes_again() {
    PERSISTENCE.into_iter().for_each(forgets_at_a_failover);
}

fn forgets_at_a_failover(settings: &str) {
    let mut group = Group::start(settings, "");
    let status = group.pair.one.page("/status", "").1;
    assert!(status.contains("A failover forgets confirmed claims and responses that the replica had not"), "{status}");
    let received = order("received").send(&group.pair.one);
    group.cut_off();
    executed(&group, "not-received", &group.pair.one);
    let held = order("running").step("hold running").spawn(&group.pair.one);
    group.pair.upstream.held("running");

    group.master.kill();
    group.promote();
    group.both_lead_to_the_replica();
    let Pair { upstream, one, other } = &group.pair;
    assert_replay(&order("received").send(other), &received);
    // To the gateway and the store it is a new key.
    executed(&group, "not-received", other);
    // What runs is forgotten too, and claimed anew by a sign of life of whoever executes it.
    one.logged("claimed_anew");
    assert_problem(&order("running").send(other), "in_flight", "running");
    upstream.release("running");
    let kept = held.answer();
    assert_answer(&kept, 201, "stored");
    assert_replay(&order("running").send(other), &kept);
    let keys = ["received", "not-received", "running"];
    assert_eq!(keys.map(|key| upstream.count(key)), [1, 2, 1]);
    assert!(!audited(one), "nothing was executed beside another that was known");
}

#[test]
fn a_master_that_is_cut_off_confirms_what_is_lost_when_it_comes_back() {
    PERSISTENCE.into_iter().for_each(confirms_on_both_sides);
}

fn confirms_on_both_sides(settings: &str) {
    let group = Group::start(settings, "");
    group.cut_off();
    group.promote();
    group.leads_to_the_replica(1);
    let Pair { upstream, one, other } = &group.pair;
    // Each side takes it.
    executed(&group, "on-both-sides", one);
    executed(&group, "on-both-sides", other);
    executed(&group, "on-one-side", one);
    // It comes back, and becomes a replica of the one that took over.
    group.master.cli(0, &["REPLICAOF", "127.0.0.1", &group.replica.address.port().to_string()]);
    poll("a replica that follows", || {
        group.master.cli(0, &["INFO", "replication"]).contains("master_link_status:up").then_some(())
    });
    group.leads_to_the_replica(0);
    executed(&group, "on-one-side", other);
    for key in ["on-both-sides", "on-one-side"] {
        assert_eq!(upstream.count(key), 2, "{key}");
        assert_answer(&order(key).send(other), 201, "replayed");
    }
}

#[test]
fn a_master_that_must_be_heard_takes_no_claim_once_it_is_cut_off() {
    PERSISTENCE.into_iter().for_each(takes_none_once_it_is_cut_off);
}

fn takes_none_once_it_is_cut_off(settings: &str) {
    let lag = LAG.as_secs();
    let group = Group::start(settings, &format!("--min-replicas-to-write 1 --min-replicas-max-lag {lag}"));
    let Pair { upstream, one, other } = &group.pair;
    let known = order("known").send(one);
    assert_answer(&known, 201, "stored");
    let running = order("running").step("hold running").spawn(one);
    upstream.held("running");
    group.cut_off();
    let since = Instant::now();
    let mut taken = Vec::new();
    let refused = poll("a key that is refused", || {
        let key = format!("cut-off-{}", taken.len());
        let answer = order(&key).send(one);
        // The last may have been claimed just before, and ended after.
        if let outcome @ ("stored" | "not-stored") = outcome(&answer) {
            taken.push((key, outcome == "stored"));
            return None;
        }
        assert_problem(&answer, "store_unavailable", &key);
        assert_eq!(upstream.count(&key), 0, "it was executed without a claim");
        Some(key)
    });
    let took = since.elapsed();
    // What is known is told: a look it allows.
    assert_replay(&order("known").send(other), &known);
    assert!(took < LAG * 5, "it went on taking claims for {took:?}");
    println!("{} keys in {took:?}", taken.len());
    // What runs ends, and is kept once there is a master that may write.
    upstream.release("running");
    let first = running.answer();
    assert_answer(&first, 201, "not-stored");

    group.promote();
    group.both_lead_to_the_replica();
    assert_replay(&order("known").send(other), &known);
    poll("the answer of what ran", || {
        let answer = order("running").send(other);
        (outcome(&answer) == "replayed").then(|| assert_replay(&answer, &first))
    });
    executed(&group, &refused, other);
    for key in ["known", "running", &refused] {
        assert_eq!(upstream.count(key), 1, "{key}");
    }
    // What was confirmed meanwhile is lost all the same: there is an end of it, and no more. What was not is kept now.
    for (key, was_confirmed) in &taken {
        if *was_confirmed {
            executed(&group, key, other);
        } else {
            one.logged("late_completion");
            assert_answer(&order(key).send(other), 201, "replayed");
        }
        assert_eq!(upstream.count(key), if *was_confirmed { 2 } else { 1 }, "{key}");
    }
}

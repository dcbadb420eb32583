//! Many gateways on one Redis: what one promises the others keep.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::client::{assert_answer, assert_problem, assert_replay, order, outcome, poll};
use crate::redis_server::Redis;
use crate::support::Gateway;
use crate::upstream::Upstream;

const KEY: &str = "many-key-0123456789";
const LEASE: Duration = Duration::from_secs(1);
const LEASE_SETTING: &str = "[policy]\nlease = \"1s\"";

/// Two gateways before one service, on one store.
struct Pair {
    upstream: Upstream,
    redis: Redis,
    one: Gateway,
    other: Gateway,
}

impl Pair {
    fn start(settings: &str) -> Self {
        let (upstream, redis) = (Upstream::start(), Redis::start(""));
        let settings = upstream.settings(&redis.url(0), settings);
        let start = || Gateway::with(&settings, &[]);
        Self { one: start(), other: start(), upstream, redis }
    }

    fn each(&self) -> [&Gateway; 2] {
        [&self.one, &self.other]
    }
}

#[test]
fn a_hundred_equal_requests_over_two_gateways_execute_once() {
    let pair = Pair::start("");
    let ask = order(KEY).line("Prefer: wait=20");
    let sent: Vec<_> = (0..100).map(|n| ask.spawn(pair.each()[n % 2])).collect();
    let mut stored = 0;
    for answer in sent.into_iter().map(|sent| sent.answer()) {
        stored += usize::from(outcome(&answer) == "stored");
        assert!(["stored", "replayed", "in-flight"].contains(&outcome(&answer)), "{answer:?}");
    }
    assert_eq!((stored, pair.upstream.count(KEY)), (1, 1));
}

#[test]
fn what_one_gateway_keeps_the_other_replays_and_refuses_as_it_would() {
    let pair = Pair::start("[limits]\nresponse_body = \"1KiB\"");
    let [one, other] = pair.each();
    let first = order(KEY).step("header Set-Cookie: a=b").step("header X-Twice: 1").send(one);
    assert_answer(&first, 201, "stored");
    assert_replay(&order(KEY).send(other), &first);
    assert_problem(&order(KEY).body("other").send(other), "key_reused", KEY);
    assert_answer(&order("freed-key").step("status 429").send(one), 429, "released");
    assert_answer(&order("freed-key").send(other), 201, "stored");
    assert_problem(&order("lost-key-0").step("reset").send(one), "upstream_lost", "lost-key-0");
    assert_problem(&order("lost-key-0").send(other), "outcome_unknown", "lost-key-0");
    assert_answer(&order("large-key").step("body 2000").send(one), 201, "not-stored");
    assert_problem(&order("large-key").send(other), "answer_not_kept", "large-key");
    for (key, count) in [(KEY, 1), ("freed-key", 2), ("lost-key-0", 1), ("large-key", 1)] {
        assert_eq!(pair.upstream.count(key), count, "{key}");
    }
    poll("both gauges", || {
        let counts = |gateway: &Gateway| gateway.page("/metrics", "").1.contains("onceward_keys_unknown 1\n");
        pair.each().into_iter().all(counts).then_some(())
    });
}

#[test]
fn a_request_that_runs_at_one_gateway_is_waited_for_at_the_other() {
    let pair = Pair::start(LEASE_SETTING);
    let ask = order(KEY).step("hold here");
    let first = ask.spawn(&pair.one);
    pair.upstream.held("here");
    assert_problem(&ask.send(&pair.other), "in_flight", KEY);
    assert_problem(&order(KEY).body("other").send(&pair.other), "key_reused", KEY);
    let waiting = ask.clone().line("Prefer: wait=20").spawn(&pair.other);
    pair.upstream.release("here");
    let first = first.answer();
    assert_answer(&first, 201, "stored");
    assert_replay(&waiting.answer(), &first);
    assert_eq!(pair.upstream.count(KEY), 1);
}

#[test]
fn a_gateway_that_dies_leaves_its_keys_to_the_others_within_lease_and_five_seconds() {
    for (guarantee, count) in [("at-most-once", 1), ("at-least-once", 2)] {
        let pair = Pair::start(&format!("{LEASE_SETTING}\nguarantee = \"{guarantee}\""));
        let ask = order(KEY).step("hold there");
        let first = ask.spawn(&pair.one);
        pair.upstream.held("there");
        pair.one.signal("KILL");
        let died = Instant::now();
        assert_eq!(first.try_answer(), None);
        if guarantee == "at-most-once" {
            // Nobody asks for it: the sweep of the other finds it.
            poll("the gauge", || pair.other.page("/metrics", "").1.contains("onceward_keys_unknown 1\n").then_some(()));
            assert!(died.elapsed() < LEASE + Duration::from_secs(5), "it left in flight late: {:?}", died.elapsed());
            assert_problem(&order(KEY).send(&pair.other), "outcome_unknown", KEY);
        } else {
            let answer = order(KEY).send_until_settled(&pair.other);
            assert!(["stored", "replayed"].contains(&outcome(&answer)), "{answer:?}");
        }
        assert_eq!(pair.upstream.count(KEY), count, "{guarantee}");
    }
}

#[test]
fn a_gateway_that_was_stopped_for_three_leases_cannot_overrule_who_overtook_it() {
    for guarantee in ["at-most-once", "at-least-once"] {
        let pair = Pair::start(&format!("{LEASE_SETTING}\nguarantee = \"{guarantee}\""));
        let ask = order(KEY).step("hold stopped");
        let first = ask.spawn(&pair.one);
        pair.upstream.held("stopped");
        pair.one.signal("STOP");
        // waits: three leases have to pass, and nothing happens in them
        std::thread::sleep(LEASE * 3);
        let meanwhile = order(KEY).send_until_settled(&pair.other);
        if guarantee == "at-most-once" {
            assert_problem(&meanwhile, "outcome_unknown", KEY);
        } else {
            assert_answer(&meanwhile, 201, "stored");
        }
        pair.upstream.release("stopped");
        pair.one.signal("CONT");
        let late = first.answer();
        if guarantee == "at-most-once" {
            // Nobody overtook it: its late word settles the key, and all get its answer.
            assert_answer(&late, 201, "stored");
            pair.each().into_iter().for_each(|gateway| assert_replay(&order(KEY).send(gateway), &late));
            assert_eq!(pair.upstream.count(KEY), 1);
        } else {
            // It was overtaken: its client gets the winner's answer, and so does everybody.
            assert_replay(&late, &meanwhile);
            pair.each().into_iter().for_each(|gateway| assert_replay(&order(KEY).send(gateway), &meanwhile));
            assert_eq!(pair.upstream.count(KEY), 2);
            poll("the audit", || {
                let metrics = pair.one.page("/metrics", "").1;
                metrics
                    .lines()
                    .any(|line| line.starts_with("onceward_second_executions_total") && line.ends_with(" 1"))
                    .then_some(())
            });
        }
    }
}

#[test]
fn a_store_that_was_restarted_empty_takes_the_answers_of_what_was_running() {
    let Pair { upstream, mut redis, one, other } = Pair::start(LEASE_SETTING);
    let ask = order(KEY).step("hold long");
    let first = ask.spawn(&one);
    upstream.held("long");
    redis.kill();
    redis.start_again(false);
    upstream.release("long");
    let first = first.answer();
    assert_eq!(first.status, 201, "{first:?}");
    poll("the late answer", || {
        let answer = order(KEY).send(&other);
        (outcome(&answer) == "replayed").then(|| assert_replay(&answer, &first))
    });
    assert_eq!(upstream.count(KEY), 1);
}

#[test]
fn without_its_store_it_takes_nothing_and_afterwards_goes_on() {
    let Pair { upstream, mut redis, one, other } = Pair::start("[limits]\nstore_timeout = \"500ms\"");
    let first = order(KEY).send(&one);
    assert_answer(&first, 201, "stored");
    let held = order("running-key").step("hold running").spawn(&one);
    upstream.held("running");
    redis.kill();
    assert_problem(&order("no-store-key").send(&one), "store_unavailable", "no-store-key");
    poll("a red light", || (one.page("/readyz", "").0 == 503).then_some(()));
    // What was begun ends, and says that it is not confirmed as stored.
    upstream.release("running");
    assert_answer(&held.answer(), 201, "not-stored");
    redis.start_again(true);
    let healed = Instant::now();
    poll("a green light", || (one.page("/readyz", "").0 == 200).then_some(()));
    assert!(healed.elapsed() < Duration::from_secs(10), "it recovered late: {:?}", healed.elapsed());
    assert_replay(&order(KEY).send(&other), &first);
    poll("the answer that was kept late", || (outcome(&order("running-key").send(&other)) == "replayed").then_some(()));
    assert_answer(&order("no-store-key").send(&other), 201, "stored");
    for key in [KEY, "running-key", "no-store-key"] {
        assert_eq!(upstream.count(key), 1, "{key}");
    }
}

#[test]
fn the_status_says_what_this_redis_may_forget_and_no_password() {
    let (upstream, redis) = (Upstream::start(), Redis::start(""));
    redis.cli(0, &["CONFIG", "SET", "requirepass", "geheim-0815"]);
    let url = format!("redis://:geheim-0815@{}/?accept=no-persistence", redis.address);
    let gateway = Gateway::with(&upstream.settings(&url, ""), &[]);
    let status = gateway.page("/status", "").1;
    assert!(status.contains("appendfsync everysec") && status.contains("no replica"), "{status}");
    assert!(!status.contains("geheim") && !gateway.log().contains("geheim"), "the password is told");
    assert!(status.contains("accept=no-persistence"), "{status}");
    let policy = gateway.send("GET /.idempotency/policy HTTP/1.1\r\nHost: a\r\n\r\n");
    let policy = String::from_utf8(policy.body).unwrap();
    assert!(policy.contains("259200") || policy.contains("72h"), "tombstones are kept for 72 h: {policy}");
}

/// A HAProxy before gateways, by their own word on whether they are ready.
struct Balancer {
    process: std::process::Child,
    _folder: tempfile::TempDir,
    address: SocketAddr,
    stats: SocketAddr,
}

impl Balancer {
    fn before(gateways: &[[SocketAddr; 2]]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (address, stats) = (crate::redis_server::free_port(), crate::redis_server::free_port());
        let mut text = format!(
            "defaults\n mode http\n timeout connect 1s\n timeout client 30s\n timeout server 30s\n timeout check 1s\n\
             frontend clients\n bind {address}\n default_backend gateways\n\
             frontend stats\n bind {stats}\n stats enable\n stats uri /\n\
             backend gateways\n balance roundrobin\n option httpchk GET /readyz\n"
        );
        for (n, [listen, admin]) in gateways.iter().enumerate() {
            text += &format!(
                " server g{n} {listen} check addr 127.0.0.1 port {} inter 100ms fall 1 rise 1\n",
                admin.port()
            );
        }
        let file = folder.path().join("haproxy.cfg");
        std::fs::write(&file, text).unwrap();
        let script = format!("haproxy -q -db -f {} & P=$!; cat >/dev/null; kill -KILL $P; wait $P", file.display());
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &script]).env("PATH", "/usr/sbin:/usr/bin:/bin").stdin(std::process::Stdio::piped());
        let process = shell.stderr(std::process::Stdio::null()).spawn().unwrap();
        let balancer = Self { process, _folder: folder, address, stats };
        for n in 0..gateways.len() {
            balancer.await_server(n, "UP");
        }
        balancer
    }

    /// Waits until it knows how a gateway is.
    fn await_server(&self, n: usize, state: &str) {
        poll("a state of a server behind HAProxy", || {
            let page = crate::client::try_send(self.stats, b"GET /;csv HTTP/1.1\r\nHost: a\r\n\r\n")?;
            let page = String::from_utf8(page.body).ok()?;
            page.lines().find(|line| line.starts_with(&format!("gateways,g{n},")))?.contains(state).then_some(())
        });
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

#[test]
fn a_rolling_restart_under_load_loses_nothing_and_executes_nothing_twice() {
    let rounds = if std::env::var_os("ONCEWARD_LONG").is_some() { 10 } else { 1 };
    let (upstream, redis) = (Upstream::start(), Redis::start(""));
    let settings = upstream.settings(&redis.url(0), "drain = \"10s\"\n[policy]\nlease = \"2s\"\n");
    let places = [(); 3].map(|()| [(); 2].map(|()| crate::redis_server::free_port()));
    let mut gateways = places.map(|[listen, admin]| Gateway::at_places(&settings, listen, admin));
    let balancer = Balancer::before(&places);
    let over = std::sync::atomic::AtomicBool::new(false);
    let (restarts, keys) = std::thread::scope(|scope| {
        let (address, over) = (balancer.address, &over);
        let load: Vec<_> = (0..4)
            .map(|client| {
                scope.spawn(move || {
                    let mut sent = 0;
                    while !over.load(std::sync::atomic::Ordering::SeqCst) {
                        let ask = order(&format!("rolling-{client}-{sent}"));
                        sent += 1;
                        let accepted = poll("an accepted order", || {
                            let answer = crate::client::try_send(address, &ask.bytes())?;
                            assert_ne!(outcome(&answer), "unknown", "a restart made a key unknown: {answer:?}");
                            (answer.status == 201).then_some(answer)
                        });
                        assert!(["stored", "replayed"].contains(&outcome(&accepted)), "{accepted:?}");
                    }
                    sent
                })
            })
            .collect();
        let mut restarts = 0;
        for _ in 0..rounds {
            for (n, [listen, admin]) in places.into_iter().enumerate() {
                let before = upstream.executions().len();
                gateways[n].signal("TERM");
                assert!(gateways[n].ended().success());
                gateways[n] = Gateway::at_places(&settings, listen, admin);
                balancer.await_server(n, "UP");
                poll("some load", || (upstream.executions().len() > before + 10).then_some(()));
                restarts += 1;
            }
        }
        over.store(true, std::sync::atomic::Ordering::SeqCst);
        let counts: Vec<usize> = load.into_iter().map(|client| client.join().unwrap()).collect();
        let each = counts.iter().enumerate().flat_map(|(client, sent)| (0..*sent).map(move |n| (client, n)));
        (restarts, each.map(|(client, n)| format!("rolling-{client}-{n}")).collect::<Vec<_>>())
    });
    let executions = upstream.executions();
    println!("{restarts} restarts, {} orders accepted, {} executed", keys.len(), executions.len());
    assert!(keys.len() > 30, "there was no load");
    assert_eq!(executions.len(), keys.len(), "something was executed twice, or an accepted order was lost");
    keys.iter().take(50).for_each(|key| assert_eq!(upstream.count(key), 1, "{key}"));
}

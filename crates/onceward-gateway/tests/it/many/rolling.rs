//! Gateways are restarted one after another behind a balancer, and clients notice nothing.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Server;
use super::balancer::Balancer;
use crate::client::{order, outcome, poll, try_send};
use crate::support::Gateway;
use crate::upstream::Upstream;

over_each_server!(a_rolling_restart_under_load_loses_nothing_and_executes_nothing_twice);

fn a_rolling_restart_under_load_loses_nothing_and_executes_nothing_twice<S: Server>() {
    let rounds = if std::env::var_os("ONCEWARD_LONG").is_some() { 10 } else { 1 };
    let upstream = Upstream::start();
    let settings = upstream.settings(&super::empty::<S>(), "drain = \"10s\"\n[policy]\nlease = \"2s\"\n");
    let places = [(); 3].map(|()| [(); 2].map(|()| crate::redis::free_port()));
    let mut gateways = places.map(|[listen, admin]| Gateway::at_places(&settings, listen, admin));
    let balancer = Balancer::before(&places);
    let over = AtomicBool::new(false);
    let (mut restarts, mut accepted) = (0, BTreeSet::new());
    std::thread::scope(|scope| {
        let (address, over) = (balancer.address, &over);
        let load: Vec<_> = (0..4).map(|client| scope.spawn(move || orders_until(over, address, client))).collect();
        let at_last = OverWhenDropped(over);
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
        drop(at_last);
        accepted.extend(load.into_iter().flat_map(|client| client.join().unwrap()));
    });
    let executions = upstream.executions();
    let server = std::any::type_name::<S>().rsplit("::").next().unwrap();
    println!("{server}: {restarts} restarts, {} orders accepted, {} executed", accepted.len(), executions.len());
    assert!(accepted.len() > 30, "there was no load");
    let executed: BTreeSet<_> =
        executions.iter().map(|execution| execution.header("idempotency-key").concat()).collect();
    assert_eq!(executed.len(), executions.len(), "something was executed twice");
    assert_eq!(executed, accepted, "an accepted order was lost");
}

/// Orders one thing after another, each until it is accepted, and returns their keys.
fn orders_until(over: &AtomicBool, address: SocketAddr, client: usize) -> Vec<String> {
    let mut keys = Vec::new();
    while !over.load(Ordering::SeqCst) {
        let key = format!("rolling-{client}-{}", keys.len());
        let ask = order(&key).bytes();
        let accepted = poll("an accepted order", || {
            let answer = try_send(address, &ask)?;
            assert_ne!(outcome(&answer), "unknown", "a restart made a key unknown: {answer:?}");
            (answer.status == 201).then_some(answer)
        });
        assert!(["stored", "replayed"].contains(&outcome(&accepted)), "{accepted:?}");
        keys.push(key);
    }
    keys
}

/// Ends the load also where the test fails.
struct OverWhenDropped<'a>(&'a AtomicBool);

impl Drop for OverWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

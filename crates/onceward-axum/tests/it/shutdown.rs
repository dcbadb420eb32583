//! The end of a process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use crate::support::{begin, builder, listen, post as order, read, soon, until};

struct Service {
    address: std::net::SocketAddr,
    once: onceward_axum::IdempotencyLayer,
    begun: Arc<AtomicUsize>,
    done: Arc<AtomicUsize>,
    go_on: Arc<Notify>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<std::io::Result<()>>,
}

impl Service {
    async fn start(drain: Duration) -> Self {
        let (begun, done, go_on) =
            (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default(), Arc::<Notify>::default());
        let (entered, ended, released) = (Arc::clone(&begun), Arc::clone(&done), Arc::clone(&go_on));
        let place = post(async move || {
            entered.fetch_add(1, Ordering::SeqCst);
            released.notified().await;
            ended.fetch_add(1, Ordering::SeqCst);
            "placed"
        });
        let once = builder().build();
        let (listener, address) = listen().await;
        let (stop, stopped) = oneshot::channel::<()>();
        // As it is, without a router around it.
        let app = tower::Layer::layer(&once, Router::new().route("/orders", place));
        let server = onceward_axum::serve(listener, app, &once).drain_timeout(drain).with_graceful_shutdown(async {
            // An error is the signal too.
            let _ = stopped.await;
        });
        let served = tokio::spawn(server.into_future());
        Self { address, once, begun, done, go_on, stop, served }
    }
}

#[tokio::test]
async fn graceful_shutdown_finishes_what_runs_with_a_client_and_without() {
    let service = Service::start(Duration::from_secs(30)).await;
    let stays = begin(service.address, &order("/orders", "stays", &[], "tea")).await;
    let leaves = begin(service.address, &order("/orders", "leaves", &[], "tea")).await;
    until("both handlers", || service.begun.load(Ordering::SeqCst) == 2).await;
    drop(leaves);
    drop(service.stop);
    until("the drain", || service.once.engine().is_draining()).await;
    assert!(!service.served.is_finished());
    service.go_on.notify_waiters();
    assert_eq!(soon("a response", read(stays)).await.told(), (200, "stored", "placed"));
    soon("the end", service.served).await.expect("no panic").expect("no error");
    assert_eq!(service.done.load(Ordering::SeqCst), 2);
    let census = service.once.engine().stats().await.expect("the store answers");
    assert_eq!((census.completed, census.unknown, census.in_flight), (2, 0, 0));
}

#[tokio::test]
async fn graceful_shutdown_ends_at_its_timeout_and_what_still_runs_is_unknown() {
    let service = Service::start(Duration::from_millis(10)).await;
    let stays = begin(service.address, &order("/orders", "stays", &[], "tea")).await;
    until("the handler", || service.begun.load(Ordering::SeqCst) == 1).await;
    drop(service.stop);
    soon("the end", service.served).await.expect("no panic").expect("no error");
    let census = service.once.engine().stats().await.expect("the store answers");
    assert_eq!((census.completed, census.unknown, census.in_flight), (0, 1, 0));
    drop(stays);
}

#[tokio::test]
async fn serve_refuses_to_start_with_a_policy_that_voids_the_promise() {
    let nothing = onceward::policy::Policy::default().retention(Duration::ZERO).tombstone(Duration::ZERO);
    let once = builder().build().policy_for("/orders", nothing);
    let (listener, _) = listen().await;
    let app = once.around(Router::new());
    let error =
        soon("an error", onceward_axum::serve(listener, app, &once).into_future()).await.expect_err("it is refused");
    assert!(error.to_string().contains("/orders") && error.to_string().contains("tombstone"), "{error}");
}

//! Log lines of a handler whose client has gone.

use std::io::Write;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::routing::post;
use tokio::sync::Notify;
use tower_http::trace::TraceLayer;

use crate::support::{begin, builder, counted, post as order, soon, until};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no panic")).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Installs a subscriber of this test's thread, on which its runtime runs too.
fn log() -> (Log, tracing::subscriber::DefaultGuard) {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let guard = tracing::subscriber::set_default(subscriber);
    (log, guard)
}

#[tokio::test]
async fn handler_logs_in_its_span_after_a_client_disconnect() {
    let (log, _guard) = log();
    let go_on = Arc::new(Notify::new());
    let held = Arc::clone(&go_on);
    let place = post(async move || {
        tracing::info!("begins");
        held.notified().await;
        tracing::info!("ends");
        "placed"
    });
    let once = builder().build();
    let trace = TraceLayer::new_for_http().make_span_with(|_: &Request| tracing::info_span!("request", id = "r-17"));
    let (app, gone) = counted(once.around(Router::new().route("/orders", place)).layer(trace));
    let address = crate::support::serve(app).await;
    drop(begin(address, &order("/orders", "order-7", &[], "tea")).await);
    until("the handler", || log.text().contains("begins")).await;
    until("the disconnect", || gone.load(Ordering::SeqCst) == 1).await;
    go_on.notify_one();
    soon("the end of the handler", once.engine().drained()).await;
    let text = log.text();
    let ends = text.lines().find(|line| line.contains("ends")).expect("the handler's last line");
    assert!(ends.contains("r-17"), "{text}");
}

#[derive(Clone)]
struct Tenant;

#[tokio::test]
async fn layer_inside_of_a_router_and_extensions_of_outer_layers_are_warned_of_once() {
    let (log, _guard) = log();
    let once = builder().inner_only::<Tenant>("tenants are scoped outside").build();
    let app = Router::new().route("/orders", post(async || "placed")).layer(once).layer(axum::Extension(Tenant));
    let address = crate::support::serve(app).await;
    for key in ["a", "b"] {
        crate::support::send(address, &order("/orders", key, &[], "tea")).await;
    }
    let text = log.text();
    assert_eq!(text.matches("inside of a router").count(), 1, "{text}");
    assert_eq!(text.matches("tenants are scoped outside").count(), 1, "{text}");
}

#[tokio::test]
async fn layer_around_the_application_is_not_warned_of() {
    let (log, _guard) = log();
    let once = builder().build();
    let app = once.around(Router::new().route("/orders", post(async || "placed")));
    let address = crate::support::serve(app).await;
    crate::support::send(address, &order("/orders", "a", &[], "tea")).await;
    assert!(!log.text().contains("WARN"), "{}", log.text());
}

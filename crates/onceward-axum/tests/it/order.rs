//! The order of layers: what belongs inside of Onceward, and what outside. One test a row of the table in `onceward::layer`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderName, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use onceward::policy::Policy;
use tokio::sync::Notify;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tower_sessions::{MemoryStore as Sessions, Session, SessionManagerLayer};

use crate::support::{begin, builder, counted, post as order, request, send, serve, soon, until};

/// Lets a test hold a handler until its client has gone.
#[derive(Clone, Default)]
struct Hold {
    begun: Arc<AtomicUsize>,
    go_on: Arc<Notify>,
}

impl Hold {
    async fn enter(&self) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.go_on.notified().await;
    }

    async fn began(&self) {
        until("the handler", || self.begun.load(Ordering::SeqCst) > 0).await;
    }
}

#[tokio::test]
async fn session_inside_is_saved_when_the_client_disconnects() {
    let hold = Hold::default();
    let held = hold.clone();
    let add = post(async move |session: Session| {
        let items: u32 = session.get("items").await.expect("a session").unwrap_or_default();
        held.enter().await;
        session.insert("items", items + 1).await.expect("a session");
        format!("{} in the cart", items + 1)
    });
    let read = get(async |session: Session| {
        format!("{}", session.get::<u32>("items").await.expect("a session").unwrap_or_default())
    });
    let begin_session =
        get(async |session: Session| session.insert("items", 0u32).await.map_err(|_| StatusCode::BAD_GATEWAY));
    let sessions = SessionManagerLayer::new(Sessions::default()).with_secure(false);
    let app = Router::new().route("/cart", add.merge(read)).route("/begin", begin_session).layer(sessions);
    let once = builder().build();
    let (app, gone) = counted(once.around(app));
    let address = serve(app).await;

    let begun = send(address, &request("GET", "/begin", &[], "")).await;
    let cookie = begun.header("set-cookie").expect("a session").split(';').next().expect("a cookie").to_owned();
    let cookie = [("cookie", cookie.as_str())];
    drop(begin(address, &order("/cart", "cart-7", &cookie, "tea")).await);
    hold.began().await;
    until("the disconnect", || gone.load(Ordering::SeqCst) == 2).await;
    hold.go_on.notify_one();
    soon("the end of the handler", once.engine().drained()).await;
    assert_eq!(
        send(address, &order("/cart", "cart-7", &cookie, "tea")).await.told(),
        (200, "replayed", "1 in the cart")
    );
    assert_eq!(send(address, &request("GET", "/cart", &cookie, "")).await.body(), "1", "what the replay says is true");
}

/// A transaction per request, as axum-sqlx-tx and its like have it: committed by a layer once the handler has responded well.
#[derive(Clone, Default)]
struct Transaction(Arc<AtomicUsize>);

#[derive(Clone, Default)]
struct Database {
    rows: Arc<AtomicUsize>,
    commits_fail: Arc<AtomicUsize>,
}

async fn transact(database: Database, mut request: Request, next: Next) -> Response {
    let transaction = Transaction::default();
    request.extensions_mut().insert(transaction.clone());
    let response = next.run(request).await;
    if !response.status().is_success() {
        return response;
    }
    if database.commits_fail.load(Ordering::SeqCst) > 0 {
        database.commits_fail.fetch_sub(1, Ordering::SeqCst);
        return (StatusCode::INTERNAL_SERVER_ERROR, "the commit failed").into_response();
    }
    database.rows.fetch_add(transaction.0.load(Ordering::SeqCst), Ordering::SeqCst);
    response
}

fn shop(database: &Database, hold: Option<Hold>) -> Router {
    let place = post(async move |Extension(Transaction(rows)): Extension<Transaction>| {
        rows.fetch_add(1, Ordering::SeqCst);
        if let Some(hold) = hold {
            hold.enter().await;
        }
        "placed"
    });
    let database = database.clone();
    let commit = middleware::from_fn(move |request: Request, next: Next| transact(database.clone(), request, next));
    Router::new().route("/orders", place).layer(commit)
}

#[tokio::test]
async fn transaction_inside_is_committed_when_the_client_disconnects() {
    let (database, hold) = (Database::default(), Hold::default());
    let once = builder().build();
    let (app, gone) = counted(once.around(shop(&database, Some(hold.clone()))));
    let address = serve(app).await;
    drop(begin(address, &order("/orders", "order-7", &[], "tea")).await);
    hold.began().await;
    until("the disconnect", || gone.load(Ordering::SeqCst) == 1).await;
    hold.go_on.notify_one();
    soon("the end of the handler", once.engine().drained()).await;
    assert_eq!(send(address, &order("/orders", "order-7", &[], "tea")).await.told(), (200, "replayed", "placed"));
    assert_eq!(database.rows.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn failed_commit_is_what_the_retry_gets() {
    let database = Database::default();
    database.commits_fail.store(1, Ordering::SeqCst);
    let address = serve(builder().build().around(shop(&database, None))).await;
    let first = send(address, &order("/orders", "order-7", &[], "tea")).await;
    assert_eq!(first.told(), (500, "stored", "the commit failed"));
    let retry = send(address, &order("/orders", "order-7", &[], "tea")).await;
    assert_eq!(retry.told(), (500, "replayed", "the commit failed"), "never a success over no rows");
    assert_eq!(database.rows.load(Ordering::SeqCst), 0);
}

tokio::task_local! {
    static TENANT: &'static str;
}

#[tokio::test]
async fn task_local_inside_is_there_when_the_client_has_gone() {
    let hold = Hold::default();
    let held = hold.clone();
    let place = post(async move || {
        held.enter().await;
        TENANT.with(|tenant| format!("placed for {tenant}"))
    });
    let scope = middleware::from_fn(|request: Request, next: Next| TENANT.scope("acme", next.run(request)));
    let once = builder().build();
    let (app, gone) = counted(once.around(Router::new().route("/orders", place).layer(scope)));
    let address = serve(app).await;
    drop(begin(address, &order("/orders", "order-7", &[], "tea")).await);
    hold.began().await;
    until("the disconnect", || gone.load(Ordering::SeqCst) == 1).await;
    hold.go_on.notify_one();
    soon("the end of the handler", once.engine().drained()).await;
    let retry = send(address, &order("/orders", "order-7", &[], "tea")).await;
    assert_eq!(retry.told(), (200, "replayed", "placed for acme"));
}

#[tokio::test]
async fn timeout_inside_is_an_end_like_another() {
    let slow = post(async || {
        std::future::pending::<()>().await;
        "never"
    });
    let limit = middleware::from_fn(|request: Request, next: Next| async move {
        // waits: the shortest timeout that there is
        match tokio::time::timeout(Duration::from_millis(1), next.run(request)).await {
            Ok(response) => response,
            Err(_) => (StatusCode::GATEWAY_TIMEOUT, "too slow").into_response(),
        }
    });
    let address = serve(builder().build().around(Router::new().route("/orders", slow).layer(limit))).await;
    let first = send(address, &order("/orders", "order-7", &[], "tea")).await;
    assert_eq!(first.told(), (504, "unknown", "too slow"));
    let retry = send(address, &order("/orders", "order-7", &[], "tea")).await;
    assert_eq!((retry.status(), retry.code().as_str()), (409, "outcome_unknown"));
}

#[tokio::test]
async fn panic_that_is_caught_inside_is_a_response_that_is_stored() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let broken = post(async move || {
        counted.fetch_add(1, Ordering::SeqCst);
        panic!("a bug in the service");
        #[allow(unreachable_code, reason = "the type of the response")]
        ""
    });
    let app = Router::new().route("/orders", broken).layer(CatchPanicLayer::new());
    let address = serve(builder().build().around(app)).await;
    assert_eq!(send(address, &order("/orders", "order-7", &[], "tea")).await.told().0, 500);
    let retry = send(address, &order("/orders", "order-7", &[], "tea")).await;
    assert_eq!((retry.status(), retry.header("idempotency-outcome")), (500, Some("replayed")));
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn concurrency_limit_inside_is_not_held_by_a_duplicate_that_waits() {
    let hold = Hold::default();
    let held = hold.clone();
    let place = post(async move || {
        held.enter().await;
        "placed"
    });
    let app = Router::new()
        .route("/orders", place)
        .route("/teas", post(async || "tea"))
        .layer(GlobalConcurrencyLimitLayer::new(2));
    let address = serve(builder().build().around(app)).await;
    let first = begin(address, &order("/orders", "order-7", &[], "tea")).await;
    hold.began().await;
    let waits = [("prefer", "wait=20")];
    let waiting: Vec<_> = [
        begin(address, &order("/orders", "order-7", &waits, "tea")).await,
        begin(address, &order("/orders", "order-7", &waits, "tea")).await,
    ]
    .into();
    let other = send(address, &order("/teas", "tea-7", &[], "tea")).await;
    assert_eq!(other.told(), (200, "stored", "tea"), "a permit is left");
    hold.go_on.notify_one();
    assert_eq!(soon("a response", crate::support::read(first)).await.told(), (200, "stored", "placed"));
    for waiting in waiting {
        let got = soon("a response", crate::support::read(waiting)).await;
        assert_eq!(got.told(), (200, "replayed", "placed"));
    }
}

#[tokio::test]
async fn request_id_outside_is_new_for_each_replay_and_refusal() {
    let id = HeaderName::from_static("x-request-id");
    let app = Router::new().route("/orders", post(async || "placed"));
    let app = builder()
        .build()
        .around(app)
        .layer(PropagateRequestIdLayer::new(id.clone()))
        .layer(SetRequestIdLayer::new(id, MakeRequestUuid));
    let address = serve(app).await;
    let first = send(address, &order("/orders", "order-7", &[], "tea")).await;
    let replay = send(address, &order("/orders", "order-7", &[], "tea")).await;
    let refusal = send(address, &order("/orders", "order-7", &[], "rum")).await;
    assert_eq!((replay.header("idempotency-outcome"), refusal.status()), (Some("replayed"), 422));
    let ids = [&first, &replay, &refusal].map(|got| got.header("x-request-id").expect("an id").to_owned());
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2], "{ids:?}");
}

#[derive(Clone)]
struct User(&'static str);

#[tokio::test]
async fn authentication_outside_names_the_caller_by_an_extension() {
    let authenticate = middleware::from_fn(|mut request: Request, next: Next| async move {
        let token = request.headers().get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let user = match token {
            // One person, whose token was renewed meanwhile.
            "Bearer a1" | "Bearer a2" => User("ann"),
            "Bearer b1" => User("bob"),
            _ => return StatusCode::UNAUTHORIZED.into_response(),
        };
        request.extensions_mut().insert(user);
        next.run(request).await
    });
    let place = post(async |Extension(User(name)): Extension<User>| format!("placed for {name}"));
    let once = builder().principal_with(|head| head.extensions.get::<User>().map(|user| user.0)).build();
    let address = serve(once.around(Router::new().route("/orders", place)).layer(authenticate)).await;
    let sent = |token: &'static str| order("/orders", "order-7", &[("authorization", token)], "tea");
    assert_eq!(send(address, &sent("Bearer a1")).await.told(), (200, "stored", "placed for ann"));
    assert_eq!(send(address, &sent("Bearer a2")).await.told(), (200, "replayed", "placed for ann"));
    assert_eq!(send(address, &sent("Bearer b1")).await.told(), (200, "stored", "placed for bob"));
    assert_eq!(send(address, &sent("Bearer x")).await.status(), 401, "no replay without authentication");
}

#[tokio::test]
async fn policies_by_path_require_a_key_around_the_application() {
    let once = builder().build().policy_for("/orders", Policy::default().require_key());
    let app = Router::new()
        .route("/orders", post(async || "placed"))
        .route("/login", post(async || "welcome"))
        .nest_service("/.idempotency", once.endpoints());
    let address = serve(once.around(app)).await;
    let refused = send(address, &request("POST", "/orders", &[], "tea")).await;
    assert_eq!((refused.status(), refused.code().as_str()), (400, "key_missing"));
    assert_eq!(refused.header("link"), Some("</.idempotency/policy#key_missing>; rel=\"describedby\""));
    assert_eq!(send(address, &request("POST", "/login", &[], "ann")).await.told(), (200, "-", "welcome"));
    assert_eq!(send(address, &order("/orders", "order-7", &[], "tea")).await.told(), (200, "stored", "placed"));
}

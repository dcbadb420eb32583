use std::{error::Error as _, future::Future, io, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, Method, Request, StatusCode, Uri, header},
    response::{Html, IntoResponse, Response},
    routing::get,
    serve::ListenerExt,
};
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::{net::TcpListener, sync::oneshot, time};

use crate::{
    Error, NewOrder, Order, Orders, Refusal,
    page::{COUNTER_SCRIPT, COUNTER_STYLE, counter, page},
};

const BODY_BYTES_MAX: usize = 16 * 1024;
/// Upper bound on the bytes of a body that are read before its rejection: a client whose connection
/// is closed while it still sends may never see the response.
const BODY_BYTES_SKIPPED_MAX: usize = 64 * BODY_BYTES_MAX;
const LIST_ROWS_DEFAULT: u32 = 1000;
const LIST_ROWS_MAX: u32 = 10_000;
/// Upper bound on the time of requests in flight after a shutdown began.
const DRAIN_MAX: Duration = Duration::from_secs(5);
// The page is one file: it loads nothing, and cannot be framed. It sends requests only to this
// service and the relay.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; \
                           connect-src http: https:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

// The counter sends requests only to its own origin.
const COUNTER_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; \
                              base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Configuration of the service.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Origin, such as `http://127.0.0.1:8082`, to which the page sends a request whose response is
    /// to be dropped. `None`: the page says that it cannot do that.
    pub relay: Option<String>,
    /// Origin from which the shop counter is loaded: a fault proxy that treats a request as its
    /// `Demo-Network` header says. If set, the counter is at `/`, and the plain page at `/by-hand`.
    pub network: Option<String>,
}

/// Returns the routes of the service. A layer around them sees every request.
pub fn router(orders: Orders, config: Config) -> Router {
    let page = page(config.relay.as_deref());
    let pages = match &config.network {
        None => Router::new().route("/", get(move || async { show(PAGE_POLICY, Html(page)) })),
        Some(network) => {
            let counter = counter(network);
            let script = ([(header::CONTENT_TYPE, "text/javascript")], COUNTER_SCRIPT);
            let style = ([(header::CONTENT_TYPE, "text/css")], COUNTER_STYLE);
            Router::new()
                .route("/", get(move || async { show(COUNTER_POLICY, Html(counter)) }))
                .route("/by-hand", get(move || async { show(PAGE_POLICY, Html(page)) }))
                .route("/counter.js", get(move || async move { show(COUNTER_POLICY, script) }))
                .route("/counter.css", get(move || async move { show(COUNTER_POLICY, style) }))
        }
    };
    pages
        .route("/orders", get(list).post(place))
        .route("/orders/{id}", get(find))
        .method_not_allowed_fallback(wrong_method)
        .fallback(wrong_path)
        .with_state(orders)
}

/// Serves HTTP/1.1 until `shutdown`, then shuts down gracefully within 5 seconds.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    // A response in two small writes would wait for the acknowledgement of the first.
    let listener = listener.tap_io(|connection| drop(connection.set_nodelay(true)));
    let (begin, begun) = oneshot::channel::<()>();
    let server = axum::serve(listener, router).with_graceful_shutdown(async move {
        shutdown.await;
        drop(begin);
    });
    tokio::select! {
        served = server => served,
        // A connection that stays half open must not keep the process running for ever.
        () = async { drop(begun.await); time::sleep(DRAIN_MAX).await } => Ok(()),
    }
}

fn show(policy: &'static str, page: impl IntoResponse) -> impl IntoResponse {
    let headers = [
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, page)
}

async fn place(State(orders): State<Orders>, request: Request<Body>) -> Result<Response, Refusal> {
    check_content_type(request.headers())?;
    let body = read_body(request.into_body()).await?;
    let order = orders.place(NewOrder::parse(&body)?).await?;
    let location = format!("/orders/{}", order.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(order)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listing {
    limit: Option<u32>,
}

async fn list(
    State(orders): State<Orders>,
    listing: Result<Query<Listing>, QueryRejection>,
) -> Result<Response, Refusal> {
    let limit = match listing {
        Ok(Query(Listing { limit })) => limit.unwrap_or(LIST_ROWS_DEFAULT),
        Err(_) => 0,
    };
    if !(1..=LIST_ROWS_MAX).contains(&limit) {
        let detail = format!("the list takes `?limit=N` alone, with N from 1 to {LIST_ROWS_MAX}");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, detail));
    }
    let (rows, total) = (orders.list(limit).await?, orders.count().await?);
    let headers = [
        ("orders-total", total.to_string()),
        ("orders-database", orders.database().into()),
        ("cache-control", "no-store".into()),
    ];
    Ok((headers, Json(rows)).into_response())
}

async fn find(State(orders): State<Orders>, Path(id): Path<String>) -> Result<Json<Order>, Refusal> {
    let order = match id.parse() {
        Ok(id) => orders.find(id).await?,
        Err(_) => None,
    };
    order.map(Json).ok_or_else(|| {
        Refusal::new(StatusCode::NOT_FOUND, "there is no such order: `GET /orders` lists those that exist")
    })
}

async fn wrong_method(method: Method, uri: Uri) -> Refusal {
    let detail = format!("{} does not take {method}: POST /orders places an order, GET shows", uri.path());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, detail)
}

async fn wrong_path(uri: Uri) -> Refusal {
    let detail = format!("there is nothing at {}: orders are at /orders, the page is at /", uri.path());
    Refusal::new(StatusCode::NOT_FOUND, detail)
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let sent = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = sent.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let detail = "an order is JSON: send it with `Content-Type: application/json`";
    Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail))
}

async fn read_body(mut body: Body) -> Result<Vec<u8>, Refusal> {
    let (mut read, mut bytes) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, "the body broke off: send it whole"))?;
        let Ok(data) = frame.into_data() else { continue };
        bytes += data.len();
        if bytes <= BODY_BYTES_MAX {
            read.extend_from_slice(&data);
        } else if bytes > BODY_BYTES_SKIPPED_MAX {
            break;
        }
    }
    if bytes > BODY_BYTES_MAX {
        let detail = format!("the body is larger than {BODY_BYTES_MAX} bytes: an order is `item` and `qty` alone");
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
    }
    Ok(read)
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        // The cause can name files: it is for the operator, not for the client.
        let cause = error.source().map(ToString::to_string).unwrap_or_default();
        eprintln!("orders: {error}: {cause}");
        let detail = format!("{error}: the database failed, and the service's log says why");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
    }
}

//! In a real Chromium, from a page of another origin: what its scripts can send and read.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use serde_json::json;

use super::Service;
use crate::page::browser::{Page, Screen};

/// A server with nothing but an empty page, for its origin.
fn elsewhere() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let _ = lines.find(String::is_empty);
            let page = "<!doctype html><title>elsewhere</title>";
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: {}",
                page.len()
            );
            let _ = write!(stream, "{head}\r\n\r\n{page}");
        }
    });
    format!("http://{address}")
}

/// Sends an order as a page does, and tells what its script may read of the answer.
const SEND: &str = "
    const [url, key, body, extra, done] = arguments
    fetch(url, { method: 'POST', credentials: 'include', body, headers: {
        'Content-Type': 'application/json', 'Idempotency-Key': key, 'Prefer': 'wait=10',
        'Idempotency-First-Sent': 'Sun, 06 Nov 1994 08:49:37 GMT', ...extra } })
      .then(async (r) => done({ status: r.status, outcome: r.headers.get('Idempotency-Outcome'),
          replayed: r.headers.get('Idempotency-Replayed'), number: r.headers.get('X-Number'), body: await r.json() }),
        (error) => done({ error: error.name }))";

const OPERATION: &str = "
    const [url, key, done] = arguments
    fetch(url, { headers: { 'Idempotency-Key': key } }).then(
        async (r) => done({ status: r.status, outcome: r.headers.get('Idempotency-Outcome'), body: await r.json() }),
        (error) => done({ error: error.name }))";

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_origin_reads_markers_and_refusals() {
    let service = Service::start();
    let (here, evil) = (elsewhere(), elsewhere());
    service.allow(&[&here]);
    let gateway = service.gateway("");
    let orders = format!("http://{}/orders", gateway.listen);
    let page = Page::blank(&here, Screen::Desk).await;
    let send = async |key: &str, body: &str, extra: serde_json::Value| {
        let args = vec![json!(orders), json!(key), json!(body), extra];
        page.client.execute_async(SEND, args).await.unwrap()
    };

    let first = send("chromium-1", "{}", json!({})).await;
    let stored = json!({ "status": 201, "outcome": "stored", "replayed": null, "number": "1", "body": { "order": 1 } });
    assert_eq!(first, stored);
    let again = send("chromium-1", "{}", json!({})).await;
    let replayed =
        json!({ "status": 201, "outcome": "replayed", "replayed": "true", "number": "1", "body": { "order": 1 } });
    assert_eq!(again, replayed);
    let reused = send("chromium-1", "{\"other\":1}", json!({})).await;
    assert_eq!((&reused["status"], &reused["outcome"]), (&json!(422), &json!("mismatch")));
    assert_eq!(reused["body"]["code"], "key_reused");

    // What became of it, from the gateway's own path.
    let args = vec![json!(format!("http://{}/.idempotency/operation", gateway.listen)), json!("chromium-1")];
    let seen = page.client.execute_async(OPERATION, args).await.unwrap();
    assert_eq!((&seen["status"], &seen["body"]["order"]), (&json!(201), &json!(1)), "{seen}");

    // A header that the upstream does not know stays refused, and so does a page that it does not know.
    assert_eq!(send("chromium-2", "{}", json!({ "X-Unknown": "1" })).await, json!({ "error": "TypeError" }));
    page.client.goto(&evil).await.unwrap();
    assert_eq!(send("chromium-3", "{}", json!({})).await, json!({ "error": "TypeError" }));
    assert_eq!(service.executed(), 1);
    page.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_gateway_lets_the_page_read_on() {
    let service = Service::start();
    let here = elsewhere();
    service.allow(&[&here]);
    let settings = format!("upstream = \"http://{}\"\n[policy]\nprincipal = []\n", service.address);
    let gateway = crate::support::Gateway::with(&settings, &[]);
    let page = Page::blank(&here, Screen::Desk).await;
    let send = async |gateway: &crate::support::Gateway, body: &str| {
        let args = vec![json!(format!("http://{}/orders", gateway.listen)), json!("kept-key"), json!(body), json!({})];
        page.client.execute_async(SEND, args).await.unwrap()
    };
    assert_eq!(send(&gateway, "{}").await["outcome"], "stored");
    let gateway = gateway.killed_and_back();
    assert_eq!(send(&gateway, "{}").await["outcome"], "replayed");
    assert_eq!(send(&gateway, "[]").await["outcome"], "mismatch");
    assert_eq!(service.executed(), 1);
    page.close().await;
}

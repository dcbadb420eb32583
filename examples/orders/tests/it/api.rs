//! What the service says to each request.

use std::{
    io::{Read, Write},
    net::Shutdown,
    thread,
};

use serde_json::json;

use crate::support::{Service, ask, connect, read_answer};

const JSON: &str = "Content-Type: application/json\r\n";

#[test]
fn an_order_is_placed_found_and_listed() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &[]);

    let placed = service.post(r#"{"item": " green tea ", "qty": 2}"#);
    assert_eq!(placed.status, 201);
    assert_eq!(placed.header("location"), Some("/orders/1"));
    assert_eq!(placed.header("content-type"), Some("application/json"));
    let order = placed.json();
    let created_at = order["created_at"].as_str().expect("a time");
    assert_eq!(order, json!({"id": 1, "item": "green tea", "qty": 2, "created_at": created_at}));
    assert!(created_at.starts_with("20") && created_at.ends_with('Z') && created_at.len() == 24, "{created_at}");

    assert_eq!(service.get("/orders/1").json(), order);
    let second = service.post(r#"{"qty": 1000, "item": "rum"}"#).json();
    let list = service.get("/orders");
    assert_eq!(list.json(), json!([second, order]), "newest first");
    assert_eq!(list.header("orders-total"), Some("2"));
    let newest = service.get("/orders?limit=1");
    assert_eq!((newest.json(), newest.header("orders-total")), (json!([second]), Some("2")));
}

#[test]
fn each_request_that_arrives_makes_an_order() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &[]);
    let keyed = format!("{JSON}Idempotency-Key: same\r\n");
    thread::scope(|scope| {
        let one = || ask(service.address, "POST", "/orders", &keyed, br#"{"item": "tea", "qty": 1}"#);
        let mut ids: Vec<_> = (0..40)
            .map(|_| scope.spawn(one))
            .collect::<Vec<_>>()
            .into_iter()
            .map(|asked| {
                let answer = asked.join().unwrap();
                assert_eq!(answer.status, 201);
                assert_eq!(answer.header("idempotency-outcome"), None);
                answer.json()["id"].as_u64().expect("an id")
            })
            .collect();
        ids.sort_unstable();
        assert_eq!(ids, (1..=40).collect::<Vec<_>>());
    });
    assert_eq!(service.total(), 40, "the service is naive: that is the story");
}

#[test]
fn what_is_wrong_with_an_order_is_said_in_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &[]);
    let long = format!(r#"{{"item": "{}", "qty": 1}}"#, "é".repeat(101));
    let unknown = format!(r#"{{"item": "tea", "qty": 1, "{}": 1}}"#, "x".repeat(500));
    let deep = "[".repeat(10_000);
    for (rule, body, status, field, detail) in [
        ("not JSON", "item=tea", 400, None, "the body is not JSON"),
        ("no body", "", 400, None, "the body is not JSON"),
        ("cut JSON", r#"{"item": "tea""#, 400, None, "the body is not JSON"),
        ("more than one value", r#"{"item": "tea", "qty": 1} {}"#, 400, None, "the body is not JSON"),
        ("deep JSON", &deep, 400, None, "the body is not"),
        ("an array", r#"["tea", 1]"#, 400, None, "not a JSON object"),
        ("no item", r#"{"qty": 1}"#, 422, Some("item"), "`item` is missing: send"),
        ("no qty", r#"{"item": "tea"}"#, 422, Some("qty"), "`qty` is missing: send a whole number from 1 to 1000"),
        ("a null", r#"{"item": null, "qty": 1}"#, 422, Some("item"), "`item` is missing"),
        (
            "an unknown field",
            r#"{"item": "tea", "qty": 1, "size": 3}"#,
            422,
            Some("size"),
            "`size` is not a field of an order: send only `item` and `qty`",
        ),
        ("an unknown field, long", &unknown, 422, Some("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…"), "is not a field"),
        ("a field twice", r#"{"item": "tea", "qty": 1, "qty": 1000}"#, 422, Some("qty"), "`qty` is there twice"),
        ("item is a number", r#"{"item": 7, "qty": 1}"#, 422, Some("item"), "`item` is 7: send it as a string"),
        ("item is empty", r#"{"item": "", "qty": 1}"#, 422, Some("item"), "`item` is empty: say what is ordered"),
        ("item is white space", r#"{"item": " \t\n ", "qty": 1}"#, 422, Some("item"), "`item` is empty"),
        ("item is too long", &long, 422, Some("item"), "`item` has 101 characters: shorten it to 100"),
        ("item has two lines", r#"{"item": "tea\nrum", "qty": 1}"#, 422, Some("item"), "send one line of text"),
        (
            "qty is 0",
            r#"{"item": "tea", "qty": 0}"#,
            422,
            Some("qty"),
            "`qty` is 0: send a whole number from 1 to 1000",
        ),
        ("qty is 1001", r#"{"item": "tea", "qty": 1001}"#, 422, Some("qty"), "`qty` is 1001"),
        ("qty is negative", r#"{"item": "tea", "qty": -1}"#, 422, Some("qty"), "`qty` is -1"),
        ("qty is broken", r#"{"item": "tea", "qty": 1.5}"#, 422, Some("qty"), "`qty` is 1.5"),
        ("qty is huge", r#"{"item": "tea", "qty": 4294967297}"#, 422, Some("qty"), "`qty` is 4294967297"),
        ("qty is a string", r#"{"item": "tea", "qty": "2"}"#, 422, Some("qty"), "`qty` is \"2\""),
    ] {
        let answer = service.post(body);
        assert_eq!(answer.status, status, "{rule}: {}", answer.body);
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{rule}");
        let problem = answer.json();
        assert_eq!(problem["status"], status, "{rule}");
        assert_eq!(problem["field"].as_str(), field, "{rule}");
        let line = problem["detail"].as_str().expect("a detail");
        assert!(line.contains(detail), "{rule}: {line}");
        assert!(!line.contains('\n') && line.chars().count() < 200, "{rule}: {line}");
    }
    assert_eq!(service.total(), 0, "what is refused is not kept");
}

#[test]
fn the_bounds_themselves_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &[]);
    for item in ["x", &"é".repeat(100), "<b>\"tea\"</b> & 🍵"] {
        for qty in [1, 1000] {
            let answer = service.post(&json!({"item": item, "qty": qty}).to_string());
            assert_eq!((answer.status, &answer.json()["item"]), (201, &json!(item)));
        }
    }
}

#[test]
fn only_json_is_taken_and_an_unread_body_is_no_request() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &[]);
    let order = br#"{"item": "tea", "qty": 1}"#;
    for wrong in ["", "Content-Type: text/plain\r\n", "Content-Type: application/jsonp\r\n"] {
        let answer = ask(service.address, "POST", "/orders", wrong, order);
        assert_eq!(answer.status, 415, "{wrong:?}");
        let detail = answer.json()["detail"].to_string();
        assert!(detail.contains("`Content-Type: application/json`"), "{detail}");
    }
    let charset = "Content-Type: Application/JSON; charset=utf-8\r\n";
    assert_eq!(ask(service.address, "POST", "/orders", charset, order).status, 201);

    // The body of a refused request, which is itself a request: it must not be served.
    let inner = format!("POST /orders HTTP/1.1\r\nHost: x\r\n{JSON}Content-Length: 25\r\n\r\n");
    let inner = [inner.as_bytes(), order].concat();
    let head = format!(
        "POST /orders HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
        inner.len()
    );
    let next = b"GET /orders/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let mut connection = connect(service.address);
    connection.write_all(&[head.as_bytes(), &inner, next].concat()).unwrap();
    let answers = read_answer(connection);
    assert_eq!(answers.status, 415);
    let others: Vec<_> = answers.body.matches("HTTP/1.1 ").collect();
    assert!(others.len() <= 1 && !answers.body.contains(" 201 "), "two requests: {}", answers.body);
    assert_eq!(service.total(), 1);
}

#[test]
fn a_body_of_the_limit_is_taken_and_one_byte_more_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &[]);
    let order = r#"{"item": "tea", "qty": 1}"#;
    let padded = |bytes: usize| format!("{order}{}", " ".repeat(bytes - order.len()));
    let chunked = |body: &str| {
        let mut connection = connect(service.address);
        let head = format!(
            "POST /orders HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n"
        );
        connection.write_all(head.as_bytes()).unwrap();
        for piece in body.as_bytes().chunks(1000) {
            connection.write_all(&[format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()).unwrap();
        }
        connection.write_all(b"0\r\n\r\n").unwrap();
        read_answer(connection)
    };
    assert_eq!(service.post(&padded(16 * 1024)).status, 201);
    assert_eq!(chunked(&padded(16 * 1024)).status, 201);
    for refused in
        [service.post(&padded(16 * 1024 + 1)), chunked(&padded(16 * 1024 + 1)), service.post(&padded(1024 * 1024))]
    {
        assert_eq!(refused.status, 413);
        assert!(refused.json()["detail"].to_string().contains("larger than 16384 bytes"), "{}", refused.body);
    }
    assert_eq!(service.total(), 2);
}

#[test]
fn half_an_order_is_no_order() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &[]);
    let whole = r#"{"item": "tea", "qty": 1}"#;
    // The half is itself a whole order: only the declared length tells.
    let head = format!("POST /orders HTTP/1.1\r\nHost: x\r\n{JSON}Content-Length: {}\r\n\r\n{whole}", 2 * whole.len());
    let mut connection = connect(service.address);
    connection.write_all(head.as_bytes()).unwrap();
    connection.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    drop(connection.read_to_string(&mut answer));
    assert!(!answer.contains("201"), "{answer}");
    assert_eq!(service.total(), 0);
}

#[test]
fn other_paths_and_methods_say_where_to_go() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &[]);
    for (method, path, status, detail) in [
        ("GET", "/orders/1", 404, "`GET /orders` lists"),
        ("GET", "/orders/one", 404, "`GET /orders` lists"),
        ("GET", "/orders/99999999999999999999", 404, "`GET /orders` lists"),
        ("GET", "/order", 404, "orders are at /orders"),
        ("DELETE", "/orders", 405, "/orders does not take DELETE"),
        ("POST", "/", 405, "/ does not take POST"),
        ("GET", "/orders?limit=0", 400, "from 1 to 10000"),
        ("GET", "/orders?limit=10001", 400, "from 1 to 10000"),
        ("GET", "/orders?limit=many", 400, "from 1 to 10000"),
        ("GET", "/orders?offset=1", 400, "`?limit=N` alone"),
    ] {
        let answer = ask(service.address, method, path, "", b"");
        assert_eq!(answer.status, status, "{method} {path}");
        assert!(answer.json()["detail"].to_string().contains(detail), "{method} {path}: {}", answer.body);
    }
}

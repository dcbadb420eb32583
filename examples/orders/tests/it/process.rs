//! The program: its start, its end, and what stays after either.

use std::{
    error::Error,
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    thread,
};

use orders::Orders;
use rusqlite::Connection;

use crate::support::{Service, await_that, connect, read_answer, read_continue, refused_start};

#[test]
fn orders_outlive_a_killed_process() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &[]);
    let first = service.post(r#"{"item": "tea", "qty": 1}"#).json();
    let database = service.get("/orders").header("orders-database").map(str::to_owned);
    drop(service); // SIGKILL

    let service = Service::start(folder.path(), &[]);
    assert_eq!(service.get("/orders/1").json(), first);
    assert_eq!(service.post(r#"{"item": "rum", "qty": 1}"#).json()["id"], 2);
    let list = service.get("/orders");
    assert!(database.is_some() && list.header("orders-database") == database.as_deref(), "it is the same database");

    let elsewhere = tempfile::tempdir().unwrap();
    let other = Service::start(elsewhere.path(), &[]).get("/orders");
    assert_ne!(other.header("orders-database"), database.as_deref(), "and another file is another one");
}

#[test]
fn rows_are_written_to_a_log_ahead() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.db");
    let service = Service::start(folder.path(), &["--db", "rows.db"]);
    assert_eq!(service.post(r#"{"item": "tea", "qty": 1}"#).status, 201);
    let mode: String =
        Connection::open(path).unwrap().pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
    assert_eq!(mode, "wal");
}

#[test]
fn a_new_file_can_be_opened_many_times_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let path = folder.path().join(format!("{round}.db"));
        thread::scope(|scope| {
            for opened in (0..4).map(|_| scope.spawn(|| Orders::open(&path))).collect::<Vec<_>>() {
                if let Err(error) = opened.join().unwrap() {
                    panic!("{error}: {:?}", error.source());
                }
            }
        });
    }
}

#[test]
fn two_services_share_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = thread::scope(|scope| {
        let start = || Service::start(folder.path(), &[]);
        let (one, two) = (scope.spawn(start), scope.spawn(start));
        (one.join().unwrap(), two.join().unwrap())
    });
    for n in 1..=10 {
        let service = if n % 2 == 0 { &one } else { &two };
        assert_eq!(service.post(r#"{"item": "tea", "qty": 1}"#).json()["id"], n);
    }
    assert_eq!((one.total(), two.total()), (10, 10));
}

#[test]
fn a_signal_ends_it_after_what_is_in_flight() {
    for signal in ["TERM", "INT"] {
        let folder = tempfile::tempdir().unwrap();
        let mut service = Service::start(folder.path(), &[]);
        let (mut connection, body) = begin_an_order(&service);

        service.signal(signal);
        await_that("no new connection is taken", || TcpStream::connect(service.address).is_err());
        connection.write_all(body).unwrap();
        let answer = read_answer(connection);
        assert_eq!(answer.status, 201, "{signal}: {}", answer.body);
        assert_eq!(service.exit_code(), Some(0), "{signal}");
        assert_eq!(Service::start(folder.path(), &[]).total(), 1, "{signal}");
    }
}

#[test]
fn a_request_that_never_ends_does_not_keep_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut service = Service::start(folder.path(), &[]);
    let (connection, _) = begin_an_order(&service);
    service.signal("TERM");
    assert_eq!(service.exit_code(), Some(0));
    drop(connection);
}

#[test]
fn a_start_that_fails_says_why_in_a_line() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("text.db"), "no database, but text, and more than a header of it".repeat(10)).unwrap();
    let newer = Connection::open(folder.path().join("newer.db")).unwrap();
    newer.pragma_update(None, "user_version", 7).unwrap();
    let service = Service::start(folder.path(), &["--db", "taken.db"]);
    let taken = service.address.to_string();
    for (rule, args, said) in [
        (
            "a taken port",
            ["--listen", &taken, "--db", "x.db"],
            format!("{taken} is taken by another program: choose another with --listen"),
        ),
        ("no address", ["--listen", "nowhere", "--db", "x.db"], "cannot listen on nowhere".into()),
        (
            "no folder",
            ["--listen", "127.0.0.1:0", "--db", "no/orders.db"],
            "cannot open the database `no/orders.db`".into(),
        ),
        (
            "no database",
            ["--listen", "127.0.0.1:0", "--db", "text.db"],
            "cannot open the database `text.db`: file is not a database".into(),
        ),
        (
            "a newer database",
            ["--listen", "127.0.0.1:0", "--db", "newer.db"],
            "it has schema version 7, and this program knows 1".into(),
        ),
    ] {
        let (code, line) = refused_start(folder.path(), &args);
        assert_eq!(code, Some(1), "{rule}: {line}");
        assert!(line.starts_with("orders: ") && line.contains(&said), "{rule}: {line}");
        assert_eq!(line.lines().count(), 1, "{rule}: {line}");
    }
    assert!(!folder.path().join("x.db").exists(), "where it cannot listen it leaves no file");
}

#[test]
fn a_database_that_fails_is_an_answer_and_no_end() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), &[]);
    let beside = Connection::open(folder.path().join("orders.db")).unwrap();
    beside.execute_batch("ALTER TABLE orders RENAME TO gone").unwrap();
    let answer = service.post(r#"{"item": "tea", "qty": 1}"#);
    assert_eq!(answer.status, 500);
    let detail = answer.json()["detail"].to_string();
    assert!(detail.contains("cannot write the order") && !detail.contains("gone"), "{detail}");
    assert_eq!(service.get("/orders").status, 500);

    beside.execute_batch("ALTER TABLE gone RENAME TO orders").unwrap();
    assert_eq!(service.post(r#"{"item": "tea", "qty": 1}"#).status, 201);
}

/// An order whose handler runs and waits for its body: the service has said "100 Continue".
fn begin_an_order(service: &Service) -> (TcpStream, &'static [u8]) {
    let body = br#"{"item": "tea", "qty": 1}"#;
    let head = format!(
        "POST /orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\r\n",
        body.len()
    );
    let mut connection = connect(service.address);
    connection.write_all(head.as_bytes()).unwrap();
    read_continue(&connection);
    (connection, body)
}

#[test]
fn an_idle_connection_does_not_keep_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut service = Service::start(folder.path(), &[]);
    let mut idle = connect(service.address);
    service.signal("TERM");
    assert_eq!(service.exit_code(), Some(0));
    let mut rest = Vec::new();
    drop(idle.read_to_end(&mut rest));
    drop(idle.shutdown(Shutdown::Both));
    assert_eq!(rest, b"");
}

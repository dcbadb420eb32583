//! Programs that are killed, and begin again.

use std::process::{Child, Command, Stdio};

use onceward_client::{Idempotent, Intent, Journal};
use reqwest_middleware::ClientBuilder;

use crate::support::{Gateway, Lost, Road, Service, until};

/// Names the journal to the process that is the program.
const JOURNAL: &str = "ONCEWARD_TEST_JOURNAL";
const URL: &str = "ONCEWARD_TEST_URL";

/// The program: no test of its own, unless a test started it as one. Resumes what an earlier run began; if there is nothing,
/// it orders.
#[tokio::test]
async fn program() {
    let Some(folder) = std::env::var_os(JOURNAL) else { return };
    let url = std::env::var(URL).expect("where to order");
    let journal = Journal::open(folder).expect("a journal");
    let client = ClientBuilder::new(reqwest::Client::new()).with(Idempotent::default().journal(&journal)).build();
    let mut resumed = 0;
    for pending in journal.pending() {
        assert_eq!(pending.intent(), Some("order 7"));
        let answer = pending.resume(&client).await.expect("an answer");
        assert_eq!(answer.text().await.expect("text"), "order 1");
        resumed += 1;
    }
    if resumed == 0 {
        let request = client.post(url).with_extension(Intent::new("order 7")).body("tea");
        request.send().await.expect("an answer");
    }
    assert!(journal.pending().is_empty());
}

fn run(folder: &std::path::Path, url: &str) -> Child {
    let itself =
        if cfg!(target_os = "linux") { "/proc/self/exe".into() } else { std::env::current_exe().expect("a path") };
    Command::new(itself)
        .args(["crash::program", "--exact"])
        .env(JOURNAL, folder)
        .env(URL, url)
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts")
}

fn is_written(folder: &std::path::Path) -> bool {
    std::fs::read_dir(folder)
        .is_ok_and(|files| files.flatten().any(|file| file.path().extension().is_some_and(|ending| ending == "json")))
}

#[test]
fn a_program_that_is_killed_while_it_waits_resumes_and_makes_one_order() {
    let service = Service::start();
    service.hold();
    let gateway = Gateway::before(service.address);
    let folder = tempfile::tempdir().expect("a folder");
    let mut first = run(folder.path(), &gateway.url("/orders"));
    until("the order", || service.orders() == 1);
    first.kill().expect("it runs");
    first.wait().expect("it ends");
    assert!(is_written(folder.path()));
    service.let_go();
    assert!(run(folder.path(), "http://127.0.0.1:1/never").wait().expect("it ends").success());
    assert_eq!((service.orders(), is_written(folder.path())), (1, false));
}

#[test]
fn killed_at_any_moment_a_program_makes_one_order() {
    let rounds = if std::env::var_os("ONCEWARD_LONG").is_some() { 60 } else { 6 };
    let service = Service::start();
    let gateway = Gateway::before(service.address);
    let mut seen_written = 0;
    for round in 0..rounds {
        // Each answer is lost twice, so that there is something to be killed in.
        let road = Road::to(gateway.address, 2, Lost::Whole);
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("http://{}/orders", road.address);
        let before = service.orders();
        let mut first = run(folder.path(), &url);
        match round % 3 {
            0 => until("the request is written", || is_written(folder.path())),
            1 => until("the first send", || road.posts() >= 1),
            _ => until("the second send", || road.posts() >= 2),
        }
        first.kill().expect("it was started");
        first.wait().expect("it ends");
        seen_written += usize::from(is_written(folder.path()));
        let journal = Journal::open(folder.path()).expect("the lock went with the process");
        let pending = journal.pending();
        drop(journal);
        if !pending.is_empty() {
            let resumed = tokio::runtime::Runtime::new().expect("a runtime").block_on(async {
                let journal = Journal::open(folder.path()).expect("a journal");
                let client =
                    ClientBuilder::new(reqwest::Client::new()).with(Idempotent::default().journal(&journal)).build();
                journal.pending()[0].resume(&client).await.expect("an answer").status()
            });
            assert_eq!(resumed, 201);
        }
        assert_eq!(service.orders(), before + 1, "round {round}");
    }
    assert!(seen_written >= rounds / 2, "{seen_written} of {rounds} were killed in the middle");
}

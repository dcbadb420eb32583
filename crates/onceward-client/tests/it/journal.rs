//! The journal: what is written, what is not, and what is said when it cannot be read.

use onceward_client::{Idempotent, Intent, Journal};
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};

use crate::support::{Gateway, Lost, Road, Service};

fn client(journal: &Journal) -> ClientWithMiddleware {
    ClientBuilder::new(reqwest::Client::new()).with(Idempotent::default().journal(journal)).build()
}

/// The texts of all that is open.
fn written(folder: &std::path::Path) -> Vec<String> {
    let files = std::fs::read_dir(folder).expect("a folder").map(|file| file.expect("a file").path());
    let is_open = |path: &std::path::PathBuf| path.extension().is_some_and(|extension| extension == "json");
    files.filter(is_open).map(|path| std::fs::read_to_string(path).expect("text")).collect()
}

#[tokio::test]
async fn what_is_settled_is_taken_away_and_what_is_open_keeps_its_key() {
    let service = Service::start();
    let folder = tempfile::tempdir().expect("a folder");
    let journal = Journal::open(folder.path()).expect("a journal");
    // Where keys are not honoured, a lost answer leaves it open.
    let road = Road::to(service.address, 1, Lost::Whole);
    let client = client(&journal);
    let send = |url: String| {
        client
            .post(url)
            .header("Authorization", "Bearer t0p-secret")
            .with_extension(Intent::new("order 7"))
            .body("tea")
            .send()
    };
    let url = format!("http://{}/orders", road.address);
    send(url.clone()).await.expect_err("the answer was lost");
    let [text] = &written(folder.path())[..] else { panic!("{:?}", written(folder.path())) };
    assert!(!text.contains("t0p-secret") && text.contains("order 7"), "{text}");
    assert_eq!(journal.pending().len(), 1);
    // The same intent has the same key, and is still not sent again to where that is not safe.
    send(url).await.expect_err("keys are not honoured");
    assert_eq!((service.orders(), journal.pending().len()), (1, 1));
    journal.settle(&journal.pending()[0]).await.expect("it is taken away");

    let gateway = Gateway::before(service.address);
    assert_eq!(send(gateway.url("/orders")).await.expect("an answer").status(), 201);
    assert_eq!((written(folder.path()).len(), journal.pending().len()), (0, 0));
}

#[tokio::test]
async fn a_journal_has_one_process_and_says_what_is_wrong() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = Journal::open(folder.path()).expect("a journal");
    let error = Journal::open(folder.path()).expect_err("it is in use").to_string();
    assert!(error.ends_with("is used by another process; give each its own"), "{error}");
    drop(journal);
    std::fs::write(folder.path().join("cut.json"), "{\"version\":1,").expect("written");
    let error = Journal::open(folder.path()).expect_err("it is damaged").to_string();
    assert!(error.contains("cut.json is damaged; look whether"), "{error}");
}

#[tokio::test]
async fn what_cannot_be_written_down_is_not_sent() {
    let service = Service::start();
    let gateway = Gateway::before(service.address);
    let folder = tempfile::tempdir().expect("a folder");
    let journal = Journal::open(folder.path().join("outbox")).expect("a journal");
    std::fs::remove_dir_all(folder.path().join("outbox")).expect("it is gone");
    let error = client(&journal).post(gateway.url("/orders")).body("tea").send().await.expect_err("nowhere to write");
    assert!(error.to_string().contains("cannot be written, so nothing was sent"), "{error}");
    assert_eq!(service.requests().len(), 0);
}

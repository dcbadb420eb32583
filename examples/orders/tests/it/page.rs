//! The page in a real Chromium: a hand that presses its buttons, and an eye that reads it.
//!
//! Needs nothing but its crates, so that whoever puts something before the service can include this
//! file and tell the story there.
#![allow(dead_code, reason = "whoever includes this file may need less of it")]

use std::{
    fmt,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use fantoccini::{Client, ClientBuilder, Locator, elements::Element};
use hyper_util::client::legacy::connect::HttpConnector;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

/// Longer than a page takes on a busy machine: what is not seen by then does not come.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often `chromedriver` is started until it listens.
const TRIES: usize = 10;

/// One browser at a time: several starve each other where there are few cores.
static SEAT: Mutex<()> = Mutex::const_new(());

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Screen {
    Desk,
    Phone,
}

/// The page, open in a browser of its own.
pub(crate) struct Page {
    pub(crate) client: Client,
    _driver: Driver,
    _seat: MutexGuard<'static, ()>,
}

/// What a person sees.
#[derive(Debug, Deserialize)]
pub(crate) struct Seen {
    /// The large line, such as "3 requests, 1 order".
    pub(crate) sentence: String,
    pub(crate) explain: String,
    /// What the page says of the key that it holds.
    pub(crate) held: String,
    /// What is said at the fields, if it is shown.
    pub(crate) wrong: String,
    /// What is said when the list cannot be read.
    pub(crate) trouble: String,
    /// How many orders there are in all, such as "3 in all"; empty until the orders were read.
    pub(crate) total: String,
    /// Newest first.
    pub(crate) requests: Vec<Request>,
    /// Newest first: `#2 3 × tea`.
    pub(crate) rows: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Request {
    pub(crate) action: String,
    /// `waiting`, `answered`, `lost` or `left`.
    pub(crate) state: String,
    /// Such as "201, order 1" or "connection lost".
    pub(crate) result: String,
    pub(crate) status: String,
    /// Empty where the answer named none.
    pub(crate) outcome: String,
    /// The last characters of the key.
    pub(crate) key: String,
    /// The headers that were heard.
    pub(crate) heard: String,
    pub(crate) detail: String,
}

const LOOK: &str = "
    const text = (id) => { const e = document.getElementById(id); return e.hidden ? '' : e.textContent }
    const part = (e, name) => e.querySelector('.' + name).textContent
    return {
        sentence: text('sentence'), explain: text('explain'), held: text('held'), wrong: text('wrong'), trouble: text('trouble'), total: text('total'),
        requests: Array.from(document.querySelectorAll('[data-testid=request]'), (e) => ({
            action: part(e, 'action'), state: e.dataset.state, result: part(e, 'result'), status: e.dataset.status,
            outcome: e.dataset.outcome, key: e.dataset.key, heard: part(e, 'heard'), detail: part(e, 'detail'),
        })),
        rows: Array.from(document.querySelectorAll('[data-testid=row]'), (e) => part(e, 'id') + ' ' + part(e, 'item')),
    }";

impl Page {
    /// Opens `url` in a fresh browser that knows nothing yet.
    pub(crate) async fn open(url: &str, screen: Screen) -> Self {
        let page = Self::blank(url, screen).await;
        page.until("how many orders there are", |seen| !seen.total.is_empty()).await;
        page
    }

    /// Opens any page in a fresh browser.
    pub(crate) async fn blank(url: &str, screen: Screen) -> Self {
        let seat = SEAT.lock().await;
        let driver = Driver::start();
        let mut options = json!({ "args": driver.chromium_args() });
        if screen == Screen::Phone {
            options["mobileEmulation"] = json!({ "deviceMetrics": { "width": 360, "height": 740, "pixelRatio": 2 } });
        }
        let Value::Object(capabilities) = json!({ "goog:chromeOptions": options }) else { unreachable!() };
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{}", driver.port))
            .await
            .unwrap_or_else(|error| {
                panic!("Chromium does not start (apt-get install chromium chromium-driver): {error}")
            });
        let page = Self { client, _driver: driver, _seat: seat };
        page.client.goto(url).await.expect("the page loads");
        page
    }

    /// Ends the browser. Where a test panics before, it is killed.
    pub(crate) async fn close(self) {
        self.client.close().await.expect("the browser ends");
    }

    pub(crate) async fn element(&self, id: &str) -> Element {
        self.client.find(Locator::Id(id)).await.unwrap_or_else(|error| panic!("no #{id}: {error}"))
    }

    /// A press with the pointer, where a person would press.
    pub(crate) async fn press(&self, id: &str) {
        self.element(id).await.click().await.unwrap_or_else(|error| panic!("#{id} cannot be pressed: {error}"));
    }

    pub(crate) async fn fill(&self, id: &str, text: &str) {
        let field = self.element(id).await;
        field.clear().await.expect("the field can be emptied");
        field.send_keys(text).await.expect("the field takes keys");
    }

    /// Loads the page anew, as F5 does.
    pub(crate) async fn refresh(&self) {
        self.client.refresh().await.expect("the page loads again");
    }

    /// What this JavaScript returns.
    pub(crate) async fn run(&self, script: &str) -> Value {
        self.client.execute(script, vec![]).await.unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    pub(crate) async fn look(&self) -> Seen {
        serde_json::from_value(self.run(LOOK).await).expect("the page has all its parts")
    }

    /// Looks until it is so, and gives what was seen then.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&Seen) -> bool) -> Seen {
        let begun = Instant::now();
        loop {
            let seen = self.look().await;
            if is_so(&seen) {
                return seen;
            }
            assert!(begun.elapsed() < PATIENCE, "never seen: {what}. Seen last: {seen:#?}");
            // waits: between two looks at the page
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Looks until the large line says this and nothing is waiting.
    pub(crate) async fn until_sentence(&self, sentence: &str) -> Seen {
        let settled = |seen: &Seen| {
            let answered = seen.requests.iter().all(|request| request.state != "waiting");
            // The line below the large one changes last: the page reads the orders first.
            answered && seen.explain != "Waiting for an answer."
        };
        self.until(sentence, |seen| seen.sentence == sentence && settled(seen)).await
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page").finish_non_exhaustive()
    }
}

/// `chromedriver` on a free port. Dropped, it is killed, and its browser with it.
struct Driver {
    child: Child,
    port: u16,
    profile: TempDir,
    _stdout: BufReader<ChildStdout>,
}

impl Driver {
    fn start() -> Self {
        // It picks a port and then asks for it on both families: whoever takes it in between ends it.
        (0..TRIES)
            .find_map(|_| Self::try_start())
            .expect("chromedriver ended before it listened, each time: apt-get install chromium-driver")
    }

    fn try_start() -> Option<Self> {
        let profile = tempfile::tempdir().expect("a temporary folder");
        let mut child = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // A group of its own, so that the browser can be killed with it.
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("the page is tested in Chromium, and `chromedriver` does not start ({error}): apt-get install chromium-driver"));
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        let port = loop {
            line.clear();
            if stdout.read_line(&mut line).expect("chromedriver speaks") == 0 {
                drop(child.wait());
                return None;
            }
            if let Some((_, port)) = line.split_once("successfully on port ") {
                break port.trim().trim_end_matches('.').parse().expect("a port");
            }
        };
        Some(Self { child, port, profile, _stdout: stdout })
    }

    fn chromium_args(&self) -> Vec<String> {
        let profile = format!("--user-data-dir={}", self.profile.path().display());
        // Chromium's sandbox does not start as root, and neither /dev/shm nor a GPU is there in a container.
        let args = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run \
                    --disable-background-networking --disable-component-update --disable-sync --window-size=1280,1400 \
                    --host-resolver-rules=MAP\u{a0}orders.test\u{a0}127.0.0.1";
        args.split_ascii_whitespace().map(|arg| arg.replace('\u{a0}', " ")).chain([profile]).collect()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let group = format!("-{}", self.child.id());
        drop(Command::new("kill").args(["-s", "KILL", "--", &group]).stderr(Stdio::null()).status());
        drop(self.child.wait());
    }
}

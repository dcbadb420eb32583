//! `onceward demo`, as a person who tries it meets it.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use crate::support::PATIENCE;

/// A running demo, stopped when dropped.
#[derive(Debug)]
pub(crate) struct Demo {
    child: Child,
    lines: Receiver<String>,
    /// All that it said until it was ready.
    said: String,
    /// What it may leave nothing in.
    temporary: tempfile::TempDir,
}

impl Demo {
    pub(crate) fn start(args: &[&str]) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let mut child = command(temporary.path()).args(args).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (say, lines) = channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| say.send(line)));
        let mut demo = Self { child, lines, said: String::new(), temporary };
        while !demo.said.contains("Ctrl-C") {
            let line = demo.line();
            demo.said += &format!("{line}\n");
        }
        demo
    }

    /// The next line that it says.
    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("it says no more than\n{}", self.said))
    }

    /// Its next line with `text` in it.
    fn until(&self, text: &str) -> String {
        std::iter::repeat_with(|| self.line()).find(|line| line.contains(text)).unwrap()
    }

    /// The address that its line about this part says.
    pub(crate) fn url(&self, name: &str) -> String {
        let url = self.row(name).split_whitespace().nth(1).unwrap();
        url.trim_end_matches('/').to_owned()
    }

    fn row(&self, name: &str) -> &str {
        let row = self.said.lines().find(|line| line.split_whitespace().next() == Some(name));
        row.unwrap_or_else(|| panic!("no {name} in\n{}", self.said))
    }

    fn pid(&self, name: &str) -> String {
        let (_, pid) = self.row(name).split_once("pid ").unwrap();
        pid.chars().take_while(char::is_ascii_digit).collect()
    }

    /// The lines that a person pastes.
    fn curl_lines(&self) -> [&str; 3] {
        let lines: Vec<_> = self.said.lines().filter(|line| line.trim().starts_with("curl ")).collect();
        lines.try_into().unwrap()
    }

    /// How many orders there are, as the service says, not the gateway.
    pub(crate) fn orders(&self) -> usize {
        let answer = sh(&format!("curl -sS {}/orders", self.url("orders")));
        let orders: serde_json::Value = serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{answer}"));
        orders.as_array().unwrap().len()
    }

    /// Sends a signal, and gives how it ended.
    fn ended_by(&mut self, signal: &str) -> ExitStatus {
        kill(signal, &self.child.id().to_string());
        self.child.wait().unwrap()
    }

    /// That its processes are gone, by themselves and soon.
    fn assert_alone(&self) {
        for pid in ["orders", "gateway"].map(|name| self.pid(name)) {
            let begun = Instant::now();
            while Path::new("/proc").join(&pid).exists() {
                assert!(begun.elapsed() < PATIENCE, "process {pid} is still there");
                std::thread::yield_now();
            }
        }
    }

    fn left_behind(&self) -> Vec<std::path::PathBuf> {
        self.temporary.path().read_dir().unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // As a person would, so that it cleans up; the status says nothing here.
            let _ = Command::new("kill").args(["-s", "TERM", &self.child.id().to_string()]).status();
            let _ = self.child.wait();
        }
    }
}

/// `onceward demo` whose temporary folders are made in this one.
fn command(temporary: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onceward"));
    command.arg("demo").env("TMPDIR", temporary).stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    let temporary = tempfile::tempdir().unwrap();
    let output = command(temporary.path()).args(args).output().unwrap();
    assert_eq!(temporary.path().read_dir().unwrap().count(), 0, "a folder was left behind");
    output
}

fn kill(signal: &str, pid: &str) {
    assert!(Command::new("kill").args(["-s", signal, pid]).status().unwrap().success(), "kill -s {signal} {pid}");
}

/// What a shell says to a line that is pasted into it.
fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Status, outcome and body of what `curl -i` printed.
fn parts(answer: &str) -> (&str, String, &str) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {answer:?}"));
    let outcome = head.to_lowercase().lines().find_map(|line| Some(line.strip_prefix("idempotency-outcome: ")?.into()));
    (head.split(' ').nth(1).unwrap(), outcome.unwrap_or_default(), body.trim_end())
}

#[test]
fn the_check_plays_the_story_and_finds_one_order() {
    let output = run(&["--check"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<_> = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let [first, replay, refusal, orders, verdict] = &lines[..] else { panic!("{said}") };
    let body = first.strip_prefix("a first answer 201 stored ").unwrap_or_else(|| panic!("{said}"));
    assert!(body.starts_with("{\"id\":1,\"item\":\"tea\",\"qty\":2,"), "{said}");
    assert_eq!(replay, &format!("its replay 201 replayed {body}"));
    assert!(refusal.starts_with("a refusal 422 mismatch {") && refusal.contains("key_reused"), "{said}");
    assert_eq!(orders, "orders 1 in the database, 0 before");
    assert_eq!(verdict, "ok: three requests, one order");
}

#[test]
fn taken_ports_give_the_next_free_ones() {
    // Those that are taken by somebody else are taken too.
    let taken: Vec<_> =
        [8080, 8081, 8082, 3000].into_iter().map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port))).collect();
    assert!(run(&["--check"]).status.success());

    let demo = Demo::start(&[]);
    let ports = ["gateway", "admin", "relay", "orders"].map(|name| {
        let url = demo.url(name).replace("/status", "");
        url.rsplit_once(':').unwrap().1.parse::<u16>().unwrap()
    });
    assert!(ports[..3].iter().all(|port| (8083..8383).contains(port)), "{ports:?}");
    assert!((3001..3301).contains(&ports[3]), "{ports:?}");
    assert!(sh(demo.curl_lines()[0]).contains("201 Created"));
    drop(taken);
}

#[test]
fn the_printed_lines_give_what_they_promise() {
    let demo = Demo::start(&[]);
    let answers = demo.curl_lines().map(sh);
    let [first, replay, refusal] = [parts(&answers[0]), parts(&answers[1]), parts(&answers[2])];
    assert_eq!((first.0, &*first.1), ("201", "stored"));
    assert_eq!((replay.0, &*replay.1, replay.2), ("201", "replayed", first.2));
    assert_eq!((refusal.0, &*refusal.1), ("422", "mismatch"));
    assert!(refusal.2.contains("key_reused"), "{}", refusal.2);
    assert_eq!(demo.orders(), 1);
    assert!(demo.said.contains("# a first answer: 201 stored") && demo.said.contains("# a refusal: 422 mismatch"));
    // Each is shown as it happens.
    for outcome in ["201 stored", "201 replayed", "422 mismatch"] {
        assert!(demo.until("gateway: ").contains(&format!("POST /orders {outcome}")), "{outcome}");
    }
    assert!(sh(&format!("curl -sS {}", demo.row("admin").split_whitespace().nth(1).unwrap())).contains("\"embedded\""));
}

#[test]
fn a_killed_gateway_comes_back_and_still_has_the_answer() {
    let demo = Demo::start(&[]);
    let first = sh(demo.curl_lines()[0]);
    kill("KILL", &demo.pid("gateway"));
    let gone = demo.until("is gone");
    assert!(
        gone.contains(&format!("the gateway (pid {})", demo.pid("gateway"))) && gone.contains("signal: 9"),
        "{gone}"
    );
    demo.until("the gateway is back: pid ");
    let retry = sh(demo.curl_lines()[1]);
    let (status, outcome, body) = parts(&retry);
    assert_eq!((status, &*outcome, body), ("201", "replayed", parts(&first).2));

    kill("KILL", &demo.pid("orders"));
    let back = demo.until("the orders service is back: pid ");
    let retry = sh(demo.curl_lines()[1]);
    assert_eq!(parts(&retry).1, "replayed");
    assert_eq!(demo.orders(), 1);
    // What came back ends with the demo too.
    let (_, pid) = back.split_once("pid ").unwrap();
    let process = Path::new("/proc").join(pid);
    assert!(process.exists());
    drop(demo);
    assert!(!process.exists());
}

#[test]
fn a_signal_ends_all_of_it_and_leaves_nothing() {
    for signal in ["INT", "TERM", "HUP"] {
        let mut demo = Demo::start(&[]);
        assert_eq!(demo.left_behind().len(), 1, "its folder");
        sh(demo.curl_lines()[0]);
        assert!(demo.ended_by(signal).success(), "SIG{signal}");
        assert_eq!(demo.left_behind(), Vec::<std::path::PathBuf>::new(), "SIG{signal}");
        demo.assert_alone();
    }
}

#[test]
fn no_process_outlives_a_demo_that_was_killed() {
    let mut demo = Demo::start(&[]);
    assert!(!demo.ended_by("KILL").success());
    demo.assert_alone();
}

#[test]
fn a_folder_that_is_kept_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let keep = folder.path().join("kept");
    let args = ["--keep", keep.to_str().unwrap()];
    let mut demo = Demo::start(&args);
    let first = sh(demo.curl_lines()[0]);
    let again = run(&["--check", args[0], args[1]]);
    assert_eq!(again.status.code(), Some(1), "one at a time");
    let what = String::from_utf8(again.stderr).unwrap();
    assert!(what.starts_with("onceward: demo: --keep: another demo uses ") && what.lines().count() == 1, "{what}");

    // The line of the first demo, sent to the second, finds the first one's answer.
    let (line, gateway) = (demo.curl_lines()[1].to_owned(), demo.url("gateway"));
    assert!(demo.ended_by("INT").success());
    let demo = Demo::start(&args);
    let again = sh(&line.replace(&gateway, &demo.url("gateway")));
    let (status, outcome, body) = parts(&again);
    match demo.url("gateway") == gateway {
        true => assert_eq!((&*outcome, body), ("replayed", parts(&first).2)),
        // Where somebody took the port meanwhile, the authority is another, and so is the request.
        false => assert_eq!((status, &*outcome), ("422", "mismatch")),
    }
    drop(demo);
    let check = run(&["--check", args[0], args[1]]);
    let said = String::from_utf8(check.stdout).unwrap();
    assert!(check.status.success() && said.contains("2 in the database, 1 before"), "{said}");
}

#[test]
fn what_cannot_be_done_is_said_in_one_line() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let output = run(&["--keep", path]);
    assert_eq!(output.status.code(), Some(1));
    let what = String::from_utf8(output.stderr).unwrap();
    assert!(what.starts_with(&format!("onceward: demo: --keep: {path} ")) && what.lines().count() == 1, "{what}");

    let help = Command::new(env!("CARGO_BIN_EXE_onceward")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("demo ") && !help.contains("demo-"), "{help}");
}

#[test]
fn settings_of_another_gateway_do_not_reach_the_demo() {
    let temporary = tempfile::tempdir().unwrap();
    let mut command = command(temporary.path());
    let strange = [("ONCEWARD_UPSTREAM", "http://127.0.0.1:1"), ("ONCEWARD_LOG", "off"), ("ONCEWARD_LEASE", "x")];
    let output = command.arg("--check").envs(strange).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_relay_loses_the_answer_and_not_the_order() {
    let demo = Demo::start(&[]);
    let (gateway, relay) = (demo.url("gateway"), demo.url("relay"));
    let lossy = demo.curl_lines()[0].replace(&gateway, &relay);
    let output = Command::new("sh").args(["-c", &lossy]).output().unwrap();
    // curl's word for a connection that closed without a byte; the line break is its own.
    assert_eq!((output.status.code(), &*output.stdout), (Some(52), &b"\n"[..]), "{output:?}");
    assert_eq!(demo.orders(), 1, "the whole answer was read before the connection was cut");
    let retry = sh(demo.curl_lines()[0]);
    assert_eq!((parts(&retry).0, &*parts(&retry).1), ("201", "replayed"));
    assert_eq!(demo.orders(), 1);

    // The body can come in chunks, and a browser that asks first is allowed what the page sends.
    let chunked = lossy.replace("-d ", "-H 'Transfer-Encoding: chunked' -d ");
    assert_eq!(Command::new("sh").args(["-c", &chunked]).output().unwrap().status.code(), Some(52));
    assert_eq!(demo.orders(), 1);
    let preflight = sh(&format!("curl -sS -i -X OPTIONS {relay}/orders -H 'Origin: {gateway}'")).to_lowercase();
    assert!(preflight.starts_with("http/1.1 204") && preflight.contains("idempotency-key"), "{preflight}");
}

#[test]
fn the_network_is_as_bad_as_a_request_asks() {
    let demo = Demo::start(&[]);
    let (gateway, network) = (demo.url("gateway"), demo.url("network"));
    // The same request to the gateway whichever way it comes: `Host` is what it was.
    let line = format!("{} -H 'Host: a.shop'", demo.curl_lines()[0]);
    let bad = |trouble: &str| {
        let line = format!("{} -H 'Demo-Network: {trouble}'", line.replace(&gateway, &network));
        Command::new("sh").args(["-c", &line]).output().unwrap()
    };
    // Killed: a real process, after it has kept the answer, and once for all who ask for it by one name.
    assert_eq!(bad("kill one").status.code(), Some(52));
    let gone = demo.until("is gone");
    assert!(gone.contains(&format!("(pid {})", demo.pid("gateway"))) && gone.contains("signal: 9"), "{gone}");
    demo.until("the gateway is back: pid ");
    for lost in ["kill one", "lose"] {
        assert_eq!(bad(lost).status.code(), Some(52), "{lost}");
    }
    let slow = bad("slow");
    let slow = String::from_utf8(slow.stdout).unwrap();
    assert_eq!((parts(&slow).0, &*parts(&slow).1), ("201", "replayed"));
    assert!(slow.to_lowercase().contains("demo-network: here"), "{slow}");
    let direct = sh(&line);
    assert_eq!((&*parts(&direct).1, parts(&direct).2), ("replayed", parts(&slow).2));
    assert_eq!(demo.orders(), 1);
    // The second `kill one` killed nobody.
    assert!(!demo.lines.try_iter().any(|line| line.contains("is gone")));
    // The page comes through it, and says where it is.
    let page = sh(&format!("curl -sS {network}/"));
    assert!(page.contains(&format!("<meta name=\"network\" content=\"{network}\">")), "{page}");
}

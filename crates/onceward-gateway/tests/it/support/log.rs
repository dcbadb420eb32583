//! What a process says on its standard error.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use super::PATIENCE;

#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    lines: Arc<(Mutex<Vec<String>>, Condvar)>,
    ended: Arc<(Mutex<bool>, Condvar)>,
}

impl Log {
    pub(super) fn follow(&self, from: impl Read + Send + 'static) {
        let log = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                log.lines.0.lock().unwrap().push(line);
                log.lines.1.notify_all();
            }
            *log.ended.0.lock().unwrap() = true;
            log.ended.1.notify_all();
        });
    }

    /// All that was said so far.
    pub(super) fn text(&self) -> String {
        self.lines.0.lock().unwrap().join("\n")
    }

    pub(super) fn wait_for(&self, text: &str) -> String {
        let until = Instant::now() + PATIENCE;
        let mut lines = self.lines.0.lock().unwrap();
        loop {
            if let Some(line) = lines.iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{text:?} was not logged:\n{}", lines.join("\n"));
            lines = self.lines.1.wait_timeout(lines, left).unwrap().0;
        }
    }

    pub(super) fn wait_for_end(&self) {
        let ended = self.ended.0.lock().unwrap();
        let (ended, _) = self.ended.1.wait_timeout_while(ended, PATIENCE, |ended| !*ended).unwrap();
        assert!(*ended, "it does not end");
    }
}

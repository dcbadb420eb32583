//! Logs: for people on a terminal, as JSON otherwise. Nothing that serves, renews or hears signals waits for them.
//!
//! Lines go through a bounded queue to a thread of its own. Where nobody reads them, the queue fills, and further lines are
//! dropped and counted.

use std::collections::HashMap;
use std::fmt::{self, Debug, Write as _};
use std::hash::{DefaultHasher, Hasher};
use std::io::IsTerminal;
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// The variable that says what is logged, such as `info` or `onceward=debug`.
pub(crate) const FILTER: &str = "ONCEWARD_LOG";
/// The variable that says how: `text` or `json`.
pub(crate) const FORMAT: &str = "ONCEWARD_LOG_FORMAT";

/// Upper bound on lines that wait to be written.
const QUEUE_LINES: usize = 4096;
/// Upper bound on equal lines within [`WINDOW`].
const EQUAL_MAX: u32 = 100;
/// The time in which equal lines are counted.
const WINDOW: Duration = Duration::from_secs(10);
/// Upper bound on kinds of lines that are told apart; all further ones count as one.
const KINDS_MAX: usize = 1024;

/// The queue's thread, which writes what is left when this is dropped.
static WRITER: Mutex<Option<WorkerGuard>> = Mutex::new(None);
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();
static EQUAL: LazyLock<EqualLines> = LazyLock::new(EqualLines::default);

/// Begins to log to standard error.
pub(crate) fn start() -> Result<(), String> {
    let directives = std::env::var(FILTER).unwrap_or_default();
    let directives = if directives.is_empty() { "info" } else { &directives };
    let filter = EnvFilter::try_new(directives)
        .map_err(|_| format!("{FILTER}: {directives:?} is no filter; write error, warn, info, debug or trace"))?;
    let format = std::env::var(FORMAT).unwrap_or_default();
    let is_json = match format.as_str() {
        "json" => true,
        "text" => false,
        "" => !std::io::stderr().is_terminal(),
        other => return Err(format!("{FORMAT}: {other:?} is not known; write \"text\" or \"json\"")),
    };
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(QUEUE_LINES)
        .thread_name("log")
        .finish(std::io::stderr());
    let dropped = writer.error_counter();
    // It would be told of by a macro that panics where it cannot be written either, in the midst of whatever was logged: a log
    // on a full disk ended the store's writer so.
    let log = tracing_subscriber::fmt::layer().with_writer(writer).log_internal_errors(false);
    let log = match is_json {
        true => log.json().flatten_event(true).with_current_span(false).boxed(),
        false => log.with_ansi(std::io::stderr().is_terminal()).with_target(false).boxed(),
    };
    // A second start in one process, as tests do, leaves the first one in place.
    if tracing_subscriber::registry().with(filter).with(LimitEqualLines).with(log).try_init().is_ok() {
        let _ = DROPPED.set(dropped);
        *WRITER.lock() = Some(guard);
        // The default hook writes to standard error itself, and would wait for whoever reads it.
        std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a task panicked")));
    }
    Ok(())
}

/// Writes the lines that wait, for about a second at most. Further lines are dropped.
pub(crate) fn end() {
    drop(WRITER.lock().take());
}

/// The number of lines that were dropped since the start, because nobody read them.
pub(crate) fn dropped_lines() -> u64 {
    DROPPED.get().map_or(0, |dropped| dropped.dropped_lines() as u64)
}

/// Says how many equal lines were left out, every [`WINDOW`].
pub(crate) async fn report_equal_lines() {
    loop {
        tokio::time::sleep(WINDOW).await;
        for (line, count) in EQUAL.take_left_out(Instant::now()) {
            tracing::warn!(line, count, "equal lines were left out of the log");
        }
    }
}

/// Leaves lines out that came too often. What is told of each attempt once, and the audit, is never left out.
struct LimitEqualLines;

impl<S: Subscriber> Layer<S> for LimitEqualLines {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if metadata.target() == "onceward::audit" || *metadata.level() > Level::INFO {
            return true;
        }
        let mut line = Line::new(metadata);
        event.record(&mut line);
        let is_limited = *metadata.level() < Level::INFO || line.is_refusal;
        !is_limited || EQUAL.may_write(line, Instant::now())
    }
}

/// A line, as far as it is compared.
struct Line {
    hasher: DefaultHasher,
    message: String,
    is_refusal: bool,
}

impl Line {
    fn new(metadata: &Metadata<'_>) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(metadata.target().as_bytes());
        hasher.write_u32(metadata.line().unwrap_or_default());
        Self { hasher, message: String::new(), is_refusal: false }
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.hasher.write(text.as_bytes());
        Ok(())
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            // These differ from request to request.
            "request" | "instance" | "ms" | "peer" => return,
            "message" => self.message = format!("{value:?}"),
            _ => {}
        }
        // Nothing fails in a hash.
        let _ = write!(self, "{}={value:?};", field.name());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.is_refusal |=
            field.name() == "outcome" && matches!(value, "rejected" | "mismatch" | "in-flight" | "expired");
        self.record_debug(field, &value);
    }
}

/// Counts equal lines.
#[derive(Default)]
struct EqualLines(Mutex<HashMap<u64, Seen>>);

struct Seen {
    since: Instant,
    count: u32,
    message: String,
}

impl EqualLines {
    fn may_write(&self, line: Line, now: Instant) -> bool {
        let mut kinds = self.0.lock();
        let mut kind = line.hasher.finish();
        if kinds.len() >= KINDS_MAX && !kinds.contains_key(&kind) {
            kind = 0;
        }
        let seen = kinds.entry(kind).or_insert_with(|| Seen { since: now, count: 0, message: line.message });
        // What was left out before is still to be told, so that a window ends in `take_left_out` where there is some.
        if now.duration_since(seen.since) >= WINDOW && seen.count <= EQUAL_MAX {
            (seen.since, seen.count) = (now, 0);
        }
        seen.count = seen.count.saturating_add(1);
        seen.count <= EQUAL_MAX
    }

    /// Ends the windows that are over. Returns the lines of which some were left out, and how many.
    fn take_left_out(&self, now: Instant) -> Vec<(String, u32)> {
        let mut left_out = Vec::new();
        self.0.lock().retain(|_, seen| {
            if now.duration_since(seen.since) < WINDOW {
                return true;
            }
            if seen.count > EQUAL_MAX {
                left_out.push((std::mem::take(&mut seen.message), seen.count - EQUAL_MAX));
            }
            false
        });
        left_out
    }
}

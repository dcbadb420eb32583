//! Logging: text on a terminal, JSON otherwise. No task that serves, renews or handles signals
//! blocks on it.
//!
//! Lines pass through a bounded queue to a dedicated thread. If standard error is not read, the
//! queue fills, and further lines are dropped and counted.

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

/// Environment variable with the filter, such as `info` or `onceward=debug`.
pub(crate) const FILTER: &str = "ONCEWARD_LOG";
/// Environment variable with the format: `text` or `json`.
pub(crate) const FORMAT: &str = "ONCEWARD_LOG_FORMAT";

/// Upper bound on queued lines.
const QUEUE_LINES: usize = 4096;
/// Upper bound on equal lines within [`WINDOW`].
const EQUAL_MAX: u32 = 100;
/// Window in which equal lines are counted.
const WINDOW: Duration = Duration::from_secs(10);
/// Upper bound on kinds of lines that are counted separately; all further ones share one counter.
const KINDS_MAX: usize = 1024;

/// Guard of the writer thread; dropping it writes the queued lines.
static WRITER: Mutex<Option<WorkerGuard>> = Mutex::new(None);
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();
static EQUAL: LazyLock<EqualLines> = LazyLock::new(EqualLines::default);

/// Starts logging to standard error.
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
    // tracing would report such errors with a macro that panics if standard error cannot be
    // written, inside the code that logs: on a full disk, a log line ended the store's writer this
    // way.
    let log = tracing_subscriber::fmt::layer().with_writer(writer).log_internal_errors(false);
    let log = match is_json {
        true => log.json().flatten_event(true).with_current_span(false).boxed(),
        false => log.with_ansi(std::io::stderr().is_terminal()).with_target(false).boxed(),
    };
    // A second start in one process, as in tests, keeps the first one.
    if tracing_subscriber::registry().with(filter).with(LimitEqualLines).with(log).try_init().is_ok() {
        let _ = DROPPED.set(dropped);
        *WRITER.lock() = Some(guard);
        // The default hook writes to standard error itself, and would block on its reader.
        std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a task panicked")));
    }
    Ok(())
}

/// Writes the queued lines, for about a second at most. Further lines are dropped.
pub(crate) fn end() {
    drop(WRITER.lock().take());
}

/// Returns the number of lines dropped since the start, because standard error was not read.
pub(crate) fn dropped_lines() -> u64 {
    DROPPED.get().map_or(0, |dropped| dropped.dropped_lines() as u64)
}

/// Logs how many equal lines were suppressed, every [`WINDOW`].
pub(crate) async fn report_equal_lines() {
    loop {
        tokio::time::sleep(WINDOW).await;
        for (line, count) in EQUAL.take_left_out(Instant::now()) {
            tracing::warn!(line, count, "equal lines were left out of the log");
        }
    }
}

/// Suppresses lines that are logged too often. Never suppresses the audit, nor what is logged once
/// per attempt.
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

/// Parts of a line that are compared.
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
        // Writing to a hash cannot fail.
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
        // Suppressed lines are still to be reported, so a window with some ends in `take_left_out`.
        if now.duration_since(seen.since) >= WINDOW && seen.count <= EQUAL_MAX {
            (seen.since, seen.count) = (now, 0);
        }
        seen.count = seen.count.saturating_add(1);
        seen.count <= EQUAL_MAX
    }

    /// Ends the windows that have expired. Returns the lines of which some were suppressed, and
    /// their number.
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

//! Logs: for people on a terminal, as JSON otherwise.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// The variable that says what is logged, such as `info` or `onceward=debug`.
pub(crate) const FILTER: &str = "ONCEWARD_LOG";
/// The variable that says how: `text` or `json`.
pub(crate) const FORMAT: &str = "ONCEWARD_LOG_FORMAT";

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
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // It would be told of by a macro that panics where it cannot be written either, in the midst of whatever was logged:
        // a log on a full disk ended the store's writer so.
        .log_internal_errors(false);
    // A second start in one process, as tests do, leaves the first one in place.
    let _ = match is_json {
        true => log.json().flatten_event(true).with_current_span(false).try_init(),
        false => log.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init(),
    };
    Ok(())
}

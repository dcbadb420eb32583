//! What the engine tells whoever counts: a small trait, so that no telemetry crate's version is part of this one.

use std::fmt::Debug;
use std::time::Duration;

use crate::secret::RecordId;
use crate::wire::Outcome;

/// Is told what happens. Called on the path of requests: count, and return.
pub trait Observer: Debug + Send + Sync + 'static {
    /// A keyed request got its answer. `id` is absent where it was refused before a record was looked at.
    fn answered(&self, route: &str, outcome: Outcome, id: Option<&RecordId>);

    /// A duplicate was answered without an execution.
    fn prevented(&self, route: &str);

    /// An attempt executed, and this is how long it took.
    fn executed(&self, route: &str, took: Duration);

    /// A holder that was overtaken executed all the same.
    fn second_execution(&self, route: &str);

    /// The store was asked: `op` is the method's name.
    fn store(&self, op: &'static str, took: Duration, ok: bool);
}

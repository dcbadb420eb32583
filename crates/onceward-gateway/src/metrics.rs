//! Metrics, under the names that alerts refer to.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use onceward::observe::{Observer, PrincipalChange};
use onceward::policy::Policy;
use onceward::secret::RecordId;
use onceward::wire::Outcome;
use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

tokio::task_local! {
    /// Record id for the log line of the request that this task serves.
    pub(crate) static RECORD: parking_lot::Mutex<Option<RecordId>>;
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRoute {
    route: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfChange {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStore {
    op: &'static str,
}

/// Metrics of the gateway.
pub(crate) struct Metrics {
    registry: Registry,
    /// Created at the start, so that counting looks up one route and allocates nothing.
    routes: HashMap<Arc<str>, OneRoute>,
    second_executions: Counter,
    store_seconds: Family<OfStore, Histogram, fn() -> Histogram>,
    store_errors: Family<OfStore, Counter>,
    claims_in_flight: Gauge<u64, AtomicU64>,
    keys_unknown: Gauge<u64, AtomicU64>,
    principal_changes: Family<OfChange, Counter>,
    /// Last change of each kind: its route and its details.
    last_changes: Mutex<BTreeMap<&'static str, (String, String)>>,
    executing: Gauge<u64, AtomicU64>,
    log_lines_dropped: Counter,
}

struct OneRoute {
    answered: Vec<(Outcome, Counter)>,
    prevented: Counter,
    upstream_seconds: Histogram,
}

impl Metrics {
    /// Creates counters for these routes, all at zero: an alert on a rate needs the initial zero.
    pub(crate) fn new<'a>(policies: impl Iterator<Item = &'a Policy>) -> Self {
        let requests = Family::<Answered, Counter>::default();
        let prevented = Family::<OfRoute, Counter>::default();
        let upstream_seconds = Family::<OfRoute, Histogram, fn() -> Histogram>::new_with_constructor(seconds);
        let mut metrics = Self {
            registry: Registry::default(),
            routes: HashMap::new(),
            second_executions: Counter::default(),
            store_seconds: Family::new_with_constructor(seconds),
            store_errors: Family::default(),
            claims_in_flight: Gauge::default(),
            keys_unknown: Gauge::default(),
            principal_changes: Family::default(),
            last_changes: Mutex::default(),
            executing: Gauge::default(),
            log_lines_dropped: Counter::default(),
        };
        for change in PrincipalChange::ALL {
            let _ = metrics.principal_changes.get_or_create(&OfChange { kind: change.as_str() });
        }
        for policy in policies {
            let route = || OfRoute { route: policy.route.to_string() };
            let answered = |outcome: Outcome| {
                let labels = Answered { route: policy.route.to_string(), outcome: outcome.as_str() };
                (outcome, requests.get_or_create(&labels).clone())
            };
            let one = OneRoute {
                answered: Outcome::ALL.into_iter().map(answered).collect(),
                prevented: prevented.get_or_create(&route()).clone(),
                upstream_seconds: upstream_seconds.get_or_create(&route()).clone(),
            };
            metrics.routes.insert(Arc::clone(&policy.route), one);
        }
        let registry = &mut metrics.registry;
        registry.register("onceward_requests", "Answers to requests with a key, by what happened", requests);
        registry.register(
            "onceward_duplicates_prevented",
            "Requests that were answered without being executed again",
            prevented,
        );
        registry.register(
            "onceward_claims_in_flight",
            "Keys in the store that are being executed",
            metrics.claims_in_flight.clone(),
        );
        registry.register(
            "onceward_keys_unknown",
            "Keys in the store of which nobody knows whether they were executed",
            metrics.keys_unknown.clone(),
        );
        registry.register(
            "onceward_second_executions",
            "Executions that another attempt had overtaken",
            metrics.second_executions.clone(),
        );
        registry.register(
            "onceward_principal_changes",
            "Callers that became, or may become, another caller",
            metrics.principal_changes.clone(),
        );
        registry.register("onceward_store_seconds", "How long the store took", metrics.store_seconds.clone());
        registry.register("onceward_store_errors", "What the store failed to do", metrics.store_errors.clone());
        registry.register(
            "onceward_executions",
            "Requests that execute in this process, with or without a key",
            metrics.executing.clone(),
        );
        registry.register(
            "onceward_log_lines_dropped",
            "Log lines that were dropped because nobody read them",
            metrics.log_lines_dropped.clone(),
        );
        registry.register("onceward_upstream_seconds", "How long executions took", upstream_seconds);
        metrics
    }

    /// Sets the values that only the store knows, for the next [`Metrics::text`].
    pub(crate) fn set_census(&self, in_flight: u64, unknown: u64) {
        self.claims_in_flight.set(in_flight);
        self.keys_unknown.set(unknown);
    }

    /// Counts a principal rule that differs from the rule with which the keys in the store were
    /// made.
    pub(crate) fn count_rule_change(&self) {
        self.principal_changes.get_or_create(&OfChange { kind: PrincipalChange::Rule.as_str() }).inc();
    }

    /// Returns warnings about callers, for operators.
    pub(crate) fn principal_warnings(&self) -> Vec<String> {
        let changes = self.last_changes.lock();
        let warning = |change: PrincipalChange| {
            let (route, name) = changes.get(change.as_str())?;
            let count = self.principal_changes.get_or_create(&OfChange { kind: change.as_str() }).get();
            let name = if name.is_empty() { String::new() } else { format!(" ({name})") };
            Some(format!("{}: {route}{name}, {count} times: {}", change.as_str(), change.advice()))
        };
        PrincipalChange::ALL.into_iter().filter_map(warning).collect()
    }

    /// Sets the values of the process, for the next [`Metrics::text`].
    pub(crate) fn set_process(&self, executing: usize, log_lines_dropped: u64) {
        self.executing.set(executing as u64);
        self.log_lines_dropped.inner().store(log_lines_dropped, Ordering::Relaxed);
    }

    /// Encodes all metrics in the text format of Prometheus.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

/// Creates a histogram with buckets from half a millisecond to a minute.
fn seconds() -> Histogram {
    Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0])
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Observer for Metrics {
    fn answered(&self, route: &str, outcome: Outcome, id: Option<&RecordId>) {
        if let Some((_, counter)) =
            self.routes.get(route).and_then(|one| one.answered.iter().find(|(counted, _)| *counted == outcome))
        {
            counter.inc();
        }
        if let Some(id) = id {
            // Outside of a request, as in the self-test, no log line needs it.
            let _ = RECORD.try_with(|record| *record.lock() = Some(*id));
        }
    }

    fn duplicate_prevented(&self, route: &str) {
        if let Some(one) = self.routes.get(route) {
            one.prevented.inc();
        }
    }

    fn principal_changed(&self, route: &str, change: PrincipalChange, name: &str) {
        self.principal_changes.get_or_create(&OfChange { kind: change.as_str() }).inc();
        self.last_changes.lock().insert(change.as_str(), (route.to_owned(), name.to_owned()));
    }

    fn executed(&self, route: &str, took: Duration) {
        if let Some(one) = self.routes.get(route) {
            one.upstream_seconds.observe(took.as_secs_f64());
        }
    }

    fn second_execution(&self, route: &str) {
        self.second_executions.inc();
        tracing::error!(route, "a holder that was overtaken executed all the same");
    }

    fn store(&self, op: &'static str, took: Duration, ok: bool) {
        self.store_seconds.get_or_create(&OfStore { op }).observe(took.as_secs_f64());
        if !ok {
            self.store_errors.get_or_create(&OfStore { op }).inc();
        }
    }
}

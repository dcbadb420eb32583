//! Limits and notices about callers, in this process: the rate of new keys of each, and one request
//! under two callers.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use quick_cache::sync::Cache;

use super::{Engine, KeyedRequest, Shared};
use crate::claim::Attempt;
use crate::observe::PrincipalChange;
use crate::principal::{Principal, PrincipalRule, UnidentifiedCallerError};

/// Upper bound on callers whose new keys are counted. A caller whose count is evicted begins at
/// zero.
const RATES_MAX: usize = 65_536;
/// Upper bound on requests whose caller is remembered.
const REQUESTS_MAX: usize = 16_384;
/// Time after a request for which another caller with the same key and content is reported.
const SAME_REQUEST_FOR: Duration = Duration::from_secs(600);
/// Least time between two log messages about callers.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// Bounded tables of callers.
pub(super) struct Callers {
    /// New keys that a caller may still send, and the time of that count.
    rates: Mutex<quick_cache::unsync::Cache<(Principal, u32), (f64, Duration)>>,
    /// The caller that last sent a key with a fingerprint.
    requests: Cache<[u8; 32], (Principal, Duration)>,
    /// Time of the last log message of each kind, and the number of messages omitted since.
    log: Mutex<HashMap<&'static str, (Duration, u64)>>,
}

impl Default for Callers {
    fn default() -> Self {
        Self {
            rates: Mutex::new(quick_cache::unsync::Cache::new(RATES_MAX)),
            requests: Cache::new(REQUESTS_MAX),
            log: Mutex::default(),
        }
    }
}

impl Callers {
    /// Returns the number of messages of a kind that were omitted since the last one, if a message
    /// is due.
    fn log_line_due(&self, kind: &'static str, now: Duration) -> Option<u64> {
        let mut log = self.log.lock();
        let Some((last, left_out)) = log.get_mut(kind) else {
            log.insert(kind, (now, 0));
            return Some(0);
        };
        if now.saturating_sub(*last) < LOG_EVERY {
            *left_out += 1;
            return None;
        }
        *last = now;
        Some(std::mem::take(left_out))
    }
}

impl Shared {
    /// Takes one of the new keys that the caller may send. If none is left, returns the seconds
    /// after which it may send one.
    pub(super) fn take_new_key(&self, held: &Attempt) -> Result<(), u64> {
        let Some((bucket, most)) = rate_of(held) else { return Ok(()) };
        let now = self.clock.now();
        let mut rates = self.callers.rates.lock();
        let per_second = most / 60.0;
        let left = rates
            .get(&bucket)
            .map_or(most, |(left, since)| (left + now.saturating_sub(*since).as_secs_f64() * per_second).min(most));
        if left < 1.0 {
            return Err((((1.0 - left) / per_second).ceil() as u64).max(1));
        }
        rates.insert(bucket, (left - 1.0, now));
        Ok(())
    }

    /// Gives back a token that was taken for a key that turned out not to be new.
    pub(super) fn give_new_key_back(&self, held: &Attempt) {
        let Some((bucket, most)) = rate_of(held) else { return };
        let mut rates = self.callers.rates.lock();
        if let Some(mut rate) = rates.get_mut(&bucket) {
            rate.0 = (rate.0 + 1.0).min(most);
        }
    }

    /// Reports a request whose key and content another caller sent within minutes: a credential was
    /// likely renewed, and a retry executed again.
    pub(super) fn notice_two_callers(&self, ask: &KeyedRequest, held: &Attempt) {
        if matches!(&ask.policy.principal, PrincipalRule::Parts(parts) if parts.is_empty()) {
            return;
        }
        let mut request = held.key_hash.0;
        request.iter_mut().zip(held.print.fingerprint.0).for_each(|(byte, other)| *byte ^= other);
        let now = self.clock.now();
        let before = self.callers.requests.get(&request);
        match before {
            Some((caller, _)) if caller == ask.principal => return,
            Some((_, at)) if now.saturating_sub(at) < SAME_REQUEST_FOR => {
                self.report_change(&ask.policy.route, PrincipalChange::SameRequest, "");
            }
            _ => {}
        }
        self.callers.requests.insert(request, (ask.principal, now));
    }

    fn report_change(&self, route: &str, change: PrincipalChange, name: &str) {
        if let Some(observer) = &self.observer {
            observer.principal_changed(route, change, name);
        }
        if let Some(left_out) = self.callers.log_line_due(change.as_str(), self.clock.now()) {
            tracing::warn!(kind = change.as_str(), route, name, left_out, "{}", change.advice());
        }
    }
}

/// Returns the table's key and the most keys a minute. `None`: not limited.
fn rate_of(held: &Attempt) -> Option<((Principal, u32), f64)> {
    let most = held.policy.keys_per_minute?.get();
    let is_one_for_all = held.policy.principal.parts().is_empty();
    let is_named = matches!(held.principal, Principal::Named(_));
    (is_named && !is_one_for_all).then_some(((held.principal, most), f64::from(most)))
}

impl Engine {
    /// Logs that a caller could not be identified, at most once in a few seconds.
    pub(crate) fn report_unidentified(&self, route: &str, error: &UnidentifiedCallerError) {
        let shared = &self.shared;
        let code = error.code().row().code;
        if let Some(left_out) = shared.callers.log_line_due(code, shared.clock.now()) {
            tracing::warn!(code, route, left_out, "{error}");
        }
    }

    /// Reports that the credential of a caller changed.
    pub fn report_change(&self, route: &str, change: PrincipalChange, name: &str) {
        self.shared.report_change(route, change, name);
    }
}

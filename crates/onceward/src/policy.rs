//! Policy of a route: its methods, keys, guarantee and times.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderName, RETRY_AFTER};
use http::{HeaderMap, Method, StatusCode, Uri};

use crate::fingerprint::{Pointer, Rules};
use crate::principal::{self, KeySpace, Principal, RequestView};
use crate::wire::Outcome;

/// Handling of a request without a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum MissingKey {
    /// Passes it on, unprotected.
    #[default]
    Pass,
    /// Refuses it with `key_missing`.
    Reject,
    /// Generates a key for it, which the response returns in `Idempotency-Key`.
    Generate,
    /// Derives a key from the caller and the fingerprint, so that the same request from the same
    /// caller is one operation: for clients that cannot be changed. Never for anonymous callers,
    /// whose equal requests may come from different people: those requests pass.
    Derive {
        /// Time from its completion during which the same request is the same operation.
        window: Duration,
    },
}

/// Keys that a route accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AcceptedKeys {
    /// Any key that a client makes.
    #[default]
    Any,
    /// Only keys that `POST keys` issued to this caller for this route.
    Issued,
}

/// Guarantee for a key whose holder was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Guarantee {
    /// The key is unknown, and is not executed again.
    #[default]
    AtMostOnce,
    /// The next caller takes over: running twice is harmless on such a route.
    AtLeastOnce,
}

impl Guarantee {
    /// Returns the name used in settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AtMostOnce => "at-most-once",
            Self::AtLeastOnce => "at-least-once",
        }
    }
}

/// Handling of a response without a declared length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stream {
    /// A declared stream, by its content type or `X-Accel-Buffering: no`, is passed on as it
    /// arrives and is not stored. Every other response is read to its end and stored first.
    #[default]
    Auto,
    /// Every response without a declared length is passed on as it arrives. It is recorded without
    /// its body before its first byte.
    Pass,
    /// Every response without a declared length is passed on as it arrives, and is stored once it
    /// is complete. Its key is in flight until then.
    Keep,
}

/// Handling of a response that ends with its connection, so that a truncated one seems complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseDelimited {
    /// The response is passed on as it arrives, and is recorded without its body.
    #[default]
    Pass,
    /// The response is stored like any other.
    Keep,
}

/// Marks a response that ends with its connection. An inner service that forwards puts it into the
/// response's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndsWithConnection;

/// Policy of one route. [`Default`] gives the documented defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Policy {
    /// Name of the route in metrics and logs.
    pub route: Arc<str>,
    /// Methods that are protected.
    pub methods: Vec<Method>,
    /// Handling of a request without a key.
    pub missing: MissingKey,
    /// Keys that are accepted.
    pub keys: AcceptedKeys,
    /// Field of a plain HTML form that contains the key if no header does.
    pub form_field: Option<Arc<str>>,
    /// Headers that carry the key as `Idempotency-Key` does, under providers' own names.
    pub key_headers: Vec<HeaderName>,
    /// Members of a JSON body that contain the key if no header does. The first one that is present
    /// applies.
    pub key_members: Vec<Pointer>,
    /// Guarantee for a key whose holder was lost.
    pub guarantee: Guarantee,
    /// Time for which a response is stored, from completion.
    pub retention: Duration,
    /// Time for which the key is still known after that.
    pub tombstone: Duration,
    /// Time for which a claim is valid without a renewal.
    pub lease: Duration,
    /// Time that a duplicate waits for the response if it states no preference.
    pub wait: Duration,
    /// The same for a key from a form: a browser does not retry.
    pub form_wait: Duration,
    /// Parts of a request that name the caller.
    pub principal: principal::PrincipalRule,
    /// Additional credentials: a request that has one of them and no named part is refused.
    pub credentials: Arc<principal::Credentials>,
    /// Separation of key spaces besides the principal.
    pub scope: principal::Scope,
    /// Upper bound on the new keys that a caller may send a minute. Never applies if all callers
    /// are one, nor to anonymous callers.
    pub keys_per_minute: Option<NonZeroU32>,
    /// Rules that a fingerprint is made with.
    pub fingerprint: Arc<Rules>,
    /// Statuses by which the service declares that it did not execute the request, and that the
    /// same one may be sent again.
    pub release_on: StatusSet,
    /// Statuses that a proxy may return after the service executed.
    pub unknown_on: StatusSet,
    /// Handling of a response without a declared length.
    pub stream: Stream,
    /// Handling of a response that ends with its connection.
    pub close_delimited: CloseDelimited,
    /// Time that the client waits for a response to begin, instead of [`Limits::upstream_timeout`].
    ///
    /// [`Limits::upstream_timeout`]: crate::limits::Limits::upstream_timeout
    pub upstream_timeout: Option<Duration>,
    /// Upper bound on the body of a keyed request in bytes, instead of [`Limits::request_body`].
    ///
    /// [`Limits::request_body`]: crate::limits::Limits::request_body
    pub request_body: Option<usize>,
    /// Member of a JSON body by which a response declares that the request was not executed.
    pub released_when: Option<JsonPointer>,
    /// True if the inner service gets the client's `Idempotency-Key`.
    pub forward_key: bool,
}

/// Statuses that free the key, by default. `docs/statuses.md` has the source of each.
const RELEASE_ON: &str = "401, 403, 407, 411, 412, 417, 419, 421, 423, 425, 426, 428, 429, 431, 440, 449, 498, 509, 511, 529, \
    561, 400+dpop-nonce, 400+payment-required, 400+www-authenticate, 402+dpop-nonce, 402+payment-required, \
    402+www-authenticate, 415+accept-encoding";
/// Statuses that leave the outcome unknown, by default.
const UNKNOWN_ON: &str = "408, 502, 503, 504, 520-527, 530, 598, 599";

impl Default for Policy {
    fn default() -> Self {
        const HOUR: u64 = 3600;
        Self {
            route: "default".into(),
            methods: vec![Method::POST, Method::PATCH],
            missing: MissingKey::Pass,
            keys: AcceptedKeys::Any,
            form_field: None,
            key_headers: Vec::new(),
            key_members: Vec::new(),
            guarantee: Guarantee::AtMostOnce,
            retention: Duration::from_secs(24 * HOUR),
            tombstone: Duration::from_secs(30 * 24 * HOUR),
            lease: Duration::from_secs(15),
            wait: Duration::ZERO,
            form_wait: Duration::from_secs(10),
            principal: principal::PrincipalRule::Unset,
            credentials: Arc::default(),
            scope: principal::Scope::default(),
            keys_per_minute: None,
            fingerprint: Arc::default(),
            stream: Stream::Auto,
            close_delimited: CloseDelimited::Pass,
            upstream_timeout: None,
            request_body: None,
            // A test reads both lists, so that neither falls back to an empty one.
            release_on: RELEASE_ON.parse().unwrap_or_default(),
            unknown_on: UNKNOWN_ON.parse().unwrap_or_default(),
            released_when: None,
            forward_key: true,
        }
    }
}

/// Error of a policy that would void the guarantee.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyError {
    /// Retention and tombstone are both zero.
    KeepsNothing,
    /// The lease is zero.
    NoLease,
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KeepsNothing => {
                "retention and tombstone are both zero, so that a retry would execute again; set one of them, such as retention to 24 h"
            }
            Self::NoLease => "the lease is zero, so that each holder counts as lost at once; set it, such as to 15 s",
        })
    }
}

impl std::error::Error for PolicyError {}

impl Policy {
    /// Returns the caller of a request.
    ///
    /// # Errors
    ///
    /// See [`PrincipalRule::identify`](principal::PrincipalRule::identify).
    pub fn identify<'a>(
        &self,
        request: impl Into<RequestView<'a>>,
    ) -> Result<Principal, principal::UnidentifiedCallerError> {
        self.principal.identify(request, &self.credentials)
    }

    /// Returns the key space of a request.
    pub fn key_space(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> KeySpace {
        self.scope.of(&self.route, method, uri, headers)
    }

    /// Checks that the policy does not void its guarantee.
    ///
    /// # Errors
    ///
    /// [`PolicyError`], whose message names the setting and the fix.
    pub fn check(&self) -> Result<(), PolicyError> {
        match () {
            () if self.retention.is_zero() && self.tombstone.is_zero() => Err(PolicyError::KeepsNothing),
            () if self.lease.is_zero() => Err(PolicyError::NoLease),
            () => Ok(()),
        }
    }

    /// Sets the route's name in metrics and logs.
    pub fn route(mut self, route: impl Into<Arc<str>>) -> Self {
        self.route = route.into();
        self
    }

    /// Sets the methods that are protected.
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.methods = methods.into_iter().collect();
        self
    }

    /// Sets the handling of a request without a key.
    pub fn missing(mut self, missing: MissingKey) -> Self {
        self.missing = missing;
        self
    }

    /// Refuses requests without a key.
    pub fn require_key(self) -> Self {
        self.missing(MissingKey::Reject)
    }

    /// Sets the keys that are accepted.
    pub fn keys(mut self, keys: AcceptedKeys) -> Self {
        self.keys = keys;
        self
    }

    /// Sets the field of a plain HTML form that contains the key if no header does.
    pub fn form_field(mut self, name: impl Into<Arc<str>>) -> Self {
        self.form_field = Some(name.into());
        self
    }

    /// Sets the guarantee for a key whose holder was lost.
    pub fn guarantee(mut self, guarantee: Guarantee) -> Self {
        self.guarantee = guarantee;
        self
    }

    /// Sets the time for which a response is stored, from completion.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// Sets the time for which the key is still known after that.
    pub fn tombstone(mut self, tombstone: Duration) -> Self {
        self.tombstone = tombstone;
        self
    }

    /// Sets the time for which a claim is valid without a renewal.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Sets the time that a duplicate waits for the response if it states no preference.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Sets the rule that names the caller.
    pub fn principal(mut self, principal: impl Into<principal::PrincipalRule>) -> Self {
        self.principal = principal.into();
        self
    }

    /// Sets the rules that a fingerprint is made with.
    pub fn fingerprint(mut self, rules: Rules) -> Self {
        self.fingerprint = Arc::new(rules);
        self
    }

    /// Sets the statuses that mean: not executed, try again.
    pub fn release_on(mut self, statuses: StatusSet) -> Self {
        self.release_on = statuses;
        self
    }

    /// Sets the statuses that a proxy may return after the service executed.
    pub fn unknown_on(mut self, statuses: StatusSet) -> Self {
        self.unknown_on = statuses;
        self
    }

    /// Returns true if requests with this method are protected.
    pub fn covers(&self, method: &Method) -> bool {
        self.methods.contains(method)
    }

    /// Returns true if this is a protected method except for the case of its letters. Methods are
    /// case-sensitive, yet some servers execute `patch` anyway.
    pub fn differs_in_case(&self, method: &Method) -> bool {
        !self.covers(method) && self.methods.iter().any(|own| own.as_str().eq_ignore_ascii_case(method.as_str()))
    }

    /// Returns the disposition of an attempt by the head of its complete response: the service's
    /// own declaration, else the meaning of its status.
    pub fn disposition(&self, status: StatusCode, headers: &HeaderMap) -> Option<Disposition> {
        match Outcome::of(headers) {
            Some(Outcome::Released | Outcome::Mismatch | Outcome::Rejected) => return Some(Disposition::Released),
            Some(Outcome::Unknown | Outcome::InFlight) => return Some(Disposition::Unknown),
            Some(Outcome::NotStored) => return Some(Disposition::NotKept),
            Some(Outcome::Stored | Outcome::Replayed) => return None,
            Some(Outcome::Expired) | None => {}
        }
        // The route's own rule applies first. A 503 alone, with or without `Retry-After`, says
        // nothing: proxies return it for a connection that was reset after the service had
        // executed.
        if self.release_on.matches(status, headers) {
            Some(Disposition::Released)
        } else if self.unknown_on.matches(status, headers) {
            Some(Disposition::Unknown)
        } else if status.is_client_error() && headers.contains_key(RETRY_AFTER) {
            Some(Disposition::Released)
        } else {
            None
        }
    }
}

/// Disposition of an attempt that did not simply complete. An inner service that knows more than
/// its status says puts it into its response's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Disposition {
    /// No byte was sent: the key is released, and the client gets a problem.
    NotSent,
    /// The request may or may not have been executed.
    Unknown,
    /// The request was not executed; the key is free.
    Released,
    /// The request was executed; its response must not be stored.
    NotKept,
}

/// Set of statuses, each optionally only together with a header: `"408, 520-527, 503+retry-after"`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusSet(Vec<StatusRange>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct StatusRange {
    from: u16,
    to: u16,
    /// The response must have this header.
    with: Option<HeaderName>,
}

impl StatusRange {
    fn contains(&self, status: u16) -> bool {
        (self.from..=self.to).contains(&status)
    }
}

impl StatusSet {
    /// Returns true if the status is in the set, regardless of the response's headers.
    pub fn contains(&self, status: StatusCode) -> bool {
        self.always().any(|range| range.contains(status.as_u16()))
    }

    /// Returns true if a response with this status and these headers is in the set.
    pub fn matches(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        self.0.iter().any(|range| {
            range.contains(status.as_u16()) && range.with.as_ref().is_none_or(|name| headers.contains_key(name))
        })
    }

    /// Returns the first status that is in both sets, regardless of the headers.
    pub fn common(&self, other: &Self) -> Option<u16> {
        self.always()
            .flat_map(|range| range.from..=range.to)
            .find(|status| other.always().any(|range| range.contains(*status)))
    }

    /// Returns the set without this status.
    pub fn without(&self, status: u16) -> Self {
        let parts = self.0.iter().flat_map(|range| {
            let part = |from, to| (from <= to).then(|| StatusRange { from, to, with: range.with.clone() });
            match range.contains(status) {
                true => [part(range.from, status - 1), part(status + 1, range.to)],
                false => [part(range.from, range.to), None],
            }
        });
        Self(parts.flatten().collect())
    }

    fn always(&self) -> impl Iterator<Item = &StatusRange> {
        self.0.iter().filter(|range| range.with.is_none())
    }
}

impl FromIterator<(u16, u16)> for StatusSet {
    /// Creates a set from ranges, both ends included.
    fn from_iter<I: IntoIterator<Item = (u16, u16)>>(ranges: I) -> Self {
        Self(ranges.into_iter().map(|(from, to)| StatusRange { from, to, with: None }).collect())
    }
}

impl fmt::Display for StatusSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, StatusRange { from, to, with }) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            match from == to {
                true => write!(f, "{comma}{from}")?,
                false => write!(f, "{comma}{from}-{to}")?,
            }
            if let Some(name) = with {
                write!(f, "+{name}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for StatusSet {
    type Err = String;

    /// Parses a set such as `"408, 502-504, 503+retry-after"`.
    fn from_str(text: &str) -> Result<Self, String> {
        let status = |text: &str| match text.trim().parse() {
            Ok(status @ 200..=599) => Ok(status),
            _ => Err(format!(
                "{:?} is no status of an answer; write 200 to 599, or a range such as \"520-527\"",
                text.trim()
            )),
        };
        text.split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(|item| {
                let (statuses, with) = match item.split_once('+') {
                    None => (item, None),
                    Some((statuses, name)) => match HeaderName::from_str(name.trim()) {
                        Ok(name) => (statuses, Some(name)),
                        Err(_) => {
                            return Err(format!(
                                "{item:?} names no header; write a status, + and a header, such as \"503+retry-after\""
                            ));
                        }
                    },
                };
                match statuses.split_once('-') {
                    None => status(statuses).map(|one| StatusRange { from: one, to: one, with }),
                    Some((from, to)) => match (status(from)?, status(to)?) {
                        (from, to) if from <= to => Ok(StatusRange { from, to, with }),
                        _ => Err(format!("{item:?} runs backwards; write the lower status first")),
                    },
                }
            })
            .collect::<Result<_, String>>()
            .map(Self)
    }
}

/// Pointer to a member of a JSON document (RFC 6901), such as `/errors/0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonPointer(Arc<str>);

impl JsonPointer {
    /// Returns true if the document has that member, and its value is neither `null` nor `false`. A
    /// body that is not JSON has none.
    pub fn is_set_in(&self, body: &[u8]) -> bool {
        let document: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        document.pointer(&self.0).is_some_and(|member| !member.is_null() && *member != serde_json::Value::Bool(false))
    }
}

impl fmt::Display for JsonPointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for JsonPointer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_escaped = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
        match text.starts_with('/') && text.len() > 1 && is_escaped {
            true => Ok(Self(text.into())),
            false => Err(format!(
                "{text:?} is no JSON Pointer to a member; write \"/error\" or \"/errors/0\", with ~1 for a slash in a name and ~0 for a tilde"
            )),
        }
    }
}

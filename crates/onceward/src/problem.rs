//! Refusals: `application/problem+json` (RFC 9457), one row of the table per code.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, LINK, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Response, StatusCode};

use crate::wire::{IDEMPOTENCY_OUTCOME, Outcome};

#[cfg(feature = "layer")]
pub(crate) mod page;

/// Execution status of the key's operation, over all attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Executed {
    /// Executed.
    Yes,
    /// Not executed.
    No,
    /// Not known, or not checked.
    Unknown,
}

impl Executed {
    /// Returns the value used in the problem.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Unknown => "unknown",
        }
    }
}

/// Advice for the client's next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// Send again, with the same key.
    SameKey,
    /// Wait for `Retry-After`, then ask again with the same key.
    Wait,
    /// Fix the request first; it is then a new operation, with a new key.
    NewKey,
    /// Do not send again: check the status, or ask a person.
    Stop,
}

impl Retry {
    /// Returns the value used in the problem.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SameKey => "same-key",
            Self::Wait => "wait",
            Self::NewKey => "new-key",
            Self::Stop => "stop",
        }
    }
}

/// Codes of all refusals by Onceward itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the table below says what each means")]
pub enum Code {
    KeyMissing,
    KeyInvalid,
    MethodCase,
    KeysDiffer,
    FormUnreadable,
    JsonUnreadable,
    RequestIncomplete,
    TargetInvalid,
    HostInvalid,
    CredentialsAmbiguous,
    KeyForged,
    TokenInvalid,
    PrincipalUnknown,
    KeyForeign,
    OperationUnknown,
    InFlight,
    OutcomeUnknown,
    AnswerNotKept,
    KeyExpired,
    IssuedKeyExpired,
    RequestTooLarge,
    KeyReused,
    TooManyKeys,
    HeadersTooLarge,
    HandlerPanicked,
    RecordUnreadable,
    UpstreamUnreachable,
    UpstreamLost,
    StoreUnavailable,
    Draining,
    Overloaded,
    UpstreamTimeout,
    LoopDetected,
}

/// Row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The status of the response.
    pub status: StatusCode,
    /// The code, for machines.
    pub code: &'static str,
    /// The value of `Idempotency-Outcome`.
    pub outcome: Outcome,
    /// Execution status of the operation.
    pub executed: Executed,
    /// Advice for the next step.
    pub retry: Retry,
    /// The title, for people.
    pub title: &'static str,
    /// The cause and the fix.
    pub detail: &'static str,
}

impl Code {
    /// All codes, in the order of their statuses.
    pub const ALL: &'static [Self] = &[
        Self::KeyMissing,
        Self::KeyInvalid,
        Self::MethodCase,
        Self::KeysDiffer,
        Self::FormUnreadable,
        Self::JsonUnreadable,
        Self::RequestIncomplete,
        Self::TargetInvalid,
        Self::HostInvalid,
        Self::CredentialsAmbiguous,
        Self::KeyForged,
        Self::TokenInvalid,
        Self::PrincipalUnknown,
        Self::KeyForeign,
        Self::OperationUnknown,
        Self::InFlight,
        Self::OutcomeUnknown,
        Self::AnswerNotKept,
        Self::KeyExpired,
        Self::IssuedKeyExpired,
        Self::RequestTooLarge,
        Self::KeyReused,
        Self::TooManyKeys,
        Self::HeadersTooLarge,
        Self::HandlerPanicked,
        Self::RecordUnreadable,
        Self::UpstreamUnreachable,
        Self::UpstreamLost,
        Self::StoreUnavailable,
        Self::Draining,
        Self::Overloaded,
        Self::UpstreamTimeout,
        Self::LoopDetected,
    ];

    /// Returns the row of a code.
    #[rustfmt::skip]
    pub const fn row(self) -> Row {
        use Executed as E;
        use Outcome as O;
        use Retry as R;
        use StatusCode as S;
        let (status, code, outcome, executed, retry, title, detail) = match self {
            Self::KeyMissing => (S::BAD_REQUEST, "key_missing", O::Rejected, E::No, R::NewKey, "A key is required",
                "This route takes requests with an Idempotency-Key alone. Send one per action, and the same one on each retry of it."),
            Self::KeyInvalid => (S::BAD_REQUEST, "key_invalid", O::Rejected, E::No, R::NewKey, "The key is malformed",
                "The Idempotency-Key is malformed."),
            Self::MethodCase => (S::BAD_REQUEST, "method_case", O::Rejected, E::No, R::NewKey, "The method is in the wrong case",
                "Methods are case-sensitive, and this one is protected only in upper case; some servers execute it in any. Send it in upper case, as in PATCH."),
            Self::KeysDiffer => (S::BAD_REQUEST, "keys_differ", O::Rejected, E::No, R::NewKey, "Two keys that differ",
                "The request has two keys, and they differ. Send one key per action, in one place, or the same one in each."),
            Self::FormUnreadable => (S::BAD_REQUEST, "form_unreadable", O::Rejected, E::No, R::NewKey, "The form cannot be read",
                "A field of the form has the key on this route, and the form cannot be read: send it as its Content-Type says, with one boundary, names in each part, and no other Content-Encoding than gzip or deflate; or send the key in Idempotency-Key."),
            Self::JsonUnreadable => (S::BAD_REQUEST, "json_unreadable", O::Rejected, E::No, R::NewKey, "The JSON body cannot be read",
                "The JSON body cannot be read in one way only. Send a JSON document with each member once."),
            Self::RequestIncomplete => (S::BAD_REQUEST, "request_incomplete", O::Rejected, E::Unknown, R::SameKey, "The request was cut",
                "The request's body ended before it was whole. Send the request again with the same key."),
            Self::TargetInvalid => (S::BAD_REQUEST, "target_invalid", O::Rejected, E::No, R::NewKey, "The request target is invalid",
                "The target of the request line is neither a path that begins with a slash nor an http:// or https:// URL without user, password and fragment (RFC 9112, section 3.2). Send the path and the query alone."),
            Self::HostInvalid => (S::BAD_REQUEST, "host_invalid", O::Rejected, E::No, R::NewKey, "The Host header is invalid",
                "A request has one Host header: a name or an address, and a port if it is not the usual one (RFC 9112, section 3.2). Send one such line."),
            Self::CredentialsAmbiguous => (S::BAD_REQUEST, "credentials_ambiguous", O::Rejected, E::No, R::NewKey, "Two credentials name two callers",
                "A part of the request that names the caller came in two lines that differ. Which one the service uses is not known here; send one."),
            Self::TokenInvalid => (S::UNAUTHORIZED, "token_invalid", O::Rejected, E::No, R::Stop, "The token is not valid",
                "The token that names the caller is not valid. Send a valid one."),
            Self::TooManyKeys => (S::TOO_MANY_REQUESTS, "too_many_keys", O::Rejected, E::No, R::SameKey, "Too many new keys",
                "The caller sent more new keys than keys_per_minute allows. Send the request again with the same key after Retry-After."),
            Self::PrincipalUnknown => (S::FORBIDDEN, "principal_unknown", O::Rejected, E::Unknown, R::Stop, "The caller cannot be told",
                "The request has credentials, and no rule says which of them tells who is asking. The operator sets `principal` in [policy]: [\"authorization\"] where each caller has one lasting Authorization header, [\"header:NAME\"] or [\"cookie:NAME\"] for the part that names the caller and does not change, [] where all callers are one."),
            Self::KeyForged => (S::BAD_REQUEST, "key_forged", O::Rejected, E::Unknown, R::Stop, "The key was not issued here",
                "This route takes keys alone that were issued here, and this one was not. For a new action ask for one: POST keys beside this page, with ?path= and the route's path."),
            Self::KeyForeign => (S::FORBIDDEN, "key_foreign", O::Rejected, E::Unknown, R::Stop, "The key was issued to somebody else",
                "This key was issued to another caller, or for another route. Send it as the caller and to the route that it was asked for; for a new action ask for one."),
            Self::OperationUnknown => (S::NOT_FOUND, "operation_unknown", O::Released, E::Unknown, R::SameKey, "Nothing is known of this key",
                "This key was never seen here, or its request was released. Sending the request with this key is safe."),
            Self::InFlight => (S::CONFLICT, "in_flight", O::InFlight, E::Unknown, R::Wait, "The first request is still running",
                "A request with this key is running. Ask again with the same key after Retry-After, or send Prefer: wait=10 to wait for the answer."),
            Self::OutcomeUnknown => (S::CONFLICT, "outcome_unknown", O::Unknown, E::Unknown, R::Stop, "Nobody knows whether it was executed",
                "The first request with this key was interrupted after it was sent, so it may have been executed. It is not executed again. Look whether its effect is there, or ask a person to settle it."),
            Self::AnswerNotKept => (S::CONFLICT, "answer_not_kept", O::NotStored, E::Yes, R::Stop, "Executed, but its answer was not kept",
                "The request was executed, and its answer was too large, or a stream, or not to be kept. first_status, and first_location where there is one, say how it ended; read the result from there."),
            Self::KeyExpired => (S::CONFLICT, "key_expired", O::Expired, E::Yes, R::Stop, "Executed long ago",
                "The request with this key was executed, longer ago than answers are kept. Look at its effect; for a new action make a new key."),
            Self::IssuedKeyExpired => (S::CONFLICT, "issued_key_expired", O::Expired, E::Unknown, R::Stop, "The key was issued too long ago",
                "This key is past the time that it was issued for. GET operation with it tells whether its request was executed; if nothing is known of it, ask for another key."),
            Self::RequestTooLarge => (S::PAYLOAD_TOO_LARGE, "request_too_large", O::Rejected, E::Unknown, R::Stop, "The request is too large to be protected",
                "The body is larger than requests with a key may be. Send a smaller one, or raise request_body in [limits]."),
            Self::KeyReused => (S::UNPROCESSABLE_ENTITY, "key_reused", O::Mismatch, E::Unknown, R::Stop, "This key was used for another request",
                "This key came with another request before: another method, path, host, content type or body. Retry with the very same request, or make a new key for a new action. Where one id is meant for several routes, paths or hosts, as that of a webhook's delivery, the operator sets scope = [\"route\"], [\"path\"] or [\"host\"] in [policy]."),
            Self::HeadersTooLarge => (S::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", O::Rejected, E::No, R::NewKey, "The request's headers are too large",
                "The request has more header lines, or a larger head, than are taken here, and was not executed. Send fewer; cookies are mostly what grows. The operator raises header_lines or header_size in [limits]."),
            Self::HandlerPanicked => (S::INTERNAL_SERVER_ERROR, "handler_panicked", O::Unknown, E::Unknown, R::SameKey, "The service failed midway",
                "The handler panicked, and may have done part of its work. Asking again with the same key tells what became of it; it is not executed twice."),
            Self::RecordUnreadable => (S::INTERNAL_SERVER_ERROR, "record_unreadable", O::Rejected, E::Unknown, R::Stop, "The key's record cannot be read",
                "What the store holds for this key is damaged, or was written by a newer version. It is not executed again; ask the operator."),
            Self::UpstreamUnreachable => (S::BAD_GATEWAY, "upstream_unreachable", O::Released, E::No, R::SameKey, "The service could not be reached",
                "No connection could be made, and nothing was sent. Send the request again with the same key."),
            Self::UpstreamLost => (S::BAD_GATEWAY, "upstream_lost", O::Unknown, E::Unknown, R::SameKey, "The answer was lost",
                "The request was sent, and the connection broke before a whole answer came. Asking again with the same key tells what became of it; it is not executed twice."),
            Self::StoreUnavailable => (S::SERVICE_UNAVAILABLE, "store_unavailable", O::Rejected, E::Unknown, R::SameKey, "Keys cannot be kept just now",
                "The store of keys does not answer or is full, so the request was not executed. Send it again with the same key after Retry-After."),
            Self::Draining => (S::SERVICE_UNAVAILABLE, "draining", O::Rejected, E::Unknown, R::SameKey, "This process is about to stop",
                "This process takes no new requests with a key. Send it again with the same key after Retry-After."),
            Self::Overloaded => (S::SERVICE_UNAVAILABLE, "overloaded", O::Rejected, E::Unknown, R::SameKey, "Too many requests are running",
                "As many requests are running as this process may run at the same time, so this one was not executed. Send it again with the same key after Retry-After."),
            Self::UpstreamTimeout => (S::GATEWAY_TIMEOUT, "upstream_timeout", O::InFlight, E::Unknown, R::Wait, "The answer takes longer than you can wait",
                "The request was sent and is still running; its answer will be kept. Ask again with the same key after Retry-After."),
            Self::LoopDetected => (S::LOOP_DETECTED, "loop_detected", O::Rejected, E::No, R::Stop, "The gateway is its own upstream",
                "The request came back to the gateway that had sent it, so no service executed it. The operator sets `upstream` to the address of the service, not to that of the gateway or of a proxy that leads back to it."),
        };
        Row { status, code, outcome, executed, retry, title, detail }
    }
}

/// Refusal, ready to be sent.
///
/// ```
/// use onceward::problem::{Code, Problem};
///
/// let response = Problem::new(Code::InFlight, "urn:onceward:1f").retry_after(3).into_response();
/// assert_eq!(response.status(), 409);
/// assert_eq!(response.headers()["idempotency-outcome"], "in-flight");
/// assert_eq!(response.headers()["retry-after"], "3");
/// ```
#[derive(Clone, Debug)]
pub struct Problem {
    code: Code,
    instance: String,
    detail: Option<String>,
    outcome: Outcome,
    executed: Executed,
    keyed: bool,
    retry_after: Option<u64>,
    first: Option<(u16, Option<String>)>,
    endpoints: Option<String>,
}

impl Problem {
    /// Creates a refusal with the texts of the table. `instance` identifies the operation for
    /// support requests, and is not secret.
    pub fn new(code: Code, instance: impl Into<String>) -> Self {
        let row = code.row();
        Self {
            code,
            instance: instance.into(),
            detail: None,
            outcome: row.outcome,
            executed: row.executed,
            keyed: true,
            retry_after: None,
            first: None,
            endpoints: None,
        }
    }

    /// Returns the code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// Returns the value of `Idempotency-Outcome`.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Sets a more specific description of the cause and the fix.
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Sets an outcome other than the table's, for an attempt whose end could not be stored.
    pub fn with_outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = outcome;
        self
    }

    /// Sets a more specific execution status.
    pub fn executed(mut self, executed: Executed) -> Self {
        self.executed = executed;
        self
    }

    /// Sets `Retry-After`, in seconds.
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Sets the status and the `Location` of a response that was not stored.
    pub fn first(mut self, status: u16, location: Option<String>) -> Self {
        self.first = Some((status, location));
        self
    }

    /// Marks the refusal of a request without a key: no `executed`, no `retry`, no outcome.
    pub fn without_key(mut self) -> Self {
        self.keyed = false;
        self
    }

    /// Sets the mount path of the public paths, such as `/.idempotency`, which `type` and `Link`
    /// point to.
    pub fn endpoints(mut self, mount: Option<&str>) -> Self {
        self.endpoints = mount.map(str::to_owned);
        self
    }

    /// Returns the response to a request with these headers: an HTML page if a person navigates.
    #[cfg(feature = "layer")]
    pub fn into_response_for(self, headers: &http::HeaderMap) -> Response<Bytes> {
        let page = page::is_wanted(headers).then(|| self.clone());
        let mut response = self.into_response();
        response.headers_mut().insert(http::header::VARY, page::VARY);
        match page {
            Some(problem) => {
                let body = page::of(&problem, response.headers_mut());
                response.map(|_| body)
            }
            None => response,
        }
    }

    /// Returns the response.
    pub fn into_response(self) -> Response<Bytes> {
        let row = self.code.row();
        let kind = match &self.endpoints {
            Some(mount) => format!("{mount}/policy#{}", row.code),
            None => "about:blank".to_owned(),
        };
        let mut body = serde_json::json!({
            "type": kind,
            "title": row.title,
            "status": row.status.as_u16(),
            "detail": self.detail.as_deref().unwrap_or(row.detail),
            "code": row.code,
            "instance": self.instance,
        });
        if self.keyed {
            body["executed"] = self.executed.as_str().into();
            body["retry"] = row.retry.as_str().into();
        }
        if let Some((status, location)) = self.first {
            body["first_status"] = status.into();
            if let Some(location) = location {
                body["first_location"] = location.into();
            }
        }
        let mut response = Response::new(Bytes::from(body.to_string()));
        *response.status_mut() = row.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.keyed {
            headers.insert(IDEMPOTENCY_OUTCOME, self.outcome.value());
        }
        if self.code == Code::TokenInvalid {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer error=\"invalid_token\""));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.endpoints.is_some()
            && let Ok(link) = HeaderValue::from_str(&format!("<{kind}>; rel=\"describedby\""))
        {
            headers.insert(LINK, link);
        }
        response
    }
}

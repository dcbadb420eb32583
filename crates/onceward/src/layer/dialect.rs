//! Formats of a refusal for clients that cannot read `application/problem+json`: gRPC, gRPC-Web and
//! Connect.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};

use crate::problem::{Code, Problem, Retry};
use crate::wire;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const CONNECT_VERSION: HeaderName = HeaderName::from_static("connect-protocol-version");

/// Format in which a client reads errors, derived from its request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Dialect {
    /// RFC 9457.
    #[default]
    Problem,
    /// Headers-only response, with the status in `grpc-status`. Carries the content type of the
    /// response.
    Grpc(&'static str),
    /// An HTTP status and a JSON object.
    ConnectUnary,
    /// Status 200, and one envelope that ends the stream. Carries the content type of the response.
    ConnectStream(&'static str),
}

impl Dialect {
    /// Derives the dialect of a request from its headers.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let Some(kind) = wire::line(headers, &CONTENT_TYPE) else { return Self::Problem };
        let kind = kind.as_bytes();
        let begins_with =
            |prefix: &str| kind.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()));
        match () {
            () if !begins_with("application/") => Self::Problem,
            () if begins_with("application/grpc-web-text") => Self::Grpc("application/grpc-web-text+proto"),
            () if begins_with("application/grpc-web") => Self::Grpc("application/grpc-web+proto"),
            () if begins_with("application/grpc") => Self::Grpc("application/grpc"),
            () if begins_with("application/connect+json") => Self::ConnectStream("application/connect+json"),
            () if begins_with("application/connect+") => Self::ConnectStream("application/connect+proto"),
            () if begins_with("application/proto") || headers.contains_key(CONNECT_VERSION) => Self::ConnectUnary,
            () => Self::Problem,
        }
    }

    /// Builds the response of a refusal. The headers of the contract are the same in each dialect.
    pub(super) fn refuse(self, problem: Problem) -> Response<Bytes> {
        let code = problem.code();
        let response = problem.into_response();
        if self == Self::Problem {
            return response;
        }
        let detail = serde_json::from_slice::<serde_json::Value>(response.body()).unwrap_or_default();
        let message = format!("{}: {}", code.row().code, detail["detail"].as_str().unwrap_or(code.row().detail));
        let (number, name) = status_of(code);
        let (mut head, _) = response.into_parts();
        head.headers = wire::without(&head.headers, |name| *name == CONTENT_LENGTH);
        let error = serde_json::json!({ "code": name, "message": message });
        let (kind, body) = match self {
            Self::Problem => ("application/problem+json", Bytes::new()),
            Self::Grpc(kind) => {
                head.status = StatusCode::OK;
                head.headers.insert(GRPC_STATUS, HeaderValue::from(number));
                head.headers.insert(GRPC_MESSAGE, percent_encoded(&message));
                // The pushback of gRPC's own retries is in milliseconds.
                let seconds = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
                if let Some(seconds) = seconds {
                    head.headers.insert(GRPC_PUSHBACK, HeaderValue::from(seconds.saturating_mul(1000)));
                }
                (kind, Bytes::new())
            }
            Self::ConnectUnary => {
                head.status = connect_status(name);
                ("application/json", error.to_string().into())
            }
            Self::ConnectStream(kind) => {
                head.status = StatusCode::OK;
                let end = serde_json::json!({ "error": error }).to_string();
                let length = u32::try_from(end.len()).unwrap_or(u32::MAX);
                let mut envelope = Vec::with_capacity(end.len() + 5);
                envelope.push(0b10);
                envelope.extend_from_slice(&length.to_be_bytes());
                envelope.extend_from_slice(end.as_bytes());
                (kind, envelope.into())
            }
        };
        head.headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        Response::from_parts(head, body)
    }
}

/// Returns gRPC's number and name of the status. Clients retry `UNAVAILABLE` by themselves, so it
/// is used only if the same request may be sent again.
fn status_of(code: Code) -> (u32, &'static str) {
    match (code, code.row().retry) {
        (Code::PrincipalUnknown | Code::KeyForeign, _) => (7, "permission_denied"),
        (Code::RequestTooLarge, _) => (8, "resource_exhausted"),
        (Code::OutcomeUnknown, _) => (10, "aborted"),
        (Code::HandlerPanicked | Code::RecordUnreadable, _) => (13, "internal"),
        (_, Retry::SameKey | Retry::Wait) => (14, "unavailable"),
        (_, Retry::NewKey) => (3, "invalid_argument"),
        (_, Retry::Stop) => (9, "failed_precondition"),
    }
}

/// Returns the HTTP status of a Connect error.
fn connect_status(name: &str) -> StatusCode {
    match name {
        "permission_denied" => StatusCode::FORBIDDEN,
        "resource_exhausted" => StatusCode::TOO_MANY_REQUESTS,
        "aborted" => StatusCode::CONFLICT,
        "internal" => StatusCode::INTERNAL_SERVER_ERROR,
        "unavailable" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    }
}

/// Encodes a message for `grpc-message`: visible ASCII and spaces as they are, all else as `%XX`.
fn percent_encoded(message: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::try_from(encoded).unwrap_or_else(|_| HeaderValue::from_static(""))
}

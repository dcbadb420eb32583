use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

/// Reason for the rejection of a request, in one line that states the fix.
///
/// ```
/// let refusal = orders::NewOrder::parse(br#"{"item": "tea"}"#).unwrap_err();
/// assert_eq!(refusal.field(), Some("qty"));
/// assert_eq!(refusal.detail(), "`qty` is missing: send a whole number from 1 to 1000, such as 2");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    status: StatusCode,
    detail: String,
    field: Option<String>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), field: None }
    }

    pub(crate) fn of_field(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail) }
    }

    /// Returns the HTTP status of the rejection.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns the line for the person who has to fix the request.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Returns the invalid field of the order, if it is a single one.
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut problem = json!({
            "title": self.status.canonical_reason(),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let Some(field) = self.field {
            problem["field"] = field.into();
        }
        let headers = [(header::CONTENT_TYPE, "application/problem+json"), (header::CACHE_CONTROL, "no-store")];
        (self.status, headers, problem.to_string()).into_response()
    }
}

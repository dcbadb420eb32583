//! Refusals as HTML pages for people: a browser that submitted a form displays the response.

use bytes::Bytes;
use http::header::{
    ACCEPT, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};

use super::{Code, Problem};
use crate::fingerprint::form;
use crate::wire::{line, lines};

const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const X_REQUESTED_WITH: HeaderName = HeaderName::from_static("x-requested-with");

/// Headers that decide between a page and a problem.
pub(crate) const VARY: HeaderValue = HeaderValue::from_static("Sec-Fetch-Mode, Accept, X-Requested-With");

/// Returns true if a person would see a refusal of this request: the browser declares a navigation,
/// or it sends no such header and submits a form. Never true for a request by a script.
pub(crate) fn is_wanted(headers: &HeaderMap) -> bool {
    let accepts = |what: &str| {
        let is_named = |line: &HeaderValue| line.to_str().is_ok_and(|line| line.to_ascii_lowercase().contains(what));
        lines(headers, &ACCEPT).any(is_named)
    };
    if line(headers, &X_REQUESTED_WITH).is_some() || accepts("json") {
        return false;
    }
    match line(headers, &SEC_FETCH_MODE) {
        Some(mode) => mode.as_bytes().eq_ignore_ascii_case(b"navigate"),
        None if headers.keys().any(|name| name.as_str().starts_with("sec-fetch-")) => false,
        None => form::is_form(headers) && accepts("text/html") && accepts("application/xhtml+xml"),
    }
}

/// Renders a refusal as a page for people, and sets its headers to those of a page.
pub(crate) fn of(problem: &Problem, headers: &mut HeaderMap) -> Bytes {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let (title, what, way_on) = words(problem.code());
    // The page contains nothing of the request: the texts are constants, and the reference is
    // hexadecimal.
    Bytes::from(format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <meta name=\"robots\" content=\"noindex\">\n<title>{title}</title>\n<h1>{title}</h1>\n<p>{what}</p>\n<p>{way_on}</p>\n\
         <p><a href=\"/\">To the start page</a></p>\n<p><small>For support: {} · {}</small></p>\n</html>\n",
        problem.code().row().code,
        problem.instance,
    ))
}

/// Returns a title, a description and the next step.
fn words(code: Code) -> (&'static str, &'static str, &'static str) {
    match code {
        Code::InFlight | Code::UpstreamTimeout => (
            "Your request is still being processed",
            "We received it, and it is running. Sending it again does not make it happen twice.",
            "Wait a few seconds, then reload this page. If your browser asks whether to send the form again, say yes: it is safe.",
        ),
        Code::KeyReused => (
            "This form was already sent with other contents",
            "What you sent first was received. What you changed afterwards was not processed.",
            "Look whether the first one did what you wanted. To send something else, open the form again from its own page, not with the Back button.",
        ),
        Code::OutcomeUnknown | Code::UpstreamLost | Code::HandlerPanicked => (
            "We cannot tell yet whether your request was carried out",
            "It was interrupted while it was being processed. It may have been carried out. It is not carried out a second time.",
            "Before you send the form again from its own page, look whether what you asked for is there, or ask support with the reference below.",
        ),
        Code::AnswerNotKept | Code::KeyExpired => (
            "This was already done",
            "Your request was carried out before. Its result cannot be shown a second time.",
            "Look at the result on the site. To do the same once more, open the form again from its own page.",
        ),
        Code::UpstreamUnreachable | Code::StoreUnavailable | Code::Draining => (
            "The service is not available at the moment",
            "This time, nothing was sent to the service.",
            "Wait a few seconds, then reload this page. If your browser asks whether to send the form again, say yes: it is safe.",
        ),
        Code::RequestTooLarge => (
            "What you sent is too large",
            "It was not processed.",
            "Go back, choose smaller files or shorter texts, and send the form again.",
        ),
        Code::RequestIncomplete => (
            "What you sent arrived incomplete",
            "The connection ended before all of it was there, so it was not processed.",
            "Reload this page. If your browser asks whether to send the form again, say yes: it is safe.",
        ),
        Code::PrincipalUnknown | Code::KeyForeign => (
            "You seem to be signed in as somebody else",
            "The form belongs to another sign-in, or the service cannot tell who you are. It was not processed.",
            "Sign in, open the form again from its own page, and send it.",
        ),
        Code::IssuedKeyExpired => (
            "This form is too old",
            "It was opened too long ago to be sent now.",
            "Look whether it was sent before. If not, open it again from its own page, and send it.",
        ),
        _ => (
            "This form could not be processed",
            "Something is wrong with the way it was sent. It was not processed.",
            "Open the form again from its own page, and send it. If that does not help, tell support the reference below.",
        ),
    }
}

#[cfg(test)]
mod tests {
    use http::header::{HeaderMap, HeaderName};

    use super::is_wanted;

    const HTML: (&str, &str) = ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8");
    const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");
    const PARTS: (&str, &str) = ("content-type", "multipart/form-data; boundary=b");
    const JSON: (&str, &str) = ("content-type", "application/json");

    #[test]
    fn page_is_for_people_who_navigate() {
        for (want, lines) in [
            (true, &[("sec-fetch-mode", "navigate")][..]),
            (true, &[("sec-fetch-mode", "navigate"), HTML, FORM]),
            (true, &[("sec-fetch-mode", "navigate"), ("accept", "*/*")]),
            (false, &[("sec-fetch-mode", "cors"), HTML, FORM]),
            (false, &[("sec-fetch-mode", "same-origin"), HTML]),
            (false, &[("sec-fetch-site", "same-origin"), HTML, FORM]),
            (true, &[HTML, FORM]),
            (true, &[HTML, PARTS]),
            (false, &[HTML, JSON]),
            (false, &[HTML]),
            (false, &[("accept", "text/html"), FORM]),
            (false, &[("accept", "*/*"), FORM]),
            (false, &[FORM]),
            (false, &[("sec-fetch-mode", "navigate"), ("x-requested-with", "XMLHttpRequest")]),
            (false, &[HTML, FORM, ("x-requested-with", "XMLHttpRequest")]),
            (false, &[("sec-fetch-mode", "navigate"), ("accept", "application/json")]),
            (false, &[("accept", "application/problem+json, text/html, application/xhtml+xml"), FORM]),
            (false, &[]),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(name.parse::<HeaderName>().expect("a name"), value.parse().expect("a value"));
            }
            assert_eq!(is_wanted(&headers), want, "{lines:?}");
        }
    }
}

//! Redirects that preserve the method: the request that a client sends next, with the same key.

use bytes::Bytes;
use http::header::{HOST, HeaderMap, LOCATION};
use http::uri::{Authority, Uri};
use http::{Method, StatusCode};
use url::{Position, Url};

use crate::fingerprint::Parts;
use crate::wire;

/// Parts of a request that was passed on, for its fingerprint at another URI.
pub(super) struct SentRequest {
    pub(super) method: Method,
    /// The URI as received.
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl SentRequest {
    /// Returns the URI that a client follows after this response: that of `Location` in a 307 or a
    /// 308.
    pub(super) fn target(&self, status: StatusCode, headers: &HeaderMap) -> Option<Uri> {
        if !matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT) {
            return None;
        }
        let location = str::from_utf8(wire::line(headers, &LOCATION)?.as_bytes()).ok()?;
        let received = match self.uri.authority() {
            Some(authority) => authority.clone(),
            None => Authority::try_from(wire::line(&self.headers, &HOST)?.as_bytes()).ok()?,
        };
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let base = Url::parse(&format!("http://{received}{path}")).ok()?;
        let target = base.join(location).ok()?;
        let is_relative = Url::parse(location).is_err() && !location.starts_with("//");
        let authority = match (is_relative, target.port()) {
            // In the client's own spelling.
            (true, _) => received,
            (false, None) => Authority::try_from(target.host_str()?).ok()?,
            (false, Some(port)) => Authority::try_from(format!("{}:{port}", target.host_str()?)).ok()?,
        };
        let path = &target[Position::BeforePath..Position::AfterQuery];
        Uri::builder().scheme(target.scheme()).authority(authority).path_and_query(path).build().ok()
    }

    /// Returns the parts of the same request at `uri`.
    pub(super) fn at<'a>(&'a self, uri: &'a Uri) -> Parts<'a> {
        Parts { method: &self.method, uri, headers: &self.headers, body: &self.body }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn location_is_resolved_as_clients_do() {
        for (location, target) in [
            ("/v2/orders", "http://Shop.example:80/v2/orders"),
            ("refunds?a=1#top", "http://Shop.example:80/v1/refunds?a=1"),
            ("../v2/./orders", "http://Shop.example:80/v2/orders"),
            ("?again", "http://Shop.example:80/v1/orders?again"),
            ("", "http://Shop.example:80/v1/orders?dry=no"),
            ("//other.example/a", "http://other.example/a"),
            ("https://SHOP.example:443/a b", "https://shop.example/a%20b"),
            ("http://shop.example:8080", "http://shop.example:8080/"),
            ("/caf\u{e9}", "http://Shop.example:80/caf%C3%A9"),
        ] {
            for (uri, host) in
                [("/v1/orders?dry=no", Some("Shop.example:80")), ("http://Shop.example:80/v1/orders?dry=no", None)]
            {
                let mut headers = HeaderMap::new();
                if let Some(host) = host {
                    headers.insert(HOST, host.parse().expect("a value"));
                }
                let uri = uri.parse().expect("a URI");
                let sent = SentRequest { method: Method::POST, uri, headers, body: Bytes::new() };
                let mut answer = HeaderMap::new();
                answer.insert(LOCATION, http::HeaderValue::from_bytes(location.as_bytes()).expect("a value"));
                let found = sent.target(StatusCode::PERMANENT_REDIRECT, &answer);
                assert_eq!(found, target.parse().ok(), "{location:?}");
                assert_eq!(sent.target(StatusCode::FOUND, &answer), None);
            }
        }
    }
}

//! Validates the request target and `Host` (RFC 9112, 3.2), so that they mean the same resource to
//! every recipient.

use std::net::{Ipv4Addr, Ipv6Addr};

use http::header::HOST;
use http::{HeaderValue, Method, Request, Version};
use onceward::problem::Code;

/// Marks a request whose target had a fragment, which the parser drops.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HadFragment;

/// Reason for the rejection of a request.
pub(crate) type Fault = (Code, &'static str);

/// Validates a target and its `Host`.
pub(crate) fn check<B>(request: &Request<B>) -> Result<(), Fault> {
    let target = |detail| Err((Code::TargetInvalid, detail));
    let uri = request.uri();
    if request.extensions().get::<HadFragment>().is_some() {
        return target(
            "The request target has a fragment (#…), which belongs to the client alone. Send the path and the query.",
        );
    }
    match (uri.scheme_str(), uri.authority()) {
        (None, None) if uri.path() == "*" && *request.method() == Method::OPTIONS => {}
        (None, None) if uri.path() == "*" => {
            return target("The request target * is for OPTIONS alone. Send the path of a resource.");
        }
        (None, None) if uri.path().starts_with('/') => {}
        (Some(scheme), Some(authority)) => {
            if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
                return target(
                    "The request target has a scheme that is not spoken here. Send the path and the query alone.",
                );
            }
            if authority.as_str().contains('@') {
                return target(
                    "The request target has a user or a password. Leave them out, and send an Authorization header.",
                );
            }
            if !is_host(authority.as_str()) || authority.host().is_empty() {
                return target("The request target names no valid host. Send the path and the query alone.");
            }
        }
        _ => {
            return target(
                "The request target is no path: it does not begin with a slash. Send the path and the query.",
            );
        }
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if request.version() == Version::HTTP_11 => {
            Err((Code::HostInvalid, "The request has no Host header. Send one, with the name of the service."))
        }
        (None, _) => Ok(()),
        // Two gateways that each pick another value would compute two fingerprints for one request.
        (Some(_), Some(_)) => Err((Code::HostInvalid, "The request has more than one Host header. Send one.")),
        (Some(host), None) if host.is_empty() || host.to_str().is_ok_and(is_host) => Ok(()),
        (Some(_), None) => Err((
            Code::HostInvalid,
            "The Host header is neither a name nor an address, with or without a port. Send one name, such as shop.example or [2001:db8::1]:8080.",
        )),
    }
}

/// Returns `true` for a name, an IPv4 address or an IPv6 address in brackets, with or without a
/// port.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if address.parse::<Ipv6Addr>().is_ok() => ("", port),
            _ => return false,
        },
        None => match text.split_once(':') {
            Some((host, _)) => (host, &text[host.len()..]),
            None => (text, ""),
        },
    };
    let is_name = host.len() <= 255 && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte));
    let is_port = match port.strip_prefix(':') {
        Some("") => true,
        Some(digits) => digits.bytes().all(|digit| digit.is_ascii_digit()) && digits.parse::<u16>().is_ok(),
        None => port.is_empty(),
    };
    is_name && is_port && (text.starts_with('[') || !host.is_empty())
}

/// Returns `true` if a `Host` is `localhost` or an address. A cross-origin page can resolve a name
/// of its own to this address, but cannot send these.
pub(crate) fn is_local_or_literal(host: &HeaderValue) -> bool {
    let Ok(host) = host.to_str() else { return false };
    if !is_host(host) {
        return false;
    }
    let name = match host.starts_with('[') {
        true => return true,
        false => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<Ipv4Addr>().is_ok()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::{is_host, is_local_or_literal};

    #[test]
    fn host_is_a_name_or_an_address_and_a_port() {
        for host in
            ["a", "shop.example", "shop.example.", "my_service:80", "10.0.0.1:8080", "[::1]", "[2001:db8::1]:443", "a:"]
        {
            assert!(is_host(host), "{host}");
        }
        for host in [
            "###",
            "a@x",
            "x, y",
            "x,y",
            "x/evil",
            "a b",
            "a?x",
            "a#x",
            "a\\b",
            ":80",
            "a:b",
            "a:65536",
            "a:+1",
            "a:80:80",
            "::1",
            "[::1",
            "[::1]x",
            "[x]",
            "[::1%25eth0]",
            "a%41",
            "caf\u{e9}",
            "<a>",
            "\"a\"",
            "http://a",
        ] {
            assert!(!is_host(host), "{host}");
        }
    }

    #[test]
    fn names_that_lead_here_are_neither_local_nor_literal() {
        for (host, is) in [
            ("localhost", true),
            ("LocalHost:8081", true),
            ("127.0.0.1:8081", true),
            ("[::1]:8081", true),
            ("10.1.2.3", true),
            ("rebind.example", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("", false),
            ("a", false),
        ] {
            assert_eq!(is_local_or_literal(&HeaderValue::from_static(host)), is, "{host}");
        }
    }
}

//! Normal form of the authority: `API.example.com.`, `api.example.com:443` and `api.example.com`
//! are one.

use std::borrow::Cow;

/// Returns an authority in lower case, without user information, a final dot, and a default port.
/// Both default ports are removed: behind a TLS proxy the scheme of the client is not known, and a
/// service with different content on 80 and 443 has two gateways.
pub(super) fn normal(authority: &[u8]) -> Cow<'_, [u8]> {
    let authority = match memchr::memrchr(b'@', authority) {
        Some(at) => &authority[at + 1..],
        None => authority,
    };
    let (host, port) = split(authority);
    let port = match port {
        Some(b"" | b"80" | b"443") | None => None,
        port => port,
    };
    let host = match host {
        [rest @ .., b'.'] if !rest.is_empty() => rest,
        host => host,
    };
    if port.is_none() && !host.iter().any(u8::is_ascii_uppercase) {
        return host.into();
    }
    let mut normal = host.to_ascii_lowercase();
    if let Some(port) = port {
        normal.push(b':');
        normal.extend_from_slice(port);
    }
    normal.into()
}

/// Splits at the colon before the port, not at those within an IPv6 address.
fn split(authority: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr::memrchr(b':', authority) {
        Some(at) if authority[at + 1..].iter().all(u8::is_ascii_digit) => {
            (&authority[..at], Some(&authority[at + 1..]))
        }
        _ => (authority, None),
    }
}

#[cfg(test)]
mod tests {
    use super::normal;

    #[test]
    fn authority_in_each_spelling_has_one_normal_form() {
        for (sent, want) in [
            ("api.example.com", "api.example.com"),
            ("API.Example.com", "api.example.com"),
            ("api.example.com:80", "api.example.com"),
            ("api.example.com:443", "api.example.com"),
            ("api.example.com:", "api.example.com"),
            ("api.example.com.", "api.example.com"),
            ("API.example.com.:443", "api.example.com"),
            ("user:secret@api.example.com", "api.example.com"),
            ("api.example.com:8080", "api.example.com:8080"),
            ("API.example.com:8080", "api.example.com:8080"),
            ("[::1]", "[::1]"),
            ("[::1]:80", "[::1]"),
            ("[FE80::1]:8443", "[fe80::1]:8443"),
            (".", "."),
            ("", ""),
        ] {
            assert_eq!(String::from_utf8_lossy(&normal(sent.as_bytes())), want, "{sent}");
        }
    }
}

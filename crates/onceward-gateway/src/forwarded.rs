//! Client address headers for the service: `Forwarded` (RFC 7239), `X-Real-IP` and `X-Forwarded-*`.
//!
//! Any client can send these headers, so they are trusted only from the addresses of
//! `trusted_proxies`. From all others they are replaced by the address that the gateway sees.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::header::FORWARDED;
use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Addresses of proxies whose forwarding headers are trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    pub(crate) fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// Parses one address, with or without brackets, or one network.
    pub(crate) fn network(text: &str) -> Result<IpNet, String> {
        let plain = text.trim();
        let plain = plain.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(plain);
        if let Ok(address) = plain.parse::<IpAddr>() {
            return Ok(IpNet::from(address.to_canonical()));
        }
        let network: IpNet = plain.parse().map_err(|_| {
            format!(
                "{text:?} is no address and no network; write an IP, such as \"10.0.0.7\" or \"2001:db8::7\", or a network, such as \"10.0.0.0/8\""
            )
        })?;
        match network.trunc() == network {
            true => Ok(network),
            false => Err(format!("{text:?} has bits behind its prefix; write \"{}\"", network.trunc())),
        }
    }

    /// Returns `true` if a peer is in one of these networks.
    pub fn contains(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.0.iter().any(|network| network.contains(&peer))
    }
}

/// Peer of the connection that a request was received on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sender {
    pub(crate) address: SocketAddr,
    pub(crate) is_trusted: bool,
}

/// Returns `true` if a header describes the client's address, also as CGI and similar interfaces
/// read it: there an underscore equals a hyphen.
pub(crate) fn is_forwarding(name: &HeaderName) -> bool {
    let name = name.as_str();
    if !name.starts_with(['x', 'f']) {
        return false;
    }
    let is_one = |name: &str| name == "forwarded" || name == "x-real-ip" || name.starts_with("x-forwarded-");
    is_one(name) || name.contains('_') && is_one(&name.replace('_', "-"))
}

/// Writes the headers that describe the sender to the service. `host` is the `Host` that the client
/// asked for.
pub(crate) fn describe(sender: Sender, clients: &HeaderMap, host: Option<&HeaderValue>, headers: &mut HeaderMap) {
    let address = sender.address.ip().to_canonical();
    if sender.is_trusted {
        for (name, value) in clients.iter().filter(|(name, _)| is_forwarding(name)) {
            if *name != X_FORWARDED_FOR && *name != FORWARDED {
                headers.append(name.clone(), value.clone());
            }
        }
        if let Some(chain) = chain(clients, &X_FORWARDED_FOR, &address.to_string()) {
            headers.insert(X_FORWARDED_FOR, chain);
        }
        if clients.contains_key(FORWARDED)
            && let Some(chain) = chain(clients, &FORWARDED, &format!("for={}", node(address)))
        {
            headers.insert(FORWARDED, chain);
        }
    } else {
        let own = HeaderValue::from_str(&address.to_string()).ok();
        if clients.contains_key(X_REAL_IP)
            && let Some(own) = own.clone()
        {
            headers.insert(X_REAL_IP, own);
        }
        if clients.contains_key(FORWARDED)
            && let Ok(element) = HeaderValue::from_str(&element(address, host))
        {
            headers.insert(FORWARDED, element);
        }
        if let Some(own) = own {
            headers.insert(X_FORWARDED_FOR, own);
        }
        if clients.keys().any(is_forwarding) {
            tell_once(address);
        }
    }
    if !headers.contains_key(&X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    if let Some(host) = host
        && !headers.contains_key(&X_FORWARDED_HOST)
    {
        headers.insert(X_FORWARDED_HOST, host.clone());
    }
}

/// Without this log line, an unconfigured proxy in front would show only as wrong addresses in the
/// service.
fn tell_once(address: IpAddr) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if !TOLD.swap(true, Ordering::Relaxed) {
        tracing::info!(
            "Forwarded, X-Real-IP or X-Forwarded-* from {address} were replaced; if that is your proxy, write trusted_proxies = [\"{address}\"]"
        );
    }
}

/// Joins all lines of a header, and appends one element.
fn chain(clients: &HeaderMap, name: &HeaderName, last: &str) -> Option<HeaderValue> {
    let mut chain: Vec<u8> = Vec::new();
    for line in clients.get_all(name) {
        chain.extend_from_slice(line.as_bytes());
        chain.extend_from_slice(b", ");
    }
    chain.extend_from_slice(last.as_bytes());
    HeaderValue::from_maybe_shared(Bytes::from(chain)).ok()
}

/// Returns an element of `Forwarded` for a request whose first hop is this gateway.
fn element(address: IpAddr, host: Option<&HeaderValue>) -> String {
    match host.and_then(|host| host.to_str().ok()).filter(|host| !host.is_empty()) {
        // A port or brackets must be quoted; a valid host has nothing that must be escaped.
        Some(host) => format!("for={};host=\"{host}\";proto=http", node(address)),
        None => format!("for={};proto=http", node(address)),
    }
}

/// Formats an address for `Forwarded`: an IPv6 one in brackets and quotes.
fn node(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("\"[{address}]\""),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderName, HeaderValue};

    use super::{Sender, TrustedProxies, describe, is_forwarding};

    fn told(from: &str, is_trusted: bool, clients: &[(&'static str, &'static str)]) -> Vec<(String, String)> {
        let mut sent = HeaderMap::new();
        for (name, value) in clients {
            sent.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let mut headers = HeaderMap::new();
        let sender = Sender { address: from.parse().unwrap(), is_trusted };
        describe(sender, &sent, Some(&HeaderValue::from_static("[::1]:80")), &mut headers);
        headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
    }

    fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn forwarded_headers_of_an_untrusted_sender_are_replaced() {
        let forged = [
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil"),
            ("x-forwarded-client-cert", "By=x"),
            ("x-real-ip", "1.1.1.1"),
            ("forwarded", "for=1.1.1.1"),
        ];
        let own = [
            ("x-real-ip", "2001:db8::7"),
            ("forwarded", "for=\"[2001:db8::7]\";host=\"[::1]:80\";proto=http"),
            ("x-forwarded-for", "2001:db8::7"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "[::1]:80"),
        ];
        assert_eq!(told("[2001:db8::7]:5", false, &forged), pairs(&own));
    }

    #[test]
    fn forwarded_headers_of_a_trusted_proxy_are_continued() {
        let sent = [
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-for", "2.2.2.2"),
            ("x-forwarded-proto", "https"),
            ("x-real-ip", "1.1.1.1"),
            ("forwarded", "for=1.1.1.1;proto=https"),
        ];
        let continued = [
            ("x-forwarded-proto", "https"),
            ("x-real-ip", "1.1.1.1"),
            ("x-forwarded-for", "1.1.1.1, 2.2.2.2, 10.0.0.7"),
            ("forwarded", "for=1.1.1.1;proto=https, for=10.0.0.7"),
            ("x-forwarded-host", "[::1]:80"),
        ];
        assert_eq!(told("[::ffff:10.0.0.7]:5", true, &sent), pairs(&continued));
    }

    #[test]
    fn trusted_proxies_are_addresses_and_networks() {
        let trusted =
            ["10.0.0.0/8", "[2001:db8::1]", "::ffff:192.0.2.1"].map(|text| TrustedProxies::network(text).unwrap());
        let trusted = TrustedProxies::new(trusted.into());
        for inside in ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1", "192.0.2.1"] {
            assert!(trusted.contains(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["11.0.0.1", "2001:db8::2", "::1", "127.0.0.1"] {
            assert!(!trusted.contains(outside.parse().unwrap()), "{outside}");
        }
        for (wrong, fix) in [("10.1.0.0/8", "\"10.0.0.0/8\""), ("proxy", "10.0.0.0/8"), ("10.0.0.1:80", "10.0.0.7")] {
            assert!(TrustedProxies::network(wrong).unwrap_err().contains(fix), "{wrong}");
        }
    }

    #[test]
    fn names_with_underscores_are_forwarding_headers_too() {
        for (name, is) in [
            ("x_forwarded_for", true),
            ("x-forwarded_proto", true),
            ("x_real_ip", true),
            ("x-forwarded-anything", true),
            ("forwarded", true),
            ("x-forward", false),
            ("from", false),
        ] {
            assert_eq!(is_forwarding(&HeaderName::from_static(name)), is, "{name}");
        }
    }
}

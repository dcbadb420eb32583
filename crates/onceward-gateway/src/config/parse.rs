//! Parses values from user input into validated types. Each error states the fix.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, HeaderName};
use http::{HeaderValue, Method, Uri};
use onceward::fingerprint::{Hosts, Kind, Pointer};
use onceward::policy::{AcceptedKeys, CloseDelimited, Guarantee, JsonPointer, MissingKey, StatusSet, Stream};
#[cfg(feature = "redis")]
use onceward::store::redis;
use onceward::wire;

use super::source::Item;
use crate::forwarded::TrustedProxies;

pub(crate) type Parsed<T> = Result<T, String>;

/// Parses a text.
pub(crate) fn text(item: &Item) -> Parsed<&str> {
    match item {
        Item::Plain(text) | Item::Text(text) => Ok(text),
        other => Err(format!("{other} is no text; write it in quotes")),
    }
}

/// Parses a list of texts. In the environment its elements are separated by commas.
pub(crate) fn list(item: &Item) -> Parsed<Vec<String>> {
    match item {
        // A variable that was not filled in is empty, and an empty list may mean the opposite of
        // the default.
        Item::Plain(text) if text.trim().is_empty() => Err("is empty; leave it unset, or write [] for none".into()),
        Item::Plain(text) if text.trim() == "[]" => Ok(Vec::new()),
        Item::Plain(text) => {
            Ok(text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect())
        }
        Item::List(items) => items
            .iter()
            .map(|item| match item {
                Item::Text(text) | Item::Number(text) | Item::Plain(text) => Ok(text.clone()),
                Item::Bool(_) => Err("a TOML boolean may not stand in the list".to_owned()),
                other => Err(format!("{other} may not stand in the list")),
            })
            .collect(),
        other => Err(format!("{other} is no list; write [{other}]")),
    }
}

/// Parses a boolean.
pub(crate) fn flag(item: &Item) -> Parsed<bool> {
    match item {
        Item::Bool(flag) => Ok(*flag),
        Item::Plain(text) => text.trim().parse().map_err(|_| format!("{text:?} is neither; write true or false")),
        other => Err(format!("{other} is neither true nor false; write one of them, without quotes")),
    }
}

/// Parses an integer within bounds.
pub(crate) fn count(item: &Item, least: usize, most: usize) -> Parsed<usize> {
    let digits = match item {
        Item::Number(digits) => digits,
        Item::Plain(text) => text.trim(),
        other => return Err(format!("{other} is no number; write digits without quotes")),
    };
    match digits.parse() {
        Ok(count) if (least..=most).contains(&count) => Ok(count),
        _ => Err(format!("{digits} is not between {least} and {most}")),
    }
}

/// Parses a duration within bounds.
pub(crate) fn duration(item: &Item, least: Duration, most: Duration) -> Parsed<Duration> {
    let text = match item {
        Item::Number(digits) => {
            return Err(format!("{digits} has no unit; write \"{digits}s\" for seconds, or ms, m, h, d"));
        }
        item => text(item)?.trim(),
    };
    let found = parse_duration(text).ok_or_else(|| {
        format!("{text:?} is no duration; write a number and a unit: \"500ms\", \"15s\", \"10m\", \"24h\", \"30d\"")
    })?;
    match (least..=most).contains(&found) {
        true => Ok(found),
        false => Err(format!("{text:?} is not between \"{}\" and \"{}\"", Shown(least), Shown(most))),
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, unit) = text.split_at(at);
    let number: u64 = digits.parse().ok()?;
    let ms: u64 = match unit.trim() {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(ms).map(Duration::from_millis)
}

/// Displays a duration in the largest unit that gives an integer, as [`duration`] parses it.
pub(crate) struct Shown(pub(crate) Duration);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
        match units.into_iter().find(|(unit, _)| ms >= *unit && ms.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", ms / unit),
            None if ms == 0 => f.write_str("0s"),
            None => write!(f, "{ms}ms"),
        }
    }
}

/// Parses a size in bytes within bounds.
pub(crate) fn size(item: &Item, least: usize, most: usize) -> Parsed<usize> {
    let text = match item {
        Item::Number(digits) => digits,
        item => text(item)?.trim(),
    };
    let found = parse_size(text)
        .ok_or_else(|| format!("{text:?} is no size; write a number of bytes, or with a unit: \"256KiB\", \"1MiB\""))?;
    match (least..=most).contains(&found) {
        true => Ok(found),
        false => Err(format!("{text:?} is not between {least} and {most} bytes")),
    }
}

fn parse_size(text: &str) -> Option<usize> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(at);
    let number: usize = digits.parse().ok()?;
    let bytes = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    number.checked_mul(bytes)
}

/// Parses an address to listen on.
pub(crate) fn address(item: &Item) -> Parsed<SocketAddr> {
    let text = text(item)?.trim();
    if let Some(port) = text.strip_prefix("localhost:").and_then(|port| port.parse().ok()) {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    text.parse().map_err(|_| {
        format!(
            "{text:?} is no address to listen on; write an IP and a port, such as \"127.0.0.1:8080\" or \"[::]:8080\""
        )
    })
}

/// Address of the protected service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Uses TLS if `true`.
    pub tls: bool,
    /// Name, or address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Host and port as configured, for the `Host` header.
    pub authority: HeaderValue,
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority.to_str().unwrap_or(&self.host))
    }
}

/// Parses the URL of the upstream.
pub(crate) fn upstream(item: &Item) -> Parsed<Upstream> {
    let text = text(item)?.trim();
    // The text before an `@` may be a password, so the value is not repeated.
    if text.contains('@') {
        return Err("has a user or password in it; leave that out, the clients' own credentials are passed on".into());
    }
    let invalid = || format!("{text:?} is no URL of a service; write \"http://HOST:PORT\" or \"https://HOST\"");
    let uri = Uri::from_str(text).map_err(|_| invalid())?;
    let tls = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        Some(other) => return Err(format!("the scheme {other:?} is not spoken; write http:// or https://")),
        None => return Err(format!("{text:?} does not say how; write http:// or https:// before it")),
    };
    if uri.path() != "/" && !uri.path().is_empty() || uri.query().is_some() || text.contains('#') {
        return Err(format!("{text:?} has a path; requests keep their own, so write scheme, host and port alone"));
    }
    let authority = uri.authority().ok_or_else(invalid)?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    // `http` treats a port that is not a number as absent.
    let port = match authority.as_str().strip_prefix(authority.host()) {
        Some("") => None,
        Some(port) => {
            Some(port.trim_start_matches(':').parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(invalid)?)
        }
        None => return Err(invalid()),
    };
    if host.is_empty() {
        return Err(invalid());
    }
    Ok(Upstream {
        tls,
        host: host.to_owned(),
        port: port.unwrap_or(if tls { 443 } else { 80 }),
        authority: HeaderValue::from_str(authority.as_str()).map_err(|_| invalid())?,
    })
}

/// URL of the store of the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreUrl {
    /// Store in the memory of the process.
    Memory {
        /// Upper bound on its bytes.
        bytes_max: usize,
    },
    /// Embedded store in a directory.
    Embedded {
        /// Data directory.
        folder: PathBuf,
    },
    /// PostgreSQL. The URL may contain a password.
    #[cfg(feature = "postgres")]
    Postgres(Secretive),
    /// Redis or Valkey.
    #[cfg(feature = "redis")]
    Redis {
        /// Server address and credentials.
        options: Box<RedisOptions>,
    },
}

/// URL that is redacted in output, because it may contain a password.
#[cfg(feature = "postgres")]
#[derive(Clone, PartialEq, Eq)]
pub struct Secretive(pub(crate) String);

#[cfg(feature = "postgres")]
impl fmt::Debug for Secretive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"…\"")
    }
}

impl StoreUrl {
    /// Returns the default duration of tombstones, if the store has its own: each one takes memory.
    pub(crate) fn tombstone(&self) -> Option<&'static str> {
        match self {
            #[cfg(feature = "redis")]
            Self::Redis { .. } => Some("72h"),
            _ => None,
        }
    }
}

/// Options parsed from the URL of a Redis. Two are equal if their URLs are spelled alike.
#[cfg(feature = "redis")]
#[derive(Clone)]
pub struct RedisOptions {
    /// Parsed options.
    pub options: redis::Options,
    url: String,
}

/// Omits the password.
#[cfg(feature = "redis")]
impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.options.fmt(f)
    }
}

#[cfg(feature = "redis")]
impl PartialEq for RedisOptions {
    fn eq(&self, other: &Self) -> bool {
        self.url == other.url
    }
}

#[cfg(feature = "redis")]
impl Eq for RedisOptions {}

/// Parses the URL of a store.
pub(crate) fn store(item: &Item) -> Parsed<StoreUrl> {
    const HAS: &str = match (cfg!(feature = "postgres"), cfg!(feature = "redis")) {
        (true, true) => {
            "this build has \"embedded:FOLDER\", \"postgres://USER:PASSWORD@HOST/DATABASE\", \"redis://HOST:PORT\" (rediss, redis-sentinel, redis-cluster) and \"memory:?max=256MiB\""
        }
        (true, false) => {
            "this build has \"embedded:FOLDER\", \"postgres://USER:PASSWORD@HOST/DATABASE\" and \"memory:?max=256MiB\""
        }
        (false, true) => {
            "this build has \"embedded:FOLDER\", \"redis://HOST:PORT\" (rediss, redis-sentinel, redis-cluster) and \"memory:?max=256MiB\""
        }
        (false, false) => "this build has \"embedded:FOLDER\" and \"memory:?max=256MiB\"",
    };
    let text = text(item)?.trim();
    let Some((scheme, rest)) = text.split_once(':') else {
        return Err(format!("{text:?} is no store; {HAS}"));
    };
    match scheme {
        "memory" => {
            let max = match rest {
                "" => "256MiB",
                rest => rest.strip_prefix("?max=").ok_or_else(|| {
                    format!("{text:?} says more than a memory store has; write \"memory:?max=256MiB\"")
                })?,
            };
            let bytes_max = size(&Item::Text(max.into()), 1 << 16, 1 << 40)?;
            Ok(StoreUrl::Memory { bytes_max })
        }
        "embedded" if rest.is_empty() || rest.starts_with("//") || rest.contains('\0') => {
            Err(format!("{text:?} names no folder; write \"embedded:FOLDER\", such as \"embedded:onceward-data\""))
        }
        "embedded" => Ok(StoreUrl::Embedded { folder: rest.into() }),
        #[cfg(feature = "postgres")]
        "postgres" | "postgresql" => {
            // Parsed here too, so that an error has the name and the place of the setting.
            text.parse::<onceward::store::postgres::Settings>()?;
            Ok(StoreUrl::Postgres(Secretive(text.to_owned())))
        }
        #[cfg(feature = "redis")]
        "redis" | "rediss" | "redis-sentinel" | "redis-cluster" => {
            let options = redis::Options::parse(text)?;
            Ok(StoreUrl::Redis { options: Box::new(RedisOptions { options, url: text.to_owned() }) })
        }
        // The rest may contain a password.
        scheme => Err(format!("no store {scheme:?} is built in; {HAS}")),
    }
}

/// `Host` that the upstream receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// `Host` that the client sent.
    Preserve,
    /// `Host` of the upstream's URL.
    Upstream,
}

pub(crate) fn host(item: &Item) -> Parsed<Host> {
    one_of(item, &[("preserve", Host::Preserve), ("upstream", Host::Upstream)])
}

/// Parses addresses and networks of proxies.
pub(crate) fn trusted_proxies(item: &Item) -> Parsed<TrustedProxies> {
    list(item)?.iter().map(|proxy| TrustedProxies::network(proxy)).collect::<Parsed<Vec<_>>>().map(TrustedProxies::new)
}

/// Parses the handling of requests without a key. `window` is the configured lifetime of a derived
/// key.
pub(crate) fn missing(item: &Item, window: Option<Duration>) -> Parsed<MissingKey> {
    let derive = MissingKey::Derive { window: window.unwrap_or_default() };
    let all = [
        ("pass", MissingKey::Pass),
        ("reject", MissingKey::Reject),
        ("generate", MissingKey::Generate),
        ("derive", derive),
    ];
    one_of(item, &all)
}

pub(crate) fn keys(item: &Item) -> Parsed<AcceptedKeys> {
    one_of(item, &[("any", AcceptedKeys::Any), ("issued", AcceptedKeys::Issued)])
}

/// Parses the name of a form field. Empty means none.
pub(crate) fn form_field(item: &Item) -> Parsed<Option<Arc<str>>> {
    let text = text(item)?;
    // A browser escapes what it cannot write between quotes, which would change the name.
    match text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"%\\&=+;".contains(&byte)) {
        true => Ok(Some(text).filter(|text| !text.is_empty()).map(Arc::from)),
        false => Err(format!("{text:?} is no plain name; write letters, digits, - and _, at most 64")),
    }
}

/// Parses origins as browsers send them: scheme, host, and a port that is not the scheme's default.
pub(crate) fn origins(item: &Item) -> Parsed<Vec<String>> {
    let origins = list(item)?;
    for origin in &origins {
        let invalid = || {
            format!(
                "{origin:?} is no origin; write scheme and host as browsers send them, such as \"https://shop.example\""
            )
        };
        let uri = Uri::from_str(origin).map_err(|_| invalid())?;
        let authority = uri.authority().ok_or_else(invalid)?;
        let is_plain = uri.scheme_str().is_some_and(|scheme| *origin == format!("{scheme}://{authority}"));
        let own_port = match uri.scheme_str() {
            Some("http") => Some(80),
            Some("https") => Some(443),
            _ => None,
        };
        if !is_plain || origin.contains('@') || *origin != origin.to_ascii_lowercase() {
            return Err(invalid());
        }
        if authority.port_u16().is_some() && authority.port_u16() == own_port {
            return Err(format!("{origin:?} names the port that browsers leave out; leave it out too"));
        }
    }
    Ok(origins)
}

pub(crate) fn guarantee(item: &Item) -> Parsed<Guarantee> {
    let all = [Guarantee::AtMostOnce, Guarantee::AtLeastOnce];
    one_of(item, &all.map(|guarantee| (guarantee.as_str(), guarantee)))
}

pub(crate) fn stream(item: &Item) -> Parsed<Stream> {
    one_of(item, &[("auto", Stream::Auto), ("pass", Stream::Pass), ("keep", Stream::Keep)])
}

pub(crate) fn close_delimited(item: &Item) -> Parsed<CloseDelimited> {
    one_of(item, &[("pass", CloseDelimited::Pass), ("keep", CloseDelimited::Keep)])
}

pub(crate) fn fingerprint(item: &Item) -> Parsed<Kind> {
    one_of(item, &Kind::ALL.map(|kind| (kind.as_str(), kind)))
}

pub(crate) fn hosts(item: &Item) -> Parsed<Hosts> {
    one_of(item, &[("distinct", Hosts::Distinct), ("same", Hosts::Same)])
}

/// Parses header names without duplicates.
pub(crate) fn header_names(item: &Item) -> Parsed<Vec<HeaderName>> {
    let mut names = Vec::new();
    for text in list(item)? {
        let name = header_name(&text)?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

fn header_name(text: &str) -> Parsed<HeaderName> {
    let name = text.parse::<HeaderName>();
    let name =
        name.map_err(|_| format!("{text:?} is no header's name; write it without a colon, such as \"X-Tenant\""))?;
    match wire::is_hop_by_hop(&name) {
        true => Err(format!("{text:?} ends at the next hop, and says nothing of the request; leave it out")),
        false => Ok(name),
    }
}

/// Parses a list of JSON Pointers.
pub(crate) fn pointers(item: &Item) -> Parsed<Vec<Pointer>> {
    let pointers = list(item)?.into_iter();
    pointers.map(|text| text.parse::<Pointer>().map_err(|error| error.to_string())).collect()
}

/// Parses the sources of a key besides `Idempotency-Key`: headers, and members of a JSON body.
pub(crate) fn key_headers(item: &Item) -> Parsed<(Vec<HeaderName>, Vec<Pointer>)> {
    let (mut headers, mut members) = (Vec::new(), Vec::new());
    for text in list(item)? {
        if text.starts_with('/') {
            members.push(text.parse::<Pointer>().map_err(|error| error.to_string())?);
            continue;
        }
        let name = text.parse::<HeaderName>().ok().filter(|name| !wire::is_hop_by_hop(name));
        let name = name.ok_or_else(|| {
            format!("{text:?} is neither a header's name nor a JSON Pointer; write \"X-Idempotency-Key\", or \"/id\"")
        })?;
        if matches!(name, AUTHORIZATION | COOKIE | HOST | CONTENT_LENGTH | CONTENT_TYPE)
            || name.as_str().starts_with("onceward-")
        {
            return Err(format!("{text:?} is no key of one action: it is the same on many; leave it out"));
        }
        if name != wire::IDEMPOTENCY_KEY && !headers.contains(&name) {
            headers.push(name);
        }
    }
    Ok((headers, members))
}

fn one_of<T: Copy>(item: &Item, all: &[(&str, T)]) -> Parsed<T> {
    let text = text(item)?.trim();
    all.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<String> = all.iter().map(|(name, _)| format!("{name:?}")).collect();
        format!("{text:?} is not known; write {}", names.join(" or "))
    })
}

/// Parses the path prefix of the public endpoints.
pub(crate) fn endpoints(item: &Item) -> Parsed<String> {
    let text = text(item)?.trim();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/-._~".contains(c);
    let inside = format!("{text}/").starts_with("/.onceward/");
    match text.starts_with('/')
        && text.len() > 1
        && !text.ends_with('/')
        && !text.contains("//")
        && text.chars().all(is_plain)
    {
        true if !inside => Ok(text.to_owned()),
        true => Err("paths below /.onceward are never served; take another, such as \"/.idempotency\"".into()),
        false => {
            Err(format!("{text:?} is no path; write it with a slash before and none behind, such as \"/.idempotency\""))
        }
    }
}

/// Parses a namespace.
pub(crate) fn namespace(item: &Item) -> Parsed<String> {
    let text = text(item)?;
    match (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is no name; write 1 to 255 visible ASCII characters without spaces")),
    }
}

/// Parses the admin token. Empty means none. Errors do not repeat the value.
pub(crate) fn token(item: &Item) -> Parsed<String> {
    let text = match item {
        Item::Plain(text) | Item::Text(text) => text,
        _ => return Err("is no text; write it in quotes".into()),
    };
    match text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(text.clone()),
        false => Err("has a space or a character that no header can carry; write visible ASCII".into()),
    }
}

/// Parses the protected methods.
pub(crate) fn methods(item: &Item) -> Parsed<Vec<Method>> {
    let mut methods = Vec::new();
    for name in list(item)? {
        let method = Method::from_str(&name).map_err(|_| format!("{name:?} is no method"))?;
        if method.is_safe() || method == Method::CONNECT {
            return Err(format!("{name} changes nothing, so it needs no key; leave it out"));
        }
        if name != name.to_ascii_uppercase() {
            return Err(format!("methods are case-sensitive; write {:?}", name.to_ascii_uppercase()));
        }
        if !methods.contains(&method) {
            methods.push(method);
        }
    }
    Ok(methods)
}

/// Parses a JSON Pointer. Empty means none.
pub(crate) fn json_pointer(item: &Item) -> Parsed<Option<JsonPointer>> {
    match text(item)?.trim() {
        "" => Ok(None),
        text => text.parse().map(Some),
    }
}

/// Parses a list of statuses and status ranges, each with an optional header.
pub(crate) fn statuses(item: &Item) -> Parsed<StatusSet> {
    list(item)?.join(",").parse()
}

//! Settings: taken from a flag, else the environment, else the file, else the default. Every source
//! is validated.
//!
//! ```
//! use onceward_gateway::config::{Config, Given};
//!
//! let file = "upstream = \"http://127.0.0.1:3000\"\n[policy]\nlease = \"0s\"";
//! let error = Config::read(&Given { file: Some(("onceward.toml".into(), file.into())), ..Given::default() }).unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "policy.lease: \"0s\" is not between \"1s\" and \"1h\" (onceward.toml, line 3)"
//! );
//! ```

mod callers;
mod parse;
mod source;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use onceward::fingerprint::{Hosts, Kind, Members, Rules};
use onceward::issued::IssuerConfig;
use onceward::limits::Limits;
use onceward::policy::{AcceptedKeys, MissingKey, Policy};
use onceward::principal::PrincipalRule;

pub use crate::forwarded::TrustedProxies;
pub use callers::{AuthorizeReplays, JwtSettings, KeySource, TokenSource};
#[cfg(feature = "redis")]
pub use parse::RedisOptions;
pub use parse::{Host, StoreUrl, Upstream};
pub use source::{ConfigError, Origin};

use parse::{Parsed, Shown};
use source::{Item, Layer, Value};

/// Configuration of `onceward serve`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Address of the public listener.
    pub listen: SocketAddr,
    /// Protected service.
    pub upstream: Upstream,
    /// Store of the keys.
    pub store: StoreUrl,
    /// Separates the keys of services that share a store.
    pub namespace: String,
    /// File with the secret. `None` means that the store holds it.
    pub secret_file: Option<PathBuf>,
    /// `Host` that the upstream receives.
    pub host: Host,
    /// Proxies whose `Forwarded`, `X-Real-IP` and `X-Forwarded-*` are trusted.
    pub trusted_proxies: TrustedProxies,
    /// Path prefix of the public endpoints.
    pub endpoints: String,
    /// Upper bound on the time of a graceful shutdown, in which executions finish.
    pub drain: Duration,
    /// Part of `drain` in which new claims are still accepted, while `/readyz` already fails.
    pub drain_delay: Duration,
    /// Admin listener.
    pub admin: Admin,
    /// Settings of issued keys.
    pub issuing: IssuerConfig,
    /// Settings for the verification of the tokens that identify callers.
    pub jwt: JwtSettings,
    /// Generation of the principal rule. Raising it accepts that another rule forgets the keys of
    /// the previous one.
    pub principal_generation: u32,
    /// Authorization request that precedes a replay, by route name.
    pub authorize_replays: BTreeMap<Arc<str>, AuthorizeReplays>,
    /// Origins whose pages may read responses that the gateway generates. If empty, those that the
    /// upstream allows.
    pub origins: Vec<String>,
    /// Limits of sizes, counts and times.
    pub limits: Limits,
    /// Idle timeout of upstream connections.
    pub upstream_idle: Duration,
    /// Timeout for the response head of a request without a key.
    pub unkeyed_timeout: Duration,
    /// Upper bound on the header lines of a request or a response.
    pub header_lines: usize,
    /// Upper bound on the bytes of a request's head.
    pub header_size: usize,
    /// Maximum age of an upstream connection; a new one resolves the name again.
    pub upstream_max_age: Duration,
    /// Policy of paths that no route matches.
    pub policy: Policy,
    /// Path patterns with their policies.
    pub routes: Vec<(String, Policy)>,
    /// Settings that differ from their default: setting, value (never a secret one) and origin.
    pub sources: Vec<(String, String, Origin)>,
    /// Warnings about settings that are valid but probably unintended.
    pub warnings: Vec<String>,
}

/// Admin listener.
#[derive(Clone)]
#[non_exhaustive]
pub struct Admin {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Bearer token that `/status` requires.
    pub token: Option<String>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("listen", &self.listen).field("token", &self.token.as_ref().map(|_| "…")).finish()
    }
}

/// Configuration inputs.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// Flags: path of the setting, name of the flag, and values.
    pub flags: Vec<(&'static str, &'static str, Vec<String>)>,
    /// Environment variables.
    pub environment: Vec<(String, String)>,
    /// Name and text of the file.
    pub file: Option<(String, String)>,
}

/// Returns the output of `config --print`: every setting, its default and its meaning, as TOML.
pub const fn defaults() -> &'static str {
    source::DEFAULTS
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const YEARS: Duration = Duration::from_secs(3650 * 86_400);
const MS: Duration = Duration::from_millis(1);
const GIB: usize = 1 << 30;
/// Upper bound on the bytes of a response that every store accepts in one piece.
const ANSWER_MAX: usize = 256 << 20;

impl Config {
    /// Reads and validates all settings.
    ///
    /// # Errors
    ///
    /// Returns one line, with the setting, the fix and the place.
    pub fn read(given: &Given) -> Result<Self, ConfigError> {
        let file = match &given.file {
            Some((path, text)) => source::File::parse(text, path)?,
            None => source::File::default(),
        };
        let (environment, unknown) = source::environment(given.environment.iter().cloned());
        let mut settings = Settings {
            layers: vec![source::defaults(), file.settings, environment, flags(given)],
            warnings: Vec::new(),
        };
        settings.warnings.extend(unknown.into_iter().map(|name| format!("unknown environment variable {name}")));

        let mut config = settings.top()?;
        if let Some(tombstone) = config.store.tombstone() {
            settings.default("policy.tombstone", tombstone);
        }
        config.policy = settings.policy("default")?;
        let timeout = config.limits.upstream_timeout;
        if let Some(target) = settings.authorize_replays(timeout)? {
            config.authorize_replays.insert(Arc::clone(&config.policy.route), target);
        }
        config.routes = settings.routes(&file.routes)?;
        for (route, (_, policy)) in file.routes.iter().zip(&config.routes) {
            settings.layers.push(route.clone());
            let target = settings.authorize_replays(timeout);
            settings.layers.pop();
            if let Some(target) = target? {
                config.authorize_replays.insert(Arc::clone(&policy.route), target);
            }
        }
        settings.check(&config)?;
        settings.check_callers(&config)?;
        config.sources = settings.sources();
        config.sources.extend(file.routes.iter().flat_map(|route| route.values().map(shown)));
        config.warnings = settings.warnings;
        Ok(config)
    }
}

fn flags(given: &Given) -> Layer {
    let value = |(path, flag, values): &(&'static str, &'static str, Vec<String>)| {
        let item = match values.as_slice() {
            [one] => Item::Plain(one.clone()),
            many => Item::List(many.iter().map(|value| Item::Plain(value.clone())).collect()),
        };
        ((*path).to_owned(), Value { name: (*path).to_owned(), item, origin: Origin::Flag(flag) })
    };
    given.flags.iter().map(value).collect()
}

/// Layers of settings, from the defaults up.
struct Settings {
    layers: Vec<Layer>,
    warnings: Vec<String>,
}

impl Settings {
    /// Returns the effective value. Overridden values are parsed too: otherwise an error there
    /// would surface only when the overriding one is removed.
    fn get<T>(&self, path: &str, parse: impl Fn(&Item) -> Parsed<T>) -> Result<T, ConfigError> {
        self.find(path, parse)?.ok_or_else(|| ConfigError::missing(path, "is required"))
    }

    fn find<T>(&self, path: &str, parse: impl Fn(&Item) -> Parsed<T>) -> Result<Option<T>, ConfigError> {
        let mut found = None;
        for value in self.layers.iter().filter_map(|layer| layer.get(path)) {
            found = Some(parse(&value.item).map_err(|what| ConfigError::new(&value.name, what, value.origin.clone()))?);
        }
        Ok(found)
    }

    /// Returns `true` if a setting was given.
    fn is_set(&self, path: &str) -> bool {
        self.layers.iter().skip(1).any(|layer| layer.contains_key(path))
    }

    /// Changes a default that depends on another setting.
    fn default(&mut self, path: &str, value: &str) {
        if let Some(default) = self.layers[0].get_mut(path) {
            default.item = Item::Text(value.to_owned());
        }
    }

    /// Rejects a combination of settings, in the name of the setting that was given last.
    fn refuse(&self, paths: &[&str], what: impl Into<String>) -> ConfigError {
        let given = self
            .layers
            .iter()
            .rev()
            .find_map(|layer| paths.iter().find_map(|path| layer.get(*path)))
            .map(|value| (value.name.clone(), value.origin.clone()));
        match given {
            Some((name, origin)) => ConfigError::new(name, what, origin),
            None => ConfigError::missing(paths.first().copied().unwrap_or_default(), &what.into()),
        }
    }

    fn top(&self) -> Result<Config, ConfigError> {
        let duration = |least, most| move |item: &Item| parse::duration(item, least, most);
        let size = |most| move |item: &Item| parse::size(item, 1, most);
        let upstream = self.find("upstream", parse::upstream)?.ok_or_else(|| {
            ConfigError::missing(
                "upstream",
                "is required; write --upstream http://127.0.0.1:3000, or upstream = \"…\" in the file",
            )
        })?;
        let mut limits = Limits::default();
        limits.request_body = self.get("limits.request_body", size(GIB))?;
        limits.response_body = self.get("limits.response_body", size(ANSWER_MAX))?;
        limits.cache = self.get("limits.cache", |item| parse::size(item, 0, 64 * GIB))?;
        limits.waiters_per_key = self.get("limits.waiters_per_key", |item| parse::count(item, 0, 100_000))?;
        limits.wait_max = self.get("limits.wait_max", duration(Duration::ZERO, HOUR))?;
        limits.executions = self.get("limits.executions", |item| parse::count(item, 1, 1_000_000))?;
        limits.store_timeout = self.get("limits.store_timeout", duration(MS, MINUTE))?;
        limits.upstream_timeout = self.get("limits.upstream_timeout", duration(MS, DAY))?;
        limits.capture_timeout = self.get("limits.capture_timeout", duration(MS, DAY))?;
        let mut issuing = IssuerConfig::default();
        issuing.lifetime = self.get("keys.lifetime", duration(SECOND, YEARS))?;
        issuing.generation = self.get("keys.generation", |item| parse::count(item, 1, 1_000_000))? as u32;
        let token = self.get("admin.token", parse::token)?;
        let secret_file = self.get("secret_file", |item| parse::text(item).map(str::to_owned))?;
        Ok(Config {
            listen: self.get("listen", parse::address)?,
            upstream,
            store: self.get("store", parse::store)?,
            namespace: self.get("namespace", parse::namespace)?,
            secret_file: (!secret_file.is_empty()).then(|| secret_file.into()),
            host: self.get("host", parse::host)?,
            trusted_proxies: self.get("trusted_proxies", parse::trusted_proxies)?,
            endpoints: self.get("endpoints", parse::endpoints)?,
            drain: self.get("drain", duration(Duration::ZERO, HOUR))?,
            drain_delay: self.get("drain_delay", duration(Duration::ZERO, HOUR))?,
            admin: Admin {
                listen: self.get("admin.listen", parse::address)?,
                token: (!token.is_empty()).then_some(token),
            },
            issuing,
            jwt: self.jwt()?,
            principal_generation: self.get("principal_generation", |item| parse::count(item, 1, 1_000_000))? as u32,
            authorize_replays: BTreeMap::new(),
            origins: self.get("cors.origins", parse::origins)?,
            limits,
            upstream_idle: self.get("limits.upstream_idle", duration(Duration::ZERO, HOUR))?,
            unkeyed_timeout: self.get("limits.unkeyed_timeout", duration(MS, DAY))?,
            header_lines: self.get("limits.header_lines", |item| parse::count(item, 16, 10_000))?,
            header_size: self.get("limits.header_size", |item| parse::size(item, 8 << 10, 16 << 20))?,
            upstream_max_age: self.get("limits.upstream_max_age", duration(Duration::ZERO, DAY))?,
            policy: Policy::default(),
            routes: Vec::new(),
            sources: Vec::new(),
            warnings: Vec::new(),
        })
    }

    fn policy(&self, route: &str) -> Result<Policy, ConfigError> {
        let duration = |least, most| move |item: &Item| parse::duration(item, least, most);
        let mut policy = Policy::default();
        policy.route = route.into();
        policy.methods = self.get("policy.methods", parse::methods)?;
        let window = self.find("policy.derive_window", duration(SECOND, YEARS))?;
        policy.missing = self.get("policy.missing", |item| parse::missing(item, window))?;
        policy.keys = self.get("policy.keys", parse::keys)?;
        policy.form_field = self.get("policy.form_field", parse::form_field)?;
        policy.guarantee = self.get("policy.guarantee", parse::guarantee)?;
        policy.retention = self.get("policy.retention", duration(SECOND, YEARS))?;
        policy.tombstone = self.get("policy.tombstone", duration(Duration::ZERO, YEARS))?;
        policy.lease = self.get("policy.lease", duration(SECOND, HOUR))?;
        let wait = self.find("policy.wait", duration(Duration::ZERO, HOUR))?;
        policy.wait = wait.unwrap_or_default();
        self.callers(&mut policy)?;
        let wait_max = self.get("limits.wait_max", duration(Duration::ZERO, HOUR))?;
        policy.form_wait = wait.unwrap_or(policy.form_wait.min(wait_max));
        policy.fingerprint = Arc::new(self.fingerprint()?);
        (policy.key_headers, policy.key_members) = self.get("policy.key_headers", parse::key_headers)?;
        self.check_keys(&policy, window.is_some())?;
        policy.release_on = self.get("policy.release_on", parse::statuses)?;
        policy.unknown_on = self.get("policy.unknown_on", parse::statuses)?;
        policy.stream = self.get("policy.stream", parse::stream)?;
        policy.close_delimited = self.get("policy.close_delimited", parse::close_delimited)?;
        policy.upstream_timeout = self.find("policy.upstream_timeout", duration(MS, DAY))?;
        policy.request_body = self.find("policy.request_body", |item| parse::size(item, 1, GIB))?;
        let capture = self.get("limits.capture_timeout", duration(MS, DAY))?;
        if let Some(patience) = policy.upstream_timeout.filter(|patience| *patience > capture) {
            let what = format!(
                "\"{}\" is more than limits.capture_timeout, \"{}\": a client would wait for a response that nobody reads; raise capture_timeout",
                Shown(patience),
                Shown(capture)
            );
            return Err(self.refuse(&["policy.upstream_timeout", "limits.capture_timeout"], what));
        }
        // If `release_on` names 503, the service itself sends it before it executes, so
        // `unknown_on` loses it. No other status of a proxy can come from the service.
        if policy.release_on.contains(StatusCode::SERVICE_UNAVAILABLE) && !self.is_set("policy.unknown_on") {
            policy.unknown_on = policy.unknown_on.without(503);
        }
        policy.released_when = self.get("policy.released_when", parse::json_pointer)?;
        policy.forward_key = self.get("policy.forward_key", parse::flag)?;
        if let Some(status) = policy.release_on.common(&policy.unknown_on) {
            let what = format!(
                "{status} is in release_on and in unknown_on; it can mean one of them, take it out of the other"
            );
            return Err(self.refuse(&["policy.unknown_on", "policy.release_on"], what));
        }
        if policy.wait > wait_max {
            let what = format!(
                "\"{}\" is more than limits.wait_max, \"{}\"; raise that, or wait less",
                Shown(policy.wait),
                Shown(wait_max)
            );
            return Err(self.refuse(&["policy.wait", "limits.wait_max"], what));
        }
        Ok(policy)
    }

    /// Returns the fingerprint rules.
    fn fingerprint(&self) -> Result<Rules, ConfigError> {
        let mut rules = Rules {
            kind: self.get("policy.fingerprint", parse::fingerprint)?,
            headers: self.get("policy.fingerprint_headers", parse::header_names)?,
            hosts: match self.get("host", parse::host)? {
                // The service receives one `Host`, whatever the client sent.
                Host::Upstream => Hosts::Same,
                Host::Preserve => self.get("policy.hosts", parse::hosts)?,
            },
            ..Rules::default()
        };
        let ignored = self.get("policy.fingerprint_ignore", parse::pointers)?;
        let only = self.get("policy.fingerprint_only", parse::pointers)?;
        let set = match (ignored.is_empty(), only.is_empty()) {
            (true, true) => return Ok(rules),
            (false, false) => {
                let what = "fingerprint_ignore and fingerprint_only are both set; write the members that count, or those that do not";
                return Err(self.refuse(&["policy.fingerprint_only", "policy.fingerprint_ignore"], what));
            }
            (false, true) => "policy.fingerprint_ignore",
            (true, false) => "policy.fingerprint_only",
        };
        if rules.kind != Kind::Json {
            let what = "names members of JSON, and bodies are not compared as JSON; write fingerprint = \"json\" too";
            return Err(self.refuse(&[set], what));
        }
        rules.members = if only.is_empty() { Members::Except(ignored) } else { Members::Only(only) };
        Ok(rules)
    }

    /// Validates the combination of key settings.
    fn check_keys(&self, policy: &Policy, is_window_set: bool) -> Result<(), ConfigError> {
        if let MissingKey::Derive { .. } = policy.missing {
            if !is_window_set {
                let what = "\"derive\" needs a window; write derive_window = \"10m\", the time in which no honest caller makes the same request twice";
                return Err(self.refuse(&["policy.missing"], what));
            }
            if policy.principal == PrincipalRule::Unset {
                let what = "\"derive\" tells callers apart by `principal`, and is never for the anonymous; write principal = [\"authorization\"], or another part";
                return Err(self.refuse(&["policy.missing"], what));
            }
        }
        if policy.keys == AcceptedKeys::Issued
            && matches!(policy.missing, MissingKey::Generate | MissingKey::Derive { .. })
        {
            let what = "keys = \"issued\" takes no key that is generated or derived; write missing = \"reject\", or keys = \"any\"";
            return Err(self.refuse(&["policy.keys", "policy.missing"], what));
        }
        Ok(())
    }

    /// Applies each route over `[policy]`. Rejects patterns that two routes share, because only one
    /// of them could apply.
    fn routes(&mut self, routes: &[Layer]) -> Result<Vec<(String, Policy)>, ConfigError> {
        let mut patterns = matchit::Router::new();
        let mut found = Vec::new();
        for route in routes {
            let Some(path) = route.get("path") else { continue };
            let refuse = |what: String| ConfigError::new("route.path", what, path.origin.clone());
            let pattern = parse::text(&path.item).map_err(refuse)?;
            let normal = onceward::paths::pattern(pattern).map_err(refuse)?;
            patterns.insert(&*normal, ()).map_err(|error| refuse(pattern_error(pattern, &normal, &error, &found)))?;
            self.layers.push(route.clone());
            let policy = self.policy(pattern);
            self.layers.pop();
            found.push((pattern.to_owned(), policy?));
        }
        Ok(found)
    }

    /// Validates combinations of settings.
    fn check(&mut self, config: &Config) -> Result<(), ConfigError> {
        let limits = &config.limits;
        if limits.capture_timeout < limits.upstream_timeout {
            let what = format!(
                "capture_timeout, \"{}\", is less than upstream_timeout, \"{}\": a client would wait for an answer that nobody listens for; raise capture_timeout",
                Shown(limits.capture_timeout),
                Shown(limits.upstream_timeout)
            );
            return Err(self.refuse(&["limits.capture_timeout", "limits.upstream_timeout"], what));
        }
        if config.admin.token.is_none() && !config.admin.listen.ip().is_loopback() {
            let what = format!(
                "must be set where the admin listener, {}, can be reached from other machines; set ONCEWARD_ADMIN_TOKEN, or listen on 127.0.0.1",
                config.admin.listen
            );
            return Err(ConfigError::new("admin.token", what, self.origin("admin.listen")));
        }
        if config.drain_delay > config.drain {
            let what = format!(
                "drain_delay, \"{}\", is more than drain, \"{}\", of which it is a part; raise drain, or lower drain_delay",
                Shown(config.drain_delay),
                Shown(config.drain)
            );
            return Err(self.refuse(&["drain_delay", "drain"], what));
        }
        if config.listen == config.admin.listen && config.listen.port() != 0 {
            return Err(
                self.refuse(&["admin.listen", "listen"], "clients and operators need two addresses; take another port")
            );
        }
        let itself = config.upstream.host.parse().is_ok_and(|ip: std::net::IpAddr| {
            ip == config.listen.ip() || ip.is_loopback() && config.listen.ip().is_unspecified()
        });
        if itself && config.upstream.port == config.listen.port() {
            return Err(self.refuse(
                &["listen", "upstream"],
                "listen and upstream are the same address, so the gateway would call itself; take another port",
            ));
        }
        for (name, policy) in [("policy", &config.policy)]
            .into_iter()
            .chain(config.routes.iter().map(|(path, policy)| (path.as_str(), policy)))
        {
            // Such a claim is renewed, or abandoned, before each first byte: safe, but slow.
            if limits.store_timeout * 3 >= policy.lease * 2 {
                self.warnings.push(format!(
                    "{name}: limits.store_timeout, \"{}\", is not less than two thirds of the lease, \"{}\": a store that is slow but works may cost claims",
                    Shown(limits.store_timeout),
                    Shown(policy.lease)
                ));
            }
        }
        Ok(())
    }

    fn origin(&self, path: &str) -> Origin {
        self.layers.iter().rev().find_map(|layer| layer.get(path)).map_or(Origin::Default, |value| value.origin.clone())
    }

    fn sources(&self) -> Vec<(String, String, Origin)> {
        let mut top = Layer::new();
        for layer in &self.layers {
            top.extend(layer.iter().map(|(path, value)| (path.clone(), value.clone())));
        }
        top.values().filter(|value| value.origin != Origin::Default).map(shown).collect()
    }
}

/// Formats a value for the log, without secrets.
fn shown(value: &Value) -> (String, String, Origin) {
    let text = match value.name.as_str() {
        "admin.token" => "…".to_owned(),
        "store" => without_password(&value.item.to_string()),
        _ => value.item.to_string(),
    };
    (value.name.clone(), text, value.origin.clone())
}

/// Removes the passwords before the host and in the query of a URL. In doubt more is removed.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    // Those in the query first, because they may contain an `@`.
    let parts = rest.split('&').map(|part| match part.split_once("password=") {
        Some((before, _)) => format!("{before}password=…"),
        None => part.to_owned(),
    });
    let shown = parts.collect::<Vec<_>>().join("&");
    // The last `@`: a password may contain an `@`, a slash or a question mark.
    match shown.rsplit_once('@') {
        Some((who, host)) => format!("{scheme}://{}:…@{host}", who.split([':', '/', '?']).next().unwrap_or_default()),
        None => format!("{scheme}://{shown}"),
    }
}

/// Describes why a pattern, in its normal form, conflicts with those `found` before.
fn pattern_error(pattern: &str, normal: &str, error: &matchit::InsertError, found: &[(String, Policy)]) -> String {
    match error {
        matchit::InsertError::Conflict { with } if with == normal => {
            let other = found
                .iter()
                .map(|(other, _)| other.as_str())
                .find(|other| onceward::paths::pattern(other).is_ok_and(|other| other == normal));
            match other.filter(|other| *other != pattern) {
                Some(other) => format!(
                    "{pattern:?} and {other:?} are one pattern, {normal:?}: case, a last slash and needless escapes do not count; merge the two routes"
                ),
                None => format!("{pattern:?} stands twice; merge the two routes"),
            }
        }
        matchit::InsertError::Conflict { with } => {
            format!(
                "{pattern:?} matches paths that {with:?} matches too, and none of them is the closer one; merge the two routes"
            )
        }
        error => format!(
            "{pattern:?} is no pattern: {}; write \"/users/{{id}}\" or \"/files/{{*rest}}\"",
            error.to_string().to_lowercase()
        ),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_password_is_shown_nowhere() {
        for (url, shown) in [
            ("embedded:data", "embedded:data"),
            ("postgres://u:secret@h/db", "postgres://u:…@h/db"),
            ("postgres://u:sec@ret@h/db?sslmode=disable", "postgres://u:…@h/db?sslmode=disable"),
            ("postgres://u:sec/ret@h/db", "postgres://u:…@h/db"),
            ("postgres://u:sec?ret@h/db", "postgres://u:…@h/db"),
            ("postgres://h/db?user=u&password=secret&connections=8", "postgres://h/db?user=u&password=…&connections=8"),
            ("postgres://h/db?password=sec@ret", "postgres://h/db?password=…"),
            ("postgres://u:sec@ret?x@h/db", "postgres://u:…@h/db"),
            ("redis://:secret@h", "redis://:…@h"),
            ("redis://h:6379", "redis://h:6379"),
            (
                "redis-sentinel://me:secret@a,b/orders?sentinel-password=secret&accept=eviction",
                "redis-sentinel://me:…@a,b/orders?sentinel-password=…&accept=eviction",
            ),
        ] {
            assert_eq!(super::without_password(url), shown);
        }
    }
}

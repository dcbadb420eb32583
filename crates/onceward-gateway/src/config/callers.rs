//! Settings of callers: their identification, the verification of tokens, and the authorization of
//! replays.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, HeaderName};
use http::{Method, Uri};
use onceward::policy::Policy;
use onceward::principal::{CredentialHeaders, Credentials, PrincipalPart, PrincipalRule, Scope, ScopePart};

use super::parse::{self, Parsed, Upstream, list, text};
use super::source::{ConfigError, Item};
use super::{Config, DAY, SECOND, Settings};

/// Settings for the verification of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JwtSettings {
    /// Public keys.
    pub keys: KeySource,
    /// File with the HMAC secret.
    pub secret_file: Option<PathBuf>,
    /// Only issuer whose tokens are accepted.
    pub issuer: Option<String>,
    /// Accepted audiences of a token. If empty, any.
    pub audience: Vec<String>,
    /// Tolerated difference between clocks.
    pub leeway: Duration,
    /// Refresh interval of the keys.
    pub refresh: Duration,
    /// Source of the token in a request.
    pub token_from: TokenSource,
}

/// Source of public keys.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeySource {
    /// No source.
    None,
    /// JWKS in a file.
    File(PathBuf),
    /// JWKS at a URL.
    Url {
        /// Server of the URL.
        server: Upstream,
        /// Path and query.
        target: String,
        /// Whole URL, for messages.
        url: String,
    },
}

/// Source of the token in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenSource {
    /// `Authorization: Bearer TOKEN`.
    Authorization,
    /// Another header.
    Header(HeaderName),
    /// A cookie.
    Cookie(String),
}

/// Request that asks the upstream to authorize a caller for a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuthorizeReplays {
    /// GET or HEAD.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// Timeout of the request.
    pub timeout: Duration,
}

impl Settings {
    pub(super) fn jwt(&self) -> Result<JwtSettings, ConfigError> {
        let plain = |item: &Item| text(item).map(str::to_owned);
        let secret_file = self.get("jwt.secret_file", plain)?;
        let issuer = self.get("jwt.issuer", plain)?;
        Ok(JwtSettings {
            keys: self.get("jwt.jwks", key_source)?,
            secret_file: (!secret_file.is_empty()).then(|| secret_file.into()),
            issuer: (!issuer.is_empty()).then_some(issuer),
            audience: self.get("jwt.audience", list)?,
            leeway: self.get("jwt.leeway", |item| parse::duration(item, Duration::ZERO, SECOND * 600))?,
            refresh: self.get("jwt.refresh", |item| parse::duration(item, SECOND, DAY))?,
            token_from: self.get("jwt.token_from", token_source)?,
        })
    }

    /// Applies the settings of callers to a policy.
    pub(super) fn callers(&self, policy: &mut Policy) -> Result<(), ConfigError> {
        policy.principal = self.find("policy.principal", principal)?.unwrap_or(PrincipalRule::Unset);
        let mut credentials = Credentials::default();
        if let Some(headers) = self.find("policy.credential_headers", header_names)? {
            credentials.headers = headers;
        }
        credentials.ignore_cookies = self.get("policy.ignore_cookies", flag)?;
        policy.credentials = Arc::new(credentials);
        policy.scope = self.get("policy.scope", scope)?;
        let most = self.get("policy.keys_per_minute", |item| parse::count(item, 0, 1_000_000))?;
        policy.keys_per_minute = u32::try_from(most).ok().and_then(NonZeroU32::new);
        Ok(())
    }

    pub(super) fn authorize_replays(&self, timeout: Duration) -> Result<Option<AuthorizeReplays>, ConfigError> {
        let parsed = self.get("policy.authorize_replays", authorize_replays)?;
        Ok(parsed.map(|(method, target)| AuthorizeReplays { method, target, timeout }))
    }

    /// Validates the settings of callers, and warns of those that are probably unintended.
    pub(super) fn check_callers(&mut self, config: &Config) -> Result<(), ConfigError> {
        let all = || std::iter::once(&config.policy).chain(config.routes.iter().map(|(_, policy)| policy));
        let claims = all().any(|policy| policy.principal.names_a_claim());
        if claims && config.jwt.keys == KeySource::None && config.jwt.secret_file.is_none() {
            let what = "\"jwt:CLAIM\" needs the keys that tokens are signed with; write jwks = \"https://ISSUER/.well-known/jwks.json\" or a file in [jwt], or secret_file for HMAC";
            return Err(self.refuse(&["jwt.jwks", "policy.principal"], what));
        }
        for policy in all() {
            if policy.keys_per_minute.is_some() && policy.principal.parts().is_empty() {
                self.warnings.push(format!(
                    "{}: keys_per_minute has no effect where no part names the caller, for all callers would share it",
                    policy.route
                ));
            }
        }
        let unset: Vec<&str> =
            all().filter(|policy| policy.principal == PrincipalRule::Unset).map(|policy| &*policy.route).collect();
        if !unset.is_empty() {
            self.warnings.push(format!(
                "no principal is set for {}: a keyed request that has a credential is refused with principal_unknown, and all others are one caller; write principal = [\"authorization\"], [\"header:NAME\"], [\"cookie:NAME\"] or [\"jwt:CLAIM\"] in [policy], or [] where all callers are one",
                unset.join(", ")
            ));
        }
        if claims && config.jwt.issuer.is_none() {
            self.warnings
                .push("jwt.issuer is not set: a token of any issuer that signs with these keys is accepted".into());
        }
        if let KeySource::Url { server, url, .. } = &config.jwt.keys
            && claims
            && !server.tls
            && server.host != "localhost"
            && !server.host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
        {
            self.warnings.push(format!(
                "jwt.jwks: {url} is fetched without TLS: who is in between can make up callers; write https://"
            ));
        }
        if !config.authorize_replays.is_empty() {
            self.warnings.push(
                "authorize_replays: schemes that sign each request (AWS4-HMAC-SHA256, OAuth 1, Digest, Hawk, Signature) and DPoP proofs are made for one request and cannot be used with it; replays to callers that send them are refused".into(),
            );
        }
        Ok(())
    }
}

/// Parses the parts that identify the caller.
fn principal(item: &Item) -> Parsed<PrincipalRule> {
    // These differ from one request to the next, so that no retry would find its key.
    const CHANGING: [&str; 10] = [
        "date",
        "dpop",
        "idempotency-key",
        "signature",
        "signature-input",
        "traceparent",
        "x-amz-date",
        "x-amzn-trace-id",
        "x-correlation-id",
        "x-request-id",
    ];
    let parts = list(item)?.into_iter().map(|part| match part.parse::<PrincipalPart>() {
        Ok(PrincipalPart::Header(name)) if CHANGING.contains(&name.as_str()) => Err(format!(
            "\"header:{name}\" differs from one request to the next, so that a retry would be another caller; name a header that stays the same"
        )),
        Ok(part) => Ok(part),
        Err(error) => Err(error.to_string()),
    });
    parts.collect::<Parsed<Vec<PrincipalPart>>>().map(PrincipalRule::Parts)
}

fn header_names(item: &Item) -> Parsed<CredentialHeaders> {
    list(item)?
        .iter()
        .map(|name| {
            HeaderName::from_str(name)
                .map_err(|_| format!("{name:?} is no name of a header; write \"x-api-key\", for example"))
        })
        .collect::<Parsed<Vec<HeaderName>>>()
        .map(CredentialHeaders::from_iter)
}

fn scope(item: &Item) -> Parsed<Scope> {
    list(item)?
        .iter()
        .map(|part| part.parse::<ScopePart>().map_err(|error| error.to_string()))
        .collect::<Parsed<Vec<ScopePart>>>()
        .map(Scope::from_iter)
}

/// Parses a boolean.
fn flag(item: &Item) -> Parsed<bool> {
    match item {
        Item::Bool(flag) => Ok(*flag),
        Item::Plain(text) if text.trim() == "true" => Ok(true),
        Item::Plain(text) if text.trim() == "false" => Ok(false),
        other => Err(format!("{other} is neither true nor false; write true or false without quotes")),
    }
}

fn authorize_replays(item: &Item) -> Parsed<Option<(Method, String)>> {
    let text = text(item)?.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let invalid = || {
        format!(
            "{text:?} is no request; write a method and a path that the service answers with 2xx to callers that it lets in, such as \"GET /session\""
        )
    };
    let (method, target) = text.split_once(' ').ok_or_else(invalid)?;
    let method = Method::from_str(method).map_err(|_| invalid())?;
    let target = target.trim();
    if !crate::authorize::may_ask(&method) {
        return Err(format!("{method} may change something; write GET or HEAD, such as \"GET /session\""));
    }
    let is_path = target.starts_with('/') && Uri::from_str(target).is_ok_and(|uri| uri.authority().is_none());
    if is_path { Ok(Some((method, target.to_owned()))) } else { Err(invalid()) }
}

fn token_source(item: &Item) -> Parsed<TokenSource> {
    match text(item)?.trim().parse::<PrincipalPart>() {
        Ok(PrincipalPart::Authorization) => Ok(TokenSource::Authorization),
        Ok(PrincipalPart::Header(name)) if name == AUTHORIZATION => Ok(TokenSource::Authorization),
        Ok(PrincipalPart::Header(name)) => Ok(TokenSource::Header(name)),
        Ok(PrincipalPart::Cookie(name)) => Ok(TokenSource::Cookie(name)),
        _ => Err(format!(
            "{item} does not say where the token is; write \"authorization\", \"header:NAME\" or \"cookie:NAME\""
        )),
    }
}

fn key_source(item: &Item) -> Parsed<KeySource> {
    let text = text(item)?.trim();
    if text.is_empty() {
        return Ok(KeySource::None);
    }
    if !text.starts_with("http://") && !text.starts_with("https://") {
        return Ok(KeySource::File(text.into()));
    }
    let invalid = || format!("{text:?} is no URL of a JWKS; write \"https://ISSUER/.well-known/jwks.json\", or a file");
    if text.contains('@') {
        return Err("has a user or password in it; write a URL that anybody may read".into());
    }
    let uri = Uri::from_str(text).map_err(|_| invalid())?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(invalid()) };
    let server = parse::upstream(&Item::Text(format!("{scheme}://{authority}")))?;
    let target = uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
    Ok(KeySource::Url { server, target, url: text.to_owned() })
}

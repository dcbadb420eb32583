//! Principal: the caller. Keys of different principals never collide.

mod credentials;
mod scheme;
mod scope;

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use http::header::{AUTHORIZATION, COOKIE, HeaderMap, HeaderName, SET_COOKIE};
use http::{Extensions, Request, request};
use serde_json::{Map, Value};
use smallvec::SmallVec;

use crate::problem::Code;
use crate::secret::Digest;

pub use credentials::{CREDENTIAL_HEADERS, CredentialHeaders};
pub use scheme::{bearer_jwt, signed_scheme};
pub use scope::{KeySpace, ParseScopeError, Scope, ScopePart};

/// Part of a request that names the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PrincipalPart {
    /// The whole `Authorization` header: suitable for API keys, not for tokens that are renewed.
    Authorization,
    /// A header.
    Header(HeaderName),
    /// A cookie.
    Cookie(String),
    /// A claim of a verified token, which is stable when the token is renewed. See
    /// [`VerifiedToken`].
    Jwt(String),
}

impl PrincipalPart {
    fn kind(&self) -> &'static str {
        match self {
            Self::Authorization => "authorization",
            Self::Header(_) => "header",
            Self::Cookie(_) => "cookie",
            Self::Jwt(_) => "jwt",
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Authorization => "",
            Self::Header(name) => name.as_str(),
            Self::Cookie(name) | Self::Jwt(name) => name,
        }
    }
}

/// Orders by the text of the part.
impl Ord for PrincipalPart {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.kind(), self.name()).cmp(&(other.kind(), other.name()))
    }
}

impl PartialOrd for PrincipalPart {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl FromStr for PrincipalPart {
    type Err = ParsePartError;

    fn from_str(text: &str) -> Result<Self, ParsePartError> {
        let invalid = || ParsePartError(text.to_owned());
        let is_claim = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
        match text.split_once(':') {
            None if text == "authorization" => Ok(Self::Authorization),
            Some(("header", name)) => name.parse().map(Self::Header).map_err(|_| invalid()),
            Some(("cookie", name)) if HeaderName::try_from(name).is_ok() => Ok(Self::Cookie(name.to_owned())),
            Some(("jwt", claim)) if is_claim(claim) => Ok(Self::Jwt(claim.to_owned())),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for PrincipalPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Authorization => f.write_str("authorization"),
            part => write!(f, "{}:{}", part.kind(), part.name()),
        }
    }
}

/// Error of a text that names no part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsePartError(String);

impl fmt::Display for ParsePartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is no part of a principal; write \"authorization\", \"header:NAME\", \"cookie:NAME\" or \"jwt:CLAIM\"",
            self.0
        )
    }
}

impl std::error::Error for ParsePartError {}

/// Rule for the parts of a request that name the caller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PrincipalRule {
    /// No rule: a request without a credential is anonymous, one with a credential is refused.
    #[default]
    Unset,
    /// These parts together, in any order. An empty list: all callers are one.
    Parts(Vec<PrincipalPart>),
}

impl From<PrincipalPart> for PrincipalRule {
    fn from(part: PrincipalPart) -> Self {
        Self::Parts(vec![part])
    }
}

impl From<Vec<PrincipalPart>> for PrincipalRule {
    fn from(parts: Vec<PrincipalPart>) -> Self {
        Self::Parts(parts)
    }
}

impl<const N: usize> From<[PrincipalPart; N]> for PrincipalRule {
    fn from(parts: [PrincipalPart; N]) -> Self {
        Self::Parts(parts.into())
    }
}

/// The caller, as identified by a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Principal {
    /// No part of the rule, and no credential.
    Anonymous,
    /// A named caller: a digest of the parts, or of their absence if the rule declares that all
    /// callers are one.
    Named(Digest),
}

/// The caller, as identified before the layer: by a session, or by a middleware that checked a
/// token.
///
/// If it is in a request's extensions, it is the principal, and no rule is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller(Arc<[u8]>);

impl Caller {
    /// Creates a caller with an id that is stable for the same caller.
    pub fn new(id: impl AsRef<[u8]>) -> Self {
        Self(id.as_ref().into())
    }
}

/// Token of a request, checked before the layer. Put into the request's extensions for
/// [`PrincipalPart::Jwt`].
#[derive(Clone, Debug)]
pub enum VerifiedToken {
    /// Its claims. Its signature, times, issuer and audience were checked.
    Valid(Arc<Map<String, Value>>),
    /// The reason why it is not valid.
    Invalid(Arc<str>),
    /// The reason why it could not be checked now.
    Unverifiable(Arc<str>),
}

/// The parts of a request that can name its caller.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its extensions: [`Caller`] and [`VerifiedToken`] apply.
    pub extensions: &'a Extensions,
}

impl<'a> From<&'a request::Parts> for RequestView<'a> {
    fn from(parts: &'a request::Parts) -> Self {
        Self { headers: &parts.headers, extensions: &parts.extensions }
    }
}

impl<'a, B> From<&'a Request<B>> for RequestView<'a> {
    fn from(request: &'a Request<B>) -> Self {
        Self { headers: request.headers(), extensions: request.extensions() }
    }
}

impl<'a> From<&'a HeaderMap> for RequestView<'a> {
    fn from(headers: &'a HeaderMap) -> Self {
        static NONE: LazyLock<Extensions> = LazyLock::new(Extensions::new);
        Self { headers, extensions: &NONE }
    }
}

/// Headers that are credentials besides `Authorization` and `Cookie`, and the handling of cookies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Headers that are credentials.
    pub headers: CredentialHeaders,
    /// True if cookies are no credential unless the rule names one.
    pub ignore_cookies: bool,
}

/// Error of a request whose caller cannot be identified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnidentifiedCallerError {
    code: Code,
    detail: String,
}

impl UnidentifiedCallerError {
    /// Returns the code of the refusal: `principal_unknown`, `credentials_ambiguous`,
    /// `token_invalid`, or `store_unavailable` if a token cannot be checked for want of keys.
    pub fn code(&self) -> Code {
        self.code
    }

    /// Returns the cause and the fix. Contains names of headers and cookies, and never a value.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    fn unknown(detail: String) -> Self {
        Self { code: Code::PrincipalUnknown, detail }
    }
}

impl fmt::Display for UnidentifiedCallerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for UnidentifiedCallerError {}

type Values<'h> = SmallVec<[Cow<'h, [u8]>; 1]>;

impl PrincipalRule {
    /// Returns the caller.
    ///
    /// # Errors
    ///
    /// [`UnidentifiedCallerError`] if the request has a credential that no part of the rule names:
    /// treating such callers as one would return one the responses of another. Also if a part
    /// occurs in two differing lines, if its value changes from request to request, or if its token
    /// is not valid.
    pub fn identify<'a>(
        &self,
        request: impl Into<RequestView<'a>>,
        credentials: &Credentials,
    ) -> Result<Principal, UnidentifiedCallerError> {
        let request = request.into();
        if let Some(Caller(id)) = request.extensions.get() {
            return Ok(Principal::Named(Digest::of_parts([&b"caller"[..], &1u64.to_le_bytes(), id])));
        }
        let parts = match self {
            Self::Unset => [].as_slice(),
            // The digest of no parts is the same for all callers, as an empty list declares.
            Self::Parts(parts) if parts.is_empty() => return Ok(Principal::Named(Digest::of_parts([b""; 0]))),
            Self::Parts(parts) => parts,
        };
        let mut found = SmallVec::<[(&PrincipalPart, Values<'_>); 2]>::new();
        for part in sorted(parts) {
            found.push((part, values(part, request)?));
        }
        if found.iter().any(|(_, values)| !values.is_empty()) {
            return Ok(Principal::Named(digest(&found)));
        }
        match self.unnamed(request, credentials) {
            Some(error) => Err(error),
            None => Ok(Principal::Anonymous),
        }
    }

    /// Returns true if the rule names a cookie.
    pub fn names_a_cookie(&self) -> bool {
        self.parts().iter().any(|part| matches!(part, PrincipalPart::Cookie(_)))
    }

    /// Returns true if the rule names a claim of a token.
    pub fn names_a_claim(&self) -> bool {
        self.parts().iter().any(|part| matches!(part, PrincipalPart::Jwt(_)))
    }

    /// Returns the parts. Empty if no rule is set.
    pub fn parts(&self) -> &[PrincipalPart] {
        match self {
            Self::Unset => &[],
            Self::Parts(parts) => parts,
        }
    }

    /// Returns the name of a cookie of the rule to which the response gives a different value than
    /// the request had.
    pub fn renewed_cookie<'r>(&'r self, request: &HeaderMap, response: &HeaderMap) -> Option<&'r str> {
        let given = |name: &str| {
            response.get_all(SET_COOKIE).iter().find_map(|line| {
                let pair = line.as_bytes().split(|byte| *byte == b';').next()?;
                value_of(pair, name)
            })
        };
        self.parts().iter().find_map(|part| {
            let PrincipalPart::Cookie(name) = part else { return None };
            let now = given(name).filter(|now| !now.is_empty())?;
            let mut had = cookies(request, name).map(|(_, value)| value).peekable();
            (had.peek().is_some() && had.all(|had| had != now)).then_some(name.as_str())
        })
    }

    /// Returns the error that lists the credentials that no part of the rule names. `None` if there
    /// are none.
    fn unnamed(&self, request: RequestView<'_>, credentials: &Credentials) -> Option<UnidentifiedCallerError> {
        let headers = request.headers;
        let authorization = headers.get(AUTHORIZATION);
        let mut names: SmallVec<[&HeaderName; 2]> = credentials.headers.found(headers).collect();
        names.truncate(NAMED_MAX);
        let cookies_count = !self.names_a_cookie() && !credentials.ignore_cookies;
        let has_cookies = cookies_count && headers.contains_key(COOKIE);
        if authorization.is_none() && names.is_empty() && !has_cookies {
            return None;
        }
        let mut found = Vec::new();
        let mut fix = String::new();
        if let Some(value) = authorization {
            let (scheme, signed) = (scheme::name(value.as_bytes()), signed_scheme(value.as_bytes()));
            found.push(match scheme {
                Some(scheme) => format!("Authorization ({scheme})"),
                None => "Authorization".to_owned(),
            });
            fix = match signed {
                Some(scheme) => signed_fix(scheme),
                None if bearer_jwt(value.as_bytes()).is_some() => self.line("jwt:sub"),
                None => self.line("authorization"),
            };
        }
        for name in &names {
            found.push(name.to_string());
        }
        if let (true, Some(first)) = (fix.is_empty(), names.first()) {
            fix = match first.as_str() {
                "dpop" | "signature-input" => signed_fix(first.as_str()),
                name => self.line(&format!("header:{name}")),
            };
        }
        if has_cookies {
            let names = cookie_names(headers);
            found.push(match names.is_empty() {
                true => "Cookie".to_owned(),
                false => format!("Cookie ({})", names.join(", ")),
            });
            if fix.is_empty() {
                let session = names.iter().find(|name| is_session_cookie(name));
                let line = |name: &str| self.line(&format!("cookie:{name}"));
                fix = match (session, names.first()) {
                    (Some(session), _) => line(session),
                    (None, Some(first)) if !is_analytics_cookie(first) => line(first),
                    _ => format!("{}, or ignore_cookies = true if no cookie names the caller", line("NAME")),
                };
            }
        }
        let missing = match self {
            Self::Unset => "no rule says which part of it names the caller".to_owned(),
            Self::Parts(_) => format!("it has none of the parts that name the caller, {self}"),
        };
        Some(UnidentifiedCallerError::unknown(format!(
            "The request has {}, and {missing}. Treating such callers as one would show one the responses of another. The operator writes {fix} in [policy]; [] says that all callers are one.",
            found.join(", ")
        )))
    }

    /// Returns the setting to write, with one more part.
    fn line(&self, part: &str) -> String {
        let mut parts: Vec<String> = self.parts().iter().map(ToString::to_string).collect();
        parts.push(part.to_owned());
        parts.sort_unstable();
        let parts: Vec<String> = parts.iter().map(|part| format!("\"{part}\"")).collect();
        format!("principal = [{}]", parts.join(", "))
    }
}

/// Writes the rule as in the settings, sorted; `unset` if no rule is set.
impl fmt::Display for PrincipalRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Parts(parts) = self else { return f.write_str("unset") };
        f.write_str("[")?;
        for (at, part) in sorted(parts).into_iter().enumerate() {
            write!(f, "{}\"{part}\"", if at == 0 { "" } else { ", " })?;
        }
        f.write_str("]")
    }
}

/// Upper bound on the credentials that a refusal names.
const NAMED_MAX: usize = 5;

/// Returns the parts in the order in which they are hashed, each once. Reordering them in the
/// settings changes no caller.
fn sorted(parts: &[PrincipalPart]) -> SmallVec<[&PrincipalPart; 2]> {
    let mut parts: SmallVec<[&PrincipalPart; 2]> = parts.iter().collect();
    parts.sort_unstable();
    parts.dedup();
    parts
}

fn digest(found: &[(&PrincipalPart, Values<'_>)]) -> Digest {
    let mut fields = SmallVec::<[Cow<'_, [u8]>; 6]>::new();
    for (part, values) in found {
        fields.push(match part {
            PrincipalPart::Authorization => Cow::Borrowed(b"authorization"),
            part => Cow::Owned(part.to_string().into_bytes()),
        });
        fields.push(Cow::Owned((values.len() as u64).to_le_bytes().to_vec()));
        fields.extend(values.iter().map(|value| Cow::Borrowed(&**value)));
    }
    Digest::of_parts(&fields)
}

/// Returns the values of a part. An empty value counts as an absent one, equal lines count once.
fn values<'h>(part: &PrincipalPart, request: RequestView<'h>) -> Result<Values<'h>, UnidentifiedCallerError> {
    match part {
        PrincipalPart::Authorization => header_values(&AUTHORIZATION, request.headers),
        PrincipalPart::Header(name) => header_values(name, request.headers),
        PrincipalPart::Cookie(name) => cookie_values(name, request.headers),
        PrincipalPart::Jwt(claim) => claim_values(claim, request.extensions),
    }
}

fn header_values<'h>(name: &HeaderName, headers: &'h HeaderMap) -> Result<Values<'h>, UnidentifiedCallerError> {
    let mut found = Values::new();
    for line in headers.get_all(name) {
        let line = line.as_bytes();
        let value = match *name == AUTHORIZATION {
            true => scheme::canonical(line),
            false => Cow::Borrowed(line.trim_ascii()),
        };
        if *name == AUTHORIZATION
            && let Some(scheme) = signed_scheme(line)
        {
            return Err(UnidentifiedCallerError::unknown(format!(
                "The scheme {scheme} of Authorization signs each request, so a retry would be another caller and execute again. The operator writes {}.",
                signed_fix(scheme)
            )));
        }
        match found.first() {
            _ if value.is_empty() => {}
            None => found.push(value),
            Some(first) if *first == value => {}
            Some(_) => return Err(ambiguous(&format!("The header {name}"))),
        }
    }
    Ok(found)
}

/// Two values in one line are what browsers send for two paths, in the same order each time. The
/// service may use either, so both name the caller, and neither is equivalent to the other.
fn cookie_values<'h>(name: &str, headers: &'h HeaderMap) -> Result<Values<'h>, UnidentifiedCallerError> {
    let mut found = Values::new();
    let mut first_line = None;
    for (line, value) in cookies(headers, name).filter(|(_, value)| !value.is_empty()) {
        let is_first = *first_line.get_or_insert(line) == line;
        if found.iter().any(|known| **known == *value) {
            continue;
        }
        if !is_first {
            return Err(ambiguous(&format!("The cookie {name}")));
        }
        found.push(Cow::Borrowed(value));
    }
    Ok(found)
}

fn ambiguous(what: &str) -> UnidentifiedCallerError {
    let detail = format!(
        "{what} names the caller, and came in two lines that differ. Which one the service uses is not known here; send one."
    );
    UnidentifiedCallerError { code: Code::CredentialsAmbiguous, detail }
}

/// The issuer of a token is included too: two issuers may use the same subject for two callers.
fn claim_values<'h>(claim: &str, extensions: &'h Extensions) -> Result<Values<'h>, UnidentifiedCallerError> {
    let claims = match extensions.get::<VerifiedToken>() {
        Some(VerifiedToken::Valid(claims)) => claims,
        Some(VerifiedToken::Invalid(why)) => {
            let detail = format!("The token is not valid: {why}. Send a valid one.");
            return Err(UnidentifiedCallerError { code: Code::TokenInvalid, detail });
        }
        Some(VerifiedToken::Unverifiable(why)) => {
            let detail = format!("The token cannot be checked now: {why}. Send the request again with the same key.");
            return Err(UnidentifiedCallerError { code: Code::StoreUnavailable, detail });
        }
        None => return Ok(Values::new()),
    };
    let mut found = Values::new();
    // Lists and objects have no canonical spelling.
    if let Some(value @ (Value::String(_) | Value::Number(_) | Value::Bool(_))) = claims.get(claim)
        && *value != Value::String(String::new())
    {
        found.push(Cow::Owned(claims.get("iss").map_or_else(String::new, Value::to_string).into_bytes()));
        found.push(Cow::Owned(value.to_string().into_bytes()));
    }
    Ok(found)
}

/// Iterates over the values of a cookie, each with the number of its line.
fn cookies<'h>(headers: &'h HeaderMap, name: &str) -> impl Iterator<Item = (usize, &'h [u8])> {
    headers.get_all(COOKIE).iter().enumerate().flat_map(move |(line, value)| {
        let pairs = value.as_bytes().split(|byte| *byte == b';');
        pairs.filter_map(move |pair| Some((line, value_of(pair, name)?)))
    })
}

fn value_of<'h>(pair: &'h [u8], name: &str) -> Option<&'h [u8]> {
    let pair = pair.trim_ascii();
    let at = pair.iter().position(|byte| *byte == b'=')?;
    (&pair[..at] == name.as_bytes()).then(|| &pair[at + 1..])
}

/// Returns the names of cookies that are safe to repeat in a message.
fn cookie_names(headers: &HeaderMap) -> Vec<&str> {
    let lines = headers.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    let mut names: Vec<&str> = lines
        .filter_map(|pair| std::str::from_utf8(pair.split(|byte| *byte == b'=').next()?.trim_ascii()).ok())
        .filter(|name| (1..=64).contains(&name.len()) && HeaderName::try_from(*name).is_ok())
        .collect();
    names.sort_by_key(|name| (!is_session_cookie(name), is_analytics_cookie(name)));
    names.dedup();
    names.truncate(NAMED_MAX);
    names
}

/// Returns true for session cookie names of frameworks; `docs/principals.md` has the table.
fn is_session_cookie(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let lower = lower.strip_prefix("__host-").or_else(|| lower.strip_prefix("__secure-")).unwrap_or(&lower);
    let fixed = [
        ".aspnetcore.identity.application",
        ".aspnetcore.cookies",
        ".aspxauth",
        "asp.net_sessionid",
        "auth_session",
        "better-auth.session_token",
        "cake",
        "cakephp",
        "ci_session",
        "connect.sid",
        "fsid",
        "id",
        "jsessionid",
        "koa.sess",
        "koa:sess",
        "next-auth.session-token",
        "authjs.session-token",
        "ory_kratos_session",
        "phpsessid",
        "play_session",
        "rack.session",
        "session",
        "sessionid",
        "session_id",
        "sid",
        "token",
        "user_session",
    ];
    fixed.contains(&lower) || lower.ends_with("_session") || lower.ends_with("sessionid")
}

fn is_analytics_cookie(name: &str) -> bool {
    [
        "_ga",
        "_gid",
        "_gat",
        "_gcl",
        "_fbp",
        "_fbc",
        "_hj",
        "_pk_",
        "_uet",
        "__utm",
        "ajs_",
        "amplitude",
        "_clck",
        "_clsk",
    ]
    .iter()
    .any(|prefix| name.starts_with(prefix))
}

fn signed_fix(scheme: &str) -> String {
    format!(
        "principal = [\"header:NAME\"], with a header in which the proxy that checks {scheme} names the caller (and removes it from what clients send)"
    )
}

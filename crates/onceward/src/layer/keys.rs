//! Sources of the key: a header, a form's hidden field, a member of a JSON body, or generated here;
//! and the check that a route accepts it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::HeaderName;

use crate::engine::{Engine, KeyedRequest};
use crate::fingerprint::form::{self, Form};
use crate::fingerprint::{Fingerprint, JsonError, Rules, json};
use crate::key::{Key, ParseKeyError};
use crate::policy::{AcceptedKeys, MissingKey, Policy};
use crate::principal::{Principal, RequestView};
use crate::problem::{Code, Problem};
use crate::secret::{HashKeys, hex};
use crate::wire;

/// Source of a request's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A header.
    Header,
    /// Possibly a field of the form, or a member of the JSON, in the body. Without one, the policy
    /// decides.
    Body,
    /// Generated for this request.
    Generated,
    /// Derived from the request itself.
    Derived(Duration),
}

/// Returns true if a header of the request carries a key.
pub(super) fn are_sent(policy: &Policy, headers: &HeaderMap) -> bool {
    wire::line(headers, &wire::IDEMPOTENCY_KEY).is_some()
        || policy.key_headers.iter().any(|name| wire::line(headers, name).is_some())
}

/// Error of a key in a request's headers.
pub(super) enum SentError {
    /// The header of this name is malformed.
    Invalid(HeaderName, ParseKeyError),
    /// Two headers contain different keys.
    Differ,
}

/// Finds the key in the headers of a request: `Idempotency-Key`, or another name of the policy. The
/// same key under two names is one key.
pub(super) fn sent(policy: &Policy, headers: &HeaderMap) -> Result<Option<Key>, SentError> {
    let of = |name: &HeaderName| Key::of(headers, name).map_err(|invalid| SentError::Invalid(name.clone(), invalid));
    policy.key_headers.iter().try_fold(of(&wire::IDEMPOTENCY_KEY)?, |found, name| match (found, of(name)?) {
        (Some(one), Some(other)) if one != other => Err(SentError::Differ),
        (found, other) => Ok(found.or(other)),
    })
}

/// Returns true if the policy needs a key for a request whose headers have none.
///
/// A request without a key is never refused because its caller cannot be identified: without a key
/// it could not log in.
pub(super) fn key_required(policy: &Policy, request: RequestView<'_>) -> bool {
    may_have_key(policy, request.headers)
        || match policy.missing {
            MissingKey::Pass => false,
            MissingKey::Reject => true,
            MissingKey::Generate => policy.identify(request).is_ok(),
            MissingKey::Derive { .. } => matches!(policy.identify(request), Ok(Principal::Named(_))),
        }
}

/// Returns true if the body may contain the key.
fn may_have_key(policy: &Policy, headers: &HeaderMap) -> bool {
    has_field(policy, headers) || has_member(policy, headers)
}

fn has_field(policy: &Policy, headers: &HeaderMap) -> bool {
    policy.form_field.is_some() && form::is_form(headers)
}

fn has_member(policy: &Policy, headers: &HeaderMap) -> bool {
    !policy.key_members.is_empty() && json::is_json(headers)
}

impl Source {
    /// Returns the source of the key for a request whose headers have none. `None`: there is no
    /// other source.
    pub(super) fn instead(policy: &Policy, headers: &HeaderMap) -> Option<Self> {
        match may_have_key(policy, headers) {
            true => Some(Self::Body),
            false => Self::without_key(policy),
        }
    }

    fn without_key(policy: &Policy) -> Option<Self> {
        match policy.missing {
            MissingKey::Pass | MissingKey::Reject => None,
            MissingKey::Generate => Some(Self::Generated),
            MissingKey::Derive { window } => Some(Self::Derived(window)),
        }
    }
}

/// Origin of the key, once the body was read.
pub(super) enum KeyChoice {
    /// The request contained it.
    FromRequest,
    /// Made here. `upstream` and `client`: true if the upstream, or the client, gets it.
    Generated { upstream: bool, client: bool },
    /// The request has no key, and needs none.
    None,
}

/// State of a request when its body was read.
pub(super) struct Known<'a> {
    pub(super) source: Source,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a Bytes,
    /// The refusal of a request whose caller cannot be identified, which applies if it has a key.
    pub(super) unidentified: Option<Problem>,
}

impl Known<'_> {
    /// Finds or makes the key, and checks that the route accepts it. Puts it into `ask`.
    pub(super) async fn settle(
        &self,
        engine: &Engine,
        ask: &mut KeyedRequest,
        derived: impl Fn(&Rules, &HashKeys) -> (u8, Fingerprint),
    ) -> Result<KeyChoice, Problem> {
        let found = match self.source {
            Source::Body => self.in_body(engine, ask).map_err(|problem| *problem)?,
            _ => None,
        };
        let settled = match (found, self.source) {
            (Some(_), _) if self.unidentified.is_some() => {
                return Err(self.unidentified.clone().unwrap_or_else(|| engine.refusal(Code::PrincipalUnknown)));
            }
            (None, Source::Body) if self.unidentified.is_some() && ask.policy.missing != MissingKey::Reject => {
                return Ok(KeyChoice::None);
            }
            (Some(key), _) => {
                ask.key = key;
                KeyChoice::Generated { upstream: true, client: false }
            }
            (None, Source::Header) => KeyChoice::FromRequest,
            (None, Source::Body) => match (Source::without_key(&ask.policy), ask.policy.missing) {
                (None, MissingKey::Reject) => return Err(engine.refusal(Code::KeyMissing)),
                (None, _) => return Ok(KeyChoice::None),
                (Some(source), _) => self.make(source, engine, ask, derived).await?,
            },
            (None, source) => self.make(source, engine, ask, derived).await?,
        };
        if ask.policy.keys == AcceptedKeys::Issued && !matches!(settled, KeyChoice::None) {
            engine.check_issued(&ask.key, &ask.principal, &ask.policy).await?;
        }
        Ok(settled)
    }

    /// Finds the key in the body. A body that may contain the key and cannot be read is refused: it
    /// may be a retry.
    fn in_body(&self, engine: &Engine, ask: &mut KeyedRequest) -> Result<Option<Key>, Box<Problem>> {
        if has_field(&ask.policy, self.headers) {
            let key = self.in_form(engine, &ask.policy)?;
            // A browser shows the refusal, and does not retry.
            if key.is_some() && ask.policy.wait != ask.policy.form_wait {
                ask.policy = Arc::new(Policy { wait: ask.policy.form_wait, ..(*ask.policy).clone() });
            }
            return Ok(key);
        }
        self.in_json(engine, &ask.policy)
    }

    fn in_form(&self, engine: &Engine, policy: &Policy) -> Result<Option<Key>, Box<Problem>> {
        let Some(name) = policy.form_field.as_deref() else { return Ok(None) };
        let form = Form::read(self.headers, self.body);
        let unreadable = || Box::new(engine.refusal(Code::FormUnreadable));
        let values = form.as_ref().and_then(|form| form.values(name)).ok_or_else(unreadable)?;
        let parsed: Result<Vec<Key>, ParseKeyError> = values.into_iter().map(Key::parse).collect();
        let keys = parsed.map_err(|invalid| Box::new(engine.refusal(Code::KeyInvalid).detail(invalid.sentence())))?;
        match keys.windows(2).any(|pair| pair[0] != pair[1]) {
            true => Err(Box::new(engine.refusal(Code::KeysDiffer))),
            false => Ok(keys.into_iter().next()),
        }
    }

    fn in_json(&self, engine: &Engine, policy: &Policy) -> Result<Option<Key>, Box<Problem>> {
        // An empty body contains no key.
        if self.body.is_empty() {
            return Ok(None);
        }
        let document = json::read(self.headers, self.body).map_err(|error| Box::new(unreadable_json(engine, error)))?;
        let refused = |detail: String| Box::new(engine.refusal(Code::KeyInvalid).detail(detail));
        for pointer in &policy.key_members {
            match document.find(pointer) {
                None | Some(json::Value::Null) => {}
                Some(json::Value::String(text) | json::Value::Number(text)) => {
                    return Key::from_text(text).map(Some).map_err(|invalid| refused(invalid.sentence()));
                }
                Some(_) => {
                    let what = format!(
                        "The member {pointer} of the body is the key, and is no string; send a string of 1 to 255 visible ASCII characters."
                    );
                    return Err(refused(what));
                }
            }
        }
        Ok(None)
    }

    async fn make(
        &self,
        source: Source,
        engine: &Engine,
        ask: &mut KeyedRequest,
        derived: impl Fn(&Rules, &HashKeys) -> (u8, Fingerprint),
    ) -> Result<KeyChoice, Problem> {
        let Source::Derived(window) = source else {
            ask.key = random();
            return Ok(KeyChoice::Generated { upstream: true, client: true });
        };
        if ask.principal == Principal::Anonymous {
            return Ok(KeyChoice::None);
        }
        let (version, print) = derived(&ask.policy.fingerprint, engine.hash_keys().await?);
        ask.key = Key::visible(format!("s{version}-{}", hex(&print.0)));
        // The store measures the window: the key is known for that time, and then it is free.
        let policy = Policy { retention: window, tombstone: Duration::ZERO, ..(*ask.policy).clone() };
        ask.policy = Arc::new(policy);
        // The same request gets the same key again when the window is over, so the upstream must
        // not remember it for longer.
        Ok(KeyChoice::Generated { upstream: false, client: false })
    }
}

/// Refuses a JSON body that has to be parsed and cannot be.
pub(super) fn unreadable_json(engine: &Engine, error: JsonError) -> Problem {
    engine.refusal(Code::JsonUnreadable).detail(match error {
        JsonError::Duplicate => "A member stands twice in one object of the JSON body, and readers differ in which one they take. Send each member once.".to_owned(),
        error => format!("The key is a member of the body on this route, and {error}. Send a JSON document, or the key in Idempotency-Key."),
    })
}

/// Generates a unique key.
pub(super) fn random() -> Key {
    Key::visible(format!("g1-{}", hex(&rand::random::<[u8; 16]>())))
}

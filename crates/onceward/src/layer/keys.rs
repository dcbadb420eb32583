//! Where the key comes from if no header bears one: a form's hidden field, or it is made here; and whether a route takes it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;

use crate::engine::{Ask, Engine};
use crate::fingerprint::form::{self, Form};
use crate::fingerprint::{Fingerprint, Rules};
use crate::key::{Invalid, Key};
use crate::policy::{Keys, Missing, Policy};
use crate::principal::{Principal, RequestView};
use crate::problem::{Code, Problem};
use crate::secret::{HashKeys, hex};

/// Where the key of a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A header.
    Header,
    /// Perhaps a field of the form that the body is; else the policy says what is done without one.
    Form,
    /// It was made for this request.
    Generated,
    /// The request itself.
    Derived(Duration),
}

/// Returns true if the policy wants a key for a request whose headers have none.
///
/// A request without a key is never refused because its caller cannot be told: without a key it could not log in.
pub(super) fn are_wanted(policy: &Policy, request: RequestView<'_>) -> bool {
    has_field(policy, request.headers)
        || match policy.missing {
            Missing::Pass => false,
            Missing::Reject => true,
            Missing::Generate => policy.identify(request).is_ok(),
            Missing::Derive { .. } => matches!(policy.identify(request), Ok(Principal::Named(_))),
        }
}

fn has_field(policy: &Policy, headers: &HeaderMap) -> bool {
    policy.form_field.is_some() && form::is_form(headers)
}

impl Source {
    /// Of a request whose headers bear no key. `None`: it has none, and needs one.
    pub(super) fn instead(policy: &Policy, headers: &HeaderMap) -> Option<Self> {
        match has_field(policy, headers) {
            true => Some(Self::Form),
            false => Self::without_key(policy),
        }
    }

    fn without_key(policy: &Policy) -> Option<Self> {
        match policy.missing {
            Missing::Pass | Missing::Reject => None,
            Missing::Generate => Some(Self::Generated),
            Missing::Derive { window } => Some(Self::Derived(window)),
        }
    }
}

/// What a key turned out to be, once the body was read.
pub(super) enum Settled {
    /// The one that the request came with.
    Sent,
    /// Another; whether the upstream is told it, and the client.
    Made { upstream: bool, client: bool },
    /// There is none, and none is needed.
    None,
}

/// What is known of a request when its body was read.
pub(super) struct Known<'a> {
    pub(super) source: Source,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a Bytes,
    /// The refusal of a request whose caller cannot be told, if it has a key.
    pub(super) unidentified: Option<Problem>,
}

impl Known<'_> {
    /// Finds or makes the key, and checks that the route takes it. Puts it into `ask`.
    pub(super) async fn settle(
        &self,
        engine: &Engine,
        ask: &mut Ask,
        fingerprint: impl Fn(&Rules, &HashKeys) -> Fingerprint,
    ) -> Result<Settled, Problem> {
        let said = |invalid: Invalid| engine.refusal(Code::KeyInvalid).detail(invalid.sentence());
        let found = self.in_form(&ask.policy).map_err(said)?;
        let settled = match (found, self.source) {
            (Some(_), _) if self.unidentified.is_some() => {
                return Err(self.unidentified.clone().unwrap_or_else(|| engine.refusal(Code::PrincipalUnknown)));
            }
            (None, Source::Form) if self.unidentified.is_some() && ask.policy.missing != Missing::Reject => {
                return Ok(Settled::None);
            }
            (Some(key), _) => {
                ask.key = key;
                Settled::Made { upstream: true, client: false }
            }
            (None, Source::Header) => Settled::Sent,
            (None, Source::Form) => match (Source::without_key(&ask.policy), ask.policy.missing) {
                (None, Missing::Reject) => return Err(engine.refusal(Code::KeyMissing)),
                (None, _) => return Ok(Settled::None),
                (Some(source), _) => self.make(source, engine, ask, fingerprint).await?,
            },
            (None, source) => self.make(source, engine, ask, fingerprint).await?,
        };
        if ask.policy.keys == Keys::Issued && !matches!(settled, Settled::None) {
            engine.check_issued(&ask.key, &ask.principal, &ask.policy).await?;
        }
        Ok(settled)
    }

    fn in_form(&self, policy: &Policy) -> Result<Option<Key>, Invalid> {
        let Some(name) = policy.form_field.as_deref().filter(|_| self.source == Source::Form) else { return Ok(None) };
        let Some(form) = Form::read(self.headers, self.body) else { return Ok(None) };
        form.value(name).map(Key::parse).transpose()
    }

    async fn make(
        &self,
        source: Source,
        engine: &Engine,
        ask: &mut Ask,
        fingerprint: impl Fn(&Rules, &HashKeys) -> Fingerprint,
    ) -> Result<Settled, Problem> {
        let Source::Derived(window) = source else {
            ask.key = random();
            return Ok(Settled::Made { upstream: true, client: true });
        };
        if ask.principal == Principal::Anonymous {
            return Ok(Settled::None);
        }
        let print = fingerprint(&ask.policy.fingerprint, engine.hash_keys().await?);
        ask.key = Key::visible(format!("s1-{}", hex(&print.0)));
        // The window is the store's to measure: the key is known for so long, and then it is free.
        let policy = Policy { retention: window, tombstone: Duration::ZERO, ..(*ask.policy).clone() };
        ask.policy = Arc::new(policy);
        // It comes again with the same request when the window is over, so that it must not bind the upstream for longer.
        Ok(Settled::Made { upstream: false, client: false })
    }
}

/// A key that nobody else makes.
pub(super) fn random() -> Key {
    Key::visible(format!("g1-{}", hex(&rand::random::<[u8; 16]>())))
}

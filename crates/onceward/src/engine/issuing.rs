//! Keys that are made by the engine: issued to a caller, or derived from a request.

use std::time::{Duration, UNIX_EPOCH};

use super::Engine;
use crate::issued::{self, IssuerConfig, Subject};
use crate::key::Key;
use crate::policy::Policy;
use crate::principal::Principal;
use crate::problem::{Code, Problem};
use crate::secret::HashKeys;

impl Engine {
    /// Issues a key to a caller for a route. Returns the key and its expiry, as an IMF-fixdate.
    pub(crate) async fn issue(&self, principal: &Principal, policy: &Policy) -> Result<(Key, String), Problem> {
        let keys = self.hash_keys().await?;
        let shared = &self.shared;
        let holder = Subject { namespace: &shared.namespace, principal, route: &policy.route };
        let issued = issued::issue(keys, &shared.issuing, holder, shared.clock.wall());
        let (key, expiry) = issued.ok_or_else(|| self.refusal(Code::StoreUnavailable))?;
        Ok((key, httpdate::fmt_http_date(UNIX_EPOCH + expiry)))
    }

    /// Checks that a key was issued to this caller for this route, and is still valid.
    pub(crate) async fn check_issued(&self, key: &Key, principal: &Principal, policy: &Policy) -> Result<(), Problem> {
        let keys = self.hash_keys().await?;
        let shared = &self.shared;
        let holder = Subject { namespace: &shared.namespace, principal, route: &policy.route };
        issued::check(keys, &shared.issuing, key, holder, shared.clock.wall()).map_err(|refused| {
            self.refusal(match refused {
                issued::InvalidKey::BadSignature => Code::KeyForged,
                issued::InvalidKey::WrongSubject => Code::KeyForeign,
                issued::InvalidKey::Expired => Code::IssuedKeyExpired,
            })
        })
    }

    /// Returns the keys of the hashes. The first call reads them from the store.
    pub(crate) async fn hash_keys(&self) -> Result<&HashKeys, Problem> {
        let opened = self.shared.open().await.map_err(|error| self.shared.store_refusal(None, &error))?;
        Ok(&opened.keys)
    }

    pub(crate) fn issuing(&self) -> &IssuerConfig {
        &self.shared.issuing
    }

    /// Returns the lifetime of an issued key.
    pub fn issued_for(&self) -> Duration {
        self.shared.issuing.lifetime
    }
}

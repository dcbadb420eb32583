//! The rules that name callers, as the store's keys were made with them.

use std::fmt;

use super::Engine;
use crate::policy::Policy;
use crate::principal::{PrincipalRule, Scope};
use crate::secret::Digest;
use crate::store::Error;

/// The error of a rule that differs from the one that the store's keys were made with.
#[derive(Debug)]
#[non_exhaustive]
pub enum PinRulesError {
    /// A route's principal or scope is another one.
    Changed {
        /// The route.
        route: String,
        /// `principal` or `scope`.
        setting: &'static str,
        /// What it is now.
        now: String,
        /// The generation under which the store has another one.
        generation: u32,
    },
    /// The store failed.
    Store(Error),
}

impl fmt::Display for PinRulesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed { route, setting, now, generation } => write!(
                f,
                "{setting} of {route} is {now}, and the store's keys were made with another one: none of them would be found, and a retry would execute again; write the one that it was, or accept that with principal_generation = {}",
                generation + 1
            ),
            Self::Store(error) => write!(f, "store: {}", crate::store::chain(error)),
        }
    }
}

impl std::error::Error for PinRulesError {}

impl Engine {
    /// Compares the rules of all routes with those that the store's keys were made with, and keeps those of new routes.
    ///
    /// Returns, in words, what differs from the generation before: keys of that one are not found any more.
    ///
    /// # Errors
    ///
    /// A [`PinRulesError`] where a rule differs from that of the same generation.
    pub async fn pin_rules<'p>(
        &self,
        policies: impl Iterator<Item = &'p Policy>,
        generation: u32,
    ) -> Result<Vec<String>, PinRulesError> {
        self.start().await.map_err(PinRulesError::Store)?;
        let mut changes = Vec::new();
        for policy in policies {
            // Who had no rule had no named callers, whose keys could be forgotten.
            let principal = (policy.principal != PrincipalRule::Unset).then(|| principal_digest(&policy.principal));
            let scope = Some(scope_digest(&policy.scope));
            let both =
                [("principal", principal, policy.principal.to_string()), ("scope", scope, policy.scope.to_string())];
            for (setting, digest, now) in both {
                let Some(digest) = digest else { continue };
                if !self.is_pinned(setting, &policy.route, generation, digest).await? {
                    return Err(PinRulesError::Changed { route: policy.route.to_string(), setting, now, generation });
                }
                if generation > 1 && !self.is_pinned(setting, &policy.route, generation - 1, digest).await? {
                    changes.push(format!(
                        "{setting} of {} is {now} since principal_generation = {generation}: keys that were made before are not found any more",
                        policy.route
                    ));
                }
            }
        }
        Ok(changes)
    }

    /// Returns false if the store has another digest under that name; puts this one there if it has none.
    async fn is_pinned(
        &self,
        setting: &str,
        route: &str,
        generation: u32,
        digest: Digest,
    ) -> Result<bool, PinRulesError> {
        let shared = &self.shared;
        // A name of a fixed length: what stores take as one is bounded.
        let place = Digest::of_parts([shared.namespace.as_bytes(), route.as_bytes()]);
        let name = format!("rule-{setting}-{generation}-{}", crate::secret::hex(&place.0[..16]));
        let kept = shared.get_or_insert_meta(&name, &digest.0).await.map_err(PinRulesError::Store)?;
        Ok(kept == digest.0.as_slice())
    }
}

fn principal_digest(rule: &PrincipalRule) -> Digest {
    Digest::of_parts([b"onceward v1 principal rule".as_slice(), rule.to_string().as_bytes()])
}

fn scope_digest(scope: &Scope) -> Digest {
    Digest::of_parts([b"onceward v1 scope".as_slice(), scope.to_string().as_bytes()])
}

//! Rules that name callers, pinned in the store together with the keys that were made with them.

use std::fmt;

use super::Engine;
use crate::policy::Policy;
use crate::principal::{PrincipalRule, Scope};
use crate::secret::Digest;
use crate::store::Error;

/// Error of a rule that differs from the one that the store's keys were made with.
#[derive(Debug)]
#[non_exhaustive]
pub enum PinRulesError {
    /// The principal or scope of a route has changed.
    Changed {
        /// The route.
        route: String,
        /// `principal` or `scope`.
        setting: &'static str,
        /// The present value.
        now: String,
        /// The generation under which the store has a different value.
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
    /// Compares the rules of all routes with those that the store's keys were made with, and stores
    /// those of new routes.
    ///
    /// Returns descriptions of the differences from the generation before: keys of that generation
    /// are not found any more.
    ///
    /// # Errors
    ///
    /// [`PinRulesError`] if a rule differs from that of the same generation.
    pub async fn pin_rules<'p>(
        &self,
        policies: impl Iterator<Item = &'p Policy>,
        generation: u32,
    ) -> Result<Vec<String>, PinRulesError> {
        self.start().await.map_err(PinRulesError::Store)?;
        let mut changes = Vec::new();
        for policy in policies {
            // A route without a rule had no named callers, whose keys could be lost.
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

    /// Returns false if the store has a different digest under that name. Stores this one if it has
    /// none.
    async fn is_pinned(
        &self,
        setting: &str,
        route: &str,
        generation: u32,
        digest: Digest,
    ) -> Result<bool, PinRulesError> {
        let shared = &self.shared;
        // A name of fixed length, since stores bound the length of names.
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

//! Policies by path.

use std::fmt;
use std::sync::Arc;

use crate::paths;
use crate::policy::{Policy, PolicyError};

/// Policies of the paths that have one of their own.
#[derive(Clone, Debug, Default)]
pub(super) struct Routes {
    paths: matchit::Router<usize>,
    policies: Vec<(String, Arc<Policy>)>,
    error: Option<RouteError>,
}

impl Routes {
    /// Adds a path, or replaces the policy of a path that is present.
    pub(super) fn with(&self, pattern: &str, policy: Policy) -> Self {
        let mut routes = self.clone();
        let policy = Arc::new(policy);
        if let Some((_, known)) = routes.policies.iter_mut().find(|(known, _)| known == pattern) {
            *known = policy;
            return routes;
        }
        let inserted = paths::pattern(pattern)
            .and_then(|normal| routes.paths.insert(normal, routes.policies.len()).map_err(|error| error.to_string()));
        match inserted {
            Ok(()) => routes.policies.push((pattern.to_owned(), policy)),
            Err(cause) => routes.error = Some(RouteError { pattern: pattern.to_owned(), cause }),
        }
        routes
    }

    /// Returns the policy of a path, in any spelling, if it has one of its own.
    pub(super) fn at(&self, path: &str) -> Option<&Arc<Policy>> {
        let normal = paths::normal(path);
        let found = self.paths.at(&normal).ok()?;
        self.policies.get(*found.value).map(|(_, policy)| policy)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// Checks that each pattern can be matched, and that no policy voids its guarantee.
    pub(super) fn check(&self) -> Result<(), LayerError> {
        if let Some(error) = &self.error {
            return Err(LayerError::Route(error.clone()));
        }
        self.policies.iter().try_for_each(|(pattern, policy)| {
            policy.check().map_err(|error| LayerError::Policy { route: pattern.clone(), error })
        })
    }
}

/// Error of a path pattern that cannot be matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteError {
    pattern: String,
    cause: String,
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the path {:?} cannot be matched: {}; write it as in axum, such as \"/orders/{{id}}\"",
            self.pattern, self.cause
        )
    }
}

impl std::error::Error for RouteError {}

/// Error of a layer that cannot start.
#[derive(Debug)]
#[non_exhaustive]
pub enum LayerError {
    /// A path of [`policy_for`](super::IdempotencyLayer::policy_for) cannot be matched.
    Route(RouteError),
    /// A policy would void its guarantee.
    Policy {
        /// The path of the policy.
        route: String,
        /// The error of the policy.
        error: PolicyError,
    },
    /// The store did not open.
    Store(crate::store::Error),
}

impl fmt::Display for LayerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route(error) => error.fmt(f),
            Self::Policy { route, error } => write!(f, "the policy of {route}: {error}"),
            Self::Store(_) => f.write_str("the store of keys does not open"),
        }
    }
}

impl std::error::Error for LayerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(error) => Some(error),
            Self::Route(_) | Self::Policy { .. } => None,
        }
    }
}

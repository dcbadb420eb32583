//! Events of the engine, for metrics: a small trait, so that this crate depends on no telemetry
//! crate.

use std::fmt::Debug;
use std::time::Duration;

use crate::secret::RecordId;
use crate::wire::Outcome;

/// Reason why a caller's principal changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PrincipalChange {
    /// The service renewed the cookie that names the caller.
    CookieRenewed,
    /// A token that expires names the caller.
    TokenExpires,
    /// Two callers sent one key with the same content within minutes.
    SameRequest,
    /// The rule of a route differs from the one that the store's records were made with.
    Rule,
}

impl PrincipalChange {
    /// All changes, in the order of the docs.
    pub const ALL: [Self; 4] = [Self::CookieRenewed, Self::TokenExpires, Self::SameRequest, Self::Rule];

    /// Returns its name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CookieRenewed => "cookie_renewed",
            Self::TokenExpires => "token_expires",
            Self::SameRequest => "same_request",
            Self::Rule => "rule",
        }
    }

    /// Returns the cause and the fix, for the log.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::CookieRenewed => {
                "the service renewed the cookie that names the caller, so a retry after it is another caller and executes again; name a part that stays the same, or let the service renew the cookie only at login"
            }
            Self::TokenExpires => {
                "principal = [\"authorization\"] meets tokens that expire: after a renewal a retry is another caller and executes again; write principal = [\"jwt:sub\"] and [jwt] jwks, or name a header that stays the same"
            }
            Self::SameRequest => {
                "one key with the same content came from two callers within minutes: a credential was likely renewed between a request and its retry, which then executed again; name a part that stays the same"
            }
            Self::Rule => {
                "the rule that names callers differs from the one that the store's keys were made with, so those keys are not found any more"
            }
        }
    }
}

/// Observer of the engine's events. Called on the path of requests: count, and return.
pub trait Observer: Debug + Send + Sync + 'static {
    /// A keyed request got its response. `id` is absent if it was refused before its record was
    /// read.
    fn answered(&self, route: &str, outcome: Outcome, id: Option<&RecordId>);

    /// A duplicate got a response without an execution.
    fn duplicate_prevented(&self, route: &str);

    /// An attempt executed for the duration `took`.
    fn executed(&self, route: &str, took: Duration);

    /// A superseded holder executed anyway.
    fn second_execution(&self, route: &str);

    /// A caller's credential changed, or will, so that a retry may be another caller and execute
    /// again. `name` is the name of the cookie or header, and empty if there is none.
    fn principal_changed(&self, route: &str, change: PrincipalChange, name: &str) {
        let _ = (route, change, name);
    }

    /// A store operation ended: `op` is the method's name.
    fn store(&self, op: &'static str, took: Duration, ok: bool);
}

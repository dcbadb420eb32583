//! Handles callers before and after the layer: tokens, renewed credentials, and authorization of
//! replays.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::header::{AUTHORIZATION, COOKIE, HeaderMap};
use http::{Request, Response};
use jsonwebtoken::dangerous::insecure_decode_claims;
use onceward::engine::Engine;
use onceward::observe::PrincipalChange;
use onceward::policy::{MissingKey, Policy};
use onceward::principal::{PrincipalPart, bearer_jwt};
use onceward::wire::{self, Outcome};
use serde_json::{Map, Value};

use crate::app::Out;
use crate::authorize::{Authorizer, Shown};
use crate::config::{AuthorizeReplays, Config};
use crate::jwt::Jwt;

/// Checks callers before and after the layer.
pub(crate) struct Callers {
    engine: Engine,
    jwt: Option<Arc<Jwt>>,
    authorizer: Authorizer,
    replays: BTreeMap<Arc<str>, AuthorizeReplays>,
    /// Routes that identify callers by `Authorization`, each with a flag that is set once an
    /// expiring token was seen there.
    expiring: BTreeMap<Arc<str>, AtomicBool>,
}

/// Data of a request that is needed once its response is known.
pub(crate) struct Caller {
    cookies: Option<HeaderMap>,
    replay: Option<(AuthorizeReplays, Shown)>,
}

impl Callers {
    pub(crate) fn new(engine: Engine, jwt: Option<Arc<Jwt>>, authorizer: Authorizer, config: &Config) -> Self {
        let policies = std::iter::once(&config.policy).chain(config.routes.iter().map(|(_, policy)| policy));
        let by_header = policies.filter(|policy| policy.principal.parts().iter().any(is_authorization));
        let expiring = by_header.map(|policy| (Arc::clone(&policy.route), AtomicBool::new(false))).collect();
        Self { engine, jwt, authorizer, replays: config.authorize_replays.clone(), expiring }
    }

    /// Runs before the layer. Checks the token, and captures the data that the response is checked
    /// against.
    pub(crate) async fn request<B>(&self, policy: &Policy, request: &mut Request<B>) -> Caller {
        let may_be_keyed = policy.covers(request.method())
            && (request.headers().contains_key(wire::IDEMPOTENCY_KEY)
                || policy.missing != MissingKey::Pass
                || policy.form_field.is_some());
        if may_be_keyed && policy.principal.names_a_claim() {
            self.check_token(request).await;
        }
        if may_be_keyed {
            self.notice_expiring(policy, request.headers());
        }
        let cookies = policy.principal.names_a_cookie().then(|| cookies_of(request.headers()));
        let replay = self.replays.get(&policy.route).filter(|_| may_be_keyed);
        Caller {
            cookies,
            replay: replay.map(|target| (target.clone(), self.authorizer.shown(target, policy, request))),
        }
    }

    /// Runs before the public endpoints.
    pub(crate) async fn endpoint<B>(&self, default: &Policy, request: &mut Request<B>) -> Caller {
        self.check_token(request).await;
        // The endpoints may find a key of any route.
        let target = self.replays.get(&default.route).or_else(|| self.replays.values().next());
        let replay = target.map(|target| (target.clone(), self.authorizer.shown(target, default, request)));
        Caller { cookies: None, replay }
    }

    /// Runs after the layer.
    pub(crate) async fn response(&self, policy: &Policy, caller: Caller, response: Response<Out>) -> Response<Out> {
        // The layer has already reported this for a keyed request.
        if let Some(had) = caller.cookies.as_ref().filter(|_| Outcome::of(response.headers()).is_none())
            && let Some(name) = policy.principal.renewed_cookie(had, response.headers())
        {
            self.engine.report_change(&policy.route, PrincipalChange::CookieRenewed, name);
        }
        self.may_see(caller, response).await
    }

    /// Returns the response, or the upstream's refusal if the response is stored and the caller is
    /// no longer authorized.
    pub(crate) async fn may_see(&self, caller: Caller, response: Response<Out>) -> Response<Out> {
        match caller.replay {
            Some((target, shown)) => self.authorizer.check(&target, shown, response).await,
            None => response,
        }
    }

    async fn check_token<B>(&self, request: &mut Request<B>) {
        if let Some(jwt) = &self.jwt
            && let Some(token) = jwt.check(request.headers()).await
        {
            request.extensions_mut().insert(token);
        }
    }

    /// Logs, once per route, a token with `exp` that identifies the caller as a whole.
    fn notice_expiring(&self, policy: &Policy, headers: &HeaderMap) {
        let Some(seen) = self.expiring.get(&policy.route).filter(|seen| !seen.load(Ordering::Relaxed)) else { return };
        let Some(token) = headers.get(AUTHORIZATION).and_then(|value| bearer_jwt(value.as_bytes())) else { return };
        let expires =
            insecure_decode_claims::<Map<String, Value>>(token).is_ok_and(|claims| claims.contains_key("exp"));
        if expires && !seen.swap(true, Ordering::Relaxed) {
            self.engine.report_change(&policy.route, PrincipalChange::TokenExpires, "authorization");
        }
    }
}

fn is_authorization(part: &PrincipalPart) -> bool {
    match part {
        PrincipalPart::Authorization => true,
        PrincipalPart::Header(name) => *name == AUTHORIZATION,
        _ => false,
    }
}

fn cookies_of(headers: &HeaderMap) -> HeaderMap {
    headers.get_all(COOKIE).iter().map(|line| (COOKIE, line.clone())).collect()
}

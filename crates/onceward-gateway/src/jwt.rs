//! Verifies the tokens that identify callers (`principal = ["jwt:CLAIM"]`): signature, times,
//! issuer and audience.

mod keys;

use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, COOKIE, HeaderMap, HeaderName};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, Validation, decode, decode_header};
use onceward::engine::Engine;
use onceward::principal::{VerifiedToken, bearer_jwt};
use serde_json::{Map, Value};

use crate::config::{Config, JwtSettings, KeySource, TokenSource};
use keys::KeySet;

/// Upper bound on the bytes of a token.
const TOKEN_BYTES_MAX: usize = 16 << 10;

/// Verifies tokens.
pub(crate) struct Jwt {
    settings: JwtSettings,
    /// HMAC secret, if one is configured.
    secret: Option<DecodingKey>,
    keys: Option<KeySet>,
}

impl Jwt {
    /// Reads the keys. If a URL fails, it is retried with the first token.
    ///
    /// # Errors
    ///
    /// Returns one line if a file cannot be read or contains no key.
    pub(crate) async fn open(settings: &JwtSettings, config: &Config, engine: &Engine) -> Result<Self, String> {
        let secret = match &settings.secret_file {
            None => None,
            Some(path) => {
                let bytes = std::fs::read(path)
                    .map_err(|error| format!("jwt.secret_file: {} cannot be read: {error}", path.display()))?;
                let secret = bytes.trim_ascii_end();
                if secret.len() < 32 {
                    return Err(format!(
                        "jwt.secret_file: {} has less than 32 bytes, which can be guessed; make it with `openssl rand -hex 32`",
                        path.display()
                    ));
                }
                Some(DecodingKey::from_secret(secret).map_err(|error| format!("jwt.secret_file: {error}"))?)
            }
        };
        let keys = match &settings.keys {
            KeySource::None => None,
            source => Some(KeySet::open(source.clone(), config, engine).await?),
        };
        Ok(Self { settings: settings.clone(), secret, keys })
    }

    /// Verifies the token of a request. Returns `None` if it has none.
    pub(crate) async fn check(&self, headers: &HeaderMap) -> Option<VerifiedToken> {
        let token = self.token(headers)?;
        Some(match self.verify(token).await {
            Ok(claims) => VerifiedToken::Valid(Arc::new(claims)),
            Err(Rejected::Invalid(why)) => VerifiedToken::Invalid(why.into()),
            Err(Rejected::NoKeys) => {
                VerifiedToken::Unverifiable("the keys of its issuer could not be read yet; see jwt.jwks".into())
            }
        })
    }

    fn token<'h>(&self, headers: &'h HeaderMap) -> Option<&'h str> {
        match &self.settings.token_from {
            // A bearer token that is not a JWT is a credential that the rule does not name.
            TokenSource::Authorization => headers.get(AUTHORIZATION).and_then(|value| bearer_jwt(value.as_bytes())),
            TokenSource::Header(name) => header_token(headers, name),
            TokenSource::Cookie(name) => headers
                .get_all(COOKIE)
                .iter()
                .filter_map(|line| line.to_str().ok())
                .flat_map(|line| line.split(';'))
                .find_map(|pair| pair.trim().split_once('=').filter(|(its, _)| its == name))
                .map(|(_, value)| value)
                .filter(|value| !value.is_empty()),
        }
    }

    async fn verify(&self, token: &str) -> Result<Map<String, Value>, Rejected> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Rejected::Invalid("it is too large"));
        }
        let header = decode_header(token)
            .map_err(|_| Rejected::Invalid("its header cannot be read, or its alg is none or unknown"))?;
        if header.crit.is_some() {
            return Err(Rejected::Invalid("it has a critical header parameter that is not known here"));
        }
        let keys = match header.alg.family() {
            // Uses only a configured secret: a public key must never serve as an HMAC secret.
            AlgorithmFamily::Hmac => match &self.secret {
                Some(secret) => vec![secret.clone()],
                None => {
                    return Err(Rejected::Invalid("it is signed with a shared secret, and jwt.secret_file is not set"));
                }
            },
            _ => match &self.keys {
                Some(keys) => keys.find(header.kid.as_deref(), header.alg).await?,
                None => return Err(Rejected::Invalid("it is signed with a private key, and jwt.jwks is not set")),
            },
        };
        let validation = self.validation(header.alg);
        let mut rejected = Rejected::Invalid("no key of its issuer has its kid");
        for key in &keys {
            match decode::<Map<String, Value>>(token, key, &validation) {
                Ok(token) => return Ok(token.claims),
                Err(error) => rejected = Rejected::Invalid(reason(error.kind())),
            }
        }
        Err(rejected)
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let settings = &self.settings;
        let mut validation = Validation::new(algorithm);
        validation.leeway = settings.leeway.as_secs();
        validation.validate_nbf = true;
        let mut required = vec!["exp"];
        if let Some(issuer) = &settings.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        validation.validate_aud = !settings.audience.is_empty();
        if validation.validate_aud {
            validation.set_audience(&settings.audience);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        validation
    }

    /// Refreshes the keys periodically, so that a rotation is seen before its first token.
    pub(crate) async fn refresh_forever(&self) {
        let Some(keys) = &self.keys else { return };
        loop {
            tokio::time::sleep(self.settings.refresh.max(Duration::from_secs(1))).await;
            keys.refresh().await;
        }
    }
}

fn header_token<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    let value = headers.get(name)?;
    let text = value.to_str().ok()?.trim();
    bearer_jwt(value.as_bytes()).or(Some(text)).filter(|token| !token.is_empty())
}

/// Reason for the rejection of a token.
#[derive(Clone, Copy, Debug)]
enum Rejected {
    Invalid(&'static str),
    /// No key was read yet.
    NoKeys,
}

fn reason(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ExpiredSignature => "it has expired (exp)",
        ErrorKind::ImmatureSignature => "it is not valid yet (nbf)",
        ErrorKind::InvalidIssuer => "its issuer (iss) is another one",
        ErrorKind::InvalidAudience => "it is meant for another audience (aud)",
        ErrorKind::InvalidSignature => "its signature is wrong",
        ErrorKind::MissingRequiredClaim(_) => "it lacks exp, or iss or aud where those are checked",
        ErrorKind::InvalidAlgorithm => "its alg does not fit its key",
        _ => "it cannot be read",
    }
}

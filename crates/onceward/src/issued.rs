//! Keys that are issued here: to one caller, for one route, for a limited time. They are checked
//! without the store.
//!
//! A key is `i1-` and, in hexadecimal digits, `generation (4 bytes) · expiry (8) · nonce (16) ·
//! signature (32) · binding MAC (32)`. The signature proves that the key was issued here; the
//! binding MAC, to whom and for which route. So a key of another caller is distinguished from a key
//! that was never issued. Both are HMAC-SHA-256 under a key of their generation, which is derived
//! from the store's secret. Raising the generation retires the old one once its issued keys have
//! expired, while processes that were not restarted yet continue to work.

use std::time::Duration;

use crate::key::Key;
use crate::principal::Principal;
use crate::secret::{HashKeys, LengthPrefixed, MacKey, hex};

/// Configuration of issued keys. [`Default`] gives the documented defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IssuerConfig {
    /// Lifetime of a key from its issue, by the wall clock of the processes that issue and check.
    pub lifetime: Duration,
    /// Version of the signing key. Raised by one to rotate; keys of the version before and the
    /// version after are accepted too.
    pub generation: u32,
}

impl Default for IssuerConfig {
    fn default() -> Self {
        Self { lifetime: Duration::from_secs(24 * 3600), generation: 1 }
    }
}

/// Reason why a key is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InvalidKey {
    /// The key was not issued here, or its generation is retired.
    BadSignature,
    /// The key was issued to another caller, or for another route.
    WrongSubject,
    /// The key has expired.
    Expired,
}

/// Subject of a key: its caller and its route.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) principal: &'a Principal,
    pub(crate) route: &'a str,
}

const PREFIX: &str = "i1-";
const BODY: usize = 28;
const BYTES: usize = BODY + 64;

/// Issues a key for `holder`. Returns it and its expiry, since 1970.
pub(crate) fn issue(
    keys: &HashKeys,
    issuing: &IssuerConfig,
    holder: Subject<'_>,
    now: Duration,
) -> Option<(Key, Duration)> {
    let expiry = now.saturating_add(issuing.lifetime);
    let mut token = Vec::with_capacity(BYTES);
    token.extend_from_slice(&issuing.generation.to_be_bytes());
    token.extend_from_slice(&expiry.as_secs().to_be_bytes());
    token.extend_from_slice(&rand::random::<[u8; 16]>());
    let signing = signing(keys, issuing.generation);
    let (seal, bond) = (seal(&token).mac(&signing), bond(&token, holder).mac(&signing));
    token.extend_from_slice(&seal);
    token.extend_from_slice(&bond);
    let key = Key::parse(format!("{PREFIX}{}", hex(&token)).as_bytes()).ok()?;
    Some((key, Duration::from_secs(expiry.as_secs())))
}

/// Checks that a key was issued to `holder`, and is still valid.
pub(crate) fn check(
    keys: &HashKeys,
    issuing: &IssuerConfig,
    key: &Key,
    holder: Subject<'_>,
    now: Duration,
) -> Result<(), InvalidKey> {
    let token = key.as_str().strip_prefix(PREFIX).and_then(unhex).ok_or(InvalidKey::BadSignature)?;
    let (body, hashes) = token.split_at(BODY);
    let generation = body[..4].try_into().map(u32::from_be_bytes).map_err(|_| InvalidKey::BadSignature)?;
    if generation.abs_diff(issuing.generation) > 1 {
        return Err(InvalidKey::BadSignature);
    }
    let signing = signing(keys, generation);
    let (its_seal, its_bond) = hashes.split_at(32);
    if !seal(body).verify(&signing, its_seal) {
        return Err(InvalidKey::BadSignature);
    }
    if !bond(body, holder).verify(&signing, its_bond) {
        return Err(InvalidKey::WrongSubject);
    }
    let expiry = body[4..12].try_into().map(u64::from_be_bytes).map_err(|_| InvalidKey::BadSignature)?;
    if now.as_secs() >= expiry { Err(InvalidKey::Expired) } else { Ok(()) }
}

fn signing(keys: &HashKeys, generation: u32) -> MacKey {
    MacKey::new(blake3::keyed_hash(&keys.issuing, &generation.to_be_bytes()).as_bytes())
}

fn seal(body: &[u8]) -> LengthPrefixed {
    let mut framed = LengthPrefixed::default();
    framed.field(b"seal");
    framed.field(body);
    framed
}

fn bond(body: &[u8], holder: Subject<'_>) -> LengthPrefixed {
    let mut framed = LengthPrefixed::default();
    framed.field(b"bond");
    framed.field(body);
    framed.field(holder.namespace.as_bytes());
    match holder.principal {
        Principal::Anonymous => framed.field(b"anonymous"),
        Principal::Named(digest) => framed.field(&digest.0),
    }
    framed.field(holder.route.as_bytes());
    framed
}

/// Decodes lower-case digits only: a key in another spelling would be another record.
fn unhex(digits: &str) -> Option<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    if digits.len() != 2 * BYTES || !digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

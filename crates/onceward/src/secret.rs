//! Secret, and the hashes that are made with it: without it the contents of a store can be neither
//! guessed nor linked.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use smallvec::SmallVec;

use crate::fault;
use crate::fingerprint::Fingerprint;
use crate::key::Key;
use crate::principal::{KeySpace, Principal};

/// 32 random bytes that all processes of a store share. Never rotated: the ids of all records
/// depend on them.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Creates a secret from 32 random bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(crate) const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Keys for each use, derived from the secret.
#[derive(Clone)]
pub struct HashKeys {
    record: [u8; 32],
    redirect: [u8; 32],
    lookup: [u8; 32],
    /// A fingerprint hashes a few hundred bytes sequentially, for which SHA-256 with CPU
    /// instructions takes half of BLAKE3's time. The ids are of one block, for which it does not.
    pub(crate) fingerprint: MacKey,
    /// Key for bodies, in the second construction of fingerprints.
    body: [u8; 32],
    hint: [u8; 32],
    check: [u8; 32],
    /// Key from which the keys of each generation of issued keys are derived.
    pub(crate) issuing: [u8; 32],
}

impl HashKeys {
    /// Derives the keys.
    pub fn new(secret: &Secret) -> Self {
        let derive = |context| blake3::derive_key(context, &secret.0);
        Self {
            record: derive("onceward v1 record id"),
            redirect: derive("onceward v1 redirect id"),
            lookup: derive("onceward v1 key lookup"),
            fingerprint: MacKey::new(&derive("onceward v1 fingerprint")),
            body: derive("onceward v2 fingerprint body"),
            hint: derive("onceward v2 fingerprint hint"),
            check: derive("onceward v1 check value"),
            issuing: derive("onceward v1 issued keys"),
        }
    }

    /// Returns the id of the record of one (namespace, principal, key), for a scope without parts.
    pub fn record_id(&self, namespace: &str, principal: &Principal, key: &Key) -> RecordId {
        self.record_id_in(namespace, principal, &KeySpace::default(), key)
    }

    /// Returns the id of the record of one (namespace, principal, key space, key).
    pub fn record_id_in(&self, namespace: &str, principal: &Principal, space: &KeySpace, key: &Key) -> RecordId {
        let mut framed = LengthPrefixed::default();
        framed.field(namespace.as_bytes());
        match principal {
            _ if fault::planted("foreign-answer") => {}
            Principal::Anonymous => framed.field(b"anonymous"),
            Principal::Named(digest) => framed.field(&digest.0),
        }
        let key = key.as_str();
        let key = if fault::planted("key-cut") { key.get(..8).unwrap_or(key) } else { key };
        framed.field(key.as_bytes());
        // One more field: no id with a scope equals one without.
        if let Some(space) = space.bytes() {
            framed.field(space);
        }
        RecordId(framed.hash(&self.record))
    }

    /// Returns the id of the record of a request that followed a redirect with the key of the first
    /// one. `target` is its fingerprint there.
    pub(crate) fn redirect_id(&self, first: &RecordId, target: &Fingerprint) -> RecordId {
        let mut framed = LengthPrefixed::default();
        framed.field(&first.0);
        framed.field(&target.0);
        RecordId(framed.hash(&self.redirect))
    }

    /// Returns the digest of the key alone, by which an operator finds it without knowing the
    /// caller.
    pub fn key_hash(&self, key: &Key) -> KeyHash {
        KeyHash(*blake3::keyed_hash(&self.lookup, key.as_str().as_bytes()).as_bytes())
    }

    /// Returns the digest of a body, or of the compared part of it.
    pub(crate) fn body_digest(&self, body: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.body, body).as_bytes()
    }

    /// Returns two bytes that indicate if a part of a request equals that of the request whose
    /// fingerprint is `whole`.
    pub(crate) fn hint(&self, whole: &[u8; 32], at: usize, part: &[u8]) -> [u8; 2] {
        let mut framed = LengthPrefixed::default();
        framed.field(whole);
        framed.number(at);
        framed.field(part);
        let [first, second, ..] = framed.hash(&self.hint);
        [first, second]
    }

    /// Returns the value that a store holds to detect a process with another secret.
    pub fn check_value(&self) -> [u8; 32] {
        self.check
    }
}

impl fmt::Debug for HashKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKeys(..)")
    }
}

macro_rules! digest {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; 32]);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({}…)", stringify!($name), hex(&self.0[..4]))
            }
        }
    };
}

digest! {
    /// Id of a record: a keyed hash of namespace, principal and key.
    RecordId
}
digest! {
    /// Keyed hash of the key alone.
    KeyHash
}
digest! {
    /// Hash of a principal's parts.
    Digest
}

impl RecordId {
    /// Returns the name of the operation for support requests: opaque, and not secret.
    pub fn instance(&self) -> String {
        format!("urn:onceward:{}", hex(&self.0[..12]))
    }
}

impl Digest {
    pub(crate) fn of_parts(parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        // The record id that this is hashed into is keyed, so this hash needs no key of its own.
        let mut framed = LengthPrefixed::default();
        parts.into_iter().for_each(|part| framed.field(part.as_ref()));
        Self(framed.hash(&[0; 32]))
    }
}

/// Fields, each with its length before it (LEB128), so that no two lists of fields have equal
/// bytes.
///
/// The fields are collected on the stack first: one long update of a hash costs a fraction of many
/// short ones.
#[derive(Default)]
pub(crate) struct LengthPrefixed(SmallVec<[u8; GATHERED]>);

/// Bytes of fields that need no heap: enough for most requests.
const GATHERED: usize = 1024;

impl LengthPrefixed {
    pub(crate) fn number(&mut self, mut number: usize) {
        while number > 0x7f {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    pub(crate) fn field(&mut self, bytes: &[u8]) {
        self.number(bytes.len());
        self.0.extend_from_slice(bytes);
    }

    /// Returns the collected bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns BLAKE3 of the fields under a key.
    fn hash(&self, key: &[u8; 32]) -> [u8; 32] {
        *blake3::keyed_hash(key, &self.0).as_bytes()
    }

    /// Returns HMAC-SHA-256 of the fields under a key.
    pub(crate) fn mac(&self, key: &MacKey) -> [u8; 32] {
        key.0.clone().chain_update(&self.0).finalize().into_bytes().into()
    }

    /// Returns true if `mac` is that of these fields. The comparison takes constant time.
    pub(crate) fn verify(&self, key: &MacKey, mac: &[u8]) -> bool {
        key.0.clone().chain_update(&self.0).verify_slice(mac).is_ok()
    }

    /// Returns the MAC with one more field, which is not copied if it is large.
    pub(crate) fn mac_with(&mut self, key: &MacKey, last: &[u8]) -> [u8; 32] {
        if last.len() <= GATHERED / 2 {
            self.field(last);
            return self.mac(key);
        }
        self.number(last.len());
        key.0.clone().chain_update(&self.0).chain_update(last).finalize().into_bytes().into()
    }
}

/// Key of HMAC-SHA-256, whose key schedule is computed already.
#[derive(Clone)]
pub(crate) struct MacKey(Hmac<Sha256>);

impl MacKey {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
        block[..key.len()].copy_from_slice(key);
        Self(Hmac::new(&block))
    }
}

/// Returns lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| hex_digits(*byte)).map(char::from).collect()
}

/// Returns the hexadecimal digits of one byte.
pub(crate) fn hex_digits(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [byte >> 4, byte & 15].map(|digit| DIGITS[usize::from(digit)])
}

//! The secret, and the hashes that are made with it: what a store holds can be neither guessed nor linked without it.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use smallvec::SmallVec;

use crate::fault;
use crate::fingerprint::Fingerprint;
use crate::key::Key;
use crate::principal::{KeySpace, Principal};

/// 32 random bytes that all processes of a store share. Never rotated: the ids of all records hang on it.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl Secret {
    /// From 32 random bytes.
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

/// The keys for each use, derived from the secret.
#[derive(Clone)]
pub struct HashKeys {
    record: [u8; 32],
    redirect: [u8; 32],
    lookup: [u8; 32],
    /// A fingerprint goes over a few hundred bytes one after the other, where SHA-256 by the processor's own instructions
    /// takes half of BLAKE3's time; the ids are of one block, where it does not.
    pub(crate) fingerprint: MacKey,
    /// Bodies and what a record keeps of the parts of a request, by the second construction of
    /// fingerprints.
    body: [u8; 32],
    hint: [u8; 32],
    check: [u8; 32],
    /// What each generation of the keys that are issued here is derived from.
    pub(crate) issuing: [u8; 32],
}

impl HashKeys {
    /// Derives them.
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

    /// Returns the id of the record of one (namespace, principal, key), where the scope has no part.
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
        // One field more: no id of a scope is one without.
        if let Some(space) = space.bytes() {
            framed.field(space);
        }
        RecordId(framed.hash(&self.record))
    }

    /// The id of the record of a request that followed a redirect with the key of the first one: `target` is its fingerprint
    /// there.
    pub(crate) fn redirect_id(&self, first: &RecordId, target: &Fingerprint) -> RecordId {
        let mut framed = LengthPrefixed::default();
        framed.field(&first.0);
        framed.field(&target.0);
        RecordId(framed.hash(&self.redirect))
    }

    /// The digest of the key alone, by which an operator finds it whoever sent it.
    pub fn key_hash(&self, key: &Key) -> KeyHash {
        KeyHash(*blake3::keyed_hash(&self.lookup, key.as_str().as_bytes()).as_bytes())
    }

    /// Returns the digest of a body, or of what is compared of it.
    pub(crate) fn body_digest(&self, body: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.body, body).as_bytes()
    }

    /// Returns two bytes that tell whether a part of a request is that of the request whose
    /// fingerprint is `whole`.
    pub(crate) fn hint(&self, whole: &[u8; 32], at: usize, part: &[u8]) -> [u8; 2] {
        let mut framed = LengthPrefixed::default();
        framed.field(whole);
        framed.number(at);
        framed.field(part);
        let [first, second, ..] = framed.hash(&self.hint);
        [first, second]
    }

    /// What a store holds so that a process with another secret is noticed.
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
    /// The id of a record: a keyed hash of namespace, principal and key.
    RecordId
}
digest! {
    /// A keyed hash of the key alone.
    KeyHash
}
digest! {
    /// A hash of a principal's parts.
    Digest
}

impl RecordId {
    /// What names the operation to support: opaque, and no secret.
    pub fn instance(&self) -> String {
        format!("urn:onceward:{}", hex(&self.0[..12]))
    }
}

impl Digest {
    pub(crate) fn of_parts(parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        // The record id, which this goes into, is keyed; this hash needs no key of its own.
        let mut framed = LengthPrefixed::default();
        parts.into_iter().for_each(|part| framed.field(part.as_ref()));
        Self(framed.hash(&[0; 32]))
    }
}

/// Fields, each with its length before it (LEB128), so that no two lists of fields look alike.
///
/// They are gathered first, on the stack: one long update of a hash costs a fraction of many short ones.
#[derive(Default)]
pub(crate) struct LengthPrefixed(SmallVec<[u8; GATHERED]>);

/// How many bytes of fields need no heap: those of most requests.
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

    /// Returns what was gathered.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// BLAKE3 under a key.
    fn hash(&self, key: &[u8; 32]) -> [u8; 32] {
        *blake3::keyed_hash(key, &self.0).as_bytes()
    }

    /// HMAC-SHA-256 under a key.
    pub(crate) fn mac(&self, key: &MacKey) -> [u8; 32] {
        key.0.clone().chain_update(&self.0).finalize().into_bytes().into()
    }

    /// Whether `mac` is that of these fields; compared in constant time.
    pub(crate) fn verify(&self, key: &MacKey, mac: &[u8]) -> bool {
        key.0.clone().chain_update(&self.0).verify_slice(mac).is_ok()
    }

    /// The same with one more field, which may be large and is not copied then.
    pub(crate) fn mac_with(&mut self, key: &MacKey, last: &[u8]) -> [u8; 32] {
        if last.len() <= GATHERED / 2 {
            self.field(last);
            return self.mac(key);
        }
        self.number(last.len());
        key.0.clone().chain_update(&self.0).chain_update(last).finalize().into_bytes().into()
    }
}

/// A key of HMAC-SHA-256, of which half of the work is done.
#[derive(Clone)]
pub(crate) struct MacKey(Hmac<Sha256>);

impl MacKey {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
        block[..key.len()].copy_from_slice(key);
        Self(Hmac::new(&block))
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|byte| hex_digits(*byte)).map(char::from).collect()
}

/// The same of one byte.
pub(crate) fn hex_digits(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [byte >> 4, byte & 15].map(|digit| DIGITS[usize::from(digit)])
}

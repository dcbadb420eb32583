//! The fingerprint: a digest of the request. A key that comes back with another one is a mistake, and is refused.

pub(crate) mod form;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderMap, HeaderName};
use http::{Method, Uri};

use crate::secret::{Framed, HashKeys};
use crate::wire::{line, lines};
use form::Form;

/// The digest of a request, under [`Rules`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl std::fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fingerprint({}…)", crate::secret::hex(&self.0[..4]))
    }
}

/// How bodies are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Byte by byte.
    #[default]
    Exact,
    /// Forms by their fields and files, whatever the boundary and the escapes; all else byte by byte.
    Form,
}

/// What a fingerprint is made of. A record keeps the rules it was made with, and a retry is computed that way, so that a
/// change of the rules does not turn honest retries into mismatches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// How bodies are compared.
    pub kind: Kind,
    /// Headers that count, besides `Content-Type` and `Content-Encoding`.
    pub headers: Vec<HeaderName>,
}

/// The version of the construction below; it goes into each digest.
pub const VERSION: u8 = 1;

/// The parts of a request that a fingerprint is made of.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The method.
    pub method: &'a Method,
    /// The target, as received.
    pub uri: &'a Uri,
    /// The headers, as received.
    pub headers: &'a HeaderMap,
    /// The whole body.
    pub body: &'a Bytes,
}

impl Rules {
    /// Computes the fingerprint of a request.
    pub fn fingerprint(&self, keys: &HashKeys, request: &Parts<'_>) -> Fingerprint {
        let mut framed = Framed::default();
        framed.number(VERSION.into());
        framed.number(match self.kind {
            Kind::Exact => 0,
            Kind::Form => 2,
        });
        let form = match self.kind {
            Kind::Exact => None,
            Kind::Form => Form::read(request.headers, request.body),
        };
        framed.field(request.method.as_str().as_bytes());
        let authority = match request.uri.authority() {
            Some(authority) => authority.as_str().as_bytes(),
            None => line(request.headers, &HOST).map_or(b"".as_slice(), |host| host.as_bytes()),
        };
        framed.field(authority);
        framed.field(request.uri.path().as_bytes());
        // "/a" and "/a?" are two targets; the number tells an empty query from none.
        match request.uri.query() {
            Some(query) => {
                framed.number(1);
                framed.field(query.as_bytes());
            }
            None => framed.number(0),
        }
        if let Some(form) = form {
            framed.field(b"form");
            framed.field(form.kind());
            self.headers.iter().for_each(|name| header(&mut framed, request.headers, name));
            form.frame(&mut framed);
            return Fingerprint(framed.mac(&keys.fingerprint));
        }
        values_of(&mut framed, request.headers, &CONTENT_TYPE);
        values_of(&mut framed, request.headers, &CONTENT_ENCODING);
        self.headers.iter().for_each(|name| header(&mut framed, request.headers, name));
        Fingerprint(framed.mac_with(&keys.fingerprint, request.body))
    }
}

/// A header that a rule names.
fn header(framed: &mut Framed, headers: &HeaderMap, name: &HeaderName) {
    framed.field(name.as_str().as_bytes());
    values_of(framed, headers, name);
}

/// How many lines of a header there are, and each.
fn values_of(framed: &mut Framed, headers: &HeaderMap, name: &HeaderName) {
    framed.number(lines(headers, name).count());
    lines(headers, name).for_each(|value| framed.field(value.as_bytes()));
}

//! The fingerprint: a digest of the request. A key that comes back with another one is a mistake, and is refused.

pub(crate) mod form;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderMap, HeaderName};
use http::{Method, Uri};

use crate::secret::{Framed, HashKeys};
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
        let mut hasher = Framed::new(&keys.fingerprint);
        hasher.field(&[
            VERSION,
            match self.kind {
                Kind::Exact => 0,
                Kind::Form => 2,
            },
        ]);
        let form = match self.kind {
            Kind::Exact => None,
            Kind::Form => Form::read(request.headers, request.body),
        };
        hasher.field(request.method.as_str().as_bytes());
        let authority = match request.uri.authority() {
            Some(authority) => authority.as_str().as_bytes(),
            None => request.headers.get(HOST).map_or(b"".as_slice(), |host| host.as_bytes()),
        };
        hasher.field(authority);
        hasher.field(request.uri.path().as_bytes());
        // "/a" and "/a?" are two targets; the marker tells an empty query from none.
        match request.uri.query() {
            Some(query) => {
                hasher.field(b"?");
                hasher.field(query.as_bytes());
            }
            None => hasher.field(b""),
        }
        if let Some(form) = form {
            hasher.field(b"form");
            hasher.field(form.kind());
            self.headers.iter().for_each(|name| header(&mut hasher, name, request.headers));
            form.digest(&mut hasher);
            return Fingerprint(hasher.finish());
        }
        for name in [&CONTENT_TYPE, &CONTENT_ENCODING].into_iter().chain(&self.headers) {
            header(&mut hasher, name, request.headers);
        }
        Fingerprint(hasher.finish_with(request.body))
    }
}

fn header(hasher: &mut Framed<'_>, name: &HeaderName, headers: &HeaderMap) {
    hasher.field(name.as_str().as_bytes());
    let values = headers.get_all(name);
    hasher.field(&(values.iter().count() as u64).to_le_bytes());
    values.iter().for_each(|value| hasher.field(value.as_bytes()));
}

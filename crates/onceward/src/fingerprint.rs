//! Fingerprints: a keyed digest of a request. A key that comes back with another fingerprint is
//! refused.
//!
//! Two constructions exist, and both stay: a record names the version that its digest was made
//! with, and a retry is compared by that one. [`VERSION`] reads forms and JSON, counts
//! preconditions and brings the authority into one form.

mod authority;
pub(crate) mod coding;
pub(crate) mod form;
mod form_v1;
pub(crate) mod json;
mod pointer;

use std::ops::Range;

use bytes::Bytes;
use http::header::{
    CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderMap, HeaderName, IF_MATCH, IF_NONE_MATCH, IF_UNMODIFIED_SINCE,
};
use http::{Method, Uri};
use smallvec::SmallVec;

use crate::secret::{HashKeys, LengthPrefixed};
use crate::wire::{line, lines};
use form::Form;
use form_v1::Form as FormV1;
pub use json::JsonError;
pub use pointer::{ParsePointerError, Pointer};

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
    /// `multipart/form-data` as [`Kind::Form`], all else as [`Kind::Exact`].
    #[default]
    Auto,
    /// Byte by byte.
    Exact,
    /// Forms by their fields and files, whatever the boundary and the escapes, without the CSRF
    /// fields of frameworks. All else byte by byte.
    Form,
    /// JSON by its values, whatever the white space, the order of members and the escapes. All else
    /// as [`Kind::Auto`].
    Json,
}

impl Kind {
    /// Every kind, in the order in which the docs name them.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Exact, Self::Form, Self::Json];

    /// Returns the name that people type.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Exact => "exact",
            Self::Form => "form",
            Self::Json => "json",
        }
    }
}

/// Whether requests to two hosts can be the same request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hosts {
    /// Another authority is another request.
    #[default]
    Distinct,
    /// All authorities are names of one service: none is part of the fingerprint.
    Same,
}

/// Which members of a JSON body a fingerprint of [`Kind::Json`] is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Members {
    /// All of them.
    #[default]
    All,
    /// All but these.
    Except(Vec<Pointer>),
    /// These only.
    Only(Vec<Pointer>),
}

/// What a fingerprint is made of. A record keeps the rules that it was made with, and a retry is
/// computed by those, so that a change of the rules does not turn honest retries into mismatches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The construction: [`FIRST_VERSION`] or [`VERSION`].
    pub version: u8,
    /// How bodies are compared.
    pub kind: Kind,
    /// Headers that count, besides `Content-Type`, `Content-Encoding` and the preconditions.
    pub headers: Vec<HeaderName>,
    /// Whether the authority counts. Only [`VERSION`] can leave it out.
    pub hosts: Hosts,
    /// Which members of a JSON body count.
    pub members: Members,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            version: VERSION,
            kind: Kind::default(),
            headers: Vec::new(),
            hosts: Hosts::default(),
            members: Members::default(),
        }
    }
}

/// The construction that is used for new records; it goes into each digest.
pub const VERSION: u8 = 2;

/// The construction of records of before, which is read and never chosen.
pub const FIRST_VERSION: u8 = 1;

/// The preconditions, which are part of a request: the same body under another `If-Match` is
/// another wish.
const PRECONDITIONS: [HeaderName; 3] = [IF_MATCH, IF_NONE_MATCH, IF_UNMODIFIED_SINCE];

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

/// What a record keeps besides its digest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// The digest by [`FIRST_VERSION`] and its kind, for processes that know no other.
    pub first: Option<(Fingerprint, Kind)>,
    /// Two bytes of a keyed digest of each part, by which a mismatch tells what differs.
    pub parts: Vec<u8>,
    /// The same of each member of a JSON body.
    pub members: Vec<u8>,
}

impl Details {
    /// Returns about how much memory they take, in bytes.
    pub fn size(&self) -> usize {
        size_of::<Self>() + self.parts.len() + self.members.len()
    }
}

/// How many members of a JSON body are told apart in a mismatch.
const MEMBERS_MAX: usize = 64;

impl Rules {
    /// Computes the fingerprint of a request.
    pub fn fingerprint(&self, keys: &HashKeys, request: &Parts<'_>) -> Fingerprint {
        match self.version {
            FIRST_VERSION => self.fingerprint_v1(self.kind, keys, request),
            _ => self.draft(keys, request).fingerprint(keys),
        }
    }

    /// Computes the fingerprint of a request, and what a record keeps besides.
    pub fn fingerprint_with_details(&self, keys: &HashKeys, request: &Parts<'_>) -> (Fingerprint, Option<Details>) {
        if self.version == FIRST_VERSION {
            return (self.fingerprint(keys, request), None);
        }
        let draft = self.draft(keys, request);
        let fingerprint = draft.fingerprint(keys);
        let first = self.kind_v1(request.headers);
        let details = Details {
            first: Some((self.fingerprint_v1(first, keys, request), first)),
            parts: draft.part_hints(keys, &fingerprint),
            members: draft.member_hints(keys, &fingerprint),
        };
        (fingerprint, Some(details))
    }

    /// Returns the headers on which a fingerprint by these rules depends, in their order, and no others.
    pub(crate) fn headers_of(&self, headers: &HeaderMap) -> HeaderMap {
        let counts = |name: &HeaderName| {
            [HOST, CONTENT_TYPE, CONTENT_ENCODING].contains(name)
                || PRECONDITIONS.contains(name)
                || self.headers.contains(name)
        };
        let mut relevant = HeaderMap::with_capacity(2);
        for (name, value) in headers.iter().filter(|(name, _)| counts(name)) {
            relevant.append(name.clone(), value.clone());
        }
        relevant
    }

    /// Checks that a body can be compared by these rules.
    ///
    /// # Errors
    ///
    /// A JSON body in which a member stands twice: which one counts is for each reader to choose.
    pub fn check(&self, headers: &HeaderMap, body: &Bytes) -> Result<(), JsonError> {
        match self.kind {
            Kind::Json if json::is_json(headers) => match json::read(headers, body) {
                Err(error @ JsonError::Duplicate) => Err(error),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Names what differs between a request and the one of a record: in words, never with a value.
    /// `None`: the record does not tell.
    pub fn difference(
        &self,
        keys: &HashKeys,
        request: &Parts<'_>,
        first: &Fingerprint,
        details: &Details,
    ) -> Option<String> {
        let draft = self.draft(keys, request);
        let own = draft.part_hints(keys, first);
        if self.version == FIRST_VERSION || own.len() != details.parts.len() {
            return None;
        }
        let differs = own.chunks(HINT).zip(details.parts.chunks(HINT)).map(|(own, its)| own != its);
        let named = self.headers.iter().map(|name| format!("header {name}"));
        let names = ["method", "host", "path or query", "content type", "precondition"].map(str::to_owned).into_iter();
        let names = names.chain(named).chain([draft.body_name(keys, first, &details.members)]);
        let differing: Vec<String> = differs.zip(names).filter(|(differs, _)| *differs).map(|(_, name)| name).collect();
        (!differing.is_empty()).then(|| differing.join(", "))
    }

    /// Returns the key material of a request that is its own key. A request that the first
    /// construction tells apart from all others as well keeps that one's digest: old and new
    /// processes derive the same key from it.
    pub fn derived_key(&self, keys: &HashKeys, request: &Parts<'_>) -> (u8, Fingerprint) {
        let is_plain = self.hosts == Hosts::Distinct
            && !PRECONDITIONS.iter().any(|name| line(request.headers, name).is_some())
            && matches!(Content::read(self, request), Content::Exact);
        match is_plain || self.version == FIRST_VERSION {
            true => {
                let kind = if self.version == FIRST_VERSION { self.kind } else { Kind::Exact };
                let authority = authority::normal(authority(request));
                (FIRST_VERSION, self.digest_v1(kind, keys, request, &authority))
            }
            false => (self.version, self.fingerprint(keys, request)),
        }
    }

    /// The second construction, up to its digest.
    fn draft(&self, keys: &HashKeys, request: &Parts<'_>) -> Draft {
        let content = Content::read(self, request);
        let mut draft = Draft::default();
        let framed = &mut draft.framed;
        framed.number(VERSION.into());
        framed.number(content.number());
        let mut ends: SmallVec<[usize; 12]> = SmallVec::new();
        let start = framed.bytes().len();
        framed.field(request.method.as_str().as_bytes());
        ends.push(framed.bytes().len());
        match self.hosts {
            Hosts::Same => framed.number(0),
            Hosts::Distinct => {
                framed.number(1);
                framed.field(&authority::normal(authority(request)));
            }
        }
        ends.push(framed.bytes().len());
        target(framed, request.uri);
        ends.push(framed.bytes().len());
        match &content {
            Content::Form(form) => framed.field(form.kind()),
            Content::Exact | Content::Json(_) => values_of(framed, request.headers, &CONTENT_TYPE),
        }
        values_of(framed, request.headers, &CONTENT_ENCODING);
        ends.push(framed.bytes().len());
        PRECONDITIONS.iter().for_each(|name| values_of(framed, request.headers, name));
        ends.push(framed.bytes().len());
        for name in &self.headers {
            header(framed, request.headers, name);
            ends.push(framed.bytes().len());
        }
        let body = match content {
            Content::Exact => keys.body_digest(request.body),
            Content::Form(form) => {
                let mut fields = LengthPrefixed::default();
                form.frame(&mut fields);
                keys.body_digest(fields.bytes())
            }
            Content::Json(value) => {
                let mut values = LengthPrefixed::default();
                draft.members = value.frame_root(&self.members, &mut values);
                let digest = keys.body_digest(values.bytes());
                draft.values = values;
                digest
            }
        };
        framed.field(&body);
        ends.push(framed.bytes().len());
        draft.start = start;
        draft.ends = ends;
        draft
    }

    /// The kind by which a process that knows the first construction only compares such a request.
    fn kind_v1(&self, headers: &HeaderMap) -> Kind {
        match self.kind {
            Kind::Exact => Kind::Exact,
            Kind::Form => Kind::Form,
            Kind::Auto | Kind::Json if form::is_multipart(headers) => Kind::Form,
            Kind::Auto | Kind::Json => Kind::Exact,
        }
    }

    /// The first construction. It never changes.
    fn fingerprint_v1(&self, kind: Kind, keys: &HashKeys, request: &Parts<'_>) -> Fingerprint {
        self.digest_v1(kind, keys, request, authority(request))
    }

    fn digest_v1(&self, kind: Kind, keys: &HashKeys, request: &Parts<'_>, authority: &[u8]) -> Fingerprint {
        let mut framed = LengthPrefixed::default();
        framed.number(FIRST_VERSION.into());
        framed.number(if kind == Kind::Form { FORM } else { EXACT });
        let form = match kind {
            Kind::Form => FormV1::read(request.headers, request.body),
            Kind::Auto | Kind::Exact | Kind::Json => None,
        };
        framed.field(request.method.as_str().as_bytes());
        framed.field(authority);
        target(&mut framed, request.uri);
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

const EXACT: usize = 0;
const FORM: usize = 2;
const JSON: usize = 3;

/// A body, read as its rules and its content type say.
enum Content<'b> {
    Exact,
    Form(Form),
    Json(json::Value<'b>),
}

impl<'b> Content<'b> {
    fn read(rules: &Rules, request: &Parts<'b>) -> Self {
        let Parts { headers, body, .. } = *request;
        let is_form = match rules.kind {
            Kind::Exact => false,
            Kind::Form => form::is_form(headers),
            Kind::Json if json::is_json(headers) => {
                return json::read(headers, body).map_or(Self::Exact, Self::Json);
            }
            Kind::Auto | Kind::Json => form::is_multipart(headers),
        };
        match is_form {
            // A form with a broken escape means what each reader makes of it: it equals itself
            // only.
            true => Form::read(headers, body).filter(Form::is_sound).map_or(Self::Exact, Self::Form),
            false => Self::Exact,
        }
    }

    fn number(&self) -> usize {
        match self {
            Self::Exact => EXACT,
            Self::Form(_) => FORM,
            Self::Json(_) => JSON,
        }
    }
}

/// The fields of a digest, and where each part ends.
#[derive(Default)]
struct Draft {
    framed: LengthPrefixed,
    start: usize,
    ends: SmallVec<[usize; 12]>,
    /// A JSON body, and where its members stand.
    values: LengthPrefixed,
    members: Vec<(String, Range<usize>)>,
}

/// How many bytes tell whether a part differs.
const HINT: usize = 2;

impl Draft {
    fn fingerprint(&self, keys: &HashKeys) -> Fingerprint {
        Fingerprint(self.framed.mac(&keys.fingerprint))
    }

    /// A few bytes of each part, under a hash of the whole request: those of two records cannot be
    /// compared.
    fn part_hints(&self, keys: &HashKeys, whole: &Fingerprint) -> Vec<u8> {
        let starts = std::iter::once(self.start).chain(self.ends.iter().copied());
        let parts = starts.zip(&self.ends).map(|(start, end)| &self.framed.bytes()[start..*end]);
        parts.enumerate().flat_map(|(at, part)| keys.hint(&whole.0, at, part)).collect()
    }

    fn member_hints(&self, keys: &HashKeys, whole: &Fingerprint) -> Vec<u8> {
        match self.members.len() {
            0 => Vec::new(),
            1..=MEMBERS_MAX => self.members.iter().flat_map(|member| self.member_hint(keys, whole, member)).collect(),
            _ => Vec::new(),
        }
    }

    fn member_hint(&self, keys: &HashKeys, whole: &Fingerprint, member: &(String, Range<usize>)) -> [u8; HINT] {
        keys.hint(&whole.0, usize::MAX, &self.values.bytes()[member.1.clone()])
    }

    /// The name of the body as something that differs, with the members that do.
    fn body_name(&self, keys: &HashKeys, first: &Fingerprint, members: &[u8]) -> String {
        let known: Vec<&[u8]> = members.chunks(HINT).collect();
        if known.is_empty() || self.members.is_empty() || self.members.len() > MEMBERS_MAX {
            return "body".to_owned();
        }
        let is_known = |member: &&(String, Range<usize>)| {
            let hint = self.member_hint(keys, first, member);
            !known.contains(&&hint[..])
        };
        let mut names: Vec<String> = self.members.iter().filter(is_known).map(|(name, _)| shown(name)).collect();
        if self.members.len() - names.len() < known.len() && self.members.len() < known.len() {
            names.push("a member that is missing".to_owned());
        }
        match names.is_empty() {
            true => "body".to_owned(),
            false => format!("body ({})", names.join(", ")),
        }
    }
}

/// A member's name, short enough for a sentence.
fn shown(name: &str) -> String {
    const LONGEST: usize = 64;
    let plain: String = name.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if name.chars().count() > LONGEST { format!("{plain}…") } else { plain }
}

/// The authority, as received.
fn authority<'a>(request: &Parts<'a>) -> &'a [u8] {
    match request.uri.authority() {
        Some(authority) => authority.as_str().as_bytes(),
        None => line(request.headers, &HOST).map_or(b"".as_slice(), |host| host.as_bytes()),
    }
}

/// Path and query.
fn target(framed: &mut LengthPrefixed, uri: &Uri) {
    framed.field(uri.path().as_bytes());
    // "/a" and "/a?" are two targets; the number tells an empty query from none.
    match uri.query() {
        Some(query) => {
            framed.number(1);
            framed.field(query.as_bytes());
        }
        None => framed.number(0),
    }
}

/// A header that a rule names.
fn header(framed: &mut LengthPrefixed, headers: &HeaderMap, name: &HeaderName) {
    framed.field(name.as_str().as_bytes());
    values_of(framed, headers, name);
}

/// How many lines of a header there are, and each.
fn values_of(framed: &mut LengthPrefixed, headers: &HeaderMap, name: &HeaderName) {
    framed.number(lines(headers, name).count());
    lines(headers, name).for_each(|value| framed.field(value.as_bytes()));
}

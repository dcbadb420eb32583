//! Fingerprints: a keyed digest of a request. A key that is reused with a different fingerprint is
//! refused.
//!
//! Two constructions exist, and both stay: a record names the version that its digest was made
//! with, and a retry is compared by that version. [`VERSION`] parses forms and JSON, includes
//! preconditions and normalises the authority.

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

/// Digest of a request, under [`Rules`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl std::fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fingerprint({}…)", crate::secret::hex(&self.0[..4]))
    }
}

/// Comparison of bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// `multipart/form-data` as [`Kind::Form`], all else as [`Kind::Exact`].
    #[default]
    Auto,
    /// Byte by byte.
    Exact,
    /// Forms by their fields and files, regardless of the boundary and the escapes, without the
    /// CSRF fields of frameworks. All else byte by byte.
    Form,
    /// JSON by its values, regardless of white space, the order of members and escapes. All else as
    /// [`Kind::Auto`].
    Json,
}

impl Kind {
    /// All kinds, in the order of the docs.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Exact, Self::Form, Self::Json];

    /// Returns the name used in settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Exact => "exact",
            Self::Form => "form",
            Self::Json => "json",
        }
    }
}

/// Handling of requests to two hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hosts {
    /// A request to another authority is a different request.
    #[default]
    Distinct,
    /// All authorities are names of one service: the fingerprint excludes the authority.
    Same,
}

/// Members of a JSON body that a fingerprint of [`Kind::Json`] includes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Members {
    /// All of them.
    #[default]
    All,
    /// All except these.
    Except(Vec<Pointer>),
    /// Only these.
    Only(Vec<Pointer>),
}

/// Rules for computing a fingerprint. A record stores the rules that it was made with, and a retry
/// is computed by those, so that a change of the rules does not turn genuine retries into
/// mismatches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Version of the construction: [`FIRST_VERSION`] or [`VERSION`].
    pub version: u8,
    /// Comparison of bodies.
    pub kind: Kind,
    /// Headers that are included, besides `Content-Type`, `Content-Encoding` and the preconditions.
    pub headers: Vec<HeaderName>,
    /// Inclusion of the authority. Only [`VERSION`] can leave it out.
    pub hosts: Hosts,
    /// Members of a JSON body that are included.
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

/// Construction that is used for new records. Each digest includes its number.
pub const VERSION: u8 = 2;

/// Construction of older records, which is read and never chosen.
pub const FIRST_VERSION: u8 = 1;

/// Preconditions, which are part of a request: the same body under another `If-Match` is a
/// different request.
const PRECONDITIONS: [HeaderName; 3] = [IF_MATCH, IF_NONE_MATCH, IF_UNMODIFIED_SINCE];

/// Parts of a request that a fingerprint is made of.
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

/// Data that a record contains besides its digest, to describe a mismatch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// The digest by [`FIRST_VERSION`] and its kind, for processes that know no other version.
    pub first: Option<(Fingerprint, Kind)>,
    /// Two bytes of a keyed digest of each part, which identify the differing part of a mismatch.
    pub parts: Vec<u8>,
    /// The same for each member of a JSON body.
    pub members: Vec<u8>,
}

impl Details {
    /// Returns their approximate memory use, in bytes.
    pub fn size(&self) -> usize {
        size_of::<Self>() + self.parts.len() + self.members.len()
    }
}

/// Upper bound on the members of a JSON body that a mismatch distinguishes.
const MEMBERS_MAX: usize = 64;

impl Rules {
    /// Computes the fingerprint of a request.
    pub fn fingerprint(&self, keys: &HashKeys, request: &Parts<'_>) -> Fingerprint {
        match self.version {
            FIRST_VERSION => self.fingerprint_v1(self.kind, keys, request),
            _ => self.draft(keys, request).fingerprint(keys),
        }
    }

    /// Computes the fingerprint of a request, and the details that a record contains besides.
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

    /// Returns the headers on which a fingerprint by these rules depends, in their order.
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
    /// A JSON body with a duplicate member: parsers differ in which one they use.
    pub fn check(&self, headers: &HeaderMap, body: &Bytes) -> Result<(), JsonError> {
        match self.kind {
            Kind::Json if json::is_json(headers) => match json::read(headers, body) {
                Err(error @ JsonError::Duplicate) => Err(error),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Returns the names of the parts that differ between a request and the one of a record, never
    /// a value. `None`: the record has no details for that.
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

    /// Returns the key material of a request whose key is derived. If the first construction
    /// distinguishes the request as precisely, its digest is used, so that old and new processes
    /// derive the same key.
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

    /// Builds the fields of the second construction.
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

    /// Returns the kind by which a process that knows only the first construction compares such a
    /// request.
    fn kind_v1(&self, headers: &HeaderMap) -> Kind {
        match self.kind {
            Kind::Exact => Kind::Exact,
            Kind::Form => Kind::Form,
            Kind::Auto | Kind::Json if form::is_multipart(headers) => Kind::Form,
            Kind::Auto | Kind::Json => Kind::Exact,
        }
    }

    /// Computes the first construction. It never changes.
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

/// Body, parsed by its rules and its content type.
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
            // Parsers differ on a form with a broken escape: it is compared byte by byte.
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

/// Fields of a digest, and the end of each part.
#[derive(Default)]
struct Draft {
    framed: LengthPrefixed,
    start: usize,
    ends: SmallVec<[usize; 12]>,
    /// The fields of a JSON body, and the ranges of its members.
    values: LengthPrefixed,
    members: Vec<(String, Range<usize>)>,
}

/// Number of bytes that indicate if a part differs.
const HINT: usize = 2;

impl Draft {
    fn fingerprint(&self, keys: &HashKeys) -> Fingerprint {
        Fingerprint(self.framed.mac(&keys.fingerprint))
    }

    /// Returns a few bytes of each part, hashed with the whole request, so that those of two
    /// records cannot be compared.
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

    /// Returns the name of the body as a differing part, with its differing members.
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

/// Returns a member's name, short enough for a sentence.
fn shown(name: &str) -> String {
    const LONGEST: usize = 64;
    let plain: String = name.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if name.chars().count() > LONGEST { format!("{plain}…") } else { plain }
}

/// Returns the authority, as received.
fn authority<'a>(request: &Parts<'a>) -> &'a [u8] {
    match request.uri.authority() {
        Some(authority) => authority.as_str().as_bytes(),
        None => line(request.headers, &HOST).map_or(b"".as_slice(), |host| host.as_bytes()),
    }
}

/// Adds the path and the query.
fn target(framed: &mut LengthPrefixed, uri: &Uri) {
    framed.field(uri.path().as_bytes());
    // "/a" and "/a?" are two targets; the number distinguishes an empty query from none.
    match uri.query() {
        Some(query) => {
            framed.number(1);
            framed.field(query.as_bytes());
        }
        None => framed.number(0),
    }
}

/// Adds a header that a rule names.
fn header(framed: &mut LengthPrefixed, headers: &HeaderMap, name: &HeaderName) {
    framed.field(name.as_str().as_bytes());
    values_of(framed, headers, name);
}

/// Adds the number of lines of a header, and each line.
fn values_of(framed: &mut LengthPrefixed, headers: &HeaderMap, name: &HeaderName) {
    framed.number(lines(headers, name).count());
    lines(headers, name).for_each(|value| framed.field(value.as_bytes()));
}

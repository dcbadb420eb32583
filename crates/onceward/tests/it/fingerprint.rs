//! Fingerprints: what the vectors cannot say of all requests.

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri};
use onceward::fingerprint::{Fingerprint, Parts, Rules};
use onceward::secret::{HashKeys, Secret};
use proptest::prelude::*;

#[derive(Clone, Debug, PartialEq)]
struct Sent {
    method: &'static str,
    target: String,
    lines: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Sent {
    fn fingerprint(&self, rules: &Rules) -> Fingerprint {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"));
        }
        let uri: Uri = self.target.parse().expect("a target");
        let (method, body) = (self.method.parse::<Method>().expect("a method"), Bytes::from(self.body.clone()));
        let keys = HashKeys::new(&Secret::new([9; 32]));
        rules.fingerprint(&keys, &Parts { method: &method, uri: &uri, headers: &headers, body: &body })
    }

    /// What counts of it, in a form that two requests share exactly if they are the same.
    fn meaning(&self) -> impl PartialEq + use<> {
        let of = |name: &str| -> Vec<String> {
            self.lines.iter().filter(|line| line.0 == name).map(|line| line.1.clone()).collect()
        };
        let counted = ["host", "content-type", "content-encoding", "x-tenant", "if-match"].map(of);
        // Of several Host lines, which no server lets pass, the first is the authority.
        let host = counted[0].first().cloned().unwrap_or_default();
        (self.method, self.target.clone(), host, counted[1..].to_vec(), self.body.clone())
    }
}

/// Few values, so that two drawn requests are often equal, or differ only in where a byte stands.
fn sent() -> impl Strategy<Value = Sent> {
    let name =
        prop::sample::select(vec!["host", "content-type", "content-encoding", "x-tenant", "if-match", "x-other"]);
    let value = prop::sample::select(vec!["", "a", "b", "ab"]).prop_map(str::to_owned);
    let target = prop::sample::select(vec!["/", "/a", "/a?", "/a?b", "/b", "/a/b"]).prop_map(str::to_owned);
    let body = prop::sample::select(vec![&b""[..], b"a", b"b", b"ab"]).prop_map(<[u8]>::to_vec);
    let method = prop::sample::select(vec!["POST", "PATCH"]);
    (method, target, prop::collection::vec((name, value), 0..3), body).prop_map(|(method, target, lines, body)| Sent {
        method,
        target,
        lines,
        body,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn two_requests_share_a_fingerprint_exactly_if_all_that_counts_is_equal(one in sent(), other in sent()) {
        let rules = Rules { headers: vec![HeaderName::from_static("x-tenant")], ..Rules::default() };
        let mut near = one.clone();
        near.body.clone_from(&other.body);
        for other in [&other, &near] {
            let equal = one.fingerprint(&rules) == other.fingerprint(&rules);
            prop_assert_eq!(equal, one.meaning() == other.meaning(), "{:?} {:?}", one, other);
        }
    }

    #[test]
    fn a_retry_has_the_fingerprint_of_the_first(sent in sent(), headers in prop::collection::vec("[a-z]{1,8}", 0..3)) {
        let headers = headers.iter().map(|name| name.parse().expect("a name")).collect();
        let rules = Rules { headers, ..Rules::default() };
        prop_assert_eq!(sent.fingerprint(&rules), sent.clone().fingerprint(&rules.clone()));
    }
}

#[test]
fn a_fingerprint_is_not_shown_whole() {
    let print = Fingerprint([0xab; 32]);
    assert_eq!(format!("{print:?}"), "Fingerprint(abababab…)");
}

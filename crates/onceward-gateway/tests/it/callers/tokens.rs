//! Callers that a claim of a verified token names.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256};
use serde_json::{Value, json};

use crate::client::{assert_answer, assert_problem, assert_replay, order, outcome, plain_order};
use crate::support::{Answer, Gateway};
use crate::upstream::Upstream;

const KEY: &str = "token-key-0123456789";

/// A key of an issuer, and its public half.
struct Signer {
    id: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
    public: Value,
}

impl Signer {
    fn new(id: &'static str, algorithm: Algorithm) -> Self {
        let ed = (algorithm == Algorithm::EdDSA).then(|| KeyPair::generate_for(&PKCS_ED25519).unwrap());
        let key = match algorithm {
            Algorithm::ES256 => EncodingKey::from_ec_der(&der(&PKCS_ECDSA_P256_SHA256)),
            Algorithm::ES384 => EncodingKey::from_ec_der(&der(&PKCS_ECDSA_P384_SHA384)),
            Algorithm::EdDSA => EncodingKey::from_ed_der(&ed.as_ref().unwrap().serialize_der()),
            _ => EncodingKey::from_rsa_der(&pkcs1(&der(&PKCS_RSA_SHA256))),
        };
        let mut public = match ed {
            Some(pair) => json!({ "kty": "OKP", "crv": "Ed25519", "x": base64url(pair.public_key_raw()) }),
            None => serde_json::to_value(Jwk::from_encoding_key(&key, algorithm).unwrap()).unwrap(),
        };
        public["kid"] = id.into();
        public.as_object_mut().unwrap().remove("alg");
        Self { id, algorithm, key, public }
    }

    fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.id.into());
        encode(&header, claims, &self.key).unwrap()
    }
}

fn der(kind: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
    KeyPair::generate_for(kind).unwrap().serialize_der()
}

fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for at in 0..=chunk.len() {
            text.push(char::from(DIGITS[(bits >> (18 - 6 * at) & 63) as usize]));
        }
    }
    text
}

/// The key within PKCS #8, which this kind is signed with: the octet string at its end.
fn pkcs1(pkcs8: &[u8]) -> Vec<u8> {
    let at = pkcs8.windows(4).rposition(|window| window[..2] == [0x04, 0x82] && pkcs8.len() > 1000).unwrap();
    let first = pkcs8.windows(5).position(|window| window[0] == 0x04 && window[1] == 0x82 && window[4] == 0x30);
    pkcs8[first.unwrap_or(at) + 4..].to_vec()
}

#[allow(clippy::disallowed_methods, reason = "claims of a token are moments of the wall clock")]
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn claims(subject: &str) -> Value {
    json!({ "sub": subject, "iss": "https://issuer.example", "aud": "orders", "exp": now() + 300 })
}

/// An issuer's server, whose set of keys changes, and which may fail.
struct Issuer {
    address: SocketAddr,
    response: Arc<Mutex<String>>,
    reads: Arc<AtomicUsize>,
}

impl Issuer {
    fn start(signers: &[&Signer]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let issuer = Self { address: listener.local_addr().unwrap(), response: Arc::default(), reads: Arc::default() };
        issuer.has(signers);
        let (response, reads) = (Arc::clone(&issuer.response), Arc::clone(&issuer.reads));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                while stream.read_line(&mut line).is_ok_and(|read| read > 2) {}
                if line.starts_with("GET /keys?v=1 ") {
                    reads.fetch_add(1, Ordering::SeqCst);
                }
                let response = response.lock().unwrap().clone();
                let _ = stream.get_mut().write_all(response.as_bytes());
            }
        });
        issuer
    }

    fn has(&self, signers: &[&Signer]) {
        let body = set(signers);
        let length = body.len();
        *self.response.lock().unwrap() =
            format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
    }

    fn fails(&self) {
        *self.response.lock().unwrap() = "HTTP/1.1 503 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_owned();
    }

    fn settings(&self) -> String {
        format!(
            "[jwt]\njwks = \"http://{}/keys?v=1\"\nissuer = \"https://issuer.example\"\naudience = [\"orders\"]\n\
             leeway = \"5s\"\n[policy]\nprincipal = [\"jwt:sub\"]\n",
            self.address
        )
    }
}

fn set(signers: &[&Signer]) -> String {
    json!({ "keys": signers.iter().map(|signer| signer.public.clone()).collect::<Vec<_>>() }).to_string()
}

fn send(gateway: &Gateway, key: &str, token: &str) -> Answer {
    order(key).line(format!("Authorization: Bearer {token}")).send(gateway)
}

#[test]
fn renewed_token_of_each_algorithm_is_the_same_caller() {
    let upstream = Upstream::start();
    let signers = [
        ("rs", Algorithm::RS256),
        ("ps", Algorithm::PS256),
        ("es", Algorithm::ES256),
        ("es3", Algorithm::ES384),
        ("ed", Algorithm::EdDSA),
    ]
    .map(|(id, algorithm)| Signer::new(id, algorithm));
    let issuer = Issuer::start(&signers.each_ref());
    let gateway = upstream.gateway(&issuer.settings());
    for signer in &signers {
        let key = format!("{KEY}-{}", signer.id);
        let first = send(&gateway, &key, &signer.sign(&claims("ann")));
        assert_answer(&first, 201, "stored");
        let mut renewed = claims("ann");
        renewed["exp"] = (now() + 900).into();
        renewed["jti"] = "another".into();
        assert_replay(&send(&gateway, &key, &signer.sign(&renewed)), &first);
        assert_answer(&send(&gateway, &key, &signer.sign(&claims("bob"))), 201, "stored");
        assert_eq!(upstream.count(&key), 2, "{}", signer.id);
    }
    let operation = format!(
        "GET /.idempotency/operation HTTP/1.1\r\nHost: shop.example\r\nIdempotency-Key: {KEY}-es\r\nAuthorization: Bearer {}\r\n\r\n",
        signers[0].sign(&claims("ann"))
    );
    assert_eq!(outcome(&gateway.send(operation)), "replayed");
}

#[test]
fn invalid_token_is_refused_before_any_record() {
    let upstream = Upstream::start();
    let signer = Signer::new("es", Algorithm::ES256);
    let stranger = Signer::new("es", Algorithm::ES256);
    let rsa = Signer::new("rs", Algorithm::RS256);
    let issuer = Issuer::start(&[&signer, &rsa]);
    let gateway = upstream.gateway(&issuer.settings());
    let with = |name: &str, value: Value| {
        let mut claims = claims("ann");
        claims[name] = value;
        signer.sign(&claims)
    };
    let without = |name: &str| {
        let mut claims = claims("ann");
        claims.as_object_mut().unwrap().remove(name);
        signer.sign(&claims)
    };
    let good = signer.sign(&claims("ann"));
    let payload = good.split('.').nth(1).unwrap();
    // {"alg":"none","typ":"JWT"}
    let none = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{payload}.c2ln");
    // The public key as the secret of HMAC.
    let confused = {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some("rs".into());
        let modulus = rsa.public["n"].as_str().unwrap().as_bytes();
        encode(&header, &claims("ann"), &EncodingKey::from_secret(modulus).unwrap()).unwrap()
    };
    let mut tampered = good.clone();
    tampered.replace_range(good.len() - 4.., if good.ends_with("AAAA") { "BBBB" } else { "AAAA" });
    for (name, token) in [
        ("expired", with("exp", (now() - 60).into())),
        ("not valid yet", with("nbf", (now() + 60).into())),
        ("another issuer", with("iss", "https://other.example".into())),
        ("another audience", with("aud", "other".into())),
        ("no exp", without("exp")),
        ("no issuer", without("iss")),
        ("no audience", without("aud")),
        ("another key", stranger.sign(&claims("ann"))),
        ("none", none),
        ("confused", confused),
        ("tampered", tampered),
        ("no base64", "eyJ.eyJ.!".into()),
    ] {
        let answer = send(&gateway, KEY, &token);
        assert_problem(&answer, "token_invalid", KEY);
        assert!(answer.one("www-authenticate").starts_with("Bearer error=\"invalid_token\""), "{name}");
        assert!(!String::from_utf8_lossy(&answer.body).contains(payload), "{name}");
        // Without a key the service judges.
        let plain = plain_order().line(format!("Authorization: Bearer {token}")).send(&gateway);
        assert_eq!((plain.status, outcome(&plain)), (201, ""), "{name}");
    }
    assert_eq!(upstream.count(KEY), 0);
    // Within the leeway.
    assert_answer(&send(&gateway, KEY, &with("exp", (now() - 1).into())), 201, "stored");
    // A bearer token that is no JWT is a credential that nobody names; no token is anonymous.
    assert_problem(&send(&gateway, "opaque-key", "opaque"), "principal_unknown", "opaque-key");
    assert_problem(&send(&gateway, "no-claim-key", &without("sub")), "principal_unknown", "no-claim-key");
    assert_answer(&order("anonymous-key").send(&gateway), 201, "stored");
}

#[test]
fn hmac_token_needs_a_secret_that_was_given() {
    let upstream = Upstream::start();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    let secret = b"0123456789abcdef0123456789abcdef";
    std::fs::write(&path, secret).unwrap();
    let settings = format!("[jwt]\nsecret_file = {path:?}\n[policy]\nprincipal = [\"jwt:sub\"]\n");
    let gateway = upstream.gateway(&settings);
    let sign = |secret: &[u8]| {
        encode(&Header::new(Algorithm::HS256), &claims("ann"), &EncodingKey::from_secret(secret).unwrap()).unwrap()
    };
    let first = send(&gateway, KEY, &sign(secret));
    assert_answer(&first, 201, "stored");
    assert_problem(&send(&gateway, KEY, &sign(b"another secret of thirty-two byt")), "token_invalid", KEY);
    // A shared secret in a set of public keys is none.
    let jwks = folder.path().join("jwks.json");
    let ec = Signer::new("es", Algorithm::ES256);
    let oct = json!({ "kty": "oct", "k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY", "alg": "HS256" });
    std::fs::write(&jwks, json!({ "keys": [oct, ec.public.clone()] }).to_string()).unwrap();
    let gateway = upstream.gateway(&format!("[jwt]\njwks = {jwks:?}\n[policy]\nprincipal = [\"jwt:sub\"]\n"));
    assert_problem(&send(&gateway, KEY, &sign(secret)), "token_invalid", KEY);
    assert_answer(&send(&gateway, KEY, &ec.sign(&claims("ann"))), 201, "stored");
}

#[test]
fn rotated_keys_are_read_again_and_a_stale_set_is_kept_while_the_url_fails() {
    let upstream = Upstream::start();
    let [old, new, later] = ["old", "new", "later"].map(|id| Signer::new(id, Algorithm::ES256));
    let issuer = Issuer::start(&[&old]);
    let gateway = upstream.one_gateway(&issuer.settings());
    let first = send(&gateway, KEY, &old.sign(&claims("ann")));
    assert_answer(&first, 201, "stored");
    assert_eq!(issuer.reads.load(Ordering::SeqCst), 1, "the set is cached");
    issuer.has(&[&old, &new]);
    assert_replay(&send(&gateway, KEY, &new.sign(&claims("ann"))), &first);
    assert_eq!(issuer.reads.load(Ordering::SeqCst), 2, "an unknown kid reads it again");
    issuer.fails();
    for _ in 0..3 {
        assert_problem(&send(&gateway, "later-key", &later.sign(&claims("ann"))), "token_invalid", "later-key");
        assert_replay(&send(&gateway, KEY, &old.sign(&claims("ann"))), &first);
    }
    assert!(issuer.reads.load(Ordering::SeqCst) <= 3, "made-up kids do not flood the issuer");
}

#[test]
fn keys_that_cannot_be_read_at_the_start_are_read_with_the_first_token() {
    let upstream = Upstream::start();
    let signer = Signer::new("es", Algorithm::ES256);
    let issuer = Issuer::start(&[&signer]);
    issuer.fails();
    let gateway = upstream.one_gateway(&issuer.settings());
    let refused = send(&gateway, KEY, &signer.sign(&claims("ann")));
    assert_problem(&refused, "store_unavailable", KEY);
    issuer.has(&[&signer]);
    let answer = crate::waiting::poll("the keys", || {
        let answer = send(&gateway, KEY, &signer.sign(&claims("ann")));
        (answer.status != 503).then_some(answer)
    });
    assert_answer(&answer, 201, "stored");
    assert_eq!(upstream.count(KEY), 1);
}

//! `Authorization` header: its usual spelling, and schemes that sign each request.

use std::borrow::Cow;

/// Usual spellings of scheme names, which give equal credentials equal bytes.
///
/// Taken from the IANA registry of HTTP authentication schemes, and otherwise from API
/// documentation.
const USUAL: [&str; 24] = [
    "Api-Key",
    "ApiKey",
    "AWS",
    "Basic",
    "Bearer",
    "Concealed",
    "Digest",
    "DPoP",
    "GNAP",
    "GoogleLogin",
    "Hawk",
    "HOBA",
    "JWT",
    "Key",
    "Mutual",
    "Negotiate",
    "NTLM",
    "OAuth",
    "PrivateToken",
    "Signature",
    "SSWS",
    "Token",
    "vapid",
    "Zoho-oauthtoken",
];

/// Schemes whose credentials differ from request to request, in lower case.
const SIGNED: [&str; 38] = [
    "acs",
    "aws",
    "aws3",
    "aws3-https",
    "aws4-ecdsa-p256-sha256",
    "aws4-hmac-sha256",
    "bce-auth-v1",
    "digest",
    "escher",
    "goog1",
    "goog4-rsa-sha256",
    "hawk",
    "hoba",
    "http-signature",
    "kerberos",
    "mac",
    "mauth",
    "mutual",
    "mws",
    "mwsv2",
    "negotiate",
    "nonce",
    "ntlm",
    "oss",
    "privatetoken",
    "qbox",
    "qiniu",
    "scram-sha-1",
    "scram-sha-256",
    "sharedkey",
    "sharedkeylite",
    "sign",
    "signature",
    "signed",
    "snowflake-signature",
    "upyun",
    "usernametoken",
    "wsse",
];

/// Parameters that only a signed request has, in lower case.
const SIGNED_PARAMETERS: [&str; 14] = [
    "auth_signature",
    "created",
    "date",
    "mac",
    "nonce",
    "oauth_nonce",
    "oauth_signature",
    "sig",
    "signature",
    "signedheaders",
    "sn",
    "timestamp",
    "ts",
    "x-timestamp",
];

/// Splits a value into its scheme and its credentials.
///
/// `None` for a value without a scheme, such as a plain key.
fn split(value: &[u8]) -> Option<(&str, &[u8])> {
    let at = value.iter().position(|byte| matches!(byte, b' ' | b'\t'))?;
    let scheme = std::str::from_utf8(&value[..at]).ok()?;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let credentials = value[at..].trim_ascii();
    (!scheme.is_empty() && scheme.bytes().all(is_token) && !credentials.is_empty()).then_some((scheme, credentials))
}

/// Returns the scheme's name in its usual spelling.
fn usual(scheme: &str) -> Cow<'_, str> {
    if let Some(usual) = USUAL.iter().find(|usual| usual.eq_ignore_ascii_case(scheme)) {
        return (*usual).into();
    }
    // An unregistered name: each word begins with a capital, as in `Xyz-Token`.
    let mut is_first = true;
    let spelled = scheme.chars().map(|c| {
        let c = if is_first { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() };
        is_first = c == '-' || c == '_';
        c
    });
    spelled.collect::<String>().into()
}

/// Returns the value with its scheme in the usual spelling and one space after it.
///
/// A value in its usual spelling is returned unchanged: the ids of records depend on these bytes.
pub(super) fn canonical(value: &[u8]) -> Cow<'_, [u8]> {
    let value = value.trim_ascii();
    let Some((scheme, credentials)) = split(value) else { return value.into() };
    let spelled = usual(scheme);
    if spelled == scheme && value.len() == scheme.len() + 1 + credentials.len() {
        return value.into();
    }
    [spelled.as_bytes(), b" ", credentials].concat().into()
}

/// Returns the scheme's name if its credentials are made for a single request.
pub fn signed_scheme(value: &[u8]) -> Option<&str> {
    let value = value.trim_ascii();
    let (scheme, credentials) = split(value).or_else(|| {
        // `bce-auth-v1/key/time/…` has no space.
        let text = std::str::from_utf8(value).ok()?;
        text.split_once('/').filter(|(scheme, _)| is_signed_name(scheme)).map(|(scheme, _)| (scheme, b"".as_slice()))
    })?;
    let is_bearer = ["basic", "bearer", "dpop", "token", "apikey", "api-key"];
    if is_bearer.iter().any(|plain| plain.eq_ignore_ascii_case(scheme)) {
        return None;
    }
    let is_signed = is_signed_name(scheme) || parameters(credentials).any(|name| is_one_of(name, &SIGNED_PARAMETERS));
    is_signed.then_some(scheme)
}

fn is_signed_name(scheme: &str) -> bool {
    let lower = scheme.to_ascii_lowercase();
    SIGNED.contains(&lower.as_str()) || lower.contains("hmac") || lower.starts_with("aws4-")
}

fn is_one_of(name: &[u8], names: &[&str]) -> bool {
    names.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
}

/// Iterates over the names of `name=value` parameters.
fn parameters(credentials: &[u8]) -> impl Iterator<Item = &[u8]> {
    credentials
        .split(|byte| matches!(byte, b',' | b' ' | b';' | b'&'))
        .filter_map(|parameter| {
            parameter.split(|byte| *byte == b'=').next().filter(|name| name.len() < parameter.len())
        })
        .map(<[u8]>::trim_ascii)
}

/// Returns the credentials of a bearer token that has the form of a JWT.
pub fn bearer_jwt(value: &[u8]) -> Option<&str> {
    let (scheme, credentials) = split(value.trim_ascii())?;
    let token = std::str::from_utf8(credentials).ok()?;
    let is_bearer = ["bearer", "dpop", "jwt"].iter().any(|name| name.eq_ignore_ascii_case(scheme));
    // `{"` in base64url is `eyJ`, the prefix of every JWT header.
    (is_bearer && token.starts_with("ey") && token.split('.').count() == 3).then_some(token)
}

/// Returns the scheme's name, for a message.
pub(super) fn name(value: &[u8]) -> Option<Cow<'_, str>> {
    split(value.trim_ascii()).map(|(scheme, _)| usual(scheme))
}

#[cfg(test)]
mod tests {
    use super::{canonical, signed_scheme};

    #[test]
    fn scheme_in_any_spelling_has_the_bytes_of_the_usual_one() {
        for (given, usual) in [
            ("Bearer a.b", "Bearer a.b"),
            ("bearer a.b", "Bearer a.b"),
            ("BEARER  a.b", "Bearer a.b"),
            ("Bearer \t a.b ", "Bearer a.b"),
            ("basic dQ==", "Basic dQ=="),
            ("token abc", "Token abc"),
            ("apikey 7", "ApiKey 7"),
            ("my-scheme Abc", "My-Scheme Abc"),
            ("My-Scheme Abc", "My-Scheme Abc"),
            // No scheme: the case of a key is significant.
            ("K-1234", "K-1234"),
            ("k-1234", "k-1234"),
            ("Bearer", "Bearer"),
        ] {
            assert_eq!(String::from_utf8_lossy(&canonical(given.as_bytes())), usual, "{given}");
        }
    }

    #[test]
    fn scheme_that_signs_each_request_is_recognized() {
        for value in [
            "AWS4-HMAC-SHA256 Credential=A/20260101/eu/s3/aws4_request, SignedHeaders=host, Signature=ab",
            "aws4-ecdsa-p256-sha256 Credential=A",
            "AWS AKID:c2ln",
            "OAuth realm=\"x\", oauth_consumer_key=\"k\", oauth_signature=\"s\"",
            "OAuth oauth_nonce=\"1\"",
            "Digest username=\"u\", nonce=\"n\", response=\"r\"",
            "Hawk id=\"1\", ts=\"2\", nonce=\"3\", mac=\"4\"",
            "Signature keyId=\"k\",signature=\"s\"",
            "Negotiate YII=",
            "NTLM TlRM",
            "hmac username=\"u\", algorithm=\"hmac-sha256\"",
            "HMAC key:sig",
            "HMAC-SHA256 Credential=x",
            "SharedKey account:sig",
            "TC3-HMAC-SHA256 Credential=x",
            "GOOG4-RSA-SHA256 Credential=x",
            "EG1-HMAC-SHA256 client_token=x",
            "APIAuth-HMAC-SHA256 1:x",
            "bce-auth-v1/key/2026/1800/host/sig",
            "Custom key=1, timestamp=2, sign=3",
        ] {
            assert!(signed_scheme(value.as_bytes()).is_some(), "{value}");
        }
        for value in
            ["Bearer a.b.c", "Basic dXNlcjpzaWc9", "Token token=\"abc\"", "OAuth 00Dx0", "k-1234", "ApiKey sig=1"]
        {
            assert_eq!(signed_scheme(value.as_bytes()), None, "{value}");
        }
    }
}

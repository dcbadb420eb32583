//! Settings: where they come from, and what is said about wrong ones.

use std::process::Command;
use std::time::Duration;

use onceward::limits::Limits;
use onceward::policy::{Guarantee, MissingKey, Policy};
use onceward::principal::{PrincipalPart, PrincipalRule};
use onceward_gateway::config::{Config, Given, Host, Origin, StoreUrl, TrustedProxies, defaults};
use proptest::prelude::*;

const UPSTREAM: &str = "upstream = \"http://127.0.0.1:3000\"\n";

fn of_file(text: &str) -> Result<Config, String> {
    let file = Some(("onceward.toml".to_owned(), text.to_owned()));
    Config::read(&Given { file, ..Given::default() }).map_err(|error| error.to_string())
}

/// A file whose first line is the upstream, so that what follows begins in line 2.
fn with_upstream(text: &str) -> Result<Config, String> {
    of_file(&format!("{UPSTREAM}{text}"))
}

fn of_environment(variables: &[(&str, &str)]) -> Result<Config, String> {
    let environment = variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    let file = Some(("onceward.toml".to_owned(), UPSTREAM.to_owned()));
    Config::read(&Given { environment, file, ..Given::default() }).map_err(|error| error.to_string())
}

#[test]
fn what_is_printed_is_what_holds() {
    let config = with_upstream("").unwrap();
    let (printed, built) = (&config.policy, Policy::default());
    for status in (200..600).map(|status| http::StatusCode::from_u16(status).unwrap()) {
        assert_eq!(printed.release_on.contains(status), built.release_on.contains(status), "{status}");
        assert_eq!(printed.unknown_on.contains(status), built.unknown_on.contains(status), "{status}");
    }
    // The same statuses may be written as other ranges.
    let mut same = built;
    same.release_on = printed.release_on.clone();
    same.unknown_on = printed.unknown_on.clone();
    assert_eq!(printed, &same);
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.listen, "127.0.0.1:8080".parse().unwrap());
    assert_eq!(config.admin.listen, "127.0.0.1:8081".parse().unwrap());
    assert_eq!(config.store, StoreUrl::Embedded { folder: "onceward-data".into() });
    assert_eq!((config.host, config.endpoints.as_str()), (Host::Preserve, "/.idempotency"));
    assert_eq!((config.secret_file, config.admin.token), (None, None));
    assert_eq!((config.drain, config.upstream_idle), (Duration::from_secs(30), Duration::from_secs(1)));
    assert_eq!((config.drain_delay, config.upstream_max_age), (Duration::ZERO, Duration::from_secs(60)));
    assert_eq!(config.trusted_proxies, TrustedProxies::default());
    assert!(
        config.warnings.len() == 1 && config.warnings[0].starts_with("no principal is set for default"),
        "{:?}",
        config.warnings
    );
}

#[test]
fn tombstones_are_kept_shorter_on_redis_and_its_password_is_not_shown() {
    let days = |days: u64| Duration::from_secs(days * 86_400);
    let url = "redis-sentinel://me:geheim@a,b/orders?sentinel-password=geheim&accept=eviction";
    let config = with_upstream(&format!("store = {url:?}\n[[route]]\npath = \"/orders\"")).unwrap();
    assert_eq!((config.policy.tombstone, config.routes[0].1.tombstone), (days(3), days(3)));
    let shown = format!("{:?} {config:?}", config.sources);
    assert!(!shown.contains("geheim") && shown.contains("accept=eviction"), "{shown}");
    let config = with_upstream("store = \"redis://a\"\n[policy]\ntombstone = \"9d\"").unwrap();
    assert_eq!(config.policy.tombstone, days(9));
    assert_eq!(with_upstream("").unwrap().policy.tombstone, days(30));
}

#[test]
fn what_is_printed_is_read_back_unchanged() {
    let printed = Command::new(env!("CARGO_BIN_EXE_onceward")).args(["config", "--print"]).output().unwrap();
    assert!(printed.status.success());
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert_eq!(printed, defaults());
    let without = with_upstream("").unwrap();
    // The comment marks before what has no default are taken away, as its reader would.
    let uncommented: String = printed
        .lines()
        .map(|line| {
            format!("{}\n", line.strip_prefix("# upstream ").map_or(line.into(), |rest| format!("upstream {rest}")))
        })
        .collect();
    let with = of_file(&uncommented).unwrap();
    let all = |config: &Config| {
        (
            config.policy.clone(),
            config.limits.clone(),
            config.upstream.clone(),
            config.store.clone(),
            config.listen,
            config.drain,
        )
    };
    assert_eq!(all(&with), all(&without));
    assert!(with.routes.is_empty());
}

#[test]
fn every_setting_says_what_it_means() {
    for line in defaults().lines().filter(|line| line.contains(" = ")) {
        let meaning = line.trim_start_matches("# ").split_once("# ").map(|(_, meaning)| meaning);
        let is_example = line.starts_with("# path") || line.starts_with("# missing");
        assert!(is_example || meaning.is_some_and(|meaning| meaning.len() > 10), "{line}");
    }
}

#[test]
fn a_flag_wins_over_the_environment_over_the_file_over_the_default() {
    let given = |flag: bool, environment: bool, file: bool| Given {
        flags: if flag { vec![("listen", "--listen", vec!["127.0.0.1:1".into()])] } else { vec![] },
        environment: if environment { vec![("ONCEWARD_LISTEN".into(), "127.0.0.1:2".into())] } else { vec![] },
        file: Some(("f.toml".into(), format!("{UPSTREAM}{}", if file { "listen = \"127.0.0.1:3\"" } else { "" }))),
    };
    for (flag, environment, file, port, origin) in [
        (true, true, true, 1, Origin::Flag("--listen")),
        (false, true, true, 2, Origin::Variable("ONCEWARD_LISTEN".into())),
        (false, false, true, 3, Origin::File { path: "f.toml".into(), line: 2 }),
    ] {
        let config = Config::read(&given(flag, environment, file)).unwrap();
        assert_eq!(config.listen.port(), port);
        let source = config.sources.iter().find(|(setting, ..)| setting == "listen").unwrap();
        assert_eq!(source, &("listen".into(), format!("\"127.0.0.1:{port}\""), origin));
    }
    let config = Config::read(&given(false, false, false)).unwrap();
    assert_eq!(config.listen.port(), 8080);
    assert!(config.sources.iter().all(|(setting, ..)| setting != "listen"));
}

#[test]
fn a_wrong_value_stops_even_where_another_one_counts() {
    let given = Given {
        flags: vec![("listen", "--listen", vec!["127.0.0.1:1".into()])],
        file: Some(("f.toml".into(), format!("{UPSTREAM}listen = \"somewhere\""))),
        ..Given::default()
    };
    let error = Config::read(&given).unwrap_err().to_string();
    assert!(error.starts_with("listen: \"somewhere\" is no address"), "{error}");
    assert!(error.ends_with("(f.toml, line 2)"), "{error}");
}

/// One line each, that begins with the setting, has the mend in it, and ends in the place.
#[test]
#[rustfmt::skip]
fn wrong_settings_are_named_with_mend_and_place() {
    for (text, setting, mend, line) in [
        ("lisen = 1", "lisen", "there are", 2),
        ("[polcy]\nlease = \"15s\"", "polcy", "policy", 2),
        ("[policy]\nleas = \"15s\"", "policy.leas", "lease", 3),
        ("[policy]\nheader = \"X-Key\"", "policy.header", "unknown setting", 3),
        ("[policy]\nauthorize = \"GET /s\"", "policy.authorize", "unknown setting", 3),
        ("[cors]\norigins = \"https://shop.example\"", "cors.origins", "no list", 3),
        ("[cors]\norigins = [\"shop.example\"]", "cors.origins", "\"https://shop.example\"", 3),
        ("[cors]\norigins = [\"https://shop.example/\"]", "cors.origins", "as browsers send them", 3),
        ("[cors]\norigins = [\"https://Shop.example\"]", "cors.origins", "as browsers send them", 3),
        ("[cors]\norigins = [\"https://shop.example:443\"]", "cors.origins", "leave it out", 3),
        ("[cors]\norigins = [\"*\"]", "cors.origins", "no origin", 3),
        ("[keys]\nlifetime = \"0s\"", "keys.lifetime", "\"1s\"", 3),
        ("[keys]\ngeneration = 0", "keys.generation", "between 1", 3),
        ("[policy]\nkeys = \"signed\"", "policy.keys", "\"any\" or \"issued\"", 3),
        ("[policy]\nkeys = \"issued\"\nmissing = \"generate\"", "policy.keys", "missing = \"reject\"", 3),
        ("[policy]\nform_field = \"a b\"", "policy.form_field", "no plain name", 3),
        ("[policy]\nmissing = \"derive\"", "policy.missing", "derive_window = \"10m\"", 3),
        ("[policy]\nmissing = \"derive\"\nderive_window = \"10m\"", "policy.missing", "principal = [\"authorization\"]", 3),
        ("[policy]\nderive_window = \"0s\"", "policy.derive_window", "\"1s\"", 3),
        ("[[route]]\npath = \"/a\"\nmissing = \"derive\"", "route.missing", "derive_window", 4),
        ("[[route]]\npath = \"/a\"\nretantion = \"1h\"", "route.retantion", "retention", 4),
        ("[[route]]\nmissing = \"reject\"", "route", "path = ", 2),
        ("route = 3", "route", "[[route]]", 2),
        ("policy = 3", "policy", "[policy]", 2),
        ("a = = 3", "not TOML", "", 2),
        ("[policy]\nlease = 15", "policy.lease", "\"15s\"", 3),
        ("[policy]\nlease = \"15\"", "policy.lease", "\"15s\"", 3),
        ("[policy]\nlease = \"0s\"", "policy.lease", "\"1s\"", 3),
        ("[policy]\nlease = \"2h\"", "policy.lease", "\"1h\"", 3),
        ("[policy]\nretention = \"0s\"", "policy.retention", "\"1s\"", 3),
        ("[policy]\nretention = \"99999999999999999999d\"", "policy.retention", "no duration", 3),
        ("[policy]\nretention = \"9999999999999d\"", "policy.retention", "no duration", 3),
        ("[policy]\nwait = \"31s\"", "policy.wait", "limits.wait_max", 3),
        ("[policy]\nmissing = \"make\"", "policy.missing", "\"pass\" or \"reject\" or \"generate\"", 3),
        ("[policy]\nguarantee = \"transactional\"", "policy.guarantee", "\"at-most-once\" or \"at-least-once\"", 3),
        ("[policy]\nfingerprint = \"xml\"", "policy.fingerprint", "\"auto\" or \"exact\" or \"form\" or \"json\"", 3),
        ("[policy]\nfingerprint_headers = [\"X Tenant\"]", "policy.fingerprint_headers", "without a colon", 3),
        ("[policy]\nfingerprint_headers = [\"Connection\"]", "policy.fingerprint_headers", "next hop", 3),
        ("[policy]\nfingerprint_ignore = [\"/at\"]", "policy.fingerprint_ignore", "fingerprint = \"json\"", 3),
        ("[policy]\nfingerprint = \"json\"\nfingerprint_only = [\"at\"]", "policy.fingerprint_only", "JSON Pointer", 4),
        (
            "[policy]\nfingerprint = \"json\"\nfingerprint_only = [\"/a\"]\nfingerprint_ignore = [\"/b\"]",
            "policy.fingerprint_only",
            "both set",
            4,
        ),
        ("[policy]\nhosts = \"any\"", "policy.hosts", "\"distinct\" or \"same\"", 3),
        ("[policy]\nkey_headers = [\"X Key\"]", "policy.key_headers", "JSON Pointer", 3),
        ("[policy]\nkey_headers = [\"/a~2\"]", "policy.key_headers", "JSON Pointer", 3),
        ("[policy]\nkey_headers = [\"Cookie\"]", "policy.key_headers", "leave it out", 3),
        ("[policy]\nmethods = [\"GET\"]", "policy.methods", "leave it out", 3),
        ("[policy]\nmethods = [\"post\"]", "policy.methods", "\"POST\"", 3),
        ("[policy]\nmethods = \"POST\"", "policy.methods", "[\"POST\"]", 3),
        ("[policy]\nprincipal = [\"jwt:sub\"]", "policy.principal", "jwks = ", 3),
        ("[policy]\nprincipal = [\"jwt\"]", "policy.principal", "jwt:CLAIM", 3),
        ("[policy]\nprincipal = [\"header:Date\"]", "policy.principal", "stays the same", 3),
        ("[policy]\nscope = [\"routes\"]", "policy.scope", "\"route\"", 3),
        ("[policy]\ncredential_headers = [\"x api\"]", "policy.credential_headers", "\"x-api-key\"", 3),
        ("[policy]\nignore_cookies = \"yes\"", "policy.ignore_cookies", "write true or false", 3),
        ("[policy]\nauthorize_replays = \"POST /session\"", "policy.authorize_replays", "GET or HEAD", 3),
        ("[policy]\nauthorize_replays = \"/session\"", "policy.authorize_replays", "\"GET /session\"", 3),
        ("[policy]\nkeys_per_minute = \"many\"", "policy.keys_per_minute", "no number", 3),
        ("[jwt]\njwks = \"https://u:p@a/jwks\"", "jwt.jwks", "user or password", 3),
        ("[jwt]\ntoken_from = \"bearer\"", "jwt.token_from", "\"authorization\"", 3),
        ("[policy]\nprincipal = [true]", "policy.principal", "boolean", 3),
        ("[policy]\nrelease_on = [401, 502]", "policy.release_on", "502 is in release_on and in unknown_on", 3),
        ("[policy]\nunknown_on = [\"425-430\"]", "policy.unknown_on", "425", 3),
        ("[policy]\nrelease_on = [503]\nunknown_on = [503]", "policy.unknown_on", "503 is in release_on and in", 4),
        ("[policy]\nrelease_on = [\"503+a b\"]", "policy.release_on", "503+retry-after", 3),
        ("[policy]\nreleased_when = \"errors\"", "policy.released_when", "no JSON Pointer", 3),
        ("[policy]\nforward_key = \"no\"", "policy.forward_key", "neither true nor false", 3),
        ("[policy]\nunknown_on = [\"527-520\"]", "policy.unknown_on", "lower status first", 3),
        ("[policy]\nunknown_on = [99]", "policy.unknown_on", "200 to 599", 3),
        ("[[route]]\npath = \"/a\"\nunknown_on = [429]", "route.unknown_on", "429", 4),
        ("[[route]]\npath = \"orders\"", "route.path", "slash", 3),
        ("[[route]]\npath = \"/users/:id\"", "route.path", "write \"/users/{id}\"", 3),
        ("[[route]]\npath = \"/orders/*\"", "route.path", "write \"/orders/{*rest}\"", 3),
        ("[[route]]\npath = \"/**\"", "route.path", "write \"/{*rest}\"", 3),
        ("[[route]]\npath = \"/users/<int:id>\"", "route.path", "write \"/users/{id}\"", 3),
        ("[[route]]\npath = \"/users/[0-9]+\"", "route.path", "write \"/users/{id}\"", 3),
        ("[[route]]\npath = \"/orders?x=1\"", "route.path", "write \"/orders\"", 3),
        ("[[route]]\npath = \"/orders\"\n[[route]]\npath = \"/Orders/\"", "route.path", "one pattern", 5),
        ("[[route]]\npath = \"/a/{x}\"\n[[route]]\npath = \"//A/{y}\"", "route.path", "merge", 5),
        ("trusted_proxies = [\"proxy\"]", "trusted_proxies", "10.0.0.0/8", 2),
        ("trusted_proxies = [\"10.0.0.1/8\"]", "trusted_proxies", "\"10.0.0.0/8\"", 2),
        ("drain_delay = \"1m\"", "drain_delay", "drain", 2),
        ("upstream_max_age = \"1\"", "upstream_max_age", "unit", 2),
        ("[limits]\nupstream_max_age = 60", "limits.upstream_max_age", "60s", 3),
        ("[[route]]\npath = \"/a/{\"", "route.path", "/users/{id}", 3),
        ("[[route]]\npath = \"/{*rest}/a\"", "route.path", "/files/{*rest}", 3),
        ("[[route]]\npath = \"/a\"\n[[route]]\npath = \"/a\"", "route.path", "twice", 5),
        ("[[route]]\npath = \"/a/{x}\"\n[[route]]\npath = \"/a/{y}\"", "route.path", "merge", 5),
        ("[limits]\nrequest_body = \"1 Mb\"", "limits.request_body", "\"1MiB\"", 3),
        ("[limits]\nrequest_body = 0", "limits.request_body", "between 1 and", 3),
        ("[limits]\nresponse_body = \"99999999999GiB\"", "limits.response_body", "no size", 3),
        ("[limits]\nwaiters_per_key = -1", "limits.waiters_per_key", "between 0", 3),
        ("[limits]\nwaiters_per_key = \"many\"", "limits.waiters_per_key", "digits", 3),
        ("[limits]\ncapture_timeout = \"59s\"", "limits.capture_timeout", "raise capture_timeout", 3),
        ("[limits]\nupstream_timeout = \"1h\"", "limits.upstream_timeout", "raise capture_timeout", 3),
        ("[limits]\nunkeyed_timeout = \"0s\"", "limits.unkeyed_timeout", "between \"1ms\"", 3),
        ("[limits]\nheader_lines = 1", "limits.header_lines", "between 16", 3),
        ("[limits]\nheader_size = \"1KiB\"", "limits.header_size", "between 8192", 3),
        ("[[route]]\npath = \"/a\"\nupstream_timeout = \"1h\"", "route.upstream_timeout", "raise capture_timeout", 4),
        ("[[route]]\npath = \"/a\"\nrequest_body = 0", "route.request_body", "between 1 and", 4),
        ("[[route]]\npath = \"/a\"\nstream = \"store\"", "route.stream", "\"auto\" or \"pass\" or \"keep\"", 4),
        ("[policy]\nclose_delimited = true", "policy.close_delimited", "quotes", 3),
        ("[limits]\nwait_max = \"1.5s\"", "limits.wait_max", "no duration", 3),
        ("listen = \"8080\"", "listen", "127.0.0.1:8080", 2),
        ("listen = \"127.0.0.1:8081\"", "listen", "another port", 2),
        ("listen = \"0.0.0.0:3000\"", "listen", "call itself", 2),
        ("host = \"client\"", "host", "\"preserve\" or \"upstream\"", 2),
        ("namespace = \"\"", "namespace", "1 to 255", 2),
        ("endpoints = \"/\"", "endpoints", "/.idempotency", 2),
        ("endpoints = \"/x/{a}\"", "endpoints", "/.idempotency", 2),
        ("endpoints = \"/.onceward\"", "endpoints", "never served", 2),
        ("drain = \"2h\"", "drain", "\"1h\"", 2),
        ("store = \"mysql://u:secret@h/db\"", "store", "embedded:FOLDER", 2),
        ("store = \"memory:max=1\"", "store", "memory:?max=256MiB", 2),
        ("store = \"memory:?max=lots\"", "store", "no size", 2),
        ("store = \"redis://:secret@h,i\"", "store", "redis-sentinel://", 2),
        ("store = \"redis://:secret@h?accept=all\"", "store", "accept=eviction", 2),
        ("store = \"embedded:\"", "store", "names no folder", 2),
        ("store = \"data\"", "store", "embedded:FOLDER", 2),
        ("[admin]\nlisten = \"0.0.0.0:8081\"", "admin.token", "ONCEWARD_ADMIN_TOKEN", 3),
        ("[admin]\ntoken = \"two words\"", "admin.token", "visible ASCII", 3),
        ("\"a\\nb\" = 1", "a\\nb", "unknown", 2),
    ] {
        let error = with_upstream(text).map(|_| text).unwrap_err();
        assert!(error.starts_with(&format!("{setting}: ")), "{text:?}: {error}");
        assert!(error.contains(mend), "{text:?}: {error}");
        assert!(error.ends_with(&format!("(onceward.toml, line {line})")), "{text:?}: {error}");
        assert!(!error.contains('\n') && !error.contains("secret@"), "{text:?}: {error}");
    }
}

#[test]
#[rustfmt::skip]
fn a_wrong_upstream_is_named_with_its_mend() {
    for (url, mend) in [
        ("localhost:3000", "http://"),
        ("ftp://h", "http://"),
        ("http://", "http://HOST:PORT"),
        ("http://h:0", "http://HOST:PORT"),
        ("http://h:99999", "http://HOST:PORT"),
        ("http://h/path", "requests keep their own"),
        ("http://h?q", "requests keep their own"),
        ("http://user:secret@h", "leave that out"),
        ("not a url", "http://HOST:PORT"),
    ] {
        let error = of_file(&format!("upstream = {url:?}")).unwrap_err();
        assert!(error.starts_with("upstream: ") && error.contains(mend), "{url}: {error}");
        assert!(!error.contains("secret"), "{error}");
    }
    let error = of_file("").unwrap_err();
    assert!(error.contains("required") && error.contains("--upstream"), "{error}");
}

#[test]
fn upstreams_are_understood() {
    for (url, tls, host, port) in [
        ("http://127.0.0.1:3000", false, "127.0.0.1", 3000),
        ("http://orders", false, "orders", 80),
        ("https://orders.example/", true, "orders.example", 443),
        ("https://[::1]:8443", true, "::1", 8443),
    ] {
        let upstream = of_file(&format!("upstream = {url:?}")).unwrap().upstream;
        assert_eq!((upstream.tls, upstream.host.as_str(), upstream.port), (tls, host, port));
        assert_eq!(upstream.to_string(), url.trim_end_matches('/'));
    }
}

#[test]
fn the_environment_speaks_of_every_setting() {
    let config = of_environment(&[
        ("ONCEWARD_ADMIN_TOKEN", "s3cret"),
        ("ONCEWARD_ADMIN_LISTEN", "0.0.0.0:8081"),
        ("ONCEWARD_POLICY_LEASE", "1s"),
        ("ONCEWARD_POLICY_METHODS", "POST, PUT"),
        ("ONCEWARD_POLICY_PRINCIPAL", "header:X-User,cookie:sid"),
        ("ONCEWARD_POLICY_UNKNOWN_ON", "502,520-527"),
        ("ONCEWARD_LIMITS_WAITERS_PER_KEY", "3"),
        ("ONCEWARD_LIMITS_REQUEST_BODY", "4096"),
        ("ONCEWARD_STORE", "memory:?max=64MiB"),
        ("ONCEWARD_PORT", "tcp://10.0.0.1:80"),
        ("ONCEWARD_LOG", "debug"),
        ("PATH", "/bin"),
    ])
    .unwrap();
    assert_eq!(config.admin.token.as_deref(), Some("s3cret"));
    assert_eq!(config.policy.lease, Duration::from_secs(1));
    assert_eq!(config.policy.methods, ["POST", "PUT"]);
    let parts = vec![PrincipalPart::Header("x-user".parse().unwrap()), PrincipalPart::Cookie("sid".into())];
    assert_eq!(config.policy.principal, PrincipalRule::Parts(parts));
    assert_eq!(config.policy.unknown_on.to_string(), "502, 520-527");
    assert_eq!((config.limits.waiters_per_key, config.limits.request_body), (3, 4096));
    assert_eq!(config.store, StoreUrl::Memory { bytes_max: 64 << 20 });
    // Kubernetes makes such a one for a service of that name: said, and no reason to stop.
    assert!(config.warnings.iter().any(|warning| warning.contains("ONCEWARD_PORT")), "{:?}", config.warnings);
    assert!(config.warnings.iter().all(|warning| !warning.contains("ONCEWARD_LOG")), "{:?}", config.warnings);
    assert!(!format!("{config:?}").contains("s3cret"), "a token was shown");

    let error = of_environment(&[("ONCEWARD_POLICY_LEASE", "never")]).unwrap_err();
    assert!(error.ends_with("(environment variable ONCEWARD_POLICY_LEASE)"), "{error}");
}

#[test]
fn no_principal_is_not_the_same_as_an_unset_one() {
    assert_eq!(with_upstream("").unwrap().policy.principal, PrincipalRule::Unset);
    assert_eq!(with_upstream("[policy]\nprincipal = []").unwrap().policy.principal, PrincipalRule::Parts(vec![]));
    assert_eq!(
        of_environment(&[("ONCEWARD_POLICY_PRINCIPAL", "[]")]).unwrap().policy.principal,
        PrincipalRule::Parts(vec![])
    );
    // A variable that nobody filled says neither that all callers are one nor that nothing is protected.
    for (name, setting) in [("ONCEWARD_POLICY_PRINCIPAL", "principal"), ("ONCEWARD_POLICY_METHODS", "methods")] {
        for empty in ["", " "] {
            let why = of_environment(&[(name, empty)]).unwrap_err().to_string();
            assert!(why.contains(name) && why.contains("is empty") && why.contains("[]"), "{setting}: {why}");
        }
    }
}

#[test]
fn a_route_says_otherwise_than_the_policy() {
    let config = with_upstream(
        "[policy]\nlease = \"5s\"\n[[route]]\npath = \"/orders/{id}\"\nmissing = \"reject\"\nguarantee = \"at-least-once\"\n[[route]]\npath = \"/free\"\nmethods = []",
    )
    .unwrap();
    let (path, policy) = &config.routes[0];
    assert_eq!((path.as_str(), &*policy.route), ("/orders/{id}", "/orders/{id}"));
    assert_eq!((policy.missing, policy.guarantee), (MissingKey::Reject, Guarantee::AtLeastOnce));
    assert_eq!(policy.lease, Duration::from_secs(5));
    assert_eq!((config.policy.missing, &*config.policy.route), (MissingKey::Pass, "default"));
    assert!(config.routes[1].1.methods.is_empty());
    let origin = Origin::File { path: "onceward.toml".into(), line: 6 };
    assert!(config.sources.contains(&("route.missing".into(), "\"reject\"".into(), origin)));
}

#[test]
fn a_store_that_may_outlast_leases_is_warned_of() {
    let config = with_upstream("[policy]\nlease = \"1s\"").unwrap();
    assert!(config.warnings.iter().any(|warning| warning.contains("store_timeout")), "{:?}", config.warnings);
}

#[test]
fn flags_and_files_that_are_wrong_end_in_one_line_and_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_onceward")).args(args).current_dir(&folder).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = run(&["serve", "--upstream", "nowhere"]);
    assert_eq!(code, Some(2), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.ends_with("(flag --upstream)\n"), "{said}");

    let (code, said) = run(&["serve", "--upstream", "http://127.0.0.1:9", "--config", "absent.toml"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.lines().count() == 1 && said.contains("absent.toml"), "{said}");

    // `./onceward.toml` is read where it is there.
    std::fs::write(folder.path().join("onceward.toml"), "\n\nlissen = 1\n").unwrap();
    let (code, said) = run(&["serve"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("lissen: ") && said.ends_with("line 3)\n"), "{said}");

    assert_eq!(run(&["serve", "--no-such-flag"]).0, Some(2));
    assert_eq!(run(&["config"]).0, Some(2));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn durations_are_read_as_they_are_meant(number in 1_u64..3600, unit in 0_usize..3) {
        let (unit, ms) = [("ms", 1), ("s", 1000), ("m", 60_000)][unit];
        let config = with_upstream(&format!("[limits]\nwait_max = \"1h\"\n[policy]\nwait = \"{number}{unit}\""));
        match config {
            Ok(config) => prop_assert_eq!(config.policy.wait, Duration::from_millis(number * ms)),
            Err(error) => prop_assert!(number * ms > 3_600_000, "{}", error),
        }
    }

    #[test]
    fn sizes_are_read_as_they_are_meant(number in 1_usize..1024, unit in 0_usize..4) {
        let (unit, bytes) = [("", 1), ("KiB", 1024), ("kB", 1000), ("MiB", 1 << 20)][unit];
        let config = with_upstream(&format!("[limits]\nrequest_body = \"{number}{unit}\"")).unwrap();
        prop_assert_eq!(config.limits.request_body, number * bytes);
    }

    /// Whatever stands in a file, a variable or a flag, the answer is a configuration or one line.
    #[test]
    fn no_text_breaks_the_parsers(text in "\\PC{0,40}", line in "[ -~\\n]{0,60}") {
        let settings = ["UPSTREAM", "LISTEN", "STORE", "NAMESPACE", "HOST", "ENDPOINTS", "DRAIN", "ADMIN_TOKEN", "LIMITS_REQUEST_BODY", "LIMITS_WAITERS_PER_KEY", "POLICY_METHODS", "POLICY_PRINCIPAL", "POLICY_UNKNOWN_ON", "POLICY_LEASE"];
        for setting in settings {
            if let Err(error) = of_environment(&[(&format!("ONCEWARD_{setting}"), &text)]) {
                prop_assert_eq!(error.lines().count(), 1, "{}", error);
            }
        }
        if let Err(error) = with_upstream(&line) {
            prop_assert_eq!(error.lines().count(), 1, "{}", error);
        }
    }
}

#[test]
fn forward_key_is_read_at_the_top_in_the_policy_and_in_a_route() {
    let forwards = |text: &str| {
        let config = with_upstream(text).unwrap();
        (config.policy.forward_key, config.routes.first().map(|(_, policy)| policy.forward_key))
    };
    assert_eq!(forwards(""), (true, None));
    assert_eq!(forwards("forward_key = false\n[[route]]\npath = \"/a\""), (false, Some(false)));
    assert_eq!(forwards("[policy]\nforward_key = false"), (false, None));
    assert_eq!(forwards("[[route]]\npath = \"/a\"\nforward_key = false"), (true, Some(false)));
}

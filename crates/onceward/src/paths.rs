//! Paths for route lookup: one normal form for all spellings that some server takes for the same
//! path.
//!
//! A route that requires a key must match each spelling that the service behind it executes:
//! Express ignores case and a last slash, Flask merges slashes, nginx decodes `%2F`, Tomcat drops
//! `;…`. Only the lookup uses the normal form; the bytes that the service gets stay as received.
//!
//! ```
//! use onceward::paths;
//!
//! for path in ["/orders", "/ORDERS/", "//orders", "/x/../orders", "/%6frders", "/orders%2F", "/orders;x=1"] {
//!     assert_eq!(paths::normal(path), "/orders", "{path}");
//! }
//! assert_eq!(paths::pattern("/Orders/{id}/").unwrap(), "/orders/{id}");
//! assert!(paths::pattern("/orders/:id").unwrap_err().contains("\"/orders/{id}\""));
//! ```

use std::borrow::Cow;

/// Returns the normal form of a path: escapes decoded, slashes merged, dot segments, `;…` and the
/// last slash removed, and case folded. A backslash counts as a slash.
pub fn normal(path: &str) -> Cow<'_, str> {
    if is_normal(path) {
        return path.into();
    }
    let decoded = decode(path).replace('\\', "/");
    let mut segments: Vec<&str> = Vec::new();
    for segment in decoded.split('/') {
        match segment.split(';').next().unwrap_or_default() {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    let mut normal = String::with_capacity(decoded.len());
    for segment in segments {
        normal.push('/');
        normal.push_str(&segment.to_lowercase());
    }
    if normal.is_empty() {
        normal.push('/');
    }
    normal.into()
}

/// Returns true if the path is in normal form already, as most are.
fn is_normal(path: &str) -> bool {
    let bytes = path.as_bytes();
    let is_plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"/-_~".contains(byte);
    bytes.iter().all(|byte| is_plain(byte) || *byte == b'.')
        && path.starts_with('/')
        && (path.len() == 1 || !path.ends_with('/'))
        && !path.contains("//")
        && !path.contains("/.")
}

/// Decodes escapes once. Invalid UTF-8 is replaced, since no pattern can name it.
fn decode(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let digit = |at: usize| bytes.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        let escape = match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => u8::try_from(high * 16 + low).ok(),
            _ => None,
        };
        decoded.push(escape.unwrap_or(*byte));
        at += if escape.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Returns a pattern in the same normal form as [`normal`] gives a path: `/orders`, `/users/{id}`,
/// `/files/{*rest}`.
///
/// # Errors
///
/// The cause and the fix. Patterns of other routers would match nothing here, and are refused.
pub fn pattern(pattern: &str) -> Result<String, String> {
    if !pattern.starts_with('/') {
        return Err(format!("{pattern:?} does not begin with a slash; write \"/orders\", for example"));
    }
    let segments = split(pattern);
    let mut fixed = Vec::with_capacity(segments.len());
    let mut fault = None;
    for segment in &segments {
        match foreign(segment) {
            Some((what, fix)) => {
                fault.get_or_insert(what);
                fixed.push(fix);
            }
            None => fixed.push((*segment).to_owned()),
        }
    }
    if let Some(what) = fault {
        // Segments after a rest parameter are part of it.
        if let Some(at) = fixed.iter().position(|segment| segment == "{*rest}") {
            fixed.truncate(at + 1);
        }
        return Err(format!("{pattern:?} {what}; write {:?}", fixed.join("/")));
    }
    let mut normal_segments: Vec<String> = Vec::new();
    for segment in segments {
        if segment.contains('{') && !segment.contains("{{") {
            normal_segments.push(fold_around_names(segment));
            continue;
        }
        // Doubled braces are literal ones, and stay doubled.
        let plain = decode(&segment.replace("{{", "{").replace("}}", "}"));
        for part in plain.replace('\\', "/").split('/') {
            match part {
                "" | "." => {}
                ".." => drop(normal_segments.pop()),
                part => normal_segments.push(part.to_lowercase().replace('{', "{{").replace('}', "}}")),
            }
        }
    }
    Ok(format!("/{}", normal_segments.join("/")))
}

/// Folds the case of a segment, except for the names of its parameters, which are not part of a
/// path.
fn fold_around_names(segment: &str) -> String {
    let mut is_name = false;
    let mut folded = String::with_capacity(segment.len());
    for c in segment.chars() {
        is_name = (is_name || c == '{') && c != '}';
        match is_name {
            true => folded.push(c),
            false => folded.extend(c.to_lowercase()),
        }
    }
    folded
}

/// Splits a pattern at its slashes, except within braces, which may contain a regular expression.
fn split(pattern: &str) -> Vec<&str> {
    let (mut segments, mut depth, mut from) = (Vec::new(), 0_usize, 0);
    for (at, c) in pattern.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            '/' if depth == 0 => {
                segments.push(&pattern[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    segments.push(&pattern[from..]);
    segments
}

/// Returns the meaning of a segment in another router or in a regular expression, and its spelling
/// here.
fn foreign(segment: &str) -> Option<(&'static str, String)> {
    const REST: &str = "{*rest}";
    let is_name = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    // The first run of letters and digits that could be a parameter's name.
    let named = |text: &str| {
        let from = text.trim_start_matches(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let end = from.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(from.len());
        match &from[..end] {
            "" => "id".to_owned(),
            name => name.to_owned(),
        }
    };
    if let Some(inner) = segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'))
        && !inner.starts_with('{')
    {
        let is_ours = is_name(inner.strip_prefix('*').unwrap_or(inner));
        let is_rest = inner.starts_with(['*', '+']) || inner.ends_with("...") || inner.contains('*');
        return match (is_ours, is_rest) {
            (true, _) => None,
            (false, true) => Some(("has a rest as another router writes it", REST.to_owned())),
            (false, false) => Some(("has a parameter with more than a name", format!("{{{}}}", named(inner)))),
        };
    }
    if let Some((path, _)) = segment.split_once('?') {
        // `:id?` and `(/)?` are optional parts, `?x=1` is a query.
        return Some(match path.starts_with(':') || path.ends_with([')', '}', ']']) {
            true => ("has an optional part, which no pattern has: two routes say it", format!("{{{}}}", named(path))),
            false => ("has a query, which is no part of a path", path.to_owned()),
        });
    }
    if let Some((path, _)) = segment.split_once('#') {
        return Some(("has a fragment, which no server gets", path.to_owned()));
    }
    if segment.starts_with(':') && segment.len() > 1 {
        let what = "has a parameter as another router writes it";
        return Some(if segment.contains('*') {
            (what, REST.to_owned())
        } else {
            (what, format!("{{{}}}", named(segment)))
        });
    }
    if segment.contains('<') || segment.contains('>') {
        let is_rest = segment.contains("path:") || segment.contains("..");
        let name = segment.rsplit(':').next().unwrap_or(segment);
        let fix = if is_rest { REST.to_owned() } else { format!("{{{}}}", named(name)) };
        return Some(("has a parameter as another router writes it", fix));
    }
    if segment.contains('[') && segment.contains("...") {
        return Some(("has a rest as another router writes it", REST.to_owned()));
    }
    if segment.starts_with('[')
        && segment.strip_suffix(']').is_some_and(|inner| is_name(&inner[1..]) && !inner.contains('-'))
    {
        return Some(("has a parameter as another router writes it", format!("{{{}}}", named(segment))));
    }
    if segment.contains(".*") || segment.contains(".+") {
        return Some(("is a regular expression, and a pattern is none", REST.to_owned()));
    }
    if segment.contains('*') && !segment.contains('{') {
        return Some(("has a star, which matches nothing by itself", REST.to_owned()));
    }
    if segment.contains(['[', ']', '(', ')', '|', '^', '\\', '"', '`']) && is_expression(segment) {
        return Some(("is a regular expression, and a pattern is none", "{id}".to_owned()));
    }
    if let Some(path) = segment.strip_suffix('$') {
        return Some(("is a regular expression, and a pattern matches the whole path anyway", path.to_owned()));
    }
    if let Some((path, _)) = segment.split_once(';') {
        return Some(("has a `;…`, which is left out of what is matched", path.to_owned()));
    }
    if segment.contains(|c: char| c.is_whitespace() || c.is_control()) {
        let escaped: String =
            segment.chars().map(|c| if c == ' ' { "%20".to_owned() } else { c.to_string() }).collect();
        return Some(("has white space", escaped.split_whitespace().collect()));
    }
    None
}

/// Returns true if a segment contains characters of an expression, which no path has. Parentheses
/// alone are ordinary characters of paths.
fn is_expression(segment: &str) -> bool {
    segment.contains(['[', ']', '|', '^', '\\', '"', '`'])
}

#[cfg(test)]
mod tests {
    use super::{normal, pattern};

    #[test]
    fn normal_form_of_equivalent_spellings_is_equal() {
        for path in [
            "/orders/7",
            "/orders/7/",
            "/ORDERS/7",
            "//orders//7//",
            "/./orders/./7",
            "/x/../orders/7",
            "/../orders/7",
            "/%2e/orders/7",
            "/x/%2E%2e/orders/7",
            "/x/..;a=b/orders/7",
            "/orders%2F7",
            "/orders%2f7%2F",
            "/orders\\7",
            "/orders%5C7",
            "/orders;x=1/7;y",
            "/orders/7%3Bx",
            "/%6frders/%37",
        ] {
            assert_eq!(normal(path), "/orders/7", "{path}");
        }
    }

    #[test]
    fn normal_form_of_other_paths_differs() {
        for (path, normal_form) in [
            ("/", "/"),
            ("", "/"),
            ("/..", "/"),
            ("/a%", "/a%"),
            ("/a%6", "/a%6"),
            ("/%+6", "/%+6"),
            ("/%zz%6F", "/%zzo"),
            // Decoded once: a server that decodes them twice has another fault.
            ("/%256frders", "/%6frders"),
            ("/a.b/.well-known", "/a.b/.well-known"),
            ("/a..b/...", "/a..b/..."),
            ("/caf%C3%89", "/café"),
            ("/%ff", "/\u{fffd}"),
            ("*", "/*"),
        ] {
            assert_eq!(normal(path), normal_form, "{path}");
        }
    }

    #[test]
    fn normal_form_is_stable_where_no_escape_is_left() {
        for path in ["/orders/7", "/a-b_c~d.e", "/ORDERS//x/", "/é/É"] {
            let once = normal(path).into_owned();
            assert_eq!(normal(&once), once, "{path}");
        }
    }

    #[test]
    fn pattern_of_this_router_is_brought_into_normal_form() {
        for (written, normal_form) in [
            ("/", "/"),
            ("/orders", "/orders"),
            ("/Orders/", "/orders"),
            ("//a//./b/../c", "/a/c"),
            ("/%6Frders%2fnew", "/orders/new"),
            ("/users/{userId}/Items", "/users/{userId}/items"),
            ("/files/{*rest}", "/files/{*rest}"),
            ("/caf%C3%A9", "/café"),
            ("/{{x}}", "/{{x}}"),
            ("/$metadata", "/$metadata"),
            ("/odata/Orders(1)", "/odata/orders(1)"),
            ("/v1/orders:batch", "/v1/orders:batch"),
            ("/a+b,c=d!e'f@g&h", "/a+b,c=d!e'f@g&h"),
        ] {
            assert_eq!(pattern(written).as_deref(), Ok(normal_form), "{written}");
        }
    }

    #[test]
    fn pattern_of_another_router_is_refused_with_the_fix() {
        for (written, fix) in [
            ("/users/:id", "/users/{id}"),
            ("/users/:id/items/:item", "/users/{id}/items/{item}"),
            ("/users/:id(\\d+)", "/users/{id}"),
            ("/users/:id?", "/users/{id}"),
            ("/files/:rest*", "/files/{*rest}"),
            ("/orders/*", "/orders/{*rest}"),
            ("/orders*", "/{*rest}"),
            ("/orders/**", "/orders/{*rest}"),
            ("/**", "/{*rest}"),
            ("/*", "/{*rest}"),
            ("/*path/more", "/{*rest}"),
            ("/users/<id>", "/users/{id}"),
            ("/users/<int:id>", "/users/{id}"),
            ("/files/<path:rest>", "/files/{*rest}"),
            ("/files/<rest..>", "/files/{*rest}"),
            ("/users/[id]", "/users/{id}"),
            ("/files/[...slug]", "/files/{*rest}"),
            ("/users/{id:[0-9]+}", "/users/{id}"),
            ("/users/{id:int}", "/users/{id}"),
            ("/users/{id?}", "/users/{id}"),
            ("/files/{rest...}", "/files/{*rest}"),
            ("/files/{**rest}", "/files/{*rest}"),
            ("/files/{+rest}", "/files/{*rest}"),
            ("/v1/{name=shelves/*}", "/v1/{*rest}"),
            ("/users/[0-9]+", "/users/{id}"),
            ("/users/(\\d+)", "/users/{id}"),
            ("/users/(a|b)", "/users/{id}"),
            ("/files/.*", "/files/{*rest}"),
            ("/files/(.+)", "/files/{*rest}"),
            ("/orders$", "/orders"),
            ("/orders?x=1", "/orders"),
            ("/orders#x", "/orders"),
            ("/orders;x=1", "/orders"),
            ("/orders ", "/orders%20"),
        ] {
            let refused = pattern(written).expect_err(written);
            assert!(refused.ends_with(&format!("write {fix:?}")), "{written}: {refused}");
            assert!(pattern(fix).is_ok(), "{fix}");
        }
    }
}

//! As much of Rust's syntax as the promises need: what is code, and which paths it names.

/// `source` with the contents of comments, strings and characters blanked, each line in its place.
///
/// A doc comment may name what the code may not, and a test may hold what it looks for.
pub(crate) fn code(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let (keep, length) = if rest.starts_with(b"//") {
            (0, rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()))
        } else if rest.starts_with(b"/*") {
            (0, block_comment(rest))
        } else if let Some(length) = raw_string(rest).filter(|_| at == 0 || !is_word(bytes[at - 1])) {
            (0, length)
        } else if rest[0] == b'"' {
            (1, string(rest, b'"'))
        } else if let Some(length) = character(rest) {
            (1, length)
        } else {
            at += 1;
            continue;
        };
        for byte in &mut out[at + keep..at + length - keep] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at += length;
    }
    String::from_utf8(out).expect("whole characters were blanked")
}

/// [`code`] without what only tests see: items under `#[cfg(test)]`.
pub(crate) fn shipped(source: &str) -> String {
    const TEST: &str = "#[cfg(test)]";
    let mut code = code(source);
    while let Some(start) = code.find(TEST) {
        let after = start + TEST.len();
        let end = match code[after..].find(['{', ';']) {
            Some(open) if code[after + open..].starts_with('{') => after + open + block(&code[after + open..]),
            Some(semicolon) => after + semicolon + 1,
            None => code.len(),
        };
        let blank: String = code[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        code.replace_range(start..end, &blank);
    }
    code
}

/// Where `needle` stands in `code`, not as the end of a longer word, as line numbers from 1.
pub(crate) fn lines_with(code: &str, needle: &str) -> Vec<usize> {
    let mut lines = Vec::new();
    for (at, _) in code.match_indices(needle) {
        if at == 0 || !is_word(code.as_bytes()[at - 1]) || !is_word(needle.as_bytes()[0]) {
            lines.push(line_of(code, at));
        }
    }
    lines
}

/// The paths inside the crate that `code` names, groups spelt out, each with its line.
///
/// `module` is the file's own path in the crate (`["store", "memory"]`), to know what `super` is.
pub(crate) fn paths(code: &str, module: &[&str]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("::") {
        let head = code[..at].trim_end();
        let start = head.rfind(|c: char| !c.is_alphanumeric() && c != '_').map_or(0, |before| before + 1);
        let mut base: Vec<String> = match &head[start..] {
            "crate" => Vec::new(),
            "self" => module.iter().map(ToString::to_string).collect(),
            // In `super::super::x` only the first one begins a path; the others are walked below.
            "super" if !head[..start].trim_end().ends_with("::") => {
                module[..module.len().saturating_sub(1)].iter().map(ToString::to_string).collect()
            }
            _ => continue,
        };
        let mut tail = code[at + 2..].trim_start();
        while let Some(up) = tail.strip_prefix("super::") {
            base.pop();
            tail = up.trim_start();
        }
        let line = line_of(code, at);
        base.insert(0, "crate".into());
        branches(tail, &base.join("::"), &mut |path| found.push((line, path)));
    }
    found
}

/// The length of the block in braces that `code` begins with.
pub(crate) fn block(code: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return at + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

pub(crate) fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// Walks `a::{b, c::d}` and returns what stands behind it.
fn branches<'a>(tail: &'a str, base: &str, found: &mut dyn FnMut(String)) -> &'a str {
    let tail = tail.trim_start();
    if let Some(mut group) = tail.strip_prefix('{') {
        loop {
            group = group.trim_start();
            match group.as_bytes().first() {
                None => return group,
                Some(b'}') => return &group[1..],
                Some(b',') => group = &group[1..],
                Some(_) => {
                    let behind = branches(group, base, found);
                    // What is not understood is stepped over, so that the walk ends.
                    group = if behind.len() == group.len() { &group[first_char(group)..] } else { behind };
                }
            }
        }
    }
    let length = tail.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '*').unwrap_or(tail.len());
    if length == 0 {
        return tail;
    }
    let (word, behind) = tail.split_at(length);
    let path = if word == "self" { base.to_owned() } else { format!("{base}::{word}") };
    if let Some(deeper) = behind.trim_start().strip_prefix("::") {
        return branches(deeper, &path, found);
    }
    found(path);
    match behind.trim_start().strip_prefix("as ") {
        Some(alias) => alias.trim_start().trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'),
        None => behind,
    }
}

fn first_char(text: &str) -> usize {
    text.chars().next().map_or(0, char::len_utf8)
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// `r"…"`, `r#"…"#`, `br"…"`, and the like.
fn raw_string(rest: &[u8]) -> Option<usize> {
    let prefix = rest.iter().take_while(|byte| matches!(byte, b'b' | b'c')).count().min(1);
    let hashes = rest[prefix..].strip_prefix(b"r")?.iter().take_while(|byte| **byte == b'#').count();
    let open = prefix + 1 + hashes;
    if rest.get(open) != Some(&b'"') {
        return None;
    }
    let close = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
    let body = &rest[open + 1..];
    let end = body.windows(close.len()).position(|window| window == close)?;
    Some(open + 1 + end + close.len())
}

fn string(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// `'x'` and `'\n'`, but not the lifetime in `&'a str`.
fn character(rest: &[u8]) -> Option<usize> {
    if rest[0] != b'\'' {
        return None;
    }
    if rest.get(1) == Some(&b'\\') {
        return Some(string(rest, b'\''));
    }
    let text = std::str::from_utf8(&rest[1..rest.len().min(6)])
        .or_else(|error| std::str::from_utf8(&rest[1..1 + error.valid_up_to()]));
    let length = 1 + first_char(text.ok()?);
    (rest.get(length) == Some(&b'\'')).then_some(length + 1)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

#[test]
fn comments_and_strings_are_not_code() {
    let source = r##"
fn a<'x>(b: &'x str) -> char { // tokio
    let c = "tokio \" tokio"; /* tokio /* tokio */ tokio */
    let d = r#"tokio " tokio"#; let e = br"tokio\";
    let f = ['"', '\'', 'ä', '\u{1F600}', b'"' as char]; tokio(f)
}
"##;
    let code = code(source);
    assert_eq!(lines_with(&code, "tokio"), [5], "{code}");
    assert_eq!(code.lines().count(), source.lines().count());
}

#[test]
fn what_only_tests_see_is_not_shipped() {
    let source = "fn a() {}\n#[cfg(test)]\nmod tests { fn b() { {} } }\n#[cfg(test)]\nmod c;\nfn d() {}\n";
    let shipped = shipped(source);
    assert_eq!(shipped.split_whitespace().collect::<Vec<_>>().join(" "), "fn a() {} fn d() {}");
    assert_eq!(line_of(&shipped, shipped.find("fn d").unwrap()), 6);
}

#[test]
fn paths_are_spelt_out() {
    let source = "
use crate::{layer, record::{Record, self as r}, store::*};
fn a() { super::memory::Shard::new(self::b(), super::super::decide::decide()) }
use tokio::sync;
";
    let found: Vec<String> = paths(&code(source), &["store", "embedded"]).into_iter().map(|(_, path)| path).collect();
    let want = [
        "crate::layer",
        "crate::record::Record",
        "crate::record",
        "crate::store::*",
        "crate::store::memory::Shard::new",
        "crate::store::embedded::b",
        "crate::decide::decide",
    ];
    assert_eq!(found, want);
}

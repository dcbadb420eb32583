//! Language of comments, errors and log messages, in the directories that follow CONTRIBUTING.md's
//! rules for it.

use crate::{
    rust::code,
    tree::{File, none, rust_files},
};

/// Directories and files that follow the rules. The list only grows.
const CONVERTED: [&str; 35] = [
    "crates/onceward-axum/src/",
    "crates/onceward/src/claim.rs",
    "crates/onceward/src/clock.rs",
    "crates/onceward/src/codec",
    "crates/onceward/src/conformance.rs",
    "crates/onceward/src/decide.rs",
    "crates/onceward/src/endpoints.rs",
    "crates/onceward/src/engine.rs",
    "crates/onceward/src/fault.rs",
    "crates/onceward/src/fingerprint",
    "crates/onceward/src/issued.rs",
    "crates/onceward/src/key.rs",
    "crates/onceward/src/layer",
    "crates/onceward/src/lib.rs",
    "crates/onceward/src/limits.rs",
    "crates/onceward/src/observe.rs",
    "crates/onceward/src/paths.rs",
    "crates/onceward/src/policy.rs",
    "crates/onceward/src/principal",
    "crates/onceward/src/record.rs",
    "crates/onceward/src/reply.rs",
    "crates/onceward/src/secret.rs",
    "crates/onceward/src/store.rs",
    "crates/onceward/src/store/",
    "crates/onceward/src/waiters.rs",
    "crates/onceward/src/wire.rs",
    "crates/onceward/tests/it/conformance.rs",
    "crates/onceward/tests/it/embedded",
    "crates/onceward/tests/it/golden.rs",
    "crates/onceward/tests/it/postgres",
    "crates/onceward/tests/it/redis",
    "crates/onceward/tests/it/simulated",
    "crates/onceward/tests/it/support",
    "xtask/tests/it/language.rs",
    "xtask/tests/it/main.rs",
];

/// Words of an older language, each with the term to use.
const BANNED: [(&str, &str); 13] = [
    ("anew", "again"),
    ("beneath", "underlying"),
    ("hears", "is notified, receives"),
    ("mend", "fix"),
    ("mended", "fixed"),
    ("mends", "fixes"),
    ("overtaken", "superseded"),
    ("overtook", "superseded"),
    ("so long", "for N, up to N"),
    ("so many", "up to N"),
    ("told", "returned, reported, notified"),
    ("whatever is there", "the stored record"),
    ("whoever", "the caller, the client, the process"),
];

/// Text that is stored or sent, and so never changes.
const STORED: [(&str, &str); 2] =
    [("crates/onceward/src/store/redis/scripts.rs", "told"), ("crates/onceward/src/store/redis/scripts.rs", "whoever")];

/// Words that no doc comment begins with: its subject is the item itself.
const OPENINGS: [&str; 8] = ["How", "It", "One", "What", "Where", "Whether", "Who", "Whoever"];

const COLUMNS_MAX: usize = 100;

fn converted() -> Vec<File> {
    let files: Vec<File> =
        rust_files().into_iter().filter(|file| CONVERTED.iter().any(|path| file.path.starts_with(path))).collect();
    for path in CONVERTED {
        assert!(files.iter().any(|file| file.path.starts_with(path)), "{path}: no such file or directory");
    }
    files
}

/// Returns the comments and string contents of `source`, each line in its place.
fn prose(source: &str) -> String {
    // Blanked bytes are the prose; whole characters are blanked, a space a byte.
    let code = code(source);
    let mut prose = String::with_capacity(source.len());
    for (at, c) in source.char_indices() {
        let is_blanked = code.as_bytes()[at] == b' ';
        prose.push(if c == '\n' || is_blanked { c } else { ' ' });
    }
    prose
}

/// Returns true if `line` contains `phrase` as whole words, in any case.
fn contains_words(line: &str, phrase: &str) -> bool {
    let line = line.to_lowercase();
    line.match_indices(phrase).any(|(at, _)| {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        !line[..at].ends_with(is_word) && !line[at + phrase.len()..].starts_with(is_word)
    })
}

/// Returns the first line of each doc comment, with its line number.
fn doc_openings(source: &str) -> Vec<(usize, &str)> {
    let mut openings = Vec::new();
    let mut in_doc = false;
    for (number, line) in source.lines().enumerate() {
        let line = line.trim_start();
        let doc = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
        if let Some(doc) = doc.filter(|_| !in_doc) {
            openings.push((number + 1, doc.trim()));
        }
        in_doc = doc.is_some();
    }
    openings
}

#[test]
fn prose_uses_the_terms_of_the_field() {
    let mut breaches = Vec::new();
    for file in converted().iter().filter(|file| !file.path.ends_with("/language.rs")) {
        for (number, line) in prose(&file.text).lines().enumerate() {
            for (word, term) in BANNED.iter().filter(|(word, _)| contains_words(line, word)) {
                if !STORED.contains(&(file.path.as_str(), *word)) {
                    breaches.push(format!("{}:{}: {word:?}, write {term:?}", file.path, number + 1));
                }
            }
        }
    }
    none("comments and messages use the terms of the field", &breaches);
}

#[test]
fn doc_comments_begin_with_a_verb_or_a_noun() {
    let mut breaches = Vec::new();
    for file in &converted() {
        for (line, text) in doc_openings(&file.text) {
            let word = text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
            if OPENINGS.contains(&word) {
                breaches.push(format!("{}:{line}: {text}", file.path));
            }
        }
    }
    none("a doc comment begins with a verb in the third person or with a noun", &breaches);
}

#[test]
fn comment_lines_have_at_most_100_columns() {
    let mut breaches = Vec::new();
    for file in &converted() {
        let mut in_example = false;
        for (number, line) in file.text.lines().enumerate() {
            let comment = line.trim_start().strip_prefix("//").map(|text| text.trim_start_matches(['/', '!', ' ']));
            in_example ^= comment.is_some_and(|text| text.starts_with("```"));
            if comment.is_some() && !in_example && line.chars().count() > COLUMNS_MAX {
                breaches.push(format!("{}:{}", file.path, number + 1));
            }
        }
    }
    none("a comment line has at most 100 columns", &breaches);
}

#[test]
fn prose_is_comments_and_strings() {
    let source = "let told = \"a mend\"; // whoever\n/// It é\nfn it() {}\n";
    let prose = prose(source);
    let lines: Vec<&str> = prose.lines().map(str::trim).collect();
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["a", "mend", "//", "whoever"]);
    assert_eq!(lines[1..], ["/// It é", ""]);
    assert!(contains_words("So many, anew.", "so many") && !contains_words("amend", "mend"));
    assert_eq!(doc_openings(source), [(2, "It é")]);
}

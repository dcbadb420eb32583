//! What the documents say of the tree is so.

use crate::{
    rust::{code, lines_with},
    tree::{File, exists, files, none, read, rust_files},
};

const PROMISES: [&str; 10] = ["S1", "S2", "S3", "S4", "S5", "S6", "S7", "L1", "L2", "L3"];

/// The tests stand in backticks in the last cell of a row: `| S1 once | … | `test_a`, `module::test_b` |`.
#[test]
fn each_promise_names_tests_that_exist() {
    let map = read("docs/guarantees.md");
    let sources: Vec<String> = rust_files().iter().map(|file| code(&file.text)).collect();
    let is_there = |test: &str| {
        let name = format!("fn {}", test.rsplit("::").next().unwrap_or(test));
        let calls = [format!("{name}("), format!("{name}<")];
        sources.iter().any(|source| calls.iter().any(|call| !lines_with(source, call).is_empty()))
    };
    let mut breaches = Vec::new();
    for promise in PROMISES {
        let tests = tests_of(promise, &map.text);
        if tests.is_empty() {
            breaches.push(format!("{promise}: no row `| {promise} … | … | `a_test` |` in {}", map.path));
        }
        let gone = tests.iter().filter(|test| !is_there(test));
        breaches.extend(gone.map(|test| format!("{promise}: no test is called {test}")));
    }
    none("each promise names the tests that guard it", &breaches);
}

#[test]
fn links_lead_somewhere() {
    let mut documents: Vec<File> = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"].map(read).into();
    let others = files("").into_iter().filter(|file| {
        let is_known = documents.iter().any(|known| known.path == file.path);
        file.path.ends_with(".md") && !is_known
    });
    let others: Vec<File> = others.collect();
    documents.extend(others);
    let mut breaches = Vec::new();
    for document in &documents {
        let folder = document.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (line, link) in links(&document.text) {
            let target = link.split(['#', '?']).next().unwrap_or_default();
            let is_elsewhere = target.is_empty() || target.contains("://") || target.starts_with("mailto:");
            // One that begins with `/` starts at the root of the repository, as forges read it.
            let path = target.strip_prefix('/').map_or_else(|| format!("{folder}/{target}"), String::from);
            if !is_elsewhere && !exists(path.trim_start_matches('/')) {
                breaches.push(format!("{}:{line}: {link}", document.path));
            }
        }
    }
    none("links lead to files that are there", &breaches);
}

fn tests_of(promise: &str, markdown: &str) -> Vec<String> {
    let rows = markdown.lines().filter_map(|line| line.trim().strip_prefix('|')?.strip_suffix('|'));
    let mut tests = Vec::new();
    for row in rows {
        let Some((first, rest)) = row.split_once('|') else {
            continue;
        };
        let word = first.trim().trim_start_matches('*').split(|c: char| !c.is_alphanumeric()).next();
        if word != Some(promise) {
            continue;
        }
        let last = rest.rsplit('|').next().unwrap_or(rest);
        // What has a dot or a slash in it is the name of a file.
        let spans = last.split('`').skip(1).step_by(2);
        let is_name = |span: &&str| !span.is_empty() && span.chars().all(|c| c.is_alphanumeric() || "_:".contains(c));
        tests.extend(spans.filter(is_name).map(String::from));
    }
    tests
}

/// The targets of links and pictures, outside of code, each with its line.
fn links(markdown: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut fence: Option<&str> = None;
    for (number, line) in markdown.lines().enumerate() {
        let start = line.trim_start();
        let mark = ["```", "~~~"].into_iter().find(|mark| start.starts_with(mark));
        match (fence, mark) {
            (None, Some(_)) => fence = mark,
            (Some(open), Some(mark)) if open == mark => fence = None,
            _ => {}
        }
        if fence.is_some() || mark.is_some() {
            continue;
        }
        // Every second piece between backticks is code.
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join(" ");
        let mut add = |target: &str| {
            let target = target.trim_start().trim_start_matches('<');
            let target = target.split(['>', ' ', ')', '"']).next().unwrap_or_default();
            found.push((number + 1, target.to_owned()));
        };
        prose.split("](").skip(1).for_each(&mut add);
        for attribute in ["src=\"", "href=\""] {
            prose.split(attribute).skip(1).for_each(&mut add);
        }
        // `[name]: target`, the other half of `[text][name]`.
        if let Some((_, target)) = prose.trim_start().strip_prefix('[').and_then(|rest| rest.split_once("]: ")) {
            add(target);
        }
    }
    found
}

#[test]
fn a_row_names_its_tests_in_the_last_cell() {
    let map = "\
| promise | never | tests |
|---|---|---|
| S1 once | `decide` says so | `hundred_at_once`, `engine::late_word` (`tests/it/once.rs`) |
| **S2** the same | | `bytes_are_kept` |
| S1 again | | `kill_nine` |
| S10 | | `another` |
";
    assert_eq!(tests_of("S1", map), ["hundred_at_once", "engine::late_word", "kill_nine"]);
    assert_eq!(tests_of("S2", map), ["bytes_are_kept"]);
    assert!(tests_of("S3", map).is_empty());
}

#[test]
fn links_are_read_outside_of_code() {
    let text = "\
[a](docs/a.md#top) and ![b](<b c.png>) and `[c](no.md)`, [d](https://e.f/g)
```text
[h](no.md)
```
<img src=\"i.png\" width=\"3\"> [j][k]

[k]: l.md \"title\"
[m](n.md \"title\")
";
    let found: Vec<String> = links(text).into_iter().map(|(line, link)| format!("{line} {link}")).collect();
    assert_eq!(found, ["1 docs/a.md#top", "1 b", "1 https://e.f/g", "5 i.png", "7 l.md", "8 n.md"]);
}

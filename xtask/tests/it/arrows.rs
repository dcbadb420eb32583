//! Which module of the library may know which: arrows run one way.

use crate::{
    rust::{block, line_of, lines_with, paths, shipped},
    tree::{File, files, none, read},
};

const SRC: &str = "crates/onceward/src/";

#[test]
fn decide_is_pure() {
    let decide = read("crates/onceward/src/decide.rs");
    let code = shipped(&decide.text);
    let mut breaches = Vec::new();
    for banned in ["async ", "tokio", "http::", "dyn Store", "Store;", "Store,", "::now("] {
        breaches.extend(lines_with(&code, banned).iter().map(|line| format!("{}:{line}: {banned:?}", decide.path)));
    }
    for (line, path) in paths(&code, &["decide"]) {
        let known = ["record", "fingerprint", "policy", "decide"].map(|module| format!("crate::{module}"));
        if !known.iter().any(|module| is_within(&path, module)) {
            breaches.push(format!("{}:{line}: {path}", decide.path));
        }
    }
    none("`decide` is a pure function of record, fingerprint and policy", &breaches);
}

#[test]
fn a_store_knows_no_other_store_nor_what_uses_it() {
    let stores = concrete_stores();
    let mut breaches = Vec::new();
    for file in module("store").into_iter().filter(|file| file.path != format!("{SRC}store.rs")) {
        let code = shipped(&file.text);
        let own = file.path[SRC.len() + "store/".len()..].split(['/', '.']).next().unwrap_or_default().to_owned();
        let others = stores.iter().filter(|store| **store != own).map(|store| format!("crate::store::{store}"));
        let above = ["decide", "engine", "layer"].map(|module| format!("crate::{module}"));
        let banned: Vec<String> = others.chain(above).collect();
        breaches.extend(named(&file, &code, &banned));
        breaches.extend(lines_with(&code, "http::").iter().map(|line| format!("{}:{line}: http::", file.path)));
    }
    none("a store knows records, and no other store, `decide`, engine, layer or HTTP", &breaches);
}

#[test]
fn the_engine_knows_no_layer_and_no_particular_store() {
    let mut banned: Vec<String> = concrete_stores().iter().map(|store| format!("crate::store::{store}")).collect();
    banned.push("crate::layer".into());
    let mut breaches = Vec::new();
    for file in module("engine") {
        let code = shipped(&file.text);
        breaches.extend(named(&file, &code, &banned));
        // A concrete store may be exported again one level up, under the name of its type.
        let types = paths(&code, &module_path(&file.path)).into_iter().filter(|(_, path)| {
            let name = path.rsplit("::").next().unwrap_or_default();
            name != "Store" && name.ends_with("Store")
        });
        breaches.extend(types.map(|(line, path)| format!("{}:{line}: {path}", file.path)));
    }
    none("the engine knows `dyn Store`, and no layer", &breaches);
}

#[test]
fn what_needs_no_feature_needs_no_tokio() {
    let mut breaches = Vec::new();
    for name in ["key", "wire", "problem", "principal", "fingerprint"] {
        for file in module(name) {
            let lines = lines_with(&shipped(&file.text), "tokio");
            breaches.extend(lines.iter().map(|line| format!("{}:{line}: tokio", file.path)));
        }
    }
    none("key, wire, problem, principal and fingerprint build without tokio", &breaches);
}

#[test]
fn each_method_of_a_store_is_written_by_its_author() {
    let file = read("crates/onceward/src/store.rs");
    let code = shipped(&file.text);
    let start = code.find("pub trait Store").unwrap_or_else(|| panic!("{}: no `pub trait Store`", file.path));
    let open = start + code[start..].find('{').expect("a trait has a body");
    let body = &code[open + 1..open + block(&code[open..]) - 1];
    let mut breaches = Vec::new();
    let mut methods = 0;
    let mut at = 0;
    while let Some(method) = body[at..].find("fn ") {
        methods += 1;
        let method = at + method;
        match body[method..].find(['{', ';']) {
            Some(end) if body[method + end..].starts_with('{') => {
                breaches.push(format!("{}:{}: a default body", file.path, line_of(&code, open + 1 + method)));
                at = method + end + block(&body[method + end..]);
            }
            Some(end) => at = method + end,
            None => break,
        }
    }
    assert!(methods > 0, "{}: the trait has no methods", file.path);
    none("a default method is a rule that a wrapper forgets to pass on", &breaches);
}

/// `name.rs` and all below `name/`; one that is not there is the failure.
#[track_caller]
fn module(name: &str) -> Vec<File> {
    let below = format!("{SRC}{name}/");
    let mut found = files("crates/onceward/src");
    found.retain(|file| {
        let is_test = file.path.ends_with("/tests.rs") || file.path.contains("/tests/");
        !is_test && (file.path == format!("{SRC}{name}.rs") || file.path.starts_with(&below))
    });
    assert!(!found.is_empty(), "{SRC}{name}.rs: not there");
    found
}

/// The names of the modules in `store/`.
fn concrete_stores() -> Vec<String> {
    let below = format!("{SRC}store/");
    let mut names: Vec<String> = files("crates/onceward/src/store")
        .iter()
        .filter_map(|file| file.path.strip_prefix(&below)?.split(['/', '.']).next().map(String::from))
        .collect();
    names.dedup();
    assert!(!names.is_empty(), "{below}: no store is there");
    names
}

fn named(file: &File, code: &str, banned: &[String]) -> Vec<String> {
    let mut found = paths(code, &module_path(&file.path));
    found.retain(|(_, path)| banned.iter().any(|banned| is_within(path, banned)));
    found.into_iter().map(|(line, path)| format!("{}:{line}: {path}", file.path)).collect()
}

fn module_path(path: &str) -> Vec<&str> {
    path.trim_start_matches(SRC).trim_end_matches(".rs").split('/').collect()
}

fn is_within(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

//! What no file of the tree does.

use crate::{
    rust::{code, lines_with},
    tree::{exists, files, none, read, rust_files},
};

/// A mirror or a home folder in a file is of use to one machine only, and tells strangers about it.
#[test]
fn no_file_names_a_registry_host_or_a_build_machine() {
    // In pieces, so that this file does not find itself.
    let hosts = [
        ["index.", "crates.io"],
        ["static.", "crates.io"],
        ["registry.", "npmjs.org"],
        ["registry.", "yarnpkg.com"],
        ["files.", "pythonhosted.org"],
        ["proxy.", "golang.org"],
        ["/arti", "factory"],
    ];
    let folders = [["/wo", "rk/"], ["/ro", "ot/"], ["/ho", "me/"], ["/Us", "ers/"]];
    let mut breaches = Vec::new();
    for file in files("") {
        for (number, line) in file.text.lines().enumerate() {
            let host = hosts.iter().map(|host| host.concat()).find(|host| line.contains(host.as_str()));
            // Only the start of a path counts: `https://host/folder/` and `./folder/` are on no machine.
            let folder = folders.iter().map(|folder| folder.concat()).find(|folder| {
                line.match_indices(folder.as_str()).any(|(at, _)| {
                    let before = line[..at].chars().next_back().unwrap_or(' ');
                    !before.is_alphanumeric() && !"._-~/}".contains(before)
                })
            });
            breaches.extend(host.into_iter().chain(folder).map(|it| format!("{}:{}: {it}", file.path, number + 1)));
        }
    }
    none("no file names a registry's host or a folder of a build machine", &breaches);

    let lock = read("Cargo.lock");
    let public = concat!("source = \"registry+https://", "github.com/rust-lang/crates.io-", "index\"");
    let sources = lock.text.lines().enumerate().filter(|(_, line)| line.starts_with("source = ") && *line != public);
    let breaches: Vec<String> = sources.map(|(number, line)| format!("Cargo.lock:{}: {line}", number + 1)).collect();
    none("all crates come from the public registry", &breaches);
}

#[test]
fn nothing_is_unfinished() {
    none("what is not built yet is absent, not a stub", &found(&["todo!(", "unimplemented!(", "dbg!("]));
}

/// CI counts a skip as a failure; this says so in a second instead of in half an hour.
#[test]
fn no_test_is_skipped() {
    let mut breaches = found(&["#[ignore"]);
    for file in rust_files() {
        for (number, line) in file.text.lines().enumerate() {
            let doc = line.trim_start().strip_prefix("//").map(|doc| doc.trim_start_matches(['/', '!', ' ']));
            let fence = doc.and_then(|doc| doc.strip_prefix("```"));
            if fence.is_some_and(|words| words.split(',').any(|word| word.trim() == "ignore")) {
                breaches.push(format!("{}:{}: an example that is not compiled", file.path, number + 1));
            }
        }
    }
    none("a test that is skipped is not there", &breaches);
}

/// A sleep is slow where it is too long, and fails where it is too short: wait for what is to happen.
#[test]
fn tests_do_not_sleep() {
    let mut breaches = Vec::new();
    for file in rust_files().iter().filter(|file| file.path.split('/').any(|folder| folder == "tests")) {
        let lines: Vec<&str> = file.text.lines().collect();
        for line in ["sleep(", "sleep_until("].iter().flat_map(|call| lines_with(&code(&file.text), call)) {
            // Declaring a function of that name is no sleep yet.
            let declares = lines[line - 1].contains("fn sleep");
            let excused = lines[line.saturating_sub(2)..line].iter().any(|line| gives_a_reason(line));
            if !declares && !excused {
                breaches.push(format!("{}:{line}: {}", file.path, lines[line - 1].trim()));
            }
        }
    }
    none("tests wait for what is to happen; where they cannot, `// waits: <why>` says why", &breaches);
}

/// Each binary links everything once more, and runs after the one before it instead of beside.
#[test]
fn each_crate_has_one_test_binary() {
    let manifest = read("Cargo.toml").text;
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = [")).expect("one line of members");
    let mut breaches = Vec::new();
    for member in members.trim_end_matches(']').split(", ").map(|member| member.trim_matches('"')) {
        assert!(exists(&format!("{member}/Cargo.toml")), "{member}: no such member");
        let tests = format!("{member}/tests/");
        for file in files(&tests) {
            let below = &file.path[tests.len()..];
            let is_binary = below.ends_with(".rs") && (!below.contains('/') || below.ends_with("/main.rs"));
            if is_binary && below != "it/main.rs" {
                breaches.push(format!("{}: move it below tests/it/", file.path));
            }
        }
    }
    none("one test binary a crate", &breaches);
}

fn found(needles: &[&str]) -> Vec<String> {
    let mut breaches = Vec::new();
    for file in rust_files() {
        let code = code(&file.text);
        for needle in needles {
            breaches.extend(lines_with(&code, needle).iter().map(|line| format!("{}:{line}: {needle}", file.path)));
        }
    }
    breaches
}

fn gives_a_reason(line: &str) -> bool {
    line.split_once("// waits: ").is_some_and(|(_, why)| !why.trim().is_empty())
}

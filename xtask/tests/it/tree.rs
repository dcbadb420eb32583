//! The files of the repository.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Folders of things that are made, not written.
const MADE: [&str; 4] = [".git", "target", "node_modules", "onceward-data"];

pub(crate) struct File {
    /// From the root of the repository, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
}

/// Reads one file; where there is none, that is the failure.
#[track_caller]
pub(crate) fn read(path: &str) -> File {
    match fs::read_to_string(root().join(path)) {
        Ok(text) => File { path: path.into(), text },
        Err(error) => panic!("{path}: {error}"),
    }
}

pub(crate) fn exists(path: &str) -> bool {
    root().join(path).exists()
}

/// All text files below `folder` (`""` is everything), in the order of their paths.
pub(crate) fn files(folder: &str) -> Vec<File> {
    let root = root();
    let mut paths = Vec::new();
    walk(&root.join(folder), &mut paths);
    paths.sort();
    paths
        .into_iter()
        .filter_map(|path| {
            // What is not UTF-8 is a picture; what is gone was the scratch file of an editor.
            let text = fs::read_to_string(&path).ok()?;
            let path = path.strip_prefix(&root).expect("it was found there");
            Some(File { path: path.to_str()?.replace('\\', "/"), text })
        })
        .collect()
}

pub(crate) fn rust_files() -> Vec<File> {
    files("").into_iter().filter(|file| file.path.ends_with(".rs")).collect()
}

/// Fails with one line for each breach.
#[track_caller]
pub(crate) fn none(promise: &str, breaches: &[String]) {
    assert!(breaches.is_empty(), "{promise}:\n  {}", breaches.join("\n  "));
}

fn walk(folder: &Path, paths: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() {
            if !MADE.iter().any(|made| name == *made) {
                walk(&entry.path(), paths);
            }
        } else if kind.is_file() {
            paths.push(entry.path());
        }
    }
}

fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().expect("xtask lies in the repository").into()
}

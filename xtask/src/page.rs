//! `cargo xtask page`: rebuilds the demo's page, compares it byte for byte with the committed one,
//! and tests it in a browser.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    root,
    web::{Npm, PACKAGE},
};

const PAGE: &str = "examples/orders/web";
const BUILT: [&str; 3] = ["counter.css", "counter.js", "index.html"];
const MEND: &str = "run `npm run build` in examples/orders/web and commit it";

/// Runs the part. The error is the one line to print. `only` is a filter on test names.
pub(crate) fn run(only: Option<&str>) -> Result<(), String> {
    let npm = Npm::new()?;
    // The page is built with the packed client.
    npm.run(PACKAGE, "ci --no-audit --no-fund")?;
    npm.run(PACKAGE, "run build")?;
    npm.run(PAGE, "ci --no-audit --no-fund")?;
    npm.run(PAGE, "run types")?;
    let fresh = std::env::current_dir().map_err(|error| error.to_string())?.join(root()).join("target/page");
    npm.run(PAGE, &format!("exec -- node build.js {}", fresh.display()))?;
    compare(&fresh, &root().join(PAGE).join("built"))?;
    npm.test(PAGE, only)
}

/// Checks that two directories contain the same page.
fn compare(fresh: &Path, committed: &Path) -> Result<(), String> {
    let read = |file: PathBuf| fs::read(&file).map_err(|error| format!("{}: {error}; {MEND}", file.display()));
    for name in BUILT {
        if read(fresh.join(name))? != read(committed.join(name))? {
            return Err(format!("{PAGE}/built/{name} is not what its source makes: {MEND}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_differs_by_a_byte_is_told() {
        let folder = std::env::temp_dir().join(format!("onceward-page-{}", std::process::id()));
        let (fresh, committed) = (folder.join("fresh"), folder.join("committed"));
        for place in [&fresh, &committed] {
            fs::create_dir_all(place).unwrap();
            BUILT.iter().for_each(|name| fs::write(place.join(name), "same").unwrap());
        }
        assert_eq!(compare(&fresh, &committed), Ok(()));
        fs::write(committed.join("counter.js"), "sbme").unwrap();
        assert!(compare(&fresh, &committed).unwrap_err().starts_with("examples/orders/web/built/counter.js is not"));
        fs::remove_file(committed.join("counter.js")).unwrap();
        assert!(compare(&fresh, &committed).unwrap_err().contains("npm run build"));
        fs::remove_dir_all(folder).unwrap();
    }
}

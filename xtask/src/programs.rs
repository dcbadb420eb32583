//! Programs that the tests start, and their installation.

mod wheels;

use std::{
    env, fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::parts::Part;

struct Program {
    name: &'static str,
    /// Package of Debian and Ubuntu.
    package: &'static str,
    /// Minimum version, by its first numbers.
    at_least: Version,
    purpose: &'static str,
    /// Names of parts; `*` means all of them.
    needed_by: &'static [&'static str],
}

type Version = (u32, u32);

const PROGRAMS: &[Program] = &[
    Program {
        name: "cc",
        package: "build-essential",
        at_least: (7, 0),
        purpose: "builds SQLite and aws-lc",
        needed_by: &["*"],
    },
    Program {
        name: "curl",
        package: "curl",
        at_least: (7, 76),
        purpose: "plays the lines that the README and the demo print",
        needed_by: &["gateway", "demo", "measure"],
    },
    Program {
        name: "wrk",
        package: "wrk",
        at_least: (4, 1),
        purpose: "puts the load on what is measured",
        needed_by: &["measure"],
    },
    Program {
        name: "faketime",
        package: "faketime",
        at_least: (0, 9),
        purpose: "shifts the clock of gateways that are hurt",
        needed_by: CHAOS,
    },
    Program {
        name: "mount",
        package: "mount",
        at_least: (2, 30),
        purpose: "mounts the small disk that is filled, or loses its power",
        needed_by: &[
            "lib-all",
            "chaos",
            "chaos-postgres",
            "chaos-redis",
            "chaos-valkey",
            "gateway",
            "gateway-postgres",
            "gateway-redis",
        ],
    },
    Program {
        name: "/usr/sbin/mkfs.ext4",
        package: "e2fsprogs",
        at_least: (1, 44),
        purpose: "makes the disk of a server, which is filled or loses its power",
        needed_by: &["lib-all", "gateway"],
    },
    Program {
        name: "/usr/sbin/xfs_io",
        package: "xfsprogs",
        at_least: (5, 0),
        purpose: "takes the power from that disk",
        needed_by: &["lib-all"],
    },
    Program {
        name: "chromium",
        package: "chromium",
        at_least: (120, 0),
        purpose: "opens the demo's page",
        needed_by: &["gateway", "web", "page"],
    },
    Program {
        name: "chromedriver",
        package: "chromium-driver",
        at_least: (120, 0),
        purpose: "clicks on the demo's page",
        needed_by: &["gateway"],
    },
    Program {
        name: "strace",
        package: "strace",
        at_least: (5, 0),
        purpose: "writes down what a store asks of the disk",
        needed_by: &["lib-all"],
    },
    Program {
        name: "/usr/sbin/nginx",
        package: "nginx-light",
        at_least: (1, 18),
        purpose: "stands before the gateway, and sends uploads on",
        needed_by: &["gateway"],
    },
    Program {
        name: "script",
        package: "bsdutils",
        at_least: (2, 30),
        purpose: "is the terminal that is closed under a gateway",
        needed_by: &["gateway"],
    },
    Program {
        name: "/usr/lib/postgresql/15/bin/postgres",
        package: "postgresql-15",
        at_least: (15, 0),
        purpose: "keeps records in the tests of that store",
        needed_by: POSTGRES_15,
    },
    Program {
        name: "psql",
        package: "postgresql-client-15",
        at_least: (15, 0),
        purpose: "looks into PostgreSQL",
        needed_by: POSTGRES_15,
    },
    Program {
        name: "/usr/sbin/pgbouncer",
        package: "pgbouncer",
        at_least: (1, 18),
        purpose: "stands before PostgreSQL, as it does in production",
        needed_by: POSTGRES,
    },
    Program {
        name: "redis-server",
        package: "redis-server",
        at_least: (7, 0),
        purpose: "keeps records in the tests of that store, alone, as Sentinels and as a cluster",
        needed_by: REDIS_7,
    },
    Program {
        name: "redis-cli",
        package: "redis-tools",
        at_least: (7, 0),
        purpose: "looks into Redis and Valkey",
        needed_by: REDIS_7,
    },
    Program {
        name: "/usr/sbin/haproxy",
        package: "haproxy",
        at_least: (2, 4),
        purpose: "stands before gateways that are restarted one after another",
        needed_by: &["gateway"],
    },
    Program {
        name: "python3",
        package: "python3-pip",
        at_least: (3, 8),
        purpose: "fetches PostgreSQL 18 and Valkey 9, which Debian does not have",
        needed_by: &["lib-all", "gateway", "gateway-postgres", "chaos-valkey", "measure"],
    },
];

/// Parts that inject faults into gateways.
const CHAOS: &[&str] = &["chaos", "chaos-postgres", "chaos-redis", "chaos-valkey"];

/// Parts that start Valkey.
const VALKEY: &[&str] = &["lib-all", "gateway", "chaos-valkey", "measure"];

/// The same, and parts that start Redis.
const REDIS_7: &[&str] = &["lib-all", "gateway", "gateway-redis", "planted", "chaos-redis", "chaos-valkey", "measure"];

/// Parts that start PostgreSQL in both versions.
const POSTGRES: &[&str] = &["lib-all", "gateway", "gateway-postgres", "measure"];

/// The same, and parts that start only the older version.
const POSTGRES_15: &[&str] = &["lib-all", "gateway", "gateway-postgres", "planted", "chaos-postgres", "measure"];

/// Installs the programs that `parts` need. The error is the one line to print.
pub(crate) fn provide(parts: &[Part]) -> Result<(), String> {
    provide_packages(parts)?;
    wheels::provide(parts)
}

fn provide_packages(parts: &[Part]) -> Result<(), String> {
    let missing = missing(parts);
    if missing.is_empty() {
        return Ok(());
    }
    if find("apt-get").is_none() || !is_root() {
        return Err(complaint(&missing));
    }
    let packages: Vec<&str> = missing.iter().map(|program| program.package).collect();
    install(&packages)?;
    match self::missing(parts) {
        still if still.is_empty() => Ok(()),
        still => Err(complaint(&still)),
    }
}

/// Installs system packages, if this process may and can.
pub(crate) fn install(packages: &[&str]) -> Result<(), String> {
    if find("apt-get").is_none() || !is_root() {
        return Err(format!("install {} (only root with apt-get can here)", packages.join(", ")));
    }
    let no_lists = fs::read_dir("/var/lib/apt/lists").map_or(true, |mut lists| {
        !lists.any(|file| file.is_ok_and(|file| file.file_name().to_string_lossy().contains("_Packages")))
    });
    if no_lists {
        apt(&["update"])?;
    }
    let install = [&["install", "-y"], packages].concat();
    // Existing lists may be old, and name files that the mirror no longer has.
    if apt(&install).is_err() && !no_lists {
        apt(&["update"])?;
        apt(&install)?;
    }
    Ok(())
}

fn missing(parts: &[Part]) -> Vec<&'static Program> {
    let needed = |program: &&Program| parts.iter().any(|part| program.is_needed_by(&part.name));
    PROGRAMS.iter().filter(needed).filter(|program| !program.is_there()).collect()
}

/// Returns one line: the missing programs, their minimum versions and their purpose.
fn complaint(missing: &[&Program]) -> String {
    let each: Vec<String> = missing
        .iter()
        .map(|Program { name, package, at_least: (major, minor), purpose, .. }| {
            format!("{name} {major}.{minor} or newer (package {package}; {purpose})")
        })
        .collect();
    format!("missing: {}", each.join(", "))
}

impl Program {
    fn is_needed_by(&self, part: &str) -> bool {
        self.needed_by.iter().any(|need| *need == "*" || *need == part)
    }

    fn is_there(&self) -> bool {
        let Some(path) = find(self.name) else {
            return false;
        };
        let said = Command::new(path).arg("--version").stdin(Stdio::null()).output();
        // A program that reports no version is accepted: the tests will tell.
        said.is_ok_and(|said| {
            version(&String::from_utf8_lossy(&said.stdout)).is_none_or(|version| version >= self.at_least)
        })
    }
}

/// Returns the first word of `said` that is a version, skipping brackets: `cc (Debian 12.2.0-14)
/// 12.2.0`.
fn version(said: &str) -> Option<Version> {
    let mut depth = 0;
    let plain: String = said
        .chars()
        .filter(|c| {
            depth += i32::from(*c == '(');
            let outside = depth == 0;
            depth -= i32::from(*c == ')');
            outside
        })
        .collect();
    plain.split_whitespace().find_map(|word| {
        let mut numbers = word.rsplit('/').next()?.split(['.', '-']);
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    })
}

fn find(program: &str) -> Option<PathBuf> {
    if program.starts_with('/') {
        return Some(PathBuf::from(program)).filter(|file| file.is_file());
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|id| id.stdout.trim_ascii() == b"0")
}

fn apt(arguments: &[&str]) -> Result<(), String> {
    check(Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
}

/// Prints a command and runs it to its end. Its input is empty, because nobody may be there to
/// type.
pub(crate) fn check(command: &mut Command) -> Result<(), String> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    println!("{line}");
    match command.stdin(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{line}` failed: {status}")),
        Err(error) => Err(format!("`{line}` did not start: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_programs_print_them() {
        for (said, want) in [
            ("Chromium 156.0.8078.79 built on Debian GNU/Linux 12 (bookworm)\n", Some((156, 0))),
            ("ChromeDriver 156.0.8078.79 (0e6b2c3f1a5e0d5c)\n", Some((156, 0))),
            ("curl 7.88.1 (x86_64-pc-linux-gnu) libcurl/7.88.1 OpenSSL/3.0.19\n", Some((7, 88))),
            ("cc (Debian 12.2.0-14+deb12u1) 12.2.0\nCopyright (C) 2022\n", Some((12, 2))),
            ("cc (Ubuntu 9.4.0-1ubuntu1~20.04.2) 9.4.0\n", Some((9, 4))),
            ("Debian clang version 14.0.6\nTarget: x86_64-pc-linux-gnu\n", Some((14, 0))),
            ("wrk debian/4.1.0-3+b2 [epoll] Copyright (C) 2012 Will Glozer\n", Some((4, 1))),
            ("no number here\n", None),
        ] {
            assert_eq!(version(said), want, "{said:?}");
        }
    }

    #[test]
    fn each_need_names_a_part_that_exists() {
        let parts = [crate::parts::all(&[]), vec![crate::parts::measure()]].concat();
        for need in PROGRAMS.iter().flat_map(|program| program.needed_by) {
            assert!(*need == "*" || parts.iter().any(|part| part.name == *need), "no part is called {need}");
        }
    }

    #[test]
    fn what_is_missing_is_one_line_with_versions() {
        let line = complaint(
            &["curl", "chromedriver"]
                .map(|name| PROGRAMS.iter().find(|program| program.name == name).expect("it is there")),
        );
        assert!(line.contains("curl 7.76") && line.contains("chromedriver 120.0"), "{line}");
        assert_eq!(line.lines().count(), 1);
    }
}

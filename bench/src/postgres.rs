//! Over one PostgreSQL: the layer beside `pgbench` doing the same to the same rows, over as many connections.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::cli::Plan;
use crate::load::{self, Keys};
use crate::processes::{Process, cpu_seconds};
use crate::servers::postgres::Postgres;
use crate::table::{self, Ratio, Subject};

/// What the store has unless its URL says otherwise.
const CONNECTIONS: u32 = 12;

/// How many rows `pgbench` reads.
const ROWS: u32 = 10_000;

/// As an installation has it, synced; the tests' own server is not.
const SETTINGS: &str = "fsync = on\nshared_buffers = 1GB\nmax_wal_size = 4GB";

const PGBENCH: &str = "/usr/lib/postgresql/15/bin/pgbench";

/// The claim and its answer, of the sizes that the layer writes, each its own transaction.
const NEW: &str = "
INSERT INTO once.records VALUES (uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()), uuid_send(gen_random_uuid()), 1,
  clock_timestamp(), clock_timestamp() + interval '15 seconds', clock_timestamp() + interval '15 seconds', decode(repeat('ab', 140), 'hex'))
  RETURNING id AS row \\gset
UPDATE once.records SET stage = 2, written = clock_timestamp(), due = clock_timestamp() + interval '1 day',
  record = decode(repeat('cd', 600), 'hex') WHERE id = :row;
";

const READ: &str = "
\\set n random(1, ROWS)
SELECT record, (extract(epoch FROM clock_timestamp() - written) * 1000000)::bigint FROM once.records
  WHERE id = sha256(int4send(:n));
";

/// The same table, filled with what is read.
const FILL: &str = "
CREATE SCHEMA once;
CREATE TABLE once.records (LIKE onceward.records INCLUDING ALL) WITH (fillfactor = 50);
ALTER TABLE once.records ALTER COLUMN record SET STORAGE EXTERNAL;
INSERT INTO once.records SELECT sha256(int4send(n)), uuid_send(gen_random_uuid()), 2, now(), now() + interval '1 day',
  now() + interval '1 day', decode(repeat('cd', 600), 'hex') FROM generate_series(1, ROWS) n;
VACUUM ANALYZE once.records;
";

const NAMES: [&str; 4] =
    ["new keys: pgbench", "new keys: Onceward", "replays: pgbench", "replays: Onceward, from PostgreSQL"];

pub(crate) fn measure(plan: &Plan) -> Result<String, String> {
    let mut subjects = NAMES.map(Subject::named);
    let mut room = String::new();
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    for round in 0..plan.rounds {
        let server = Postgres::start(15, SETTINGS);
        let url = format!("postgres://postgres@{}/postgres?connections={CONNECTIONS}", server.address);
        let service = Process::service(&["layer", &url, "0"])?;
        let fill = FILL.replace("ROWS", &ROWS.to_string());
        fill.split_inclusive(";\n")
            .filter(|text| !text.trim().is_empty())
            .for_each(|text| drop(server.sql("postgres", text)));
        let said = server.sql("postgres", r"SELECT split_part(pg_read_file('postmaster.pid'), E'\n', 1)");
        let postgres = said.parse().map_err(|_| format!("{said:?} is no process"))?;
        for (at, subject) in subjects.iter_mut().enumerate() {
            plan.progress(round, NAMES[at]);
            let keys = if at < 2 { Keys::New } else { Keys::Same };
            let cpu = || cpu_seconds(service.id()) + cpu_seconds(postgres);
            if at % 2 == 0 {
                let script = if at == 0 { NEW.to_owned() } else { READ.replace("ROWS", &ROWS.to_string()) };
                pgbench(&server, folder.path(), &script, plan.warm_seconds)?;
                let before = cpu();
                let (count, per_second) = pgbench(&server, folder.path(), &script, plan.seconds)?;
                subject.micros.push((cpu() - before) * 1e6 / count);
                subject.per_second.push(per_second);
                continue;
            }
            load::run(service.address, keys, "warm", plan.warm_seconds)?;
            let (before, seen) = (cpu(), Seen::of(&server));
            let run = load::run(service.address, keys, if keys == Keys::Same { "warm" } else { "new" }, plan.seconds)?;
            subject.micros.push((cpu() - before) * 1e6 / run.requests as f64);
            subject.per_second.push(run.per_second());
            if at == 1 {
                room = seen.since(&server, run.requests);
            }
        }
    }
    let rate = |at: usize| subjects[at].per_second.median();
    let ratios = [
        Ratio {
            what: "executed a second: Onceward to pgbench", value: rate(1) / rate(0), limit: "≥ 0.9", aim: "1.2"
        },
        Ratio { what: "replays a second: Onceward to pgbench", value: rate(3) / rate(2), limit: "≥ 0.8", aim: "1.0" },
    ];
    Ok(format!("{}\n{}\n{room}", table::subjects(&subjects), table::ratios(&ratios)))
}

/// Runs it, prepared; returns how many transactions of the script it did, and how many a second.
fn pgbench(server: &Postgres, folder: &Path, script: &str, seconds: u32) -> Result<(f64, f64), String> {
    let file = folder.join("script.sql");
    fs::write(&file, script).map_err(|error| error.to_string())?;
    let mut pgbench = Command::new(PGBENCH);
    pgbench.args([
        "-n",
        "-M",
        "prepared",
        "-j",
        "1",
        "-h",
        "127.0.0.1",
        "-U",
        "postgres",
        "-c",
        &CONNECTIONS.to_string(),
    ]);
    pgbench
        .args(["-p", &server.address.port().to_string(), "-T", &seconds.to_string(), "-f"])
        .arg(&file)
        .arg("postgres");
    let said = pgbench.output().map_err(|error| format!("pgbench does not start: {error}"))?;
    let text = String::from_utf8_lossy(&said.stdout);
    let number = |name: &str| -> Option<f64> {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        rest.trim().split([' ', '/']).next()?.parse().ok()
    };
    match (number("number of transactions actually processed:"), number("tps =")) {
        (Some(count), Some(rate)) if said.status.success() => Ok((count, rate)),
        _ => Err(format!("pgbench: {text}{}", String::from_utf8_lossy(&said.stderr))),
    }
}

/// What a server had, in bytes: the log that it wrote, the table with its indexes.
struct Seen {
    log: u64,
    room: u64,
    rows: u64,
}

impl Seen {
    fn of(server: &Postgres) -> Self {
        let number = |text: &str| server.sql("postgres", text).parse().unwrap_or(0);
        Self {
            log: number("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint"),
            room: number("SELECT pg_total_relation_size('onceward.records')"),
            rows: number("SELECT count(*) FROM onceward.records"),
        }
    }

    fn since(self, server: &Postgres, requests: u64) -> String {
        let now = Self::of(server);
        let each = |now: u64, before: u64, of: u64| now.saturating_sub(before) as f64 / of as f64;
        format!(
            "An executed request over PostgreSQL writes {:.0} bytes of log; a row takes {:.0} bytes of disk, indexes and free room included.\n",
            each(now.log, self.log, requests),
            each(now.room, self.room, now.rows - self.rows),
        )
    }
}

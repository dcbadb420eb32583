//! Benchmarks over one PostgreSQL: the layer, and `pgbench` with the same operations on the same
//! rows, over as many connections.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::cli::Plan;
use crate::load::{self, Keys};
use crate::processes::{Process, cpu_seconds};
use crate::servers::postgres::Postgres;
use crate::servers::waiting::poll;
use crate::table::{self, Ratio, Subject};

/// Default number of connections of the store, unless its URL sets another.
const CONNECTIONS: u32 = 12;

/// Number of rows that `pgbench` reads.
const ROWS: u32 = 10_000;

/// Synced as in a real installation; the tests' own server is not.
const SETTINGS: &str = "fsync = on\nshared_buffers = 1GB\nmax_wal_size = 4GB";

const PGBENCH: &str = "/usr/lib/postgresql/15/bin/pgbench";

/// Claim and completion, in the sizes that the layer writes, each in its own transaction.
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

/// Same table, filled with the rows that are read.
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

/// Cost of an executed request for a PostgreSQL.
#[derive(Clone, Copy)]
pub(crate) struct Costs {
    pub(crate) micros: f64,
    pub(crate) log: f64,
    pub(crate) row: f64,
    pub(crate) tombstone: f64,
}

pub(crate) fn measure(plan: &Plan) -> Result<(String, Costs), String> {
    let mut subjects = NAMES.map(Subject::named);
    let mut log = f64::NAN;
    let mut rows = (f64::NAN, f64::NAN);
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
            let cpu = || (cpu_seconds(service.id()), cpu_seconds(postgres));
            if at % 2 == 0 {
                let script = if at == 0 { NEW.to_owned() } else { READ.replace("ROWS", &ROWS.to_string()) };
                pgbench(&server, folder.path(), &script, plan.warm_seconds)?;
                let before = cpu();
                let (count, per_second) = pgbench(&server, folder.path(), &script, plan.seconds)?;
                subject.took(before, cpu(), count, per_second);
                continue;
            }
            let (run, before) = subject.load(plan, service.address, keys, cpu, || written(&server))?;
            if at == 1 {
                log = (written(&server) - before) / run.requests as f64;
            }
        }
        if round + 1 == plan.rounds {
            rows = row_sizes(&server, plan)?;
        }
    }
    let rate = |at: usize| &subjects[at].per_second;
    let ratios = [
        Ratio {
            what: "executed a second: Onceward to pgbench",
            value: rate(1).by(rate(0)),
            limit: "≥ 0.9",
            aim: "1.2",
        },
        Ratio {
            what: "replays a second: Onceward to pgbench", value: rate(3).by(rate(2)), limit: "≥ 0.8", aim: "1.0"
        },
    ];
    let costs = Costs { micros: subjects[1].server_micros.median(), log, row: rows.0, tombstone: rows.1 };
    let room = format!(
        "An executed request over PostgreSQL writes {log:.0} bytes of log; a row takes {:.0} bytes of disk with its answer and {:.0} as a\n\
         tombstone, indexes and the room beside it included.\n",
        costs.row, costs.tombstone
    );
    Ok((format!("{}\n{}\n{room}", table::subjects(&subjects), table::ratios(&ratios)), costs))
}

/// Runs `pgbench` with prepared statements. Returns the number of transactions of the script, and
/// the transactions per second.
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

/// Returns the bytes of WAL that a server has written.
fn written(server: &Postgres) -> f64 {
    number(server, "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')")
}

fn number(server: &Postgres, text: &str) -> f64 {
    server.sql("postgres", text).parse().unwrap_or(f64::NAN)
}

/// Returns the disk size of a row in bytes, including its indexes and free space: with its
/// response, and as a tombstone.
fn row_sizes(server: &Postgres, plan: &Plan) -> Result<(f64, f64), String> {
    let size = |rows: &str| {
        server.sql("postgres", "VACUUM FULL onceward.records");
        number(server, &format!("SELECT pg_total_relation_size('onceward.records')::float / {rows}"))
    };
    let with_answer = size("(SELECT count(*) FROM onceward.records)");
    server.sql("postgres", "TRUNCATE onceward.records");
    let url = format!("postgres://postgres@{}/postgres", server.address);
    let service = Process::service(&["soon-forgotten", &url])?;
    load::run(service.address, Keys::New, "forgotten", plan.warm_seconds)?;
    poll("tombstones", || {
        (number(server, "SELECT count(*) FROM onceward.records WHERE stage <> 5") == 0.0).then_some(())
    });
    Ok((with_answer, size("(SELECT count(*) FROM onceward.records)")))
}

//! Benchmarks over one Redis: the layer, and the pattern that people write by hand.

use crate::cli::Plan;
use crate::load::{self, Keys};
use crate::processes::{Process, cpu_seconds};
use crate::servers::redis::Redis;
use crate::servers::waiting::poll;
use crate::table::{self, Ratio, Subject};

/// Name of the subject, arguments of the service, and keys.
const SUBJECTS: [(&str, &[&str], Keys); 6] = [
    ("new keys: by hand (not safe)", &["by-hand"], Keys::New),
    ("new keys: a marker by hand (safe while nothing dies)", &["minimum"], Keys::New),
    ("new keys: Onceward", &["layer", "0"], Keys::New),
    ("replays: by hand", &["by-hand"], Keys::Same),
    ("replays: Onceward, from Redis", &["layer", "0"], Keys::Same),
    ("replays: Onceward, from the cache", &["layer", "67108864"], Keys::Same),
];

/// Cost of an executed request for a Redis.
#[derive(Clone, Copy)]
pub(crate) struct Costs {
    /// CPU time, including all later work for the request.
    pub(crate) micros: f64,
    pub(crate) with_answer: f64,
    pub(crate) tombstone: f64,
    pub(crate) moved: f64,
}

pub(crate) fn measure(plan: &Plan) -> Result<(String, Costs), String> {
    let mut subjects = SUBJECTS.map(|(name, ..)| Subject::named(name));
    let mut room = None;
    for round in 0..plan.rounds {
        for (subject, (name, words, keys)) in subjects.iter_mut().zip(SUBJECTS) {
            plan.progress(round, name);
            // A new server each time: one that another subject has filled is not comparable.
            let server = Redis::start("");
            let service = start(&server, words)?;
            let redis = server.info("process_id") as u32;
            let cpu = || (cpu_seconds(service.id()), cpu_seconds(redis));
            let (run, seen) = subject.load(plan, service.address, keys, cpu, || Seen::of(&server))?;
            if *words == ["layer", "0"] && keys == Keys::New && round + 1 == plan.rounds {
                room = Some(seen.since(&server, run.requests));
            }
        }
    }
    let micros = |at: usize| &subjects[at].micros;
    let ratios = [
        Ratio {
            what: "CPU, new keys: Onceward to by hand",
            value: micros(2).by(micros(0)),
            limit: "≤ 1.4",
            aim: "1.1",
        },
        Ratio {
            what: "CPU, replays from Redis: Onceward to by hand",
            value: micros(4).by(micros(3)),
            limit: "≤ 1.2",
            aim: "1.0",
        },
        Ratio {
            what: "CPU, replays from the cache: Onceward to by hand",
            value: micros(5).by(micros(3)),
            limit: "≤ 0.7",
            aim: "0.6",
        },
    ];
    let mut safe = "Of 100 equal requests at once, to an order that takes 50 ms, were executed:".to_owned();
    for (name, words) in
        [("by hand", &["by-hand"][..]), ("a marker by hand", &["minimum"]), ("Onceward", &["layer", "0"])]
    {
        let server = Redis::start("");
        let executed = load::executions_of_a_hundred(start(&server, words)?.address)?;
        safe += &format!(" {name} **{executed}**,");
    }
    let safe = safe.trim_end_matches(',');
    let (seen, moved) = room.ok_or("there was no round")?;
    let life = life(plan)?;
    let costs = Costs { moved, ..life };
    let room = format!(
        "{seen} A record takes {:.0} bytes with its answer within, as `MEMORY USAGE` tells it, and {:.0} as a tombstone.\n\n\
         From its claim until it is a tombstone, a request costs Redis {:.1} µs: measured with a lease and a retention of a second, so\n\
         that the sweep's part in it is counted too.\n",
        costs.with_answer, costs.tombstone, costs.micros
    );
    let text = format!("{}\n{}\n{safe}.\n\n{room}", table::subjects(&subjects), table::ratios(&ratios));
    Ok((text, costs))
}

/// Measures the lifetime of a key, from its claim until it is a tombstone: CPU time and memory of
/// the server.
fn life(plan: &Plan) -> Result<Costs, String> {
    let server = Redis::start("");
    let service = start(&server, &["soon-forgotten"])?;
    let redis = server.info("process_id") as u32;
    let before = cpu_seconds(redis);
    let run = load::run(service.address, Keys::New, "forgotten", plan.seconds)?;
    poll("tombstones", || {
        let listed = |list: &str| server.cli(0, &["ZCARD", list]) == "0";
        (listed("onceward:began") && listed("onceward:ends")).then_some(())
    });
    let micros = (cpu_seconds(redis) - before) * 1e6 / run.requests as f64;
    let tombstone = typical_size(&server) as f64;
    let server = Redis::start("");
    load::run(start(&server, &["layer", "0"])?.address, Keys::New, "kept", plan.warm_seconds)?;
    Ok(Costs { micros, with_answer: typical_size(&server) as f64, tombstone, moved: f64::NAN })
}

fn start(server: &Redis, words: &[&str]) -> Result<Process, String> {
    let url = server.url(0);
    let mut all = vec![words[0], &url];
    all.extend(&words[1..]);
    Process::service(&all)
}

/// Counters of a server: its content, and the bytes that it received and sent.
struct Seen {
    keys: u64,
    data: u64,
    came: u64,
    went: u64,
}

impl Seen {
    fn of(server: &Redis) -> Self {
        Self {
            keys: server.cli(0, &["DBSIZE"]).parse().unwrap_or(0),
            data: server.info("used_memory_dataset"),
            came: server.info("total_net_input_bytes"),
            went: server.info("total_net_output_bytes"),
        }
    }

    /// Returns the changes as text, and the bytes received and sent per request.
    fn since(self, server: &Redis, requests: u64) -> (String, f64) {
        let now = Self::of(server);
        let each = |now: u64, before: u64| now.saturating_sub(before) as f64 / requests as f64;
        let (came, went) = (each(now.came, self.came), each(now.went, self.went));
        let text = format!(
            "An executed request over Redis leaves {:.0} bytes of data in {:.1} entries; {came:.0} bytes come to the server, {went:.0} go\n\
             from it.",
            each(now.data, self.data),
            each(now.keys, self.keys),
        );
        (text, came + went)
    }
}

/// Returns the size of a record in bytes, as the server reports it: the median of a sample.
fn typical_size(server: &Redis) -> u64 {
    let keys = server.cli(0, &["SCAN", "0", "MATCH", "onceward:{*", "COUNT", "2000"]);
    let size = |key: &str| server.cli(0, &["MEMORY", "USAGE", key, "SAMPLES", "0"]).parse().ok();
    let records = keys.lines().filter(|key| key.starts_with("onceward:{"));
    let mut sizes: Vec<u64> = records.take(21).filter_map(size).collect();
    sizes.sort_unstable();
    sizes.get(sizes.len() / 2).copied().unwrap_or(0)
}

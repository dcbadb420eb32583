//! Measures the cost of a request in a gateway, by the handling of the request.

use crate::cli::Plan;
use crate::load::Keys;
use crate::processes::{Process, cpu_seconds};
use crate::servers::redis::Redis;
use crate::table::{self, Ratio, Subject};

/// Name of the subject, store, cache size and keys.
const SUBJECTS: [(&str, &str, &str, Keys); 6] = [
    ("no key: forwarded", "embedded", "0B", Keys::None),
    ("new keys: embedded store", "embedded", "0B", Keys::New),
    ("replays: embedded store", "embedded", "0B", Keys::Same),
    ("new keys: Redis", "redis", "0B", Keys::New),
    ("replays: Redis", "redis", "0B", Keys::Same),
    ("replays: the cache", "redis", "64MiB", Keys::Same),
];

/// Cost of an executed request over Redis for a gateway.
#[derive(Clone, Copy)]
pub(crate) struct Costs {
    pub(crate) micros: f64,
}

pub(crate) fn measure(plan: &Plan) -> Result<(String, Costs), String> {
    let mut subjects = SUBJECTS.map(|(name, ..)| Subject::named(name));
    let upstream = Process::service(&["plain"])?;
    for round in 0..plan.rounds {
        for (subject, (name, store, cache, keys)) in subjects.iter_mut().zip(SUBJECTS) {
            plan.progress(round, name);
            let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
            let server = (store == "redis").then(|| Redis::start(""));
            let url = server.as_ref().map_or_else(|| "embedded:store".to_owned(), |server| server.url(0));
            let settings = format!("[limits]\ncache = \"{cache}\"\n[policy]\nprincipal = []\n");
            std::fs::write(folder.path().join("onceward.toml"), settings).map_err(|error| error.to_string())?;
            let upstream = format!("http://{}", upstream.address);
            let gateway = Process::gateway(&["--upstream", &upstream, "--store", &url], folder.path())?;
            subject.load(plan, gateway.address, keys, || (cpu_seconds(gateway.id()), 0.0), || ())?;
        }
    }
    let micros = |at: usize| &subjects[at].micros;
    let ratios = [
        Ratio {
            what: "CPU of the gateway: a replay from the embedded store to forwarding",
            value: micros(2).by(micros(0)),
            limit: "< 1",
            aim: "–",
        },
        Ratio {
            what: "CPU of the gateway: a replay from the cache to forwarding",
            value: micros(5).by(micros(0)),
            limit: "< 1",
            aim: "–",
        },
        Ratio {
            what: "CPU of the gateway: a new key over Redis to forwarding",
            value: micros(3).by(micros(0)),
            limit: "–",
            aim: "–",
        },
    ];
    let costs = Costs { micros: micros(3).median() };
    Ok((format!("{}\n{}", table::subjects(&subjects), table::ratios(&ratios)), costs))
}

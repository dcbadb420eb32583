//! Writes the report of a run.

use std::fmt::Write;

use crate::run::{Outcome, Plan, Store, line};

/// Limits that apply to each run.
const NEVER: &str = "\
- **A monotonic clock that jumps.** Only the gateways' wall clock is shifted, by at most 11 h forward: a shift beyond retention
  and tombstone over a restart ends their promise early, as a clock that is wrong by so much would.
- **Memory that runs out, threads or files that cannot be had.**
- **Keys that live longer than a round**: retention and tombstones do not end here, and no operator settles a key.
- **HTTP/2, TLS and streams without an end** towards the upstream.
";

const NOT_ON_A_DISK: &str = "\
- **Power loss.** A killed process leaves what it wrote in the kernel's cache, so no run here tests that a sync reached the
  disk; that the store syncs before it answers is tested apart, by what its journal's system calls see.
- **Bytes that change on the disk**, and reads that fail. Bit flips and torn records are tested apart, byte by byte.
- **A network that parts or delays gateways, clients and upstream**, other than by resets, cuts, hang-ups and stops.
- **Several gateways on one store**: the embedded store is one process's. What the same harm does to gateways that share a
  store, and to its server, is told of [PostgreSQL](reliability-postgres.md) and of [Redis](reliability-redis.md).
";

const NOT_ON_A_SERVER: &str = "\
- **Power loss** of the server's machine, which is tested apart. A killed server leaves what it wrote in the kernel's cache.
- **A failover**, and a server that forgets: what each store keeps then is a table, with its tests, in [stores.md](stores.md) and
  [stores-redis.md](stores-redis.md). Here there is one server, which is there again after each harm.
- **A full disk of the server, a clock of its own that is shifted.** A full disk and locks that others hold in PostgreSQL, and a
  full memory of Redis, are tested apart.
- **A network that parts gateways and upstream**, other than by resets, cuts, hang-ups and stops. The ways between gateways and
  store are parted, each way and both.
";

/// Returns the report of a run as Markdown.
pub(crate) fn markdown(plan: &Plan, outcome: &Outcome) -> String {
    let minutes = outcome.took.as_secs() / 60;
    let store = match &plan.store {
        Store::Embedded => "an `embedded` store".to_owned(),
        Store::Own(kind) => format!("{} gateways over a server of its own: {}", plan.gateways, kind.in_words()),
        Store::Url(url) => {
            format!("{} gateways over a `{}` store", plan.gateways, url.split(':').next().unwrap_or(url))
        }
    };
    let (title, typed) = match &plan.store {
        Store::Own(kind) => (format!(" over {}", kind.in_short()), format!(" --store {}", kind.name())),
        Store::Embedded | Store::Url(_) => Default::default(),
    };
    let mut page = format!(
        "# Reliability{title}\n\nWritten by `cargo xtask chaos{typed}`: what was done, how often, and what was seen.\nEach round has an \
         upstream that syncs a line per execution before it answers, six clients that log each call, and\n{store}; \
         a checker reads the log of each.\n\n\
         - **Time**: {minutes} minutes, {} rounds, seeds {} to {}.\n- **Seen**: {}.\n- **Found**: {}.\n\n\
         What the checker knows: at most one execution of a key, as its guarantee says; each kept answer byte-equal, whole, and\n\
         of that key's own execution; no other body executed or answered; what was kept and seen is never forgotten; nobody is\n\
         told `in_flight` later than lease + 5 s after the last live holder; each gateway serves within 10 s of a heal of\n\
         the store; each label is true; after the last heal, every key is settled and new keys execute. It finds each of the bugs\n\
         that `chaos/tests/it` plants.\n",
        outcome.rounds,
        plan.seed,
        plan.seed + outcome.rounds.saturating_sub(1),
        line(&outcome.seen),
        if outcome.found.is_empty() { "nothing".to_owned() } else { outcome.found.join("; ") },
    );
    for (title, group) in [
        ("What was done to the gateways", "gateway: "),
        ("What was done to the store and the ways to it", "store: "),
        ("What the upstream was told to do", "upstream: "),
        ("What the clients did besides calling", "client: "),
        ("What the clients were told", "answer: "),
    ] {
        let rows = outcome.tally.group(group);
        if rows.is_empty() {
            continue;
        }
        let _ = write!(page, "\n## {title}\n\n| what | how often |\n|---|---:|\n");
        for (name, count) in rows {
            let _ = writeln!(page, "| {name} | {count} |");
        }
    }
    page.push_str("\n## What was not injected\n\n");
    page.push_str(if plan.store == Store::Embedded { NOT_ON_A_DISK } else { NOT_ON_A_SERVER });
    page.push_str(NEVER);
    page
}

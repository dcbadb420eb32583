//! Computes the capacity for a rate of keyed requests from the measured cost of one.

use crate::{gateway, postgres, redis};

const RATES: [f64; 3] = [1e3, 1e5, 1e6];

const DAY: f64 = 86_400.0;

/// Days for which a key is known after its response, by default.
const TOMBSTONE_DAYS_REDIS: f64 = 3.0;
const TOMBSTONE_DAYS_POSTGRES: f64 = 30.0;

/// Target utilization of a core, which leaves room for a burst or the loss of one machine.
const USE: f64 = 0.6;

/// Reasonable size of a Redis shard in bytes: a fork and a copy of it need room too.
const SHARD_BYTES: f64 = 24e9;

pub(crate) fn table(gateway: gateway::Costs, redis: redis::Costs, postgres: postgres::Costs) -> String {
    let mut text =
        "| keyed requests a second, each a new key | 1,000 | 100,000 | 1,000,000 |\n|---|---:|---:|---:|\n".to_owned();
    let mut row = |what: &str, value: &dyn Fn(f64) -> String| {
        let [few, many, most] = RATES.map(value);
        text += &format!("| {what} | {few} | {many} | {most} |\n");
    };
    let cores = |micros: f64| move |rate: f64| (rate * micros / 1e6 / USE).ceil();
    let redis_bytes = |rate: f64| rate * DAY * (redis.with_answer + redis.tombstone * TOMBSTONE_DAYS_REDIS);
    let postgres_bytes = |rate: f64| rate * DAY * (postgres.row + postgres.tombstone * TOMBSTONE_DAYS_POSTGRES);
    let shards = |rate: f64| (redis_bytes(rate) / SHARD_BYTES).ceil().max(cores(redis.micros)(rate));
    row("gateways: cores", &|rate| count(cores(gateway.micros)(rate)));
    row("Redis: cores", &|rate| count(cores(redis.micros)(rate)));
    row("Redis: memory (answers a day, tombstones three)", &|rate| bytes(redis_bytes(rate)));
    row("Redis Cluster: shards of 24 GB and a core, each with a replica", &|rate| count(shards(rate)));
    row("Redis: network to and from it, a second", &|rate| bytes(rate * redis.moved));
    row("PostgreSQL: cores", &|rate| count(cores(postgres.micros)(rate)));
    row("PostgreSQL: log, a second", &|rate| bytes(rate * postgres.log));
    row("PostgreSQL: disk (answers a day, tombstones 30)", &|rate| bytes(postgres_bytes(rate)));
    text
}

fn count(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn bytes(number: f64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let mut number = number;
    let mut unit = 0;
    while number >= 1e3 && unit + 1 < UNITS.len() {
        (number, unit) = (number / 1e3, unit + 1);
    }
    let digits = usize::from(number < 10.0);
    format!("{number:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_people_read_them() {
        assert_eq!([1.0, 999.0, 1000.0, 1_234_567.0].map(count), ["1", "999", "1,000", "1,234,567"]);
        assert_eq!([12.0, 1500.0, 2e10, 3.4e15].map(bytes), ["12 B", "1.5 kB", "20 GB", "3.4 PB"]);
    }

    #[test]
    fn what_is_measured_is_what_is_multiplied() {
        let redis = redis::Costs { micros: 6.0, with_answer: 1100.0, tombstone: 100.0, moved: 2000.0 };
        let postgres = postgres::Costs { micros: 60.0, log: 1000.0, row: 2000.0, tombstone: 100.0 };
        let text = table(gateway::Costs { micros: 60.0 }, redis, postgres);
        for line in [
            "| gateways: cores | 1 | 10 | 100 |",
            "| Redis: memory (answers a day, tombstones three) | 121 GB | 12 TB | 121 TB |",
            "| Redis: network to and from it, a second | 2.0 MB | 200 MB | 2.0 GB |",
            "| PostgreSQL: disk (answers a day, tombstones 30) | 432 GB | 43 TB | 432 TB |",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}

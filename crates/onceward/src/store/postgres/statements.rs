//! SQL statements. Each is one round trip and one transaction, so no state lives in a session.
//!
//! Writes are synced whatever the database's default is: `set_config` within the statement applies
//! to its commit.

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, Row, Statement};

use super::connect::Connected;

macro_rules! synced {
    () => {
        "set_config('synchronous_commit', 'on', true) IS NOT NULL AND set_config('lock_timeout', '1s', true) IS NOT NULL"
    };
}

/// Age of the record and start time of this server.
///
/// After a restart leases start again. Through a pooler, no broken connection would reveal the
/// restart.
macro_rules! age {
    () => {
        "(extract(epoch FROM clock_timestamp() - written) * 1000000)::bigint, \
         (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint"
    };
}

/// Reads first: a replay writes nothing and takes no lock.
const INSERT: &str = concat!(
    "WITH there AS MATERIALIZED (SELECT record, written FROM onceward.records WHERE id = $1), \
     won AS (INSERT INTO onceward.records (id, attempt, stage, record, written, due, look_at) \
     SELECT $1, $2, $3, $4, t.now, coalesce(t.now + $5 * interval '1 microsecond', 'infinity'), \
     coalesce(t.now + $5 * interval '1 microsecond', 'infinity') \
     FROM (SELECT clock_timestamp() AS now) t WHERE NOT EXISTS (SELECT FROM there) AND ",
    synced!(),
    " ON CONFLICT (id) DO NOTHING RETURNING 1) \
     SELECT NULL::bytea, 0::bigint, 0::bigint FROM won UNION ALL SELECT record, ",
    age!(),
    " FROM there"
);

macro_rules! set {
    () => {
        "SET attempt = $4, stage = $5, record = $6, written = t.now, \
         due = coalesce(t.now + $7 * interval '1 microsecond', 'infinity'), \
         look_at = least(r.look_at, coalesce(t.now + $7 * interval '1 microsecond', 'infinity')) "
    };
}

macro_rules! done_or_there {
    () => {
        concat!(
            " RETURNING 1) SELECT NULL::bytea, 0::bigint, 0::bigint FROM done UNION ALL SELECT record, ",
            age!(),
            " FROM onceward.records WHERE id = $1 AND NOT EXISTS (SELECT FROM done)"
        )
    };
}

/// Completion of an attempt: nobody else has reason to lock the row.
const COMPLETE: &str = concat!(
    "WITH done AS (UPDATE onceward.records r ",
    set!(),
    "FROM (SELECT clock_timestamp() AS now) t WHERE r.id = $1 AND r.attempt = $2 AND r.stage = $3 AND ",
    synced!(),
    done_or_there!()
);

/// Compare-and-swap that skips a locked row: its lock holder is alive, and waiting would delay
/// everything queued behind.
const REPLACE: &str = concat!(
    "WITH free AS MATERIALIZED (SELECT id FROM onceward.records WHERE id = $1 AND attempt = $2 AND stage = $3 \
     FOR NO KEY UPDATE SKIP LOCKED), done AS (UPDATE onceward.records r ",
    set!(),
    "FROM free, (SELECT clock_timestamp() AS now) t WHERE r.id = free.id AND ",
    synced!(),
    done_or_there!()
);

/// Settings of a batch statement, evaluated once and not per row.
///
/// The lock timeout is short: a locked row fails its neighbours, and each is then retried alone.
macro_rules! synced_once {
    () => {
        "(SELECT set_config('synchronous_commit', 'on', true) IS NOT NULL AND set_config('lock_timeout', '100ms', true) IS NOT NULL)"
    };
}

macro_rules! due {
    () => {
        "coalesce(t.now + a.due * interval '1 microsecond', 'infinity')"
    };
}

/// [`INSERT`] for a batch.
///
/// The rows are sorted by id, and so are their locks: two batches cannot deadlock.
/// A row that was inserted concurrently, after the snapshot, is not returned.
const INSERT_MANY: &str = concat!(
    "WITH there AS MATERIALIZED (SELECT r.id, r.record, r.written FROM unnest($1) a(id) JOIN onceward.records r ON r.id = a.id), \
     won AS (INSERT INTO onceward.records (id, attempt, stage, record, written, due, look_at) \
     SELECT a.id, a.attempt, a.stage, a.record, t.now, ",
    due!(),
    ", ",
    due!(),
    " FROM (SELECT clock_timestamp() AS now) t, \
     unnest($1, $2, $3, $4, $5) WITH ORDINALITY a(id, attempt, stage, record, due, n) \
     WHERE a.id NOT IN (SELECT id FROM there) AND ",
    synced_once!(),
    " ORDER BY a.n ON CONFLICT (id) DO NOTHING RETURNING id) \
     SELECT NULL::bytea, 0::bigint, 0::bigint, id FROM won UNION ALL SELECT record, ",
    age!(),
    ", id FROM there"
);

/// [`COMPLETE`] for a batch. It returns the rows replaced; the others are retried alone.
const COMPLETE_MANY: &str = concat!(
    "UPDATE onceward.records r SET stage = a.stage, record = a.record, written = t.now, due = ",
    due!(),
    ", look_at = least(r.look_at, ",
    due!(),
    ") FROM (SELECT clock_timestamp() AS now) t, unnest($1, $2, $3, $4, $5) a(id, attempt, stage, record, due) \
     WHERE r.id = a.id AND r.attempt = a.attempt AND r.stage = 1 AND ",
    synced_once!(),
    " RETURNING NULL::bytea, 0::bigint, 0::bigint, r.id"
);

/// [`REPLACE`] for a batch. It returns the rows replaced; locked and conflicting ones are retried
/// alone.
const REPLACE_MANY: &str = concat!(
    "WITH free AS MATERIALIZED (SELECT r.id, a.attempt, a.stage, a.record, a.due \
     FROM unnest($1, $2, $3, $4, $5, $6, $7) a(id, over_attempt, over_stage, attempt, stage, record, due) \
     JOIN onceward.records r ON r.id = a.id AND r.attempt = a.over_attempt AND r.stage = a.over_stage \
     FOR NO KEY UPDATE OF r SKIP LOCKED) \
     UPDATE onceward.records r SET attempt = a.attempt, stage = a.stage, record = a.record, written = t.now, due = ",
    due!(),
    ", look_at = least(r.look_at, ",
    due!(),
    ") FROM (SELECT clock_timestamp() AS now) t, free a WHERE r.id = a.id AND ",
    synced_once!(),
    " RETURNING NULL::bytea, 0::bigint, 0::bigint, r.id"
);

/// [`REMOVE`] for a batch, in the same way.
const REMOVE_MANY: &str = concat!(
    "WITH free AS MATERIALIZED (SELECT r.id FROM unnest($1, $2, $3) a(id, attempt, stage) \
     JOIN onceward.records r ON r.id = a.id AND r.attempt = a.attempt AND r.stage = a.stage FOR UPDATE OF r SKIP LOCKED) \
     DELETE FROM onceward.records r USING free WHERE r.id = free.id AND ",
    synced_once!(),
    " RETURNING true, 0::bigint, 0::bigint, r.id"
);

const GET: &str = concat!("SELECT record, ", age!(), " FROM onceward.records WHERE id = $1");

const REMOVE: &str = concat!(
    "WITH free AS MATERIALIZED (SELECT id FROM onceward.records WHERE id = $1 AND attempt = $2 AND stage = $3 \
     FOR UPDATE SKIP LOCKED), done AS (DELETE FROM onceward.records r USING free WHERE r.id = free.id AND ",
    synced!(),
    " RETURNING 1) SELECT true FROM done UNION ALL SELECT false FROM onceward.records \
     WHERE id = $1 AND attempt = $2 AND stage = $3 AND NOT EXISTS (SELECT FROM done)"
);

/// Corrects `look_at`. It is a hint that may be lost, so its commit is not synced.
pub(super) const REFRESH_DUE: &str = "WITH stale AS MATERIALIZED (SELECT id FROM onceward.records \
     WHERE look_at <= statement_timestamp() AND look_at < due ORDER BY look_at LIMIT 1000 FOR NO KEY UPDATE SKIP LOCKED), \
     listed AS (UPDATE onceward.records r SET look_at = r.due FROM stale \
     WHERE r.id = stale.id AND set_config('synchronous_commit', 'off', true) IS NOT NULL RETURNING 1) \
     SELECT count(*) FROM listed";

pub(super) const DUE: &str = concat!(
    "SELECT record, ",
    age!(),
    ", id FROM onceward.records WHERE look_at <= statement_timestamp() AND due <= statement_timestamp() \
     ORDER BY look_at, id LIMIT $1 OFFSET $2"
);

pub(super) const META: &str = concat!(
    "WITH there AS MATERIALIZED (SELECT value FROM onceward.meta WHERE name = $1), \
     won AS (INSERT INTO onceward.meta (name, value) SELECT $1, $2 WHERE NOT EXISTS (SELECT FROM there) AND ",
    synced!(),
    " ON CONFLICT (name) DO NOTHING RETURNING value) SELECT value FROM won UNION ALL SELECT value FROM there"
);

pub(super) const COUNT: &str =
    "SELECT stage, count(*), coalesce(sum(octet_length(record)), 0)::bigint FROM onceward.records GROUP BY stage";

/// Prepared statement.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    Insert,
    Complete,
    Replace,
    Get,
    Remove,
    InsertMany,
    CompleteMany,
    ReplaceMany,
    RemoveMany,
}

/// Parameter and its type.
pub(super) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// Planner settings of a direct session.
///
/// A generic plan must suit a table that grows from nothing to millions of rows, and batches of any
/// size.
/// So it always uses the index. No guarantee depends on it.
const PLAN: &str = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_hashjoin = off; \
     SET enable_mergejoin = off; SET enable_material = off; SET jit = off";

const OPS: [(Op, &str, &[Type]); 9] = [
    (Op::Insert, INSERT, &[Type::BYTEA, Type::BYTEA, Type::INT2, Type::BYTEA, Type::INT8]),
    (Op::Complete, COMPLETE, REPLACED),
    (Op::Replace, REPLACE, REPLACED),
    (Op::Get, GET, &[Type::BYTEA]),
    (Op::Remove, REMOVE, &[Type::BYTEA, Type::BYTEA, Type::INT2]),
    (Op::InsertMany, INSERT_MANY, MANY),
    (Op::CompleteMany, COMPLETE_MANY, MANY),
    (Op::ReplaceMany, REPLACE_MANY, REPLACED_MANY),
    (Op::RemoveMany, REMOVE_MANY, &[Type::BYTEA_ARRAY, Type::BYTEA_ARRAY, Type::INT2_ARRAY]),
];

const MANY: &[Type] = &[Type::BYTEA_ARRAY, Type::BYTEA_ARRAY, Type::INT2_ARRAY, Type::BYTEA_ARRAY, Type::INT8_ARRAY];

const REPLACED_MANY: &[Type] = &[
    Type::BYTEA_ARRAY,
    Type::BYTEA_ARRAY,
    Type::INT2_ARRAY,
    Type::BYTEA_ARRAY,
    Type::INT2_ARRAY,
    Type::BYTEA_ARRAY,
    Type::INT8_ARRAY,
];

const REPLACED: &[Type] = &[Type::BYTEA, Type::BYTEA, Type::INT2, Type::BYTEA, Type::INT2, Type::BYTEA, Type::INT8];

/// Statements of one connection: prepared, or sent as text each time.
#[derive(Debug)]
pub(super) struct Statements(Option<Vec<Statement>>);

impl Statements {
    pub(super) async fn new(connected: &Connected, are_of_use: bool) -> Result<Self, Error> {
        let client = &connected.client;
        // Through a pooler, other clients would inherit these settings.
        if connected.is_direct && connected.prepares {
            client.batch_execute(PLAN).await?;
        }
        if !connected.prepares || !are_of_use {
            return Ok(Self(None));
        }
        let prepared = OPS.iter().map(|(_, text, types)| client.prepare_typed(text, types));
        futures_util::future::try_join_all(prepared).await.map(|prepared| Self(Some(prepared)))
    }

    pub(super) async fn run(&self, client: &Client, op: Op, params: &[Param<'_>]) -> Result<Vec<Row>, Error> {
        match &self.0 {
            Some(prepared) => {
                let values: Vec<_> = params.iter().map(|(value, _)| *value).collect();
                client.query(&prepared[op as usize], &values).await
            }
            None => client.query_typed(OPS[op as usize].1, params).await,
        }
    }
}

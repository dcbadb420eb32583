CREATE SCHEMA IF NOT EXISTS onceward;

-- One row: the version of this schema. A program that knows a lower one does not start.
CREATE TABLE onceward.schema_version (
    version integer NOT NULL,
    applied timestamptz NOT NULL DEFAULT now()
);

-- One row a key. Room is left in each page, so that an answer replaces its claim beside it (a HOT update): no indexed
-- column changes between them.
CREATE TABLE onceward.records (
    id      bytea       NOT NULL PRIMARY KEY,    -- a keyed hash of namespace, principal and key: 32 bytes
    attempt bytea       NOT NULL,                -- the last attempt: 16 bytes
    stage   smallint    NOT NULL,                -- 1 in flight, 2 completed, 3 released, 4 unknown, 5 tombstone
    written timestamptz NOT NULL,                -- the last write, by this server's clock
    due     timestamptz NOT NULL,                -- when something is to be done about it; infinity: never
    look_at timestamptz NOT NULL,                -- where it stands in the list of what is due: then, or earlier
    record  bytea       NOT NULL                 -- all of it, with a checksum; see codec.rs
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);

-- Answers are compressed by whoever sends them, or not at all.
ALTER TABLE onceward.records ALTER COLUMN record SET STORAGE EXTERNAL;

CREATE INDEX records_look_at ON onceward.records (look_at);

-- Values with a name: the secret that hashes the keys, and the store's identity.
CREATE TABLE onceward.meta (
    name  text  NOT NULL PRIMARY KEY,
    value bytea NOT NULL
);

INSERT INTO onceward.schema_version (version) VALUES (1);

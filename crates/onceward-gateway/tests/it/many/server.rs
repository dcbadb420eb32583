//! The servers, in the words of tests that do not care which it is.

use std::net::SocketAddr;
use std::sync::LazyLock;

use crate::postgres::Postgres;
use crate::redis::Redis;

/// A server whose store many gateways share.
pub(crate) trait Server: Sized + 'static {
    /// The one that all tests of this process share, and none of them hurts.
    fn common() -> &'static Self;

    /// One for a test that hurts it.
    fn own() -> Self;

    fn place(&self) -> SocketAddr;

    /// The URL of an empty store.
    fn empty(&self) -> String;

    /// Kills it as a crash would.
    fn crash(&mut self);

    /// Starts it again, with what it had.
    fn back(&mut self);

    /// One that can be filled, and the URL of an empty store in it.
    fn small() -> (Self, String);

    /// Fills that store, until it takes nothing new.
    fn fill(&self);

    /// Makes room in it again.
    fn make_room(&self);

    /// One of its own that counts what it is asked.
    fn counting() -> Self;

    /// How many statements or commands it has done so far.
    fn done(&self) -> u64;
}

impl Server for Postgres {
    fn common() -> &'static Self {
        static COMMON: LazyLock<Postgres> = LazyLock::new(Postgres::own);
        &COMMON
    }

    fn own() -> Self {
        Self::start(15, "")
    }

    fn place(&self) -> SocketAddr {
        self.address
    }

    fn empty(&self) -> String {
        self.database()
    }

    fn crash(&mut self) {
        self.stop("immediate");
    }

    fn back(&mut self) {
        self.start_again();
    }

    fn small() -> (Self, String) {
        let server = Self::with_a_small_disk(15, 24);
        server.sql("postgres", "CREATE DATABASE small TABLESPACE small");
        let url = server.url("small");
        (server, url)
    }

    fn fill(&self) {
        self.sql("small", "CREATE TABLE filler (t text); ALTER TABLE filler ALTER t SET STORAGE EXTERNAL");
        // In ever smaller pieces, until there is no room for a page.
        let fill = "DO $$ DECLARE bytes int := 4000000; BEGIN LOOP
            BEGIN INSERT INTO filler SELECT repeat('x', bytes);
            EXCEPTION WHEN disk_full THEN EXIT WHEN bytes < 1000; bytes := bytes / 4; END;
        END LOOP; END $$";
        self.sql("small", fill);
    }

    fn make_room(&self) {
        self.sql("small", "DROP TABLE filler");
    }

    fn counting() -> Self {
        let server =
            Self::start(15, "shared_preload_libraries = 'pg_stat_statements'\npg_stat_statements.track = 'top'");
        server.sql("postgres", "CREATE EXTENSION pg_stat_statements");
        server
    }

    fn done(&self) -> u64 {
        self.sql("postgres", "SELECT sum(calls) FROM pg_stat_statements").parse().unwrap()
    }
}

impl Server for Redis {
    fn common() -> &'static Self {
        static COMMON: LazyLock<Redis> = LazyLock::new(Redis::own);
        &COMMON
    }

    fn own() -> Self {
        Self::start("")
    }

    fn place(&self) -> SocketAddr {
        self.address
    }

    fn empty(&self) -> String {
        self.url(self.database())
    }

    fn crash(&mut self) {
        self.kill();
    }

    fn back(&mut self) {
        self.start_again(true);
    }

    fn small() -> (Self, String) {
        let server = Self::own();
        let url = server.empty();
        (server, url)
    }

    fn fill(&self) {
        self.cli(0, &["CONFIG", "SET", "maxmemory", "1"]);
    }

    fn make_room(&self) {
        self.cli(0, &["CONFIG", "SET", "maxmemory", "0"]);
    }

    fn counting() -> Self {
        Self::own()
    }

    fn done(&self) -> u64 {
        self.info("total_commands_processed")
    }
}

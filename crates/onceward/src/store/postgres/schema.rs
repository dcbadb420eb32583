//! The schema, and how it comes to be there.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::failure;
use crate::store::Error;

/// Each step brings the schema to the version of its place in the list, and says so in `onceward.schema_version`.
const STEPS: [&str; 1] = [include_str!("0001.sql")];

/// The version that this program knows.
const KNOWN: i32 = STEPS.len() as i32;

/// Those who migrate at once wait for each other here.
const LOCK: &str = "SELECT pg_advisory_xact_lock(7953752174926521444)";

/// All steps as one text, for people's own tools.
pub(super) fn script() -> String {
    let mut script =
        String::from("-- The schema of Onceward's store, from nothing. `onceward migrate` does the same.\n");
    for (n, step) in STEPS.iter().enumerate() {
        script.push_str(&format!("\n-- Version {}\nBEGIN;\n{LOCK};\n{step}COMMIT;\n", n + 1));
    }
    script.push_str(
        "\n-- The role that serves needs no more than this; put its name here:\n\
         -- GRANT USAGE ON SCHEMA onceward TO serving;\n\
         -- GRANT SELECT ON onceward.schema_version TO serving;\n\
         -- GRANT SELECT, INSERT, UPDATE, DELETE ON onceward.records, onceward.meta TO serving;\n",
    );
    script
}

/// Sees to it that the schema is of the version that is known, and returns from which it came.
pub(super) async fn bring_up(client: &Client) -> Result<i32, Error> {
    let found = version(client).await?;
    refuse_newer(found)?;
    if found == KNOWN {
        return Ok(found);
    }
    // In the text of one transaction each, so that it holds through PgBouncer too.
    client.batch_execute("BEGIN").await.map_err(failed)?;
    let done = migrate_within(client).await;
    let end = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
    client.batch_execute(end).await.map_err(failed)?;
    done?;
    Ok(found)
}

async fn migrate_within(client: &Client) -> Result<(), Error> {
    client.batch_execute(&format!("SET LOCAL synchronous_commit = on; {LOCK}")).await.map_err(failed)?;
    // Another may have been first.
    let found = version(client).await?;
    refuse_newer(found)?;
    for step in &STEPS[usize::try_from(found).unwrap_or(0)..] {
        client.batch_execute(step).await.map_err(failed)?;
    }
    Ok(())
}

/// 0: there is nothing yet.
async fn version(client: &Client) -> Result<i32, Error> {
    // Not by `to_regclass`: after waiting for the lock, a session would go on believing what it looked up before.
    let exists = "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = 'onceward' AND c.relname = 'schema_version')";
    let exists: bool = client.query_typed_one(exists, &[]).await.map_err(failed)?.get(0);
    if !exists {
        return Ok(0);
    }
    let version = "SELECT coalesce(max(version), 0) FROM onceward.schema_version";
    Ok(client.query_typed_one(version, &[]).await.map_err(failed)?.get(0))
}

fn refuse_newer(found: i32) -> Result<(), Error> {
    match found > KNOWN {
        true => Err(Error::refused(format!(
            "the database has version {found} of the schema onceward, and this program knows {KNOWN}; run a newer program"
        ))),
        false => Ok(()),
    }
}

fn failed(error: tokio_postgres::Error) -> Error {
    if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
        let what = "the role may not make the schema onceward; run `onceward migrate` with one that may, once, and grant this \
                    one what `onceward migrate --print` ends with";
        return Error::refused(what).because(error);
    }
    failure::error("the schema cannot be brought up to date", error)
}

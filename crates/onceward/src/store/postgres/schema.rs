//! Schema and its migrations.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::failure;
use crate::store::Error;

/// Migrations in order. Each brings the schema to the version of its index and records it in
/// `onceward.schema_version`.
const STEPS: [&str; 1] = [include_str!("0001.sql")];

/// Latest version that this program knows.
const KNOWN: i32 = STEPS.len() as i32;

/// Advisory lock that serializes concurrent migrations.
const LOCK: &str = "SELECT pg_advisory_xact_lock(7953752174926521444)";

/// Returns all migrations as one script, for migration tools.
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

/// Migrates the schema to the latest known version, and returns the version found.
pub(super) async fn migrate(client: &Client) -> Result<i32, Error> {
    let found = version(client).await?;
    refuse_newer(found)?;
    if found == KNOWN {
        return Ok(found);
    }
    // In explicit transactions, which also work through PgBouncer.
    client.batch_execute("BEGIN").await.map_err(failed)?;
    let done = migrate_in_transaction(client).await;
    let end = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
    client.batch_execute(end).await.map_err(failed)?;
    done?;
    Ok(found)
}

async fn migrate_in_transaction(client: &Client) -> Result<(), Error> {
    client.batch_execute(&format!("SET LOCAL synchronous_commit = on; {LOCK}")).await.map_err(failed)?;
    // Another process may have migrated first.
    let found = version(client).await?;
    refuse_newer(found)?;
    for step in &STEPS[usize::try_from(found).unwrap_or(0)..] {
        client.batch_execute(step).await.map_err(failed)?;
    }
    Ok(())
}

/// Returns the version of the schema; 0 if there is none.
async fn version(client: &Client) -> Result<i32, Error> {
    // Not `to_regclass`: after waiting for the lock, the session would still use its cached lookup.
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
            "the database has version {found} of the schema onceward, and this program knows only {KNOWN}; run a newer program"
        ))),
        false => Ok(()),
    }
}

fn failed(error: tokio_postgres::Error) -> Error {
    if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
        let what = "the role may not create the schema onceward; run `onceward migrate` once with a role that may, and grant this \
        role what `onceward migrate --print` ends with";
        return Error::refused(what).with_source(error);
    }
    failure::error("the migration of the schema onceward failed", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Applied migrations are never edited; a change of the schema is another migration.
    #[test]
    fn migrations_do_not_change() {
        let [first] = STEPS;
        assert_eq!(
            blake3::hash(first.as_bytes()).to_hex().as_str(),
            "fd4e4b4dee027692f23317dc804d13de9df2d0aa3f8fd0fd8ff8ded28b00de60"
        );
    }
}

//! `onceward migrate`: manages the PostgreSQL schema.

use std::process::ExitCode;

use onceward::store::postgres;

use crate::cli::Migrate;

/// Creates the schema, updates it, or prints it.
pub(crate) fn run(migrate: &Migrate) -> ExitCode {
    if migrate.print {
        print!("{}", postgres::schema_script());
        return ExitCode::SUCCESS;
    }
    let Some(url) = migrate.store.clone().or_else(|| std::env::var("ONCEWARD_STORE").ok()) else {
        eprintln!("onceward: --store is required; write --store postgres://USER:PASSWORD@HOST/DATABASE");
        return ExitCode::from(2);
    };
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        eprintln!("onceward: --store: only postgres:// has a schema; the other stores need no migration");
        return ExitCode::from(2);
    }
    let migrated = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())
        .and_then(|runtime| runtime.block_on(postgres::migrate(&url)).map_err(|error| crate::chain(&error)));
    match migrated {
        Ok(before) => {
            println!("the schema is up to date; it was at version {before}");
            ExitCode::SUCCESS
        }
        Err(what) => {
            eprintln!("onceward: store: {}", what.replace(['\n', '\r'], " "));
            ExitCode::FAILURE
        }
    }
}

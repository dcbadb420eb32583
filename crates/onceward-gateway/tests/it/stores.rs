//! Which store the gateways of a run have: `ONCEWARD_TEST_STORE=postgres` runs the same tests over PostgreSQL.

/// Whether many gateways may have it at once.
pub(crate) fn is_shared() -> bool {
    std::env::var("ONCEWARD_TEST_STORE").is_ok_and(|store| store != "embedded")
}

/// A store that is empty.
pub(crate) fn url() -> String {
    match std::env::var("ONCEWARD_TEST_STORE").as_deref() {
        Err(_) | Ok("embedded") => "embedded:onceward-data".into(),
        #[cfg(feature = "postgres")]
        Ok("postgres") => crate::pair::POSTGRES.database(),
        Ok(other) => panic!("ONCEWARD_TEST_STORE: {other:?} is not known; write embedded or postgres"),
    }
}

//! Which store the gateways of a run have, and how many there are: `ONCEWARD_TEST_STORE=redis` runs the same tests over Redis,
//! and `ONCEWARD_TEST_GATEWAYS=2` with two gateways on it, to which clients come in turn.

/// Whether many gateways may have it at once.
pub(crate) fn is_shared() -> bool {
    std::env::var("ONCEWARD_TEST_STORE").is_ok_and(|store| store != "embedded")
}

/// Whether a gateway is two.
pub(crate) fn are_two() -> bool {
    match std::env::var("ONCEWARD_TEST_GATEWAYS").as_deref() {
        Err(_) | Ok("1") => false,
        Ok("2") if is_shared() => true,
        Ok(other) => panic!("ONCEWARD_TEST_GATEWAYS: {other:?}: write 1, or 2 where ONCEWARD_TEST_STORE is a server"),
    }
}

/// A store that is empty.
pub(crate) fn url() -> String {
    match std::env::var("ONCEWARD_TEST_STORE").as_deref() {
        Err(_) | Ok("embedded") => "embedded:onceward-data".into(),
        #[cfg(all(target_os = "linux", feature = "postgres", feature = "redis"))]
        Ok("postgres") => crate::many::empty::<crate::postgres::Postgres>(),
        #[cfg(all(target_os = "linux", feature = "postgres", feature = "redis"))]
        Ok("redis") => crate::many::empty::<crate::redis::Redis>(),
        Ok(other) => panic!("ONCEWARD_TEST_STORE: {other:?} is not known; write embedded, postgres or redis"),
    }
}

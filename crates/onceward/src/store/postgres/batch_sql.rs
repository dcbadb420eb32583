//! Builds the statement for one operation, or for a batch of one kind.

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, Row};

use super::job::{ExpectedVersion, Group, Job, Operation};
use super::statements::{Op, Param, Statements};

/// Sends a single operation.
pub(super) async fn send_one(statements: &Statements, client: &Client, job: &Job) -> Result<Option<Row>, Error> {
    let id = job.id.0.as_slice();
    let op = match &job.operation {
        Operation::Insert(_) => Op::Insert,
        Operation::Complete(_) => Op::Complete,
        Operation::Replace(..) => Op::Replace,
        Operation::Get => Op::Get,
        Operation::Remove(_) => Op::Remove,
    };
    let over = job.operation.expected();
    let over = over.as_ref().map(|over| (over.attempt.as_slice(), &over.stage));
    let write = job.operation.write();
    let write = write.map(|write| (write.attempt.as_slice(), &write.stage, &write.record[..], &write.due));
    let mut params: Vec<Param<'_>> = vec![(&id, Type::BYTEA)];
    if let Some((attempt, stage)) = &over {
        params.extend([(attempt as _, Type::BYTEA), (*stage as _, Type::INT2)]);
    }
    if let Some((attempt, stage, record, due)) = &write {
        params.extend([
            (attempt as _, Type::BYTEA),
            (*stage as _, Type::INT2),
            (record as _, Type::BYTEA),
            (*due as _, Type::INT8),
        ]);
    }
    Ok(statements.run(client, op, &params).await?.into_iter().next())
}

/// Sends a batch of one kind, sorted by id, as one statement. Each row returned names its id.
pub(super) async fn send_many(statements: &Statements, client: &Client, jobs: &[Job]) -> Result<Vec<Row>, Error> {
    let op = match jobs.first().map(|job| job.operation.group()) {
        Some(Group::Completions) => Op::CompleteMany,
        Some(Group::Replacements) => Op::ReplaceMany,
        Some(Group::Removals) => Op::RemoveMany,
        _ => Op::InsertMany,
    };
    let expected_versions: Vec<ExpectedVersion> = match op {
        // The statement itself requires that the record is in flight.
        Op::CompleteMany => Vec::new(),
        _ => jobs.iter().filter_map(|job| job.operation.expected()).collect(),
    };
    let over_attempts: Vec<&[u8]> = expected_versions.iter().map(|over| over.attempt.as_slice()).collect();
    let over_stages: Vec<i16> = expected_versions.iter().map(|over| over.stage).collect();
    let writes = || jobs.iter().filter_map(|job| job.operation.write());
    let ids: Vec<&[u8]> = jobs.iter().map(|job| job.id.0.as_slice()).collect();
    let attempts: Vec<&[u8]> = writes().map(|write| write.attempt.as_slice()).collect();
    let stages: Vec<i16> = writes().map(|write| write.stage).collect();
    let records: Vec<&[u8]> = writes().map(|write| &write.record[..]).collect();
    let dues: Vec<Option<i64>> = writes().map(|write| write.due).collect();
    let mut params: Vec<Param<'_>> = vec![(&ids, Type::BYTEA_ARRAY)];
    if !expected_versions.is_empty() {
        params.extend([(&over_attempts as _, Type::BYTEA_ARRAY), (&over_stages as _, Type::INT2_ARRAY)]);
    }
    if !attempts.is_empty() {
        params.extend([
            (&attempts as _, Type::BYTEA_ARRAY),
            (&stages as _, Type::INT2_ARRAY),
            (&records as _, Type::BYTEA_ARRAY),
            (&dues as _, Type::INT8_ARRAY),
        ]);
    }
    statements.run(client, op, &params).await
}

/// Matches rows to jobs by id; `None` for a job without a row.
pub(super) fn match_rows(jobs: &[Job], rows: Vec<Row>) -> Vec<Option<Row>> {
    let mut match_rows: Vec<Option<Row>> = jobs.iter().map(|_| None).collect();
    for row in rows {
        let place =
            row.try_get::<_, &[u8]>(3).ok().and_then(|id| jobs.binary_search_by(|job| job.id.0[..].cmp(id)).ok());
        if let Some(place) = place {
            match_rows[place] = Some(row);
        }
    }
    match_rows
}

//! What is said in one statement: one question, or many of a kind.

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, Row};

use super::ask::{Ask, Group, Over, Question};
use super::statements::{Op, Param, Statements};

/// Sends one question by itself.
pub(super) async fn send_one(statements: &Statements, client: &Client, ask: &Ask) -> Result<Option<Row>, Error> {
    let id = ask.id.0.as_slice();
    let op = match &ask.question {
        Question::Insert(_) => Op::Insert,
        Question::Complete(_) => Op::Complete,
        Question::Replace(..) => Op::Replace,
        Question::Get => Op::Get,
        Question::Remove(_) => Op::Remove,
    };
    let over = ask.question.over();
    let over = over.as_ref().map(|over| (over.attempt.as_slice(), &over.stage));
    let write = ask.question.write();
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

/// Sends many of a kind, which are in the order of their ids, as one statement. Each row of the answer names its id.
pub(super) async fn send_many(statements: &Statements, client: &Client, asks: &[Ask]) -> Result<Vec<Row>, Error> {
    let op = match asks.first().map(|ask| ask.question.group()) {
        Some(Group::Completions) => Op::CompleteMany,
        Some(Group::Replacements) => Op::ReplaceMany,
        Some(Group::Removals) => Op::RemoveMany,
        _ => Op::InsertMany,
    };
    let overs: Vec<Over> = match op {
        // What is completed was in flight; the statement says so.
        Op::CompleteMany => Vec::new(),
        _ => asks.iter().filter_map(|ask| ask.question.over()).collect(),
    };
    let over_attempts: Vec<&[u8]> = overs.iter().map(|over| over.attempt.as_slice()).collect();
    let over_stages: Vec<i16> = overs.iter().map(|over| over.stage).collect();
    let writes = || asks.iter().filter_map(|ask| ask.question.write());
    let ids: Vec<&[u8]> = asks.iter().map(|ask| ask.id.0.as_slice()).collect();
    let attempts: Vec<&[u8]> = writes().map(|write| write.attempt.as_slice()).collect();
    let stages: Vec<i16> = writes().map(|write| write.stage).collect();
    let records: Vec<&[u8]> = writes().map(|write| &write.record[..]).collect();
    let dues: Vec<Option<i64>> = writes().map(|write| write.due).collect();
    let mut params: Vec<Param<'_>> = vec![(&ids, Type::BYTEA_ARRAY)];
    if !overs.is_empty() {
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

/// Deals the rows out: each question its own, or none where no row names its id.
pub(super) fn dealt(asks: &[Ask], rows: Vec<Row>) -> Vec<Option<Row>> {
    let mut dealt: Vec<Option<Row>> = asks.iter().map(|_| None).collect();
    for row in rows {
        let place =
            row.try_get::<_, &[u8]>(3).ok().and_then(|id| asks.binary_search_by(|ask| ask.id.0[..].cmp(id)).ok());
        if let Some(place) = place {
            dealt[place] = Some(row);
        }
    }
    dealt
}

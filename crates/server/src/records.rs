//! Jobs and notices as rows of the journal. Every function is one statement or two on a connection, to be run in
//! [`crate::journal::Journal::write`] or `read`; names of enums and JSON are serde's.

use rusqlite::{Connection, OptionalExtension, Row, named_params, types::Type};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    ask::Ask,
    clock::Millis,
    error::Fault,
    job::{Dialect, JobId, LogLine, Moment, NewJob, Outcome, Priority, State, Webhook},
    owner::Owner,
};

/// A job with all that is kept of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    pub(crate) id: JobId,
    pub(crate) dialect: Dialect,
    pub(crate) owner: Owner,
    pub(crate) endpoint: String,
    pub(crate) ask: Result<Ask, Fault>,
    pub(crate) raw: Value,
    pub(crate) priority: Priority,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) secret: Option<String>,
    pub(crate) webhook: Option<Webhook>,
    pub(crate) only_while_held: bool,
    pub(crate) start_by: Option<Millis>,
    pub(crate) finish_by: Option<Millis>,
    pub(crate) state: State,
    pub(crate) accepted: Millis,
    pub(crate) started: Option<Millis>,
    pub(crate) finished: Option<Millis>,
    pub(crate) starts: u32,
    pub(crate) outcome: Option<Outcome>,
    pub(crate) logs: Vec<LogLine>,
}

/// Somebody who has to be told that something happened to a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Counts up, never used again.
    pub id: i64,
    /// About which job.
    pub job: JobId,
    /// What happened.
    pub moment: Moment,
    /// Where to.
    pub url: String,
    /// See [`Webhook::base`].
    pub base: Option<String>,
    /// When it happened.
    pub made: Millis,
    /// How often it was tried.
    pub tries: u32,
}

impl Record {
    /// What is kept of a job that was just asked for.
    pub(crate) fn new(id: JobId, new: NewJob, now: Millis) -> Self {
        Self {
            id,
            dialect: new.dialect,
            owner: new.owner,
            endpoint: new.endpoint,
            ask: new.ask,
            raw: new.raw,
            priority: new.priority,
            idempotency_key: new.idempotency_key,
            secret: new.secret,
            webhook: new.webhook,
            only_while_held: new.only_while_held,
            start_by: new.start_by,
            finish_by: new.finish_by,
            state: State::Queued,
            accepted: now,
            started: None,
            finished: None,
            starts: 0,
            outcome: None,
            logs: Vec::new(),
        }
    }
}

const COLUMNS: &str = "id, dialect, owner, endpoint, ask, raw, priority, idempotency_key, secret, webhook, \
                       only_while_held, start_by, finish_by, state, accepted, started, finished, starts, outcome, logs";

pub(crate) fn insert(connection: &Connection, record: &Record) -> rusqlite::Result<()> {
    let sql = format!(
        "INSERT INTO jobs ({COLUMNS}) VALUES (:id, :dialect, :owner, :endpoint, :ask, :raw, :priority, :key, :secret, \
         :webhook, :only_while_held, :start_by, :finish_by, :state, :accepted, :started, :finished, :starts, :outcome, :logs)"
    );
    connection.prepare_cached(&sql)?.execute(named_params! {
        ":id": record.id.as_str(),
        ":dialect": name(&record.dialect)?,
        ":owner": &*record.owner.0,
        ":endpoint": record.endpoint,
        ":ask": json(&record.ask)?,
        ":raw": json(&record.raw)?,
        ":priority": name(&record.priority)?,
        ":key": record.idempotency_key,
        ":secret": record.secret,
        ":webhook": record.webhook.as_ref().map(json).transpose()?,
        ":only_while_held": record.only_while_held,
        ":start_by": record.start_by,
        ":finish_by": record.finish_by,
        ":state": name(&record.state)?,
        ":accepted": record.accepted,
        ":started": record.started,
        ":finished": record.finished,
        ":starts": record.starts,
        ":outcome": record.outcome.as_ref().map(json).transpose()?,
        ":logs": json(&record.logs)?,
    })?;
    Ok(())
}

/// The request changed: its pictures were fetched.
pub(crate) fn set_ask(connection: &Connection, id: &JobId, ask: &Ask) -> rusqlite::Result<()> {
    let ask: Result<&Ask, &Fault> = Ok(ask);
    let sql = "UPDATE jobs SET ask = ?2 WHERE id = ?1 AND finished IS NULL";
    connection.prepare_cached(sql)?.execute((id.as_str(), json(&ask)?))?;
    Ok(())
}

/// The worker has it: one more start.
pub(crate) fn start(connection: &Connection, id: &JobId, now: Millis) -> rusqlite::Result<()> {
    let sql = "UPDATE jobs SET state = ?2, started = ?3, starts = starts + 1 WHERE id = ?1 AND finished IS NULL";
    connection.prepare_cached(sql)?.execute((id.as_str(), name(&State::Running)?, now))?;
    Ok(())
}

/// It waits again, and its last start does not count.
pub(crate) fn requeue(connection: &Connection, id: &JobId) -> rusqlite::Result<()> {
    let sql =
        "UPDATE jobs SET state = ?2, started = NULL, starts = max(starts - 1, 0) WHERE id = ?1 AND finished IS NULL";
    connection.prepare_cached(sql)?.execute((id.as_str(), name(&State::Queued)?))?;
    Ok(())
}

/// It ended. An end that is there already stays: a job ends once.
pub(crate) fn end(
    connection: &Connection,
    id: &JobId,
    outcome: &Outcome,
    logs: &[LogLine],
    now: Millis,
) -> rusqlite::Result<()> {
    let state = state_of(outcome);
    // A caller who went away and asks again with the same key wants a picture, not the cancelled job.
    let sql = "UPDATE jobs SET state = ?2, outcome = ?3, logs = ?4, finished = ?5,
               idempotency_key = CASE WHEN only_while_held AND ?6 THEN NULL ELSE idempotency_key END
               WHERE id = ?1 AND finished IS NULL";
    let cancelled = state == State::Cancelled;
    let changed = connection.prepare_cached(sql)?.execute((
        id.as_str(),
        name(&state)?,
        json(outcome)?,
        json(&logs)?,
        now,
        cancelled,
    ))?;
    debug_assert!(changed == 1, "a job ended twice or was never there");
    Ok(())
}

/// Where a job with this outcome stands.
pub(crate) fn state_of(outcome: &Outcome) -> State {
    match outcome {
        Outcome::Succeeded { .. } => State::Succeeded,
        Outcome::Failed(_) => State::Failed,
        Outcome::Cancelled => State::Cancelled,
    }
}

pub(crate) fn by_id(connection: &Connection, id: &JobId) -> rusqlite::Result<Option<Record>> {
    let sql = format!("SELECT {COLUMNS} FROM jobs WHERE id = ?1");
    connection.prepare_cached(&sql)?.query_row([id.as_str()], read).optional()
}

pub(crate) fn by_secret(connection: &Connection, secret: &str) -> rusqlite::Result<Option<Record>> {
    let sql = format!("SELECT {COLUMNS} FROM jobs WHERE secret = ?1");
    connection.prepare_cached(&sql)?.query_row([secret], read).optional()
}

pub(crate) fn id_by_key(connection: &Connection, owner: &Owner, key: &str) -> rusqlite::Result<Option<JobId>> {
    let sql = "SELECT id FROM jobs WHERE owner = ?1 AND idempotency_key = ?2";
    let id: Option<String> =
        connection.prepare_cached(sql)?.query_row((&*owner.0, key), |row| row.get(0)).optional()?;
    Ok(id.and_then(|id| id.parse().ok()))
}

/// An owner's jobs of a dialect, the newest first; those before `before`, if it is given. One that cannot be read is left out.
pub(crate) fn list(
    connection: &Connection,
    owner: &Owner,
    dialect: Dialect,
    before: Option<&(Millis, JobId)>,
    limit: usize,
) -> rusqlite::Result<Vec<Record>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM jobs WHERE owner = ?1 AND dialect = ?2 AND (accepted, id) < (?3, ?4)
         ORDER BY accepted DESC, id DESC LIMIT ?5"
    );
    let (time, id) = before.map_or((Millis::MAX, ""), |(time, id)| (*time, id.as_str()));
    let mut statement = connection.prepare_cached(&sql)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut rows = statement.query((&*owner.0, name(&dialect)?, time, id, limit))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        match read(row) {
            Ok(record) => found.push(record),
            Err(error) => tracing::error!(id = row.get::<_, String>(0)?, %error, "a job in the journal cannot be read"),
        }
    }
    Ok(found)
}

/// All that have not ended, in the order in which they came. One that cannot be read (a newer darkroom wrote it) is told by name.
pub(crate) fn unfinished(connection: &Connection) -> rusqlite::Result<Vec<Result<Record, JobId>>> {
    let sql = format!("SELECT {COLUMNS} FROM jobs WHERE finished IS NULL ORDER BY accepted, rowid");
    let mut statement = connection.prepare(&sql)?;
    let mut rows = statement.query([])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        match read(row) {
            Ok(record) => all.push(Ok(record)),
            Err(error) => {
                let id: String = row.get(0)?;
                tracing::error!(id, %error, "a job in the journal cannot be read");
                all.extend(id.parse().ok().map(Err));
            }
        }
    }
    Ok(all)
}

/// Forgets jobs that ended before `before`, and the oldest above `most`; gives how many.
pub(crate) fn prune(connection: &Connection, before: Millis, most: usize) -> rusqlite::Result<usize> {
    let old = connection.execute("DELETE FROM jobs WHERE finished < ?1", [before])?;
    let beyond = "DELETE FROM jobs WHERE rowid IN
                  (SELECT rowid FROM jobs WHERE finished IS NOT NULL ORDER BY finished DESC, rowid DESC LIMIT -1 OFFSET ?1)";
    Ok(old + connection.execute(beyond, [i64::try_from(most).unwrap_or(i64::MAX)])?)
}

pub(crate) fn add_notices(
    connection: &Connection,
    id: &JobId,
    webhook: &Webhook,
    moments: &[Moment],
    now: Millis,
) -> rusqlite::Result<()> {
    for moment in moments.iter().filter(|moment| webhook.moments.contains(moment)) {
        let sql = "INSERT INTO notices (job, moment, url, made, due, tries) VALUES (?1, ?2, ?3, ?4, ?4, 0)";
        connection.prepare_cached(sql)?.execute((id.as_str(), name(moment)?, &webhook.url, now))?;
    }
    Ok(())
}

/// Notices whose time has come, the oldest first; of each job only the first, so that they arrive in order.
pub(crate) fn due_notices(connection: &Connection, now: Millis, limit: usize) -> rusqlite::Result<Vec<Notice>> {
    let sql = "SELECT id, job, moment, url, made, tries,
                      (SELECT json_extract(webhook, '$.base') FROM jobs WHERE jobs.id = this.job)
               FROM notices AS this WHERE due <= ?1
               AND NOT EXISTS (SELECT 1 FROM notices AS other WHERE other.job = this.job AND other.id < this.id)
               ORDER BY due, id LIMIT ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let read = |row: &Row<'_>| {
        Ok(Notice {
            id: row.get(0)?,
            job: parsed(row, 1)?,
            moment: named(row, 2)?,
            url: row.get(3)?,
            made: row.get(4)?,
            tries: row.get(5)?,
            base: row.get(6)?,
        })
    };
    statement.query_map((now, i64::try_from(limit).unwrap_or(i64::MAX)), read)?.collect()
}

/// When the next notice is due.
pub(crate) fn next_notice(connection: &Connection) -> rusqlite::Result<Option<Millis>> {
    connection.query_row("SELECT min(due) FROM notices", [], |row| row.get(0))
}

pub(crate) fn remove_notice(connection: &Connection, id: i64) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM notices WHERE id = ?1", [id]).map(drop)
}

pub(crate) fn postpone_notice(connection: &Connection, id: i64, due: Millis) -> rusqlite::Result<()> {
    connection.execute("UPDATE notices SET due = ?2, tries = tries + 1 WHERE id = ?1", (id, due)).map(drop)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record {
        id: parsed(row, 0)?,
        dialect: named(row, 1)?,
        owner: Owner(row.get::<_, String>(2)?.into()),
        endpoint: row.get(3)?,
        ask: from_json(row, 4)?,
        raw: from_json(row, 5)?,
        priority: named(row, 6)?,
        idempotency_key: row.get(7)?,
        secret: row.get(8)?,
        webhook: optional_json(row, 9)?,
        only_while_held: row.get(10)?,
        start_by: row.get(11)?,
        finish_by: row.get(12)?,
        state: named(row, 13)?,
        accepted: row.get(14)?,
        started: row.get(15)?,
        finished: row.get(16)?,
        starts: row.get(17)?,
        outcome: optional_json(row, 18)?,
        logs: from_json(row, 19)?,
    })
}

fn json<T: Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

/// A variant without content, as serde spells it.
fn name<T: Serialize>(value: &T) -> rusqlite::Result<String> {
    Ok(json(value)?.trim_matches('"').to_owned())
}

fn from_json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    serde_json::from_str(text).map_err(|error| unreadable(column, error))
}

fn optional_json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>> {
    let text = row.get_ref(column)?.as_str_or_null()?;
    text.map(|text| serde_json::from_str(text).map_err(|error| unreadable(column, error))).transpose()
}

fn named<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_value(Value::String(text)).map_err(|error| unreadable(column, error))
}

fn parsed(row: &Row<'_>, column: usize) -> rusqlite::Result<JobId> {
    let text: String = row.get(column)?;
    text.parse().map_err(|error| unreadable(column, error))
}

fn unreadable(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}

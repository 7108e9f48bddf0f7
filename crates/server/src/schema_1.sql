-- Times are milliseconds since 1970, UTC. JSON is what serde makes of the types in job.rs, ask.rs and error.rs.

CREATE TABLE jobs (
    id TEXT PRIMARY KEY NOT NULL,
    dialect TEXT NOT NULL,
    owner TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    ask TEXT NOT NULL,              -- JSON: {"Ok": Ask} or {"Err": Fault}
    raw TEXT NOT NULL,              -- JSON: the body as given
    priority TEXT NOT NULL,
    idempotency_key TEXT,
    secret TEXT,
    webhook TEXT,                   -- JSON
    only_while_held INTEGER NOT NULL,
    start_by INTEGER,
    finish_by INTEGER,
    state TEXT NOT NULL,
    accepted INTEGER NOT NULL,
    started INTEGER,                -- the last time
    finished INTEGER,
    starts INTEGER NOT NULL,        -- those without an end count
    outcome TEXT,                   -- JSON
    logs TEXT NOT NULL              -- JSON
) STRICT;
CREATE UNIQUE INDEX jobs_by_key ON jobs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE UNIQUE INDEX jobs_by_secret ON jobs (secret) WHERE secret IS NOT NULL;
CREATE INDEX jobs_by_time ON jobs (owner, dialect, accepted, id);
CREATE INDEX jobs_unfinished ON jobs (accepted) WHERE finished IS NULL;
CREATE INDEX jobs_finished ON jobs (finished) WHERE finished IS NOT NULL;

-- Webhooks that have to be told.
CREATE TABLE notices (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    moment TEXT NOT NULL,
    url TEXT NOT NULL,
    made INTEGER NOT NULL,
    due INTEGER NOT NULL,           -- not before
    tries INTEGER NOT NULL
) STRICT;
CREATE INDEX notices_due ON notices (due);
CREATE INDEX notices_of_job ON notices (job);

CREATE TABLE keys (
    id TEXT PRIMARY KEY NOT NULL,   -- shown to people; the key itself is nowhere
    hash TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    scopes TEXT NOT NULL,           -- JSON
    limits TEXT NOT NULL,           -- JSON
    made INTEGER NOT NULL,
    revoked INTEGER
) STRICT;

CREATE TABLE meta (
    name TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
) STRICT;

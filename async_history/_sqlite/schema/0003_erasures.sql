-- Version 3. What was erased: when, why, whose and how much, but no text and no actor's name.
-- A reset leaves it. `memory_ids` is a JSON list; times are ISO 8601 in UTC.
CREATE TABLE IF NOT EXISTS async_history_erasures (
    id           TEXT PRIMARY KEY,
    begun_at     TEXT NOT NULL,
    finished_at  TEXT,
    reason       TEXT NOT NULL,
    memory_ids   TEXT NOT NULL,
    actor_sha256 TEXT,
    records      INTEGER NOT NULL DEFAULT 0,
    messages     INTEGER NOT NULL DEFAULT 0
);

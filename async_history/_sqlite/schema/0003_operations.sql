-- Version 7. What was done to the store, apart from recording: see `StoreOperation`. No text, and no name
-- of an owner or of an erased actor. A reset leaves it. `arguments` is a JSON object; times are ISO 8601
-- in UTC. (Versions 3 to 6 had the erasures alone, in async_history_erasures.)
CREATE TABLE IF NOT EXISTS async_history_operations (
    id         TEXT PRIMARY KEY,
    kind       TEXT NOT NULL,
    begun_at   TEXT NOT NULL,
    ended_at   TEXT,
    error      TEXT,
    actor_id   TEXT,
    process_id INTEGER,
    host       TEXT,
    arguments  TEXT NOT NULL,
    records    INTEGER NOT NULL,
    messages   INTEGER NOT NULL
);

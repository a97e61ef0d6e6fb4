-- Version 7. Operations on the store, apart from recording: see `StoreOperation`. Without texts,
-- and without names of owners or erased actors. A reset keeps them. `arguments` is a JSON object;
-- times are ISO 8601 in UTC. (Versions 3 to 6 had only erasures, in async_history_erasures.)
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

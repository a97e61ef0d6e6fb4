-- Version 1. mem0's two tables to the letter, and what we keep beside them.
CREATE TABLE IF NOT EXISTS history (
    id           TEXT PRIMARY KEY,
    memory_id    TEXT,
    old_memory   TEXT,
    new_memory   TEXT,
    event        TEXT,
    created_at   DATETIME,
    updated_at   DATETIME,
    is_deleted   INTEGER,
    actor_id     TEXT,
    role         TEXT
);

CREATE TABLE IF NOT EXISTS messages (
    id            TEXT PRIMARY KEY,
    session_scope TEXT,
    role          TEXT,
    content       TEXT,
    name          TEXT,
    created_at    DATETIME
);

CREATE INDEX IF NOT EXISTS async_history_messages_by_scope ON messages (session_scope);

-- Where a memory's records are: (crc32 of memory_id, rowid in history). An index on random
-- memory ids dirties a page a row once it is large. These three levels hold the same entries:
-- `recent` takes every insert and stays small, `middle` takes its slices, `settled` the rest.
CREATE TABLE IF NOT EXISTS async_history_recent (
    memory INTEGER NOT NULL, position INTEGER NOT NULL, PRIMARY KEY (memory, position)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS async_history_middle (
    memory INTEGER NOT NULL, position INTEGER NOT NULL, PRIMARY KEY (memory, position)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS async_history_settled (
    memory INTEGER NOT NULL, position INTEGER NOT NULL, PRIMARY KEY (memory, position)
) WITHOUT ROWID;

-- One row. The levels cover every row of history up to `indexed_through`, as long as the trigger
-- below stands on `history`; readers scan what lies beyond. `schema_version` is the PRAGMA's value
-- then: where another is found at opening, the index is built anew.
CREATE TABLE IF NOT EXISTS async_history_state (
    one             INTEGER PRIMARY KEY CHECK (one = 1),
    version         INTEGER NOT NULL,
    schema_version  INTEGER NOT NULL,
    indexed_through INTEGER NOT NULL
);

-- A rowid can be issued again once its row is gone, and a memory renamed: index again from there.
CREATE TRIGGER IF NOT EXISTS async_history_newest_deleted AFTER DELETE ON history
WHEN old.rowid > (SELECT coalesce(max(rowid), 0) FROM history)
BEGIN
    UPDATE async_history_state
    SET indexed_through = min(indexed_through, (SELECT coalesce(max(rowid), 0) FROM history));
END;
CREATE TRIGGER IF NOT EXISTS async_history_memory_renamed AFTER UPDATE OF memory_id ON history
BEGIN
    UPDATE async_history_state SET indexed_through = min(indexed_through, new.rowid - 1);
END;

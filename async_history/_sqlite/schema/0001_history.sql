-- Version 1. Exactly mem0's two tables, and this library's side tables.
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

-- The positions of a memory's records: (48-bit hash of memory_id, rowid in history). A large index
-- on random memory ids changes one page per row. These three levels have the same entries: `recent`
-- receives every insert and stays small, `middle` receives its slices, `settled` the rest. The
-- position of memory -1, which no memory has, is the level's stamp.
CREATE TABLE IF NOT EXISTS async_history_recent (
    memory INTEGER NOT NULL, position INTEGER NOT NULL, PRIMARY KEY (memory, position)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS async_history_middle (
    memory INTEGER NOT NULL, position INTEGER NOT NULL, PRIMARY KEY (memory, position)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS async_history_settled (
    memory INTEGER NOT NULL, position INTEGER NOT NULL, PRIMARY KEY (memory, position)
) WITHOUT ROWID;

-- Rows up to `indexed_through` whose rowid or memory has changed, so that the levels may not have
-- their entry. Readers check each of them until the levels have it.
CREATE TABLE IF NOT EXISTS async_history_strays (position INTEGER PRIMARY KEY);

-- One row. The levels cover every row of history up to `indexed_through`; readers scan the rows
-- after it. The row also identifies the file, the table and the side tables for which this is true:
--   schema_version: the value of the PRAGMA, set to a random number that no rebuilt file counts to;
--   history_row, history_page: the rowid and the root page of `history` in sqlite_master;
--   through_id: the id of the row at `indexed_through`;
--   stamps: random numbers, which the tables have too; both change whenever a table changes.
CREATE TABLE IF NOT EXISTS async_history_state (
    one             INTEGER PRIMARY KEY CHECK (one = 1),
    version         INTEGER NOT NULL,
    schema_version  INTEGER NOT NULL,
    history_row     INTEGER NOT NULL,
    history_page    INTEGER NOT NULL,
    indexed_through INTEGER NOT NULL,
    through_id, -- without a type: stored as given
    owned_through   INTEGER NOT NULL, -- the levels cover every owner up to this number
    step            INTEGER NOT NULL, -- random; added to the next stamp that changes
    recent_stamp    INTEGER NOT NULL,
    lower_stamp     INTEGER NOT NULL, -- of `middle` and `settled`
    block_stamp     INTEGER NOT NULL  -- of the tables of version 2
);
CREATE TRIGGER IF NOT EXISTS async_history_recent_stamped
AFTER UPDATE OF recent_stamp ON async_history_state
BEGIN
    UPDATE async_history_recent SET position = (position + old.step) & 0x3fffffffffffffff
    WHERE memory = -1;
END;
CREATE TRIGGER IF NOT EXISTS async_history_lower_stamped
AFTER UPDATE OF lower_stamp ON async_history_state
BEGIN
    UPDATE async_history_middle SET position = (position + old.step) & 0x3fffffffffffffff
    WHERE memory = -1;
    UPDATE async_history_settled SET position = (position + old.step) & 0x3fffffffffffffff
    WHERE memory = -1;
END;

-- The last covered row is deleted, or its id changes. SQLite may reuse later rowids. (If the
-- state names another row, nothing is repaired here, so that readers detect it.)
CREATE TRIGGER IF NOT EXISTS async_history_last_deleted AFTER DELETE ON history
WHEN old.rowid = (SELECT indexed_through FROM async_history_state)
BEGIN
    UPDATE async_history_state SET
        indexed_through = coalesce(
            (SELECT max(rowid) FROM history WHERE rowid < old.rowid), min(old.rowid - 1, 0)
        ),
        through_id = (SELECT id FROM history WHERE rowid < old.rowid ORDER BY rowid DESC LIMIT 1)
    WHERE through_id IS old.id;
END;
CREATE TRIGGER IF NOT EXISTS async_history_row_moved AFTER UPDATE ON history
WHEN old.rowid <> new.rowid
BEGIN
    UPDATE async_history_state SET
        indexed_through = coalesce(
            (SELECT max(rowid) FROM history WHERE rowid < old.rowid), min(old.rowid - 1, 0)
        ),
        through_id = (SELECT id FROM history WHERE rowid < old.rowid ORDER BY rowid DESC LIMIT 1)
    WHERE indexed_through = old.rowid AND through_id IS old.id;
    INSERT OR REPLACE INTO async_history_strays (position)
    SELECT new.rowid WHERE new.rowid <= (SELECT indexed_through FROM async_history_state);
    INSERT OR IGNORE INTO async_history_actors (block, actor_id, position)
    SELECT new.rowid >> 13, new.actor_id, new.rowid
    WHERE new.actor_id IS NOT NULL
      AND new.rowid >> 13 <= (SELECT max(block) FROM async_history_chunks);
END;
CREATE TRIGGER IF NOT EXISTS async_history_last_renamed AFTER UPDATE OF id ON history
WHEN old.rowid = (SELECT indexed_through FROM async_history_state)
BEGIN
    UPDATE async_history_state SET through_id = new.id
    WHERE through_id IS old.id AND old.rowid = new.rowid;
END;

CREATE TRIGGER IF NOT EXISTS async_history_row_between AFTER INSERT ON history
WHEN new.rowid <= (SELECT indexed_through FROM async_history_state)
BEGIN
    INSERT OR REPLACE INTO async_history_strays (position) VALUES (new.rowid);
    INSERT OR IGNORE INTO async_history_actors (block, actor_id, position)
    SELECT new.rowid >> 13, new.actor_id, new.rowid
    WHERE new.actor_id IS NOT NULL
      AND new.rowid >> 13 <= (SELECT max(block) FROM async_history_chunks);
END;
CREATE TRIGGER IF NOT EXISTS async_history_memory_renamed AFTER UPDATE OF memory_id ON history
WHEN new.rowid <= (SELECT indexed_through FROM async_history_state)
BEGIN
    INSERT OR REPLACE INTO async_history_strays (position) VALUES (new.rowid);
END;

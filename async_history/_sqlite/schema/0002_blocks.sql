-- Version 2. Summaries of full blocks of rowids: the times of the changes of each 512, and the
-- positions of each actor's records in each 8,192. A full block is summarized at once, in order, so
-- that these tables always grow at their end. Readers scan the rows after the last full block. A
-- block is `rowid >> 9` in spans, `rowid >> 13` in chunks and actors; summaries are below
-- `indexed_through`. The block of the lowest rowids, which no row has, contains the stamp: as
-- `earliest`, after a tilde, or as `position`.
CREATE TABLE IF NOT EXISTS async_history_spans (
    block    INTEGER PRIMARY KEY,
    earliest TEXT NOT NULL, -- in UTC, with microseconds
    latest   TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS async_history_chunks (
    block INTEGER PRIMARY KEY, earliest TEXT NOT NULL, latest TEXT NOT NULL -- of its spans
);
CREATE INDEX IF NOT EXISTS async_history_chunks_earliest ON async_history_chunks (earliest);
CREATE INDEX IF NOT EXISTS async_history_chunks_latest ON async_history_chunks (latest);
CREATE TABLE IF NOT EXISTS async_history_actors (
    block INTEGER NOT NULL, actor_id TEXT NOT NULL, position INTEGER NOT NULL,
    PRIMARY KEY (block, actor_id, position)
) WITHOUT ROWID;

CREATE TRIGGER IF NOT EXISTS async_history_block_stamped
AFTER UPDATE OF block_stamp ON async_history_state
BEGIN
    UPDATE async_history_spans
    SET earliest = '~' || ((substr(earliest, 2) + old.step) & 0x3fffffffffffffff)
    WHERE block = -(1 << 54);
    UPDATE async_history_chunks
    SET earliest = '~' || ((substr(earliest, 2) + old.step) & 0x3fffffffffffffff)
    WHERE block = -(1 << 50);
    UPDATE async_history_actors SET position = (position + old.step) & 0x3fffffffffffffff
    WHERE block = -(1 << 50);
END;

CREATE TRIGGER IF NOT EXISTS async_history_blocks_shortened
AFTER UPDATE OF indexed_through ON async_history_state
WHEN new.indexed_through < old.indexed_through
BEGIN
    DELETE FROM async_history_spans WHERE block >= (new.indexed_through + 1) >> 9;
    DELETE FROM async_history_chunks WHERE block >= (new.indexed_through + 1) >> 13;
    UPDATE async_history_state
    SET block_stamp = (block_stamp + step) & 0x3fffffffffffffff,
        step = random() & 0x3fffffffffffffff;
END;
-- (No trigger on a side table may name `history`. Otherwise a program that replaces that table, by
-- SQLite's twelve steps or mem0's migration, could not rename the new one.)
CREATE TRIGGER IF NOT EXISTS async_history_strayed AFTER INSERT ON async_history_strays
BEGIN
    INSERT OR REPLACE INTO async_history_spans (block, earliest, latest)
    SELECT new.position >> 9, '', '~'
    WHERE new.position >> 9 <= (SELECT max(block) FROM async_history_spans);
    INSERT OR REPLACE INTO async_history_chunks (block, earliest, latest)
    SELECT new.position >> 13, '', '~'
    WHERE new.position >> 13 <= (SELECT max(block) FROM async_history_chunks);
    UPDATE async_history_state
    SET block_stamp = (block_stamp + step) & 0x3fffffffffffffff,
        step = random() & 0x3fffffffffffffff;
END;
CREATE TRIGGER IF NOT EXISTS async_history_time_changed
AFTER UPDATE OF event, created_at, updated_at ON history
BEGIN
    UPDATE async_history_spans SET earliest = '', latest = '~' WHERE block = new.rowid >> 9;
    UPDATE async_history_chunks SET earliest = '', latest = '~' WHERE block = new.rowid >> 13;
    UPDATE async_history_state
    SET block_stamp = (block_stamp + step) & 0x3fffffffffffffff,
        step = random() & 0x3fffffffffffffff;
END;
CREATE TRIGGER IF NOT EXISTS async_history_actor_deleted AFTER DELETE ON history
WHEN old.actor_id IS NOT NULL
BEGIN
    DELETE FROM async_history_actors
    WHERE block = old.rowid >> 13 AND actor_id = old.actor_id AND position = old.rowid;
END;
CREATE TRIGGER IF NOT EXISTS async_history_actor_moved AFTER UPDATE ON history
WHEN old.rowid <> new.rowid AND old.actor_id IS NOT NULL
BEGIN
    DELETE FROM async_history_actors
    WHERE block = old.rowid >> 13 AND actor_id = old.actor_id AND position = old.rowid;
END;
CREATE TRIGGER IF NOT EXISTS async_history_actor_changed
AFTER UPDATE OF actor_id ON history
BEGIN
    DELETE FROM async_history_actors
    WHERE block = old.rowid >> 13 AND actor_id = old.actor_id AND position = old.rowid;
    INSERT OR IGNORE INTO async_history_actors (block, actor_id, position)
    SELECT new.rowid >> 13, new.actor_id, new.rowid WHERE new.actor_id IS NOT NULL;
    UPDATE async_history_state
    SET block_stamp = (block_stamp + step) & 0x3fffffffffffffff,
        step = random() & 0x3fffffffffffffff;
END;

-- Version 6. Owners of memories, and a record's data outside mem0's columns. They are not derived
-- from the records, so a new index keeps them. They name records by id, because VACUUM may renumber
-- rows. An owner's number is also in the levels, below all rows, as an entry of its memory; readers
-- scan the owners after `owned_through`.
CREATE TABLE IF NOT EXISTS async_history_owners (
    number    INTEGER PRIMARY KEY,
    memory_id TEXT NOT NULL,
    owner     TEXT NOT NULL -- its scopes as JSON, as written by `owner_text`
);
-- One row for each record with an owner, a context or a cause. `owner` is the owner's number. If
-- another program has created `history` again, owners without records belong to the earlier table.
CREATE TABLE IF NOT EXISTS async_history_details (
    id TEXT PRIMARY KEY, owner INTEGER, context TEXT, cause TEXT
) WITHOUT ROWID;

-- Memories that lost records, with the last row at that time: a memory without any record up to it
-- has no owner any more. Checking that needs the memory's key, so the next writer does it.
CREATE TABLE IF NOT EXISTS async_history_bereft (
    memory_id TEXT PRIMARY KEY, through INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS async_history_owner_bereft AFTER DELETE ON history
WHEN old.memory_id IS NOT NULL AND EXISTS (SELECT 1 FROM async_history_owners)
BEGIN
    INSERT OR REPLACE INTO async_history_bereft (memory_id, through)
    SELECT old.memory_id, coalesce((SELECT max(rowid) FROM history), -(1 << 62));
    -- SQLite reuses the newest row's number.
    UPDATE async_history_bereft
    SET through = coalesce((SELECT max(rowid) FROM history), -(1 << 62))
    WHERE old.rowid > coalesce((SELECT max(rowid) FROM history), -(1 << 62))
      AND through > coalesce((SELECT max(rowid) FROM history), -(1 << 62));
END;
CREATE TRIGGER IF NOT EXISTS async_history_details_deleted AFTER DELETE ON history
WHEN EXISTS (SELECT 1 FROM async_history_details)
BEGIN
    DELETE FROM async_history_details WHERE id = old.id;
END;
CREATE TRIGGER IF NOT EXISTS async_history_details_renamed AFTER UPDATE OF id ON history
WHEN new.id IS NOT NULL AND EXISTS (SELECT 1 FROM async_history_details WHERE id = old.id)
BEGIN
    UPDATE OR REPLACE async_history_details SET id = new.id WHERE id = old.id;
END;

-- Digests of erased names, and the times, in microseconds since 1970. For a memory also its key in
-- the levels, by which the statement that adds records detects an erased memory. `noted` increases
-- by one with each transaction that adds names: while it is the same, a writer's cache is valid.
CREATE TABLE IF NOT EXISTS async_history_erased (
    digest TEXT PRIMARY KEY, at INTEGER NOT NULL, noted INTEGER NOT NULL, memory INTEGER
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS async_history_erased_noted ON async_history_erased (noted);
CREATE INDEX IF NOT EXISTS async_history_erased_memory ON async_history_erased (memory);
CREATE INDEX IF NOT EXISTS async_history_erased_at ON async_history_erased (at);

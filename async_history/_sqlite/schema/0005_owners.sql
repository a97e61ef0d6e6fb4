-- Version 6. Whose a memory is, and what a record has besides mem0's columns. These are data, not
-- derived: a new index leaves them. They name records by id, since VACUUM numbers rows again.
-- An owner's number is also below all rows in the levels, as an entry of its memory; readers look
-- through the owners after `owned_through`.
CREATE TABLE IF NOT EXISTS async_history_owners (
    number    INTEGER PRIMARY KEY,
    memory_id TEXT NOT NULL,
    owner     TEXT NOT NULL -- its scopes as JSON, as `owner_text` writes them
);
-- Of each record that has an owner, a context or a cause. `owner` is the owner's number. Where another
-- program made `history` anew, an owner that no record there has belongs to the history before.
CREATE TABLE IF NOT EXISTS async_history_details (
    id TEXT PRIMARY KEY, owner INTEGER, context TEXT, cause TEXT
) WITHOUT ROWID;

-- Memories that lost records, and the last row that was there then: one without any record up to
-- there has no owner any more. That takes the memory's key, so the next writer looks.
CREATE TABLE IF NOT EXISTS async_history_bereft (
    memory_id TEXT PRIMARY KEY, through INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS async_history_owner_bereft AFTER DELETE ON history
WHEN old.memory_id IS NOT NULL AND EXISTS (SELECT 1 FROM async_history_owners)
BEGIN
    INSERT OR REPLACE INTO async_history_bereft (memory_id, through)
    SELECT old.memory_id, coalesce((SELECT max(rowid) FROM history), -(1 << 62));
    -- The newest row's number is issued again.
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

-- Names that were erased, as digests, and when, in microseconds since 1970. Of a memory also its key
-- in the levels, by which the statement that adds records finds out that one was erased. `noted` is one
-- more for each transaction that notes some: what a writer knows holds as long as it is the same.
CREATE TABLE IF NOT EXISTS async_history_erased (
    digest TEXT PRIMARY KEY, at INTEGER NOT NULL, noted INTEGER NOT NULL, memory INTEGER
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS async_history_erased_noted ON async_history_erased (noted);
CREATE INDEX IF NOT EXISTS async_history_erased_memory ON async_history_erased (memory);
CREATE INDEX IF NOT EXISTS async_history_erased_at ON async_history_erased (at);

-- Version 5. For a record without a time, the rowid of the record whose time it gets: of the last
-- earlier one of its memory with a time, or of the memory's first record if there is none. Noted for
-- full blocks, as in version 2; otherwise readers search backwards. A span of '' to '' waits for an
-- entry here. The lowest position, which no row has, contains the stamp.
CREATE TABLE IF NOT EXISTS async_history_undated (
    position INTEGER PRIMARY KEY, dated_by INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS async_history_undated_by ON async_history_undated (dated_by);
CREATE INDEX IF NOT EXISTS async_history_spans_begun ON async_history_spans (block)
WHERE earliest = '' AND latest = '';
CREATE TRIGGER IF NOT EXISTS async_history_undated_stamped
AFTER UPDATE OF block_stamp ON async_history_state
BEGIN
    UPDATE async_history_undated SET dated_by = (dated_by + old.step) & 0x3fffffffffffffff
    WHERE position = -(1 << 62);
END;

-- If a record is deleted or changes, the records that got its time are searched again: backwards,
-- and in each block.
CREATE TRIGGER IF NOT EXISTS async_history_dated_by_deleted AFTER DELETE ON history
WHEN EXISTS (
    SELECT 1 FROM async_history_undated WHERE dated_by = old.rowid OR position = old.rowid
)
BEGIN
    UPDATE async_history_spans SET earliest = '', latest = '~' WHERE block IN (
        SELECT position >> 9 FROM async_history_undated WHERE dated_by = old.rowid
    );
    UPDATE async_history_chunks SET earliest = '', latest = '~' WHERE block IN (
        SELECT position >> 13 FROM async_history_undated WHERE dated_by = old.rowid
    );
    DELETE FROM async_history_undated WHERE dated_by = old.rowid;
    DELETE FROM async_history_undated WHERE position = old.rowid;
    UPDATE async_history_state
    SET block_stamp = (block_stamp + step) & 0x3fffffffffffffff,
        step = random() & 0x3fffffffffffffff;
END;
CREATE TRIGGER IF NOT EXISTS async_history_dated_by_changed
AFTER UPDATE OF event, created_at, updated_at ON history
WHEN EXISTS (
    SELECT 1 FROM async_history_undated WHERE dated_by = new.rowid OR position = new.rowid
)
BEGIN
    UPDATE async_history_spans SET earliest = '', latest = '~' WHERE block IN (
        SELECT position >> 9 FROM async_history_undated WHERE dated_by IN (
        SELECT new.rowid UNION SELECT dated_by FROM async_history_undated
        WHERE position = new.rowid
    )
    );
    UPDATE async_history_chunks SET earliest = '', latest = '~' WHERE block IN (
        SELECT position >> 13 FROM async_history_undated WHERE dated_by IN (
        SELECT new.rowid UNION SELECT dated_by FROM async_history_undated
        WHERE position = new.rowid
    )
    );
    DELETE FROM async_history_undated WHERE dated_by IN (
        SELECT new.rowid UNION SELECT dated_by FROM async_history_undated
        WHERE position = new.rowid
    );
    UPDATE async_history_state
    SET block_stamp = (block_stamp + step) & 0x3fffffffffffffff,
        step = random() & 0x3fffffffffffffff;
END;
CREATE TRIGGER IF NOT EXISTS async_history_dated_by_moved AFTER UPDATE ON history
WHEN old.rowid <> new.rowid AND EXISTS (SELECT 1 FROM async_history_undated WHERE position > -(1 << 62))
BEGIN
    UPDATE async_history_spans SET earliest = '', latest = '~' WHERE block IN (
        SELECT position >> 9 FROM async_history_undated WHERE position > -(1 << 62)
    );
    UPDATE async_history_chunks SET earliest = '', latest = '~' WHERE block IN (
        SELECT position >> 13 FROM async_history_undated WHERE position > -(1 << 62)
    );
    DELETE FROM async_history_undated WHERE position > -(1 << 62);
    UPDATE async_history_state
    SET block_stamp = (block_stamp + step) & 0x3fffffffffffffff,
        step = random() & 0x3fffffffffffffff;
END;
-- A row inserted between others, or moved to another memory: later rows may get its time.
CREATE TRIGGER IF NOT EXISTS async_history_dated_by_stray AFTER INSERT ON async_history_strays
WHEN EXISTS (SELECT 1 FROM async_history_undated WHERE position > -(1 << 62))
BEGIN
    UPDATE async_history_spans SET earliest = '', latest = '~' WHERE block IN (
        SELECT position >> 9 FROM async_history_undated WHERE position > -(1 << 62)
    );
    UPDATE async_history_chunks SET earliest = '', latest = '~' WHERE block IN (
        SELECT position >> 13 FROM async_history_undated WHERE position > -(1 << 62)
    );
    DELETE FROM async_history_undated WHERE position > -(1 << 62);
    UPDATE async_history_state
    SET block_stamp = (block_stamp + step) & 0x3fffffffffffffff,
        step = random() & 0x3fffffffffffffff;
END;

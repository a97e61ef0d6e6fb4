-- Version 11. Each statement that inserts takes its transaction's number before the first `seq`: the condition
-- takes it, and never holds. So transactions that began after a record was committed have higher `seq` than it:
-- see _postgres/follow.py.
CREATE OR REPLACE FUNCTION history_xact_before_seq() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER history_xact_before_seq BEFORE INSERT ON history FOR EACH STATEMENT
    WHEN (pg_catalog.pg_current_xact_id() IS NULL) EXECUTE FUNCTION history_xact_before_seq();
ALTER TABLE history ENABLE ALWAYS TRIGGER history_xact_before_seq;

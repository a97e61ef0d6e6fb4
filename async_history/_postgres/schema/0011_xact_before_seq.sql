-- Version 11. Each inserting statement gets its transaction's number before its first `seq`: the trigger's
-- condition gets it, and is always false. So the records of transactions that began after a record's commit have
-- a higher `seq` than that record: see _postgres/reading/follow.py.
CREATE OR REPLACE FUNCTION history_xact_before_seq() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER history_xact_before_seq BEFORE INSERT ON history FOR EACH STATEMENT
    WHEN (pg_catalog.pg_current_xact_id() IS NULL) EXECUTE FUNCTION history_xact_before_seq();
ALTER TABLE history ENABLE ALWAYS TRIGGER history_xact_before_seq;

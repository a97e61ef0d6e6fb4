-- Version 9. The log of erasures becomes a log of all operations on the store: see StoreOperation.
ALTER TABLE erasures RENAME TO operations;
ALTER INDEX erasures_pkey RENAME TO operations_pkey;
ALTER TABLE operations RENAME COLUMN finished_at TO ended_at;
ALTER TABLE operations
    ADD COLUMN kind text NOT NULL DEFAULT 'erase',
    ADD COLUMN error text,
    ADD COLUMN actor_id text COLLATE "C",
    ADD COLUMN process_id bigint,
    ADD COLUMN host text,
    ADD COLUMN database_role text,
    ADD COLUMN arguments json;
UPDATE operations SET arguments = CASE WHEN actor_sha256 IS NULL
    THEN pg_catalog.json_build_object('reason', reason, 'memory_ids', memory_ids)
    ELSE pg_catalog.json_build_object(
        'reason', reason, 'memory_ids', memory_ids, 'actor_id_sha256', actor_sha256
    )
END;
ALTER TABLE operations
    DROP COLUMN reason,
    DROP COLUMN memory_ids,
    DROP COLUMN actor_sha256,
    ALTER COLUMN kind DROP DEFAULT,
    ALTER COLUMN arguments SET NOT NULL;

-- Roles that may change the history may log their operations and the outcomes.
DO $$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT DISTINCT CASE grantee WHEN 0::oid THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(grantee)::text) END AS role, privilege_type = 'SELECT' AS only_reads
        FROM pg_catalog.pg_class, pg_catalog.aclexplode(relacl)
        WHERE pg_class.oid = 'history'::regclass::oid AND grantee <> relowner
            AND privilege_type IN ('SELECT', 'INSERT', 'DELETE', 'TRUNCATE')
    LOOP
        IF granted.only_reads THEN
            EXECUTE pg_catalog.format('GRANT SELECT ON operations TO %s', granted.role);
        ELSE
            EXECUTE pg_catalog.format('GRANT SELECT, INSERT, UPDATE (ended_at, error, records, messages) ON operations TO %s', granted.role);
        END IF;
    END LOOP;
END
$$;

-- The ledger, created on request: see _core/ledger/tables.py.
CREATE TABLE history_ledger (
    number   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    xact     xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(), -- the writer's
    since    xid8 NOT NULL DEFAULT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot()), -- all lower ones had ended
    first    bigint, -- the place of its first leaf; NULL until it has one
    kind     text NOT NULL,
    size     bigint NOT NULL,
    hashes   bytea NOT NULL,
    is_keyed boolean NOT NULL,
    names    text NOT NULL
);
ALTER TABLE history_ledger ALTER COLUMN hashes SET STORAGE EXTERNAL; -- compression would not make them smaller
CREATE INDEX history_ledger_waiting ON history_ledger (number) WHERE first IS NULL;
CREATE UNIQUE INDEX history_ledger_places ON history_ledger (first);
CREATE INDEX history_ledger_entries ON history_ledger (first) WHERE kind = 'entry';
CREATE TABLE history_ledger_tiles (
    level  bigint,
    number bigint,
    hashes bytea NOT NULL,
    PRIMARY KEY (level, number)
);
CREATE TABLE history_ledger_names (
    key   bigint,
    place bigint,
    PRIMARY KEY (key, place)
);

-- Roles that add to the history add leaves; roles that remove from it assign positions and remove
-- salts.
DO $$
DECLARE
    granted record;
    public_role text;
BEGIN
    FOR granted IN
        SELECT DISTINCT CASE grantee WHEN 0::oid THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(grantee)::text) END AS role, privilege_type AS privilege
        FROM pg_catalog.pg_class, pg_catalog.aclexplode(relacl)
        WHERE pg_class.oid = 'history'::regclass::oid AND grantee <> relowner
            AND privilege_type IN ('SELECT', 'INSERT', 'DELETE')
    LOOP
        IF granted.privilege = 'SELECT' THEN
            EXECUTE pg_catalog.format('GRANT SELECT ON history_ledger, history_ledger_tiles, history_ledger_names TO %s', granted.role);
        ELSIF granted.privilege = 'INSERT' THEN
            EXECUTE pg_catalog.format('GRANT INSERT ON history_ledger TO %s', granted.role);
        ELSE
            EXECUTE pg_catalog.format('GRANT UPDATE (first, hashes, names) ON history_ledger TO %s', granted.role);
            EXECUTE pg_catalog.format('GRANT INSERT, UPDATE ON history_ledger_tiles TO %s', granted.role);
            EXECUTE pg_catalog.format('GRANT INSERT, DELETE ON history_ledger_names TO %s', granted.role);
        END IF;
    END LOOP;
    FOR public_role IN SELECT rolname FROM pg_catalog.pg_roles WHERE rolname IN ('anon', 'authenticated') LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON history_ledger, history_ledger_tiles, history_ledger_names FROM %I', public_role);
        ALTER TABLE history_ledger ENABLE ROW LEVEL SECURITY;
        ALTER TABLE history_ledger_tiles ENABLE ROW LEVEL SECURITY;
        ALTER TABLE history_ledger_names ENABLE ROW LEVEL SECURITY;
    END LOOP;
END
$$;

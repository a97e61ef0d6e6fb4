-- Version 10. The keys of an encrypted history: see _core/encryption/key_statements.py. The tables are empty
-- if it is not encrypted.
CREATE TABLE encryption (
    id       integer PRIMARY KEY CHECK (id = 1),
    is_whole boolean NOT NULL -- whether every cause can be found by its tokens
);
CREATE TABLE wrapping_keys (
    id      text COLLATE "C" PRIMARY KEY,
    master  text NOT NULL,
    wrapped text NOT NULL
);
CREATE TABLE data_keys (
    id           text COLLATE "C" PRIMARY KEY,
    owner        text COLLATE "C" NOT NULL, -- owners, and their scopes, as digests
    user_id      text COLLATE "C",
    agent_id     text COLLATE "C",
    run_id       text COLLATE "C",
    app_id       text COLLATE "C",
    wrapping_key text COLLATE "C" NOT NULL,
    wrapped      text NOT NULL,
    uses         bigint NOT NULL, -- how often it may have been used
    erased       boolean NOT NULL DEFAULT false
);
CREATE INDEX data_keys_owner ON data_keys (owner);

-- Roles that read the history may read its keys, roles that add to it may make data keys, roles
-- that erase may destroy them.
DO $$
DECLARE
    granted record;
    public_role text;
BEGIN
    FOR granted IN
        SELECT DISTINCT CASE grantee WHEN 0::oid THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(grantee)::text) END AS role, privilege_type AS privilege
        FROM pg_catalog.pg_class, pg_catalog.aclexplode(relacl)
        WHERE pg_class.oid = 'history'::regclass::oid AND grantee <> relowner
            AND privilege_type IN ('SELECT', 'INSERT', 'UPDATE')
    LOOP
        EXECUTE pg_catalog.format('GRANT SELECT ON encryption, wrapping_keys, data_keys TO %s', granted.role);
        IF granted.privilege = 'INSERT' THEN
            EXECUTE pg_catalog.format('GRANT INSERT, UPDATE (uses) ON data_keys TO %s', granted.role);
        ELSIF granted.privilege = 'UPDATE' THEN
            EXECUTE pg_catalog.format('GRANT UPDATE (erased), DELETE ON data_keys TO %s', granted.role);
        END IF;
    END LOOP;
    FOR public_role IN SELECT rolname FROM pg_catalog.pg_roles WHERE rolname IN ('anon', 'authenticated') LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON encryption, wrapping_keys, data_keys FROM %I', public_role);
        ALTER TABLE encryption ENABLE ROW LEVEL SECURITY;
        ALTER TABLE wrapping_keys ENABLE ROW LEVEL SECURITY;
        ALTER TABLE data_keys ENABLE ROW LEVEL SECURITY;
    END LOOP;
END
$$;

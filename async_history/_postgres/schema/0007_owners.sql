-- Version 7. A memory's owner, its metadata after a change, and the cause of the change. Each
-- record also has its memory's owner, so that an index finds an owner's records in order. Indexed
-- causes are hashes of their texts (computed by the library: see _postgres/writing/owners.py).
ALTER TABLE history
    ADD COLUMN user_id text COLLATE "C",
    ADD COLUMN agent_id text COLLATE "C",
    ADD COLUMN run_id text COLLATE "C",
    ADD COLUMN app_id text COLLATE "C",
    ADD COLUMN context text, -- JSON, as given: jsonb has no NUL
    ADD COLUMN cause text,
    ADD COLUMN cause_run_id bigint,
    ADD COLUMN cause_trace_id bigint,
    ADD COLUMN cause_request_id bigint;

-- Each memory written since the history has its first owner; without scopes if its owner is not known.
-- So two transactions that write a memory's first record conflict here.
CREATE TABLE owners (
    memory_id text COLLATE "C" PRIMARY KEY,
    user_id   text COLLATE "C",
    agent_id  text COLLATE "C",
    run_id    text COLLATE "C",
    app_id    text COLLATE "C"
);

-- Digests of erased names, memories and owners, and when, in microseconds since 1970.
CREATE TABLE erased (
    digest text COLLATE "C" PRIMARY KEY,
    at     bigint NOT NULL
);

-- One row. A writer's cache of owners is valid as long as this number is unchanged. It is 0 if
-- there are no owners and nothing was erased by name.
CREATE TABLE owners_state (
    number    bigint NOT NULL,
    last      bigint NOT NULL, -- the last number given
    erased_at bigint           -- the last `at` in erased
);
INSERT INTO owners_state (number, last) VALUES (0, 0);

-- Roles that may read and write the history may do so with owners; the rest as in version 1.
DO $$
DECLARE
    granted record;
    public_role text;
BEGIN
    FOR granted IN
        SELECT DISTINCT CASE grantee WHEN 0::oid THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(grantee)::text) END AS role, privilege_type AS privilege
        FROM pg_catalog.pg_class, pg_catalog.aclexplode(relacl)
        WHERE pg_class.oid = 'history'::regclass::oid AND grantee <> relowner
            AND privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE')
    LOOP
        EXECUTE pg_catalog.format('GRANT %s ON owners, owners_state, erased TO %s', granted.privilege, granted.role);
    END LOOP;
    FOR public_role IN SELECT rolname FROM pg_catalog.pg_roles WHERE rolname IN ('anon', 'authenticated') LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON owners, owners_state, erased FROM %I', public_role);
        ALTER TABLE owners ENABLE ROW LEVEL SECURITY;
        ALTER TABLE owners_state ENABLE ROW LEVEL SECURITY;
        ALTER TABLE erased ENABLE ROW LEVEL SECURITY;
    END LOOP;
END
$$;

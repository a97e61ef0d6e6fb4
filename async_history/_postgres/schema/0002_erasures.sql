-- Version 2. The log of erasures, without texts and without actors' names.

CREATE TABLE erasures (
    id           text COLLATE "C" PRIMARY KEY,
    begun_at     timestamptz NOT NULL DEFAULT pg_catalog.now(),
    finished_at  timestamptz,
    reason       text NOT NULL,
    memory_ids   text[] NOT NULL,
    actor_sha256 text,
    records      bigint NOT NULL DEFAULT 0,
    messages     bigint NOT NULL DEFAULT 0
);

-- As version 1 does for the other tables.
DO $$
DECLARE
    public_role text;
BEGIN
    FOR public_role IN SELECT rolname FROM pg_catalog.pg_roles WHERE rolname IN ('anon', 'authenticated') LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON erasures FROM %I', public_role);
        ALTER TABLE erasures ENABLE ROW LEVEL SECURITY;
    END LOOP;
END
$$;

-- Version 1: history, message buffers. Run in one transaction whose search_path is the history's
-- schema. Every unique key contains the column by which a table would be distributed.

CREATE TABLE history (
    seq         bigint GENERATED ALWAYS AS IDENTITY, -- the order of recording
    xact        xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(), -- for commit order
    id          text COLLATE "C" NOT NULL,
    memory_id   text COLLATE "C" NOT NULL,
    old_memory  text,
    new_memory  text,
    event       text NOT NULL,
    created_at  text, -- exactly as given
    updated_at  text,
    occurred_at timestamptz, -- the change's instant
    is_deleted  boolean NOT NULL,
    actor_id    text COLLATE "C",
    role        text,
    PRIMARY KEY (id, memory_id) -- id first: ids grow, so the index is written at its end
);
CREATE INDEX history_memory ON history (memory_id, seq);
CREATE INDEX history_seq ON history (seq);
CREATE INDEX history_actor ON history (actor_id, seq) WHERE actor_id IS NOT NULL;
CREATE INDEX history_xact ON history (xact);
CREATE INDEX history_time ON history USING brin (occurred_at);

CREATE TABLE messages (
    seq           bigint GENERATED ALWAYS AS IDENTITY,
    id            text COLLATE "C" NOT NULL,
    session_scope text COLLATE "C" NOT NULL,
    role          text,
    content       text,
    name          text,
    created_at    text,
    PRIMARY KEY (id, session_scope)
);
CREATE INDEX messages_scope ON messages (session_scope, seq);

-- Supabase publishes tables over HTTP to these roles: they get no rights, and no policy admits
-- them.
DO $$
DECLARE
    public_role text;
BEGIN
    FOR public_role IN SELECT rolname FROM pg_catalog.pg_roles WHERE rolname IN ('anon', 'authenticated') LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON history, messages, migrations FROM %I', public_role);
        ALTER TABLE history ENABLE ROW LEVEL SECURITY;
        ALTER TABLE messages ENABLE ROW LEVEL SECURITY;
        ALTER TABLE migrations ENABLE ROW LEVEL SECURITY;
    END LOOP;
END
$$;

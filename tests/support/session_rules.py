"""Rules about the settings of PostgreSQL's sessions, which statements of a history must keep.

A policy of each table, but for the few rows of `migrations`, checks a setting when a statement
reads or writes a row.
"""

from typing import Any, Final

JIT_IS_OFF: Final = "NOT current_setting('jit')::boolean"
"""So it does not matter whether the server could compile, which the tests' own servers can't."""
CAN_COMPILE: Final = """
CREATE OR REPLACE FUNCTION pg_catalog.pg_jit_available() RETURNS boolean LANGUAGE sql
AS 'SELECT true'
"""
_REQUIRE: Final = """
CREATE OR REPLACE FUNCTION public.is_as_required() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF NOT ({rule}) THEN
        RAISE 'not so: %: %', $rule${rule}$rule$, current_query();
    END IF;
    RETURN true;
END $$;
GRANT USAGE ON SCHEMA async_history TO agent;
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA async_history TO agent;
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT tablename FROM pg_tables
        WHERE schemaname = 'async_history' AND tablename <> 'migrations'
    LOOP
        EXECUTE format('ALTER TABLE async_history.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format(
            'CREATE POLICY checked ON async_history.%I USING (public.is_as_required())', name
        );
    END LOOP;
END $$;
"""


def require(rule: str) -> str:
    """Return the statements by which a condition must hold for the role `agent` in its statements
    on the tables of the schema `async_history`."""
    return _REQUIRE.format(rule=rule)


async def begin_without_history(owner: Any) -> None:
    """Drop the schema, and create the role `agent` if it does not exist."""
    await owner.execute("DROP SCHEMA IF EXISTS async_history CASCADE")
    if not await owner.fetchval("SELECT true FROM pg_roles WHERE rolname = 'agent'"):
        await owner.execute("CREATE ROLE agent LOGIN PASSWORD 'secret'")


async def warned(history: Any) -> bool:
    """Return whether a history warns of `jit`."""
    return "jit" in {one.code for one in (await history.stats()).warnings}

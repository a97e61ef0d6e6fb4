"""The server compiles none of our statements: its choice costs more time than they take.

A policy of each table, but for the few rows of `migrations`, checks the setting when a statement
reads or writes a row. So it does not matter whether the server could compile, which the tests' own
servers can't.
"""

from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any, Final

import asyncpg
import pytest

from async_history import open_history
from async_history.postgres import PostgresHistoryManager
from tests.support.all_calls import follow, read, remove, take_back, write, write_many_details
from tests.support.pgbouncer import pgbouncer
from tests.support.postgres_server import PostgresServer

pytestmark = [pytest.mark.postgres, pytest.mark.versions, pytest.mark.once]

REQUIRE: Final = """
CREATE OR REPLACE FUNCTION public.is_not_compiled() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('jit')::boolean THEN
        RAISE 'jit is on: %', current_query();
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
            'CREATE POLICY checked ON async_history.%I USING (public.is_not_compiled())', name
        );
    END LOOP;
END $$;
"""
CAN_COMPILE: Final = """
CREATE OR REPLACE FUNCTION pg_catalog.pg_jit_available() RETURNS boolean LANGUAGE sql
AS 'SELECT true'
"""


class WithoutCheck:
    """A manager whose `check`, which reads whole tables, is not made."""

    def __init__(self, history: Any) -> None:
        self._history = history

    def __getattr__(self, name: str) -> Any:
        return getattr(self._history, name)

    async def check(self) -> Any:
        return SimpleNamespace(problems=())


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    server = PostgresServer(fsync="off", jit="on").create()
    yield server.start()
    server.remove()


@pytest.fixture(scope="module")
def pooler(server: PostgresServer) -> Iterator[str]:
    """The URL of a PgBouncer in front of the server, as the role `agent`."""
    with pgbouncer(server.url(user="agent", tcp=True)) as url:
        yield url


@pytest.fixture
async def owner(server: PostgresServer) -> AsyncIterator[Any]:
    """A connection to the server, which has no history yet."""
    connection = await asyncpg.connect(server.url())
    await connection.execute("DROP SCHEMA IF EXISTS async_history CASCADE")
    if not await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = 'agent'"):
        await connection.execute("CREATE ROLE agent LOGIN PASSWORD 'secret'")
    yield connection
    await connection.close()


async def warned(history: Any) -> bool:
    return "jit" in {one.code for one in (await history.stats()).warnings}


@pytest.mark.parametrize("ledger", [False, True], ids=["", "ledger"])
async def test_no_call_is_compiled(server: PostgresServer, owner: Any, *, ledger: bool) -> None:
    async with open_history(server.url(), ledger=ledger):
        await owner.execute(REQUIRE)
    async with open_history(server.url(user="agent")) as history:
        for calls in (write, write_many_details, read, follow, take_back, remove):
            await calls(WithoutCheck(history))
        await history.reset()
        assert not await warned(history)


@pytest.mark.pgbouncer
async def test_no_call_through_a_pooler_is_compiled(
    server: PostgresServer, owner: Any, pooler: str
) -> None:
    async with open_history(server.url()):
        await owner.execute(REQUIRE)
    async with open_history(pooler) as history:
        for calls in (write, read, follow, take_back, remove):
            await calls(WithoutCheck(history))
        assert not await warned(history)


@pytest.mark.parametrize("jit", ["on", "off"])
async def test_a_pool_that_compiles_is_warned_of(
    server: PostgresServer, owner: Any, jit: str
) -> None:
    """Its transactions of ours are not compiled. Its other reads run with the pool's settings."""
    async with open_history(server.url()):
        await owner.execute(REQUIRE)
    await owner.execute("SET allow_system_table_mods = on")
    await owner.execute(CAN_COMPILE)
    url = server.url(user="agent")
    async with (
        asyncpg.create_pool(url, min_size=0, max_size=3, server_settings={"jit": jit}) as pool,
        PostgresHistoryManager(pool=pool) as history,
    ):
        first = await history.add_history("m", None, "tea", "ADD", id="named")
        await history.batch_add_history(
            [{"memory_id": "m", "new_memory": "mate", "event": "UPDATE"}], if_latest=first
        )
        await history.save_messages([{"role": "user", "content": "tea"}], "scope")
        assert await warned(history) == (jit == "on")
        if jit == "off":
            await read(WithoutCheck(history))

"""The sessions of PostgreSQL through SQLAlchemy: `jit`, and limits of idle transactions."""

from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import Any, Final

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from async_history.sql import SqlHistoryManager
from tests.support.all_calls import follow, read, remove, take_back, write
from tests.support.pgbouncer import pgbouncer
from tests.support.postgres_server import PostgresServer
from tests.support.session_rules import (
    CAN_COMPILE,
    JIT_IS_OFF,
    begin_without_history,
    require,
    warned,
)

pytestmark = [pytest.mark.postgres, pytest.mark.once]

SCHEMA: Final = "async_history"
CHANGE: Final = {"memory_id": "m", "new_memory": "mate", "event": "UPDATE"}
IDLE: Final = "current_setting('idle_in_transaction_session_timeout')"
WAITS: Final = f"{IDLE}::interval >= '10 s' OR {IDLE} = '0'"
"""A try of `add_history` may take 10 s, a third of `retry_timeout_s`."""
SETTINGS: Final = text(f"SELECT current_setting('jit'), {IDLE}")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    server = PostgresServer(fsync="off", jit="on").create()
    yield server.start()
    server.remove()


@pytest.fixture
async def owner(server: PostgresServer) -> AsyncIterator[Any]:
    """A connection to the server, with an empty schema."""
    connection = await asyncpg.connect(server.url())
    await begin_without_history(connection)
    await connection.execute(f"CREATE SCHEMA {SCHEMA}")
    await connection.execute("ALTER ROLE agent RESET ALL")
    yield connection
    await connection.close()


@pytest.fixture
def url(server: PostgresServer) -> URL:
    """The server's URL for the role `agent`."""
    return sql_url(server.url(user="agent"))


@pytest.fixture
async def engine(url: URL) -> AsyncIterator[AsyncEngine]:
    """An engine of a program."""
    engine = create_async_engine(url)
    yield engine
    await engine.dispose()


def sql_url(url: str) -> URL:
    return make_url(url).set(drivername="postgresql+asyncpg")


@pytest.fixture
def set_up(server: PostgresServer, owner: Any) -> Callable[..., Any]:
    """A function that creates the tables, and makes a rule of them."""

    async def set_up(rule: str, *, ledger: bool = False) -> None:
        async with SqlHistoryManager(sql_url(server.url()), schema=SCHEMA, ledger=ledger):
            await owner.execute(require(rule))

    return set_up


@pytest.mark.parametrize("ledger", [False, True], ids=["", "ledger"])
async def test_no_call_is_compiled(set_up: Callable[..., Any], url: URL, *, ledger: bool) -> None:
    await set_up(JIT_IS_OFF, ledger=ledger)
    async with SqlHistoryManager(url, schema=SCHEMA) as history:
        for calls in (write, read, follow, take_back, remove):
            await calls(history)
        await history.reset()
        assert not await warned(history)


@pytest.mark.parametrize("jit", ["on", "off"])
async def test_no_write_by_an_engine_of_a_program_is_compiled(
    set_up: Callable[..., Any], owner: Any, url: URL, jit: str
) -> None:
    """Its reads run with the engine's settings."""
    await set_up(JIT_IS_OFF)
    await owner.execute("SET allow_system_table_mods = on")
    await owner.execute(CAN_COMPILE)
    engine = create_async_engine(url, connect_args={"server_settings": {"jit": jit}})
    async with SqlHistoryManager(engine=engine, schema=SCHEMA) as history:
        first = await history.add_history("m", None, "tea", "ADD", id="named")
        await history.batch_add_history([CHANGE], if_latest=first)
        await history.save_messages([{"role": "user", "content": "tea"}], "scope")
        assert await warned(history) == (jit == "on")
        if jit == "off":
            await read(history)
    await engine.dispose()


async def test_a_transaction_waits_for_the_client_as_long_as_a_try_may_take(
    set_up: Callable[..., Any], owner: Any, url: URL
) -> None:
    """Between two statements, the client encrypts or hashes many records."""
    await set_up(WAITS, ledger=True)
    await owner.execute("ALTER ROLE agent SET idle_in_transaction_session_timeout TO '5s'")
    async with SqlHistoryManager(url, schema=SCHEMA) as history:
        await history.add_history("m", None, "tea", "ADD", id="named")
        await history.update_history("m", "mate", owner={"user_id": "ann"})
        await history.batch_add_history([CHANGE] * 100)
        await history.prune(older_than=timedelta(0), keep_last=1)
        assert await history.store.faults() == []  # in one snapshot


async def test_a_longer_try_raises_the_limit_of_idle_transactions(
    set_up: Callable[..., Any], owner: Any, engine: AsyncEngine
) -> None:
    """The connection is kept for later tries, and the program's own ones keep the role's limit."""
    await set_up("true")
    await owner.execute("ALTER ROLE agent SET idle_in_transaction_session_timeout TO '5s'")

    async def settings(connection: AsyncConnection) -> tuple[Any, ...]:
        return tuple((await connection.execute(SETTINGS)).one())

    async with SqlHistoryManager(engine=engine, schema=SCHEMA) as history:
        write = history.store.connections.write
        found = [await write(settings, within_s) for within_s in (10, 40, 50, 10)]
        assert found == [("off", "32s"), *[("off", "64s")] * 3]
        async with engine.connect() as own:
            assert await settings(own) == ("on", "5s")


async def test_a_transaction_of_a_program_keeps_its_settings(
    set_up: Callable[..., Any], owner: Any, engine: AsyncEngine
) -> None:
    await set_up("true")
    await owner.execute("ALTER ROLE agent SET idle_in_transaction_session_timeout TO '5s'")
    async with (
        SqlHistoryManager(engine=engine, schema=SCHEMA) as history,
        AsyncSession(engine) as session,
    ):
        await history.add_in_transaction(session, [CHANGE])
        assert tuple((await session.execute(SETTINGS)).one()) == ("on", "5s")
        await session.commit()
        assert tuple((await session.execute(SETTINGS)).one()) == ("on", "5s")


@pytest.mark.pgbouncer
@pytest.mark.parametrize("whose", ["own", "program"])
async def test_a_pooler_gives_our_settings_to_no_other(
    whose: str, set_up: Callable[..., Any], server: PostgresServer, owner: Any
) -> None:
    """Each transaction that writes has them."""
    await set_up(f"{JIT_IS_OFF} AND ({WAITS})")
    await owner.execute("ALTER ROLE agent SET idle_in_transaction_session_timeout TO '5s'")
    with pgbouncer(server.url(user="agent"), pool_size=1) as pooled:
        engine = create_async_engine(sql_url(pooled))
        given: Any = {"url": sql_url(pooled)} if whose == "own" else {"engine": engine}
        async with SqlHistoryManager(**given, schema=SCHEMA) as history:
            first = await history.add_history("m", None, "tea", "ADD", id="named")
            await history.batch_add_history([CHANGE], if_latest=first)
            await history.save_messages([{"role": "user", "content": "tea"}], "scope")
            async with engine.connect() as other:
                assert tuple((await other.execute(SETTINGS)).one()) == ("on", "5s")
            await history.add_history("m", "mate", "tea", "UPDATE")
        await engine.dispose()

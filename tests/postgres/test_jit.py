"""The server compiles none of our statements: its choice costs more time than they take."""

from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest

from async_history import open_history
from async_history.postgres import PostgresHistoryManager
from tests.support.all_calls import follow, read, remove, take_back, write, write_many_details
from tests.support.pgbouncer import pgbouncer
from tests.support.postgres_server import PostgresServer
from tests.support.session_rules import (
    CAN_COMPILE,
    JIT_IS_OFF,
    begin_without_history,
    require,
    warned,
)

pytestmark = [pytest.mark.postgres, pytest.mark.versions, pytest.mark.once]


class WithoutCheck:
    """A manager whose `check`, which behind a pooler has no transaction, is not made."""

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
    await begin_without_history(connection)
    yield connection
    await connection.close()


async def test_no_call_is_compiled(server: PostgresServer, owner: Any) -> None:
    """With a ledger, whose statements are added to the others."""
    async with open_history(server.url(), ledger=True):
        await owner.execute(require(JIT_IS_OFF))
    async with open_history(server.url(user="agent")) as history:
        for calls in (write, write_many_details, read, follow, take_back, remove):
            await calls(history)
        await history.reset()
        assert not await warned(history)


@pytest.mark.pgbouncer
async def test_no_call_through_a_pooler_is_compiled(
    server: PostgresServer, owner: Any, pooler: str
) -> None:
    async with open_history(server.url()):
        await owner.execute(require(JIT_IS_OFF))
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
        await owner.execute(require(JIT_IS_OFF))
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
            await read(history)

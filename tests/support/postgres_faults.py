"""Helpers for tests of a failing PostgreSQL: a separate server, and waiting for it.

Fixtures have two names: one to import, and one that tests use.
"""

import asyncio
import contextlib
import secrets
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

from async_history import CommitUnknown, HistoryManager
from async_history.postgres import PostgresHistoryManager
from tests.subprocesses.failing_io import compiler
from tests.subprocesses.proxy import Proxy
from tests.support.patience import LONG_S
from tests.support.postgres_server import PostgresServer, with_query

MAX_CONNECTIONS: Final = 25
_OTHERS: Final = """
SELECT count(*) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


@pytest.fixture(name="server", scope="module")
def a_server() -> Iterator[PostgresServer]:
    """A server that no other test uses. It survives its own crashes without fsync."""
    server = PostgresServer(fsync="off", max_connections=str(MAX_CONNECTIONS)).create()
    if compiler() is not None:
        load_full_disk(server)
    yield server.start()
    server.remove()


@pytest.fixture(name="schema")
def a_schema() -> str:
    return f"test_{secrets.token_hex(8)}"


@pytest.fixture(name="url")
def a_url(server: PostgresServer, schema: str) -> str:
    return with_query(server.url(), schema=schema)


@pytest.fixture(name="admin")
async def a_admin(server: PostgresServer) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(server.url())
    yield connection
    connection.terminate()


@pytest.fixture(name="proxy")
async def a_proxy(server: PostgresServer) -> AsyncIterator[Proxy]:
    async with Proxy(server.folder, server.port) as proxy:
        yield proxy


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Ask the server until a condition holds: there is no event to wait on."""
    async with asyncio.timeout(LONG_S):
        while not await is_so():  # noqa: ASYNC110 - another process does it
            await asyncio.sleep(0.005)


async def add(history: HistoryManager, text: str) -> None:
    await history.add_history("m", None, text, "UPDATE")


async def taken_into_a_batch(history: HistoryManager) -> None:
    """Return once the call that was just made has left the queue."""
    assert isinstance(history, PostgresHistoryManager)
    async with asyncio.timeout(LONG_S):
        await asyncio.sleep(0)
        while history.store.writer.stats().queued_records:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0)


async def until_others_are(connection: Any, wanted: int) -> None:
    """Return when the server has so many connections besides this one."""

    async def are() -> bool:
        return bool(await connection.fetchval(_OTHERS) == wanted)

    await until(are)


async def waiting_for_locks(connection: Any) -> int:
    """Return how many sessions wait for a lock."""
    waiting: int = await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")
    return waiting


async def until_more_wait(connection: Any, before: int = 0) -> None:
    """Return once more sessions wait for a lock than before."""

    async def do() -> bool:
        return await waiting_for_locks(connection) > before

    await until(do)


@contextlib.asynccontextmanager
async def connected(server: PostgresServer) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(server.url())
    yield connection
    await connection.close()


@contextlib.contextmanager
def paused(server: PostgresServer) -> Iterator[None]:
    """Stop a server during the block."""
    server.pause()
    try:
        yield
    finally:
        server.resume()


def submission(number: int, size: int, *, named: bool) -> list[dict[str, Any]]:
    """Return so many records of one memory, whose texts are their positions."""
    return [
        {
            "id": f"{number}.{index}" if named else None,
            "memory_id": "m",
            "new_memory": f"{number}.{index}",
            "event": "UPDATE",
        }
        for index in range(size)
    ]


def again(number: int, unknown: CommitUnknown) -> list[dict[str, Any]]:
    """Return the records of a submission with the ids that the library gave them."""
    items = submission(number, len(unknown.ids), named=False)
    return [item | {"id": id} for item, id in zip(items, unknown.ids, strict=True)]


def load_full_disk(server: PostgresServer) -> None:
    """Make the server's disk full whenever `full_disk` says so."""
    source = Path(__file__).parents[1] / "subprocesses/full_disk.c"
    library = server.folder / "full_disk.so"
    options = ("-shared", "-fPIC", "-O1", "-o", library, source, "-ldl")
    subprocess.run([str(compiler()), *options], check=True)
    library.chmod(0o755)
    server.environment = {"LD_PRELOAD": str(library), "FULL_DISK": str(server.folder / "full")}

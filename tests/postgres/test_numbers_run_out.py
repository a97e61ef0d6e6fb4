"""A server that runs out of transaction numbers, and refuses to write until it is vacuumed."""

import asyncio
import os
from collections.abc import Iterator
from typing import Final

import asyncpg
import pytest

from async_history import HistoryManager, StorageReadOnly, open_history
from tests.support.postgres_server import PostgresServer, are_installed, server_user

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.faults,
    pytest.mark.once,
    pytest.mark.skipif(not are_installed(), reason="changes the files of a server of its own"),
]

_NUMBER: Final = "SELECT relfrozenxid::text::bigint FROM pg_class WHERE relname = 'damaged'"
_KEPT_BACK: Final = 3_000_000
"""The last numbers, which only a server for a single user gives
(https://www.postgresql.org/docs/current/routine-vacuuming.html)."""
_A_FILE: Final = 1 << 20
"""Transactions in a file of pg_xact, with two bits each."""
_LEFT: Final = 100


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    server = PostgresServer(fsync="off", autovacuum="off").create()
    yield server.start()
    server.remove()


async def spend_numbers(server: PostgresServer) -> None:
    """Move the server near the end of its transaction numbers.

    It vacuums by itself then. A table that can't be read keeps that from helping.
    """
    connection = await asyncpg.connect(server.url())
    await connection.execute("CREATE TABLE damaged AS SELECT 1 AS number")
    await connection.execute("CHECKPOINT")
    file = server.data / await connection.fetchval("SELECT pg_relation_filepath('damaged')")
    last = int(await connection.fetchval(_NUMBER)) + (1 << 31) - _KEPT_BACK
    await connection.close()
    server.stop()
    file.write_bytes(b"\xff" * file.stat().st_size)
    following = last - _LEFT
    server.run("pg_resetwal", f"--next-transaction-id={following}", str(server.data))
    states = server.data / "pg_xact" / f"{following // _A_FILE:04X}"
    states.write_bytes(bytes(_A_FILE // 4))
    if (user := server_user()) is not None:
        os.chown(states, user, -1)
    server.start()


async def until_refused(history: HistoryManager) -> None:
    for _ in range(9 * _LEFT):
        await history.add_history("m", "tea", "mate", "UPDATE")


async def test_every_write_is_read_only(server: PostgresServer) -> None:
    """It is not the record that is refused, and one of a batch not more than the others."""
    async with open_history(server.url()) as history:
        await history.add_history("m", None, "tea", "ADD")
    await spend_numbers(server)
    async with open_history(server.url(), retry_timeout_s=6) as history:
        with pytest.raises(StorageReadOnly, match="numbers"):
            await until_refused(history)
        calls = [
            *(history.add_history("m", "mate", "milk", "UPDATE") for _ in range(9)),
            history.add_history("new", None, "tea", "ADD", owner={"user_id": "ann"}),
            history.update_history("m", "milk"),
            history.save_messages([{"role": "user", "content": "tea"}], "scope"),
        ]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {StorageReadOnly}
        with pytest.raises(StorageReadOnly):
            await history.erase(memory_ids=["m"], reason="asked", vacuum=False)
        assert {one.new_memory for one in await history.get_history("m")} == {"tea", "mate"}

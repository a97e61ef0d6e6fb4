"""An erasure by a manager that reads from a replica (`read_url`), which lags behind."""

import asyncio
from collections.abc import Iterator
from typing import Any, Final

import asyncpg
import pytest

from async_history import open_history
from tests.support.postgres_server import PostgresServer, are_installed, with_query

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.once,
    pytest.mark.skipif(not are_installed(), reason="needs servers of its own"),
]

ANN: Final[dict[str, Any]] = {"user_id": "ann"}


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """A primary and its standby."""
    primary = PostgresServer(fsync="off").create().start()
    standby = primary.standby().start()
    yield primary, standby
    standby.remove()
    primary.remove()


async def has_received_all(primary: PostgresServer, replica: asyncpg.Connection) -> None:
    """Return when the replica has what is committed on the primary."""
    connection = await asyncpg.connect(primary.url())
    written = await connection.fetchval("SELECT pg_current_wal_flush_lsn()::text")
    await connection.close()
    received = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn"
    while not await replica.fetchval(received, written):  # noqa: ASYNC110 - no event on a replica
        await asyncio.sleep(0.01)


async def test_what_the_replica_has_not_received_is_erased(
    servers: tuple[PostgresServer, PostgresServer],
) -> None:
    primary, standby = servers
    url = with_query(primary.url(), schema="history")
    async with open_history(url):
        """It creates the tables."""
    replica = await asyncpg.connect(standby.url())
    await has_received_all(primary, replica)
    await replica.execute("SELECT pg_wal_replay_pause()")
    async with open_history(url, read_url=standby.url()) as history:
        await history.add_history("m", None, "secret", "ADD", owner=ANN)
        await history.save_messages([{"role": "user", "content": "secret"}], "user_id=ann")
        report = await history.erase(**ANN, reason="asked", vacuum=False)
        assert (report.records, report.messages) == (1, 1)
    await replica.close()
    async with open_history(url) as history:
        (record,) = await history.get_history("m")
        assert (record.owner, record.new_memory) == (None, None)
        assert await history.get_last_messages("user_id=ann") == []

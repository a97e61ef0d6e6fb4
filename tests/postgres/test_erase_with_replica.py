"""An erasure by a manager that reads from a replica (`read_url`), which lags behind."""

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


async def test_what_the_replica_has_not_received_is_erased(
    servers: tuple[PostgresServer, PostgresServer],
) -> None:
    primary, standby = servers
    url = with_query(primary.url(), schema="history")
    async with open_history(url):
        pass
    replica = await asyncpg.connect(standby.url())
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

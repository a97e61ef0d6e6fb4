"""Tables that are dropped, made again and filled by others under an open manager."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from sqlalchemy import MetaData
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import create_async_engine

from async_history import HistoryManager, Owner
from async_history.sql import SqlHistoryManager

pytestmark = [pytest.mark.mariadb, pytest.mark.once]

ALICE, BOB = {"user_id": "alice"}, {"user_id": "bob"}
EARLY = "2020-01-01T00:00:00+00:00"


async def drop_tables(url: URL) -> None:
    engine, tables = create_async_engine(url), MetaData()
    async with engine.begin() as connection:
        await connection.run_sync(tables.reflect)
        await connection.run_sync(tables.drop_all)
    await engine.dispose()


async def add(history: HistoryManager, count: int, owner: dict[str, str] | None) -> None:
    for _ in range(count):
        await history.add_history("m", None, "tea", "ADD", owner=owner, created_at=EARLY)


@pytest.mark.parametrize("count", [1, 3], ids=["fewer records", "as many records"])
async def test_owners_of_other_tables_are_not_remembered(
    new_database: Callable[[], URL], count: int
) -> None:
    url = new_database()
    async with SqlHistoryManager(url) as history:
        await add(history, 3, ALICE)
        await drop_tables(url)
        async with SqlHistoryManager(url) as other:
            await add(other, count, BOB)
        for adding in (1, 2):
            changes = [{"memory_id": "m", "new_memory": "mate", "event": "UPDATE"}] * adding
            added = await history.batch_add_history(changes)
            assert [record.owner for record in added] == [Owner(user_id="bob")] * adding
        assert (await history.check()).problems == ()


@pytest.mark.parametrize("count", [1, 3, 5], ids=["fewer", "as many", "more"])
@pytest.mark.parametrize("adding", [1, 2])
async def test_a_query_by_time_finds_what_is_written_to_other_tables(
    new_database: Callable[[], URL], adding: int, count: int
) -> None:
    """The spans of times that the writer has cached are those of the old tables."""
    url = new_database()
    async with SqlHistoryManager(url) as history:
        await add(history, 3, None)
        await drop_tables(url)
        async with SqlHistoryManager(url) as other:
            for _ in range(count):
                await other.add_history("n", None, "tea", "ADD")
        await history.batch_add_history(
            [{"memory_id": "m", "new_memory": "mate", "event": "ADD", "created_at": EARLY}] * adding
        )
        until = datetime(2020, 6, 1, tzinfo=UTC)
        found = [record async for record in history.query_history(until=until)]
        assert len(found) == adding
        assert (await history.check()).problems == ()

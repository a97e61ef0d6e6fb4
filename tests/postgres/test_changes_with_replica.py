"""Changes by a manager that reads from a replica (`read_url`), which lags behind."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg
import pytest

from async_history import HistoryManager, HistoryRecord, copy_history, open_history
from async_history.backend import operation, records_to_copy
from tests.support.keys import ring
from tests.support.patience import LONG_S
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


@contextlib.asynccontextmanager
async def behind(
    servers: tuple[PostgresServer, PostgresServer], *schemas: str, **options: Any
) -> AsyncIterator[list[HistoryManager]]:
    """Open new histories with a replica that receives nothing from now on."""
    primary, standby = servers
    urls = [with_query(primary.url(), schema=schema) for schema in schemas]
    for url in urls:
        async with open_history(url, **options):
            """It creates the tables."""
    replica = await asyncpg.connect(standby.url())
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(replica.close)
        async with asyncio.timeout(LONG_S):
            await has_received_all(primary, replica)
        await replica.execute("SELECT pg_wal_replay_pause()")
        stack.push_async_callback(replica.execute, "SELECT pg_wal_replay_resume()")
        histories = [open_history(url, read_url=standby.url(), **options) for url in urls]
        yield [await stack.enter_async_context(history) for history in histories]
        for history in histories:  # their other reads do not see what was written
            assert await history.count_history() == 0


def on_primary(servers: tuple[PostgresServer, PostgresServer], schema: str, **options: Any) -> Any:
    return open_history(with_query(servers[0].url(), schema=schema), **options)


async def test_what_the_replica_has_not_received_is_erased(
    servers: tuple[PostgresServer, PostgresServer],
) -> None:
    async with behind(servers, "erased") as (history,):
        await history.add_history("m", None, "secret", "ADD", owner=ANN)
        await history.save_messages([{"role": "user", "content": "secret"}], "user_id=ann")
        report = await history.erase(**ANN, reason="asked", vacuum=False)
        assert (report.records, report.messages) == (1, 1)
        async with on_primary(servers, "erased") as reader:
            (record,) = await reader.get_history("m")
            assert (record.owner, record.new_memory) == (None, None)
            assert await reader.get_last_messages("user_id=ann") == []


@pytest.mark.parametrize("options", [{}, {"keys": ring("a")}], ids=["clear", "encrypted"])
async def test_what_the_replica_has_not_received_is_taken_back(
    servers: tuple[PostgresServer, PostgresServer], options: dict[str, Any]
) -> None:
    schema = f"taken_back_{len(options)}"
    async with behind(servers, schema, **options) as (history,):
        then = datetime(2001, 1, 1, tzinfo=UTC)
        for name in ("rolled back", "undone", "restored"):
            cause = {"request_id": name}
            await history.add_history(name, None, "a", "ADD", owner=ANN, created_at=then)
            await history.update_history(name, "b", cause=cause)
        undated = HistoryRecord("undated", "undated", None, "a", "ADD")
        await history.store.writer.submit(records_to_copy([undated], 100))
        await history.update_history("undated", "b")
        undone = await history.undo(cause={"request_id": "undone"}, dry_run=True)
        assert undone.restored == 1
        await history.undo(cause={"request_id": "undone"})
        await history.restore("restored", to=1)
        await history.restore("undated", to=then)
        report = await history.rollback(to=then, **ANN)
        assert (report.restored, report.unchanged) == (1, 2)
        async with on_primary(servers, schema, **options) as reader:
            for name in ("rolled back", "undone", "restored", "undated"):
                records = await reader.get_history(name)
                assert [one.new_memory for one in records] == ["a", "b", "a"]


async def test_what_the_replicas_have_not_received_is_copied(
    servers: tuple[PostgresServer, PostgresServer],
) -> None:
    async with behind(servers, "source", "target") as (source, target):
        for n in range(3):
            await source.add_history(f"m{n}", None, "a", "ADD")
        await source.save_messages([{"role": "user", "content": "a"}], "s")
        totals: set[int | None] = set()
        for written in (3, 0):
            report = await copy_history(
                source, target, on_progress=lambda _, total: totals.add(total)
            )
            assert (report.records, report.written, report.scopes_left) == (3, written, 0)
        assert totals == {3}
        async with on_primary(servers, "target") as reader:
            assert len(await reader.get_last_messages("s")) == 1


async def test_what_the_replica_has_not_received_is_read_in_an_operation(
    servers: tuple[PostgresServer, PostgresServer],
) -> None:
    """The vector store follows it: each operation of mem0's classes is one."""
    async with behind(servers, "operation") as (history,):
        await history.add_history("m", None, "a", "ADD", owner=ANN)
        await history.save_messages([{"role": "user", "content": "a"}], "s")
        with operation():
            assert len(await history.get_history("m")) == 1
            assert await history.count_history(**ANN) == 1
            assert [one.memory_id async for one in history.memories(**ANN)] == ["m"]
            assert await history.memory_at("m", 1) is not None
            assert len(await history.get_last_messages("s")) == 1

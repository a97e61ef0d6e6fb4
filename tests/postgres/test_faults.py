"""A PostgreSQL server that fails under load: acked records are there once, no call is half there.

Connections that break at a chosen message are in test_cuts, and failures that need a second server
in test_failover.
"""

import asyncio
import contextlib
import random
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import asyncpg
import pytest

from async_history import (
    CommitUnknown,
    HistoryClosed,
    StorageFull,
    StorageUnreachable,
    open_history,
)
from async_history.postgres import PostgresHistoryManager
from tests.subprocesses.failing_io import compiler
from tests.subprocesses.postgres_load import Load, texts
from tests.subprocesses.proxy import Proxy
from tests.support.patience import LONG_S, SOON_S
from tests.support.postgres_faults import (  # noqa: F401 - fixtures are used by name
    MAX_CONNECTIONS,
    a_admin,
    a_proxy,
    a_schema,
    a_server,
    a_url,
    add,
    again,
    connected,
    paused,
    submission,
    taken_into_a_batch,
    until_others_are,
)
from tests.support.postgres_server import PostgresServer, are_installed, with_query

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.faults,
    pytest.mark.once,
    pytest.mark.skipif(not are_installed(), reason="stops and kills servers of its own"),
]

_TERMINATE_ALL: Final = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
_SESSIONS: Final = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
_TERMINATE_ONE: Final = f"{_TERMINATE_ALL} ORDER BY random() LIMIT 1"


class TestUnderLoad:
    async def test_backends_terminated_at_random(
        self, url: str, schema: str, admin: Any, request: pytest.FixtureRequest
    ) -> None:
        """Every caller gets an ack; none gets "not written" or "unknown"."""
        chance = random.Random(20_261_120)  # noqa: S311 - a test's random choices
        left = int(request.config.getoption("--kills")) // 3
        async with open_history(url) as history:
            async with Load(history) as load:
                while left:
                    await load.more_acks(chance.choice((1, 1, 5, 20)))
                    left -= bool(await admin.fetchval(_TERMINATE_ONE))
            await load.check(history, admin, schema)
        assert (load.refused, load.unknown) == ({}, 0)

    async def test_ten_crashes(self, url: str, schema: str, server: PostgresServer) -> None:
        async with open_history(url) as history:
            async with Load(history) as load:
                for _ in range(10):
                    await load.more_acks(50)
                    await asyncio.to_thread(server.restart, "immediate")
                await load.more_acks(50)
            async with connected(server) as connection:
                await load.check(history, connection, schema)
        assert (load.refused, load.unknown) == ({}, 0)

    async def test_calls_while_the_server_is_down(
        self, url: str, schema: str, server: PostgresServer
    ) -> None:
        """They wait until it is back, if that is before the deadline."""
        async with open_history(url) as history:
            await add(history, "before")
            await asyncio.to_thread(server.stop, "immediate")
            writing = asyncio.create_task(add(history, "meanwhile"))
            reading = asyncio.create_task(history.get_history("m"))
            await asyncio.to_thread(server.start)
            await asyncio.gather(writing, reading)
            async with connected(server) as connection:
                assert await texts(connection, schema) == ["before", "meanwhile"]

    async def test_pauses_within_the_deadline(
        self, url: str, schema: str, admin: Any, server: PostgresServer
    ) -> None:
        """An attempt that is cut off may complete when the server resumes."""
        async with open_history(url, acquire_timeout_s=1, retry_timeout_s=6) as history:
            async with Load(history) as load:
                for _ in range(2):
                    await load.more_acks(50)
                    with paused(server):
                        await asyncio.sleep(2.5)  # an attempt has 2 s
                await load.more_acks(50)
            await load.check(history, admin, schema)
        assert (load.refused, load.unknown) == ({}, 0)

    async def test_closing_under_load(self, url: str, schema: str, admin: Any) -> None:
        async with open_history(url) as history, Load(history) as load:
            await load.more_acks(50)
            await history.aclose()
        assert {type(error) for error in load.refused.values()} <= {HistoryClosed}
        async with open_history(url) as history:
            await load.check(history, admin, schema)


class TestPastTheDeadline:
    async def test_a_stopped_server(
        self, url: str, schema: str, admin: Any, server: PostgresServer
    ) -> None:
        """Calls that were sent are unknown, the others are refused, and both may be repeated."""
        loop = asyncio.get_running_loop()
        async with open_history(url, acquire_timeout_s=1, retry_timeout_s=3) as history:
            await add(history, "before")
            with paused(server):
                before = loop.time()
                sent = asyncio.create_task(history.batch_add_history(submission(1, 3, named=False)))
                await taken_into_a_batch(history)
                queued = asyncio.create_task(add(history, "refused"))
                with pytest.raises(CommitUnknown) as unknown:
                    await sent
                assert loop.time() - before > 0.5, "it was retried"
                with pytest.raises(StorageUnreachable):
                    await queued
                with pytest.raises(StorageUnreachable):
                    await history.get_history("m")
            assert len(unknown.value.ids) == 3
            await history.batch_add_history(again(1, unknown.value))
            await history.batch_add_history(again(1, unknown.value))
            assert await texts(admin, schema) == ["before", "1.0", "1.1", "1.2"]

    async def test_closing_is_bounded_and_every_caller_gets_an_error(
        self, url: str, server: PostgresServer
    ) -> None:
        history = await open_history(url, close_timeout_s=0.3, acquire_timeout_s=1)
        await add(history, "before")
        with paused(server):
            sent = asyncio.create_task(add(history, "sent"))
            await taken_into_a_batch(history)
            reading = asyncio.create_task(history.get_history("m"))
            queued = asyncio.create_task(add(history, "queued"))
            await asyncio.sleep(0)
            await asyncio.wait_for(history.aclose(), LONG_S)
            with pytest.raises(CommitUnknown):
                await sent
            with pytest.raises(HistoryClosed, match="not written"):
                await queued
            with pytest.raises((HistoryClosed, StorageUnreachable)):
                await reading
        async with open_history(url) as history:
            found = {record.new_memory for record in await history.get_history("m")}
            assert found <= {"before", "sent"}


class TestNoConnections:
    async def test_all_connections_of_the_server_are_taken(
        self, url: str, schema: str, admin: Any, server: PostgresServer
    ) -> None:
        async with open_history(url, acquire_timeout_s=1, retry_timeout_s=2) as history:
            await add(history, "before")
            async with all_taken(server):
                await add(history, "through the one it has")
                with pytest.raises(StorageUnreachable, match="resources"):
                    await history.get_history("m")
                with pytest.raises(StorageUnreachable, match="resources"):
                    await open_history(url)
            assert len(await history.get_history("m")) == 2
            await admin.execute(_TERMINATE_ALL)
            await until_others_are(admin, 0)
            async with all_taken(server):
                with pytest.raises(StorageUnreachable, match="resources"):
                    await add(history, "refused")
            await add(history, "after")
            assert await texts(admin, schema) == ["before", "through the one it has", "after"]

    async def test_writes_and_reads_wait_for_a_free_connection(
        self, proxy: Proxy, schema: str, admin: Any, server: PostgresServer
    ) -> None:
        async with open_history(with_query(proxy.url, schema=schema)) as history:
            await until_others_are(admin, 0)
            async with all_taken(server):
                both_were_refused = proxy.passed(4)
                calls = [asyncio.create_task(add(history, str(number))) for number in range(3)]
                reading = asyncio.create_task(history.get_history("m"))
                await both_were_refused.wait()
            await asyncio.gather(*calls, reading)
            assert await texts(admin, schema) == ["0", "1", "2"]

    async def test_all_connections_of_a_users_pool_are_taken(
        self, server: PostgresServer, schema: str
    ) -> None:
        """Reads give up if they get no connection. In the end the pool is as before."""
        options: dict[str, Any] = {"schema": schema, "acquire_timeout_s": 0.2}
        async with asyncpg.create_pool(server.url(), min_size=0, max_size=2) as pool:
            async with PostgresHistoryManager(pool=pool, **options) as history:
                await add(history, "before")
                async with pool.acquire():
                    async with asyncio.timeout(SOON_S):
                        with pytest.raises(StorageUnreachable, match="in use"):
                            await history.get_history("m")
                    await add(history, "through its own")
                assert len(await history.get_history("m")) == 2
            async with pool.acquire(), pool.acquire():
                with pytest.raises(StorageUnreachable):
                    await PostgresHistoryManager(pool=pool, **options)


@contextlib.asynccontextmanager
async def all_taken(server: PostgresServer) -> AsyncIterator[None]:
    """Take all connections that the server allows.

    A session that has ended counts a moment longer, so a refusal does not mean that all are taken.
    """
    taken = [await asyncpg.connect(server.url())]
    async with asyncio.timeout(LONG_S):
        while await taken[0].fetchval(_SESSIONS) < MAX_CONNECTIONS:
            with contextlib.suppress(asyncpg.TooManyConnectionsError):
                taken.append(await asyncpg.connect(server.url()))
    yield
    for connection in taken:
        await connection.close()


@contextlib.contextmanager
def full_disk(server: PostgresServer) -> Iterator[None]:
    sign = server.folder / "full"
    sign.touch()
    try:
        yield
    finally:
        sign.unlink()


@pytest.mark.skipif(compiler() is None, reason="there is no C compiler")
async def test_a_full_disk(url: str, server: PostgresServer) -> None:
    """Acked records stay, every caller gets an error, and writes resume once there is space."""
    acked: list[str | None] = []

    async def add_until_it_fails() -> None:
        for _ in range(2_000):
            text = secrets.token_hex(4_000)  # a text that can't be compressed
            await add(history, text)
            acked.append(text)

    async def found() -> list[str | None]:
        return [record.new_memory for record in await history.get_history("m")]

    async with open_history(url) as history:
        await add(history, "before")
        acked.append("before")
        with full_disk(server):
            with pytest.raises(StorageFull, match="no free disk space left"):
                await add_until_it_fails()
            calls = [add(history, secrets.token_hex(4_000)) for _ in range(50)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(result) for result in results} == {StorageFull}
            with pytest.raises(StorageFull):
                await history.save_messages([{"content": secrets.token_hex(100_000)}], "s")
            assert await found() == acked
        await add(history, "again")
        await history.save_messages([{"content": "again"}], "s")
        assert await found() == [*acked, "again"]
        assert len(await history.get_last_messages("s")) == 1

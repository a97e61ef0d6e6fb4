"""Sessions left in the server by calls that gave up: no more than the pool's size and a few."""

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from async_history import (
    CommitUnknown,
    HistoryError,
    HistoryManager,
    StorageLocked,
    open_history,
)
from async_history.postgres import PostgresHistoryManager
from tests.conftest import stores
from tests.support.patience import LONG_S
from tests.support.pgbouncer import pgbouncer
from tests.support.postgres_faults import (  # noqa: F401 - fixtures are used by name
    a_admin,
    a_schema,
    a_server,
    a_url,
    until,
    until_more_wait,
    waiting_for_locks,
)
from tests.support.postgres_server import PostgresServer, are_installed, with_query
from tests.support.reads import READS

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.once,
    pytest.mark.skipif(not are_installed(), reason="needs a server of its own"),
]

_POOL_SIZE = 3
_A_FEW = 2


@contextlib.asynccontextmanager
async def _opened(
    how: str, server: PostgresServer, schema: str, **options: Any
) -> AsyncIterator[HistoryManager]:
    """Yield a history of a pool of three connections."""
    async with contextlib.AsyncExitStack() as stack:
        if how == "pool":
            pool = await stack.enter_async_context(
                asyncpg.create_pool(server.url(), min_size=0, max_size=_POOL_SIZE)
            )
            history: HistoryManager = PostgresHistoryManager(pool=pool, schema=schema, **options)
        elif how == "pooler":
            pooled = stack.enter_context(pgbouncer(server.url(), pool_size=_POOL_SIZE))
            url = with_query(pooled, schema=schema)
            history = open_history(url, pool_size=_POOL_SIZE, **options)
        else:
            url = with_query(server.url(), schema=schema)
            history = open_history(url, pool_size=_POOL_SIZE, **options)
        yield await stack.enter_async_context(history)


@contextlib.asynccontextmanager
async def _locked(
    server: PostgresServer, schema: str, table: str = "history"
) -> AsyncIterator[None]:
    """Lock a table, as VACUUM FULL or ALTER TABLE does."""
    owner = await asyncpg.connect(server.url())
    try:
        await owner.execute(f"BEGIN; LOCK TABLE {schema}.{table} IN ACCESS EXCLUSIVE MODE")
        yield
    finally:
        await owner.close()


@pytest.mark.parametrize(
    ("read", "how"),
    [
        *((read, "own") for read in ("get", "walk", "count", "memories_at", "dump")),
        *((read, "pool") for read in ("get", "walk")),
        *(pytest.param(read, "pooler", marks=pytest.mark.pgbouncer) for read in ("get", "dump")),
    ],
)
async def test_reads_that_time_out(
    read: str, how: str, server: PostgresServer, schema: str, admin: Any
) -> None:
    """Their places in the pool are free only once the server is done with them."""
    options: dict[str, Any] = {"retry_timeout_s": 2} if how == "pooler" else {}
    async with _opened(how, server, schema, **options) as history:
        await history.add_history("m", None, "x", "ADD")
        async with _locked(server, schema):
            for _ in range(2 * _POOL_SIZE):
                reading = asyncio.ensure_future(READS[read](history))
                busy = await waiting_for_locks(admin)
                if busy < _POOL_SIZE - 1:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(1):
                            await until_more_wait(admin, busy)
                reading.cancel()
                await asyncio.wait([reading])
                assert await waiting_for_locks(admin) <= _POOL_SIZE
            if how != "pooler":  # which gets no request to cancel
                await until(lambda: _none_waits(admin))
        assert len(await asyncio.wait_for(history.get_history("m"), LONG_S)) == 1


async def _none_waits(admin: Any) -> bool:
    return await waiting_for_locks(admin) == 0


@pytest.mark.parametrize("how", stores("own", "pool", "pooler"))
async def test_calls_that_wait_for_a_lock_and_time_out(
    how: str, server: PostgresServer, schema: str, url: str, admin: Any
) -> None:
    """The error names another session's lock, and no session waits for it any more."""
    async with (
        open_history(url) as patient,
        _opened(how, server, schema, retry_timeout_s=0.9) as history,
    ):
        await patient.add_history("m", None, "x", "ADD")
        async with _locked(server, schema):
            for _ in range(2):
                calls: list[Awaitable[object]] = [history.get_history("m") for _ in range(6)]
                calls.append(history.add_history("m", None, "x", "UPDATE"))
                calls.append(history.add_history("m", None, "x", "UPDATE", id="named"))
                results = await asyncio.gather(*calls, return_exceptions=True)
                assert all(isinstance(one, HistoryError) for one in results), results
                # Unknown if the machine is so slow that the server did not give up in time.
                assert isinstance(results[-1], StorageLocked | CommitUnknown), results[-1]
                assert await waiting_for_locks(admin) <= _POOL_SIZE + _A_FEW
            await until(lambda: _none_waits(admin))
        await patient.add_history("m", None, "y", "UPDATE")
        assert len(await patient.get_history("m")) == 2


async def test_an_opening_that_times_out(
    server: PostgresServer, schema: str, url: str, admin: Any
) -> None:
    """As during a migration by another."""
    if server.version < 14:
        pytest.skip("this server does not check for its client")
    async with open_history(url):
        pass
    async with _locked(server, schema, "migrations"):
        for _ in range(3):
            opening = asyncio.ensure_future(_open(url))
            await until_more_wait(admin)
            opening.cancel()
            await asyncio.wait([opening])
            await until(lambda: _none_waits(admin))


async def _open(url: str) -> None:
    async with open_history(url):
        pass


async def test_a_users_sessions_are_returned_unchanged(server: PostgresServer, schema: str) -> None:
    async def settle(connection: Any) -> None:
        await connection.execute("SET lock_timeout TO '7min'; SET statement_timeout TO '9min'")

    async def settings(pool: asyncpg.Pool) -> list[Any]:
        async with pool.acquire() as connection:
            return list(
                await connection.fetchrow(
                    """SELECT current_setting('lock_timeout'), current_setting('statement_timeout'),
                    current_setting('client_connection_check_interval', true)"""
                )
            )

    async def leave(connection: Any) -> None:
        pass

    async with asyncpg.create_pool(
        server.url(), min_size=0, max_size=2, init=settle, reset=leave
    ) as pool:
        before = await settings(pool)
        async with PostgresHistoryManager(pool=pool, schema=schema) as history:
            await history.add_history("m", None, "x", "ADD")
        async with pool.acquire() as first:
            assert await settings(pool) == before
            assert await first.fetchval("SHOW lock_timeout") == "7min"


async def test_settings_that_failed_are_made_before_the_next_try(
    server: PostgresServer, schema: str
) -> None:
    """No commit runs without the limits of its session."""
    failures = ["canceling statement due to user request"]

    class Connection(asyncpg.Connection):  # type: ignore[misc]  # it has no type information
        async def execute(self, query: str, *args: Any, **options: Any) -> Any:
            if query.startswith("SET lock_timeout") and failures:
                raise asyncpg.QueryCanceledError(failures.pop())
            return await super().execute(query, *args, **options)

    async with (
        asyncpg.create_pool(
            server.url(), min_size=0, max_size=2, connection_class=Connection
        ) as pool,
        PostgresHistoryManager(pool=pool, schema=schema) as history,
    ):
        await history.add_history("m", None, "x", "ADD")
        assert not failures
        limit = await history.store.run_exclusively(
            lambda connection, _: connection.fetchval("SHOW lock_timeout")
        )
        assert limit != "0"


@pytest.mark.parametrize("how", stores("own", "pooler"))
@pytest.mark.parametrize("is_named", [False, True])
async def test_a_large_call_has_the_time_that_it_needs(
    is_named: bool, how: str, server: PostgresServer, schema: str, admin: Any
) -> None:
    """A working server that needs longer than a small call may take is not cut off."""
    async with _opened(how, server, schema, retry_timeout_s=0.9) as history:
        await admin.execute(
            f"""CREATE FUNCTION {schema}.slow() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_sleep(1); RETURN NULL; END';
            CREATE TRIGGER slow AFTER INSERT ON {schema}.history EXECUTE FUNCTION {schema}.slow()"""
        )
        records: list[dict[str, Any]] = [
            {"memory_id": "m", "new_memory": str(n), "event": "UPDATE"} for n in range(10_000)
        ]
        if is_named:
            records[0]["id"] = "name"
        await history.batch_add_history(records)
        assert await history.count_history() == len(records)


@pytest.mark.subprocess
async def test_a_killed_program_leaves_no_session_that_others_wait_for(
    server: PostgresServer, schema: str, url: str, admin: Any
) -> None:
    """From PostgreSQL 14 on the server checks whether its client is still there."""
    if server.version < 14:
        pytest.skip("this server ends waiting sessions by lock_timeout alone")
    async with open_history(url) as history:
        await history.add_history("m", None, "x", "ADD")
    source = f"""
import asyncio
from async_history import open_history
async def main():
    async with open_history({url!r}) as history:
        await asyncio.gather(history.get_history("m"), history.add_history("m", None, "x", "ADD"))
asyncio.run(main())
"""
    async with _locked(server, schema):
        program = subprocess.Popen([sys.executable, "-c", source], cwd=Path(__file__).parents[2])
        await until(lambda: _two_wait(admin))
        program.send_signal(signal.SIGKILL)
        program.wait()
        await until(lambda: _none_waits(admin))


async def _two_wait(admin: Any) -> bool:
    return await waiting_for_locks(admin) == 2

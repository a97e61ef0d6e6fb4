"""Time limits of a role or a user's pool, for work that may take longer."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from async_history import ErasureReport, HistoryManager, StorageUnreachable, open_history
from async_history.postgres import PostgresHistoryManager
from tests.conftest import stores
from tests.support.patience import SOON_S
from tests.support.postgres_schemas import schema_of, until, version
from tests.support.postgres_server import PostgresServer, with_query

pytestmark = [pytest.mark.postgres, pytest.mark.once]

_LIMITS = {
    "statement_timeout": "250ms",
    "lock_timeout": "200ms",
    "idle_in_transaction_session_timeout": "300ms",
}
_ENDED_IF_IDLE = """
CREATE FUNCTION {0}.ended() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF current_setting('idle_in_transaction_session_timeout')::interval < '1 s' THEN
        RAISE 'the server would end this session while the client works';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER ended AFTER INSERT OR UPDATE OR DELETE ON {0}.history
FOR EACH STATEMENT EXECUTE FUNCTION {0}.ended();
"""
_WAITS = """
SELECT pid FROM pg_stat_activity
WHERE query LIKE $1 AND wait_event_type = 'Lock' AND clock_timestamp() - query_start > '1 s'
"""
_LOCK = "BEGIN; LOCK TABLE async_history.history IN SHARE UPDATE EXCLUSIVE MODE"
_VACUUM = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'VACUUM%' AND wait_event_type = 'Lock'"
_LOCK_SCHEMA = "SELECT pg_advisory_xact_lock(hashtextextended('async_history async_history', 0))"
_ADVISORY = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'advisory'"
_SLEEPING = """
CREATE FUNCTION {0}.sleep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    PERFORM pg_catalog.pg_sleep(3); RETURN NULL;
END $$;
CREATE TRIGGER sleep AFTER INSERT OR UPDATE ON {0}.history EXECUTE FUNCTION {0}.sleep();
"""
_SLEEPING_AT_COMMIT = """
CREATE FUNCTION {0}.sleep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.version = 4 THEN PERFORM pg_catalog.pg_sleep(3); END IF; RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER sleep AFTER INSERT ON {0}.migrations
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {0}.sleep();
"""


@asynccontextmanager
async def limited(how: str, url: str, postgres: str) -> AsyncIterator[Callable[[], HistoryManager]]:
    """Provide a function that opens a history whose sessions have limits, by a URL or a pool.

    At the end the pool's sessions must have them.
    """
    if how == "own":
        yield lambda: open_history(with_query(url, **_LIMITS))
        return
    async with asyncpg.create_pool(
        postgres, min_size=0, max_size=3, server_settings=_LIMITS
    ) as pool:
        yield lambda: PostgresHistoryManager(pool=pool, schema=schema_of(url))
        async with AsyncExitStack() as stack:
            for _ in range(3):
                connection = await stack.enter_async_context(pool.acquire())
                for name, value in _LIMITS.items():
                    assert await connection.fetchval(f"SHOW {name}") == value


async def until_it_waits(connection: Any, query: str, task: "asyncio.Future[Any]") -> None:
    """Wait until a task's statement, like a pattern, has waited longer than the limits are."""
    while not await connection.fetchval(_WAITS, query):
        assert not task.done(), task.result()


@pytest.mark.parametrize("how", stores("own", "pool"))
async def test_a_migration_takes_longer(
    how: str, url: str, postgres: str, connect: Callable[[], Any]
) -> None:
    with version(3):
        async with open_history(url):
            pass
    other, owner = await connect(), await connect()
    async with limited(how, url, postgres) as open_:
        async with other.transaction():
            await other.execute(f"LOCK TABLE {schema_of(url)}.history IN ROW EXCLUSIVE MODE")
            opening = asyncio.ensure_future(open_())
            await until_it_waits(owner, f"CREATE UNIQUE INDEX%{schema_of(url)}%", opening)
        history = await opening
        await history.add_history("m", None, "tea", "ADD")
        await history.aclose()


@pytest.mark.parametrize("how", stores("own", "pool"))
async def test_a_vacuum_takes_longer(
    how: str, url: str, postgres: str, connect: Callable[[], Any]
) -> None:
    other, owner = await connect(), await connect()
    async with limited(how, url, postgres) as open_, open_() as history:
        await history.add_history("m", None, "tea", "ADD")
        async with other.transaction():
            await other.execute(
                f"LOCK TABLE {schema_of(url)}.history IN SHARE UPDATE EXCLUSIVE MODE"
            )
            erasing = asyncio.ensure_future(history.erase(memory_ids=["m"], reason="asked"))
            await until_it_waits(owner, f"VACUUM%{schema_of(url)}%", erasing)
        report = await erasing
        assert not [sentence for sentence in report.remains if "not vacuumed" in sentence]


@pytest.mark.parametrize("how", stores("own", "pool"))
async def test_a_transaction_waits_for_the_client_as_long_as_a_try_may_take(
    how: str, url: str, postgres: str, connect: Callable[[], Any]
) -> None:
    """The client may have to encrypt or hash many records between two statements."""
    async with limited(how, url, postgres) as open_, open_() as history:
        await (await connect()).execute(_ENDED_IF_IDLE.format(schema_of(url)))
        await history.add_history("m", None, "tea", "ADD", id="named")
        await history.update_history("m", "mate", owner={"user_id": "ann"})
        await history.batch_add_history(
            {"memory_id": f"m{number}", "new_memory": "tea", "event": "ADD"}
            for number in range(3_000)  # has a time of its own
        )
        await history.prune(older_than=timedelta(0), keep_last=1)
        await history.erase(memory_ids=["m"], reason="asked", vacuum=False)


async def test_the_command_timeout_of_a_pool_ends_nothing(
    url: str, postgres: str, connect: Callable[[], Any]
) -> None:
    async with (
        asyncpg.create_pool(postgres, min_size=0, max_size=3, command_timeout=2) as pool,
        PostgresHistoryManager(pool=pool, schema=schema_of(url)) as history,
    ):
        await (await connect()).execute(_SLEEPING.format(schema_of(url)))
        await history.add_history("m", None, "tea", "ADD")
        await history.add_history("m", "tea", "mate", "UPDATE", id="named")
        assert (await history.erase(memory_ids=["m"], reason="asked")).records == 2
        assert await pool.fetchval("SELECT 1") == 1


@asynccontextmanager
async def vacuum_that_waits(
    server: PostgresServer,
) -> AsyncIterator[tuple["asyncio.Future[ErasureReport]", asyncpg.Pool, Any, int]]:
    """Provide an erasure on a user's pool whose VACUUM waits for a lock, the pool, a connection to
    watch the server, and the VACUUM's process."""
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(unreset_pool(server))
        history = await stack.enter_async_context(PostgresHistoryManager(pool=pool))
        await history.add_history("m", None, "tea", "ADD")
        other, owner = [await asyncpg.connect(server.url()) for _ in range(2)]
        stack.callback(other.terminate)
        stack.callback(owner.terminate)
        await other.execute(_LOCK)
        erasing = asyncio.ensure_future(history.erase(memory_ids=["m"], reason="asked"))
        yield erasing, pool, owner, await until(owner, _VACUUM)


@asynccontextmanager
async def unreset_pool(server: PostgresServer) -> AsyncIterator[asyncpg.Pool]:
    """Provide a pool that gives out sessions as they are; at the end each must have its limits."""

    async def keep(_: object) -> None:
        pass

    pool = await asyncpg.create_pool(
        server.url(), min_size=0, max_size=2, server_settings=_LIMITS, reset=keep
    )
    try:
        yield pool
        async with pool.acquire() as one, pool.acquire() as two:
            for connection in (one, two):
                for name, value in _LIMITS.items():
                    assert await connection.fetchval(f"SHOW {name}") == value
    finally:
        pool.terminate()


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    server = PostgresServer().create().start()
    yield server
    server.remove()


async def test_a_cancelled_vacuum_ends_on_the_server(server: PostgresServer) -> None:
    async with vacuum_that_waits(server) as (erasing, _, owner, _):
        erasing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await erasing
        await until(owner, f"SELECT NOT EXISTS ({_VACUUM})")


async def test_a_vacuum_is_cancelled_while_the_server_hangs(server: PostgresServer) -> None:
    async with vacuum_that_waits(server) as (erasing, _, owner, _):
        server.pause()
        try:
            erasing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(erasing, SOON_S)
        finally:
            server.resume()
        await until(owner, f"SELECT NOT EXISTS ({_VACUUM})")


async def test_the_server_ends_the_session_of_a_vacuum(server: PostgresServer) -> None:
    async with vacuum_that_waits(server) as (erasing, _, owner, process):
        await owner.execute("SELECT pg_terminate_backend($1)", process)
        report = await erasing
        (sentence,) = [one for one in report.remains if "history was not vacuumed" in one]
        assert "terminating connection due to administrator command" in sentence


@pytest.mark.parametrize("how", ["cancelled", "ended", "paused"])
async def test_opening_with_a_pool_is_cut(how: str, server: PostgresServer) -> None:
    """It waits for the lock of another process that migrates."""
    other, owner = [await asyncpg.connect(server.url()) for _ in range(2)]
    await other.execute(f"BEGIN; {_LOCK_SCHEMA}")
    async with unreset_pool(server) as pool:

        async def open_() -> None:
            async with PostgresHistoryManager(pool=pool):
                pass

        opening = asyncio.ensure_future(open_())
        process = await until(owner, _ADVISORY)
        if how == "ended":
            await owner.execute("SELECT pg_terminate_backend($1)", process)
            with pytest.raises(StorageUnreachable, match="administrator command"):
                await opening
        else:
            if how == "paused":
                server.pause()
            try:
                opening.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.wait_for(opening, SOON_S)
            finally:
                server.resume()
    other.terminate()
    owner.terminate()


async def test_the_command_timeout_of_a_pool_ends_no_migration(
    url: str, postgres: str, connect: Callable[[], Any]
) -> None:
    with version(3):
        async with open_history(url):
            pass
    await (await connect()).execute(_SLEEPING_AT_COMMIT.format(schema_of(url)))
    async with (
        asyncpg.create_pool(postgres, min_size=0, max_size=3, command_timeout=2) as pool,
        PostgresHistoryManager(pool=pool, schema=schema_of(url)) as history,
    ):
        await history.add_history("m", None, "tea", "ADD")

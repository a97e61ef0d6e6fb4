"""A commit that did not wait for its synchronous standby raises a warning, which may be silenced.

The server of these tests waits for a standby that does not exist.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from async_history import (
    CommitUnknown,
    HistoryError,
    HistoryManager,
    StorageUnreachable,
    open_history,
)
from async_history.postgres import PostgresHistoryManager
from tests.conftest import stores
from tests.support.pgbouncer import pgbouncer
from tests.support.postgres_faults import until, until_others_are
from tests.support.postgres_server import PostgresServer, are_installed, with_query

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.once,
    pytest.mark.skipif(not are_installed(), reason="needs a server of its own"),
]

_WAITING = "SELECT pid, query_start FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
_TERMINATE_OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
_NEW = {"memory_id": "m", "new_memory": "x", "event": "UPDATE"}
_SILENCING = """
CREATE FUNCTION {schema}.silence() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    SET client_min_messages TO error; RETURN NEW;
END $$;
CREATE TRIGGER silence BEFORE INSERT OR UPDATE ON {schema}.history
FOR EACH ROW EXECUTE FUNCTION {schema}.silence()
"""


async def _update(history: HistoryManager) -> object:
    return await history.update_history("m", "y")


CALLS: dict[str, Callable[[HistoryManager], Awaitable[object]]] = {
    "one": lambda history: history.add_history("m", None, "x", "ADD"),
    "several": lambda history: history.batch_add_history([_NEW] * 3),
    "named": lambda history: history.add_history("m", None, "x", "ADD", id="name"),
    "update": _update,
    "messages": lambda history: history.save_messages([{"role": "user", "content": "x"}], "s"),
    "prune": lambda history: history.prune(older_than=datetime(2020, 1, 1, tzinfo=UTC)),
    "erase": lambda history: history.erase(memory_ids=["m"], reason="test", vacuum=False),
    "reset": lambda history: history.reset(),
}


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    server = PostgresServer(fsync="off", synchronous_standby_names="nobody").create().start()
    yield server
    server.remove()


@pytest.fixture
async def admin(server: PostgresServer) -> AsyncIterator[Any]:
    admin = await asyncpg.connect(with_query(server.url(), synchronous_commit="local"))
    yield admin
    await admin.close()


@pytest.fixture
async def schema(server: PostgresServer) -> str:
    schema = f"test_{secrets.token_hex(8)}"
    url = with_query(server.url(), schema=schema, synchronous_commit="local")
    async with open_history(url) as history:
        old = _NEW | {"created_at": "2001-01-01", "updated_at": "2001-01-01"}
        await history.batch_add_history([old, old | {"event": "DELETE"}])
    return schema


@contextlib.asynccontextmanager
async def _silenced(
    how: str, server: PostgresServer, admin: Any, schema: str
) -> AsyncIterator[HistoryManager]:
    url = with_query(server.url(), schema=schema)
    options: dict[str, Any] = {"close_timeout_s": 0.1, "retry_timeout_s": 60}
    async with contextlib.AsyncExitStack() as stack:
        if how in ("role", "pooler"):
            await admin.execute("ALTER ROLE owner SET client_min_messages = error")
            stack.push_async_callback(admin.execute, "ALTER ROLE owner RESET client_min_messages")
        if how == "trigger":
            await admin.execute(_SILENCING.format(schema=schema))
        if how == "url":
            url = with_query(url, client_min_messages="error")
        if how == "pooler":
            pooled = stack.enter_context(pgbouncer(server.url()))
            url = with_query(pooled, schema=schema)
        if how == "pool":
            pool = await stack.enter_async_context(
                asyncpg.create_pool(
                    server.url(), min_size=0, server_settings={"client_min_messages": "error"}
                )
            )
            stack.callback(pool.terminate)
            history: HistoryManager = PostgresHistoryManager(pool=pool, schema=schema, **options)
        else:
            history = open_history(url, **options)
        async with history:
            yield history


@pytest.mark.parametrize("how", stores("role", "url", "pool", "pooler", "trigger"))
async def test_no_ack_even_if_the_warning_is_silenced(
    how: str, server: PostgresServer, admin: Any, schema: str
) -> None:
    for name, make in CALLS.items():
        async with _silenced(how, server, admin, schema) as history:
            await _is_not_acked(name, make(history), admin)
        # Also one that does not wait yet: its locks would keep the function for ever.
        await admin.fetch(_TERMINATE_OTHERS)
        await until_others_are(admin, 0)
        if how == "trigger":
            await admin.execute(f"DROP FUNCTION {schema}.silence CASCADE")


async def _is_not_acked(name: str, made: Awaitable[object], admin: Any) -> None:
    """Cancel the commit's wait for a standby, and see that it waits again."""
    seen = list(await admin.fetch(_WAITING))
    call = asyncio.ensure_future(made)

    async def waits_again() -> bool:
        assert not call.done(), f"{name} was acked without a standby"
        found = [row for row in await admin.fetch(_WAITING) if row not in seen]
        seen.extend(found)
        return bool(found)

    for _ in range(2):
        await until(waits_again)
        await admin.execute("SELECT pg_cancel_backend($1)", seen[-1]["pid"])
    call.cancel()
    await asyncio.wait([call])


async def test_no_ack_where_a_standby_is_named_while_the_history_is_open(
    server: PostgresServer, admin: Any, schema: str
) -> None:
    await admin.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
    await admin.execute("SELECT pg_reload_conf()")
    probe = await asyncpg.connect(server.url())

    async def commit_again_and_again() -> None:
        while True:
            await probe.execute("SELECT pg_logical_emit_message(true, 'test', '')")

    async def it_waits() -> bool:
        return bool(await admin.fetch(_WAITING))

    probing = asyncio.ensure_future(asyncio.sleep(0))
    try:
        async with _silenced("trigger", server, admin, schema) as history:
            await history.add_history("m", None, "x", "ADD")
            await admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
            await admin.execute("SELECT pg_reload_conf()")
            probing = asyncio.ensure_future(commit_again_and_again())
            await until(it_waits)
            await _is_not_acked("one", CALLS["one"](history), admin)
    finally:
        await admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
        await admin.execute("SELECT pg_reload_conf()")
        for pid, _ in await admin.fetch(_WAITING):
            await admin.execute("SELECT pg_terminate_backend($1)", pid)
        probing.cancel()
        probe.terminate()
        await asyncio.wait([probing])


async def test_commits_that_are_given_up_are_few(
    server: PostgresServer, admin: Any, schema: str
) -> None:
    """Only a standby ends their wait, and the server has a limited number of processes."""
    url = with_query(server.url(), schema=schema)
    async with open_history(url, retry_timeout_s=0.6, close_timeout_s=0.1) as history:
        errors = []
        for n in range(12):
            with pytest.raises(HistoryError) as failed:
                await history.add_history(f"m{n}", None, "x", "ADD")
            errors.append(failed.value)
            assert len(await admin.fetch(_WAITING)) <= 5
        assert CommitUnknown in map(type, errors)
        assert isinstance(errors[-1], StorageUnreachable)
        assert "synchronous standby" in str(errors[-1])
        for pid, _ in await admin.fetch(_WAITING):
            await admin.execute("SELECT pg_terminate_backend($1)", pid)
    written = await admin.fetchval(f"SELECT count(*) FROM {schema}.history")
    assert written <= 2 + sum(isinstance(error, CommitUnknown) for error in errors)

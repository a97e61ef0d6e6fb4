"""An erasure's VACUUM on a server: waited for while it runs, and ended when it is not wanted.
Here another session's lock on the table delays it, as another VACUUM would."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest

from async_history import ErasureReport, HistoryClosed, HistoryManager, open_history
from async_history._postgres import manager, store
from async_history._postgres.removing.vacuum import Vacuum
from async_history.postgres import PostgresHistoryManager
from tests.conftest import stores
from tests.subprocesses.proxy import Proxy
from tests.support.patience import LONG_S
from tests.support.pgbouncer import pgbouncer
from tests.support.postgres_faults import (  # noqa: F401 - fixtures are used by name
    a_admin,
    a_proxy,
    a_schema,
    a_server,
    a_url,
    until,
)
from tests.support.postgres_server import PostgresServer, are_installed, with_query

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.once,
    pytest.mark.skipif(not are_installed(), reason="needs a server of its own"),
]

_ASK_EVERY_S = 0.5
_VACUUM = "query LIKE 'VACUUM%' AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()"
"""A VACUUM that waits; the one of the other table may be running."""
_AT_VACUUM = f"SELECT count(*) FROM pg_stat_activity WHERE {_VACUUM}"
_ASKED_AT = """
SELECT state_change FROM pg_stat_activity WHERE query LIKE '%COMMIT;' AND pid <> pg_backend_pid()
"""
"""When a connection last ended a transaction: during an erasure's wait, when it last asked."""


@pytest.fixture(autouse=True, name="asked_every")
def often(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Make the erasure ask the server often; return the usual interval."""
    asked_every: list[float] = []

    def vacuum(*arguments: Any, ask_every_s: float, **options: Any) -> Vacuum:
        asked_every.append(ask_every_s)
        return Vacuum(*arguments, ask_every_s=_ASK_EVERY_S, **options)

    monkeypatch.setattr(store, "Vacuum", vacuum)
    return asked_every


@pytest.fixture(name="role")
async def a_role(schema: str, admin: Any) -> AsyncIterator[str]:
    """A role that may have its own schema."""
    role = f"{schema}_role"
    await admin.execute(f"CREATE ROLE {role}; GRANT CREATE ON DATABASE postgres TO {role}")
    yield role
    await admin.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


@contextlib.asynccontextmanager
async def _opened(
    how: str, server: PostgresServer, schema: str, role: str
) -> AsyncIterator[HistoryManager]:
    """Yield a history with something to erase."""
    async with contextlib.AsyncExitStack() as stack:
        if how == "pool":  # whose role may not see its own sessions' state
            pool = await stack.enter_async_context(
                asyncpg.create_pool(
                    server.url(),
                    min_size=0,
                    max_size=2,
                    init=lambda connection: connection.execute(f"SET ROLE {role}"),
                    reset=_leave_as_it_is,
                )
            )
            history: HistoryManager = PostgresHistoryManager(pool=pool, schema=schema)
        elif how == "pooler":
            pooled = stack.enter_context(pgbouncer(server.url(), pool_size=2))
            history = open_history(with_query(pooled, schema=schema), pool_size=2)
        else:
            history = open_history(with_query(server.url(), schema=schema), pool_size=2)
        await stack.enter_async_context(history)
        await history.add_history("m", None, "x", "ADD")
        yield history


async def _leave_as_it_is(_: Any) -> None:
    pass


@contextlib.asynccontextmanager
async def _held_up(
    server: PostgresServer, schema: str, table: str, mode: str = "SHARE UPDATE EXCLUSIVE"
) -> AsyncIterator[Any]:
    """Yield the connection that delays VACUUM until it is closed."""
    other = await asyncpg.connect(server.url())
    try:
        await other.execute(f"BEGIN; LOCK TABLE {schema}.{table} IN {mode} MODE")
        yield other
    finally:
        await other.close()


@contextlib.contextmanager
def _erasing(history: HistoryManager) -> Iterator["asyncio.Task[ErasureReport]"]:
    task = asyncio.ensure_future(history.erase(memory_ids=["m"], reason="asked"))
    try:
        yield task
    finally:
        task.cancel()


async def _until_vacuums_are(admin: Any, wanted: int) -> None:
    async def are() -> bool:
        return bool(await admin.fetchval(_AT_VACUUM) == wanted)

    await until(are)


async def _until_asked(admin: Any, times: int) -> None:
    """Return once the server was asked so many more times."""
    asked = {row[0] for row in await admin.fetch(_ASKED_AT)}
    wanted = len(asked) + times

    async def is_asked() -> bool:
        asked.update(row[0] for row in await admin.fetch(_ASKED_AT))
        return len(asked) >= wanted

    await until(is_asked)


def _not_vacuumed(report: ErasureReport) -> list[str]:
    return [sentence for sentence in report.remains if "not vacuumed" in sentence]


@pytest.mark.parametrize("table", ["history", "messages"])
@pytest.mark.parametrize("how", stores("own", "pool", "pooler"))
async def test_vacuum_is_waited_for_while_the_server_works_on_it(
    how: str,
    table: str,
    server: PostgresServer,
    schema: str,
    role: str,
    admin: Any,
    asked_every: list[float],
) -> None:
    async with _opened(how, server, schema, role) as history:
        async with _held_up(server, schema, table) as other:
            with _erasing(history) as new_erase_request:
                await _until_vacuums_are(admin, 1)
                await _until_asked(admin, 3)
                assert not new_erase_request.done()
                await history.add_history("n", None, "y", "ADD")
                if how == "own":  # VACUUM takes no place in the pool of two
                    assert await history.count_history() == 2
                await other.close()
                report = await asyncio.wait_for(new_erase_request, LONG_S)
        assert (report.done, report.records) == (True, 1)
        assert _not_vacuumed(report) == []
        (erasure,) = await history.erasures()
        assert erasure.finished_at is not None
    assert asked_every == [manager.RETRY_TIMEOUT_S]


@pytest.mark.parametrize("how", stores("own", "pool", "pooler"))
async def test_a_table_that_others_use_is_not_rewritten(
    how: str,
    server: PostgresServer,
    schema: str,
    role: str,
    admin: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """VACUUM FULL never waits for the lock, so no statement waits behind it."""
    monkeypatch.setattr(
        store, "Vacuum", lambda *parts, **limits: Vacuum(*parts, **limits | {"lock_timeout_s": 0.3})
    )
    async with _opened(how, server, schema, role) as history:
        async with _held_up(server, schema, "history", "ACCESS SHARE"):
            task = asyncio.ensure_future(
                history.erase(memory_ids=["m"], reason="asked", vacuum="full")
            )
            async with asyncio.timeout(LONG_S):
                while not task.done():
                    await history.add_history("n", None, "y", "ADD")
                    assert await history.get_history("n")
                report = await task
        (sentence,) = _not_vacuumed(report)
        assert "history was not vacuumed: others have kept it locked for 0.3 s" in sentence
        assert await _was_rewritten(admin, schema, "messages")
        assert not await _was_rewritten(admin, schema, "history")


async def test_a_table_is_rewritten_once_others_have_ended(
    server: PostgresServer, schema: str, role: str, admin: Any
) -> None:
    tried = """
    SELECT EXISTS (
        SELECT FROM pg_stat_activity WHERE query LIKE '%relfilenode%' AND pid <> pg_backend_pid()
    )
    """

    async def is_tried() -> bool:
        return bool(await admin.fetchval(tried))

    async with _opened("own", server, schema, role) as history:
        async with _held_up(server, schema, "history", "ACCESS SHARE") as other:
            task = asyncio.ensure_future(
                history.erase(memory_ids=["m"], reason="asked", vacuum="full")
            )
            await until(is_tried)
            await other.close()
            report = await asyncio.wait_for(task, LONG_S)
        assert _not_vacuumed(report) == []
        assert await _was_rewritten(admin, schema, "history")


async def _was_rewritten(admin: Any, schema: str, table: str) -> bool:
    """Return whether a table has another file than the one it was created with."""
    return bool(
        await admin.fetchval(
            "SELECT relfilenode <> oid FROM pg_class WHERE oid = to_regclass($1)",
            f"{schema}.{table}",
        )
    )


@pytest.mark.parametrize("how", ["pg_cancel_backend", "pg_terminate_backend"])
@pytest.mark.parametrize("table", ["history", "messages"])
async def test_each_table_is_reported_separately(
    table: str, how: str, server: PostgresServer, schema: str, role: str, admin: Any
) -> None:
    async with (
        _opened("own", server, schema, role) as history,
        _held_up(server, schema, table),
    ):
        with _erasing(history) as new_erase_request:
            await _until_vacuums_are(admin, 1)
            await admin.execute(f"SELECT {how}(pid) FROM pg_stat_activity WHERE {_VACUUM}")
            report = await asyncio.wait_for(new_erase_request, LONG_S)
    (sentence,) = _not_vacuumed(report)
    assert sentence.startswith(f'the table "{schema}".{table} was not vacuumed: ')
    assert ("cancelled the statement" if "cancel" in how else "went away") in sentence
    assert report.done
    other = {"history": "messages", "messages": "history"}[table]
    await until(lambda: _is_vacuumed(admin, schema, other))
    assert not await _is_vacuumed(admin, schema, table)


async def _is_vacuumed(admin: Any, schema: str, table: str) -> bool:
    """Return whether the table was vacuumed and the server has counted that."""
    return bool(
        await admin.fetchval(
            "SELECT vacuum_count FROM pg_stat_user_tables WHERE schemaname = $1 AND relname = $2",
            schema,
            table,
        )
    )


@pytest.mark.versions
@pytest.mark.parametrize("how", ["own", "pool"])
async def test_a_cancelled_erasure_ends_vacuum_in_the_server(
    how: str, server: PostgresServer, schema: str, role: str, admin: Any
) -> None:
    async with (
        _opened(how, server, schema, role) as history,
        _held_up(server, schema, "history"),
    ):
        with _erasing(history) as new_erase_request:
            await _until_vacuums_are(admin, 1)
            new_erase_request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await new_erase_request
        await _until_vacuums_are(admin, 0)
        assert await history.count_history() == 1  # the pool has its connection back


@pytest.mark.pgbouncer
async def test_through_a_pooler_vacuum_goes_on_and_the_report_says_so(
    server: PostgresServer,
    schema: str,
    role: str,
    admin: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with _opened("pooler", server, schema, role) as history:
        async with _held_up(server, schema, "history"):
            with _erasing(history) as new_erase_request, caplog.at_level(logging.WARNING):
                await _until_vacuums_are(admin, 1)
                new_erase_request.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await new_erase_request
            assert f'VACUUM of "{schema}".history goes on' in caplog.text
            await _until_asked(admin, 3)
            assert await admin.fetchval(_AT_VACUUM) == 1
        await _until_vacuums_are(admin, 0)
        assert await history.count_history() == 1


@pytest.mark.parametrize("how", ["own", "pool"])
async def test_a_closed_manager_ends_vacuum(
    how: str, server: PostgresServer, schema: str, role: str, admin: Any
) -> None:
    async with (
        _opened(how, server, schema, role) as history,
        _held_up(server, schema, "history"),
    ):
        with _erasing(history) as new_erase_request:
            await _until_vacuums_are(admin, 1)
            await history.aclose()
            with pytest.raises(HistoryClosed):
                await asyncio.wait_for(new_erase_request, LONG_S)
        await _until_vacuums_are(admin, 0)


async def test_a_vacuum_that_the_server_does_not_run_is_given_up(proxy: Proxy, schema: str) -> None:
    """It never reached the server, and the connection does not show that."""
    async with open_history(with_query(proxy.url, schema=schema)) as history:
        await history.add_history("m", None, "x", "ADD")
        late = proxy.hold(b"VACUUM")
        report = await asyncio.wait_for(history.erase(memory_ids=["m"], reason="asked"), LONG_S)
        assert late.came.is_set()
        late.cut_client()
        (sentence,) = _not_vacuumed(report)
        assert f'"{schema}".history was not vacuumed' in sentence
        assert "no process that runs it" in sentence


@pytest.mark.versions
@pytest.mark.parametrize("is_granted", [False, True])
async def test_a_role_without_the_right_is_reported_at_any_message_level(
    is_granted: bool, server: PostgresServer, schema: str, url: str, role: str, admin: Any
) -> None:
    if is_granted and server.version < 17:
        pytest.skip("MAINTAIN can be granted from PostgreSQL 17 on")
    async with open_history(url) as history:
        await history.add_history("m", None, "x", "ADD")
    rights = f"SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}"
    await admin.execute(f"GRANT USAGE ON SCHEMA {schema} TO {role}; GRANT {rights}")
    if is_granted:
        await admin.execute(f"GRANT MAINTAIN ON {schema}.history TO {role}")

    def settle(connection: Any) -> Any:
        return connection.execute(f"SET ROLE {role}; SET client_min_messages TO error")

    async with (
        asyncpg.create_pool(
            server.url(), min_size=0, max_size=2, init=settle, reset=_leave_as_it_is
        ) as pool,
        PostgresHistoryManager(pool=pool, schema=schema, migrate=False) as history,
    ):
        report = await history.erase(memory_ids=["m"], reason="asked")
    sentences = _not_vacuumed(report)
    assert len(sentences) == (2 if is_granted else 3)
    assert all(f'let the owner run VACUUM (ANALYZE) "{schema}".' in one for one in sentences)
    assert any("messages" in one for one in sentences)

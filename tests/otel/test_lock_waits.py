"""How long commits waited for locks that others hold."""

import asyncio
import itertools
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from async_history import HistoryManager, open_history
from async_history._postgres.rows import joined_names
from async_history._postgres.schema import quoted
from async_history._postgres.writing.batch_locks import LOCK_MEMORIES
from async_history._sqlite.connecting.connection import ThreadConnection
from async_history.sql import SqlHistoryManager
from tests.conftest import new_stores, stores
from tests.otel.conftest import Exported
from tests.support.patience import LONG_S

pytestmark = pytest.mark.once

Instrumented = Callable[..., Exported]
Call = Callable[[], Awaitable[Any]]
Held = Callable[[], AbstractAsyncContextManager[Callable[[], Awaitable[bool]]]]
"""Holds a lock; yields a function that returns whether the history waits for it."""


async def waited_s(history: HistoryManager) -> float:
    writer = (await history.stats()).writer
    assert writer is not None
    return writer.lock_wait_s


async def call_while(held: Held, call: Call) -> float:
    """Make a call while a lock is held; return how long it was seen to wait."""
    async with asyncio.timeout(LONG_S):
        async with held() as waits:
            calling = asyncio.ensure_future(call())
            while not await waits():  # noqa: ASYNC110 - a database has no event for it
                await asyncio.sleep(0.01)
            seen = monotonic()
            while (held_s := monotonic() - seen) < 0.01:
                pass
        await calling
    return held_s


async def is_counted(history: HistoryManager, exported: Exported, held: Held, call: Call) -> None:
    before_s = await waited_s(history)
    held_s = await call_while(held, call)
    after_s = await waited_s(history)
    assert after_s - before_s >= held_s
    ((attributes, value),) = exported.metrics()["async_history.lock.wait_time"]
    assert attributes["async_history.store"] == history.backend.where
    assert value == after_s


def connection_of(history: HistoryManager) -> ThreadConnection:
    store: Any = history.store
    connection: ThreadConnection = store.pool._writer
    return connection


def file_lock(history: HistoryManager, path: Path) -> Held:
    """Return a function that holds a file's lock as another process does."""

    @asynccontextmanager
    async def held() -> AsyncIterator[Callable[[], Awaitable[bool]]]:
        async def waits() -> bool:
            return connection_of(history).waits_for_lock

        assert not await waits()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield waits
            other.execute("ROLLBACK")

    return held


def server_lock(url: str, sql: str, *arguments: Any) -> Held:
    """Return a function that holds a statement's lock on a PostgreSQL server."""

    @asynccontextmanager
    async def held() -> AsyncIterator[Callable[[], Awaitable[bool]]]:
        other, watcher = await asyncpg.connect(url), await asyncpg.connect(url)

        async def waits() -> bool:
            blocked = "SELECT true FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))"
            return bool(await watcher.fetchval(blocked, other.get_server_pid()))

        try:
            async with other.transaction():
                await other.fetch(sql, *arguments)
                yield waits
        finally:
            await other.close()
            await watcher.close()

    return held


async def test_waits_for_a_files_lock_are_measured(
    instrumented: Instrumented, tmp_path: Path
) -> None:
    """For every kind of batch: one record, several, and conditional records."""
    exported = instrumented()
    path = tmp_path / "h.db"
    async with open_history(path) as history:
        many = [{"memory_id": "m", "event": "ADD"}] * 20
        texts = map(str, itertools.count())
        calls: list[Call] = [
            lambda: history.add_history("m", None, "x", "ADD"),
            lambda: history.batch_add_history(many),
            lambda: history.update_history("m", next(texts)),
            lambda: history.save_messages([{"role": "user", "content": "hello"}], "scope"),
        ]
        for call in calls:
            await call()
        assert await waited_s(history) == 0
        for call in calls:
            await is_counted(history, exported, file_lock(history, path), call)
            before_s = await waited_s(history)
            await call()
            assert await waited_s(history) == before_s
        assert len(await history.get_history("m")) == 3 * (1 + 20 + 1)


async def test_operations_wait_in_their_statements(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    async with open_history(path) as history:
        await history.add_history("m", None, "x", "ADD")
        await call_while(file_lock(history, path), history.reset)
        assert await history.get_history("m") == []
        assert await waited_s(history) == 0


async def test_waits_are_not_measured_with_a_rollback_journal(tmp_path: Path) -> None:
    """A commit keeps new readers out while it waits for the present ones."""
    path = tmp_path / "h.db"
    async with open_history(f"sqlite:///{path}?journal=delete") as history:
        await history.add_history("m", None, "x", "ADD")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            adding = asyncio.ensure_future(history.add_history("m", None, "y", "ADD"))
            await asyncio.sleep(0)
            other.execute("ROLLBACK")
            await adding
        assert connection_of(history).waits_for_lock
        assert await waited_s(history) == 0


@pytest.mark.postgres
async def test_waits_for_a_memorys_lock_on_postgresql_are_measured(
    instrumented: Instrumented, new_schema: Callable[[], str], postgres: str
) -> None:
    exported = instrumented()
    url = new_schema()
    (schema,) = parse_qs(urlsplit(url).query)["schema"]
    async with open_history(url) as history:
        await history.add_history("m", None, "x", "ADD")
        assert await waited_s(history) == 0
        held = server_lock(postgres, LOCK_MEMORIES, *joined_names(["m"]), quoted(schema))
        await is_counted(history, exported, held, lambda: history.update_history("m", "y"))


@pytest.mark.parametrize("store", stores("sqlalchemy postgres"))
async def test_waits_for_the_numbers_through_sqlalchemy_are_measured(
    store: str,
    instrumented: Instrumented,
    request: pytest.FixtureRequest,
    postgres: str,
    tmp_path: Path,
) -> None:
    exported = instrumented()
    async with new_stores(store, request, tmp_path)()() as history:
        assert isinstance(history, SqlHistoryManager)
        sql_store: Any = history.store
        state = f'"{sql_store.tables.state.schema}".{sql_store.tables.state.name}'
        held = server_lock(postgres, f"SELECT * FROM {state} FOR UPDATE")
        for call in (
            lambda: history.add_history("m", None, "x", "ADD"),
            lambda: history.update_history("m", "y"),
        ):
            await is_counted(history, exported, held, call)

"""Cursors on PostgreSQL servers with another past: restored copies, promoted replicas.

They use transaction numbers again. A follower gets every new record or CursorGone, and it does not
get CursorGone if its own past continues.
"""

import asyncio
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from async_history import CursorGone, open_history
from async_history._postgres.reading.cursors import FollowPosition, position_from_cursor
from async_history.postgres import PostgresHistoryManager
from async_history.testing.followers import SOON_S, Reading, add_many, first, up_to_now
from tests.support.followed_pages import records_by_pages
from tests.support.postgres_faults import (  # noqa: F401 - fixtures are used by name
    a_schema,
    connected,
    until,
)
from tests.support.postgres_server import PostgresServer, are_installed, server_user

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.once,
    pytest.mark.skipif(not are_installed(), reason="restores servers of its own"),
]

_TAKE_NUMBER: Final = "SELECT pg_current_xact_id()::text::bigint"


@pytest.fixture(scope="module")
def made() -> Iterator[PostgresServer]:
    server = PostgresServer(fsync="off").create()
    yield server
    server.remove()


@pytest.fixture
def server(made: PostgresServer) -> PostgresServer:
    """A running server. Each test has its own schema."""
    made.restart("immediate")
    return made


def opened(server: PostgresServer, schema: str, **options: Any) -> PostgresHistoryManager:
    history = open_history(server.url(), schema=schema, **options)
    assert isinstance(history, PostgresHistoryManager)
    return history


def copy_of(server: PostgresServer, how: str) -> Path:
    """Return a copy of a server's files, made while it is stopped or as of one moment."""
    copy = server.folder / "copy"
    if how == "stopped":
        server.stop()
    else:
        server.pause()
    shutil.copytree(server.data, copy, symlinks=True)
    if how == "stopped":
        server.start()
    else:
        server.resume()
        (copy / "postmaster.pid").unlink()
    return copy


def restore(server: PostgresServer, copy: Path) -> None:
    """Restore a server to a copy of its files, and start it."""
    server.stop("immediate")
    shutil.rmtree(server.data)
    copy.rename(server.data)
    user = server_user()
    if user is not None:
        for path in (server.data, *server.data.rglob("*")):
            os.chown(path, user, -1, follow_symlinks=False)
    server.start()


async def add(history: PostgresHistoryManager, *texts: str) -> None:
    for text in texts:
        await history.add_history("m", None, text, "UPDATE")


async def cursors_after(history: PostgresHistoryManager, cursor: str) -> dict[str, str | None]:
    """Return the positions of followers that began at a cursor and read on."""
    position = position_from_cursor(cursor)
    half = await history.store.follower.page(position, None, 1)
    assert half.end is not None
    assert half.end.window is not None, "there is one record only"
    following = history.follow(after=cursor)
    await up_to_now(history, following)
    end = await history.end_cursor()
    assert end is not None
    return {"amid": str(half.end), "read": following.cursor, "end": end}


async def all_new(history: PostgresHistoryManager, cursor: str | None) -> list[str | None]:
    """Return the records after a cursor, after a check that one page and many give the same."""
    records = await up_to_now(history, history.follow(after=cursor))
    by_pages = await records_by_pages(history, cursor, 2)
    assert [record for record in by_pages if record.memory_id != "sentinel"] == records
    return [record.new_memory for record in records]


async def check_all(
    history: PostgresHistoryManager, cursors: dict[str, str | None], before: str, new: list[str]
) -> None:
    """Check that nothing is skipped silently, and that an earlier cursor still works."""
    for where, cursor in cursors.items():
        with pytest.raises(CursorGone, match="never had"):
            pytest.fail(f"{where}: {await all_new(history, cursor)}")
    assert await all_new(history, before) == new


@pytest.mark.parametrize(
    ("how", "lost", "then"),
    [
        ("stopped", 3, 1),
        ("running", 50, 60),
        ("running", 50, 10),
        pytest.param("stopped", 50, 60, marks=pytest.mark.nightly),
        pytest.param("running", 3, 40, marks=pytest.mark.nightly),
    ],
)
async def test_a_copy_is_restored(
    server: PostgresServer, schema: str, how: str, lost: int, then: int
) -> None:
    """More or less is added after it than was lost. The server starts cleanly or from its log."""
    async with opened(server, schema) as history:
        await add(history, "a", "b")
        before = await history.end_cursor()
        assert before is not None
    copy = await asyncio.to_thread(copy_of, server, how)
    async with opened(server, schema) as history:
        await add(history, *(f"lost {n}" for n in range(lost)))
        cursors = await cursors_after(history, before)
    await asyncio.to_thread(restore, server, copy)
    new = [f"new {n}" for n in range(then)]
    async with opened(server, schema) as history:
        await add(history, *new)
        await check_all(history, cursors, before, new)
        # Later records do not make the cursor valid.
        await add(history, *(f"later {n}" for n in range(70)))
        await check_all(history, cursors, before, [*new, *(f"later {n}" for n in range(70))])


async def test_a_running_follower_when_a_copy_is_restored(
    server: PostgresServer, schema: str
) -> None:
    async with opened(server, schema) as history:
        await add(history, "a", "b")
        copy = await asyncio.to_thread(copy_of, server, "running")
        async with Reading(history.follow(poll_interval_s=SOON_S)) as reading:
            await add(history, *(f"lost {n}" for n in range(9)))
            await reading.until(11)
            await asyncio.to_thread(restore, server, copy)
            with pytest.raises(CursorGone, match="never had"):
                await reading.until(12)


async def test_a_cursor_of_an_earlier_version(server: PostgresServer, schema: str) -> None:
    """It has no record. It is accepted, and refused if numbers have gone back."""
    async with opened(server, schema) as history:
        await add(history, "a", "b")
        copy = await asyncio.to_thread(copy_of, server, "running")
        await add(history, "c", "d", "e")
        cursor = await history.end_cursor()
        assert cursor is not None
        position = position_from_cursor(cursor)
        old = str(FollowPosition(position.store, position.foreign, position.done))
        await add(history, "f", "g")
        assert await first(history.follow(after=old), 2) == ["f", "g"]
        amid = FollowPosition(position.store, position.foreign, position.done, position.done, 0)
        assert await first(history.follow(after=str(amid)), 2) == ["f", "g"]
    await asyncio.to_thread(restore, server, copy)
    async with opened(server, schema) as history:
        with pytest.raises(CursorGone):
            await first(history.follow(after=old), 1)


async def test_a_replica_is_promoted(server: PostgresServer, schema: str) -> None:
    """First a replica that has received everything, then one that has not."""
    standby = server.standby()
    try:
        async with opened(server, schema) as history:
            await add(history, "a", "b")
            before = await history.end_cursor()
            assert before is not None
            standby.start()
            async with connected(standby) as there:
                await until(partial(_has, there, schema, 2))
            await asyncio.to_thread(standby.stop)
            await add(history, *(f"lost {n}" for n in range(5)))
            cursors = await cursors_after(history, before)
        await asyncio.to_thread(server.stop, "immediate")
        standby.start()
        await asyncio.to_thread(standby.promote)
        async with opened(standby, schema) as history:
            await add(history, *(f"new {n}" for n in range(9)))
            await check_all(history, cursors, before, [f"new {n}" for n in range(9)])
    finally:
        standby.remove()


async def _has(connection: Any, schema: str, count: int) -> bool:
    table = f"{schema}.history"
    if not await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", table):
        return False
    return bool(await connection.fetchval(f"SELECT count(*) FROM {table}") == count)


async def test_a_cursor_works_while_its_past_continues(server: PostgresServer, schema: str) -> None:
    """On a replica that lags; after a crash that skips some `seq`; on a replica."""
    standby = server.standby()
    try:
        async with opened(server, schema) as history, connected(server) as own:
            await add(history, "a", "b", "c")
            standby.start()
            async with connected(standby) as there:
                await until(partial(_has, there, schema, 3))
                await there.execute("SELECT pg_wal_replay_pause()")
                before = await history.end_cursor()
                assert before is not None
                await add(history, "d", "e")
                cursors = await cursors_after(history, before)
                async with opened(server, schema, read_url=standby.url()) as behind:
                    for cursor in cursors.values():
                        assert cursor is not None
                        read = await behind.store.follower.page(
                            position_from_cursor(cursor), None, 9
                        )
                        assert (read.records, str(read.end)) == ([], cursor)
                await there.execute("SELECT pg_wal_replay_resume()")
                await until(partial(_has, there, schema, 6))
            await own.close()
            await asyncio.to_thread(server.restart, "immediate")
        async with opened(server, schema) as history:
            await add(history, "f")
            assert await all_new(history, cursors["read"]) == ["f"]
        async with connected(standby) as there:
            await until(partial(_has, there, schema, 8))
        await asyncio.to_thread(server.stop, "immediate")
        await asyncio.to_thread(standby.promote)
        async with opened(standby, schema) as history:
            await add(history, "g")
            assert await all_new(history, cursors["end"]) == ["f", "g"]
            assert await all_new(history, cursors["amid"]) == ["e", "f", "g"]
    finally:
        standby.remove()


@pytest.mark.parametrize("how", ["removed", "erased", "reset", "removed with all before"])
async def test_the_cursors_record_is_removed(server: PostgresServer, schema: str, how: str) -> None:
    """The cursor still works, also while other transactions take numbers without records."""
    async with opened(server, schema) as history, connected(server) as own:
        await history.batch_add_history(add_many(["a", "b"]))
        before = await history.end_cursor()
        assert before is not None
        async with own.transaction():
            await own.fetchval(_TAKE_NUMBER)
            await add(history, "c", "d")
            await history.add_in_transaction(own, add_many(["e"]))
        cursors = await cursors_after(history, before)
        match how:
            case "removed":
                last = f"(SELECT max(seq) - 2 FROM {schema}.history)"
                await own.execute(f"DELETE FROM {schema}.history WHERE seq > {last}")
            case "removed with all before":
                await own.execute(f"DELETE FROM {schema}.history")
            case "erased":
                await history.erase(memory_ids=["m", "sentinel"], reason="a test")
            case _:
                await history.reset()
        for _ in range(40):
            await own.fetchval(_TAKE_NUMBER)
        for where, cursor in cursors.items():
            rest = await all_new(history, cursor)
            assert rest == [] or where == "amid", where
        await add(history, "new")
        for cursor in cursors.values():
            assert (await all_new(history, cursor))[-1] == "new"

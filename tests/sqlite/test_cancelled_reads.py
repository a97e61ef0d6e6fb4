"""Reads of a file whose callers were cancelled: they end, and delay no other call."""

import asyncio
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from async_history import HistoryClosed, HistoryManager, open_history
from async_history._sqlite.connecting.connection import ThreadConnection
from async_history._sqlite.read_connections import READERS
from tests.support.patience import LONG_S
from tests.support.reads import READS

_ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"


class Scans:
    """Makes reads endless while `are_endless`, until they are interrupted or the test ends."""

    def __init__(self) -> None:
        self.are_endless = False
        self.under_way = 0
        self.begun = 0
        self.is_over = threading.Event()
        self._changed = threading.Condition()

    def fetched(self, connection: sqlite3.Connection, sql: str, parameters: Any = ()) -> list[Any]:
        self.begun += 1
        if not self.are_endless:
            return connection.execute(sql, parameters).fetchall()
        self._count(1)
        connection.set_progress_handler(self.is_over.is_set, 10_000)
        try:
            return connection.execute(_ENDLESS).fetchall()
        finally:
            connection.set_progress_handler(None, 0)
            self._count(-1)

    def _count(self, change: int) -> None:
        with self._changed:
            self.under_way += change
            self._changed.notify_all()

    async def wait_until(self, under_way: int) -> None:
        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(lambda: self.under_way == under_way, LONG_S)

        assert await asyncio.to_thread(wait), f"{self.under_way} reads are running"


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scans]:
    scans = Scans()
    monkeypatch.setattr("async_history._sqlite.pool.fetch_rows", scans.fetched)
    yield scans
    scans.is_over.set()


@pytest.fixture(params=["wal", "delete", "memory", "looked at"])
async def history(request: pytest.FixtureRequest, tmp_path: Path) -> HistoryManager:
    path = tmp_path / "history.db"
    if request.param == "memory":
        history = await open_history("memory://")
    elif request.param == "looked at":
        async with open_history(path) as written:
            await written.add_history("m", None, "x", "ADD")
        return await open_history(path, migrate=False)
    else:
        history = await open_history(path, journal=request.param)
    await history.add_history("m", None, "x", "ADD")
    return history


@pytest.mark.parametrize(
    "read", ["get", "count", "page", "walk", "memories_at", "memory_at", "dump", "messages"]
)
async def test_a_cancelled_read_ends_and_the_next_one_runs(
    read: str, history: HistoryManager, scans: Scans
) -> None:
    for _ in range(READERS + 1):
        scans.are_endless = True
        task = asyncio.ensure_future(READS[read](history))
        await scans.wait_until(1)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        scans.are_endless = False
        await scans.wait_until(0)
    assert len(await asyncio.wait_for(history.get_history("m"), LONG_S)) == 1
    await history.aclose()


async def test_a_cancelled_read_that_waits_for_a_connection_interrupts_no_other(
    tmp_path: Path, scans: Scans
) -> None:
    async with open_history(tmp_path / "history.db") as history:
        scans.are_endless = True
        running = [asyncio.create_task(history.count_history()) for _ in range(READERS)]
        await scans.wait_until(READERS)
        begun = scans.begun
        behind = [asyncio.create_task(history.count_history(text=str(n))) for n in range(4)]
        await asyncio.sleep(0)
        for task in behind:
            task.cancel()
        await asyncio.wait(behind)
        assert (scans.begun, scans.under_way) == (begun, READERS)
        running.pop().cancel()
        await scans.wait_until(READERS - 1)
        scans.are_endless = False
        assert await asyncio.wait_for(history.count_history(), LONG_S) == 0
        assert scans.begun == begun + 1, "something was read for a cancelled caller"
        running.pop().cancel()


async def test_a_connection_is_busy_until_its_thread_is_done_with_a_cancelled_read(
    tmp_path: Path,
) -> None:
    """A read that SQLite does not interrupt, such as a sort, keeps only its own connection busy."""
    held = threading.Event()
    begun = threading.Event()

    def hold(_: sqlite3.Connection) -> None:
        begun.set()
        held.wait(LONG_S)

    async with open_history(tmp_path / "history.db") as history:
        connections: Any = history.store.pool  # type: ignore[attr-defined]
        first: ThreadConnection = connections.readers.connections[0]
        task = asyncio.create_task(first.read(hold))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        await asyncio.wait([task])
        assert [each.pending_reads for each in connections.readers.connections] == [1, 0]
        for _ in range(5):
            assert await asyncio.wait_for(history.get_history("m"), LONG_S) == []
        held.set()
        await first.read(lambda _: None)
        assert [each.pending_reads for each in connections.readers.connections] == [0, 0]


async def test_an_interruption_that_comes_too_early_is_repeated(tmp_path: Path) -> None:
    """SQLite forgets an interruption that comes before the statement begins."""
    begun, interrupted, is_over = threading.Event(), threading.Event(), threading.Event()

    def read(connection: sqlite3.Connection) -> None:
        begun.set()
        interrupted.wait(LONG_S)
        connection.set_progress_handler(is_over.is_set, 10_000)
        connection.execute(_ENDLESS).fetchall()

    async with open_history(tmp_path / "history.db") as history:
        first: ThreadConnection = history.store.pool.readers.connections[0]  # type: ignore[attr-defined]
        task = asyncio.create_task(first.read(read))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        await asyncio.wait([task])
        interrupted.set()
        try:
            await asyncio.wait_for(first.read(lambda _: None), LONG_S)
        finally:
            is_over.set()


async def test_closing_ends_running_reads(history: HistoryManager, scans: Scans) -> None:
    scans.are_endless = True
    task = asyncio.create_task(history.count_history())
    await scans.wait_until(1)
    await asyncio.wait_for(history.aclose(), LONG_S)
    with pytest.raises(HistoryClosed):
        await task
    await scans.wait_until(0)


@pytest.mark.subprocess
@pytest.mark.parametrize("how", ["left", "closed by another thread"])
def test_a_program_ends_during_a_read(how: str, tmp_path: Path) -> None:
    source = f"""
import asyncio, sys, threading
from async_history import open_history

async def main():
    history = await open_history(sys.argv[1])
    begun = threading.Event()
    def read(connection):
        begun.set()
        connection.execute({_ENDLESS!r}).fetchall()
    task = asyncio.create_task(history.store.pool.readers.connections[0].read(read))
    await asyncio.to_thread(begun.wait)
    return history, task

loop = asyncio.new_event_loop()
history, task = loop.run_until_complete(main())
if {how!r} != "left":
    history.close()
print("end")
"""
    done = subprocess.run(
        [sys.executable, "-c", source, str(tmp_path / "history.db")],
        capture_output=True,
        text=True,
        timeout=LONG_S,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout == "end\n", done.stderr

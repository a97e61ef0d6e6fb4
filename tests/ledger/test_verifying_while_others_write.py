"""Verification while others record, remove and operate: between any two of its transactions."""

import asyncio
import random
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pytest

from async_history import HistoryManager, open_history
from async_history._core.ledger.ledger_store import LedgerStore
from async_history._core.ledger.tables import LedgerTables
from async_history._core.ledger.verify import verify
from async_history.ledger import LedgerReport
from tests.conftest import OpenStore, new_stores, stores
from tests.ledger.ledgers import KEY, OWNER, change, store_ledger
from tests.support.patience import LONG_S

pytestmark = pytest.mark.once

T = TypeVar("T")
Work = Callable[[LedgerTables], Coroutine[Any, Any, T]]


class Disturbed:
    """A ledger for which something is done before one of its transactions."""

    def __init__(
        self, ledger: LedgerStore, at: int, disturb: Callable[[], Awaitable[None]]
    ) -> None:
        self._ledger = ledger
        self._at = at
        self._disturb = disturb
        self._begun = 0
        self.is_disturbed = False

    async def _begin(self) -> None:
        self._begun += 1
        if self._begun == self._at:
            await self._disturb()
            self.is_disturbed = True

    async def read(self, work: Work[T]) -> T:
        await self._begin()
        return await self._ledger.read(work)

    async def write(self, work: Work[T]) -> T:
        await self._begin()
        return await self._ledger.write(work)


async def verified_while(
    history: HistoryManager,
    disturb: Callable[[], Awaitable[None]],
    prepare: Callable[[], Awaitable[None]],
) -> AsyncIterator[LedgerReport]:
    """Yield a report for every other transaction of a verification that is disturbed before it."""
    for at in count(random.randrange(1, 3), 2):  # noqa: S311 - a test's random choices
        await prepare()
        disturbed = Disturbed(store_ledger(history), at, disturb)
        report = await verify(disturbed, [], None)
        if not disturbed.is_disturbed:
            break
        yield report
    assert at > 5


def every_store(*names: str) -> Callable[[Any], Any]:
    return pytest.mark.parametrize("store", stores(*names))


@every_store("file", "rollback", "postgres", "mariadb", "sqlalchemy")
async def test_what_has_no_leaf_is_found_while_others_write(
    store: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    open_store: OpenStore = new_stores(store, request, tmp_path)()
    async with open_store() as history:
        await history.add_history("m", None, "x", "ADD", owner=OWNER, id="before")
        await history.prune(older_than=datetime.now(UTC) - timedelta(days=1))
    async with open_store(ledger=True) as history:
        await history.add_history("m", "x", "y", "UPDATE")

        written: list[str] = []

        async def write() -> None:
            await history.ledger.checkpoint(KEY)
            name = str(uuid4())
            written.append(name)
            await history.add_history(name, None, "x", "ADD", owner=OWNER)
            await history.update_history(name, "y")
            await history.restore(name, to=1, actor_id="bo")

        async def erase() -> None:
            if written:
                await history.erase(memory_ids=[written.pop()], reason="asked")
            await history.erase(actor_id="bo", reason="asked")

        for disturb, prepare in ((write, erase), (erase, write)):
            async for report in verified_while(history, disturb, prepare):
                assert not report.faults
                assert report.unattested == ("before",)
                assert report.unattested_owners == 1
                assert report.unattested_operations == 1


@every_store("file", "memory", "rollback", "postgres", "mariadb", "sqlalchemy")
@pytest.mark.parametrize("how", ["reset", "prune"])
async def test_positions_that_begin_again_are_not_another_order(
    store: str, how: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with new_stores(store, request, tmp_path)()(ledger=True) as history:

        async def fill() -> None:
            for text in "abc":
                await history.add_history("m", None, text, "ADD")

        async def begin_again() -> None:
            if how == "reset":
                await history.reset()
            else:
                await history.prune(older_than=datetime.now(UTC) + timedelta(days=1), keep_last=0)
            await history.add_history("m", None, "x", "ADD")

        async for report in verified_while(history, begin_again, fill):
            assert not report.faults
            assert not report.unattested
            assert report.unattested_owners == report.unattested_operations == 0


async def test_another_order_is_found_while_others_remove(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    async with open_history(path, ledger=True) as history:
        for record_id in "abc":
            await history.add_history("m", None, "x", "ADD", id=record_id)
    change(
        path,
        "UPDATE history SET rowid = 99 WHERE id = 'a'",
        "UPDATE history SET rowid = 1 WHERE id = 'b'",
        "UPDATE history SET rowid = 2 WHERE id = 'a'",
    )
    async with open_history(path, ledger=True) as history:

        async def add() -> None:
            await history.add_history("n", None, "x", "ADD")

        async def erase() -> None:
            await history.erase(memory_ids=["n"], reason="asked")
            await add()

        async for report in verified_while(history, erase, add):
            assert [(one.kind, one.record_id) for one in report.faults] == [("moved", "b")]


async def test_a_damaged_table_is_reported_though_nothing_can_be_counted(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    async with open_history(path, ledger=True) as history:
        await history.batch_add_history(
            [
                {"memory_id": f"m{n}", "new_memory": "x", "event": "ADD", "owner": OWNER}
                for n in range(500)
            ]
        )
    with closing(sqlite3.connect(path)) as connection:
        ((page, size),) = connection.execute(
            "SELECT rootpage, page_size FROM sqlite_master, pragma_page_size"
            " WHERE name = 'async_history_owners'"
        )
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"x" * size)
    async with open_history(path, ledger=True) as history:
        (fault,) = (await history.ledger.verify()).faults
        assert (fault.kind, "can't be read" in fault.text) == ("damaged", True)


async def test_a_read_of_a_file_sees_one_snapshot(tmp_path: Path) -> None:
    is_reading, is_pruned = threading.Event(), threading.Event()

    async def read(tables: LedgerTables) -> list[int]:
        before = await tables.counts()
        is_reading.set()
        assert is_pruned.wait(LONG_S)
        return [before.records, (await tables.counts()).records]

    async with open_history(tmp_path / "history.db", ledger=True) as history:
        await history.add_history("m", None, "x", "ADD")
        reading = asyncio.create_task(store_ledger(history).read(read))
        assert await asyncio.to_thread(is_reading.wait, LONG_S)
        await history.prune(older_than=datetime.now(UTC) + timedelta(days=1), keep_last=0)
        is_pruned.set()
        assert await reading == [1, 1]

"""How a verification goes through the leaves: after lost connections, and up to damaged ones."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pytest

from async_history import open_history
from async_history._core.concurrency.threads import run_to_completion
from async_history._core.ledger.tables import LedgerTables
from async_history._core.ledger.verify import verify
from async_history._sqlite.ledger import tables
from async_history.errors import StorageUnreachable
from async_history.ledger import Checkpoint, LedgerReport
from tests.ledger.ledgers import IN_CLEAR, KEY, change, connected, fill, verified

pytestmark = pytest.mark.once

T = TypeVar("T")
Work = Callable[[LedgerTables], Coroutine[Any, Any, T]]


class Losing:
    """A ledger that loses its connection at one statement, and then does the work again."""

    def __init__(self, of: LedgerTables, lost_at: int) -> None:
        self._tables = of
        self._run = of._run
        self._lost_at = lost_at
        self.statements = 0
        of._run = self._counted

    def _counted(self, *given: Any) -> Awaitable[Any]:
        return self._answer(*given)

    async def _answer(self, *given: Any) -> Any:
        self.statements += 1
        if self.statements == self._lost_at:
            raise StorageUnreachable("the connection is lost")
        return await self._run(*given)

    async def read(self, work: Work[T]) -> T:
        try:
            return await work(self._tables)
        except StorageUnreachable:
            return await work(self._tables)

    write = read


async def test_a_connection_that_is_lost_at_any_statement_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    checkpoint = await _filled(path)
    change(path, "UPDATE history SET new_memory = 'x' WHERE rowid IN (3, 700)")
    whole = await verified(path, checkpoint)
    assert len(whole.faults) == 2
    lost_at = statements = 0
    while lost_at <= statements:
        lost_at += 1
        report, statements = await asyncio.to_thread(_verified_losing, path, checkpoint, lost_at)
        assert report == whole, lost_at
    assert lost_at > 20


def _verified_losing(path: Path, checkpoint: Checkpoint, lost_at: int) -> tuple[LedgerReport, int]:
    """Return the report, and the number of statements that ran."""
    with closing(connected(path)) as connection:
        losing = Losing(tables(connection, IN_CLEAR), lost_at)
        report = run_to_completion(verify(losing, [checkpoint], None))
        return report, losing.statements


async def test_a_damaged_bundle_is_named_and_all_before_it_is_verified(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    checkpoint = await _filled(path)
    whole = await verified(path, checkpoint)
    place = await asyncio.to_thread(_last_place, path)
    change(path, f"UPDATE async_history_ledger SET names = '' WHERE first = {place}")
    report = await verified(path, checkpoint)
    assert report.size == place > 0
    assert 0 < report.records < whole.records
    assert [one.place for one in report.faults if one.kind == "damaged"] == [place]


def _last_place(path: Path) -> int:
    with closing(connected(path)) as connection:
        sql = "SELECT max(first) FROM async_history_ledger WHERE kind = 'record'"
        place: int = connection.execute(sql).fetchone()[0]
        return place


async def test_verifying_reports_its_progress(tmp_path: Path) -> None:
    async with open_history(tmp_path / "history.db", ledger=True) as history:
        await fill(history)
        progress: list[tuple[int, int]] = []
        report = await history.ledger.verify(on_progress=lambda *each: progress.append(each))
        assert progress[-1] == (report.size, report.size)


async def _filled(path: Path) -> Checkpoint:
    async with open_history(path, ledger=True) as history:
        await fill(history)
        await fill(history, 10)
        return await history.ledger.checkpoint(KEY)

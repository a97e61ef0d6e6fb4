"""Leaves get their places in separate transactions before records are removed from a file.

Placing all leaves since the last checkpoint in the removing transaction would lock the file too
long.
"""

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from async_history import HistoryManager, StorageError, open_history
from async_history.blocking import BlockingHistoryManager

pytestmark = pytest.mark.once

REFUSE = "BEGIN SELECT RAISE(ABORT, 'not now'); END"
_ON_RECORDS = "CREATE TRIGGER kept BEFORE {} ON history " + REFUSE
_ON_LOG = f"CREATE TRIGGER kept BEFORE INSERT ON async_history_operations {REFUSE}"
REMOVALS: dict[str, tuple[Callable[[HistoryManager], Awaitable[object]], str]] = {
    "erase": (lambda h: h.erase(memory_ids=["m"], reason="asked"), _ON_RECORDS.format("UPDATE")),
    "prune": (
        lambda h: h.prune(older_than=timedelta(0), keep_last=0),
        _ON_RECORDS.format("DELETE"),
    ),
    "reset": (lambda h: h.reset(), _ON_LOG),
}


def run(path: Path, sql: str) -> list[tuple[int]]:
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(sql).fetchall()


def unplaced(path: Path) -> list[tuple[int]]:
    """Return the sizes of the rows of records' leaves that have no place yet."""
    return run(
        path, "SELECT size FROM async_history_ledger WHERE first IS NULL AND kind = 'record'"
    )


@pytest.mark.parametrize("name", REMOVALS)
async def test_leaves_have_places_even_if_the_removal_fails(name: str, tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    remove, trigger = REMOVALS[name]
    async with open_history(path, ledger=True) as history:
        for number in range(3):
            await history.add_history("m", None, f"likes {number}", "ADD")
        assert unplaced(path) == [(1,), (1,), (1,)]
        run(path, trigger)
        with pytest.raises(StorageError, match="not now"):
            await remove(history)
        assert unplaced(path) == []
        run(path, "DROP TRIGGER kept")
        await remove(history)
        assert (await history.ledger.verify()).is_intact


def test_leaves_have_places_before_mem0s_reset(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    with closing(BlockingHistoryManager(path, ledger=True)) as history:
        history.add_history("m", None, "likes tea", "ADD")
        run(path, _ON_LOG)
        with pytest.raises(StorageError, match="not now"):
            history.reset()
        assert unplaced(path) == []
        assert len(history.get_history("m")) == 1

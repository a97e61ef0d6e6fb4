"""Pruning of records without a time of their own, and of records whose time is unknown."""

import itertools
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest

from async_history import HistoryManager, HistoryRecord
from async_history.backend import records_to_copy
from async_history.testing.model import pruned
from tests.conftest import new_stores, stores
from tests.contract.dated_changes import CUTOFF, everything

pytestmark = [pytest.mark.once, pytest.mark.statements]

KINDS: Final = stores(
    "file", "memory", "postgres", "pgbouncer", "mariadb", "sqlalchemy", "sqlalchemy postgres"
)
LOOKED_UP: Final = ("file", "memory")
"""Stores that look the time of a record without one up at the previous record."""
TIMES: Final = {
    "old": (CUTOFF - timedelta(days=1)).isoformat(),
    "new": (CUTOFF + timedelta(days=1)).isoformat(),
    "without": None,
}
NO_DAY: Final = "2024-02-30T00:00:00.000000+00:00"
"""A time of this library's form that is not a day: it is unknown, whatever the record before."""


def memories(times: dict[str, str | None]) -> list[list[HistoryRecord]]:
    """Return memories of up to three records, each with any of some times, deleted or not."""
    found: list[list[HistoryRecord]] = []
    for length in (1, 2, 3):
        for names in itertools.product(times, repeat=length):
            for last in ("UPDATE", "DELETE"):
                memory_id = " ".join((*names, last))
                found.append(
                    [
                        HistoryRecord(
                            f"{memory_id} {number}",
                            memory_id,
                            None,
                            "x",
                            last if number == length - 1 else "UPDATE",
                            updated_at=times[name],
                        )
                        for number, name in enumerate(names)
                    ]
                )
    return found


async def copy(history: HistoryManager, records: list[HistoryRecord]) -> None:
    await history.store.writer.submit(records_to_copy(records, 100))


@pytest.mark.parametrize("keep_last", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_old_goes_and_what_stays_keeps_its_time(
    kind: str, keep_last: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A memory goes as a whole if the times of all its records are known and old."""
    async with new_stores(kind, request, tmp_path)()() as history:
        for records in memories(TIMES):
            await copy(history, records)
        before = await everything(history)
        expected = pruned(before, CUTOFF, keep_last)
        dry = await history.prune(older_than=CUTOFF, keep_last=keep_last, dry_run=True)
        report = await history.prune(older_than=CUTOFF, keep_last=keep_last)
        left = await everything(history)
    kept = {one.id for one in left}
    times = {one.id: one.occurred_at for one in before}
    assert [one.occurred_at for one in left] == [times[one.id] for one in left]
    assert kept >= {one.id for one in expected}
    gone = {one.memory_id for one in before} - {one.memory_id for one in left}
    assert gone == {one.memory_id for one in before} - {one.memory_id for one in expected}
    assert "old without DELETE" in gone
    assert (dry.records, dry.memories_gone) == (report.records, report.memories_gone)
    assert (report.records, report.memories_gone) == (len(before) - len(left), len(gone))
    if kind not in LOOKED_UP:
        assert left == expected


@pytest.mark.parametrize("keep_last", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_record_whose_time_is_not_a_day_stays(
    kind: str, keep_last: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with new_stores(kind, request, tmp_path)()() as history:
        for records in memories({"old": TIMES["old"], "without": None, "no day": NO_DAY}):
            await copy(history, records)
        before = await everything(history)
        await history.prune(older_than=CUTOFF, keep_last=keep_last)
        left = await everything(history)
    expected = pruned(before, CUTOFF, keep_last)
    assert {one.id for one in left} >= {one.id for one in expected}
    assert {one.memory_id for one in left} == {one.memory_id for one in expected}
    if kind not in LOOKED_UP:
        assert left == expected

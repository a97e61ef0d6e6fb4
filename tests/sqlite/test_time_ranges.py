"""Records of an owner, a cause or a memory in a range of time: which, and at what cost."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from async_history import HistoryManager, HistoryRecord, open_history
from tests.sqlite.foreign_changes import raw
from tests.support.history_shapes import START, moment
from tests.support.vm_steps import Steps

pytestmark = pytest.mark.once

OF = (
    {"user_id": "u"},
    {"cause": {"request_id": "q"}},
    {"memory_id": "m"},
    {"user_id": "u", "run_id": "r"},
)
"""Filters that all records match."""


async def fill(history: HistoryManager, times: list[datetime]) -> None:
    for first in range(0, len(times), 300):
        await history.batch_add_history(
            [
                {
                    "memory_id": "m",
                    "new_memory": "x",
                    "event": "ADD",
                    "created_at": time,
                    "owner": {"user_id": "u", "run_id": "r"},
                    "cause": {"request_id": "q"},
                }
                for time in times[first : first + 300]
            ]
        )


async def read(history: HistoryManager, **wanted: Any) -> list[HistoryRecord]:
    return [record async for record in history.query_history(**wanted)]


def others_write(path: Path) -> None:
    """Add rows between the others and after them, change times, remove times and rows."""
    row = "INSERT INTO history (rowid, id, memory_id, event, created_at) VALUES (?, ?, 'm', ?, ?)"
    with raw(path) as connection:
        connection.execute("DELETE FROM history WHERE rowid BETWEEN 1600 AND 1900")
        connection.execute("DELETE FROM history WHERE rowid % 50 = 7")
        connection.execute(row, (1700, "between", "ADD", moment(5).isoformat()))
        connection.execute(row, (7, "early", "ADD", moment(9_000).isoformat()))
        connection.execute("UPDATE history SET created_at = NULL WHERE rowid % 97 = 3")
        time = moment(4_000).isoformat()
        connection.execute("UPDATE history SET created_at = ? WHERE rowid IN (40, 1200)", (time,))
        for n in range(10):
            connection.execute(row, (20_000 + 2 * n, f"undated {n}", "DELETE", None))
            time = moment(900 * n).isoformat()
            connection.execute(row, (20_001 + 2 * n, f"late {n}", "ADD", time))


@pytest.mark.parametrize("is_open", [True, False])
async def test_every_record_of_a_range_of_time_is_found(is_open: bool, tmp_path: Path) -> None:
    """Whether or not times rise."""
    path = tmp_path / "h.db"
    times = [moment(n) for n in range(9_000)]
    for n in range(0, 9_000, 700):
        times[n] = times[-n]
    times[2_000:2_600] = times[2_000:2_600][::-1]
    async with open_history(path) as history:
        await fill(history, times)
        if is_open:
            others_write(path)
            await check(history)
    if not is_open:
        others_write(path)
        async with open_history(path) as history:
            await check(history)


def is_within(time: datetime | None, since: datetime | None, until: datetime | None) -> bool:
    if time is None:
        return since is until is None
    return (since is None or time >= since) and (until is None or time < until)


async def check(history: HistoryManager) -> None:
    records = await read(history, page_size=5_000)
    times = [record.occurred_at for record in records]
    some = [None, *(START + timedelta(seconds=s) for s in (6, 2_100, 4_000, 8_990))]
    for number, (since, until) in enumerate(product(some, some)):
        of = OF[number % len(OF)]
        expected = [
            record
            for record, time in zip(records, times, strict=True)
            if is_within(time, since, until) and (record.cause is not None or "cause" not in of)
        ]
        asked: dict[str, Any] = {**of, "since": since, "until": until}
        assert await history.count_history(**asked) == len(expected), asked
        asked |= {"page_size": 100, "limit": 200}
        assert await read(history, **asked) == expected[:200], asked
        assert await read(history, **asked, order="newest") == expected[::-1][:200], asked


Call = Callable[[HistoryManager, int], Awaitable[object]]


def first_page(order: Any, **of: Any) -> Call:
    async def call(history: HistoryManager, size: int) -> None:
        for time in ({"since": moment(size - 30)}, {"until": moment(30)}):
            found = await read(history, **of, **time, order=order, page_size=20)
            assert len(found) == 30

    return call


def counted(**of: Any) -> Call:
    async def call(history: HistoryManager, size: int) -> None:
        assert await history.count_history(**of, since=moment(size - 30)) == 30
        assert await history.count_history(**of, until=moment(30)) == 30

    return call


async def test_a_range_of_time_costs_the_same_in_a_long_history(tmp_path: Path) -> None:
    calls = [first_page(order, **of) for order in ("oldest", "newest") for of in OF]
    calls += [counted(**of) for of in OF if "memory_id" not in of]
    taken: list[list[int]] = []
    for size in (2_500, 2_500 + 16 * 512):
        async with open_history(tmp_path / f"{size}.db") as history:
            await fill(history, [moment(n) for n in range(size)])
            taken.append([])
            for call in calls:
                async with Steps(history) as steps:
                    await call(history, size)
                taken[-1].append(steps.taken)
    for small, large in zip(*taken, strict=True):
        assert large < 1.5 * small

"""Times of every spelling, and texts that are not times: each store dates them in the same way
and keeps the text."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import pytest

from async_history import HistoryManager, JsonLines, copy_history, open_history
from async_history._core.records.records import HistoryRecord
from async_history._core.records.values import parse_time
from async_history._postgres import rows
from tests.conftest import OpenStore, url_of
from tests.support.patience import LONG_S

pytestmark = pytest.mark.once

START: Final = datetime(2026, 11, 20, 9, tzinfo=UTC)
SECOND: Final = timedelta(seconds=1)

SPELLINGS: Final = [
    "2026-11-20T10:00:00.000000+00:00",
    "2024-02-29T10:00:00.000000+00:00",
    "2026-11-20T10:00:00+00:00",
    "2026-11-20T10:00:00.5-08:00",
    "2026-11-20T10:00:00,5Z",
    "2026-11-20T10:00:00+23:59",
    "2026-11-20T10:00:00.000000-23:59",
    "2026-11-20T10:00:00+15:59:59",
    "2026-11-20T10:00:00+00:00:30.500000",
    "2026-11-20",
    "2026-11-20 10:00",
    "20261120T100000Z",
    "2026-W47-5",
    "0001-01-01T00:00:00+02:00",
    "0001-01-01T00:00:00.000000+00:00",
    "9999-12-31T23:59:59.999999-01:00",
    "9999-12-31T23:59:59.999999+00:00",
]
"""Texts that Python reads as a time."""
BEYOND_UTC: Final = ["0001-01-01T00:00:00+02:00", "9999-12-31T23:59:59.999999-01:00"]
NO_TIMES: Final = [
    "soon",
    "",
    "2026-02-30T10:00:00+00:00",
    "2026-13-01",
    "infinity",
    "now",
    "epoch",
]
LOOKALIKES: Final = [
    "2026-02-30T10:00:00.000000+00:00",
    "2023-02-29T10:00:00.000000+00:00",
    "2026-04-31T10:00:00.000000+00:00",
    "2026-00-10T10:00:00.000000+00:00",
    "2026-10-00T10:00:00.000000+00:00",
    "0000-01-01T00:00:00.000000+00:00",
    "2026-11-20T10:00:60.000000+00:00",
    "2026-11-20T10:60:00.000000+00:00",
    "2026-11-20T25:00:00.000000+00:00",
    "2026-1a-20T10:00:00.000000+00:00",
]
"""Texts of the shape that the library writes, but of a day or second that does not exist.
Queries by time take every text of that shape for a time, without reading earlier records."""


def line(record_id: str, time: str | None, event: str, memory_id: str) -> str:
    times = {"created_at": time if event == "ADD" else None}
    times["updated_at"] = None if event == "ADD" else time
    rest: dict[str, Any] = dict.fromkeys(("old_memory", "actor_id", "role"))
    known = {"id": record_id, "memory_id": memory_id, "new_memory": "x", "event": event}
    return json.dumps(known | rest | times | {"is_deleted": False})


def times_of(records: Sequence[HistoryRecord]) -> dict[str, tuple[object, ...]]:
    return {r.id: (r.created_at, r.updated_at, r.occurred_at, r.time_before) for r in records}


EVENTS: Final = ("ADD", "UPDATE")


async def read(history: HistoryManager) -> dict[str, tuple[object, ...]]:
    """Return each record's time, after a check that every read gives the same."""
    records = [record async for record in history.query_history()]
    found = times_of(records)
    alone: dict[str, tuple[object, ...]] = {}
    for memory_id in {record.memory_id for record in records}:
        alone |= times_of(await history.get_history(memory_id))
    assert alone == found
    following = history.follow()
    assert times_of(await following.next_records(limit=len(found), timeout_s=LONG_S)) == found
    return found


@pytest.mark.postgres
@pytest.mark.parametrize("times", [SPELLINGS + NO_TIMES, LOOKALIKES])
async def test_a_copy_keeps_every_time(
    times: list[str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Also the time of the record before, which dates a record without a time of its own.

    Each of an ADD and of an UPDATE, in a memory of its own.
    """
    before = "2026-11-20T09:00:00.000000+00:00"
    memories = {f"{time} {event}": (time, event) for time in times for event in EVENTS}
    batches = []
    for memory_id, (time, event) in memories.items():
        lines = [
            line(f"{memory_id} before", before, "UPDATE", memory_id),
            line(f"{memory_id} odd", time, event, memory_id),
        ]
        if time not in BEYOND_UTC:  # each store cuts a time to what it can compare
            lines.append(line(f"{memory_id} none", None, "UPDATE", memory_id))
        batches.append(lines)
    async with open_history(url_of("postgres", request, tmp_path)) as server:
        for lines in batches:  # texts that are not times are copied alone
            await copy_history(JsonLines(lines), server)
        directly = {memory_id: await server.get_history(memory_id) for memory_id in memories}
    async with (
        open_history("memory://") as memory,
        open_history(url_of("postgres", request, tmp_path)) as server,
        open_history(tmp_path / "back.db") as file,
    ):
        for lines in batches:
            await copy_history(JsonLines(lines), memory)
        for source, target in ((memory, server), (server, file)):
            report = await copy_history(source, target)
            assert report.records == sum(map(len, batches))
        expected = await read(memory)
        assert await read(server) == expected
        assert await read(file) == expected
        for memory_id, (time, _) in memories.items():
            instant = parse_time(time) or datetime.fromisoformat(before)
            odd = None if time in LOOKALIKES else instant
            assert expected[f"{memory_id} odd"][2] == odd
            assert directly[memory_id][1].occurred_at == odd, "also dated by times from JSON lines"
        if times is not LOOKALIKES:
            for history in (memory, server, file):
                assert await history.count_history(since=START, until=START + SECOND) == sum(
                    isinstance(at, datetime) and START <= at < START + SECOND
                    for *_, at, _ in expected.values()
                )


@pytest.mark.parametrize("count", [1, 2, 3])
def test_only_times_are_taken_for_times_without_a_read(count: int) -> None:
    """In one hour or several, wherever the odd one is."""
    good = ["2026-11-20T10:59:59.999999+00:00", "2026-11-20T10:00:00.000000+00:00"]
    others = [*good, "2026-01-31T00:00:00.000000+00:00"][:count]
    assert rows._are_times("".join(others))
    assert rows._are_times("".join(time[:26] + "-14:59" for time in others))
    for odd in (*LOOKALIKES, *(time[:26] + "-15:00" for time in good)):
        for place in range(count):
            texts = [*others[:place], odd, *others[place + 1 :]]
            assert not rows._are_times("".join(texts)), texts


async def test_times_of_one_batch_may_have_several_formats(open_keeping_store: OpenStore) -> None:
    """Each at every place of the batch: a driver may treat most times alike."""
    times = [
        "2026-11-20T10:30:00.250000+00:00",
        "2026-11-20T02:30:10.250000-08:00",
        "2026-11-20T10:30:20.25Z",
        "2026-11-21T01:30:30.250000+15:00",
    ]
    start = datetime(2026, 11, 20, 10, 30, tzinfo=UTC)
    step = timedelta(seconds=10)
    async with open_keeping_store() as history:
        for place in range(len(times)):
            await history.batch_add_history(
                [
                    {"memory_id": time, "event": event, field: time}
                    for time in (*times[place:], *times[:place])
                    for event, field in (("ADD", "created_at"), ("DELETE", "updated_at"))
                ]
            )
        for number, time in enumerate(times):
            since = start + number * step
            query = history.query_history(since=since, until=since + step)
            found = [record async for record in query]
            assert {record.memory_id for record in found} == {time}
            assert len(found) == 2 * len(times)
            assert {r.created_at or r.updated_at for r in found} == {time}
            assert {r.occurred_at for r in found} == {parse_time(time)}


@pytest.mark.parametrize(
    "offset",
    [
        timedelta(hours=23, minutes=59),
        timedelta(hours=-23, minutes=-59),
        timedelta(hours=16),
        timedelta(seconds=30, microseconds=500_000),
        timedelta(0),
    ],
)
async def test_instants_of_any_offset_can_be_queried_and_recorded(
    offset: timedelta, open_keeping_store: OpenStore
) -> None:
    """Databases do not accept all of Python's offsets."""
    instant = datetime(2026, 11, 20, 10, tzinfo=timezone(offset))
    second = timedelta(seconds=1)
    async with open_keeping_store() as history:
        await history.add_history("m", None, "x", "ADD", created_at=instant)
        await history.batch_add_history(
            [
                {"memory_id": "m", "event": "UPDATE", "updated_at": instant + second},
                {"memory_id": "m", "event": "UPDATE", "updated_at": "2999-01-01"},
            ]
        )
        assert await history.count_history(since=instant, until=instant + second) == 1
        assert await history.count_history(since=instant, until=instant + 2 * second) == 2
        found = [r async for r in history.query_history(until=instant + second, order="newest")]
        assert [r.occurred_at for r in found] == [instant]
        (then,) = [record async for record in history.memories_at(instant)]
        assert then.created_at == instant.isoformat()
        assert await history.memory_at("m", instant) == then
        report = await history.prune(older_than=instant + second, keep_last=0, dry_run=True)
        assert (report.records, report.before) == (1, instant + second)

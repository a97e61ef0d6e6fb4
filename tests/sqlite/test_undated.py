"""Records without a time in a SQLite file: they always have the time of the record before."""

import asyncio
import random
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from async_history import (
    HistoryConflict,
    HistoryManager,
    HistoryRecord,
    check_history,
    open_history,
)
from async_history._sqlite import times
from async_history._sqlite.index.blocks import SPANS

pytestmark = pytest.mark.once

START = datetime(2026, 1, 1, tzinfo=UTC)
SPELLINGS = (
    lambda moment: moment.isoformat(timespec="microseconds"),
    lambda moment: moment.astimezone(timezone(timedelta(hours=8))).isoformat(),
    lambda moment: str(moment.replace(tzinfo=None)),
    lambda _: None,
    lambda _: "yesterday",
)


def some_time(rng: random.Random) -> str | None:
    moment = START + timedelta(minutes=rng.randrange(10_000))
    text: str | None = rng.choice(SPELLINGS)(moment)
    return text


def append(connection: sqlite3.Connection, rng: random.Random, count: int, prefix: str) -> None:
    connection.executemany(
        "INSERT INTO history (id, memory_id, event, created_at) VALUES (?, ?, 'ADD', ?)",
        [(f"{prefix}-{n}", f"m{rng.randrange(30)}", some_time(rng)) for n in range(count)],
    )


CHANGES = {
    "nothing": "SELECT 1",
    "deleted": "DELETE FROM history WHERE rowid % 7 = 3",
    "the newest deleted": "DELETE FROM history WHERE rowid > 1000",
    "a time set": "UPDATE history SET created_at = '2026-02-01' WHERE rowid % 50 = 3",
    "a time taken": "UPDATE history SET created_at = NULL WHERE rowid % 50 = 3",
    "another event": "UPDATE history SET event = 'DELETE' WHERE rowid % 50 = 3",
    "another memory": "UPDATE history SET memory_id = 'm1' WHERE rowid % 50 = 3",
    "moved": "UPDATE history SET rowid = rowid + 5000 WHERE rowid % 50 = 3",
    "between": "INSERT INTO history (rowid, id, memory_id, event, created_at)"
    " SELECT rowid - 4000, 'b' || id, memory_id, event, created_at FROM history"
    " WHERE rowid % 50 = 3",
}


async def check_each(history: HistoryManager) -> dict[str, datetime | None]:
    """Compare the time of each record with a scan of the rows; return the times by id."""
    everything = [record async for record in history.query_history(page_size=2_000)]
    last: dict[str, datetime | None] = {}
    expected: dict[str, datetime | None] = {}
    of_memory: dict[str, list[HistoryRecord]] = {}
    for record in everything:
        bare = HistoryRecord(**{**record.as_dict(), "event": record.event})
        moment = bare.occurred_at or last.get(record.memory_id)
        last[record.memory_id] = expected[record.id] = moment
        of_memory.setdefault(record.memory_id, []).append(record)
    assert {record.id: record.occurred_at for record in everything} == expected
    for memory_id, records in list(of_memory.items())[:5]:
        whole = await history.get_history(memory_id)
        assert [(r.id, r.occurred_at) for r in whole] == [(r.id, r.occurred_at) for r in records]
        paged = history.query_history(memory_id=memory_id, order="newest", page_size=20)
        assert [r.occurred_at async for r in paged] == [r.occurred_at for r in reversed(records)]
    return expected


async def check(history: HistoryManager) -> None:
    """Compare every way to read a record's time with a scan of the rows."""
    expected = await check_each(history)
    for days in (0, 4):
        since, until = START + timedelta(days=days), START + timedelta(days=days + 1)
        wanted = [
            record_id
            for record_id, moment in expected.items()
            if moment is not None and since <= moment < until
        ]
        found = history.query_history(since=since, until=until, page_size=50)
        assert [record.id async for record in found] == wanted
        assert await history.count_history(since=since, until=until) == len(wanted)


@pytest.mark.parametrize("change", CHANGES)
async def test_times_stay_right_whatever_others_change(tmp_path: Path, change: str) -> None:
    path, rng = tmp_path / "history.db", random.Random(change)  # noqa: S311
    async with open_history(path):
        pass
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        append(connection, rng, 5 * SPANS.size // 2, "a")
        connection.execute("UPDATE history SET rowid = rowid + 10000 WHERE rowid > 600")
        async with open_history(path) as history:
            connection.execute(CHANGES[change])
            await check(history)
            append(connection, rng, 100, "b")
            await check(history)
            await history.add_history("m1", None, "noted again", "ADD")
        async with open_history(path) as history:
            await check(history)


async def test_a_record_that_others_replaced_dates_no_other(tmp_path: Path) -> None:
    """No trigger runs if `REPLACE` removes a record. A check says that a search may miss one."""
    path, rng = tmp_path / "history.db", random.Random(5)  # noqa: S311
    async with open_history(path):
        pass
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        append(connection, rng, 5 * SPANS.size // 2, "a")
        async with open_history(path) as history:
            connection.execute(
                "REPLACE INTO history (id, memory_id, event, created_at)"
                " SELECT id, memory_id, event, created_at FROM history WHERE rowid % 7 = 3"
            )
            await check_each(history)
            (problem,) = (await history.check()).problems
            assert "can't be found by time" in problem
        assert (await check_history(str(path), repair=True)).is_repaired
    async with open_history(path) as history:
        await check(history)


def test_bytes_are_no_time_also_where_glob_compares_them() -> None:
    """As in builds of SQLite without LIKE_DOESNT_MATCH_BLOBS."""
    with closing(sqlite3.connect(":memory:")) as connection:
        times.add_time_function(connection)
        connection.create_function("glob", 2, lambda pattern, value: True)
        text = START.isoformat(timespec="microseconds")
        row = "(SELECT 'ADD' AS event, ? AS created_at, NULL AS updated_at) AS history"
        asked = f"SELECT {times.own_instant('history')}, {times.is_plain('history')} FROM {row}"
        assert connection.execute(asked, (text,)).fetchone() == (text, 1)
        assert connection.execute(asked, (text.encode(),)).fetchone() == (None, 0)


async def test_times_stay_right_when_records_fill_a_block(tmp_path: Path) -> None:
    path, rng = tmp_path / "history.db", random.Random(1)  # noqa: S311
    async with open_history(path) as history:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            for turn in range(4):
                append(connection, rng, SPANS.size // 2, str(turn))
                await history.batch_add_history(
                    [{"memory_id": f"m{n % 40}", "event": "ADD"} for n in range(20)]
                )
                await check(history)
            ((noted,),) = connection.execute(
                "SELECT count(*) FROM async_history_undated WHERE position > 0"
            )
            assert noted > SPANS.size // 2
            ((begun,),) = connection.execute(
                "SELECT count(*) FROM async_history_spans WHERE earliest = '' AND latest = ''"
            )
            assert begun == 0


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_text_without_time_or_id_is_restored(tmp_path: Path, *, is_first: bool) -> None:
    """Another program wrote it. Nothing but its place in the memory finds it again."""
    at = "2025-01-0{}T00:00:00+00:00"
    first = ("a", None, "one", "ADD", at.format(1), None)
    undated = (None, "one", "two", "UPDATE", None, None)
    last = ("z", "two", "three", "UPDATE", at.format(1), at.format(3))
    path = tmp_path / "history.db"
    async with open_history(path):
        pass
    with closing(sqlite3.connect(path)) as file:
        file.executemany(
            "INSERT INTO history (id, memory_id, old_memory, new_memory, event, created_at,"
            " updated_at) VALUES (?, 'm', ?, ?, ?, ?, ?)",
            [undated, last] if is_first else [first, undated, last],
        )
        file.commit()
    then = datetime(2025, 1, 2, tzinfo=UTC)
    async with open_history(path) as history:
        assert (await history.restore("m", to=then)).new_memory == "two"
        assert (await history.operations())[0].arguments["to"] == then.isoformat()
        await history.update_history("m", "three")
        report = await history.rollback(to=then, memory_ids=["m"])
        assert [step.action for step in report.steps] == ["restore"]
        assert (await history.get_history("m"))[-1].new_memory == "two"


async def test_a_change_after_another_record_than_the_latest_without_an_id(tmp_path: Path) -> None:
    """It is refused, and its neighbour in the batch is written."""
    path = tmp_path / "history.db"
    async with open_history(path):
        pass
    with closing(sqlite3.connect(path)) as file:
        file.execute("INSERT INTO history (memory_id, new_memory, event) VALUES ('m', 'a', 'ADD')")
        file.commit()
    async with open_history(path) as history:
        refused, written = await asyncio.gather(
            history.add_history("m", "a", "b", "UPDATE", if_latest="another"),
            history.add_history("m", "a", "c", "UPDATE"),
            return_exceptions=True,
        )
        assert isinstance(refused, HistoryConflict)
        assert isinstance(written, HistoryRecord)
        assert [one.new_memory for one in await history.get_history("m")] == ["a", "c"]

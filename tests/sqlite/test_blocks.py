"""An actor's records and records of a time, found through blocks: as a scan would find them."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
from mem0.memory.storage import SQLiteManager

from async_history import HistoryManager, HistoryRecord, open_history
from async_history._core.reading.filters import Filter
from async_history._sqlite.index import THROUGH_INDEX
from async_history._sqlite.index.blocks import CHUNKS
from async_history._sqlite.reading.filters import parameters, select, sources

pytestmark = pytest.mark.once

CHUNK = 1 << CHUNKS.bits
START = datetime(2026, 1, 1, microsecond=1, tzinfo=UTC)
"""With microseconds, as the library writes times: others are searched for everywhere."""
ROWS = 2 * CHUNK + 1_500


def minute(n: int) -> datetime:
    return START + timedelta(minutes=n)


def changes(first: int, count: int) -> list[dict[str, Any]]:
    """Every actor has records in every chunk, but 'rare' only in the second; the last are late."""
    return [
        {
            "memory_id": f"m{n % 50}",
            "new_memory": str(n),
            "event": ("ADD", "UPDATE")[n % 2],
            "created_at": minute(n if n % 5_000 else n // 2),
            "updated_at": minute(n),
            "actor_id": "rare" if CHUNK < n < CHUNK + 20 else (None, "a", "b")[n % 3],
        }
        for n in range(first, first + count)
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.db"


async def fill(history: HistoryManager, rows: int = ROWS) -> None:
    """Write in batches of many sizes, so that a chunk is filled at any place of a batch."""
    sizes = cycle((1, 7, 512, 1_500))
    written = 0
    while written < rows:
        size = min(next(sizes), rows - written)
        await history.batch_add_history(changes(written, size))
        written += size


FILTERS: Sequence[dict[str, Any]] = (
    {"actor_id": "a"},
    {"actor_id": "rare"},
    {"actor_id": "nobody"},
    {"actor_id": "b", "event": "ADD"},
    {"since": minute(CHUNK + 5), "until": minute(CHUNK + 25)},
    {"until": minute(30)},
    {"since": minute(2 * CHUNK + 600), "until": minute(2 * CHUNK + 620)},
    {"since": minute(ROWS - 30)},
    {"actor_id": "rare", "since": minute(CHUNK + 3), "until": minute(CHUNK + 9)},
    {"actor_id": "a", "since": minute(2 * CHUNK - 9), "memory_id": "m7"},
)


def admits(wanted: dict[str, Any], record: HistoryRecord) -> bool:
    moment = record.occurred_at
    since, until = wanted.get("since"), wanted.get("until")
    return all(
        str(getattr(record, name)) == wanted[name]
        for name in ("actor_id", "event", "memory_id")
        if name in wanted
    ) and (
        (since is None and until is None)
        or (
            moment is not None
            and (since is None or moment >= since)
            and (until is None or moment < until)
        )
    )


async def check(history: HistoryManager, filters: Sequence[dict[str, Any]] = FILTERS) -> None:
    """Compare every filter with a scan of all records."""
    everything = [record async for record in history.query_history(page_size=5_000)]
    assert everything
    for wanted in filters:
        expected = [record for record in everything if admits(wanted, record)]
        for page_size in (13, 20_000) if len(expected) < 500 else (4_000,):
            found = history.query_history(**wanted, page_size=page_size)
            assert [record async for record in found] == expected
            newest = history.query_history(**wanted, order="newest", page_size=page_size)
            assert [record async for record in newest] == expected[::-1]
        assert await history.count_history(**wanted) == len(expected)


def chunks(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as connection:
        return [
            row[0]
            for row in connection.execute(
                f"SELECT block FROM async_history_chunks WHERE block > {CHUNKS.stamp} ORDER BY 1"
            )
        ]


async def test_records_of_ours(path: Path) -> None:
    async with open_history(path) as history:
        await fill(history)
        await check(history)
    assert chunks(path) == [0, 1]


async def test_rows_that_others_wrote(path: Path) -> None:
    async with open_history(path) as history:
        await fill(history, 100)
        with closing(SQLiteManager(str(path))) as mem0:
            mem0.batch_add_history(
                [
                    {**change, **{k: change[k].isoformat() for k in ("created_at", "updated_at")}}
                    for change in changes(100, ROWS)
                ]
            )
            await check(history, FILTERS[:6])
            assert chunks(path) == []
            await history.add_history("m", None, "x", "ADD", actor_id="a")
            assert chunks(path) == [0, 1]
            await check(history)
            mem0.reset()
        with closing(SQLiteManager(str(path))) as mem0:
            mem0.add_history("m", None, "x", "ADD", actor_id="rare", created_at=f"{minute(0)}")
            await check(history)
            await history.add_history("m", None, "y", "ADD", actor_id="rare")
            await check(history)
    assert chunks(path) == []


async def test_rows_that_others_change(path: Path) -> None:
    async with open_history(path) as history:
        await fill(history)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("UPDATE history SET actor_id = 'rare' WHERE rowid = 5")
            connection.execute(
                "UPDATE history SET actor_id = NULL WHERE actor_id = 'b' AND rowid < 99"
            )
            connection.execute(
                f"UPDATE history SET created_at = ?, updated_at = ? WHERE rowid = {CHUNK + 3_000}",
                (minute(3).isoformat(), minute(3).isoformat()),
            )
            await check(history)
            connection.execute(f"DELETE FROM history WHERE rowid % 100 < 50 AND rowid <> {ROWS}")
            await check(history)
            (left,) = connection.execute(
                "SELECT count(*) FROM async_history_actors"
                " WHERE position NOT IN (SELECT rowid FROM history) AND actor_id <> ''"
            ).fetchone()
            assert left == 0, "every entry of them is gone"
            # The reused rowids belong to another actor.
            connection.execute(f"DELETE FROM history WHERE rowid > {CHUNK + 10}")
        assert chunks(path) == [0]
        await check(history)
        early = START - timedelta(days=1)
        await history.add_history("m", None, "x", "ADD", created_at=early, actor_id="rare")
        await history.batch_add_history(
            [{**change, "actor_id": "rare"} for change in changes(CHUNK + 10, CHUNK)]
        )
        await check(history, [*FILTERS, {"until": START}, {"actor_id": "rare", "until": START}])
        await history.reset()
        await fill(history, 10)
        await check(history)
    assert chunks(path) == []


async def test_an_actor_is_erased_in_chunks_spans_and_beyond(path: Path) -> None:
    """In an indexed chunk, in a span after it, and after that."""
    async with open_history(path) as history:
        await fill(history, CHUNK + 700)
        of_actor = await history.count_history(actor_id="a")
        assert of_actor > CHUNK // 4
        report = await history.erase(actor_id="a", reason="asked", vacuum=False)
        assert report.records == of_actor
        assert await history.count_history(actor_id="a") == 0
        left = [r async for r in history.query_history() if r.new_memory is None]
        assert len(left) == of_actor
        await check(history)


async def test_times_in_another_spelling(path: Path) -> None:
    """Their chunk is always read."""
    async with open_history(path) as history:
        await history.add_history("m", None, "x", "ADD", created_at="2024-01-01T00:00:00-07:00")
        await history.add_history("m", "x", "y", "UPDATE", updated_at="2030-01-01 00:00:00")
        await fill(history)
        await check(
            history,
            [
                {"until": datetime(2024, 1, 2, tzinfo=UTC)},
                {"since": datetime(2029, 12, 31, tzinfo=UTC)},
                {
                    "since": datetime(2024, 1, 1, 7, tzinfo=UTC),
                    "until": datetime(2025, 1, 1, tzinfo=UTC),
                },
            ],
        )


async def test_a_file_of_version_1(path: Path) -> None:
    """It has no chunks: opening it makes them."""
    async with open_history(path) as history:
        await fill(history, CHUNK + 10)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("DROP TABLE async_history_chunks")
        connection.execute("DROP TABLE async_history_spans")
        connection.execute("DROP TABLE async_history_actors")
        connection.execute("UPDATE async_history_state SET version = 1")
    async with open_history(path, migrate=False) as history:
        await check(history)
    async with open_history(path) as history:
        await check(history)
    assert chunks(path) == [0]


@pytest.mark.parametrize(
    ("wanted", "step"),
    [
        ({"actor_id": "a"}, "SEARCH actors USING PRIMARY KEY (block=? AND actor_id=?"),
        ({"since": minute(1)}, "SEARCH history USING INTEGER PRIMARY KEY (rowid>? AND rowid<?"),
        ({"memory_ids": ("m", "n")}, "SEARCH history USING INTEGER PRIMARY KEY (rowid=?"),
        ({"memory_ids": ("m",), "actor_id": "a"}, "SEARCH history USING INTEGER PRIMARY KEY"),
    ],
)
async def test_queries_are_answered_by_an_index(
    path: Path, wanted: dict[str, Any], step: str
) -> None:
    nothing = dict.fromkeys(("memory_ids", "actor_id", "role", "event", "text", "since", "until"))
    asked = Filter(**{**nothing, **wanted})
    async with open_history(path) as history:
        await fill(history, CHUNK + 10)
    with closing(sqlite3.connect(path)) as connection:
        connection.create_function("async_history_instant", 1, str)
        connection.create_function("async_history_key", 1, str)
        found: list[str] = []
        for source, direction in product(sources(asked, THROUGH_INDEX), ("ASC", "DESC")):
            order = source.order.format(direction=direction)
            plan = connection.execute(
                f"EXPLAIN QUERY PLAN {select('*', source, asked, THROUGH_INDEX)} ORDER BY {order}",
                parameters(asked),
            ).fetchall()
            steps = [row[-1] for row in plan]
            for slow in ("SCAN history", "SCAN spans", "TEMP B-TREE FOR ORDER"):
                assert not any(slow in one for one in steps), steps
            found += steps
        assert any(one.startswith(step) for one in found), found

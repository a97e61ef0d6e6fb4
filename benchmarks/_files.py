"""Large files, filled quickly before the measurement, without durable commits.

`history` files have mem0's plain table. For each way to find a memory there is a copy with its own
index. Ours is adopted and indexed, and its last rows are written by the manager, so that the upper
levels of our index are filled as in normal use.
"""

import asyncio
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from uuid_utils import uuid7

from async_history import open_history
from benchmarks._records import (
    CREATE_HISTORY,
    INSERT,
    RECORDS_A_MEMORY,
    NewRecord,
    agents,
    as_made,
    random_uuid,
    rows,
)

FILE: Final = "history.db"
RECENT_ROWS: Final = 200_000
"""Rows that our manager writes: more than the two upper levels of its index hold."""
MESSAGES_A_SCOPE: Final = 10
BYTES_A_ROW: Final = 2_500
"""The most bytes of a row in all the files of one size together."""

ORDINARY_INDEX: Final = "CREATE INDEX history_by_memory ON history (memory_id)"
SHORT_INDEX: Final = "CREATE INDEX history_by_memory ON history (substr(memory_id, -8))"

_TASKS: Final = 1_000
_CHUNK_ROWS: Final = 33 * RECORDS_A_MEMORY * _TASKS
_CREATE_MESSAGES: Final = """
CREATE TABLE messages (
    id TEXT PRIMARY KEY, session_scope TEXT, role TEXT, content TEXT, name TEXT,
    created_at DATETIME
)
"""


_FIRST: Final = datetime(2026, 1, 1, tzinfo=UTC)
_APART: Final = timedelta(milliseconds=10)

MakeRecords = Callable[[int, int], list[NewRecord]]
"""A function that makes records from a seed, which is the number of the first one."""


def _connect_careless(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA cache_size = -524288")
    return connection


def fresh_records(count: int, seed: int) -> list[NewRecord]:
    """Return records of new memories, in the order in which 1,000 tasks record them."""
    return as_made(agents(_TASKS, max(count, _TASKS * RECORDS_A_MEMORY), seed))[:count]


def recorded_in_order(count: int, seed: int) -> list[NewRecord]:
    """Return such records with ascending times, 10 ms apart, the first with number `seed`.

    A program that gives no times records like this.
    """
    return [
        record._replace(created_at=moment, updated_at=moment)
        for number, record in enumerate(fresh_records(count, seed), start=seed)
        for moment in [time_of(number).isoformat(timespec="microseconds")]
    ]


def time_of(number: int) -> datetime:
    """Return the time of the record with a number in `recorded_in_order`."""
    return _FIRST + number * _APART


def grow_history(path: Path, to_rows: int, records: MakeRecords = fresh_records) -> None:
    """Fill mem0's plain table up to a number of rows."""
    with closing(_connect_careless(path)) as connection:
        connection.execute(CREATE_HISTORY)
        (there,) = connection.execute("SELECT count(*) FROM history").fetchone()
        connection.execute("BEGIN")
        while there < to_rows:
            chunk = records(min(_CHUNK_ROWS, to_rows - there), there + 1)
            connection.executemany(INSERT, rows(chunk))
            there += len(chunk)
        connection.execute("COMMIT")


def copy_file(path: Path, folder: Path) -> Path:
    """Copy a closed file into a folder, which is created if missing; return the folder."""
    folder.mkdir(exist_ok=True)
    shutil.copyfile(path, folder / FILE)
    return folder


def copy_with_index(base: Path, folder: Path, index: str | None) -> None:
    """Copy a file, and create an index in the copy."""
    copy_file(base, folder)
    with closing(_connect_careless(folder / FILE)) as connection:
        if index is not None:
            connection.execute(index)


def copy_as_ours(base: Path, folder: Path, recent_rows: int) -> None:
    """Copy a file, let our manager adopt it and record `recent_rows` more."""
    copy_file(base, folder)

    async def adopt() -> None:
        async with open_history(folder / FILE, durability="normal") as history:
            for start in range(0, recent_rows, _CHUNK_ROWS):
                count = min(_CHUNK_ROWS, recent_rows - start)
                chunk = fresh_records(count, seed=-1 - start)
                await history.batch_add_history([record.as_mapping() for record in chunk])

    asyncio.run(adopt())


def read_through(path: Path) -> None:
    """Read a file into the system's cache, because the disk is not measured."""
    with path.open("rb") as file:
        while file.read(1 << 22):
            pass


def some_memories(path: Path, count: int) -> list[str]:
    """Return memory ids at random places of a file; unknown ids if it is empty."""
    numbers = random.Random(3)
    with closing(sqlite3.connect(path)) as connection:
        (last,) = connection.execute("SELECT coalesce(max(rowid), 0) FROM history").fetchone()
        if not last:
            return [random_uuid(numbers) for _ in range(count)]
        return [
            connection.execute(
                "SELECT memory_id FROM history WHERE rowid = ?", (numbers.randint(1, last),)
            ).fetchone()[0]
            for _ in range(count)
        ]


def scope(number: int) -> str:
    """Return a session scope with a name as in mem0."""
    return f"agent_id=agent-{number % 1_000}&user_id={random_uuid(random.Random(number))}"


def _messages(scopes: int) -> Iterator[tuple[str, ...]]:
    """Yield questions and answers of concurrent conversations."""
    for turn in range(0, MESSAGES_A_SCOPE, 2):
        for number in range(scopes):
            for offset, role in enumerate(("user", "assistant")):
                content = f"Message {turn + offset} of conversation {number}, about green tea"
                when = f"2026-01-01T00:{turn + offset:02}:00.{number % 1_000_000:06}+00:00"
                yield str(uuid7()), scope(number), role, content, "", when


def fill_messages(path: Path, count: int) -> None:
    """Create a file with mem0's two plain tables, and ten messages for each scope."""
    with closing(_connect_careless(path)) as connection:
        connection.execute(CREATE_HISTORY)
        connection.execute(_CREATE_MESSAGES)
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?)", _messages(count // MESSAGES_A_SCOPE)
        )
        connection.execute("COMMIT")

"""Ways to insert: ours, alternatives to it, and mem0's.

Each takes a folder whose `history.db` has the index that it needs, and returns rows a second. The
files are made in `_files`; `growth` compares.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final

from async_history._sqlite.index import add_functions, memory_key
from async_history._sqlite.times import add_time_function
from async_history._sqlite.write_program import WRITE_PROGRAM
from benchmarks._files import FILE, fresh_records
from benchmarks._measure import flat_out, quiet_collector, unwatched
from benchmarks._peers import TRANSACTION_ROWS, connect_raw, insert_raw, mem0, ours
from benchmarks._records import Row, agents, rows

OURS: Final = "async_history, 1,000 tasks"
BASELINE: Final = "ordinary index"
MEM0: Final = "mem0, 1,000 tasks"

_TASKS: Final = 1_000
_MEM0_INSERT_S: Final = 1.5
_TUNED: Final = ("PRAGMA cache_size = -65536", "PRAGMA wal_autocheckpoint = 16000")
_AS_OURS: Final = ("PRAGMA cache_size = -65536", "PRAGMA wal_autocheckpoint = 4000")

Insert = Callable[[Path, int], float]
"""A function that inserts new records, made from a seed, into a folder's file; returns rows/s."""


def _raw(
    pragmas: Sequence[str], inserted: int, folder: Path, seed: int, *, levels: bool = False
) -> float:
    made = list(rows(fresh_records(inserted, seed)))
    with closing(connect_raw(folder / FILE)) as connection:
        for pragma in pragmas:
            connection.execute(pragma)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with quiet_collector():
            if levels:
                return _insert_into_levels(connection, made)
            return insert_raw(connection, made)


_NO_RECORD: Final = (None,) * 10


def _insert_into_levels(connection: sqlite3.Connection, made: Sequence[Row]) -> float:
    """Insert like our backend, but from one thread that never waits."""
    add_functions(connection)
    add_time_function(connection)
    connection.executescript(WRITE_PROGRAM)
    keyed = [(*row, memory_key(str(row[1]))) for row in made]
    insert = f"INSERT INTO async_history_new VALUES ({', '.join('?' * (len(_NO_RECORD) + 1))})"
    begun = time.perf_counter()
    for start in range(0, len(keyed), TRANSACTION_ROWS):
        connection.execute("BEGIN IMMEDIATE")
        part = keyed[start : start + TRANSACTION_ROWS]
        connection.executemany(insert, part)
        connection.execute(insert, (*_NO_RECORD, len(part)))
        connection.execute("COMMIT")
    return len(keyed) / (time.perf_counter() - begun)


def _ours_by_tasks(inserted: int, folder: Path, seed: int) -> float:
    per_agent = agents(_TASKS, inserted, seed)

    async def measure() -> float:
        async with ours(folder) as add:
            return await unwatched(add, per_agent)

    with quiet_collector():
        return asyncio.run(measure())


def _mem0_by_tasks(inserted: int, folder: Path, seed: int) -> float:
    _leave_wal(folder)
    per_agent = agents(_TASKS, inserted, seed)

    async def measure() -> float:
        async with mem0(folder) as add:
            return (await flat_out("", add, per_agent, _MEM0_INSERT_S)).events_per_s

    with quiet_collector():
        return asyncio.run(measure())


def _leave_wal(folder: Path) -> None:
    """Change the file's journal to mem0's default."""
    with closing(sqlite3.connect(folder / FILE)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")


def ways(inserted: int) -> Mapping[str, tuple[str, Insert]]:
    """Return the ways to insert, each with the folder of its file."""
    return {
        OURS: ("ours", partial(_ours_by_tasks, inserted)),
        "three levels, raw": ("ours", partial(_raw, _AS_OURS, inserted, levels=True)),
        BASELINE: ("ordinary", partial(_raw, (), inserted)),
        "ordinary index, cache 64 MB, log 64 MB": ("ordinary", partial(_raw, _TUNED, inserted)),
        "index on substr(memory_id, -8), the same": ("short", partial(_raw, _TUNED, inserted)),
        "no memory index, the same": ("plain", partial(_raw, _TUNED, inserted)),
        MEM0: ("plain", partial(_mem0_by_tasks, inserted)),
    }

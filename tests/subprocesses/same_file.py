"""Other programs that use the same file, each in a separate process.

    python -m tests.subprocesses.same_file WHAT PATH [...]

Prints "ready" when it has begun, and goes on until its standard input is closed, unless it says
otherwise. A failure ends it with an error.
"""

import asyncio
import itertools
import os
import random
import select
import sqlite3
import sys
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

from async_history import HistoryManager, open_history
from tests.subprocesses.checks import Wrote
from tests.subprocesses.opened import opened
from tests.support.legacy_files import plain_mem0
from tests.support.patience import LONG_S

TASKS = 50
MEMORIES = 40


def ready() -> None:
    print("ready", flush=True)  # noqa: T201 - the test waits for this line


def is_told_to_finish() -> bool:
    return bool(select.select([sys.stdin], [], [], 0)[0])


def connected(path: str) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, timeout=LONG_S)


def hold(path: str, kind: str) -> None:
    """Hold the file's lock."""
    with closing(connected(path)) as connection:
        connection.execute(f"BEGIN {kind}")
        ready()
        sys.stdin.read()


def die_writing(path: str) -> None:
    """Add a record of the memory m and exit at once, so that the log stays."""
    connection = connected(path)
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("INSERT INTO history (id, memory_id, event) VALUES ('late', 'm', 'UPDATE')")
    os._exit(0)


def sql(path: str, script: str) -> None:
    """Run a script and end."""
    with closing(connected(path)) as connection:
        connection.executescript(script)


def vacuum(path: str, times: str) -> None:
    """Rebuild the file so many times, then end."""
    ready()
    with closing(connected(path)) as connection:
        for _ in range(int(times)):
            connection.execute("VACUUM")


def meddle(path: str) -> None:
    """Remove the newest rows, add others in their place, and rename memories. Prints how often."""
    chance = random.Random(1)  # noqa: S311 - a test's random choices
    ready()
    count = 0
    with closing(connected(path)) as connection:
        while count < 50 or not is_told_to_finish():
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "DELETE FROM history WHERE rowid > (SELECT max(rowid) - ? FROM history)",
                (chance.randrange(5),),
            )
            connection.executemany(
                "INSERT INTO history (id, memory_id, event) VALUES (?, ?, 'ADD')",
                [
                    (f"m {count} {n}", f"m{chance.randrange(50)}")
                    for n in range(chance.randrange(5))
                ],
            )
            connection.execute(
                "UPDATE history SET memory_id = 'm' || (rowid % 50)"
                " WHERE rowid % 7 = 0 AND rowid > (SELECT max(rowid) - 60 FROM history)"
            )
            connection.execute("COMMIT")
            count += 1
    print(count)  # noqa: T201 - its output


def mem0_writes(path: str) -> None:
    """Write as plain mem0 does, as fast as possible. Prints how many rows."""
    with closing(plain_mem0().SQLiteManager(path)) as mem0:
        mem0.add_history("mem0", None, "0", "ADD")
        ready()
        count = 1
        while count < 100 or not is_told_to_finish():
            mem0.add_history("mem0", str(count - 1), str(count), "UPDATE")
            count += 1
    print(count)  # noqa: T201 - its output


def mem0_resets(path: str, times: str) -> None:
    """Write a little as plain mem0 does and reset, so many times, then end."""
    ready()
    for _ in range(int(times)):
        with closing(plain_mem0().SQLiteManager(path)) as mem0:
            for number in range(5):
                mem0.add_history(f"m{number}", None, "mem0", "ADD")
            mem0.reset()


def ours(path: str, run: str, rounds: str) -> None:
    """Once its standard input closes, open the file and write from 50 tasks; then end.

    This process numbers each memory's records in the order of its calls.
    """
    ready()
    sys.stdin.read()
    asyncio.run(_write(path, int(run), int(rounds)))


def openings(path: str, run: str, count: str) -> None:
    """Once its standard input closes, make so many files, each with a record; then end."""
    ready()
    sys.stdin.read()

    async def make() -> None:
        for number in range(int(count)):
            async with open_history(f"{path}.{number}") as history:
                await history.add_history("m", None, run, "ADD")

    asyncio.run(make())


async def _write(path: str, run: int, rounds: int) -> None:
    chance = random.Random(run)  # noqa: S311 - a test's random choices
    numbers: dict[int, itertools.count[int]] = defaultdict(itertools.count)

    def submission() -> list[dict[str, Any]]:
        memory, size = chance.randrange(MEMORIES), chance.choice([1, 1, 1, 5])
        wrote = Wrote(run, memory, next(numbers[memory]), size)
        return [
            {"memory_id": f"m{memory}", "new_memory": wrote.text(index), "event": "UPDATE"}
            for index in range(size)
        ]

    async def write(history: HistoryManager) -> None:
        for _ in range(rounds):
            await history.batch_add_history(submission())

    async with opened(Path(path)) as history:
        await asyncio.gather(*(write(history) for _ in range(TASKS)))


_PROGRAMS = {
    program.__name__: program
    for program in (
        hold,
        die_writing,
        sql,
        vacuum,
        meddle,
        mem0_writes,
        mem0_resets,
        ours,
        openings,
    )
}

if __name__ == "__main__":
    _PROGRAMS[sys.argv[1]](*sys.argv[2:])

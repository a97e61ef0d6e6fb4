"""How many histories a second do tasks read from a file, compared with one aiosqlite connection?

    python -m benchmarks.reads [--quick] [--repeat 3] [--dir FOLDER]

Each task reads the histories of memories one after the other, as objects: with our manager, and by
a plain SELECT on a connection that all tasks share. Both files have the same records; the other one
has an ordinary index.
"""

import asyncio
import contextlib
from argparse import Namespace
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import aiosqlite

from async_history import open_history
from benchmarks._files import recorded_in_order
from benchmarks._measure import OthersLoad, median, quiet_collector
from benchmarks._peers import INDEX, connect_raw, insert_raw
from benchmarks._records import CREATE_HISTORY, NewRecord, rows
from benchmarks._report import (
    each,
    options_parser,
    print_load,
    print_table,
    rate,
    results_folder,
    work_folder,
    write_json,
)

TASKS: Final = (1, 10, 100, 1_000)
OURS: Final = "async_history"
THEIRS: Final = "one aiosqlite connection"
_RECORDS: Final = 10_000
_CALLS: Final = 20_000
_QUICK_CALLS: Final = 2_000
_APART: Final = 7_919
"""Distance between the first memories of two tasks: a prime, so that they read different ones."""
_SELECT: Final = "SELECT * FROM history WHERE memory_id = ? ORDER BY rowid"

Read = Callable[[str], Awaitable[Any]]
"""A function that reads a memory's history."""
Found = Mapping[tuple[str, int], list[float]]
"""Histories a second, by peer and tasks."""


async def read_histories(read: Read, memories: Sequence[str], tasks: int, calls: int) -> float:
    """Return the histories a second that tasks read."""

    async def task(number: int) -> None:
        for call in range(calls // tasks):
            await read(memories[(number * _APART + call) % len(memories)])

    begun = perf_counter()
    await asyncio.gather(*map(task, range(tasks)))
    return calls / (perf_counter() - begun)


def fill_theirs(path: Path, records: Sequence[NewRecord]) -> None:
    """Create a file with an ordinary index."""
    with contextlib.closing(connect_raw(path)) as connection:
        connection.execute(CREATE_HISTORY)
        connection.execute(INDEX)
        insert_raw(connection, list(rows(records)))


async def measure(folder: Path, calls: int, repeat: int) -> Found:
    """Let both take turns."""
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    records = recorded_in_order(_RECORDS, 1)
    memories = list(dict.fromkeys(record.memory_id for record in records))
    fill_theirs(folder / "theirs.db", records)
    async with (
        open_history(folder / "ours.db") as history,
        aiosqlite.connect(folder / "theirs.db") as connection,
    ):
        await history.batch_add_history([record.as_mapping() for record in records])

        async def select(memory_id: str) -> Any:
            return await connection.execute_fetchall(_SELECT, (memory_id,))

        for _ in range(repeat):
            for tasks in TASKS:
                for name, read in ((OURS, history.get_history), (THEIRS, select)):
                    with quiet_collector():
                        found[name, tasks].append(
                            await read_histories(read, memories, tasks, calls)
                        )
    return found


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    calls, repeat = (_QUICK_CALLS, 1) if options.quick else (_CALLS, options.repeat)
    with work_folder(options.dir) as folder:
        load = OthersLoad()
        found = asyncio.run(measure(folder, calls, repeat))
        print_table(
            ["histories/s", *(f"{tasks:,} tasks" for tasks in TASKS)],
            [
                [name, *(rate(median(found[name, tasks])) for tasks in TASKS)]
                for name in (OURS, THEIRS)
            ],
        )
        for tasks in TASKS:
            ours, theirs = found[OURS, tasks], found[THEIRS, tasks]
            ratios = [one / two for one, two in zip(ours, theirs, strict=True)]
            print(f"{tasks:,} tasks, ours against theirs: {median(ratios):.2f} ({each(ratios)})")
        others = load.processors()
        print_load(others)
        write_json(
            results_folder(options, folder) / "reads.json",
            {
                "processors_others_used": others,
                "histories_per_s": {" | ".join(map(str, key)): it for key, it in found.items()},
            },
        )


if __name__ == "__main__":
    main(options_parser(__doc__).parse_args())

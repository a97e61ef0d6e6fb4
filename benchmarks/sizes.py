"""Is the cost of each call proportional to what it returns or changes?

    python -m benchmarks.sizes [--quick] [--repeat 3] [--sizes 1000,10000] [--url postgresql://…]

Each call of the manager is made on histories of growing sizes, so that it has that many records to
return or change: each of another memory, or all of one; with times in our format, with an offset,
or without times as in plain mem0. The report has the cost of a record, and the ratio of the costs
at the largest and the smallest size. On SQLite the cost is this process's processor time, on
PostgreSQL (the dev extra's, or the server of `--url`) the elapsed time.
"""

import asyncio
import sqlite3
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, closing
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

from async_history import HistoryManager, copy_history, dump_lines, open_history
from benchmarks._measure import OthersLoad, median, quiet_collector
from benchmarks._postgres_peers import fresh_schema
from benchmarks._records import INSERT
from benchmarks._report import (
    Bar,
    as_json,
    options_parser,
    print_bars,
    print_load,
    print_table,
    results_folder,
    work_folder,
    write_json,
)
from benchmarks.postgres import server_url
from benchmarks.timeline import POSTGRES, SQLITE

_SIZES: Final = (1_000, 10_000, 100_000)
_QUICK_SIZES: Final = (100, 200)
_BAR: Final = 3
"""The highest ratio: 1 is linear; quadratic would be the ratio of the sizes."""
_BYTES_A_ROW: Final = 3_000
_BATCH: Final = 2_000
_ONE: Final = "m"
_BEGIN: Final = datetime(2026, 1, 1, microsecond=1, tzinfo=UTC)
_END: Final = datetime(2100, 1, 1, tzinfo=UTC)
_ACTOR: Final = "agent"

Call = Callable[[HistoryManager, int], Awaitable[object]]
"""A function that makes a call on a history with a number of records."""
Spelling = Callable[[datetime], str | None]

MANY: Final = "a memory each"
ONE: Final = "all of one memory"
OFFSET: Final = "times with an offset"
UNTIMED: Final = "one memory, no times"
SHAPES: Final[Mapping[str, tuple[bool, Spelling]]] = {
    MANY: (False, lambda moment: moment.isoformat()),
    ONE: (True, lambda moment: moment.isoformat()),
    OFFSET: (False, lambda moment: moment.astimezone(timezone(timedelta(hours=8))).isoformat()),
    UNTIMED: (True, lambda moment: None),
}
"""Whether all records are of one memory, and the format of their times."""


def _pages(**wanted: Any) -> Call:
    async def walk(history: HistoryManager, _: int) -> None:
        async for _page in history.query_history(**wanted).pages():
            """Read all."""

    return walk


async def _follow(history: HistoryManager, size: int) -> None:
    left = size
    async for _record in history.follow():
        left -= 1
        if not left:
            return


async def _memories_at(history: HistoryManager, _: int) -> None:
    async for _record in history.memories_at(_END):
        """Read all."""


async def _copy(history: HistoryManager, _: int) -> None:
    async with open_history("memory://") as target:
        await copy_history(history, target)


async def _dump(history: HistoryManager, _: int) -> None:
    async for _line in dump_lines(history):
        """Write all."""


async def _add_again(history: HistoryManager, size: int) -> None:
    """Add every record once more, with its id."""
    async for page in history.query_history(page_size=_BATCH).pages():
        await history.batch_add_history(page.records)


async def _save(history: HistoryManager, size: int) -> None:
    told = [{"role": "user", "content": "likes tea"}]
    for begin in range(0, size, _BATCH):
        scopes = range(begin, min(begin + _BATCH, size))
        await asyncio.gather(*(history.save_messages(told, f"s{n}") for n in scopes))


def _ids(size: int) -> list[str]:
    return [f"m{n}" for n in range(size)]


EVERY_SHAPE: Final[Mapping[str, Call]] = {
    "query_history": _pages(),
    "query_history, newest first": _pages(order="newest"),
    "query_history(event=)": _pages(event="ADD"),
    "query_history(role=)": _pages(role="user", order="newest"),
    "query_history(text=)": _pages(text="tea"),
    "query_history(actor_id=)": _pages(actor_id=_ACTOR),
    "query_history(actor_id=), newest first": _pages(actor_id=_ACTOR, order="newest"),
    "query_history(since=)": _pages(since=_BEGIN),
    "query_history(until=), newest first": _pages(until=_END, order="newest"),
    "count_history": lambda history, _: history.count_history(),
    "count_history(since=)": lambda history, _: history.count_history(since=_BEGIN),
    "memories_at": _memories_at,
    "follow": _follow,
    "copy_history": _copy,
    "dump_lines": _dump,
    "prune, dry": lambda history, _: history.prune(older_than=_END, dry_run=True),
    "prune(keep_last=1_000), dry": lambda history, _: history.prune(
        older_than=_END, keep_last=1_000, dry_run=True
    ),
}
OF_MANY: Final[Mapping[str, Call]] = {
    **EVERY_SHAPE,
    "query_history(memory_id=[…])": lambda history, size: _pages(memory_id=_ids(size))(
        history, size
    ),
    "batch_add_history of taken ids": _add_again,
    "save_messages": _save,
    "erase(memory_ids=), dry": lambda history, size: history.erase(
        memory_ids=_ids(size), reason="measured", dry_run=True
    ),
    "erase(actor_id=), dry": lambda history, _: history.erase(
        actor_id=_ACTOR, reason="measured", dry_run=True
    ),
    "erase(memory_ids=)": lambda history, size: history.erase(
        memory_ids=_ids(size), reason="measured", vacuum=False
    ),
    "erase(session_scopes=)": lambda history, size: history.erase(
        session_scopes=[f"s{n}" for n in range(size)], reason="measured", vacuum=False
    ),
    "erase(actor_id=)": lambda history, _: history.erase(
        actor_id=_ACTOR, reason="measured", vacuum=False
    ),
    "prune": lambda history, _: history.prune(older_than=_END, keep_last=0),
    "reset": lambda history, _: history.reset(),
}
OF_ONE: Final[Mapping[str, Call]] = {
    **EVERY_SHAPE,
    "get_history": lambda history, _: history.get_history(_ONE),
    "query_history(memory_id=)": _pages(memory_id=_ONE),
    "query_history(memory_id=), newest first": _pages(memory_id=_ONE, order="newest"),
    "memory_at": lambda history, _: history.memory_at(_ONE, _END),
    "diff": lambda history, _: history.diff(_ONE, 1, 2),
    "restore": lambda history, _: history.restore(_ONE, to=1),
    "erase(actor_id=), dry": lambda history, _: history.erase(
        actor_id=_ACTOR, reason="measured", dry_run=True
    ),
    "erase(memory_ids=)": lambda history, _: history.erase(
        memory_ids=[_ONE], reason="measured", vacuum=False
    ),
    "prune": lambda history, _: history.prune(older_than=_END, keep_last=0),
}


def _change(number: int, *, is_one: bool, spelling: Spelling) -> dict[str, Any]:
    return {
        "id": f"id-{number:09}",
        "memory_id": _ONE if is_one else f"m{number}",
        "old_memory": None,
        "new_memory": f"likes tea {number}",
        "event": "ADD",
        "created_at": spelling(_BEGIN + timedelta(seconds=number)),
        "updated_at": None,
        "is_deleted": 0,
        "actor_id": _ACTOR,
        "role": "user",
    }


async def fill(history: HistoryManager, shape: str, size: int) -> None:
    """Write a history of a shape and size through its manager."""
    is_one, spelling = SHAPES[shape]
    for begin in range(0, size, _BATCH):
        await history.batch_add_history(
            _change(number, is_one=is_one, spelling=spelling)
            for number in range(begin, min(begin + _BATCH, size))
        )


async def fill_as_others(path: Path, shape: str, size: int) -> None:
    """Write a file like plain mem0, which stores no time if none is given."""
    is_one, spelling = SHAPES[shape]
    async with open_history(path):
        """Opening creates the tables."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany(
            INSERT,
            (
                tuple(_change(number, is_one=is_one, spelling=spelling).values())
                for number in range(size)
            ),
        )


class Findings:
    """Microseconds a record, by (database, shape, call, size)."""

    def __init__(self) -> None:
        self.cost_us: dict[tuple[str, str, str, int], list[float]] = defaultdict(list)

    async def measure(self, database: str, shape: str, size: int, history: HistoryManager) -> None:
        """Make each call on a history."""
        clock = time.process_time if database == SQLITE else time.perf_counter
        with quiet_collector():
            for name, call in (OF_ONE if SHAPES[shape][0] else OF_MANY).items():
                begun = clock()
                await call(history, size)
                seconds = clock() - begun
                self.cost_us[database, shape, name, size].append(seconds / size * 1e6)

    def grown(self, database: str, shape: str, sizes: Sequence[int]) -> dict[str, float]:
        """Return the ratio of a record's costs at the largest and the smallest size, by call."""

        def cost(name: str, size: int) -> float:
            return median(self.cost_us[database, shape, name, size])

        names = {key[2] for key in self.cost_us if key[:2] == (database, shape)}
        return {name: cost(name, sizes[-1]) / cost(name, sizes[0]) for name in sorted(names)}

    def show(self, sizes: Sequence[int]) -> None:
        """Print the cost of a record."""
        for database, shape in dict.fromkeys(key[:2] for key in self.cost_us):
            print(f"\n{database}, {shape}: microseconds a record")
            print_table(
                ("call", *(f"of {size:,}" for size in sizes), "ratio"),
                [
                    (
                        name,
                        *(
                            f"{median(self.cost_us[database, shape, name, size]):.3g}"
                            for size in sizes
                        ),
                        f"{ratio:.2f}",
                    )
                    for name, ratio in self.grown(database, shape, sizes).items()
                ],
            )

    def bars(self, sizes: Sequence[int]) -> list[Bar]:
        """Return the bars of this script."""
        found = []
        for database, shape in dict.fromkeys(key[:2] for key in self.cost_us):
            grown = self.grown(database, shape, sizes)
            worst = max(grown, key=grown.__getitem__)
            found.append(
                Bar(
                    f"{database}, {shape}: a record of {sizes[-1]:,} against one of {sizes[0]:,}",
                    _BAR,
                    grown[worst],
                    f"the worst: {worst}",
                    at_most=True,
                )
            )
        return found


async def measure_sqlite(found: Findings, sizes: Sequence[int], folder: Path, repeat: int) -> None:
    """Measure files."""
    for turn in range(repeat):
        for shape in SHAPES:
            for size in sizes:
                path = folder / f"{turn}-{len(found.cost_us)}-{size}.db"
                if shape == UNTIMED:
                    await fill_as_others(path, shape, size)
                async with open_history(path) as history:
                    if shape != UNTIMED:
                        await fill(history, shape, size)
                    await found.measure(SQLITE, shape, size, history)
                path.unlink()


async def measure_postgres(found: Findings, url: str, sizes: Sequence[int], repeat: int) -> None:
    """Measure a server."""
    for _ in range(repeat):
        for shape in (MANY, ONE):
            for size in sizes:
                async with AsyncExitStack() as stack:
                    schema = await stack.enter_async_context(fresh_schema(url))
                    history = await stack.enter_async_context(open_history(url, schema=schema))
                    await fill(history, shape, size)
                    await found.measure(POSTGRES, shape, size, history)


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    sizes = options.sizes or (_QUICK_SIZES if options.quick else _SIZES)
    repeat = 1 if options.quick else options.repeat
    found = Findings()
    with work_folder(options.dir, max(sizes) * _BYTES_A_ROW) as folder:
        load = OthersLoad()
        asyncio.run(measure_sqlite(found, sizes, folder, repeat))
        with server_url(options) as url:
            asyncio.run(measure_postgres(found, url, sizes, repeat))
        found.show(sizes)
        reached = found.bars(sizes)
        print_bars(reached)
        others = load.processors()
        print_load(others)
        if options.quick:
            print("A quick run shows that everything runs: its figures and bars mean little.")
        write_json(
            results_folder(options, folder) / "sizes.json",
            {
                "processors_others_used": others,
                "bars": [as_json(bar) for bar in reached],
                "cost_us": {" | ".join(map(str, key)): us for key, us in found.cost_us.items()},
            },
        )


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(sorted(map(int, text.split(","))))


if __name__ == "__main__":
    parser = options_parser(__doc__)
    parser.add_argument("--sizes", type=_sizes, help="records there, separated by commas")
    parser.add_argument("--url", help="a PostgreSQL server to measure instead")
    main(parser.parse_args())

"""How long do `rollback(user_id=)` and `erase(user_id=)` take, among many records of others?

    python -m benchmarks.owner_changes [--quick] [--repeat 3] [--rows 3000000] [--url …]

It runs on a file, and on the dev extra's PostgreSQL with its own defaults, or on the server of
`--url`. Both are filled at the same time: the file by our calls, the tables on the server. A
rollback's megabytes besides its report are those of Python's objects.
"""

import asyncio
import tracemalloc
from argparse import Namespace
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from async_history import HistoryManager, open_history
from benchmarks._measure import OthersLoad, median, quiet_collector, timed
from benchmarks._owners import fill
from benchmarks._postgres_fill import fill_on_server
from benchmarks._postgres_peers import fresh_schema
from benchmarks._records import details
from benchmarks._report import (
    Bar,
    as_json,
    each,
    options_parser,
    print_bars,
    print_load,
    results_folder,
    work_folder,
    write_json,
)
from benchmarks.postgres import server_url

ROLLBACK: Final = "rollback(user_id=) of {:,} memories, seconds"
ERASE: Final = "erase(user_id=) of {:,} memories, seconds"
_FIRST: Final = ("likes tea", "likes mate", "likes cocoa")
_THEN: Final = ("likes water", "likes milk")
MEMORY: Final = "rollback(user_id=), MB besides the report"


async def _give(history: HistoryManager, user: int, memories: int, texts: Sequence[str]) -> None:
    """Record memories of a user, or their next texts."""
    for number, text in enumerate(texts):
        await history.batch_add_history(
            [
                {
                    "memory_id": f"{user} {memory}",
                    "new_memory": text,
                    "event": "ADD" if text == _FIRST[0] else "UPDATE",
                    **details(user, number),
                }
                for memory in range(memories)
            ]
        )


async def _roll_back(history: HistoryManager, user: int, memories: int) -> tuple[float, float]:
    """Return the seconds of a rollback, and the megabytes of another one."""
    await _give(history, user, memories, _FIRST)
    begun = datetime.now(UTC)
    await _give(history, user, memories, _THEN)
    with quiet_collector():
        seconds = await timed(lambda: history.rollback(to=begun, user_id=f"user {user}"))
    await _give(history, user, memories, _THEN)
    tracemalloc.start()
    report = await history.rollback(to=begun, user_id=f"user {user}")
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.restored == memories, report.outcome()
    return seconds, (peak - kept) / 1e6


async def _erase(history: HistoryManager, user: int, memories: int) -> float:
    await _give(history, user, memories, _FIRST)
    return await timed(
        lambda: history.erase(user_id=f"user {user}", reason="measured", vacuum=False)
    )


async def measure(
    history: HistoryManager, rows: int, memories: Sequence[int], repeat: int
) -> dict[str, list[float]]:
    """Return the measurements of a history with so many records, by name."""
    taken_back, erased = memories
    found: dict[str, list[float]] = defaultdict(list)
    for turn in range(repeat):
        seconds, megabytes = await _roll_back(history, rows + turn, taken_back)
        found[ROLLBACK.format(taken_back)].append(seconds)
        found[MEMORY].append(megabytes)
        found[ERASE.format(erased)].append(await _erase(history, rows + repeat + turn, erased))
    return found


async def measure_all(url: str, folder: Path, options: Namespace) -> dict[str, dict[str, Any]]:
    """Measure both databases."""
    rows, memories = (20_000, (1_000, 100)) if options.quick else (options.rows, (10_000, 1_000))
    repeat = 1 if options.quick else options.repeat
    async with AsyncExitStack() as stack:
        schema = await stack.enter_async_context(fresh_schema(url))
        file = await stack.enter_async_context(open_history(folder / "history.db"))
        server = await stack.enter_async_context(open_history(url, schema=schema))
        seconds = await timed(
            lambda: asyncio.gather(fill(file, rows), fill_on_server(url, schema, server, rows))
        )
        print(f"filled in {seconds:.0f} s", flush=True)
        histories = {"SQLite": file, "PostgreSQL": server}
        return {
            where: await measure(history, rows, memories, repeat)
            for where, history in histories.items()
        }


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    limits = {"rollback": 5.0, "erase": 2.0}
    with work_folder(options.dir) as folder, server_url(options) as url:
        load = OthersLoad()
        found = asyncio.run(measure_all(url, folder, options))
        others = load.processors()
        bars = [
            Bar(f"{where}: {name}", limit, median(figures), each(figures), at_most=True, unit="s")
            for where, of_it in found.items()
            for name, figures in of_it.items()
            if (limit := limits.get(name.split("(")[0])) is not None and name != MEMORY
        ]
        print_bars(bars)
        for where, of_it in found.items():
            print(f"{where}: {MEMORY}: {each(of_it[MEMORY])}")
        print_load(others)
        write_json(
            results_folder(options, folder) / "owner_changes.json",
            {"processors_others_used": others, "figures": found, "bars": [*map(as_json, bars)]},
        )


if __name__ == "__main__":
    parser = options_parser(__doc__)
    parser.add_argument("--rows", type=int, default=3_000_000, help="records of others")
    parser.add_argument("--url", help="a PostgreSQL server to measure, instead of one of its own")
    main(parser.parse_args())

"""What does a write that depends on its memory's latest record cost, compared with a plain one?

    python -m benchmarks.latest [--quick] [--repeat 3] [--dir FOLDER]

One task for each memory changes it: by `add_history`, with `if_latest`, by `update_history`, which
reads the memory's text, and by `restore`, which also reads an earlier text and is logged. Each way
begins with new memories of two records. It runs on SQLite, and on PostgreSQL if a server is
installed.
"""

import asyncio
from argparse import Namespace
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import perf_counter
from typing import Final

from async_history import HistoryManager, HistoryRecord, open_history
from benchmarks._measure import OthersLoad, median, quiet_collector
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
from tests.support.postgres_server import PostgresServer, are_installed

_MEMORIES: Final = 1_000
_ROUNDS: Final = 10
_FIRST, _SECOND = "prefers seats", "prefers aisle seats"
_TEXT: Final = "prefers window seats, revision {}"
PLAIN: Final = "add_history"

Change = Callable[[HistoryManager, HistoryRecord, str], Awaitable[HistoryRecord]]
"""A function that changes a memory, given its latest record, to a text."""
WAYS: Final[Mapping[str, Change]] = {
    PLAIN: lambda history, latest, text: history.add_history(
        latest.memory_id, latest.new_memory, text, "UPDATE"
    ),
    "add_history(if_latest=)": lambda history, latest, text: history.add_history(
        latest.memory_id, latest.new_memory, text, "UPDATE", if_latest=latest
    ),
    "update_history": lambda history, latest, text: history.update_history(latest.memory_id, text),
    "restore": lambda history, latest, text: history.restore(
        latest.memory_id, to=1 if latest.new_memory == _SECOND else 2
    ),
}
Found = Mapping[str, Sequence[float]]
"""Records a second, by way."""


async def measure(url: str, rounds: int, repeat: int) -> Found:
    """Let the ways take turns on one history."""
    found: dict[str, list[float]] = defaultdict(list)
    async with open_history(url) as history:
        revision = 0
        for turn in range(repeat):
            for name, change in WAYS.items():
                latest = await new_memories(history, f"{name} {turn}")
                with quiet_collector():
                    begun = perf_counter()
                    for _ in range(rounds):
                        revision += 1
                        text = _TEXT.format(revision)
                        latest = await asyncio.gather(
                            *(change(history, one, text) for one in latest)
                        )
                    found[name].append(rounds * _MEMORIES / (perf_counter() - begun))
    return found


async def new_memories(history: HistoryManager, name: str) -> Sequence[HistoryRecord]:
    """Record two texts of each memory; return their latest records."""
    ids = [f"{name} {number}" for number in range(_MEMORIES)]
    await asyncio.gather(*(history.add_history(one, None, _FIRST, "ADD") for one in ids))
    return await asyncio.gather(*(history.update_history(one, _SECOND) for one in ids))


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    rounds, repeat = (1, 1) if options.quick else (_ROUNDS, options.repeat)
    results: dict[str, Found] = {}
    with work_folder(options.dir) as folder:
        load = OthersLoad()
        results["SQLite"] = asyncio.run(measure(str(folder / "h.db"), rounds, repeat))
        if are_installed():
            server = PostgresServer()
            server.create().start()
            try:
                results["PostgreSQL"] = asyncio.run(measure(server.url(), rounds, repeat))
            finally:
                server.remove()
        print_table(
            ["records/s", *results],
            [[name, *(rate(median(found[name])) for found in results.values())] for name in WAYS],
        )
        for database, found in results.items():
            for name in WAYS:
                if name != PLAIN:
                    ratios = [a / b for a, b in zip(found[name], found[PLAIN], strict=True)]
                    print(
                        f"{database}, {name} against plain: {median(ratios):.2f} ({each(ratios)})"
                    )
        others = load.processors()
        print_load(others)
        write_json(
            results_folder(options, folder) / "latest.json",
            {"processors_others_used": others, "records_per_s": results},
        )


if __name__ == "__main__":
    main(options_parser(__doc__).parse_args())

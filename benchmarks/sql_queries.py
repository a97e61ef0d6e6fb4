"""Do pages, counts and `get_history` stay fast in MariaDB as a history grows?

    python -m benchmarks.sql_queries [--quick] [--repeat 3] [--rows 3000000] [--dir FOLDER]

The same queries run on a history with 10,000 records and on a large one, in turns, before and after
ANALYZE. Queries are repeated, so that the server's cache has the rows: the disk is not measured.
The server is the machine's `mariadb-server`, started for the run with its own defaults. It fills
the tables itself, with a larger cache: 3 million records take 3 GB.
"""

import asyncio
from argparse import Namespace
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from itertools import product
from typing import Any, Final

from sqlalchemy import URL

from async_history import HistoryManager
from async_history.sql import SqlHistoryManager
from benchmarks._findings import time_bar
from benchmarks._measure import OthersLoad, median, percentile, timed
from benchmarks._report import (
    Bar,
    as_json,
    milliseconds,
    options_parser,
    print_bars,
    print_load,
    print_table,
    results_folder,
    work_folder,
    write_json,
)
from benchmarks._sql_peers import connected, execute, fresh_database
from benchmarks.sql import server_url
from tests.support.mariadb_plans import fill
from tests.support.questions import PAGE, START

_FEW_ROWS: Final = 10_000
_MANY_ROWS: Final = 3_000_000
_QUICK_ROWS: Final = 20_000
_BYTES_A_ROW: Final = 1_200
_CALLS: Final = 100
_QUICK_CALLS: Final = 3
_FILL_CACHE: Final = 1 << 30
_GET_HISTORY: Final = "get_history"
_KINDS: Final = (_GET_HISTORY, "a page", "a count")
_STATES: Final[Mapping[str, Sequence[str]]] = {
    "not analyzed": (),
    "analyzed": ("ANALYZE TABLE async_history_records, async_history_marks",),
}

Call = Callable[[], Awaitable[object]]


async def questions(history: HistoryManager, rows: int) -> dict[str, Call]:
    """Return the queries for a history with `rows` records; their results do not grow with it."""
    middle = START + timedelta(seconds=rows / 2)
    ten_seconds = {"since": middle, "until": middle + timedelta(seconds=10)}
    first = await anext(aiter(history.query_history(since=middle, page_size=1).pages()))
    memories = ["large", *(f"m{number * 7}" for number in range(9))]
    newest = {"order": "newest"}
    asked: Mapping[str, Mapping[str, Any]] = {
        "everything": {},
        "everything, newest first": newest,
        "everything, from the middle": {"after": first.cursor},
        "a memory": {"memory_id": "m77"},
        "a large memory, newest first, from the middle": {
            "memory_id": "large",
            "after": first.cursor,
            **newest,
        },
        "ten memories": {"memory_id": memories},
        "an actor": {"actor_id": "a7"},
        "an actor, newest first, from the middle": {
            "actor_id": "a7",
            "after": first.cursor,
            **newest,
        },
        "an actor's deletions": {"actor_id": "a7", "event": "DELETE"},
        "a role, newest first": {"role": "user", **newest},
        "deletions": {"event": "DELETE"},
        "a user": {"user_id": "u7"},
        "a run": {"run_id": "r77"},
        "a request": {"cause": {"request_id": "7"}},
        "ten seconds in the middle": ten_seconds,
        "the last ten seconds": {"since": START + timedelta(seconds=rows - 10)},
        "an actor, in these ten": {"actor_id": "a7", **ten_seconds},
        "a large memory, in these ten": {"memory_id": "large", **ten_seconds},
        "ten memories, in these ten": {"memory_id": memories, **ten_seconds},
    }
    counted = (
        "a memory",
        "a user",
        "a run",
        "a request",
        "ten seconds in the middle",
        "an actor, in these ten",
        "a large memory, in these ten",
    )

    async def page(wanted: Mapping[str, Any]) -> object:
        return await anext(aiter(history.query_history(page_size=PAGE, **wanted).pages()))

    return {
        _GET_HISTORY: lambda: history.get_history("m77"),
        **{f"a page: {name}": partial(page, wanted) for name, wanted in asked.items()},
        **{f"a count: {name}": partial(history.count_history, **asked[name]) for name in counted},
    }


@asynccontextmanager
async def filled(url: URL, rows: int) -> AsyncIterator[tuple[URL, SqlHistoryManager]]:
    """Yield a history with `rows` records, in a new database, and its URL."""
    async with (
        fresh_database(url) as fresh,
        SqlHistoryManager(fresh) as history,
        connected(fresh) as connection,
    ):
        cache = "SET GLOBAL innodb_buffer_pool_size = {}"
        async with connection.cursor() as cursor:
            await cursor.execute("SELECT @@innodb_buffer_pool_size")
            ((before,),) = await cursor.fetchall()
            await cursor.execute(cache.format(max(before, _FILL_CACHE)))
            await fill(cursor, rows)
            await cursor.execute(cache.format(before))
        yield fresh, history


Waits = dict[tuple[str, str, int], list[float]]
"""The median seconds of each query, by state and rows, one value for each repetition."""


async def measure(url: URL, rows: int, calls: int, repeat: int) -> Waits:
    """Let a small and a large history take turns."""
    found: Waits = defaultdict(list)
    async with filled(url, _FEW_ROWS) as (few_url, few), filled(url, rows) as (many_url, many):
        asked = {_FEW_ROWS: await questions(few, _FEW_ROWS), rows: await questions(many, rows)}
        for state, statements in _STATES.items():
            for one in (few_url, many_url):
                await execute(one, *statements)
            for _, question in product(range(repeat), asked[rows]):
                waits: dict[int, list[float]] = {count: [] for count in asked}
                for _ in range(calls):
                    for count, seconds in waits.items():
                        seconds.append(await timed(asked[count][question]))
                for count, seconds in waits.items():
                    found[state, question, count].append(percentile(seconds, 0.5))
    return found


def bars(found: Waits, rows: int) -> list[Bar]:
    """Return the bars: for each kind of query, the one that grew most."""
    reached = []
    for state, kind in product(_STATES, _KINDS):
        of_kind = [
            time_bar(
                f"{question}, {state}: {rows:,} against {_FEW_ROWS:,}",
                2,
                seconds,
                found[state, question, _FEW_ROWS],
            )
            for (of_state, question, count), seconds in found.items()
            if (of_state, count) == (state, rows) and question.startswith(kind)
        ]
        reached.append(max(of_kind, key=lambda bar: bar.reached))
    return reached


def show(found: Waits, rows: int) -> None:
    """Print the times of each query."""
    table = [
        [
            f"{question}, {state}",
            *(milliseconds(median(found[state, question, count])) for count in (_FEW_ROWS, rows)),
        ]
        for state, question, of in found
        if of == rows
    ]
    print_table(["p50", f"ms of {_FEW_ROWS:,}", f"ms of {rows:,}"], table)


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    rows = options.rows or (_QUICK_ROWS if options.quick else _MANY_ROWS)
    calls = _QUICK_CALLS if options.quick else _CALLS
    repeat = 1 if options.quick else options.repeat
    with work_folder(options.dir, rows * _BYTES_A_ROW) as folder, server_url(options.dir) as url:
        load = OthersLoad()
        found = asyncio.run(measure(url, rows, calls, repeat))
        others = load.processors()
        reached = bars(found, rows)
        show(found, rows)
        print_bars(reached)
        print_load(others)
        if options.quick:
            print("A quick run shows that everything runs: its figures and bars mean little.")
        write_json(
            results_folder(options, folder) / "sql_queries.json",
            {
                "processors_others_used": others,
                "bars": [as_json(bar) for bar in reached],
                "asked_p50_s": {" | ".join(map(str, key)): it for key, it in found.items()},
            },
        )


if __name__ == "__main__":
    parser = options_parser(__doc__)
    parser.add_argument("--rows", type=int, help=f"rows there, {_MANY_ROWS:,} if not told")
    main(parser.parse_args())

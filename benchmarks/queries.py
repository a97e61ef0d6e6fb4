"""Do queries stay fast as a history grows, and do writes stay fast while it is read?

    python -m benchmarks.queries [--quick] [--repeat 3] [--rows 3000000] [--url postgresql://…]

First, pages of ten records of every kind of query, in a large history and in one of 10,000 records,
in turns; in SQLite and in PostgreSQL (the dev extra's, with PostgreSQL's own defaults, or the
server of `--url`). Times are in the order of recording. Then 1,000 tasks record into a history
until it is twice as long. They do so alone, and while a query reads everything as fast as it can, a
follower reads, and (in SQLite) a backup is made, in the same process or in another.
"""

import asyncio
import contextlib
from argparse import Namespace
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any, Final

from async_history import HistoryManager, HistoryOptions, open_history
from benchmarks._files import BYTES_A_ROW, recorded_in_order, time_of
from benchmarks._measure import (
    OthersLoad,
    median,
    percentile,
    quiet_collector,
    timed,
    unwatched,
)
from benchmarks._peers import add_to
from benchmarks._postgres_peers import fresh_schema
from benchmarks._readers import reading, reading_elsewhere
from benchmarks._records import agents
from benchmarks._report import (
    Bar,
    as_json,
    each,
    milliseconds,
    options_parser,
    print_bars,
    print_load,
    print_table,
    rate,
    results_folder,
    work_folder,
    write_json,
)
from benchmarks.postgres import server_url
from benchmarks.timeline import POSTGRES, SQLITE, fill_sqlite, filled_schema

_FEW_ROWS: Final = 10_000
_MANY_ROWS: Final = 3_000_000
_QUICK_ROWS: Final = 10_000
_PAGE: Final = 10
"""Records of a page: as few as on a screen, so that finding them takes most of the time."""
_CALLS: Final = 40
_TASKS: Final = 1_000
_EVENTS: Final = 120_000
_QUICK_EVENTS: Final = 3_000
_ACTOR: Final = "agent-77"
_ALONE: Final = "alone"
_SAME_PROCESS: Final = "with readers in the same process"
_ELSEWHERE: Final = "with readers in another process"

Question = Mapping[str, Any]
"""The arguments of `query_history`."""


async def questions(history: HistoryManager, rows: int) -> dict[str, Question]:
    """Return the queries for a history with `rows` rows."""
    middle = time_of(rows // 2)
    (page,) = await _pages(history, {"since": middle})
    ids = [record.memory_id for record in page.records]
    return {
        "everything": {},
        "everything, from the middle": {"after": page.cursor},
        "everything, newest first": {"order": "newest"},
        "a memory": {"memory_id": ids[0]},
        "ten memories": {"memory_id": ids},
        "an actor": {"actor_id": _ACTOR},
        "an actor, newest first": {"actor_id": _ACTOR, "order": "newest"},
        "an actor's deletions": {"actor_id": _ACTOR, "event": "DELETE"},
        "deletions": {"event": "DELETE"},
        "a second in the middle": {"since": middle, "until": middle + timedelta(seconds=1)},
        "the last second": {"since": time_of(rows) - timedelta(seconds=1)},
    }


async def _pages(history: HistoryManager, question: Question) -> Sequence[Any]:
    async for page in history.query_history(**question, page_size=_PAGE).pages():
        return (page,)
    raise AssertionError("a query has at least one page")


class Findings:
    """The measurements: seconds of a page by (database, query, rows), events/s by way."""

    def __init__(self) -> None:
        self.pages_s: dict[tuple[str, str, int], list[float]] = defaultdict(list)
        self.writes: dict[tuple[str, str], list[float]] = defaultdict(list)

    async def measure_pages(self, name: str, histories: Mapping[int, HistoryManager]) -> None:
        """Let a small and a large history take turns."""
        asked = {rows: await questions(history, rows) for rows, history in histories.items()}
        for question in asked[_FEW_ROWS]:
            waits: dict[int, list[float]] = defaultdict(list)
            for _ in range(_CALLS):
                for rows, history in histories.items():
                    wanted = asked[rows][question]
                    waits[rows].append(await timed(lambda h=history, w=wanted: _pages(h, w)))  # type: ignore[misc]
            for rows, seconds in waits.items():
                self.pages_s[name, question, rows].append(percentile(seconds, 0.5))

    def bars(self, rows: int) -> list[Bar]:
        """Return the bars of this script."""
        found = []
        for name in (SQLITE, POSTGRES):
            asked = [q for database, q, count in self.pages_s if (database, count) == (name, rows)]
            ratios = {
                question: median(self.pages_s[name, question, rows])
                / median(self.pages_s[name, question, _FEW_ROWS])
                for question in asked
            }
            worst = max(ratios, key=ratios.__getitem__)
            label = f"{name}: the slowest page of {rows:,} against {_FEW_ROWS:,}: {worst}"
            others = each(sorted(ratios.values()))
            found.append(Bar(label, 2, ratios[worst], others, at_most=True))
        for name, way in product((SQLITE, POSTGRES), (_SAME_PROCESS, _ELSEWHERE)):
            alone, with_them = self.writes[name, _ALONE], self.writes[name, way]
            ratios_ = [one / two for one, two in zip(with_them, alone, strict=True)]
            figures = f"{rate(median(with_them))} / {rate(median(alone))} a second; {each(ratios_)}"
            label = f"{name}: 1,000 tasks {way} against alone"
            found.append(Bar(label, 0.6, median(ratios_), figures))
        return found

    def show(self, rows: int) -> None:
        """Print the times of pages."""
        table = [
            [
                name,
                question,
                *(milliseconds(median(self.pages_s[name, question, r])) for r in (_FEW_ROWS, rows)),
            ]
            for name, question, count in self.pages_s
            if count == rows
        ]
        print_table(["", "a page of", f"ms of {_FEW_ROWS:,}", f"ms of {rows:,}"], table)


async def writes(url: str, schema: str, events: int, folder: Path, way: str) -> float:
    """Return the events a second that 1,000 tasks record into a new history."""
    options: HistoryOptions = {"schema": schema} if schema else {}
    async with open_history(url, **options) as history, AsyncExitStack() as stack:
        await history.batch_add_history(
            [record.as_mapping() for record in recorded_in_order(events, 1)]
        )
        if way == _SAME_PROCESS:
            await stack.enter_async_context(reading(history, folder))
        elif way == _ELSEWHERE:
            await stack.enter_async_context(reading_elsewhere(url, schema, folder))
        return await unwatched(add_to(history), agents(_TASKS, events))


Fresh = Callable[[], contextlib.AbstractAsyncContextManager[tuple[str, str]]]
"""The URL of a new history, and its schema if it has one."""


async def measure_writes(
    found: Findings, name: str, fresh: Fresh, events: int, folder: Path, repeat: int
) -> None:
    """Let the ways take turns."""
    for _ in range(repeat):
        for way in (_ALONE, _SAME_PROCESS, _ELSEWHERE):
            async with fresh() as (url, schema):
                with quiet_collector():
                    events_per_s = await writes(url, schema, events, folder, way)
            found.writes[name, way].append(events_per_s)


async def measure_sqlite(
    found: Findings, rows: int, events: int, folder: Path, repeat: int
) -> None:
    """Measure files."""
    paths = {count: folder / f"{count}.db" for count in (_FEW_ROWS, rows)}
    for count, path in paths.items():
        await asyncio.to_thread(fill_sqlite, path, count, recorded_in_order)
    async with AsyncExitStack() as stack:
        histories = {
            count: await stack.enter_async_context(open_history(path))
            for count, path in paths.items()
        }
        for _ in range(repeat):
            await found.measure_pages(SQLITE, histories)
    for path in paths.values():
        path.unlink()

    @asynccontextmanager
    async def fresh() -> AsyncIterator[tuple[str, str]]:
        path = folder / "fresh.db"
        yield str(path), ""
        path.unlink()

    await measure_writes(found, SQLITE, fresh, events, folder, repeat)


async def measure_postgres(
    found: Findings, url: str, rows: int, events: int, folder: Path, repeat: int
) -> None:
    """Measure a server."""
    async with AsyncExitStack() as stack:
        histories = {}
        for count in (_FEW_ROWS, rows):
            schema = await stack.enter_async_context(filled_schema(url, count, recorded_in_order))
            histories[count] = await stack.enter_async_context(open_history(url, schema=schema))
        for _ in range(repeat):
            await found.measure_pages(POSTGRES, histories)

    @asynccontextmanager
    async def fresh() -> AsyncIterator[tuple[str, str]]:
        async with fresh_schema(url) as schema:
            yield url, schema

    await measure_writes(found, POSTGRES, fresh, events, folder, repeat)


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    rows = options.rows or (_QUICK_ROWS if options.quick else _MANY_ROWS)
    events = _QUICK_EVENTS if options.quick else _EVENTS
    repeat = 1 if options.quick else options.repeat
    found = Findings()
    with work_folder(options.dir, rows * BYTES_A_ROW) as folder:
        load = OthersLoad()
        run: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run
        run(measure_sqlite(found, rows, events, folder, repeat))
        with server_url(options) as url:
            run(measure_postgres(found, url, rows, events, folder, repeat))
        found.show(rows)
        reached = found.bars(rows)
        print_bars(reached)
        others = load.processors()
        print_load(others)
        if options.quick:
            print("A quick run shows that everything runs: its figures and bars mean little.")
        write_json(
            results_folder(options, folder) / "queries.json",
            {
                "processors_others_used": others,
                "bars": [as_json(bar) for bar in reached],
                "page_p50_s": {" | ".join(map(str, key)): s for key, s in found.pages_s.items()},
                "events_per_s": {" | ".join(key): rates for key, rates in found.writes.items()},
            },
        )


if __name__ == "__main__":
    parser = options_parser(__doc__)
    parser.add_argument("--rows", type=int, help=f"rows there, {_MANY_ROWS:,} if not told")
    parser.add_argument("--url", help="a PostgreSQL server to measure instead")
    main(parser.parse_args())

"""What do owners, contexts and causes cost on PostgreSQL, and does it stay so as the history grows?

    python -m benchmarks.owners_postgres [--quick] [--repeat 3] [--rows 3000000] [--url …]

As `benchmarks.owners`, on the dev extra's server with PostgreSQL's own defaults, or on the one of
`--url`. 3 million rows take 3 GB.
"""

import asyncio
from argparse import Namespace
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from async_history import HistoryManager, open_history
from benchmarks._measure import OthersLoad, median
from benchmarks._postgres_peers import connected, fresh_schema
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
from benchmarks.owners import LIMITS, QUESTIONS, ask, fill, record
from benchmarks.postgres import server_url

_FEW_ROWS: Final = 10_000


@asynccontextmanager
async def _history(url: str) -> Any:
    async with fresh_schema(url) as schema, open_history(url, schema=schema) as history:
        yield history


async def _checkpoint(url: str) -> None:
    async with connected(url) as connection:
        await connection.execute("CHECKPOINT")


async def measure(url: str, rows: int, repeat: int) -> list[Bar]:
    """Measure everything; return the bars."""
    cost: list[float] = []
    empty: list[float] = []
    for turn in range(1, repeat + 1):
        async with _history(url) as plain:
            without = await record(plain, turn, with_details=False)
        async with _history(url) as detailed:
            empty.append(await record(detailed, turn, with_details=True))
        cost.append(empty[-1] / without)
    print(f"with owner and cause against without: {each(cost)}", flush=True)
    bars = [Bar("with owner and cause", LIMITS["cost"], median(cost), each(cost))]
    async with AsyncExitStack() as stack:
        few: HistoryManager = await stack.enter_async_context(_history(url))
        many: HistoryManager = await stack.enter_async_context(_history(url))
        await fill(few, _FEW_ROWS)
        await fill(many, rows)
        await _checkpoint(url)
        at_few, at_many = await ask(few, _FEW_ROWS), await ask(many, rows)
        for name in QUESTIONS:
            figures = f"{at_few[name] * 1e3:.2f} ms, {at_many[name] * 1e3:.2f} ms"
            ratio = at_many[name] / at_few[name]
            bars.append(Bar(name, LIMITS["question"], ratio, figures, at_most=True))
        large: list[float] = []
        for turn in range(1, repeat + 1):
            await _checkpoint(url)
            large.append(await record(many, 100 + turn, with_details=True))
    growth = [one / other for one, other in zip(large, empty, strict=True)]
    return [*bars, Bar(f"insert at {rows:,} rows", LIMITS["growth"], median(growth), each(growth))]


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    rows, repeat = (20_000, 1) if options.quick else (options.rows, options.repeat)
    with work_folder(options.dir) as folder, server_url(options) as url:
        load = OthersLoad()
        bars = asyncio.run(measure(url, rows, repeat))
        others = load.processors()
        print_bars(bars)
        print_load(others)
        write_json(
            results_folder(options, folder) / "owners_postgres.json",
            {"processors_others_used": others, "rows": rows, "bars": [*map(as_json, bars)]},
        )


if __name__ == "__main__":
    parser = options_parser(__doc__)
    parser.add_argument("--rows", type=int, default=3_000_000, help="records of the large history")
    parser.add_argument("--url", help="a PostgreSQL server to measure, instead of one of its own")
    main(parser.parse_args())

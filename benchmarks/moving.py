"""How fast is a copy from SQLite to PostgreSQL, compared record by record on the way?

    python -m benchmarks.moving [--quick] [--repeat 3] [--dir FOLDER] [--url postgresql://…]

Peers in the same run: reading the file in pages through aiosqlite, and COPY of 1,000 rows each into
the same table (asyncpg's copy_records_to_table). The slower of the two is the most that a copy
without comparison could reach. The last figure is the same copy again, which only reads.
"""

import asyncio
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import aiosqlite
import asyncpg

from async_history import copy_history, open_history
from async_history._core.records.records import COLUMNS
from async_history._core.records.rows import record_of
from async_history._postgres.schema import quoted
from benchmarks._files import fresh_records
from benchmarks._measure import OthersLoad, median, quiet_collector
from benchmarks._report import (
    Bar,
    each,
    options_parser,
    print_bars,
    print_load,
    print_table,
    work_folder,
)
from benchmarks.postgres import server_url
from tests.support.postgres_server import drop_schemas, with_query

WANTED: Final = 0.6
_RECORDS: Final = 200_000
_QUICK_RECORDS: Final = 20_000
_PAGE: Final = 1_000
_READ: Final = f"""
SELECT rowid, {", ".join(COLUMNS)} FROM history WHERE rowid > ? ORDER BY rowid LIMIT {_PAGE}
"""

Row = Sequence[Any]


async def _fill(file: Path, count: int) -> None:
    async with open_history(file, durability="normal") as history:
        records = [record.as_mapping() for record in fresh_records(count, seed=1)]
        for start in range(0, count, 20_000):
            await history.batch_add_history(records[start : start + 20_000])


async def _raw_read(file: Path) -> tuple[float, list[Row]]:
    rows: list[Row] = []
    async with aiosqlite.connect(file) as connection:
        begun = time.perf_counter()
        while page := list(await connection.execute_fetchall(_READ, (rows[-1][0] if rows else 0,))):
            rows += page
        return len(rows) / (time.perf_counter() - begun), [row[1:] for row in rows]


async def _raw_copy(url: str, schema: str, rows: Sequence[Row]) -> float:
    async with open_history(with_query(url, schema=schema)):
        pass
    records = [record_of((*row[:7], bool(row[7]), *row[8:], None, None, None)) for row in rows]
    values = [
        (*row[:7], bool(row[7]), *row[8:], record.occurred_at)
        for row, record in zip(rows, records, strict=True)
    ]
    connection = await asyncpg.connect(url)
    begun = time.perf_counter()
    for start in range(0, len(values), _PAGE):
        await connection.copy_records_to_table(
            "history",
            schema_name=schema,
            columns=[*COLUMNS, "occurred_at"],
            records=values[start : start + _PAGE],
        )
    seconds = time.perf_counter() - begun
    await connection.execute(f"DROP SCHEMA {quoted(schema)} CASCADE")
    await connection.close()
    return len(values) / seconds


async def _copies(file: Path, url: str, schema: str) -> tuple[float, float]:
    async with (
        open_history(file) as source,
        open_history(with_query(url, schema=schema)) as target,
    ):
        first = await copy_history(source, target)
        again = await copy_history(source, target)
    drop_schemas(url, [schema])
    return first.records / first.seconds, again.records / again.seconds


async def _measure(file: Path, url: str, repeat: int) -> None:
    figures: dict[str, list[float]] = {
        name: [] for name in ("raw read", "raw COPY", "copy_history", "the same again")
    }
    ratios: list[float] = []
    for number in range(repeat):
        with quiet_collector():
            read, rows = await _raw_read(file)
            copied = await _raw_copy(url, f"moving_raw_{number}", rows)
            del rows
            first, again = await _copies(file, url, f"moving_{number}")
        for name, figure in zip(figures, (read, copied, first, again), strict=True):
            figures[name].append(figure)
        ratios.append(first / min(read, copied))
    print_table(
        ("", "records/s"), [[name, f"{median(rates):,.0f}"] for name, rates in figures.items()]
    )
    measure = "copy_history against the slower of raw read and raw COPY"
    print_bars([Bar(measure, WANTED, median(ratios), each(ratios))])


def main(options: Namespace) -> None:
    """Measure and print."""
    count = _QUICK_RECORDS if options.quick else _RECORDS
    load = OthersLoad()
    with ExitStack() as stack:
        folder = stack.enter_context(work_folder(options.dir))
        url = stack.enter_context(server_url(options))
        file = folder / "history.db"
        asyncio.run(_fill(file, count))
        asyncio.run(_measure(file, url, 1 if options.quick else options.repeat))
    print_load(load.processors())


if __name__ == "__main__":
    parser = options_parser(__doc__)
    parser.add_argument("--url", help="a server to measure instead, of one host and without TLS")
    main(parser.parse_args())

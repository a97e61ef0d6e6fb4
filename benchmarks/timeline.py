"""How fast is `memories_at`, compared with one raw ordered scan of the same table?

    python -m benchmarks.timeline [--quick] [--repeat 3] [--rows 3000000] [--url postgresql://…]

Both read the whole table, which has three records for each memory. The scan returns every row in
order through the driver, in pages. `memories_at` returns one record of every memory, for the
instant at which all of them exist, which is the most it can return. They take turns, in SQLite and
in PostgreSQL (the dev extra's, with PostgreSQL's own defaults, or the server of `--url`).
"""

import asyncio
from argparse import Namespace
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from sqlite3 import connect
from typing import Final

import aiosqlite

from async_history import HistoryOptions, open_history
from benchmarks._files import (
    BYTES_A_ROW,
    FILE,
    MakeRecords,
    fresh_records,
    grow_history,
    read_through,
)
from benchmarks._measure import OthersLoad, median, quiet_collector, timed
from benchmarks._postgres_peers import COLUMNS, connected, fresh_schema, rows
from benchmarks._records import RECORDS_A_MEMORY
from benchmarks._report import (
    Bar,
    as_json,
    each,
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

_ROWS: Final = 3_000_000
_QUICK_ROWS: Final = 9_000
_PAGE_ROWS: Final = 500
"""The page size of `query_history`; larger pages are not faster."""
_CHUNK_ROWS: Final = 99_000
_EVERYTHING: Final = datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
"""An instant at which every memory of `_records` exists, and the first have changed."""
_BAR: Final = 0.5
SQLITE: Final = "SQLite"
POSTGRES: Final = "PostgreSQL"

Scan = Callable[[], Awaitable[int]]
"""A function that reads a table and returns the number of rows."""


async def memories_at(url: str, schema: str | None = None) -> int:
    """Return the number of memories at the instant."""
    options: HistoryOptions = {} if schema is None else {"schema": schema}
    async with open_history(url, **options) as history:
        return len([None async for _ in history.memories_at(_EVERYTHING)])


async def scan_sqlite(path: Path) -> int:
    """Read every row of a file in order, through the driver and its thread."""
    found = 0
    async with aiosqlite.connect(path) as connection:
        cursor = await connection.execute("SELECT * FROM history ORDER BY rowid")
        while page := list(await cursor.fetchmany(_PAGE_ROWS)):
            found += len(page)
    return found


async def scan_postgres(url: str, schema: str) -> int:
    """Read every row of a table in order, through a cursor."""
    found = 0
    async with connected(url) as connection, connection.transaction():
        cursor = await connection.cursor(f'SELECT * FROM "{schema}".history ORDER BY seq')
        while page := await cursor.fetch(_PAGE_ROWS):
            found += len(page)
    return found


def fill_sqlite(path: Path, count: int, records: MakeRecords = fresh_records) -> None:
    """Create a file of ours with `count` rows."""
    grow_history(path, count, records)

    async def adopt() -> None:
        async with open_history(path):
            pass

    asyncio.run(adopt())
    read_through(path)


@asynccontextmanager
async def filled_schema(
    url: str, count: int, records: MakeRecords = fresh_records
) -> AsyncIterator[str]:
    """Create our tables with `count` rows."""
    async with fresh_schema(url) as schema, connected(url) as connection:
        for start in range(0, count, _CHUNK_ROWS):
            chunk = records(min(_CHUNK_ROWS, count - start), start + 1)
            await connection.copy_records_to_table(
                "history",
                schema_name=schema,
                columns=COLUMNS,
                records=rows(chunk),
            )
        await connection.execute(f'VACUUM ANALYZE "{schema}".history')
        yield schema


class Findings:
    """The seconds of every repetition, by database."""

    def __init__(self, table_rows: int) -> None:
        self.table_rows = table_rows
        self.scan_s: dict[str, list[float]] = defaultdict(list)
        self.memories_s: dict[str, list[float]] = defaultdict(list)

    async def measure(self, name: str, scan: Scan, memories: Scan, repeat: int) -> None:
        """Let the two take turns."""

        async def checked(walk: Scan, expected: int) -> None:
            found = await walk()
            assert found == expected, f"{name}: {found:,} rows came, not {expected:,}"

        memories_there = self.table_rows // RECORDS_A_MEMORY
        for _ in range(repeat):
            with quiet_collector():
                self.scan_s[name].append(await timed(lambda: checked(scan, self.table_rows)))
                self.memories_s[name].append(await timed(lambda: checked(memories, memories_there)))

    def show(self) -> None:
        """Print the table's rows a second."""
        table = [
            [
                name,
                *(rate(self.table_rows / median(s[name])) for s in (self.scan_s, self.memories_s)),
            ]
            for name in self.scan_s
        ]
        print_table(["the table's rows a second", "raw ordered scan", "memories_at"], table)

    def bars(self) -> list[Bar]:
        """Return the bars of this script."""
        found = []
        for name, seconds in self.scan_s.items():
            mine = self.memories_s[name]
            ratios = [scan_s / mine_s for scan_s, mine_s in zip(seconds, mine, strict=True)]
            figures = f"{median(mine):.1f} / {median(seconds):.1f} s; {each(ratios)}"
            label = f"{name}: memories_at over {self.table_rows:,} rows against a raw ordered scan"
            found.append(Bar(label, _BAR, median(ratios), figures))
        return found


def measure_sqlite(found: Findings, folder: Path, repeat: int) -> None:
    """Measure a file."""
    path = folder / FILE
    fill_sqlite(path, found.table_rows)
    with closing(connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    asyncio.run(
        found.measure(SQLITE, lambda: scan_sqlite(path), lambda: memories_at(str(path)), repeat)
    )
    path.unlink()


def measure_postgres(found: Findings, url: str, repeat: int) -> None:
    """Measure a server."""

    async def measure() -> None:
        async with filled_schema(url, found.table_rows) as schema:
            await found.measure(
                POSTGRES,
                lambda: scan_postgres(url, schema),
                lambda: memories_at(url, schema),
                repeat,
            )

    asyncio.run(measure())


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    table_rows = options.rows or (_QUICK_ROWS if options.quick else _ROWS)
    found = Findings(table_rows - table_rows % (1_000 * RECORDS_A_MEMORY))
    repeat = 1 if options.quick else options.repeat
    with work_folder(options.dir, found.table_rows * BYTES_A_ROW) as folder:
        load = OthersLoad()
        measure_sqlite(found, folder, repeat)
        with server_url(options) as url:
            measure_postgres(found, url, repeat)
        found.show()
        reached = found.bars()
        print_bars(reached)
        others = load.processors()
        print_load(others)
        if options.quick:
            print("A quick run shows that everything runs: its figures and bars mean little.")
        write_json(
            results_folder(options, folder) / "timeline.json",
            {
                "processors_others_used": others,
                "bars": [as_json(bar) for bar in reached],
                "rows": found.table_rows,
                "raw_ordered_scan_s": found.scan_s,
                "memories_at_s": found.memories_s,
            },
        )


if __name__ == "__main__":
    parser = options_parser(__doc__)
    parser.add_argument("--rows", type=int, help=f"rows there, {_ROWS:,} if not told")
    parser.add_argument("--url", help="a PostgreSQL server to measure instead")
    main(parser.parse_args())

"""What does a ledger cost when recording, and how fast are its proofs?

    python -m benchmarks.ledger [--quick] [--rows 3000000] [--repeat 3] [--dir FOLDER] [--postgres]

1,000 tasks record into a SQLite file with a ledger and into one without, in turns: with mem0's
columns only, and with an owner, a context and a cause. Then a large history is verified, which is
compared with reading its rows through the driver, and single records are proven. With `--postgres`,
or `--url`, the histories are in PostgreSQL.
"""

import asyncio
import sqlite3
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import Protocol

from async_history import HistoryManager, open_history
from async_history.ledger import Checkpoint, LedgerKey
from benchmarks._measure import OthersLoad, median, percentile, timed
from benchmarks._owners import fill, owners_parser, record, tell
from benchmarks._postgres_peers import connected, fresh_schema
from benchmarks._report import Bar, each, work_folder
from benchmarks.postgres import server_url

_WRITING = 0.75
_VERIFYING = 0.2
_PROOF_MS = 50.0
_PROOFS = 200
_IN_FILE = """
SELECT history.rowid, history.*, detail.context, detail.cause
FROM history LEFT JOIN async_history_details AS detail ON detail.id = history.id
ORDER BY history.rowid
"""
_ON_SERVER = """
SELECT seq, id, memory_id, old_memory, new_memory, event, created_at, updated_at, is_deleted,
    actor_id, role, context, cause
FROM history ORDER BY seq
"""
_AT_ONCE = 2_000
_SOME_IN_FILE = """
SELECT id FROM history WHERE rowid % ((SELECT count(*) FROM history) / ? + 1) = 0 ORDER BY random()
"""
_SOME_ON_SERVER = """
SELECT id FROM history WHERE seq % ((SELECT count(*) FROM history) / $1 + 1) = 0 ORDER BY random()
"""


class _Store(Protocol):
    """The place of the measured histories. `scan` and `some_ids` read the open one."""

    def opened(self, *, ledger: bool) -> AbstractAsyncContextManager[HistoryManager]: ...

    def scan(self) -> Awaitable[None]: ...

    def some_ids(self) -> Awaitable[list[str]]: ...


class _Files:
    """Histories in SQLite files."""

    def __init__(self, folder: Path) -> None:
        self._paths = (folder / f"{number}.db" for number in count())

    @asynccontextmanager
    async def opened(self, *, ledger: bool) -> AsyncIterator[HistoryManager]:
        self._path = next(self._paths)
        async with open_history(self._path, ledger=ledger) as history:
            yield history

    async def scan(self) -> None:
        await asyncio.to_thread(self._scan)

    def _scan(self) -> None:
        with closing(sqlite3.connect(self._path)) as connection:
            for _ in connection.execute(_IN_FILE):
                pass

    async def some_ids(self) -> list[str]:
        """Return ids from everywhere in the file, in random order."""
        return await asyncio.to_thread(self._some_ids)

    def _some_ids(self) -> list[str]:
        with closing(sqlite3.connect(self._path)) as connection:
            return [found for (found,) in connection.execute(_SOME_IN_FILE, (_PROOFS,))]


class _Server:
    """Histories in PostgreSQL."""

    def __init__(self, url: str) -> None:
        self._url = url

    @asynccontextmanager
    async def opened(self, *, ledger: bool) -> AsyncIterator[HistoryManager]:
        async with (
            fresh_schema(self._url) as self._schema,
            open_history(self._url, schema=self._schema, ledger=ledger) as history,
        ):
            yield history

    async def scan(self) -> None:
        async with connected(self._url) as connection, connection.transaction():
            await connection.execute(f'SET LOCAL search_path TO "{self._schema}"')
            async for _ in connection.cursor(_ON_SERVER, prefetch=_AT_ONCE):
                pass

    async def some_ids(self) -> list[str]:
        """Return ids from everywhere in the history, in random order."""
        async with connected(self._url) as connection, connection.transaction():
            await connection.execute(f'SET LOCAL search_path TO "{self._schema}"')
            return [found for (found,) in await connection.fetch(_SOME_ON_SERVER, _PROOFS)]


async def measure(store: _Store, options: Namespace) -> list[Bar]:
    """Measure in turns; return the bars."""
    records, repeat = (6_000, 1) if options.quick else (30_000, options.repeat)
    written: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(1, repeat + 1):
        for with_details in (False, True):
            rates: list[float] = []
            for ledger in (False, True):
                async with store.opened(ledger=ledger) as history:
                    rates.append(await record(history, records, turn, with_details=with_details))
            written[with_details].append(rates[1] / rates[0])
            print(f"{rates[0]:,.0f} events/s off, {rates[1]:,.0f} on", flush=True)
    bars = [
        _bar("events/s, mem0's columns", written[False]),
        _bar("events/s, with owner, context and cause", written[True]),
    ]
    return [*bars, *await _large(store, 20_000 if options.quick else options.rows)]


async def _large(store: _Store, rows: int) -> list[Bar]:
    key = LedgerKey.generate("example.org/benchmark")
    async with store.opened(ledger=True) as history:
        await fill(history, rows)
        checkpoint = await history.ledger.checkpoint(key)
        scan = await timed(store.scan)
        verifying = await timed(partial(history.ledger.verify, checkpoint))
        scan = min(scan, await timed(store.scan))
        proofs = [
            await timed(partial(_prove, history, record_id, checkpoint))
            for record_id in await store.some_ids()
        ]
    rates = f"{rows / scan:,.0f} records/s scanned, {rows / verifying:,.0f} verified"
    print(rates, flush=True)
    worst = percentile(proofs, 0.99) * 1e3
    typical = f"half within {percentile(proofs, 0.5) * 1e3:.2f} ms, 99% within {worst:.2f} ms"
    return [
        Bar(f"verify of {rows:,} records against a scan", _VERIFYING, scan / verifying, rates),
        Bar(f"a proof among {rows:,}", _PROOF_MS, worst, typical, at_most=True, unit="ms"),
    ]


async def _prove(history: HistoryManager, record_id: str, checkpoint: Checkpoint) -> None:
    await history.ledger.prove(record_id, checkpoint)


def _bar(name: str, ratios: Sequence[float]) -> Bar:
    return Bar(name, _WRITING, median(ratios), each(ratios))


def main(options: Namespace) -> None:
    """Measure, print, and write the results."""
    with work_folder(options.dir) as folder:
        load = OthersLoad()
        if options.postgres or options.url:
            with server_url(options) as url:
                bars = asyncio.run(measure(_Server(url), options))
            name = "ledger_postgres"
        else:
            bars, name = asyncio.run(measure(_Files(folder), options)), "ledger"
        tell(options, folder, name, bars, load)


if __name__ == "__main__":
    parser = owners_parser(__doc__)
    parser.add_argument("--postgres", action="store_true", help="measure PostgreSQL")
    parser.add_argument("--url", help="a PostgreSQL server to measure, instead of one of its own")
    main(parser.parse_args())

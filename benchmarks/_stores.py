"""The stores of the measurements of encryption and the ledger: files, or schemas of a server."""

import asyncio
import sqlite3
from argparse import ArgumentParser, Namespace
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from itertools import count
from pathlib import Path
from typing import Any, Final, Protocol

from async_history import HistoryManager, open_history
from benchmarks._measure import OthersLoad
from benchmarks._owners import owners_parser, tell
from benchmarks._postgres_peers import connected, fresh_schema
from benchmarks._report import Bar, work_folder
from benchmarks.postgres import server_url

_IN_FILE: Final = """
SELECT history.rowid, history.*, detail.context, detail.cause
FROM history LEFT JOIN async_history_details AS detail ON detail.id = history.id
ORDER BY history.rowid
"""
_ON_SERVER: Final = """
SELECT seq, id, memory_id, old_memory, new_memory, event, created_at, updated_at, is_deleted,
    actor_id, role, context, cause
FROM history ORDER BY seq
"""
_AT_ONCE: Final = 2_000
_SOME_IN_FILE: Final = """
SELECT id FROM history WHERE rowid % ((SELECT count(*) FROM history) / ? + 1) = 0 ORDER BY random()
"""
_SOME_ON_SERVER: Final = """
SELECT id FROM history WHERE seq % ((SELECT count(*) FROM history) / $1 + 1) = 0 ORDER BY random()
"""


class Store(Protocol):
    """The place of the measured histories. `scan` and `some_ids` read the open one."""

    def opened(self, **options: Any) -> AbstractAsyncContextManager[HistoryManager]:
        """Open another empty history."""

    async def scan(self) -> None:
        """Read all records in order through the driver."""

    async def some_ids(self, count: int) -> list[str]:
        """Return ids from everywhere in the history, in random order."""


class _Files:
    """Histories in SQLite files."""

    def __init__(self, folder: Path) -> None:
        self._paths = (folder / f"{number}.db" for number in count())

    @asynccontextmanager
    async def opened(self, **options: Any) -> AsyncIterator[HistoryManager]:
        self._path = next(self._paths)
        async with open_history(self._path, **options) as history:
            yield history

    async def scan(self) -> None:
        await asyncio.to_thread(self._scan)

    def _scan(self) -> None:
        with closing(sqlite3.connect(self._path)) as connection:
            for _ in connection.execute(_IN_FILE):
                pass

    async def some_ids(self, count: int) -> list[str]:
        return await asyncio.to_thread(self._some_ids, count)

    def _some_ids(self, count: int) -> list[str]:
        with closing(sqlite3.connect(self._path)) as connection:
            return [found for (found,) in connection.execute(_SOME_IN_FILE, (count,))]


class _Server:
    """Histories in PostgreSQL."""

    def __init__(self, url: str) -> None:
        self._url = url

    @asynccontextmanager
    async def opened(self, **options: Any) -> AsyncIterator[HistoryManager]:
        async with (
            fresh_schema(self._url) as self._schema,
            open_history(self._url, schema=self._schema, **options) as history,
        ):
            yield history

    async def scan(self) -> None:
        async with self._reading() as connection:
            async for _ in connection.cursor(_ON_SERVER, prefetch=_AT_ONCE):
                pass

    async def some_ids(self, count: int) -> list[str]:
        async with self._reading() as connection:
            return [found for (found,) in await connection.fetch(_SOME_ON_SERVER, count)]

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[Any]:
        async with connected(self._url) as connection, connection.transaction():
            await connection.execute(f'SET LOCAL search_path TO "{self._schema}"')
            yield connection


def stores_parser(described: str | None) -> ArgumentParser:
    """Return a parser of the options of scripts that measure either."""
    parser = owners_parser(described)
    parser.add_argument("--postgres", action="store_true", help="measure PostgreSQL")
    parser.add_argument("--url", help="a PostgreSQL server to measure, instead of one of its own")
    return parser


def run(
    name: str,
    measure: Callable[[Store, Namespace], Awaitable[list[Bar]]],
    options: Namespace,
) -> None:
    """Measure files or a server, print, and write the results under a name."""

    async def bars_of(store: Store) -> list[Bar]:
        return await measure(store, options)

    with work_folder(options.dir) as folder:
        load = OthersLoad()
        if options.postgres or options.url:
            with server_url(options) as url:
                bars = asyncio.run(bars_of(_Server(url)))
            name = f"{name}_postgres"
        else:
            bars = asyncio.run(bars_of(_Files(folder)))
        tell(options, folder, name, bars, load)

"""The history of a synchronous manager: opened on its loop, closed during a reset."""

import asyncio
import os
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from async_history._core.ledger.changes import reset
from async_history._core.manager import HistoryManager
from async_history._core.operations.operations import StoreOperation, at_its_end, new_operation
from async_history._core.options import HistoryOptions
from async_history._opening import is_server, open_history
from async_history._sqlite.connecting.errors import connect, typed_errors, wait_for_lock
from async_history._sqlite.connecting.worker_thread import run_in_thread
from async_history._sqlite.ledger import attest, place_next
from async_history._sqlite.manager import LOCK_TIMEOUT_S, SQLiteHistoryManager
from async_history._sqlite.operations import enter, has_log, row_count
from async_history.errors import HistoryClosed

T = TypeVar("T")

_TABLES: Final = ("history", "messages")


class LoopStore:
    """A manager on its own loop: opened on first use, and closed during a reset."""

    def __init__(
        self, url: str | os.PathLike[str], path: Path | None, options: HistoryOptions
    ) -> None:
        self._url = path or url
        self._path = path
        self._options = options
        self.lock_timeout_s = options.get("lock_timeout_s", LOCK_TIMEOUT_S)
        self._is_server = is_server(url)
        self.is_sqlite = False
        self._manager: HistoryManager | None = None
        self._closed = False
        self._turn = asyncio.Lock()  # held during opening and reset
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def open(self) -> None:
        async with self._turn:
            await self._ensure_open()

    async def call(self, function: Callable[[HistoryManager], Awaitable[T]]) -> T:
        async with self._turn:
            manager = await self._ensure_open()
            self._running += 1
            self._idle.clear()
        try:
            return await function(manager)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def _ensure_open(self) -> HistoryManager:
        if self._closed:
            raise HistoryClosed("the history was closed before this call began")
        if self._manager is None:
            self._manager = open_history(self._url, **self._options)
            self.is_sqlite = isinstance(self._manager, SQLiteHistoryManager)
            try:
                await self._manager
            except BaseException:
                self._manager = None
                raise
        return self._manager

    async def reset(self) -> None:
        """Empty a server's schema (others use it too) or a database in memory; drop a file's
        tables.
        """
        if self._is_server or self._path is None:
            await self.call(lambda manager: manager.reset())
            return
        async with self._turn:
            await self._idle.wait()
            if self._closed:
                raise HistoryClosed("the history was closed before this call began")
            manager, self._manager = self._manager, None
            if manager is not None:
                await manager.aclose()
            operation = new_operation("reset")
            drop = partial(_drop_tables, self._path, operation, self.lock_timeout_s)
            await run_in_thread(drop)

    async def copy_memory(self, target: sqlite3.Connection) -> None:
        """Copy a database in memory into another."""
        async with self._turn:
            if isinstance(self._manager, SQLiteHistoryManager):
                await self._manager.copy_into(target)

    async def aclose(self) -> None:
        self._closed = True
        if self._manager is not None:
            await self._manager.aclose()
        # Wait for running calls and for tasks left by the manager's close timeout: stopping the
        # loop would cancel them.
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)


def _drop_tables(path: Path, operation: StoreOperation, lock_timeout_s: float) -> None:
    """Drop mem0's two tables, as mem0's reset does; log it if the file has a log of operations."""
    with typed_errors(str(path)), closing(connect(path, "rw")) as connection:
        while wait_for_lock(partial(place_next, connection), lock_timeout_s):
            pass
        wait_for_lock(lambda: connection.execute("BEGIN IMMEDIATE"), lock_timeout_s)
        try:
            there = [row_count(connection, table) for table in _TABLES]
            attest(connection, reset)
            for table in _TABLES:
                connection.execute(f"DROP TABLE IF EXISTS {table}")
            if has_log(connection):
                enter(connection, at_its_end(operation, *there))
            wait_for_lock(lambda: connection.execute("COMMIT"), lock_timeout_s)
        except BaseException:
            connection.rollback()
            raise
